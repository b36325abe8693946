"""Linearizable reads in virtual time (FAULTS 38 to 41): who is told an index, when, and who is not."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from support.virtual_cluster import SECRET, Peer, VirtualCluster
from zmqraft.constants import READ_INDEX
from zmqraft.core.read_index import ReadIndex
from zmqraft.protocol import ABSENT, Protocols
from zmqraft.storage import MemoryLog, MemoryPersistence

VOTERS = (frozenset("123"),)


class Reads:
    """A cluster, and reads at its peers."""

    def __init__(self, size: int = 3, **settings: object) -> None:
        self.cluster = VirtualCluster(size, delay=0.01, **settings)
        self.cluster.start()
        self.leader = self.cluster.leader()
        self.cluster.commit(b"first")
        self.cluster.run(1.0)
        self.count = 0

    def ask(self, peer: Peer | None = None) -> bytes:
        self.count += 1
        message_id = b"read %d" % self.count
        frames = Protocols.READ_INDEX.encode_request(READ_INDEX, SECRET)
        self.cluster.request((peer or self.leader).id, message_id, frames)
        return message_id

    def answer(self, message_id: bytes) -> tuple[int | None, object] | None:
        replies = self.cluster.client_replies.get(message_id, [])
        assert len(replies) <= 1
        return Protocols.READ_INDEX.decode_response(replies[0]) if replies else None  # type: ignore[return-value]

    def others(self) -> list[Peer]:
        return [peer for peer in self.cluster.peers.values() if peer is not self.leader]

    def isolate(self) -> None:
        self.cluster.partition([self.leader.id], [peer.id for peer in self.others()])


def test_a_read_costs_one_round_and_no_heartbeat_interval(sync_s: float | None) -> None:
    reads = Reads()
    message_id = reads.ask()
    reads.cluster.run(2 * reads.cluster.delay - 0.001)
    assert reads.answer(message_id) is None
    reads.cluster.run(0.002)
    assert reads.answer(message_id) == (reads.leader.running.raft.commit_index, ABSENT)


def test_many_reads_share_a_round() -> None:
    reads = Reads()
    del reads.cluster.sent[:]
    ids = [reads.ask() for _ in range(1000)]
    reads.cluster.run(2 * reads.cluster.delay + 0.001)
    assert all(reads.answer(message_id) for message_id in ids)
    appends = [frames for source, _, frames in reads.cluster.sent if frames[1] == b"+" and source == reads.leader.id]
    assert len(appends) == 2


def test_a_read_while_an_append_is_under_way_waits_for_one_that_was_begun_after_it() -> None:
    reads = Reads()
    reads.cluster.update(reads.leader.id, b"second")
    reads.cluster.run(0.005)
    message_id = reads.ask()
    reads.cluster.run(2 * reads.cluster.delay - 0.004)
    # The answers to the appends of before are there.
    assert reads.leader.running.raft.commit_index == 3
    assert reads.answer(message_id) is None
    reads.cluster.run(0.01)
    assert reads.answer(message_id) == (2, ABSENT)


def test_a_cluster_of_one_needs_nobody() -> None:
    reads = Reads(1)
    message_id = reads.ask()
    reads.cluster.run(0.0)
    assert reads.answer(message_id) == (2, ABSENT)


def test_zmq_raft_followers_confirm_as_well() -> None:
    cluster = VirtualCluster(3, delay=0.01)
    cluster.foreign = set(cluster.ids)
    cluster.start()
    reads = Reads.__new__(Reads)
    reads.cluster, reads.count = cluster, 0
    reads.leader = cluster.leader()
    cluster.commit(b"first")
    cluster.run(1.0)
    message_id = reads.ask()
    cluster.run(4 * cluster.delay + 0.001)
    assert reads.answer(message_id) == (2, ABSENT)


def test_who_does_not_lead_says_so() -> None:
    reads = Reads()
    message_id = reads.ask(reads.others()[0])
    reads.cluster.run(0.0)
    assert reads.answer(message_id) == (None, reads.leader.id)


def test_a_leader_that_is_cut_off_tells_nothing() -> None:
    """FAULTS 38: what the others write meanwhile must not be missing."""
    reads = Reads()
    reads.isolate()
    message_id = reads.ask()
    reads.cluster.run_until(lambda: [peer for peer in reads.others() if peer.role == "leader"])
    assert (reads.answer(message_id) or (None, None))[0] is None
    reads.cluster.run(2.0)
    assert reads.answer(message_id) == (None, None)
    reads.cluster.heal()
    reads.cluster.run(2.0)
    assert reads.answer(message_id) == (None, None)


def test_answers_that_were_under_way_when_the_read_came_do_not_count() -> None:
    """FAULTS 40: a leader that stood still gets answers to appends of before it did."""
    reads = Reads()
    reads.cluster.update(reads.leader.id, b"second")
    # The followers have answered, and are cut off before the answers arrive.
    reads.cluster.run(1.5 * reads.cluster.delay)
    message_id = reads.ask()
    deliver = reads.cluster.deliver
    reads.cluster.deliver = lambda source, target, frames: (  # type: ignore[method-assign]
        None if source == reads.leader.id else deliver(source, target, frames)
    )
    reads.cluster.run(1.5 * reads.cluster.delay)
    assert reads.leader.running.raft.commit_index == 3
    reads.cluster.run(0.1)
    assert reads.answer(message_id) is None


def test_a_repeated_append_confirms_only_what_came_before_its_first_sending() -> None:
    reads = Reads(election_timeout_min=2000, election_timeout_max=3000)
    lost = []
    deliver = reads.cluster.deliver

    def lossy(source: str, target: str, frames: list[bytes]) -> None:
        if source == reads.leader.id and frames[1] == b"+" and len(lost) < 2:
            lost.append(target)
        else:
            deliver(source, target, frames)

    reads.cluster.deliver = lossy  # type: ignore[method-assign]
    first = reads.ask()
    reads.cluster.run(0.001)
    assert len(lost) == 2
    second = reads.ask()
    reads.cluster.run_until(lambda: reads.answer(first))
    reads.cluster.run_until(lambda: reads.answer(second))
    assert reads.answer(first) == reads.answer(second) == (2, ABSENT)


def test_a_new_leader_waits_for_an_entry_of_its_own_term() -> None:
    """FAULTS 39: before that it does not know what is committed."""
    reads = Reads()
    before = reads.leader
    index = reads.cluster.commit(b"second")
    reads.isolate()
    reads.cluster.run_until(lambda: [peer for peer in reads.others() if peer.role == "leader"])
    reads.leader = next(peer for peer in reads.others() if peer.role == "leader")
    assert not reads.leader.running.raft.commits_in_term
    message_id = reads.ask()
    reads.cluster.run(0.0)
    assert reads.answer(message_id) is None
    reads.cluster.run_until(lambda: reads.answer(message_id))
    # The checkpoint of its term is committed, and all before it.
    assert reads.answer(message_id) == (index + 1, ABSENT)
    assert before.running.raft.commit_index <= index


def test_reads_of_a_term_are_not_answered_in_the_next() -> None:
    reads = Reads()
    reads.isolate()
    message_id = reads.ask()
    raft = reads.leader.running.raft
    raft.step_down(reads.cluster.now)
    reads.cluster.request(reads.leader.id, b"wake", [b"^", SECRET])
    reads.cluster.heal()
    reads.cluster.run(3.0)
    reads.cluster.leader()
    assert reads.answer(message_id) is not None
    assert reads.answer(message_id)[0] is None  # type: ignore[index]


def test_an_update_that_comes_when_the_appends_of_reads_are_given_up_travels_like_any() -> None:
    """Two empty appends to each are lost, and the leader begins anew with an entry that is not in its log yet."""
    reads = Reads(election_timeout_min=2000, election_timeout_max=3000)
    reads.cluster.partition()
    for _ in range(2):
        reads.ask()
        reads.cluster.run(0.001)
    running = reads.leader.running
    links = list(running._calls._links.values())
    assert [len(link.outstanding) for link in links] == [2, 2]
    reads.cluster.now = max(link.deadline for link in links)
    request_id = reads.cluster.update(reads.leader.id, b"second")
    reads.cluster.run(0.0)
    reads.cluster.heal()
    reads.cluster.run_until(lambda: reads.cluster.committed(request_id))
    assert reads.leader.engine is running


def test_an_answer_of_an_earlier_term_confirms_nothing() -> None:
    reads = Reads(election_timeout_min=2000, election_timeout_max=3000)
    reads.cluster.change_reply = lambda _, frames: [frames[0], b"\0", *frames[2:]] if len(frames) == 3 else frames
    message_id = reads.ask()
    reads.cluster.run(0.5)
    assert reads.answer(message_id) is None
    reads.cluster.change_reply = None
    reads.cluster.run(0.5)
    assert reads.answer(message_id) == (2, ABSENT)


def test_a_follower_that_has_lost_its_data_confirms_nothing() -> None:
    """FAULTS 28: it may have voted for somebody who leads by now, and does not know it any more."""
    reads = Reads()
    wiped, other = reads.others()
    reads.cluster.crash(wiped.id, other.id)
    wiped.log, wiped.persistence = MemoryLog(), MemoryPersistence()
    reads.cluster.start(wiped.id)
    reads.cluster.run(0.5)
    assert reads.leader.role == "leader"
    message_id = reads.ask()
    reads.cluster.run(0.5)
    assert reads.leader.role == "leader"
    assert reads.answer(message_id) is None
    reads.cluster.start(other.id)
    reads.cluster.run_until(lambda: reads.answer(message_id) == (2, ABSENT))


class TestRounds:
    """The core alone."""

    @pytest.fixture
    def reads(self) -> ReadIndex:
        return ReadIndex()

    def test_a_majority_of_answers_confirms(self, reads: ReadIndex) -> None:
        number = reads.begin()
        assert reads.begin() == number
        assert reads.confirmed("1", VOTERS) == 0
        assert reads.wants("2")
        reads.sent("2")
        assert not reads.wants("2")
        assert reads.confirmed("1", VOTERS) == 0
        reads.answered("2", 1)
        assert reads.confirmed("1", VOTERS) == number

    def test_each_answer_counts_for_what_came_before_it_was_sent(self, reads: ReadIndex) -> None:
        first = reads.begin()
        reads.sent("2")
        second = reads.begin()
        assert second == first + 1
        reads.sent("2")
        reads.answered("2", 1)
        assert reads.confirmed("1", VOTERS) == first
        reads.answered("2", 1)
        assert reads.confirmed("1", VOTERS) == second

    def test_one_answer_counts_for_those_before_it(self, reads: ReadIndex) -> None:
        reads.begin()
        reads.sent("2")
        second = reads.begin()
        reads.sent("2")
        reads.answered("2", 2)
        assert reads.confirmed("1", VOTERS) == second

    def test_what_is_lost_is_sent_again(self, reads: ReadIndex) -> None:
        number = reads.begin()
        reads.sent("2")
        reads.lost("2")
        assert reads.wants("2")
        reads.sent("2")
        reads.answered("2", 1)
        assert reads.confirmed("1", VOTERS) == number

    def test_a_joint_configuration_needs_both_majorities(self, reads: ReadIndex) -> None:
        number = reads.begin()
        both = (frozenset("123"), frozenset("1456"))
        for peer_id in "2345":
            reads.sent(peer_id)
        reads.answered("2", 1)
        reads.answered("4", 1)
        assert reads.confirmed("1", both) == 0
        reads.answered("5", 1)
        assert reads.confirmed("1", both) == number


@pytest.mark.parametrize("size", [3, 5])
def test_no_read_misses_what_was_acknowledged_before_it(size: int, seed: int) -> None:
    """Invariant 12, through partitions, crashes, lost and repeated messages: FAULTS 38 to 40 at random."""
    for number in range(30):
        random = Random(f"{seed} {size} {number}")
        cluster = VirtualCluster(size, seed=random.randrange(1 << 30), delay=random.choice((0.001, 0.01, 0.03)))
        deliver = cluster.deliver

        def lossy(
            source: str, target: str, frames: list[bytes], *, random: Any = random, deliver: Any = deliver
        ) -> None:
            if random.random() < 0.95:
                deliver(source, target, frames)
            if random.random() < 0.1:
                deliver(source, target, frames)

        cluster.deliver = lossy  # type: ignore[method-assign]
        cluster.start()
        updates: list[bytes] = []
        asked: dict[bytes, int] = {}
        acknowledged = answered = 0
        for step in range(150):
            cluster.run(random.choice((0.001, 0.01, 0.05, 0.2)))
            acknowledged = max([acknowledged, *(cluster.committed(each) or 0 for each in updates)])
            running = [peer.id for peer in cluster.peers.values() if peer.engine is not None]
            choice = random.random()
            if choice < 0.4:
                updates.append(cluster.update(random.choice(running), b"%d" % step))
            elif choice < 0.8:
                message_id = b"read %d" % step
                asked[message_id] = acknowledged
                frames = Protocols.READ_INDEX.encode_request(READ_INDEX, SECRET)
                for peer_id in running:  # whoever believes that it leads
                    cluster.request(peer_id, message_id, frames)
            elif choice < 0.85:
                some = random.sample(cluster.ids, random.randrange(1, size))
                cluster.partition(some, [peer_id for peer_id in cluster.ids if peer_id not in some])
            elif choice < 0.93:
                cluster.heal()
            elif choice < 0.96 and len(running) > size // 2 + 1:
                cluster.crash(random.choice(running))
            elif down := [peer_id for peer_id in cluster.ids if peer_id not in running]:
                cluster.start(*down)
        for message_id, least in asked.items():
            for reply in cluster.client_replies.get(message_id, []):
                index, _ = Protocols.READ_INDEX.decode_response(reply)
                answered += index is not None
                assert index is None or index >= least, (number, message_id)
        assert answered, "no read was answered"
