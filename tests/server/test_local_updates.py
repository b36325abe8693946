"""Updates through a peer of this process, whose results are what its own state machine returned."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import zmqraft.asyncio
from support.local_cluster import cluster_settings, wait_for
from zmqraft import (
    ClosedError,
    EntryBatch,
    LocalProtocolError,
    PeerFailedError,
    PeerHandle,
    RequestTimeoutError,
    ResultForgottenError,
    StateMachineBase,
    ZmqRaft,
    ZmqRaftClient,
    build_peer,
    new_request_id,
)
from zmqraft.protocol import EntryType, LogEntry
from zmqraft.server.local_updates import LocalUpdates

LONG_S = 60.0


class Sum(StateMachineBase):
    """Adds numbers; each update returns the sum so far."""

    def __init__(self, inline: bool = False) -> None:
        self.inline = inline
        self.sum = 0

    def apply_entries(self, entries: EntryBatch, term: int) -> list[int | None]:
        return [self.apply(entry) for entry in entries]

    def apply(self, entry: LogEntry) -> int | None:
        if not entry.is_state:
            return None
        self.sum += int(entry.data)
        return self.sum


class Silent(StateMachineBase):
    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        """Nothing is returned."""


@contextlib.contextmanager
def running(directory: Path, size: int, make: Any) -> Iterator[list[ZmqRaft]]:
    with contextlib.ExitStack() as stack:
        settings = cluster_settings(
            directory,
            size,
        )
        peers = [stack.enter_context(build_peer(each, state_machine=lambda _: make())) for each in settings]
        wait_for(lambda: all(peer.leader_id for peer in peers), "a leader")
        yield peers


@pytest.mark.parametrize("inline", [False, True])
def test_results_come_back_through_every_peer(tmp_path: Path, inline: bool) -> None:
    with running(tmp_path, 3, lambda: Sum(inline)) as peers:
        expected = 0
        for number in range(1, 10):
            expected += number
            assert peers[number % 3].update(b"%d" % number).result(LONG_S) == expected
        futures = [peers[number % 3].update(b"1") for number in range(300)]
        assert sorted(future.result(LONG_S) for future in futures) == list(range(expected + 1, expected + 301))


def test_a_machine_without_results(tmp_path: Path) -> None:
    with running(tmp_path, 1, Silent) as (peer,):
        assert peer.update(b"data").result(LONG_S) is None


def test_waiting_for_an_index_to_be_applied(tmp_path: Path) -> None:
    with running(tmp_path, 3, Sum) as peers:
        follower = next(peer for peer in peers if peer.state == "follower")
        ahead = follower.wait_applied(1000)
        with ZmqRaftClient([peer.url for peer in peers], secret=follower.secret, deadline_s=LONG_S) as client:
            index = client.request_update(None, b"7")
        assert follower.wait_applied(index).result(LONG_S) >= index
        assert follower._state_machine.sum == 7  # type: ignore[attr-defined]
        assert not ahead.done()
        for peer in peers:
            peer.close()
        with pytest.raises(ClosedError):
            ahead.result(LONG_S)
        with pytest.raises(ClosedError):
            follower.wait_applied(1)
        with pytest.raises(ClosedError):
            follower.update(b"1")


def test_a_linearizable_read_here(tmp_path: Path) -> None:
    with running(tmp_path, 3, Sum) as peers:
        with ZmqRaftClient([peer.url for peer in peers], secret=peers[0].secret, deadline_s=LONG_S) as client:
            for number in range(1, 20):
                index = client.request_update(None, b"1")
                for peer in peers:
                    assert peer.read_index().result(LONG_S) >= index
                    assert peer._state_machine.sum == number  # type: ignore[attr-defined]
        reading = peers[0].read_index(deadline_s=LONG_S)
        reading.cancel()
        waiting = [peers[0].read_index() for _ in range(100)]
        assert {future.result(LONG_S) for future in waiting} == {index}
    with pytest.raises(ClosedError):
        peers[0].read_index()


def test_repetition(tmp_path: Path) -> None:
    with running(tmp_path, 1, Sum) as (peer,):
        request_id = new_request_id()
        futures = [peer.update(b"5", request_id=request_id) for _ in range(3)]
        assert futures[0].result(LONG_S) == 5
        # The others got the same entry; if it was applied before they asked, they are told that.
        for future in futures[1:]:
            error = future.exception(LONG_S)
            assert isinstance(error, ResultForgottenError) or future.result() == 5
        with pytest.raises(ResultForgottenError) as caught:
            peer.update(b"5", request_id=request_id).result(LONG_S)
        assert peer.wait_applied(caught.value.index).result(LONG_S)
        assert peer.update(b"1").result(LONG_S) == 6


def test_deadlines_and_cancellation(tmp_path: Path) -> None:
    (settings, *_) = cluster_settings(tmp_path, 3)
    with build_peer(settings, state_machine=lambda _: Sum()) as alone:
        with pytest.raises(RequestTimeoutError):
            alone.update(b"1", deadline_s=0.1).result(LONG_S)
        with pytest.raises(LocalProtocolError):
            alone.update(b"")
        cancelled = alone.update(b"1")
        assert cancelled.cancel()
        wait_for(lambda: not alone._local_updates._updates, "nothing to wait for")
        waiting = alone.update(b"1")
    with pytest.raises(ClosedError):
        waiting.result(LONG_S)


def test_a_wrong_number_of_results_stops_the_peer(tmp_path: Path) -> None:
    class Wrong(StateMachineBase):
        def apply_entries(self, entries: EntryBatch, term: int) -> list[int]:
            return [1, 2, 3, 4, 5]

    (settings,) = cluster_settings(tmp_path, 1)
    with build_peer(settings, state_machine=lambda _: Wrong()) as peer:
        assert peer.wait_closed(LONG_S)
        assert isinstance(peer.error, PeerFailedError)
        assert "5 results for 1 entries" in str(peer.error)


def test_what_comes_with_a_snapshot_has_no_result(tmp_path: Path) -> None:
    (settings,) = cluster_settings(tmp_path, 1)
    updates = LocalUpdates(settings, 0)
    committing: Future[int] = Future()

    class Client:
        def submit_update(self, data: bytes, **_: object) -> Future[int]:
            return committing

        def close(self) -> None:
            """Nothing is open."""

    updates._client = Client()  # type: ignore[assignment]
    request_id = new_request_id()
    future = updates.update(b"data", request_id, None)
    updates.restored(4)
    committing.set_result(5)
    assert not future.done()
    updates.restored(7)
    assert isinstance(future.exception(LONG_S), ResultForgottenError)
    entry = LogEntry(8, 1, EntryType.STATE, request_id, b"data")
    committing = Future()
    future = updates.update(b"data", request_id, None)
    updates.applied(EntryBatch.from_entries([entry]), ["result"])
    assert not future.done()
    committing.set_result(8)
    assert future.result(LONG_S) == "result"
    updates.close()


class Log(zmqraft.asyncio.StateMachineBase):
    """Remembers the data, after having waited for each entry; answers messages with how many there are."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.loop = asyncio.get_running_loop()
        self.roles: list[str] = []

    async def apply_entries(self, entries: EntryBatch, term: int) -> Sequence[int]:
        for entry in entries:
            await asyncio.sleep(0)
            assert asyncio.get_running_loop() is self.loop
            self.data += [entry.data] * entry.is_state
        return [entry.index for entry in entries]

    async def on_message(
        self, peer: PeerHandle, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]
    ) -> None:
        peer.send(route, [b"%d" % len(self.data)])

    async def role_changed(self, role: str, term: int) -> None:
        self.roles.append(role)


def test_a_state_machine_of_coroutines(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = Log()
        (settings,) = cluster_settings(tmp_path, 1)
        async with zmqraft.asyncio.build_peer(settings, state_machine=lambda _: machine) as peer:
            indexes = await asyncio.gather(*(peer.update(b"%d" % number) for number in range(20)))
            assert len(set(indexes)) == 20
            assert sorted(machine.data) == sorted(b"%d" % number for number in range(20))
            assert await peer.wait_applied(max(indexes)) >= max(indexes)
            async with zmqraft.asyncio.ZmqRaftClient(peer.url, secret=settings.secret, deadline_s=LONG_S) as client:
                assert await client.request_message(b"count") == [b"20"]
            waiting = asyncio.ensure_future(peer.wait_closed())
            assert (peer.state, peer.leader_id, peer.error) == ("leader", "1", None)
        await waiting
        assert "leader" in machine.roles
        assert peer.state == "closed"
        await peer.wait_closed()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_failure_of_such_a_machine_stops_the_peer(tmp_path: Path) -> None:
    class Broken(Log):
        async def apply_entries(self, entries: EntryBatch, term: int) -> Sequence[int]:
            raise KeyError("broken")

    async def scenario() -> None:
        machine = Broken()
        (settings,) = cluster_settings(tmp_path, 1)
        async with zmqraft.asyncio.build_peer(settings, state_machine=lambda _: machine) as peer:
            await peer.wait_closed()
            assert isinstance(peer.error, PeerFailedError)
            with pytest.raises(ClosedError):
                await peer.wait_applied(1)

    asyncio.run(scenario())


def test_a_start_that_is_cancelled_leaves_no_peer(tmp_path: Path) -> None:
    async def scenario() -> None:
        (settings,) = cluster_settings(tmp_path, 1)
        for _ in range(3):
            peer = zmqraft.asyncio.build_peer(settings, state_machine=lambda _: Silent())
            starting = asyncio.ensure_future(peer.start())
            await asyncio.sleep(0.001)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert peer.state == "closed"
        async with zmqraft.asyncio.build_peer(settings, state_machine=lambda _: Silent()) as running_peer:
            assert await running_peer.update(b"data") is None

    asyncio.run(scenario())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zmqraft 1")]
