"""zmq-raft from npm beside zmqraft: run by `pytest tests/interop`, and not by `pytest` alone.

The first run installs zmq-raft from the npm registry into a directory of its own. ZMQRAFT_INTEROP_MODULES names it; by
default it is in pytest's cache.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.node import install_modules, missing_for_node

HERE = Path(__file__).parent
_missing = pytest.StashKey[str]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect these tests, rather than skip them, where zmq-raft cannot run."""
    ours = [item for item in items if HERE in item.path.parents]
    missing = missing_for_node() if ours else None
    if missing is not None:
        config.stash[_missing] = missing
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (missing := config.stash.get(_missing, None)) is not None:
        terminalreporter.write_line(f"tests/interop is deselected: {missing}, which zmq-raft for Node.js needs")


@pytest.fixture(scope="session")
def modules(pytestconfig: pytest.Config) -> Path:
    """The node_modules with zmq-raft."""
    if named := os.environ.get("ZMQRAFT_INTEROP_MODULES"):
        return install_modules(Path(named))
    assert pytestconfig.cache is not None
    return install_modules(pytestconfig.cache.mkdir("zmq-raft"))
