"""Replication and commitment, in virtual time, over whole engines (sections 5.3 and 5.4 of the paper)."""

from __future__ import annotations

import math
from random import Random

import pytest

from support.virtual_cluster import SECRET, WALL_START, Peer, VirtualCluster
from zmqraft.constants import CAPABILITIES
from zmqraft.core.configuration import ClusterConfiguration, ConfigurationHistory
from zmqraft.core.log_terms import LogTerms
from zmqraft.core.messages import AppendReply, SendAppend, VoteReply
from zmqraft.core.raft import Raft
from zmqraft.errors import InvariantError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, Protocols, encode_json, encode_uint, new_request_id
from zmqraft.server.peer_link import PeerLink
from zmqraft.storage import MemoryLog, MemoryPersistence

FIGURE_7_LEADER = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
#: The followers of figure 7: (a) and (b) miss entries, (c) and (d) have some more, (e) and (f) both.
FIGURE_7 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


def entry(index: int, term: int, data: bytes = b"x") -> bytes:
    return LogEntry(index, term, EntryType.STATE, new_request_id(WALL_START), data).to_bytes()


def config_entry(index: int, term: int, peers: object) -> bytes:
    return LogEntry(index, term, EntryType.CONFIG, new_request_id(WALL_START), encode_json(peers)).to_bytes()


def append(term: int, prev_index: int, prev_term: int, commit: int, *entries: bytes, leader: str = "2") -> list[bytes]:
    return Protocols.APPEND_ENTRIES.encode_request(
        b"+", SECRET, leader, term, prev_index, prev_term, commit, list(entries)
    )


class Follower:
    """Peer 1 of three, spoken to by hand as leader 2."""

    def __init__(self, *terms: int, term: int | None = None) -> None:
        self.cluster = VirtualCluster(3)
        self.peer = self.cluster.peers["1"]
        self.peer.set_log(*terms, term=term)
        self.cluster.start("1")
        self.cluster.run(0.0)
        self.message_id = 0

    def send(
        self, frames: list[bytes], message_id: int | None = None, identity: bytes = b"leader"
    ) -> tuple[object, ...] | None:
        """Send one message. Returns the decoded reply to it, None when there was none."""
        if message_id is None:
            self.message_id += 1
            message_id = self.message_id
        key = encode_uint(message_id)
        before = len(self.cluster.client_replies.get(key, []))
        self.cluster.receive(self.peer, [identity, key, *frames])
        self.cluster.run(0.001)
        replies = self.cluster.client_replies.get(key, [])
        return Protocols.APPEND_ENTRIES.decode_response(replies[-1]) if len(replies) > before else None

    @property
    def commit_index(self) -> int:
        return self.peer.running.raft.commit_index


def check_logs_are_equal(cluster: VirtualCluster) -> None:
    logs = [peer.entries() for peer in cluster.peers.values()]
    assert all(log == logs[0] for log in logs)


@pytest.mark.parametrize("name", FIGURE_7)
def test_every_follower_of_figure_7_is_repaired(name: str) -> None:
    """Figure 7, section 5.3: the leader of term 8 makes the follower's log its own."""
    cluster = VirtualCluster(3)
    cluster.peers["1"].set_log(*FIGURE_7_LEADER, term=7)
    good = cluster.peers["1"].entries()
    cluster.peers["2"].put_log(good, term=7)
    terms = FIGURE_7[name]
    shared = sum(a == b for a, b in zip(terms, FIGURE_7_LEADER, strict=False))
    other = [
        LogEntry(index, term, EntryType.STATE, new_request_id(WALL_START), b"other")
        for index, term in enumerate(terms[shared:], shared + 1)
    ]
    follower = cluster.peers["3"]
    follower.put_log(good[:shared] + other, term=7)
    assert follower.terms() == list(terms)
    cluster.start()
    raft = cluster.peers["1"].running.raft
    raft.become_candidate(cluster.now)
    assert raft.current_term == 8
    cluster.run_until(lambda: cluster.peers["1"].role == "leader")
    cluster.run_until(lambda: raft.commit_index == 11)
    cluster.run(0.5)
    assert cluster.leaders == [cluster.peers["1"]]
    assert follower.terms() == [*FIGURE_7_LEADER, 8]
    check_logs_are_equal(cluster)
    assert [len(peer.applied) for peer in cluster.peers.values()] == [11, 11, 11]


def test_figure_8_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """Figure 8, section 5.4.2; FAULTS 8. S1 to S5 are peers 1 to 5."""
    cluster = VirtualCluster(5)
    for peer_id, terms in {"1": (1, 2), "2": (1, 2), "3": (1,), "4": (1,), "5": (1, 3)}.items():
        cluster.peers[peer_id].set_log(*terms, term=3)
    cluster.start()
    # (c): S1 leads in term 4 and reaches S2 and S3, but its own entry of term 4 only itself.
    cluster.partition(["1", "2", "3"])
    leader = cluster.peers["1"].running.raft
    leader.become_candidate(cluster.now)
    cluster._soon(cluster.peers["1"])
    cluster.run_until(lambda: leader.is_leader)
    # Entry 2 of term 2 gets to S3, then the links are cut before the entry of term 4 is acknowledged.
    cluster.run_until(lambda: cluster.peers["3"].log.last_index >= 2)
    cluster.partition()
    cluster.run_until(lambda: not leader.is_leader)
    assert [cluster.peers[p].log.term_at(2) for p in "123"] == [2, 2, 2]
    assert leader.commit_index <= 1
    # (d): S5 is elected by S3 and S4, and overwrites entry 2, although it is on a majority.
    assert cluster.peers["3"].log.last_term == 2
    cluster.partition(["3", "4", "5"])
    cluster.run_until(lambda: cluster.peers["3"].log.term_at(2) == 3)
    assert [cluster.peers[p].failure for p in cluster.ids] == [None] * 5


def test_figure_8_by_hand() -> None:
    """The leader's rule alone: with a majority on index 2 of term 2, nothing commits before an entry of term 4 does."""
    cluster = VirtualCluster(3)
    cluster.peers["1"].set_log(1, 2, term=3)
    cluster.start("1")
    cluster.run(0.0)
    peer = cluster.peers["1"]
    raft = peer.running.raft
    raft.become_candidate(cluster.now)
    cluster._soon(peer)
    cluster.run(0.01)
    answer(cluster, peer, "2", Protocols.REQUEST_VOTE.encode_response(4, True))
    assert raft.is_leader
    # Peer 2 refuses the checkpoint at 3 (its log is empty), takes 1, then 2: a majority, of older terms.
    answer(cluster, peer, "2", Protocols.APPEND_ENTRIES.encode_response(4, False, 1))
    answer(cluster, peer, "2", Protocols.APPEND_ENTRIES.encode_response(4, True))
    assert raft.progress["2"].match == 1
    raft.progress["2"].match = 2
    raft.log_synced()
    assert raft.commit_index == 0
    answer(cluster, peer, "2", Protocols.APPEND_ENTRIES.encode_response(4, True))
    assert raft.progress["2"].match == 3
    assert raft.commit_index == 3


def test_the_leaders_own_disk_counts_only_when_it_is_synced() -> None:
    """Figure 2 and 10.2.1 of the thesis; FAULTS 19: one follower and the leader's memory are no majority."""
    raft = Raft(
        "1",
        configurations=ConfigurationHistory(ClusterConfiguration((("1", "a"), ("2", "b"), ("3", "c")))),
        log=LogTerms(),
        current_term=0,
        voted_for=None,
        commit_index=0,
        now=0.0,
        random=Random(1),
    )
    raft.become_candidate(0.0)
    raft.step_vote_reply("2", VoteReply(1, True), 0.0)
    raft.take_log_effects()
    message = raft.message_to("2", 0.0)
    assert isinstance(message, SendAppend)
    raft.append_sent("2", message, message.last_index)
    raft.step_append_reply("2", AppendReply(1, True), 0.0)
    assert (raft.progress["2"].match, raft.commit_index) == (1, 0)
    raft.log_synced()
    assert raft.commit_index == 1


def requests(cluster: VirtualCluster, source: str, target: str) -> list[list[bytes]]:
    """The vote requests and appends that one peer has sent to another."""
    return [frames for *pair, frames in cluster.sent if pair == [source, target] and frames[1] in (b"?", b"+")]


def appends(cluster: VirtualCluster) -> list[list[int]]:
    """The sizes of the entries of every append that was sent with some."""
    return [[len(frame) for frame in frames[8:]] for *_, frames in cluster.sent if frames[1] == b"+" and frames[8:]]


def answer(cluster: VirtualCluster, peer: Peer, other: str, reply: list[bytes]) -> None:
    """Answer what the peer last sent to another one, and give it a turn."""
    frames = requests(cluster, peer.id, other)[-1]
    peer.running.receive_reply(other, [frames[0], *reply], cluster.now)
    cluster._soon(peer)
    cluster.run(0.001)


def test_a_new_leader_appends_a_checkpoint_that_commits_what_was_there() -> None:
    """SPEC section 2, difference 4; FAULTS W9."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.run(0.1)
    assert [entry.is_checkpoint for entry in leader.entries()] == [True]
    assert leader.running.raft.commit_index == 1


def test_entries_reach_everybody_in_order() -> None:
    """Section 5.3: every log is the leader's, and committed entries are applied in its order."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    ids = [cluster.update(leader.id, b"%d" % number) for number in range(500)]
    cluster.run_until(lambda: all(cluster.committed(request_id) for request_id in ids))
    cluster.run(0.5)
    for peer in cluster.peers.values():
        assert [entry.data for entry in peer.applied if entry.is_state] == [b"%d" % number for number in range(500)]
    assert [cluster.committed(request_id) for request_id in ids] == list(range(2, 502))


def test_appends_carry_about_64_kib_and_at_least_one_entry() -> None:
    """SPEC section 2, "Between peers": peer_msg_data_size."""
    cluster = VirtualCluster(3)
    cluster.foreign = set(cluster.ids)
    cluster.start()
    leader = cluster.leader()
    cluster.commit(b"first")
    del cluster.sent[:]
    sizes = [1000] * 200 + [70_000, 70_000]
    ids = [cluster.update(leader.id, b"x" * size) for size in sizes]
    cluster.run_until(lambda: all(cluster.committed(request_id) for request_id in ids))
    carried = appends(cluster)
    assert carried
    assert all(sum(frames) <= 65536 or len(frames) == 1 for frames in carried)
    assert max(map(len, carried)) > 50


def test_a_peer_of_ours_gets_a_whole_batch_in_one_message() -> None:
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.commit(b"first")
    cluster.run(0.5)
    del cluster.sent[:]
    ids = [cluster.update(leader.id, bytes(1000)) for _ in range(2000)]
    cluster.run_until(lambda: all(cluster.committed(request_id) for request_id in ids))
    carried = appends(cluster)
    assert len(carried) == 2 * 2
    assert 900_000 < sum(carried[0]) <= 1024 * 1024


def test_a_peer_that_does_not_say_that_it_is_ours_is_asked_less_and_less() -> None:
    cluster = VirtualCluster(2)
    cluster.foreign = {"1", "2"}
    cluster.start()
    cluster.leader()
    cluster.run(1000.0)
    questions = [frames for *_, frames in cluster.sent if frames[1] == CAPABILITIES]
    assert 15 < len(questions) < 35
    assert {frames[0] for frames in questions} == {b"\xff\xff\xff\xff"}


def test_after_a_silence_a_peer_counts_as_foreign_until_it_says_otherwise() -> None:
    """Another program may have been started under the same id."""
    cluster = VirtualCluster(2, election_timeout_min=1000, election_timeout_max=2000)
    cluster.start()
    leader = cluster.leader()
    other = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
    cluster.run(1.0)
    assert leader.running._calls._append_sizes == {other: 1024 * 1024}
    cluster.partition()
    cluster.run(0.25)
    assert leader.role == "leader"
    assert leader.running._calls._append_sizes == {}
    cluster.heal()
    cluster.run(1.0)
    assert leader.running._calls._append_sizes == {other: 1024 * 1024}


def test_the_leader_sends_one_entry_at_a_time_while_the_match_is_not_known() -> None:
    """Section 5.3: nextIndex starts behind the log and goes back; SPEC section 2, "Between peers"."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    others = [peer_id for peer_id in cluster.ids if peer_id != leader.id]
    cluster.partition([leader.id, others[0]])
    cluster.run(0.0)
    for number in range(20):
        cluster.update(leader.id, b"%d" % number)
    cluster.run(1.0)
    del cluster.sent[:]
    cluster.heal()
    cluster.run(1.0)
    carried = [len(frames[8:]) for _, target, frames in cluster.sent if target == others[1] and frames[1] == b"+"]
    first_many = next(position for position, count in enumerate(carried) if count > 1)
    assert all(count <= 1 for count in carried[:first_many])
    check_logs_are_equal(cluster)


def test_an_isolated_leader_commits_nothing_and_its_entries_go() -> None:
    """Section 5.3: what is not on a majority may be overwritten. Its clients are told: not the leader."""
    cluster = VirtualCluster(3)
    cluster.start()
    old = cluster.leader()
    cluster.commit(b"before")
    cluster.partition([peer_id for peer_id in cluster.ids if peer_id != old.id])
    lost = [cluster.update(old.id, b"lost") for _ in range(5)]
    cluster.run_until(lambda: old.role != "leader")
    new = cluster.leader()
    assert new is not old
    kept = cluster.commit(b"kept")
    cluster.run(1.0)
    assert all(cluster.result(request_id) == (False, None) for request_id in lost)
    cluster.heal()
    cluster.run(2.0)
    check_logs_are_equal(cluster)
    assert old.entries()[kept - 1].data == b"kept"
    assert b"lost" not in {entry.data for entry in old.applied}


class TestFollower:
    """Figure 2, AppendEntries, receiver implementation, message by message."""

    def test_refuses_a_stale_term_and_says_its_own(self) -> None:
        """AppendEntries 1 (section 5.1)."""
        follower = Follower(1, 2, term=5)
        assert follower.send(append(4, 2, 2, 2)) == (5, False, None, None)
        assert follower.commit_index == 0

    def test_says_where_its_log_ends_when_it_is_shorter(self) -> None:
        """AppendEntries 2 (section 5.3); SPEC section 2, "Between peers"."""
        follower = Follower(1, 1)
        assert follower.send(append(2, 7, 2, 0, entry(8, 2))) == (2, False, 3, None)
        assert follower.peer.terms() == [1, 1]

    def test_says_where_to_go_on_after_a_conflict(self) -> None:
        """Section 5.3, the optimization: skip the whole term, but nothing that is committed."""
        follower = Follower(1, 2, 2, 2)
        assert follower.send(append(5, 4, 4, 0)) == (5, False, 2, None)
        assert follower.send(append(5, 2, 2, 2)) == (5, True, None, None)
        assert follower.send(append(5, 4, 4, 2)) == (5, False, 3, None)

    def test_cuts_only_at_a_conflict(self) -> None:
        """FAULTS 9 and W2: an empty or an older append must not cut entries that may be acknowledged."""
        follower = Follower(term=1)
        entries = [entry(index, 1, b"%d" % index) for index in range(1, 6)]
        assert follower.send(append(1, 0, 0, 0, *entries)) == (1, True, None, None)
        assert follower.send(append(1, 0, 0, 0)) == (1, True, None, None)
        assert follower.send(append(1, 1, 1, 0, *entries[1:3])) == (1, True, None, None)
        assert [each.data for each in follower.peer.entries()] == [b"1", b"2", b"3", b"4", b"5"]
        assert follower.send(append(2, 2, 1, 0, entry(3, 2, b"new"))) == (2, True, None, None)
        assert [each.data for each in follower.peer.entries()] == [b"1", b"2", b"new"]

    def test_commits_no_further_than_the_last_entry_it_compared(self) -> None:
        """FAULTS 10 and W2: the suffix may be another leader's."""
        follower = Follower(1, 1, 1)
        assert follower.send(append(2, 1, 1, 9)) == (2, True, None, None)
        assert follower.commit_index == 1

    def test_the_commit_index_never_goes_back(self) -> None:
        """AppendEntries 5 (section 5.3); "increases monotonically" in the state of figure 2."""
        follower = Follower(1, 1, 1)
        follower.send(append(2, 3, 1, 3))
        follower.send(append(2, 3, 1, 1))
        assert follower.commit_index == 3

    def test_an_append_below_the_commit_index_is_answered(self) -> None:
        """FAULTS W3: zmq-raft stops here; the committed prefix is skipped, the rest is compared."""
        follower = Follower(1, 1, 1)
        stored = follower.peer.entries()
        follower.send(append(1, 3, 1, 3))
        repeated = [each.to_bytes() for each in stored[1:]]
        assert follower.send(append(1, 1, 1, 3, *repeated, entry(4, 1, b"new"))) == (1, True, None, None)
        assert [each.data for each in follower.peer.entries()][-1] == b"new"

    def test_a_conflict_with_what_is_committed_stops_the_peer(self) -> None:
        """Section 5.4.3, state machine safety: it cannot happen, so going on could only lose entries."""
        follower = Follower(1, 1, 1)
        follower.send(append(1, 3, 1, 3))
        assert follower.send(append(2, 1, 1, 3, entry(2, 2))) is None
        assert "committed here" in str(follower.peer.failure)
        assert follower.peer.terms() == [1, 1, 1]

    def test_a_second_leader_in_a_term_stops_the_peer(self) -> None:
        """FAULTS W25."""
        follower = Follower(1)
        follower.send(append(3, 1, 1, 0, leader="2"))
        assert follower.send(append(3, 1, 1, 0, leader="3")) is None
        assert "two leaders in term 3" in str(follower.peer.failure)

    def test_a_repetition_gets_the_stored_reply(self) -> None:
        """SPEC section 2, "Between peers": the same identity and id are not worked on again."""
        follower = Follower(1)
        first = append(1, 1, 1, 0, entry(2, 1, b"first"))
        assert follower.send(first, 7) == (1, True, None, None)
        # Worked on anew it would be refused: there is no entry 9.
        assert follower.send(append(1, 9, 1, 0), 7) == (1, True, None, None)
        assert [each.data for each in follower.peer.entries()][-1] == b"first"
        # Under another identity it is a new message, and harmless.
        assert follower.send(first, 7, identity=b"again") == (1, True, None, None)
        assert follower.peer.terms() == [1, 1]

    def test_an_acknowledgement_leaves_only_when_the_entries_are_synced(self) -> None:
        """SPEC section 2, difference 5."""
        follower = Follower(1)
        engine = follower.peer.running
        now, wall = follower.cluster.now, follower.cluster.wall
        engine.receive([b"leader", b"\x09", *append(1, 1, 1, 0, entry(2, 1))], now, wall)
        engine.begin_turn(now, wall)
        with pytest.raises(InvariantError, match="synced"):
            engine.take_replies()
        assert follower.peer.log.crash().last_index == 1
        follower.peer.log = engine._log  # the same, still unsynced

    def test_a_configuration_counts_at_once_and_goes_with_its_entry(self) -> None:
        """Section 6; FAULTS 30 and W7: also two at once, and after a restart."""
        follower = Follower(1)
        peers = [[peer_id, url] for peer_id, url in follower.peer.running.raft.configuration.urls.items()]
        four, five = (
            [*peers, *([str(n), f"tcp://127.0.0.1:{9000 + n}"] for n in range(4, last + 1))] for last in (4, 5)
        )
        configs = [config_entry(2, 1, four), config_entry(3, 1, five)]
        follower.send(append(1, 1, 1, 1, *configs))
        assert set(follower.peer.running.raft.configuration.urls) == set("12345")
        assert set(follower.peer.running.link_urls) == set("2345")
        assert (follower.peer.persistence.peers_index, len(follower.peer.persistence.peers or ())) == (3, 5)
        assert follower.send(append(2, 1, 1, 1, entry(2, 2), leader="3")) == (2, True, None, None)
        assert set(follower.peer.running.raft.configuration.urls) == set("123")
        assert set(follower.peer.running.link_urls) == set("23")
        assert (follower.peer.persistence.peers_index, len(follower.peer.persistence.peers or ())) == (None, 3)
        follower.cluster.crash("1")
        follower.cluster.start("1")
        assert set(follower.peer.running.raft.configuration.urls) == set("123")

    def test_the_first_configuration_is_stored_so_that_editing_a_file_changes_nothing(self) -> None:
        """Only the log changes the members: a file that is edited on one peer must not give it another quorum."""
        follower = Follower(1)
        follower.cluster.crash("1")
        follower.cluster.ids.append("4")
        follower.cluster.start("1")
        assert set(follower.peer.running.raft.configuration.urls) == set("123")

    def test_a_configuration_that_does_not_decode_is_no_entry(self) -> None:
        follower = Follower(1)
        assert follower.send(append(1, 1, 1, 1, config_entry(2, 1, "nonsense"))) is None
        assert follower.peer.terms() == [1]

    def test_a_failed_sync_is_not_acknowledged(self) -> None:
        follower = Follower(1)
        follower.peer.log.fail(OSError("no space left"))
        assert follower.send(append(1, 1, 1, 0, entry(2, 1))) is None
        assert "no space left" in str(follower.peer.failure)

    @pytest.mark.parametrize(
        "frames",
        [
            append(1, 1, 2, 0),
            append(1, 0, 1, 0),
            append(1, 1, 1, 0, entry(2, 2)),
            append(3, 1, 1, 0, entry(2, 3), entry(3, 2)),
            append(3, 2**53 - 1, 1, 0, entry(2, 3)),
            append(2**52 + 1, 1, 1, 0),
            Protocols.REQUEST_VOTE.encode_request(b"?", SECRET, "2", 2**53 - 1, 1, 1),
            append(1, 1, 1, 0, leader="4"),
            append(1, 1, 1, 0, leader="1"),
        ],
        ids=[
            "previous term",
            "index 0",
            "entry term",
            "terms go back",
            "index",
            "term",
            "vote term",
            "unknown",
            "itself",
        ],
    )
    def test_an_impossible_message_is_dropped(self, frames: list[bytes]) -> None:
        follower = Follower(1)
        assert follower.send(frames) is None
        assert follower.peer.running.dropped["malformed message"] == 1
        assert follower.peer.terms() == [1]

    @pytest.mark.parametrize("message_id", [b"", b"\1\2\3\4", bytes(12)])
    def test_the_id_of_a_peer_message_has_1_to_3_bytes(self, message_id: bytes) -> None:
        follower = Follower(1)
        follower.cluster.receive(follower.peer, [b"leader", message_id, *append(1, 1, 1, 1)])
        assert follower.peer.running.dropped["malformed message"] == 1
        assert follower.commit_index == 0


def test_a_stored_reply_belongs_to_a_term() -> None:
    """Else a later request under the same identity and message id would get it."""
    follower = Follower(1)
    assert follower.send(append(1, 1, 1, 0, entry(2, 1)), 7) == (1, True, None, None)
    assert follower.send(append(3, 2, 1, 0, entry(3, 3)), 7) == (3, True, None, None)
    assert follower.peer.terms() == [1, 1, 3]


class TestLeader:
    """Figure 2, rules for leaders, towards replies that are late, repeated, or out of order."""

    def test_a_reply_counts_once(self) -> None:
        """Section 5.3; FAULTS 11, 13 and 16: match indexes never go back, whatever comes again, in whatever order."""
        cluster = VirtualCluster(3)
        replies: list[tuple[str, list[bytes]]] = []

        def remember(source: str, frames: list[bytes]) -> list[bytes]:
            replies.append((source, frames))
            return frames

        cluster.peers["2"].set_log(1, 1, 1, 2, 2)
        cluster.peers["3"].set_log(1, 1)
        cluster.change_reply = remember
        cluster.start()
        leader = cluster.leader()
        cluster.commit(b"x")
        cluster.run(0.5)
        assert any(frames[2:3] == [b""] for source, frames in replies if source != leader.id), "nothing was refused"

        def progress() -> dict[str, tuple[int, int]]:
            return {each: (of.match, of.next) for each, of in leader.running.raft.progress.items()}

        before, term = progress(), leader.term
        dropped = leader.running.dropped["late reply"]
        again = [(source, frames) for source, frames in replies if source != leader.id and len(frames[0]) <= 3]
        for source, frames in [*again, *reversed(again)]:
            leader.running.receive_reply(source, frames, cluster.now)
            assert progress() == before
        assert leader.running.dropped["late reply"] == dropped + 2 * len(again)
        # Also while something else is under way.
        cluster.partition()
        cluster.update(leader.id, b"y")
        cluster.run(0.0)
        before, last_index = progress(), leader.log.last_index
        assert {following for _, following in before.values()} == {last_index + 1}
        for source, frames in [*again, *reversed(again)]:
            leader.running.receive_reply(source, frames, cluster.now)
            assert progress() == before
        cluster.heal()
        cluster.run(0.5)
        assert (cluster.leader(), leader.term) == (leader, term)

    def test_a_success_of_an_older_term_is_the_answer_to_something_else(self) -> None:
        """Whoever got the append is in its term, so this is no acknowledgement of it (found by random changes of the
        configuration: a link that was made anew under the same identity and message id)."""
        cluster = VirtualCluster(3)
        cluster.start()
        leader = cluster.leader()
        other = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
        cluster.crash(leader.id)
        cluster.start(leader.id)
        cluster.run_until(lambda: leader.term > 1)
        leader = cluster.leader()
        other = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
        cluster.commit(b"x")
        cluster.run(0.5)

        def stale(source: str, frames: list[bytes]) -> list[bytes]:
            if source == other and len(frames[0]) <= 3:
                return [frames[0], b"\1", b"\1"]
            return frames

        cluster.change_reply = stale
        match = leader.running.raft.progress[other].match
        index = cluster.commit(b"y")
        cluster.run(0.2)
        assert leader.running.raft.progress[other].match == match < index
        cluster.change_reply = None
        cluster.run_until(lambda: leader.running.raft.progress[other].match >= index)

    def test_nothing_is_known_of_followers_in_a_new_term(self) -> None:
        """Figure 2, "reinitialized after election"; FAULTS 12: a follower's log may have been cut in between."""
        cluster = VirtualCluster(3)
        cluster.start()
        leader = cluster.leader()
        cluster.commit(b"x")
        raft = leader.running.raft
        assert {of.match for of in raft.progress.values()} != {0}
        raft.become_follower(raft.current_term + 1, None, cluster.now)
        raft.become_candidate(cluster.now)
        for peer_id in cluster.ids:
            if peer_id != leader.id:
                raft.step_vote_reply(peer_id, VoteReply(raft.current_term, True), cluster.now)
        assert raft.is_leader
        assert {(of.match, of.next) for of in raft.progress.values()} == {(0, raft.log.last_index)}


class TestLinks:
    """SPEC section 2, "Between peers": one request outstanding, repeated with the same id."""

    def test_repeats_the_same_message_until_it_is_answered(self) -> None:
        cluster = VirtualCluster(2)
        cluster.start()
        leader = cluster.leader()
        other = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
        cluster.run(0.5)
        cluster.crash(other)
        del cluster.sent[:]
        cluster.update(leader.id, b"data")
        cluster.run(0.28)
        messages = requests(cluster, leader.id, other)
        assert 2 <= len(messages) <= 5
        assert messages[-1] == messages[-2]

    def test_ids_rise_by_one_and_wrap_to_0(self) -> None:
        link = PeerLink()
        entries = EntryBatch.empty(1)
        assert link.request([b"?"], entries, 0.05, 0.0) == ([b"\1", b"?"], entries)
        assert link.deadline == 0.05
        assert link.resend(0.06) == ([b"\1", b"?"], entries)
        assert link.deadline == pytest.approx(0.11)
        assert link.answered_by(b"\1") == 1
        assert link.give_up()
        assert not link.give_up()
        assert link.answered_by(b"\1") == 0
        assert link.deadline == math.inf
        for next_id, expected in ((2, b"\2"), (2**24 - 1, b"\xff\xff\xff"), (0, b"\0"), (1, b"\1")):
            link._next_id = next_id
            assert link.request([b"?"], None, 0.05, 0.0)[0][0] == expected
        assert link._next_id == 2

    def test_a_reply_answers_the_requests_before_it_as_well(self) -> None:
        link = PeerLink()
        for number in range(3):
            link.request([b"+"], None, 0.1, number / 100)
        assert [link.answered_by(encode_uint(each)) for each in (0, 1, 2, 3, 4)] == [0, 1, 2, 3, 0]
        link.close_requests(2, 0.05)
        assert len(link.outstanding) == 1
        assert link.deadline == pytest.approx(0.15)
        assert link.answered_by(b"\2") == 0
        assert link.resend(0.2)[0] == [b"\3", b"+"]
        link.close_requests(1, 0.25)
        assert link.deadline == math.inf

    def test_an_idle_leader_sends_a_heartbeat_70_ms_after_the_last_reply(self) -> None:
        """Section 5.2: heartbeats prevent elections."""
        cluster = VirtualCluster(2, delay=0.0)
        cluster.start()
        cluster.leader()
        cluster.run(1.0)
        before = len(cluster.sent)
        cluster.run(7.0)
        assert len(cluster.sent) - before == pytest.approx(100, abs=3)

    def test_the_commit_index_is_told_at_once(self) -> None:
        """Section 5.3: leaderCommit goes along with every AppendEntries."""
        cluster = VirtualCluster(3)
        cluster.start()
        leader = cluster.leader()
        cluster.run(1.0)
        index = cluster.commit(b"x")
        cluster.run(0.005)
        assert all(peer.running.raft.commit_index == index for peer in cluster.peers.values())
        assert leader.running.last_applied == index

    def test_requests_are_dropped_when_the_role_changes(self) -> None:
        cluster = VirtualCluster(3)
        cluster.start("1")
        cluster.run_until(lambda: cluster.peers["1"].role == "candidate")
        cluster.run(0.01)
        engine = cluster.peers["1"].running
        engine.receive([b"p", b"\1", *append(99, 0, 0, 0)], cluster.now, cluster.wall)
        resets = [action.peer_id for action in engine.begin_turn(cluster.now, cluster.wall) if action.message is None]
        assert sorted(resets) == ["2", "3"]


def test_a_follower_that_has_lost_its_data_is_not_asked_in_a_loop(caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 28: it cannot be repaired in the leader's term. Said once, and only heartbeats go to it."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.commit(b"before")
    wiped, other = (peer for peer in cluster.peers.values() if peer is not leader)
    cluster.crash(wiped.id)
    wiped.log, wiped.persistence = MemoryLog(), MemoryPersistence()
    cluster.start(wiped.id)
    cluster.run(1.0)
    cluster.commit(b"after")
    del cluster.sent[:]
    cluster.run(1.0)
    assert len([message for source, target, message in cluster.sent if target == wiped.id]) <= 2 * 1.0 / 0.07
    said = [record.getMessage() for record in caplog.records if "it has lost its data" in record.getMessage()]
    assert len(said) == 1
    assert f"peer '{wiped.id}' denies entries up to" in said[0]
    assert (wiped.entries(), cluster.leader()) == ([], leader)
    assert leader.entries() == other.entries()


@pytest.mark.parametrize("seed", range(30))
def test_random_crashes_and_partitions_lose_nothing(seed: int) -> None:
    """Every acknowledged update is in every log, once, at the acknowledged index; logs never part."""
    cluster = VirtualCluster(3 + 2 * (seed % 2), seed, delay=0.005)
    random = Random(seed)
    cluster.start()
    ids: list[bytes] = []
    for step in range(60):
        fault = random.choice(("none", "none", "crash", "start", "partition", "heal"))
        down = [peer.id for peer in cluster.peers.values() if peer.engine is None]
        if fault == "crash" and len(down) < len(cluster.ids) // 2:
            cluster.crash(random.choice([peer_id for peer_id in cluster.ids if peer_id not in down]))
        elif fault == "start" and down:
            cluster.start(random.choice(down))
        elif fault == "partition":
            shuffled = random.sample(cluster.ids, len(cluster.ids))
            cut = random.randint(1, len(shuffled) - 1)
            cluster.partition(shuffled[:cut], shuffled[cut:])
        elif fault == "heal":
            cluster.heal()
        for peer in cluster.leaders:
            ids += [cluster.update(peer.id, b"%d" % (step * 10 + number)) for number in range(3)]
        cluster.run(random.choice((0.01, 0.1, 0.5)))
    cluster.heal()
    cluster.start(*(peer.id for peer in cluster.peers.values() if peer.engine is None))
    last = cluster.commit(b"the end")
    cluster.run(2.0)
    assert [peer.failure for peer in cluster.peers.values()] == [None] * len(cluster.ids)
    check_logs_are_equal(cluster)
    log = cluster.peers["1"].entries()
    assert len({entry.request_id for entry in log if entry.is_state}) == sum(entry.is_state for entry in log)
    acknowledged = {request_id: cluster.committed(request_id) for request_id in ids if cluster.committed(request_id)}
    assert acknowledged
    for request_id, index in acknowledged.items():
        assert log[index - 1].request_id == request_id  # type: ignore[operator]
    for peer in cluster.peers.values():
        assert peer.applied == log[: len(peer.applied)]
        assert len(peer.applied) >= last
