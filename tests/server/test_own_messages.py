"""What peers of zmqraft say to each other beyond zmq-raft: capabilities and commit notices, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from support.local_cluster import PATIENT, running_cluster, wait_for
from support.virtual_cluster import SECRET, VirtualCluster
from zmqraft.client import ZmqRaftClient
from zmqraft.constants import COMMIT_NOTICE
from zmqraft.errors import InvariantError
from zmqraft.protocol import EntryType, LogEntry, Protocols, new_request_id


def notices(cluster: VirtualCluster) -> list[list[bytes]]:
    return [frames for *_, frames in cluster.sent if frames[1] == COMMIT_NOTICE]


def entry(index: int, term: int) -> bytes:
    return LogEntry(index, term, EntryType.STATE, new_request_id(1_800_000_000.0), b"x").to_bytes()


class Follower:
    """Peer 1 of three, spoken to by hand as leader 2 of term 5."""

    def __init__(self) -> None:
        self.cluster = VirtualCluster(3)
        self.peer = self.cluster.peers["1"]
        self.peer.set_log(1, 1, 2, term=5)
        self.cluster.start("1")
        self.cluster.run(0.0)
        self.message_id = 0

    def append(self, prev_index: int, prev_term: int, *entries: bytes, term: int = 5, commit: int = 0) -> None:
        self.message_id += 1
        frames = Protocols.APPEND_ENTRIES.encode_request(
            b"+", SECRET, "2", term, prev_index, prev_term, commit, list(entries)
        )
        self.cluster.inject("1", self.message_id, frames)
        self.cluster.run(0.0)

    def tell(self, commit_index: int, term: int = 5, leader: str = "2") -> int:
        """Send a notice. Returns the commit index after it."""
        frames = Protocols.COMMIT_NOTICE.encode_request(COMMIT_NOTICE, SECRET, leader, term, commit_index)
        self.cluster.inject("1", 0, frames)
        self.cluster.run(0.0)
        return self.peer.running.raft.commit_index


def test_a_commit_is_told_at_once_without_a_request(sync_s: float | None) -> None:
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.commit(b"first")
    cluster.run(1.0)
    del cluster.sent[:]
    index = cluster.commit(b"second")
    others = [peer for peer in cluster.peers.values() if peer is not leader]
    # Far less than a heartbeat.
    cluster.run_until(lambda: all(len(peer.applied) == index for peer in others), 0.01)
    assert len(notices(cluster)) == 2
    carried = [frames for source, _, frames in cluster.sent if source == leader.id and frames[1] == b"+"]
    assert len(carried) == 2


def test_an_update_does_not_wait_for_the_reply_to_a_notice() -> None:
    """One request is outstanding to a peer, and a notice is none."""
    cluster = VirtualCluster(3, delay=0.01)
    cluster.start()
    leader = cluster.leader()
    cluster.commit(b"first")
    cluster.run(1.0)
    request_id = cluster.update(leader.id, b"second")
    cluster.run_until(lambda: cluster.committed(request_id))
    began = cluster.now
    request_id = cluster.update(leader.id, b"third")
    cluster.run_until(lambda: cluster.committed(request_id))
    assert cluster.now - began == pytest.approx(2 * cluster.delay)


def appends_to(cluster: VirtualCluster, target: str) -> list[list[bytes]]:
    return [frames for _, to, frames in cluster.sent if to == target and frames[1] == b"+"]


class TestTwoAppendsUnderWay:
    """A batch gets to a peer of ours while it syncs the one before."""

    @staticmethod
    def cluster(**settings: object) -> tuple[VirtualCluster, str, str]:
        """One with slow links, a leader and another peer."""
        cluster = VirtualCluster(3, delay=0.01, **settings)
        cluster.start()
        leader = cluster.leader()
        cluster.commit(b"first")
        cluster.run(1.0)
        del cluster.sent[:]
        return cluster, leader.id, next(peer_id for peer_id in cluster.ids if peer_id != leader.id)

    def test_the_second_does_not_wait_for_the_first_but_a_third_does(self, sync_s: float | None) -> None:
        cluster, leader, other = self.cluster()
        for number in range(4):
            cluster.update(leader, b"%d" % number)
            cluster.run(0.001)
        assert [len(frames) - 8 for frames in appends_to(cluster, other)] == [1, 1]
        cluster.run(0.5)
        assert [len(frames) - 8 for frames in appends_to(cluster, other)][:3] == [1, 1, 2]
        assert [len(peer.applied) for peer in cluster.peers.values()] == [6, 6, 6]

    def test_zmq_raft_gets_one_at_a_time(self) -> None:
        """SPEC section 2, "Between peers": nothing may be reordered, and only one request may be in flight."""
        cluster = VirtualCluster(3, delay=0.01)
        cluster.foreign = set(cluster.ids)
        cluster.start()
        leader = cluster.leader()
        cluster.commit(b"first")
        cluster.run(1.0)
        del cluster.sent[:]
        for number in range(4):
            cluster.update(leader.id, b"%d" % number)
            cluster.run(0.001)
        for target in cluster.ids:
            assert len(appends_to(cluster, target)) == (target != leader.id)

    @pytest.mark.parametrize("lost", [(0,), (1,), (0, 1)])
    def test_what_is_lost_of_them_is_sent_again(self, lost: tuple[int, ...]) -> None:
        """FAULTS 13, 16: a refusal of the second must not lead below what is acknowledged."""
        cluster, leader, other = self.cluster(election_timeout_min=2000, election_timeout_max=3000)
        deliver, seen = cluster.deliver, 0

        def lossy(source: str, target: str, frames: list[bytes]) -> None:
            nonlocal seen
            if target == other and frames[1] == b"+" and len(frames) > 8:
                seen += 1
                if seen - 1 in lost:
                    return
            deliver(source, target, frames)

        cluster.deliver = lossy  # type: ignore[method-assign]
        progress = cluster.peers[leader].running.raft.progress[other]

        def check() -> None:
            assert progress.match < progress.next

        cluster.on_event = check
        for number in range(2):
            cluster.update(leader, b"%d" % number)
            cluster.run(0.001)
        assert seen == 2
        cluster.run(1.0)
        assert [len(peer.applied) for peer in cluster.peers.values()] == [4, 4, 4]
        assert [peer.id for peer in cluster.leaders] == [leader]

    def test_replies_that_come_after_their_requests_were_given_up_count_for_nothing(self) -> None:
        cluster, leader, other = self.cluster(election_timeout_min=2000, election_timeout_max=3000)
        raft = cluster.peers[leader].running.raft
        cluster.update(leader, b"second")
        cluster.run(0.001)
        cluster.update(leader, b"third")
        cluster.run(0.001)
        progress = raft.progress[other]
        assert len(progress.pending) == 2
        running = cluster.peers[leader].running
        dropped = running.dropped["late reply"]
        running._calls._links[other].deadline = cluster.now
        cluster.request(leader, b"\1", [b"^", SECRET])
        cluster.run(0.015)
        # Now one entry at a time, from what was acknowledged on.
        assert (len(progress.pending), progress.match) == (1, 2)
        cluster.run(0.01)
        assert running.dropped["late reply"] == dropped + 2
        cluster.run(0.5)
        assert progress.match == 4


def test_zmq_raft_gets_no_notices() -> None:
    cluster = VirtualCluster(3)
    cluster.foreign = set(cluster.ids)
    cluster.start()
    for number in range(5):
        cluster.commit(b"%d" % number)
    cluster.run(1.0)
    assert notices(cluster) == []
    assert {peer.running.raft.commit_index for peer in cluster.peers.values()} == {6}


def test_a_notice_that_is_lost_is_made_up_for_by_the_next_heartbeat() -> None:
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.commit(b"first")
    cluster.run(1.0)
    request_id = cluster.update(leader.id, b"second")
    cluster.run_until(lambda: cluster.committed(request_id))
    # Both notices are on their way.
    cluster.partition()
    cluster.run(0.01)
    cluster.heal()
    cluster.run(0.3)
    assert cluster.leaders == [leader]
    assert {peer.running.raft.commit_index for peer in cluster.peers.values()} == {3}


class TestWhatAFollowerBelieves:
    def test_only_what_the_leader_has_shown_is_committed(self) -> None:
        """FAULTS 10, W2: an unverified end of the log must not be committed."""
        follower = Follower()
        assert follower.tell(3) == 0
        follower.append(1, 1)
        assert follower.tell(3) == 1
        follower.append(1, 1, entry(2, 1))
        assert follower.tell(3) == 2
        assert follower.tell(1) == 2
        follower.append(2, 1, entry(3, 5), entry(4, 5))
        assert follower.tell(9) == 4

    def test_a_new_term_has_shown_nothing_yet(self) -> None:
        follower = Follower()
        follower.append(3, 2)
        follower.append(1, 1, term=6)
        assert follower.tell(3, term=6) == 1

    def test_another_term_is_ignored(self) -> None:
        follower = Follower()
        follower.append(3, 2)
        assert follower.tell(3, term=4) == 0
        assert follower.tell(3, term=6) == 0
        assert follower.peer.term == 5

    def test_one_that_is_no_member_is_ignored(self) -> None:
        follower = Follower()
        follower.append(3, 2)
        assert follower.tell(3, leader="9") == 0
        assert follower.tell(3, leader="1") == 0
        assert follower.peer.running.dropped["malformed message"] == 2

    def test_a_second_leader_of_the_term_stops_the_peer(self) -> None:
        """FAULTS W25."""
        follower = Follower()
        follower.append(3, 2)
        follower.cluster.inject("1", 0, Protocols.COMMIT_NOTICE.encode_request(COMMIT_NOTICE, SECRET, "3", 5, 3))
        assert isinstance(follower.peer.failure, InvariantError)


def test_real_peers_learn_of_each_other_also_under_load(tmp_path: Path) -> None:
    """A DEALER with ZMQ_SNDHWM 1 has no room for a question right behind a request: it went unheard for ever."""
    with running_cluster(tmp_path, 3, **PATIENT) as peers:
        leader = next(peer for peer in peers if peer.state == "leader")
        with ZmqRaftClient([peer.url for peer in peers], secret=leader.secret, deadline_s=60.0) as client:

            def busy_until_known() -> bool:
                list(client.request_updates((b"%d" % number for number in range(100)), in_flight=10))
                return len(leader.engine._calls._append_sizes) == 2

            wait_for(busy_until_known, "an answer to the question for capabilities")


def test_a_peer_that_was_away_is_known_again_while_it_catches_up() -> None:
    """As long as it is not, it is sent less at a time; and until it is even with the others there is always something
    under way to it."""
    cluster = VirtualCluster(3, peer_msg_data_size=64)
    cluster.start()
    leader = cluster.leader()
    behind = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
    cluster.crash(behind)
    last = max(cluster.commit(b"%d" % number) for number in range(200))
    # So long that it would be asked once in a minute.
    cluster.run(200.0)
    cluster.start(behind)
    cluster.run_until(lambda: leader.running._calls.is_ours(behind), seconds=1.0)
    assert cluster.peers[behind].log.last_index < last - 100


def test_replies_to_heartbeats_leave_nothing_to_do() -> None:
    """They are most of what an idle leader hears, and cost it no turn."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.commit(b"x")
    cluster.run(1.0)
    receive_reply, results = leader.running.receive_reply, []

    def note(peer_id: str, frames: Sequence[bytes], now: float) -> bool:
        results.append(receive_reply(peer_id, frames, now))
        return results[-1]

    leader.running.receive_reply = note  # type: ignore[method-assign]
    cluster.run(1.0)
    assert len(results) > 20
    assert not any(results)
    cluster.commit(b"y")
    assert any(results)


def test_a_peer_of_zmq_raft_is_never_told_of_a_commit_beyond_the_previous_index() -> None:
    """SPEC section 2, "Between peers": when it gets such a message again over another connection, it stops."""
    cluster = VirtualCluster(3)
    cluster.foreign = {"1", "2", "3"}
    cluster.start()
    leader = cluster.leader()
    behind = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
    cluster.crash(behind)
    last = max(cluster.commit(b"%d" % number) for number in range(20))
    cluster.start(behind)
    cluster.run_until(lambda: all(peer.running.raft.commit_index >= last for peer in cluster.peers.values()))
    appends = [frames for _, _, frames in cluster.sent if frames[1] == b"+"]
    assert len(appends) > 40
    for frames in appends:
        _, _, _, _, prev_index, _, commit_index, _ = Protocols.APPEND_ENTRIES.decode_request(frames[1:])
        assert commit_index <= prev_index
