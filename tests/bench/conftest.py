"""Tests of `bench`, which is not part of the package: it is loaded from beside the tests, wherever zmqraft is.

The root of the checkout must not get on the path, where it would hide an installed zmqraft.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_BENCH = Path(__file__).resolve().parents[2] / "bench"


def _load() -> None:
    spec = importlib.util.spec_from_file_location(
        "bench", _BENCH / "__init__.py", submodule_search_locations=[str(_BENCH)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    spec.loader.exec_module(module)


_load()

_deselected = pytest.StashKey[str]()
#: Who asks for this fixture needs a C++ compiler and libzmq's headers.
_NEEDING = "bench_root"


@pytest.fixture(scope="session")
def bench_root() -> Path:
    """Where ``python -m bench`` finds the package."""
    return _BENCH.parent


@pytest.fixture(scope="session")
def checkout() -> Path:
    """As `bench_root`, for what needs no compiler."""
    return _BENCH.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what runs real clusters where its programs cannot be compiled."""
    needing = [item for item in items if _NEEDING in getattr(item, "fixturenames", ())]
    if not needing:
        return
    from bench.programs import missing_tools

    reason = missing_tools()
    if reason is not None:
        config.stash[_deselected] = reason
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


def pytest_report_collectionfinish(config: pytest.Config) -> str:
    reason = config.stash.get(_deselected, None)
    return "" if reason is None else f"bench: runs of real clusters are deselected: {reason}"
