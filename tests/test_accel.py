"""Compiled or pure: all or none, by the environment, read at import. Each choice in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.process import run_python
from support.twins import COMPILED

#: Prints what was chosen, where the dispatchers' names come from, and which compiled modules are loaded.
REPORT = """
import sys
import zmqraft
from zmqraft import _accel
from zmqraft.protocol import frames, schema
assert zmqraft.EXTENSIONS is _accel.EXTENSIONS
assert bool(_accel.PURE_REASON) is not _accel.EXTENSIONS
sources = {frames.encode_uint.__module__, frames.MessageCodec.__module__, schema.MessageCodec.__module__}
print(_accel.EXTENSIONS, *sources, _accel.PURE_REASON, sep="|")
"""
#: Nothing compiled can be found, as in a build without a compiler.
WITHOUT = """
import sys
sys.modules["zmqraft._speedups.frames"] = None
"""
#: A compiled module that is broken with something else than ImportError: that is not to be papered over.
BROKEN = """
import importlib
def fail(name, package=None):
    raise RuntimeError("broken")
importlib.import_module = fail
"""


@pytest.mark.parametrize("build", [COMPILED])
@pytest.mark.parametrize("environment", [{}, {"ZMQRAFT_REQUIRE_EXTENSIONS": "1"}, {"ZMQRAFT_NO_EXTENSIONS": "0"}])
def test_compiled_where_it_is_built(tmp_path: Path, build: str, environment: dict[str, str]) -> None:
    done = run_python(REPORT, tmp_path, **environment)
    assert done.stdout == "True|zmqraft._speedups.frames|\n", done.stderr


def test_pure_when_asked_for(tmp_path: Path) -> None:
    done = run_python(REPORT, tmp_path, ZMQRAFT_NO_EXTENSIONS="1")
    assert done.stdout == "False|zmqraft.protocol._frames|ZMQRAFT_NO_EXTENSIONS is set\n", done.stderr


def test_pure_where_nothing_is_built(tmp_path: Path) -> None:
    done = run_python(WITHOUT + REPORT, tmp_path)
    assert done.stdout.startswith("False|zmqraft.protocol._frames|a compiled module could not be loaded: "), done.stderr


def test_an_error_where_nothing_is_built_but_required(tmp_path: Path) -> None:
    done = run_python(WITHOUT + REPORT, tmp_path, ZMQRAFT_REQUIRE_EXTENSIONS="1")
    assert done.returncode == 1
    assert "ImportError: a compiled module could not be loaded: " in done.stderr
    assert "install zmqraft with a C compiler at hand, or unset ZMQRAFT_REQUIRE_EXTENSIONS" in done.stderr


def test_an_error_when_both_are_asked_for(tmp_path: Path) -> None:
    done = run_python(REPORT, tmp_path, ZMQRAFT_REQUIRE_EXTENSIONS="1", ZMQRAFT_NO_EXTENSIONS="1")
    assert done.returncode == 1
    assert "ImportError: ZMQRAFT_NO_EXTENSIONS and ZMQRAFT_REQUIRE_EXTENSIONS are both set" in done.stderr


def test_only_an_import_error_selects_pure(tmp_path: Path) -> None:
    done = run_python(BROKEN + REPORT, tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: broken" in done.stderr


def test_the_pure_build_works(tmp_path: Path) -> None:
    done = run_python(
        "from zmqraft.protocol import Protocols as p; print(p.REQUEST_CONFIG.encode_request(b'^', b's'))",
        tmp_path,
        ZMQRAFT_NO_EXTENSIONS="1",
    )
    assert done.stdout == "[b'^', b's']\n", done.stderr
