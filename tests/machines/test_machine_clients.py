"""The ready-made machines at real peers, with their blocking clients and those for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.both_clients import Proxy
from support.local_cluster import SECRET, cluster_settings, wait_for
from zmqraft import (
    CompactedError,
    RequestError,
    RequestTimeoutError,
    ResultForgottenError,
    ZmqRaft,
    build_peer,
    new_request_id,
)
from zmqraft import machines as ready_made
from zmqraft.machines import Change, CounterMachine, KeyValueClient, KeyValueMachine, LockMachine, Stored
from zmqraft.machines import key_value as key_value_module
from zmqraft.machines import machine as machine_module

LONG_S = 60.0


@contextlib.contextmanager
def running(directory: Path, machine: Callable[[], Any], size: int = 3) -> Iterator[list[ZmqRaft]]:
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(build_peer(each, state_machine=lambda _: machine()))
            for each in cluster_settings(directory, size)
        ]
        wait_for(lambda: all(peer.leader_id for peer in peers), "a leader")
        yield peers


@pytest.fixture(params=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a client: ``client("KeyValueClient", peers)``."""

    def make(name: str, peers: list[ZmqRaft], **settings: Any) -> Any:
        cls = getattr(ready_made, name if request.param == "blocking" else f"Async{name}")
        made = cls([peer.url for peer in peers], secret=SECRET, **{"deadline_s": LONG_S, **settings})
        return Proxy(made) if request.param == "blocking" else made

    return make


def test_a_store(client: Callable[..., Any], tmp_path: Path) -> None:
    async def scenario(peers: list[ZmqRaft]) -> None:
        async with client("KeyValueClient", peers) as store:
            first = await store.put(b"key", b"value")
            assert await store.get(b"key") == Stored(b"value", first)
            request_id = new_request_id()
            revision = await store.put(b"key", b"other", request_id=request_id)
            assert await store.put(b"key", b"other", request_id=request_id) == revision
            assert await store.compare_and_swap(b"key", b"other", b"third")
            assert not await store.compare_and_swap(b"key", b"other", b"fourth")
            assert (await store.get(b"key")).value == b"third"
            assert await store.delete(b"key")
            assert not await store.delete(b"key")
            assert await store.get(b"key") is None
            with pytest.raises(RequestError):
                await store.put(b"key", "text")
            leader = next(peer for peer in peers if peer.state == "leader")
            await asyncio.to_thread(leader.close)
            assert await store.get(b"key") is None
            assert await store.put(b"key", b"after") > revision
            assert (await store.get(b"key")).value == b"after"

    with running(tmp_path, KeyValueMachine) as peers:
        asyncio.run(scenario(peers))


def test_scanning_in_several_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmqraft.machines.key_value._ANSWER_MAX", 7)
    with running(tmp_path, KeyValueMachine, 1) as peers, KeyValueClient(peers[0].url, secret=SECRET) as store:
        for number in range(30):
            store.put(b"%03d" % number, b"value")
        assert [key for key, _ in store.scan()] == [b"%03d" % number for number in range(30)]
        assert [key for key, _ in store.scan(b"01")] == [b"%03d" % number for number in range(10, 20)]

        async def scan() -> list[bytes]:
            async with ready_made.AsyncKeyValueClient(peers[0].url, secret=SECRET) as client:
                return [key async for key, _ in client.scan(b"02")]

        assert asyncio.run(scan()) == [b"%03d" % number for number in range(20, 30)]


def test_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_WAITING_S", 0.05)
    with running(tmp_path, KeyValueMachine, 1) as peers, KeyValueClient(peers[0].url, secret=SECRET) as store:
        before = store.put(b"other", b"0")
        seen: list[Change] = []

        def watch() -> None:
            for change in store.watch(b"key", before):
                seen.append(change)
                if len(seen) == 20:
                    return

        watching = threading.Thread(target=watch)
        watching.start()
        revisions = []
        for number in range(20):
            revisions.append(store.put(b"key %d" % (number % 3), b"%d" % number))
            store.put(b"other", b"%d" % number)
            if number == 10:
                wait_for(lambda: len(seen) == 11, "changes so far")
        watching.join(LONG_S)
        assert [change.revision for change in seen] == revisions
        assert [change.value for change in seen] == [b"%d" % number for number in range(20)]

        async def watch_now() -> Change:
            async with ready_made.AsyncKeyValueClient(peers[0].url, secret=SECRET, deadline_s=LONG_S) as client:
                changes = client.watch(b"key")
                first = asyncio.ensure_future(changes.__anext__())
                while not peers[0]._state_machine._waiting:  # type: ignore[attr-defined]
                    await asyncio.sleep(0.002)
                await client.delete(b"key 0")
                change = await first
                await changes.aclose()  # type: ignore[attr-defined]
                return change

        change = asyncio.run(watch_now())
        assert (change.key, change.value) == (b"key 0", None)


def _first_change(url: str, prefix: bytes, index: int) -> Change:
    with KeyValueClient(url, secret=SECRET, deadline_s=LONG_S) as store:
        return next(store.watch(prefix, index))


def _first_change_in_asyncio(url: str, prefix: bytes, index: int) -> Change:
    async def watch() -> Change:
        async with ready_made.AsyncKeyValueClient(url, secret=SECRET, deadline_s=LONG_S) as store:
            async for change in store.watch(prefix, index):
                return change
        raise AssertionError("a watch has no end")

    return asyncio.run(watch())


FIRST_CHANGE = pytest.mark.parametrize("first_change", [_first_change, _first_change_in_asyncio])


@FIRST_CHANGE
def test_a_watch_from_what_is_forgotten(
    first_change: Callable[..., Change], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_value_module, "_HISTORY_MAX", 10)
    with running(tmp_path, KeyValueMachine, 1) as peers, KeyValueClient(peers[0].url, secret=SECRET) as store:
        revisions = [store.put(b"key", b"value") for _ in range(50)]
        with pytest.raises(CompactedError, match="scan") as raised:
            first_change(peers[0].url, b"", revisions[0])
        first = raised.value.first_index
        assert first in revisions[1:-9]
        with pytest.raises(CompactedError):
            first_change(peers[0].url, b"", first - 2)
        assert first_change(peers[0].url, b"", first - 1) == Change(b"key", b"value", first)


@FIRST_CHANGE
def test_a_watch_of_what_seldom_changes_is_not_forgotten(
    first_change: Callable[..., Change], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_value_module, "_HISTORY_MAX", 10)
    monkeypatch.setattr(machine_module, "_WAITING_S", 0.01)
    with running(tmp_path, KeyValueMachine, 1) as peers, KeyValueClient(peers[0].url, secret=SECRET) as store:
        seen: list[Change] = []
        before = store.put(b"seldom", b"before")
        watching = threading.Thread(target=lambda: seen.append(first_change(peers[0].url, b"seldom", before)))
        watching.start()
        machine: Any = peers[0]._state_machine
        wait_for(lambda: machine._waiting, "a watch")
        for _ in range(20):
            revision = [store.put(b"often", b"value") for _ in range(10)][-1]
            # It is told that nothing has happened so far, and asks again.
            wait_for(lambda: any(asked.least_index >= revision for asked in tuple(machine._waiting)), "a watch")  # noqa: B023
        revision = store.put(b"seldom", b"now")
        watching.join(LONG_S)
        assert seen == [Change(b"seldom", b"now", revision)]


def test_a_lock(client: Callable[..., Any], tmp_path: Path) -> None:
    async def scenario(peers: list[ZmqRaft]) -> None:
        async with client("LockClient", peers) as one, client("LockClient", peers) as other:
            lease = await one.acquire("lock", 60.0)
            assert await other.try_acquire("lock") is None
            assert await other.holder("lock") == lease.token
            with pytest.raises(RequestTimeoutError):
                await other.acquire("lock", timeout_s=0.2)
            waiting = asyncio.ensure_future(other.acquire("lock", 60.0))
            leader = next(peer for peer in peers if peer.state == "leader")
            while not leader._state_machine._waiting:  # type: ignore[attr-defined]
                await asyncio.sleep(0.002)
            lease = await one.renew(lease, 60.0)
            assert await one.release(lease)
            later = await waiting
            assert later.token > lease.token
            assert await one.renew(lease) is None
            assert not await one.release(lease)
            holder = new_request_id()
            short = await one.acquire("short", 0.05, holder=holder)
            assert (await other.acquire("short", timeout_s=LONG_S)).token > short.token

    with running(tmp_path, LockMachine) as peers:
        asyncio.run(scenario(peers))


def test_a_counter(client: Callable[..., Any], tmp_path: Path) -> None:
    async def scenario(peers: list[ZmqRaft]) -> None:
        async with client("CounterClient", peers) as counter:
            results = await asyncio.gather(*(counter.add() for _ in range(20)))
            assert sorted(results) == list(range(1, 21))
            request_id = new_request_id()
            assert await counter.add(5, request_id=request_id) == 25
            assert await counter.add(5, request_id=request_id) == 25
            assert await counter.get() == 25
            assert await counter.set(-3, "other") == -3
            assert await counter.get("other") == -3
            with pytest.raises(RequestError):
                await counter.add(2**62 * 3)
            # Through the peer itself, on any.
            assert await asyncio.wrap_future(peers[1].update(b"\x93\xa3add\xa0\x01")) == [True, 26]

    with running(tmp_path, CounterMachine) as peers:
        asyncio.run(scenario(peers))


def test_a_result_that_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "RESULTS_MAX", 2)
    with (
        running(tmp_path, CounterMachine, 1) as peers,
        ready_made.CounterClient(peers[0].url, secret=SECRET) as counter,
    ):
        request_id = new_request_id()
        counter.add(1, request_id=request_id)
        for _ in range(3):
            counter.add(1)
        with pytest.raises(ResultForgottenError):
            counter.add(1, request_id=request_id)
        assert counter.get() == 4


def test_a_restart_from_a_snapshot(tmp_path: Path) -> None:
    (settings,) = cluster_settings(tmp_path, 1)
    with (
        build_peer(settings, state_machine=lambda _: KeyValueMachine()) as peer,
        KeyValueClient(peer.url, secret=SECRET) as store,
    ):
        revisions = [store.put(b"%d" % number, b"value") for number in range(50)]
        peer.compact(force=True).result(LONG_S)
    machine = KeyValueMachine()
    with (
        build_peer(settings, state_machine=lambda _: machine) as peer,
        KeyValueClient(peer.url, secret=SECRET) as store,
    ):
        assert len(list(store.scan())) == 50
        for revision, change in zip(revisions[11:], store.watch(b"", revisions[10]), strict=False):
            assert change.revision == revision
        assert store.put(b"more", b"value")
        assert machine.get(b"7") == store.get(b"7")
