"""A running peer gets a snapshot from its leader, whom a raw socket plays: what its state machine and its files see."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from support.local_cluster import PATIENT, SECRET, RawClient, cluster_settings, wait_for
from zmqraft.api import SnapshotBase, StateMachineBase
from zmqraft.errors import PeerFailedError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, Protocols, encode_uint, new_request_id
from zmqraft.server.builder import build_peer
from zmqraft.server.settings import Settings
from zmqraft.storage import SnapshotFile


class Recorder(StateMachineBase):
    """Notes what it is told; applies only when it may."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.began = threading.Event()
        self.may_apply = threading.Event()
        self.data = b""

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        self.began.set()
        assert self.may_apply.wait(60.0)
        self.calls.append(("apply", entries.last_index))

    def restore(self, snapshot: SnapshotBase) -> None:
        self.calls.append(("restore", snapshot.index))
        self.data = b"".join(snapshot.chunks())


class Leader:
    """Peer 2, spoken by hand."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._id = 0

    def _ask(self, *frames: bytes) -> list[bytes]:
        self._id += 1
        self._client.send(encode_uint(self._id), *frames)
        message_id, *reply = self._client.receive()
        assert message_id == encode_uint(self._id)
        return reply

    def append(self, prev_index: int, prev_term: int, commit_index: int, count: int) -> tuple[object, ...]:
        entries = [
            LogEntry(prev_index + 1 + number, 1, EntryType.STATE, new_request_id(), b"x") for number in range(count)
        ]
        head = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, "2", 1, prev_index, prev_term, commit_index)
        frames = EntryBatch.from_entries(entries).frames() if entries else []
        return Protocols.APPEND_ENTRIES.decode_response(self._ask(*head, *frames))

    def install(self, index: int, data: bytes, size: int) -> list[tuple[object, ...]]:
        replies = []
        for start in range(0, len(data), size):
            chunk = data[start : start + size]
            request = Protocols.INSTALL_SNAPSHOT.encode_request(b"$", SECRET, "2", 1, index, 1, start, len(data), chunk)
            replies.append(Protocols.INSTALL_SNAPSHOT.decode_response(self._ask(*request)))
        return replies


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = cluster_settings(tmp_path, 2, **PATIENT)[0]
    return dataclasses.replace(settings, broadcast=dataclasses.replace(settings.broadcast, url=None))


def test_a_snapshot_that_comes_while_entries_are_being_applied(settings: Settings) -> None:
    """FAULTS 22: they are applied first, then the machine becomes the snapshot, then what follows is applied."""
    machine = Recorder()
    data = b"the state" * 100_000
    with build_peer(settings, state_machine=lambda _: machine) as peer, RawClient(settings.url) as client:
        leader = Leader(client)
        assert leader.append(0, 0, 10, 10) == (1, True, None, None)
        assert machine.began.wait(60.0)
        assert leader.install(100, data, 65536)[-1] == (1, None)
        assert leader.append(100, 1, 105, 5) == (1, True, None, None)
        assert peer.engine.last_applied == 0
        machine.may_apply.set()
        wait_for(lambda: peer.engine.last_applied == 105, "all entries")
    assert machine.calls == [("apply", 10), ("restore", 100), ("apply", 105)]
    assert machine.data == data
    # And after a restart.
    again = Recorder()
    again.may_apply.set()
    with build_peer(settings, state_machine=lambda _: again) as peer:
        assert again.calls == [("restore", 100)]
        assert (peer.engine.raft.log.first_index, peer.engine.raft.log.last_index) == (101, 105)
    snapshot, (index, term, size) = SnapshotFile.open(settings.data.snapshot_path), (100, 1, len(data))
    assert (snapshot.index, snapshot.term, snapshot.size) == (index, term, size)
    snapshot.close()


def test_a_machine_that_cannot_become_the_snapshot_stops_its_peer(settings: Settings) -> None:
    class Stubborn(Recorder):
        def restore(self, snapshot: SnapshotBase) -> None:
            raise ValueError("not with me")

    with build_peer(settings, state_machine=lambda _: Stubborn()) as peer, RawClient(settings.url) as client:
        Leader(client).install(100, b"state", 5)
        assert peer.wait_closed(60.0)
    assert isinstance(peer.error, PeerFailedError)
    assert "not with me" in str(peer.error)


def test_the_snapshot_is_told_to_who_listens(settings: Settings) -> None:
    machine = Recorder()
    machine.may_apply.set()
    seen: list[object] = []
    peer = build_peer(settings, state_machine=lambda _: machine)
    peer.on("snapshot", lambda index: seen.append(index))
    with peer, RawClient(settings.url) as client:
        assert Leader(client).install(100, b"state", 5) == [(1, None)]
        wait_for(lambda: seen == [100], "the event")
        # Compacting goes on from there.
        leader = Leader(client)
        leader._id = 50
        leader.append(100, 1, 105, 5)
        wait_for(lambda: peer.engine.last_applied == 105, "the entries")
