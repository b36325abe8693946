"""What the demo measures and compares: it must be able to fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import click
import pytest

from zmqraft.cli.demo.cluster import DemoError
from zmqraft.cli.demo.comparison import difference
from zmqraft.cli.demo.interruption import Interruption
from zmqraft.cli.demo.replication import Replication
from zmqraft.client import ZmqRaftClient
from zmqraft.errors import RequestTimeoutError
from zmqraft.protocol.entry import EntryType, LogEntry

LINES = [b"one\n", b"\n", b"\n", b"four"]
INDEXES = [2, 3, 5, 6]


def entries(data: Sequence[bytes] = LINES, indexes: Sequence[int] = INDEXES) -> list[LogEntry]:
    return [LogEntry.checkpoint(1, 1)] + [
        LogEntry(index, 1, EntryType.STATE, bytes(12), item) for index, item in zip(indexes, data, strict=True)
    ]


def test_the_lines_at_their_indexes_are_identical() -> None:
    assert difference(entries(), LINES, INDEXES) is None


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ([], "0 lines instead of 4"),
        (entries()[:-1], "3 lines instead of 4"),
        ([*entries(), entries()[-1]], "5 lines instead of 4"),
        (entries([b"one\n", b"\n", b"four", b"\n"]), "line 3 should be b'\\n' at 5, but is b'four' at 5"),
        (entries(indexes=[2, 3, 4, 6]), "line 3 should be b'\\n' at 5, but is b'\\n' at 4"),
        (entries([b"one", *LINES[1:]]), "line 1 should be b'one\\n' at 2, but is b'one' at 2"),
    ],
    ids=["nothing", "one missing", "one twice", "order", "index", "bytes"],
)
def test_a_difference_is_found_and_named(written: list[LogEntry], reason: str) -> None:
    assert difference(written, LINES, INDEXES) == reason


class FakeClient:
    """Commits every line when it is asked for the first result that is not there yet."""

    def __init__(self) -> None:
        self.pending: list[Future[int]] = []
        self.in_flight_max = 0
        self.submitted: list[bytes] = []

    def submit_update(self, data: bytes, *, deadline_s: float) -> Future[int]:
        client = self

        class Lazy(Future[int]):
            def result(self, timeout: float | None = None) -> int:
                client.in_flight_max = max(client.in_flight_max, len(client.pending))
                if not self.done():
                    client.pending.remove(self)
                    self.set_result(client.submitted.index(data) + 1)
                return super().result(timeout)

        self.submitted.append(data)
        self.pending.append(Lazy())
        return self.pending[-1]


def replication_of(client: Any, count: int, told: list[int], interruption: Interruption | None = None) -> Replication:
    lines = [b"%d\n" % number for number in range(count)]
    return Replication(
        cast(ZmqRaftClient, client), lines, lambda done, total: told.append(done), interruption or Interruption()
    )


@pytest.mark.parametrize(("count", "in_flight"), [(2, 1), (80, 10), (10_000, 256)])
def test_lines_are_sent_in_order_and_bounded(count: int, in_flight: int) -> None:
    client, told = FakeClient(), list[int]()
    replication = replication_of(client, count, told)
    replication.send_until(count // 2)
    assert len(replication.indexes) == count // 2
    assert count // 2 <= len(client.submitted) < count // 2 + in_flight
    replication.send_until(count)
    assert client.submitted == [b"%d\n" % number for number in range(count)]
    assert replication.indexes == list(range(1, count + 1))
    assert told == replication.indexes
    assert client.in_flight_max == in_flight


def test_a_line_that_fails_is_named() -> None:
    class FailingClient(FakeClient):
        def submit_update(self, data: bytes, *, deadline_s: float) -> Future[int]:
            future: Future[int] = Future()
            future.set_exception(RequestTimeoutError("too late"))
            return future

    with pytest.raises(DemoError, match="line 1 was not committed: too late"):
        replication_of(FailingClient(), 3, []).send_until(1)


def test_the_pause_is_the_longest_after_the_last_commit_before_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 10.0, 11.0, 11.5, 13.0, 13.25])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    replication = replication_of(FakeClient(), 6, [])
    replication.send_until(6)
    assert replication.pause_s(since=11.2) == 1.5
    assert replication.pause_s(since=10.0) == 10.0
    assert replication.pause_s(since=99.0) == 0.0


def test_an_interruption_ends_a_wait_that_would_last() -> None:
    with Interruption() as interruption:
        interruption.check()
        assert interruption.wait_for(lambda wait_s: True, deadline_s=0.0)
        assert not interruption.wait_for(lambda wait_s: False, deadline_s=0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(click.Abort):
            interruption.wait_for(lambda wait_s: False, deadline_s=1e9)
        with pytest.raises(click.Abort):
            interruption.sleep(1e9)
        with pytest.raises(click.Abort):
            replication_of(StuckClient(), 3, [], interruption).send_until(1)


class StuckClient(FakeClient):
    """Nothing that it sends is ever committed."""

    def submit_update(self, data: bytes, *, deadline_s: float) -> Future[int]:
        return Future()
