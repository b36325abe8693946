"""Entries for a damaged log are fetched: from engines in virtual time, and from peers that answer badly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.virtual_cluster import SECRET, VirtualCluster, settings_of
from zmqraft.api import LogBase
from zmqraft.constants import ENTRIES_LAST, ENTRIES_MORE, ENTRIES_NOT_LEADER, ENTRIES_SNAPSHOT
from zmqraft.errors import ClosedError, ConfigurationError, CorruptionError, RemoteProtocolError, StorageError
from zmqraft.protocol import EntryBatch, LogEntry, Protocols
from zmqraft.protocol.entries_flow import SnapshotChunk
from zmqraft.server.repair import EntriesFetch, open_mended
from zmqraft.server.settings import Settings
from zmqraft.storage import MemoryLog, MemoryPersistence, MemorySnapshot
from zmqraft.storage.mending import DamagedEntries


class Fetching:
    """A peer that is down, and asks the two others."""

    def __init__(self, cluster: VirtualCluster, first: int, last: int, ids: tuple[str, ...] = ("1", "2")) -> None:
        self.cluster = cluster
        self.fetch = EntriesFetch(SECRET, ids, first, last)
        self.entries: list[LogEntry] = []
        self.chunks: list[SnapshotChunk] = []
        self.asked: list[str] = []

    def step(self) -> None:
        """Send what is to be sent, and take one answer, if there is any."""
        cluster = self.cluster
        if (message := self.fetch.next_message(cluster.now)) is not None:
            peer_id, (message_id, *frames) = message
            self.asked.append(peer_id)
            if cluster.peers[peer_id].engine is not None:
                cluster.request(peer_id, message_id, frames)
        cluster.run(0.01)
        for message_id, replies in cluster.client_replies.items():
            if replies:
                received = self.fetch.receive(self.asked[-1], [message_id, *replies.pop(0)], cluster.now)
                if isinstance(received, SnapshotChunk):
                    self.chunks.append(received)
                else:
                    self.entries += received or []
                return

    def run(self, condition: Callable[[], object] = lambda: False, seconds: float = 30.0) -> None:
        end = self.cluster.now + seconds
        while not self.fetch.is_done and not condition() and self.cluster.now < end:
            self.step()


def cluster_with(count: int, **settings: object) -> VirtualCluster:
    """Two of three peers that run, and have committed so many updates."""
    cluster = VirtualCluster(3, **settings)
    cluster.start("1", "2")
    for number in range(count):
        cluster.commit(b"update %d " % number * 5)
    return cluster


@pytest.mark.parametrize("ids", [("1", "2"), ("2", "1")])
def test_all_entries_come_in_order_from_the_leader(ids: tuple[str, ...]) -> None:
    """Also through many small replies, each of which is acknowledged."""
    cluster = cluster_with(60, peer_msg_data_size=200)
    fetching = Fetching(cluster, 5, 50, ids)
    fetching.run()
    leader = cluster.leader()
    assert fetching.entries == leader.entries()[4:50]
    # Whoever does not lead says who does; nobody is asked for what has come already.
    assert set(fetching.asked[1:]) == {leader.id}
    assert len(fetching.asked) < 30


def test_the_next_one_is_asked_when_one_is_down_or_another_leads_now() -> None:
    cluster = cluster_with(20)
    cluster.start("3")
    cluster.run(1.0)
    lost = cluster.leader()
    cluster.crash(lost.id)
    fetching = Fetching(cluster, 3, 12, (lost.id, *(each for each in cluster.ids if each != lost.id)))
    fetching.run()
    assert fetching.entries == cluster.leader().entries()[2:12]
    assert fetching.asked[0] == lost.id


def test_what_is_not_committed_is_waited_for() -> None:
    """A leader gives out only what is committed: the rest when it is."""
    cluster = cluster_with(5)
    leader = cluster.leader()
    (follower,) = {"1", "2"} - {leader.id}
    last = leader.log.last_index
    cluster.cut = {(leader.id, follower), (follower, leader.id)}
    request_id = cluster.update(leader.id, b"not committed")
    cluster.run(0.05)
    assert leader.log.last_index == last + 1
    fetching = Fetching(cluster, last, last + 1, (leader.id, follower))
    fetching.run(seconds=0.1)
    assert [entry.index for entry in fetching.entries] == [last]
    cluster.heal()
    cluster.run(1.0)
    if cluster.committed(request_id) is None:
        cluster.commit(b"another")
    fetching.run()
    assert fetching.entries == cluster.leader().entries()[last - 1 : last + 1]


def test_nothing_comes_without_a_majority() -> None:
    cluster = cluster_with(5)
    cluster.crash("1")
    cluster.run(5.0)
    fetching = Fetching(cluster, 2, 3)
    fetching.run(seconds=20.0)
    assert fetching.entries == []
    assert {"1", "2"} == set(fetching.asked)


def cluster_above(snapshot: MemorySnapshot) -> VirtualCluster:
    cluster = VirtualCluster(3, peer_msg_data_size=10)
    for peer_id in cluster.ids:
        cluster.peers[peer_id].log = MemoryLog(snapshot=snapshot)
        cluster.peers[peer_id].persistence.update_vote(snapshot.term, None)
    return cluster


def test_a_snapshot_comes_instead_where_the_leader_has_only_that() -> None:
    cluster = cluster_above(MemorySnapshot(30, 1, b"state of the machine after 30 entries"))
    cluster.start("1", "2")
    cluster.commit(b"update")
    fetching = Fetching(cluster, 7, 9)
    fetching.run()
    assert fetching.entries == []
    assert b"".join(chunk.data for chunk in fetching.chunks) == b"state of the machine after 30 entries"
    assert [chunk.offset for chunk in fetching.chunks] == [0, 10, 20, 30]
    assert {(chunk.index, chunk.term, chunk.size) for chunk in fetching.chunks} == {(30, 1, 37)}


def test_a_snapshot_of_another_leader_begins_at_its_start() -> None:
    cluster = cluster_above(MemorySnapshot(30, 1, b"state of the machine after 30 entries"))
    cluster.start()
    cluster.run(2.0)
    lost = cluster.leader()
    fetching = Fetching(cluster, 7, 9, ("1", "2", "3"))
    fetching.run(lambda: len(fetching.chunks) == 2)
    cluster.crash(*cluster.ids)
    cluster.client_replies.clear()
    others = [peer_id for peer_id in cluster.ids if peer_id != lost.id]
    for peer_id in others:
        cluster.peers[peer_id].log = MemoryLog(snapshot=MemorySnapshot(40, 1, b"another state of another peer"))
    cluster.start(*others)
    fetching.run()
    new = fetching.chunks[2:]
    assert b"".join(chunk.data for chunk in new) == b"another state of another peer"
    assert {(chunk.index, chunk.term, chunk.size) for chunk in new} == {(40, 1, 29)}


# --- when there is nothing to fetch -----------------------------------------------------------------------------------


def refuse(error: Exception) -> Callable[[Settings], LogBase]:
    def open_log(_: Settings) -> LogBase:
        raise error

    return open_log


DAMAGE = CorruptionError("damaged", path="/log/0.rlog", index=7)


def test_damage_that_others_cannot_help_with_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of anything else than entries; and of entries when there is no other peer."""
    for error in (CorruptionError("damaged", path="/snap"), ConfigurationError("something else")):
        with pytest.raises(type(error)) as caught:
            open_mended(settings_of("1", "123"), refuse(error), MemoryPersistence(), lambda: False)
        assert caught.value is error
    monkeypatch.setattr("zmqraft.server.repair.find_damage", lambda _: DamagedEntries("/log/0.rlog", 7, 8))
    with pytest.raises(CorruptionError) as alone:
        open_mended(settings_of("1", "1"), refuse(DAMAGE), MemoryPersistence(), lambda: False)
    assert alone.value is DAMAGE


def test_the_members_are_those_of_the_state_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmqraft.server.repair.find_damage", lambda _: DamagedEntries("/log/0.rlog", 7, 8))
    state = MemoryPersistence()
    state.update_peers([("1", "tcp://127.0.0.1:8000")], None, None)
    with pytest.raises(CorruptionError) as caught:
        open_mended(settings_of("1", "123"), refuse(DAMAGE), state, lambda: False)
    assert caught.value is DAMAGE


def test_a_disk_that_fails_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("zmqraft.server.repair.find_damage", fail)
    with pytest.raises(StorageError, match=r"cannot mend /log/0\.rlog: Input/output error"):
        open_mended(settings_of("1", "123"), refuse(DAMAGE), MemoryPersistence(), lambda: False)


def test_it_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmqraft.server.repair.find_damage", lambda _: DamagedEntries("/log/0.rlog", 7, 8))
    asked = iter([False, False, True])
    with pytest.raises(ClosedError, match="was stopped before its log was mended"):
        open_mended(settings_of("1", "123"), refuse(DAMAGE), MemoryPersistence(), lambda: next(asked))


# --- answers that nobody should give --------------------------------------------------------------------------------


def asked(first: int, last: int) -> tuple[EntriesFetch, bytes]:
    fetch = EntriesFetch(SECRET, ["1", "2"], first, last)
    message = fetch.next_message(0.0)
    assert message is not None
    assert message[0] == "1"
    return fetch, message[1][0]


def reply(status: int, json: object, last_index: int, *indexes: int) -> list[bytes]:
    frames = [LogEntry.checkpoint(index, 1).to_bytes() for index in indexes]
    return Protocols.REQUEST_ENTRIES.encode_response(status, json, last_index, frames)


def chunk_reply(value: object, index: int, *chunks: bytes) -> list[bytes]:
    return Protocols.REQUEST_ENTRIES.encode_response(ENTRIES_SNAPSHOT, value, index, list(chunks))


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\1", b"\xc0", b"\x07", b"no entry"],
        reply(ENTRIES_LAST, None, 8, 5, 6),
        reply(ENTRIES_MORE, None, 4),
        chunk_reply([0, 3, 1], 4, b"abc"),
        chunk_reply([0, 2, 1], 9, b"abc"),
        chunk_reply([0, 3, 1], 9, b""),
        chunk_reply([0, 3], 9, b"abc"),
        chunk_reply([0, 3.5, 1], 9, b"abc"),
        chunk_reply([0, True, 1], 9, b"a"),
        chunk_reply([-1, 3, 1], 9, b"abc"),
        chunk_reply(None, 9, b"abc"),
        chunk_reply([0, 6, 1], 9, b"abc", b"def"),
    ],
)
def test_what_is_not_understood_changes_nothing(frames: list[bytes]) -> None:
    fetch, message_id = asked(5, 7)
    with pytest.raises(RemoteProtocolError):
        fetch.receive("1", [message_id, *frames], 0.1)
    assert (fetch.next_index, fetch.deadline) == (5, 1.0)
    message = fetch.next_message(1.0)
    assert message is not None
    assert message[0] == "2"


def test_what_nobody_asked_for_is_passed_over() -> None:
    fetch, message_id = asked(5, 7)
    good = reply(ENTRIES_LAST, None, 7, 5, 6, 7)
    for peer_id, frames in (("2", [message_id, *good]), ("1", [b"\x63", *good]), ("1", [])):
        assert fetch.receive(peer_id, frames, 0.1) is None
    batch = fetch.receive("1", [message_id, *good], 0.1)
    assert isinstance(batch, EntryBatch)
    assert (batch.first_index, batch.last_index, fetch.is_done) == (5, 7, True)
    assert fetch.next_message(9.0) is None


@pytest.mark.parametrize(("leader_id", "next_peer"), [("2", "2"), ("1", "2"), ("9", "2"), (None, "2"), (7, "2")])
def test_a_peer_that_does_not_lead(leader_id: object, next_peer: str) -> None:
    fetch, message_id = asked(5, 7)
    frames = Protocols.REQUEST_ENTRIES.encode_response(ENTRIES_NOT_LEADER, leader_id)
    assert fetch.receive("1", [message_id, *frames], 0.1) is None
    assert fetch.next_message(0.1) is None
    message = fetch.next_message(fetch.deadline)
    assert message is not None
    assert message[0] == next_peer
    assert message[1][0] != message_id


def test_chunks_follow_each_other() -> None:
    """Numbers may be floats. One that comes twice is passed over; one of another snapshot begins anew."""
    fetch, message_id = asked(5, 7)
    chunk = fetch.receive("1", [message_id, *chunk_reply([0.0, 6.0, 2.0], 9, b"abc")], 0.1)
    assert chunk == SnapshotChunk(9, 2, 0, 6, b"abc")
    message = fetch.next_message(0.1)
    assert message is not None
    assert (message[0], message[1][0], *decode(message[1][1:])) == ("1", message_id, 4, 3, 3)
    assert fetch.receive("1", [message_id, *chunk_reply([0, 6, 2], 9, b"abc")], 0.2) is None
    assert fetch.receive("1", [message_id, *chunk_reply([3, 6, 3], 10, b"def")], 0.3) is None
    message = fetch.next_message(9.0)
    assert message is not None
    assert decode(message[1][1:])[1:] == (3, None)
    last = fetch.receive("1", [message[1][0], *chunk_reply([0, 3, 3], 10, b"abc")], 9.1)
    assert isinstance(last, SnapshotChunk)
    assert (last.is_last, fetch.is_done) == (True, True)


def decode(frames: list[bytes]) -> tuple[object, ...]:
    return Protocols.REQUEST_ENTRIES.decode_request(frames)[2:]
