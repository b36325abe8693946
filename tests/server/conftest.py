"""Tests on whole engines in virtual time run twice: with a leader's syncs in its turn, and in the background."""

from __future__ import annotations

import pytest

from support.virtual_cluster import VirtualCluster

_VIRTUAL = ("test_elections", "test_own_messages", "test_replication", "test_updates")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in _VIRTUAL and "sync_s" in metafunc.fixturenames:
        metafunc.parametrize("sync_s", [None, 0.002], indirect=True, ids=["in turn", "in background"])


@pytest.fixture(autouse=True)
def sync_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float | None:
    """How long syncs in the background take, in virtual seconds; None: there are none."""
    duration_s: float | None = getattr(request, "param", None)
    monkeypatch.setattr(VirtualCluster, "sync_s", duration_s)
    return duration_s
