"""The part of the client that blocking and asyncio clients share has no socket, clock or thread in it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

SANS_IO = [
    "arguments",
    "deadlines",
    "entries_request",
    "entry_cursor",
    "leader_search",
    "peer_broadcast",
    "read_request",
    "requests",
    "results",
    "session",
    "splicer",
    "subscription",
    "update_pipeline",
]
IO = {"zmq", "time", "datetime", "threading", "queue", "socket", "select", "asyncio", "concurrent", "random", "os"}


def imported(module: str) -> set[str]:
    """The modules of the client, and the first parts of all others, that a module of the client imports."""
    spec = importlib.util.find_spec(f"zmqraft.client.{module}")
    assert spec is not None
    assert spec.origin is not None
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module))
    own = "zmqraft.client."
    return {name.removeprefix(own) if name.startswith(own) else name.split(".")[0] for name in names}


@pytest.mark.parametrize("module", SANS_IO)
def test_it_imports_nothing_that_does_io(module: str) -> None:
    others = imported(module) - set(SANS_IO)
    assert not others & IO
    assert not {name for name in others if importlib.util.find_spec(f"zmqraft.client.{name}")}


def test_the_test_sees_io() -> None:
    assert {"zmq", "threading", "time", "session"} <= imported("io_thread")
