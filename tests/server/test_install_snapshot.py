"""Snapshots from leaders to peers whose entries are compacted away, in virtual time. Section 7; FAULTS, "Snapshot"."""

from __future__ import annotations

import pytest

from support.virtual_cluster import SECRET, Peer, VirtualCluster, url_of
from zmqraft import constants
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.errors import InvariantError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, Protocols, encode_json, new_request_id
from zmqraft.server.snapshot_transfer import OutgoingSnapshot
from zmqraft.storage import MemorySnapshot


def peers_of(cluster: VirtualCluster) -> tuple[Peer, Peer, Peer]:
    """The leader, a follower, and another one."""
    leader = cluster.leader()
    one, other = (peer for peer in cluster.peers.values() if peer is not leader)
    return leader, one, other


def advance(cluster: VirtualCluster, count: int) -> int:
    return max(cluster.commit(b"update %d" % number) for number in range(count))


def compact_all(cluster: VirtualCluster, *peers: Peer, index: int) -> None:
    cluster.run_until(lambda: all(peer.running.last_applied >= index for peer in peers))
    for peer in peers:
        peer.compact(index)


def fallen_behind(cluster: VirtualCluster, count: int = 20) -> tuple[Peer, Peer, Peer]:
    """A cluster in which the last of the three is down, and the others have compacted beyond its end."""
    cluster.start()
    advance(cluster, 3)
    leader, other, behind = peers_of(cluster)
    cluster.run_until(lambda: behind.running.last_applied == leader.running.last_applied)
    cluster.crash(behind.id)
    index = advance(cluster, count)
    compact_all(cluster, leader, other, index=index - 5)
    return leader, other, behind


def check_same(cluster: VirtualCluster) -> None:
    peers = list(cluster.peers.values())
    cluster.run_until(lambda: len({peer.running.last_applied for peer in peers}) == 1, 10.0)
    assert all(peer.applied == peers[0].applied for peer in peers)
    assert [peer.failure for peer in peers] == [None] * len(peers)


def chunks_to(cluster: VirtualCluster, peer_id: str) -> list[list[bytes]]:
    types = (constants.INSTALL_SNAPSHOT, constants.OWN_INSTALL_SNAPSHOT)
    return [frames for _, target, frames in cluster.sent if target == peer_id and frames[1] in types]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr(constants, "OWN_APPEND_SIZE_MAX", 64)
    return {"peer_msg_data_size": 64}


def test_a_peer_that_was_away_gets_the_snapshot_and_the_entries_behind_it(small_chunks: dict[str, object]) -> None:
    cluster = VirtualCluster(3, **small_chunks)  # type: ignore[arg-type]
    leader, _, behind = fallen_behind(cluster)
    cluster.start(behind.id)
    advance(cluster, 10)
    check_same(cluster)
    assert behind.log.snapshot.index == leader.log.snapshot.index
    assert len(chunks_to(cluster, behind.id)) > 10
    # And after a restart.
    cluster.crash(behind.id)
    cluster.start(behind.id)
    check_same(cluster)


def test_two_chunks_are_under_way_to_a_peer_of_ours(small_chunks: dict[str, object]) -> None:
    cluster = VirtualCluster(3, **small_chunks)  # type: ignore[arg-type]
    leader, _, behind = fallen_behind(cluster)
    calls, most = leader.running._calls, 0
    cluster.start(behind.id)

    def is_there() -> bool:
        nonlocal most
        if calls._snapshots:
            most = max(most, len(calls._links[behind.id].outstanding))
        return behind.log.snapshot.index == leader.log.snapshot.index

    cluster.run_until(is_there)
    assert most == 2
    check_same(cluster)


def test_a_peer_that_is_not_known_to_be_ours_gets_the_data_alone(small_chunks: dict[str, object]) -> None:
    cluster = VirtualCluster(3, **small_chunks)  # type: ignore[arg-type]
    cluster.foreign = {"1", "2", "3"}
    leader, _, behind = fallen_behind(cluster)
    cluster.start(behind.id)
    check_same(cluster)
    chunks = chunks_to(cluster, behind.id)
    assert {frames[1] for frames in chunks} == {constants.INSTALL_SNAPSHOT}
    data = b"".join(frames[9] for frames in chunks)
    assert data == leader.log.snapshot.read(0, leader.log.snapshot.size) == behind.log.snapshot.read(0, 1 << 30)
    # What it may stand for is not known, so no older request is taken for a new one.
    assert behind.running.requests_forgotten_until >= cluster.wall - 60


def test_a_peer_that_is_removed_and_comes_back_before_its_snapshot_begins() -> None:
    """Its leader asks whether it is ours, and removes it and adds it again before it would wait no longer: found by
    seed 294."""
    cluster = VirtualCluster(3)
    cluster.foreign = {"1", "2", "3"}
    leader, other, behind = fallen_behind(cluster)
    cluster.start(behind.id)
    cluster.run_until(lambda: leader.running._calls._snapshot_at)
    cluster.cut = {(leader.id, behind.id), (behind.id, leader.id)}
    cluster.change([leader.id, other.id])
    assert behind.id in leader.running.raft.leaving
    cluster.change("123")
    assert behind.id not in leader.running.raft.leaving
    cluster.run(1.0)
    cluster.heal()
    check_same(cluster)


def test_what_is_lost_on_the_way_is_sent_again(small_chunks: dict[str, object]) -> None:
    cluster = VirtualCluster(3, **small_chunks)  # type: ignore[arg-type]
    leader, _, behind = fallen_behind(cluster)
    cluster.start(behind.id)
    for _ in range(10):
        cluster.run(0.01)
        cluster.cut = {(leader.id, behind.id), (behind.id, leader.id)}
        cluster.run(0.05)
        cluster.heal()
    check_same(cluster)
    size = leader.log.snapshot.size
    assert sum(len(frames[9]) for frames in chunks_to(cluster, behind.id)) < 3 * (size + 200)


@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_what_has_come_without_an_answer_is_not_sent_again_for_ever(
    small_chunks: dict[str, object], seconds: float
) -> None:
    """Also when that lasts so long that the leader begins anew. Found by seed 8091."""
    timeouts = {"election_timeout_min": 10_000, "election_timeout_max": 20_000}
    cluster = VirtualCluster(3, **small_chunks, **timeouts)  # type: ignore[arg-type]
    leader, _, behind = fallen_behind(cluster)
    cluster.start(behind.id)
    calls = leader.running._calls

    def has_come_in_part() -> bool:
        snapshot = calls._snapshots.get(behind.id)
        return snapshot is not None and snapshot._acknowledged > 64 and len(calls._links[behind.id].outstanding) == 2

    cluster.run_until(has_come_in_part)
    cluster.cut = {(behind.id, leader.id)}
    cluster.run(seconds)
    cluster.heal()
    check_same(cluster)


def test_a_chunk_that_comes_twice_counts_once(small_chunks: dict[str, object]) -> None:
    """FAULTS 24."""
    cluster = VirtualCluster(3, **small_chunks)  # type: ignore[arg-type]
    _, _, behind = fallen_behind(cluster)
    deliver = cluster.deliver
    seen = []

    def twice(source: str, target: str, frames: list[bytes]) -> None:
        deliver(source, target, frames)
        if frames[1] == constants.OWN_INSTALL_SNAPSHOT:
            seen.append(frames)
            deliver(source, target, frames)

    cluster.deliver = twice  # type: ignore[method-assign]
    cluster.start(behind.id)
    check_same(cluster)
    assert len(seen) > 10
    # The last one once more, when it is long done.
    cluster.request(behind.id, b"\7\7\7", seen[-1][1:])
    cluster.run(0.1)
    check_same(cluster)


def test_another_leader_begins_anew(small_chunks: dict[str, object]) -> None:
    """FAULTS W5: its bytes need not be the same."""
    cluster = VirtualCluster(3, **small_chunks)  # type: ignore[arg-type]
    leader, other, behind = fallen_behind(cluster, 60)
    cluster.start(behind.id)
    cluster.run_until(lambda: len(chunks_to(cluster, behind.id)) > 5)
    before = len(chunks_to(cluster, behind.id))
    cluster.crash(leader.id)
    cluster.run_until(lambda: other.role == "leader")
    cluster.run_until(lambda: len(chunks_to(cluster, behind.id)) > before)

    def request(frames: list[bytes]) -> list[object]:
        own = frames[1] == constants.OWN_INSTALL_SNAPSHOT
        return list((Protocols.OWN_INSTALL_SNAPSHOT if own else Protocols.INSTALL_SNAPSHOT).decode_request(frames[1:]))

    first = request(chunks_to(cluster, behind.id)[before])
    assert first[2:4] == [other.id, other.term]
    assert first[6] == 0
    cluster.start(leader.id)
    advance(cluster, 3)
    check_same(cluster)
    # One of ours need not be made to forget what it had.
    sizes = {(frames[1], request(frames)[7]) for frames in chunks_to(cluster, behind.id)[before:]}
    assert len(sizes) == len({message_type for message_type, _ in sizes})


def test_an_older_snapshot_is_not_taken() -> None:
    """FAULTS W4: ignored, and answered as done, when it is not above what is committed."""
    cluster = VirtualCluster(3)
    cluster.start()
    advance(cluster, 10)
    leader, one, _ = peers_of(cluster)
    cluster.run_until(lambda: one.running.last_applied >= 10)
    one.compact(8)
    numbers = (leader.term, 5, leader.log.term_at(5), 0, 100)
    request = Protocols.INSTALL_SNAPSHOT.encode_request(b"$", SECRET, leader.id, *numbers, b"x" * 50)
    cluster.request(one.id, b"\7", request)
    cluster.run(0.01)
    (reply,) = cluster.client_replies[b"\7"]
    assert Protocols.INSTALL_SNAPSHOT.decode_response(reply) == (leader.term, None)
    # A leader of ours is told that nothing more of it is wanted.
    own = Protocols.OWN_INSTALL_SNAPSHOT.encode_request(
        constants.OWN_INSTALL_SNAPSHOT, SECRET, leader.id, *numbers, b"x" * 50, 0
    )
    cluster.request(one.id, b"\10", own)
    cluster.run(0.01)
    (reply,) = cluster.client_replies[b"\10"]
    assert Protocols.INSTALL_SNAPSHOT.decode_response(reply) == (leader.term, 100)
    assert (one.log.first_index, one.log.snapshot.index) == (9, 8)
    advance(cluster, 3)
    check_same(cluster)


@pytest.mark.parametrize("term", [1, 2])
def test_a_log_that_does_not_match_gives_way(term: int) -> None:
    """FAULTS 23: with entries of another leader, also beyond the snapshot's index."""
    cluster = VirtualCluster(3)
    cluster.peers["1"].set_log(*[1] * 3, *[3] * 30)
    cluster.peers["2"].put_log(cluster.peers["1"].entries(), 3)
    cluster.peers["3"].set_log(*[1] * 3, *[term] * 40, term=2)
    cluster.start("1", "2")
    leader = cluster.leader()
    advance(cluster, 2)
    compact_all(cluster, cluster.peers["1"], cluster.peers["2"], index=30)
    cluster.start("3")
    check_same(cluster)
    three = cluster.peers["3"]
    assert (three.log.snapshot.index, three.log.snapshot.term) == (30, 3)
    assert three.running.raft.commit_index == leader.running.raft.commit_index


def test_the_configuration_travels_with_the_snapshot() -> None:
    """FAULTS 25 and W6: else a peer that missed the change stands for election with the old quorum."""
    cluster = VirtualCluster(3)
    for peer_id in "45":
        cluster.add(peer_id, "123")
    cluster.start()
    advance(cluster, 3)
    leader = cluster.leader()
    behind, other = (peer for peer in cluster.peers.values() if peer is not leader and peer.id in "123")
    cluster.crash(behind.id)
    cluster.change("12345")
    index = advance(cluster, 10)
    compact_all(cluster, leader, other, cluster.peers["4"], cluster.peers["5"], index=index)
    cluster.start(behind.id)
    cluster.run_until(lambda: behind.log.snapshot.index == index)
    assert behind.members == "12345"
    # It and one more are no majority.
    cluster.crash(behind.id)
    cluster.start(behind.id)
    cluster.partition([behind.id, other.id], [leader.id, "4", "5"])
    cluster.run(5.0)
    assert behind.members == "12345"
    assert "leader" not in (behind.role, other.role)
    cluster.heal()
    cluster.commit(b"goes on")
    check_same(cluster)


def test_without_a_configuration_a_peer_stands_for_election_only_when_the_leader_confirms_its_own() -> None:
    """FAULTS W6: a leader of zmq-raft does not send one."""
    cluster = VirtualCluster(3)
    cluster.foreign = {"1", "2", "3"}
    leader, other, behind = fallen_behind(cluster)
    cluster.start(behind.id)
    cluster.run_until(lambda: behind.log.snapshot.index > 0)
    assert not behind.running.raft.is_configuration_known
    cluster.crash(behind.id)
    cluster.crash(leader.id, other.id)
    cluster.start(behind.id)
    cluster.run(5.0)
    assert (behind.role, behind.members) == ("follower", "123")
    cluster.start(leader.id, other.id)
    cluster.run_until(lambda: behind.running.raft.is_configuration_known)
    cluster.crash(leader.id)
    cluster.commit(b"goes on")
    cluster.start(leader.id)
    check_same(cluster)


def test_another_configuration_is_not_confirmed_but_one_in_the_log_counts() -> None:
    cluster = VirtualCluster(3)
    cluster.add("4", "123")
    cluster.foreign = {"1", "2", "3", "4"}
    cluster.start()
    advance(cluster, 3)
    leader = cluster.leader()
    behind, other = (peer for peer in cluster.peers.values() if peer is not leader and peer.id in "123")
    cluster.crash(behind.id)
    cluster.change("1234")
    index = advance(cluster, 3)
    compact_all(cluster, leader, other, cluster.peers["4"], index=index)
    cluster.start(behind.id)
    cluster.run_until(lambda: behind.log.snapshot.index == index)
    cluster.run(5.0)
    assert not behind.running.raft.is_configuration_known
    cluster.change("123")
    cluster.run_until(lambda: behind.running.raft.is_configuration_known)
    assert behind.members == "123"


def test_a_joint_configuration_is_not_confirmed() -> None:
    """Its peers may be those of the one behind it: found by seed 17949."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader, one, _ = peers_of(cluster)
    cluster.run(1.0)
    raft = one.running.raft
    peers, urls = raft.configuration.peers, raft.configuration.urls
    joint = ClusterConfiguration(peers[:2]).joint_with(peers)
    raft.configurations.append([(raft.log.last_index, joint)])
    raft.is_configuration_known = False
    assert raft.configuration.urls == urls
    raft.configuration_confirmed(leader.id, urls)
    assert not raft.is_configuration_known
    raft.configurations.append([(raft.log.last_index + 1, joint.final)])
    raft.configuration_confirmed(leader.id, urls)
    assert raft.is_configuration_known


def test_request_ids_travel_with_the_snapshot() -> None:
    """FAULTS 42: an update that is repeated to a leader that has only the snapshot of it."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader, other, behind = peers_of(cluster)
    cluster.run_until(lambda: behind.running.raft.commit_index > 0)
    cluster.crash(behind.id)
    request_id = cluster.update(leader.id, b"once")
    cluster.run_until(lambda: cluster.committed(request_id))
    index = cluster.committed(request_id)
    last = advance(cluster, 10)
    compact_all(cluster, leader, other, index=last)
    cluster.start(behind.id)
    cluster.run_until(lambda: behind.log.snapshot.index == last)
    cluster.transfer(behind.id)
    cluster.run_until(lambda: behind.role == "leader")
    cluster.commit(b"its term")
    cluster.client_replies.clear()
    cluster.update(behind.id, b"once", request_id)
    cluster.run_until(lambda: cluster.result(request_id))
    assert cluster.committed(request_id) == index
    assert [entry.data for entry in behind.applied].count(b"once") == 1


def test_an_empty_snapshot() -> None:
    cluster = VirtualCluster(2)
    follower = cluster.peers["1"]
    follower.set_log(1)
    cluster.start("1")
    request = Protocols.INSTALL_SNAPSHOT.encode_request(b"$", SECRET, "2", 1, 9, 1, 0, 0, b"")
    cluster.request("1", b"\7", request)
    cluster.run(0.01)
    (reply,) = cluster.client_replies[b"\7"]
    assert Protocols.INSTALL_SNAPSHOT.decode_response(reply) == (1, None)
    assert (follower.log.first_index, follower.log.last_index, follower.running.last_applied) == (10, 9, 9)


@pytest.mark.parametrize(
    "numbers",
    [(1, 0, 1, 0, 10), (1, 9, 0, 0, 10), (1, 9, 2, 0, 10), (1, 9, 1, 8, 10), (2**53 - 1, 9, 1, 0, 10)],
    ids=["index 0", "term 0", "term above the leader's", "beyond the end", "term too high"],
)
def test_an_impossible_chunk_is_dropped(numbers: tuple[int, int, int, int, int]) -> None:
    term, index, index_term, offset, size = numbers
    cluster = VirtualCluster(2)
    cluster.start("1")
    request = Protocols.INSTALL_SNAPSHOT.encode_request(
        b"$", SECRET, "2", term, index, index_term, offset, size, b"xxx"
    )
    cluster.request("1", b"\7", request)
    cluster.run(0.01)
    assert b"\7" not in cluster.client_replies
    assert cluster.peers["1"].running.dropped["malformed message"] == 1


@pytest.mark.parametrize("context", [b"CONF", b"CONF\xff\xff\xff\xff", b"CONF\4\0\0\0\xc1\xc1\xc1\xc1"], ids=repr)
def test_a_context_that_does_not_decode_is_dropped(context: bytes) -> None:
    cluster = VirtualCluster(2)
    cluster.start("1")
    request = Protocols.OWN_INSTALL_SNAPSHOT.encode_request(
        constants.OWN_INSTALL_SNAPSHOT, SECRET, "2", 1, 9, 1, 0, len(context), context, len(context)
    )
    cluster.request("1", b"\7", request)
    cluster.run(0.01)
    assert b"\7" not in cluster.client_replies
    assert cluster.peers["1"].running.dropped["malformed message"] == 1
    assert cluster.peers["1"].log.snapshot.index == 0


def test_a_chunk_of_something_else_is_asked_for_from_the_start() -> None:
    cluster = VirtualCluster(2)
    cluster.start("1")

    def send(message_id: bytes, offset: int, data: bytes, size: int = 10) -> tuple[object, ...]:
        request = Protocols.INSTALL_SNAPSHOT.encode_request(b"$", SECRET, "2", 1, 9, 1, offset, size, data)
        cluster.request("1", message_id, request)
        cluster.run(0.01)
        return Protocols.INSTALL_SNAPSHOT.decode_response(cluster.client_replies[message_id][-1])

    assert send(b"\1", 4, b"4567") == (1, 0)
    assert send(b"\2", 0, b"0123") == (1, None)
    assert send(b"\3", 8, b"89") == (1, 4)
    assert send(b"\4", 4, b"45", 11) == (1, 0)
    assert send(b"\5", 0, b"0123456789") == (1, None)
    assert cluster.peers["1"].log.snapshot.read(0, 100) == b"0123456789"


def test_a_crash_in_the_middle_leaves_the_log_as_it_was(small_chunks: dict[str, object]) -> None:
    cluster = VirtualCluster(3, **small_chunks)  # type: ignore[arg-type]
    _, _, behind = fallen_behind(cluster)
    last = behind.log.last_index
    cluster.start(behind.id)
    cluster.run_until(lambda: len(chunks_to(cluster, behind.id)) > 3)
    cluster.crash(behind.id)
    assert (behind.log.snapshot.index, behind.log.last_index) == (0, last)
    cluster.start(behind.id)
    check_same(cluster)


def test_a_snapshot_with_a_configuration_that_has_no_room_for_the_peer_makes_it_a_client() -> None:
    cluster = VirtualCluster(3)
    cluster.start("1")
    one = cluster.peers["1"]
    peers = [["2", url_of("2")], ["3", url_of("3")]]
    context = b"CONF" + (lambda data: len(data).to_bytes(4, "little") + data + bytes(-len(data) % 4))(
        encode_json({"index": 5, "peers": peers})
    )
    request = Protocols.OWN_INSTALL_SNAPSHOT.encode_request(
        constants.OWN_INSTALL_SNAPSHOT, SECRET, "2", 1, 9, 1, 0, len(context), context, len(context)
    )
    cluster.request("1", b"\7", request)
    cluster.run(0.01)
    assert (one.role, one.members) == ("client", "23")
    entries = [LogEntry(10, 1, EntryType.STATE, new_request_id(cluster.wall), b"x")]
    frames = EntryBatch.from_entries(entries).frames()
    append = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, "2", 1, 9, 1, 10)
    cluster.request("1", b"\10", [*append, *frames])
    cluster.run(0.01)
    assert one.running.last_applied == 10


class TestOutgoing:
    """The leader's side, with the replies that peers of zmq-raft were seen to give."""

    def offsets(self, replies: list[int | None], *, is_own: bool = False) -> list[tuple[int, int, bytes]]:
        """Offset, size and data of each chunk that is sent, until the peer has all of it or the replies have ended."""
        outgoing = OutgoingSnapshot(MemorySnapshot(9, 1, b"0123456789"), 4, is_own=is_own)
        protocol = Protocols.OWN_INSTALL_SNAPSHOT if is_own else Protocols.INSTALL_SNAPSHOT
        sent = []
        for reply in replies:
            sent.append(protocol.decode_request(outgoing.next_chunk(SECRET, "2", 1))[6:9])
            if outgoing.answered(1, reply):
                assert reply is replies[-1]
                break
        return sent

    def test_without_an_offset_it_goes_on(self) -> None:
        assert self.offsets([None] * 3) == [(0, 10, b"0123"), (4, 10, b"4567"), (8, 10, b"89")]

    def test_with_an_offset_it_goes_back(self) -> None:
        assert [chunk[0] for chunk in self.offsets([None, 4, None, 4, None, None])] == [0, 4, 4, 8, 4, 8]

    def test_the_end_may_be_said_by_an_offset(self) -> None:
        assert [chunk[0] for chunk in self.offsets([None, None, 10])] == [0, 4, 8]
        assert [chunk[0] for chunk in self.offsets([10], is_own=True)] == [0]

    def test_what_another_leader_has_sent_is_forgotten(self) -> None:
        """FAULTS W5: a peer of zmq-raft that has 8 bytes of another leader's says so, however often it is told 0."""
        sent = self.offsets([8, None, None, None, None])
        assert sent == [(0, 10, b"0123"), (0, 11, b"0"), (0, 10, b"0123"), (4, 10, b"4567"), (8, 10, b"89")]

    def own(self, count: int) -> OutgoingSnapshot:
        """Five chunks, with so many of them under way to one of ours."""
        outgoing = OutgoingSnapshot(MemorySnapshot(9, 1, bytes(20)), 4, is_own=True)
        for _ in range(count):
            outgoing.next_chunk(SECRET, "2", 1)
        return outgoing

    def next_offset(self, outgoing: OutgoingSnapshot) -> int:
        return int(Protocols.OWN_INSTALL_SNAPSHOT.decode_request(outgoing.next_chunk(SECRET, "2", 1))[6])

    def test_two_may_be_under_way(self) -> None:
        outgoing = self.own(2)
        assert not outgoing.answered(1, 4)
        assert self.next_offset(outgoing) == 8
        assert not outgoing.answered(2, 12)
        assert not outgoing.is_under_way
        assert self.next_offset(outgoing) == 12

    def test_a_lost_one_takes_those_behind_it_along(self) -> None:
        """The second says where the peer is: nothing of the first has come."""
        outgoing = self.own(2)
        assert not outgoing.answered(2, 0)
        assert self.next_offset(outgoing) == 0
        outgoing = self.own(3)
        assert not outgoing.answered(1, 4)
        assert not outgoing.answered(1, 4)
        assert not outgoing.is_under_way
        assert self.next_offset(outgoing) == 4

    def test_what_is_given_up_begins_behind_what_was_acknowledged(self) -> None:
        outgoing = self.own(3)
        outgoing.answered(1, None)
        outgoing.lost()
        assert self.next_offset(outgoing) == 4

    def test_no_more_are_answered_than_are_under_way(self) -> None:
        for count in (0, 3):
            with pytest.raises(InvariantError, match="2 are under way"):
                self.own(2).answered(count, 8)

    def test_a_repeated_one_may_be_answered_from_further_on(self) -> None:
        outgoing = self.own(2)
        assert not outgoing.answered(1, 8)
        assert outgoing.is_under_way
        assert self.next_offset(outgoing) == 8

    def test_what_was_given_up_may_have_come(self) -> None:
        """Only the replies were lost: the peer says that it has more than is under way now."""
        outgoing = self.own(3)
        outgoing.lost()
        assert self.next_offset(outgoing) == 0
        assert not outgoing.answered(1, 12)
        assert not outgoing.is_under_way
        assert self.next_offset(outgoing) == 12

    def test_what_did_not_come_from_here_is_forgotten(self) -> None:
        """One of ours has 12 bytes, of which only 8 can be those of this attempt."""
        outgoing = self.own(2)
        assert not outgoing.answered(1, 12)
        request = Protocols.OWN_INSTALL_SNAPSHOT.decode_request(outgoing.next_chunk(SECRET, "2", 1))
        assert request[6:9] == (0, 21, bytes(1))
        assert not outgoing.answered(1, 1)
        request = Protocols.OWN_INSTALL_SNAPSHOT.decode_request(outgoing.next_chunk(SECRET, "2", 1))
        assert request[6:9] == (0, 20, bytes(4))

    def test_there_is_no_more_when_all_was_sent(self) -> None:
        outgoing = OutgoingSnapshot(MemorySnapshot(9, 1, b""), 1 << 20, is_own=False)
        assert outgoing.has_more
        outgoing.next_chunk(SECRET, "2", 1)
        assert not outgoing.has_more
        assert outgoing.answered(1, None)
