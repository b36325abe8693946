"""The broadcasting state machine by itself; with subscribers it is in `tests/client`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from support.command import free_ports
from zmqraft.server.broadcast import BroadcastStateMachine


@pytest.fixture
def leading() -> Iterator[BroadcastStateMachine]:
    (port,) = free_ports(1)
    machine = BroadcastStateMachine(f"tcp://127.0.0.1:{port}", heartbeat_interval_ms=500)
    machine.start(cast(Any, SimpleNamespace(secret=b"")))
    machine.role_changed("leader", 1)
    yield machine
    machine.close()


def test_a_heartbeat_goes_early_with_what_is_done_anyway(leading: BroadcastStateMachine) -> None:
    """The peer need not wake up for it alone: within the last fifth of the interval any turn takes it along."""
    deadline = leading.tick(0.0)
    assert deadline is not None
    assert time.monotonic() < deadline <= time.monotonic() + 0.5
    assert leading.tick(deadline - 0.11) == deadline
    following = leading.tick(deadline - 0.09)
    assert following is not None
    assert following > deadline
