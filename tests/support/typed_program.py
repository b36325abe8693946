"""A user's program, as far as types go: never run, only read by mypy (see test_typing.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from typing_extensions import assert_type

import zmqraft.asyncio
from zmqraft import (
    BroadcastStateMachine,
    ClusterConfiguration,
    ClusterInfo,
    CompactedError,
    DataSettings,
    EntryBatch,
    EntryType,
    FileLog,
    LogBase,
    LogEntry,
    LogInfo,
    MemoryLog,
    MemoryPersistence,
    NotLeaderError,
    PeerAddress,
    PeerHandle,
    PersistenceBase,
    Protocols,
    RequestTimeoutError,
    Settings,
    SnapshotChunk,
    StateMachineBase,
    ZmqRaft,
    ZmqRaftClient,
    ZmqRaftPeerClient,
    ZmqRaftPeerSub,
    ZmqRaftSubscriber,
    build_peer,
)
from zmqraft.machines import AsyncKeyValueClient, Change, CounterClient, KeyValueClient, Lease, LockClient, Stored


class Machine(StateMachineBase):
    peer: PeerHandle

    def start(self, peer: PeerHandle) -> None:
        self.peer = peer

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        for entry in entries:
            assert_type(entry, LogEntry)
            assert_type(entry.type, EntryType)
            assert_type(entry.data, bytes)

    def on_message(self, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]) -> None:
        self.peer.send(route, [b"answer"])


def make_log(settings: Settings) -> LogBase:
    return FileLog.open(settings.data.log_path, settings.data.snapshot_path)


def make_persistence(settings: Settings) -> PersistenceBase:
    return MemoryPersistence()


def serve(settings: Settings) -> None:
    with build_peer(settings, log=make_log, persistence=make_persistence, state_machine=lambda _: Machine()) as peer:
        assert_type(peer, ZmqRaft)
        assert_type(peer.state, str)
        assert_type(peer.leader_id, str | None)
        assert_type(peer.error, BaseException | None)
        peer.on("state", lambda role, term: print(role, term))
        assert_type(peer.wait_closed(1.0), bool)


async def serve_in_asyncio(settings: Settings) -> None:
    async with build_peer(settings, log=lambda _: MemoryLog()) as peer:
        assert_type(peer, ZmqRaft)


def settings() -> Settings:
    own = PeerAddress("1", "tcp://127.0.0.1:8047", pub="tcp://127.0.0.1:8048")
    return Settings(id="1", peers=(own,), data=DataSettings(Path("data")), secret=b"secret")


def broadcast() -> StateMachineBase:
    return BroadcastStateMachine("tcp://127.0.0.1:8048", heartbeat_interval_ms=500)


def update(client: ZmqRaftClient | ZmqRaftPeerClient) -> None:
    assert_type(client.request_update(None, b"data", deadline_s=1.0), int)
    assert_type(client.submit_update(b"data"), Future[int])
    assert_type(client.request_config(), ClusterInfo)
    assert_type(client.request_log_info(), LogInfo)
    for index in client.request_updates(iter([b"data"])):
        assert_type(index, int)
    with client.request_entries(previous_index=0, count=10) as entries:
        for entry in entries:
            assert_type(entry, LogEntry | SnapshotChunk)


def read() -> Iterator[bytes]:
    with ZmqRaftSubscriber("127.0.0.1", secret="secret", last_index=0) as subscriber:
        for entry in subscriber:
            assert_type(entry, LogEntry | SnapshotChunk)
            if isinstance(entry, LogEntry):
                yield entry.data


def lead(client: ZmqRaftPeerClient) -> str | None:
    try:
        client.request_update(None, b"data")
    except NotLeaderError as error:
        return error.leader_id
    except RequestTimeoutError:
        return None
    return client.request_config().leader_id


def encode(configuration: ClusterConfiguration) -> list[bytes]:
    assert_type(configuration.urls, dict[str, str])
    assert_type(zmqraft.new_request_id(), bytes)
    assert_type(zmqraft.EXTENSIONS, bool)
    return Protocols.REQUEST_CONFIG.encode_request(b"^", b"secret")


class AsyncMachine(zmqraft.asyncio.StateMachineBase):
    async def apply_entries(self, entries: EntryBatch, term: int) -> Sequence[int]:
        return [entry.index for entry in entries]


def results(peer: ZmqRaft) -> int:
    assert_type(peer.wait_applied(5), Future[int])
    assert_type(peer.read_index(deadline_s=1.0), Future[int])
    return int(peer.update(b"data").result())


async def in_asyncio(settings: Settings) -> None:
    async with zmqraft.asyncio.build_peer(settings, state_machine=lambda _: AsyncMachine()) as peer:
        assert_type(peer, zmqraft.asyncio.ZmqRaft)
        assert_type(await peer.wait_applied(5), int)
    async with zmqraft.asyncio.ZmqRaftClient("127.0.0.1", secret="secret") as client:
        assert_type(await client.request_update(None, b"data"), int)
        assert_type(await (await client.submit_update(b"data")), int)
        assert_type(await client.read_index(), int)
        assert_type(await client.request_log_info(), LogInfo)
        async for index in client.request_updates([b"data"]):
            assert_type(index, int)
        async with client.request_entries(linearizable=True) as entries:
            async for entry in entries:
                assert_type(entry, LogEntry | SnapshotChunk)
    async with zmqraft.asyncio.ZmqRaftSubscriber("127.0.0.1") as subscriber:
        async for entry in subscriber:
            assert_type(entry, LogEntry | SnapshotChunk)
    async with AsyncKeyValueClient("127.0.0.1") as store:
        assert_type(await store.get(b"key"), Stored | None)
        async for change in store.watch(b"key"):
            assert_type(change, Change)


def use_machines() -> None:
    with KeyValueClient("127.0.0.1") as store:
        assert_type(store.put(b"key", b"value"), int)
        assert_type(store.compare_and_swap(b"key", None, b"value"), bool)
        for key, stored in store.scan():
            assert_type((key, stored), tuple[bytes, Stored])
    with LockClient("127.0.0.1") as locks:
        assert_type(locks.acquire("name"), Lease)
    with CounterClient("127.0.0.1") as counter:
        assert_type(counter.add(1), int)


def watch(store: KeyValueClient, index: int) -> Iterator[Change]:
    try:
        yield from store.watch(b"prefix", index)
    except CompactedError as error:
        yield from store.watch(b"prefix", error.first_index - 1)


def listen(url: str) -> None:
    with ZmqRaftPeerSub(url, secret="secret") as subscriber:
        print(subscriber.get(1.0))
