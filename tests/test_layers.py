"""Imports point inwards (DESIGN, "Layers"): read from the source, so that no import can hide in a function."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import zmqraft

ROOT = Path(zmqraft.__file__).parent
PACKAGE = "zmqraft"

#: Each layer, and those that it may import from beside itself.
BASE = {"errors", "constants", "_accel", "_msgpack", "api"}
PROTOCOL = BASE | {"core", "protocol"}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "constants": {"errors"},
    "_accel": {"_speedups"},
    "_msgpack": {"errors", "constants"},
    "_speedups": {"errors", "constants", "_msgpack"},
    "api": {"errors", "constants"},
    "core": BASE,
    "protocol": BASE | {"core", "_speedups"},
    "storage": PROTOCOL | {"_speedups"},
    "client": PROTOCOL,
    # A peer is a client too: of the leader, for the updates that are made through it.
    "server": PROTOCOL | {"storage", "client", "_speedups"},
    "asyncio": PROTOCOL | {"client", "server"},
    "machines": PROTOCOL | {"client", "asyncio"},
    "testing": PROTOCOL | {"storage", "server", "client"},
    "cli": PROTOCOL | {"storage", "server", "client", "asyncio", "machines", "testing", ""},
    "__main__": {"cli"},
    # zmqraft/__init__.py: the public names, from anywhere but the command.
    "": PROTOCOL | {"storage", "server", "client"},
}
SOURCES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> str:
    """``zmqraft.core.raft`` is in core; ``zmqraft`` itself in the one without a name."""
    return [*module.split("."), ""][1]


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is TYPE_CHECKING alone: what is under it is never run."""
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def imports(node: ast.AST, package: str) -> Iterator[tuple[str, int]]:
    """Every module that is imported at run time, anywhere in the source, with the line."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from imported_from(node, package)
    typing_only = isinstance(node, ast.If) and is_type_checking(node.test)
    for child in node.orelse if typing_only else ast.iter_child_nodes(node):
        yield from imports(child, package)


def imported_from(node: ast.ImportFrom, package: str) -> Iterator[tuple[str, int]]:
    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    for alias in node.names:
        # `from zmqraft import _msgpack` imports zmqraft._msgpack
        yield (f"{base}.{alias.name}" if base == PACKAGE else base), node.lineno


def ours(path: Path) -> Iterator[tuple[str, int]]:
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for name, line in imports(ast.parse(path.read_text(encoding="utf-8")), package):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            yield name, line


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_inwards(path: Path) -> None:
    own = layer(module_name(path))
    allowed = LAYERS[own] | {own}
    outward = [f"line {line}: {name}" for name, line in ours(path) if layer(name) not in allowed]
    assert not outward, f"{module_name(path)} is in {own or PACKAGE} and may import from {sorted(allowed)}"


def test_compiled_modules_import_from_the_innermost_only() -> None:
    """They are loaded by `_accel`, on which the rest depends: anything else would be a circle."""
    sources = sorted((Path(__file__).parent.parent / "_speedups").glob("*.pyx"))
    assert sources
    for source in sources:
        # What Cython imports counts as well; of a list over several lines the module is enough.
        text = re.sub(r" cimport (\(?)", r" import \1", source.read_text(encoding="utf-8"))
        lines = re.findall(
            r"^(?:from|import) .*zmqraft.*$", text.replace(" import (\n", " import names\n"), re.MULTILINE
        )
        found = {layer(name) for line in lines for name, _ in imports(ast.parse(line), "zmqraft._speedups")}
        assert found <= LAYERS["_speedups"] | {"_speedups"}, source.name


def test_the_test_sees_imports() -> None:
    """Wherever they stand, but not what is for the type checker only."""
    source = """
import zmqraft.server
from zmqraft.client.session import Session
from zmqraft import errors
from ..core import raft
from . import sibling
def late():
    from zmqraft.cli import main
if TYPE_CHECKING:
    from zmqraft.testing import Simulator
else:
    import zmqraft.storage
if TYPE_CHECKING or not EXTENSIONS:
    from zmqraft.protocol import _frames
"""
    assert [name for name, _ in imports(ast.parse(source), "zmqraft.protocol")] == [
        "zmqraft.server",
        "zmqraft.client.session",
        "zmqraft.errors",
        "zmqraft.core",
        "zmqraft.protocol",
        "zmqraft.cli",
        "zmqraft.storage",
        "zmqraft.protocol",
    ]


def test_no_layer_imports_one_that_imports_it() -> None:
    for name, inner in LAYERS.items():
        assert not [other for other in inner if name in LAYERS.get(other, set())], name
