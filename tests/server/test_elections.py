"""Elections, in virtual time, over whole engines (section 5.2 and 5.4.1 of the paper, 4.2.3 and 6.2 of the thesis)."""

from __future__ import annotations

import pytest

from support.virtual_cluster import SECRET, VirtualCluster
from zmqraft.constants import TERM_JUMP_MAX
from zmqraft.core.messages import AppendReply, SendAppend
from zmqraft.errors import InvariantError
from zmqraft.protocol import Protocols, encode_uint


def vote_request(candidate: str, term: int, last_index: int = 0, last_term: int = 0) -> list[bytes]:
    return Protocols.REQUEST_VOTE.encode_request(b"?", SECRET, candidate, term, last_index, last_term)


def vote_replies(cluster: VirtualCluster, message_id: int) -> list[tuple[int, bool]]:
    """Replies to `VirtualCluster.request` with this id."""
    replies = cluster.client_replies.get(encode_uint(message_id), [])
    return [Protocols.REQUEST_VOTE.decode_response(frames) for frames in replies]  # type: ignore[misc]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("seed", range(5))
def test_one_leader_is_elected_and_stays(size: int, seed: int) -> None:
    """Section 5.2, and figure 3: at most one leader in a term, and no election while it is heard."""
    cluster = VirtualCluster(size, seed)
    cluster.start()
    leader = cluster.leader()
    term = leader.term
    cluster.run(20.0)
    assert cluster.leaders == [leader]
    assert {peer.term for peer in cluster.peers.values()} == {term}
    assert all(peer.running.raft.leader_id == leader.id for peer in cluster.peers.values())


def test_a_peer_alone_leads_at_once_in_the_next_term_and_stores_it() -> None:
    """SPEC section 2, difference 7."""
    cluster = VirtualCluster(1)
    cluster.peers["1"].persistence.update_vote(4, None)
    cluster.start()
    cluster.run(0.0)
    peer = cluster.peers["1"]
    assert (peer.role, peer.term) == ("leader", 5)
    assert (peer.persistence.current_term, peer.persistence.voted_for) == (5, "1")


@pytest.mark.parametrize("seed", range(10))
def test_the_others_elect_a_leader_when_it_is_gone(seed: int) -> None:
    """Section 5.2: a follower that hears nothing for the election timeout stands for election, in a new term."""
    cluster = VirtualCluster(3, seed)
    cluster.start()
    first = cluster.leader()
    cluster.crash(first.id)
    second = cluster.leader()
    assert second.id != first.id
    assert second.term > 1


def test_a_majority_is_needed() -> None:
    """Section 5.2: a candidate leads with the votes of a majority of the whole cluster, whoever runs."""
    cluster = VirtualCluster(5)
    cluster.start("1", "2")
    cluster.run(20.0)
    assert cluster.leaders == []
    cluster.start("3")
    assert cluster.leader().id in "123"


def test_a_vote_is_on_disk_before_it_is_told() -> None:
    """FAULTS W1: also the repetition of the request must not be answered before the vote is durable."""
    cluster = VirtualCluster(3)
    cluster.start("1")
    peer = cluster.peers["1"]
    cluster.run(0.0)
    peer.running.receive([b"client", b"\1", *vote_request("2", 7)], cluster.now, cluster.wall)
    peer.running.receive([b"client", b"\1", *vote_request("2", 7)], cluster.now, cluster.wall)
    assert peer.running.raft.voted_for == "2"
    assert peer.persistence.voted_for is None
    assert peer.running.begin_turn(cluster.now, cluster.wall) == []
    with pytest.raises(InvariantError):
        peer.running.take_replies()
    assert (peer.persistence.current_term, peer.persistence.voted_for) == (7, "2")
    peer.running.finish_turn(cluster.now)
    assert len(peer.running.take_replies()) == 2


def test_a_vote_that_cannot_be_stored_is_not_told() -> None:
    """Figure 2, "updated on stable storage before responding": after a failed write nothing is promised."""
    cluster = VirtualCluster(3)
    cluster.start("1")
    cluster.run(0.0)
    peer = cluster.peers["1"]
    peer.persistence.fail(OSError("the disk is gone"))
    cluster.request("1", b"\1", vote_request("2", 7))
    cluster.run(0.01)
    assert vote_replies(cluster, 1) == []
    assert "the disk is gone" in str(peer.failure)


def test_one_vote_in_a_term_also_over_a_restart() -> None:
    """Section 5.2; FAULTS 1."""
    cluster = VirtualCluster(3)
    cluster.start("1")
    cluster.run(0.0)
    cluster.request("1", b"\1", vote_request("2", 5))
    cluster.run(0.01)
    cluster.crash("1")
    cluster.start("1")
    cluster.request("1", b"\2", vote_request("3", 5))
    cluster.request("1", b"\3", vote_request("2", 5))
    cluster.run(0.01)
    assert vote_replies(cluster, 1) == [(5, True)]
    assert vote_replies(cluster, 2) == [(5, False)]
    assert vote_replies(cluster, 3) == [(5, True)]


def test_a_vote_outlives_an_append_in_the_same_term() -> None:
    """FAULTS 2: the vote is not erased when the term's leader is heard."""
    cluster = VirtualCluster(3)
    cluster.start("1")
    cluster.run(0.0)
    cluster.request("1", b"\1", vote_request("2", 5))
    cluster.run(0.01)
    append = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, "2", 5, 0, 0, 0)
    cluster.request("1", b"\2", append)
    cluster.run(0.21)
    cluster.request("1", b"\3", vote_request("3", 5))
    cluster.run(0.01)
    assert vote_replies(cluster, 3)[0][1] is False


def test_a_candidate_remembers_its_own_vote_over_a_restart() -> None:
    """FAULTS 4."""
    cluster = VirtualCluster(3)
    cluster.start("1")
    cluster.run_until(lambda: cluster.peers["1"].role == "candidate")
    term = cluster.peers["1"].term
    cluster.crash("1")
    cluster.start("1")
    cluster.request("1", b"\1", vote_request("2", term))
    cluster.run(0.01)
    assert vote_replies(cluster, 1) == [(term, False)]


@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [(3, 2, True), (2, 2, False), (9, 1, False), (1, 3, True), (4, 2, True), (0, 0, False)],
)
def test_only_an_up_to_date_candidate_gets_the_vote(last_index: int, last_term: int, granted: bool) -> None:
    """Section 5.4.1: the later last term wins, and with the same last term the longer log."""
    cluster = VirtualCluster(3)
    cluster.peers["1"].set_log(1, 1, 2)
    cluster.start("1")
    cluster.run(0.0)
    cluster.request("1", b"\1", vote_request("2", 9, last_index, last_term))
    cluster.run(0.01)
    assert vote_replies(cluster, 1) == [(9, granted)]


def test_a_refusal_states_the_new_term_and_does_not_restart_the_timer() -> None:
    """FAULTS 6, and W12: only a granted vote keeps the voter from standing itself."""
    cluster = VirtualCluster(3)
    cluster.peers["1"].set_log(1, 1, 2)
    cluster.start("1")
    cluster.run(0.0)
    peer = cluster.peers["1"]
    deadline = peer.running.raft.next_deadline(cluster.now)
    cluster.request("1", b"\1", vote_request("2", 9))
    cluster.run(0.01)
    assert vote_replies(cluster, 1) == [(9, False)]
    assert peer.running.raft.next_deadline(cluster.now) == deadline
    cluster.request("1", b"\2", vote_request("3", 9, 3, 2))
    cluster.run(0.01)
    assert vote_replies(cluster, 2) == [(9, True)]
    assert peer.running.raft.next_deadline(cluster.now) != deadline


def test_votes_are_refused_while_a_leader_is_heard() -> None:
    """Section 6, last paragraphs: within the minimum election timeout, also by the leader, and without a new term."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.run(1.0)
    candidate = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
    for position, voter in enumerate(cluster.ids, 1):
        if voter != candidate:
            cluster.request(voter, encode_uint(position), vote_request(candidate, 99, 99, 99))
    cluster.run(1.0)
    for position, voter in enumerate(cluster.ids, 1):
        if voter != candidate:
            assert vote_replies(cluster, position) == [(1, False)]
    assert cluster.leaders == [leader]
    assert leader.term == 1


def test_a_candidate_who_is_told_not_now_asks_again() -> None:
    """The refusal of one who still hears a leader is not final: it is asked again when that leader may be gone."""
    # A seed with which the candidate is patient: it must be the repeated request that wins, not another election.
    cluster = VirtualCluster(2, seed=4, election_timeout_max=900)
    cluster.start("1")
    cluster.peers["2"].set_log(1, 1)
    cluster.run(0.0)
    # Peer 1 hears a leader of term 1, peer 2 stands in term 2 at the same moment: it is refused, and then is not.
    cluster.start("2")
    raft = cluster.peers["2"].running.raft
    append = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, "2", 1, 0, 0, 0)
    cluster.request("1", b"\1", append)
    raft.become_candidate(cluster.now)
    term = raft.current_term
    cluster._soon(cluster.peers["2"])
    cluster.run(0.1)
    assert cluster.peers["2"].role == "candidate"
    cluster.run_until(lambda: cluster.peers["2"].role == "leader", 0.2)
    assert cluster.peers["2"].term == term


def test_a_leader_without_a_majority_steps_down() -> None:
    """SPEC section 5, 5: check-quorum, within the maximum election timeout (and a heartbeat)."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.partition([peer_id for peer_id in cluster.ids if peer_id != leader.id])
    cluster.run_until(lambda: leader.role != "leader", 0.3 + 0.07)
    assert leader.running.raft.leader_id is None


def test_the_majority_is_looked_for_with_heartbeats() -> None:
    """SPEC section 5, 5: what an idle leader does costs no turns beside those of its heartbeats."""
    cluster = VirtualCluster(3)
    cluster.start()
    raft = cluster.leader().running.raft
    cluster.run(1.0)
    now = cluster.now
    for progress in raft.progress.values():
        progress.lost()
    for _ in range(100):
        now = raft.next_deadline(now)
        assert any(progress.heartbeat_at <= now for progress in raft.progress.values())
        raft.tick(now)
        for peer_id in raft.progress:
            message = raft.message_to(peer_id, now, takes_notices=True)
            if isinstance(message, SendAppend):
                raft.append_sent(peer_id, message, message.prev_index)
                raft.step_append_reply(peer_id, AppendReply(raft.current_term, True), now + 0.001)
    assert raft.is_leader


def test_an_isolated_peer_does_not_raise_its_term_again_and_again() -> None:
    """SPEC section 2, difference 2: prevent_spiral_elections."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    alone = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
    cluster.partition([peer_id for peer_id in cluster.ids if peer_id != alone])
    cluster.run(30.0)
    assert cluster.peers[alone].term == 2
    cluster.heal()
    cluster.run(3.0)
    assert len(cluster.leaders) == 1
    assert cluster.leaders[0].term <= 3


def test_an_isolated_peer_raises_its_term_when_the_rule_is_off() -> None:
    """Section 5.2 as it stands: without an outcome, a new election in the next term."""
    cluster = VirtualCluster(3, prevent_spiral_elections=False)
    cluster.start("1")
    cluster.run(30.0)
    assert cluster.peers["1"].term > 20


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_against_spirals_does_not_block_elections(seed: int) -> None:
    """FAULTS 44: four peers, one follower is killed, then the leader; the follower with the older term comes back."""
    cluster = VirtualCluster(4, seed)
    cluster.start()
    leader = cluster.leader()
    follower = next(peer for peer in cluster.peers.values() if peer is not leader)
    cluster.crash(follower.id)
    cluster.run(1.0)
    cluster.crash(leader.id)
    cluster.run(5.0)
    assert cluster.leaders == []
    cluster.start(follower.id)
    assert cluster.leader().term >= 2


@pytest.mark.parametrize("hub", ["1", "2", "3"])
@pytest.mark.parametrize("seed", range(5))
def test_a_partial_partition_leaves_a_stable_leader(hub: str, seed: int) -> None:
    """FAULTS 43: two of three peers do not reach each other; the leader has a majority all the same, and stays."""
    cluster = VirtualCluster(3, seed)
    cluster.start()
    leader = cluster.leader()
    term = leader.term
    a, b = (peer_id for peer_id in cluster.ids if peer_id != hub)
    cluster.cut = {(a, b), (b, a)}
    cluster.run(30.0)
    assert (leader.role, leader.term) == ("leader", term)
    assert [peer.role for peer in cluster.peers.values()].count("leader") == 1


def test_a_late_grant_of_an_older_election_does_not_count() -> None:
    """FAULTS 5."""
    cluster = VirtualCluster(3)
    cluster.start("1")
    peer = cluster.peers["1"]
    cluster.run_until(lambda: peer.role == "candidate")
    raft = peer.running.raft
    first_id = cluster.sent[-1][2][0]
    raft.become_candidate(cluster.now)
    cluster._soon(peer)
    cluster.run(0.01)
    peer.running.receive_reply(
        "2", [first_id, *Protocols.REQUEST_VOTE.encode_response(raft.current_term, True)], cluster.now
    )
    assert peer.role == "candidate"
    assert peer.running.dropped["late reply"] == 1


def test_the_first_election_timeout_after_the_start_is_longer() -> None:
    """SPEC section 2, difference 6: 200 to 300 ms, the first one 300 ms longer."""
    for seed in range(20):
        cluster = VirtualCluster(3, seed)
        cluster.start("1")
        raft = cluster.peers["1"].running.raft
        assert 0.5 <= raft.next_deadline(cluster.now) - cluster.now <= 0.6
        raft.become_candidate(cluster.now)
        assert 0.2 <= raft.next_deadline(cluster.now) - cluster.now <= 0.3


def test_a_term_below_the_logs_is_raised_and_its_vote_forgotten() -> None:
    """SPEC section 3, "On start"; FAULTS W27."""
    cluster = VirtualCluster(3)
    cluster.peers["1"].set_log(1, 4, term=4)
    cluster.peers["1"].persistence = type(cluster.peers["1"].persistence)()
    cluster.peers["1"].persistence.update_vote(2, "3")
    cluster.start("1")
    cluster.run(0.0)
    raft = cluster.peers["1"].running.raft
    assert (raft.current_term, raft.voted_for) == (4, None)
    assert (cluster.peers["1"].persistence.current_term, cluster.peers["1"].persistence.voted_for) == (4, None)


@pytest.mark.parametrize("term", [2**52, 2**53 - 1])
def test_one_message_does_not_use_up_the_terms(term: int) -> None:
    """A term from which there is no next one would stop every peer, after each restart again."""
    cluster = VirtualCluster(3)
    cluster.start()
    for _ in range(3):
        leader = cluster.leader()
        cluster.crash(leader.id)
        cluster.run(0.25)
        follower = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
        cluster.request(follower, b"\1", vote_request(leader.id, term))
        cluster.run(0.01)
        cluster.start(leader.id)
        cluster.commit(b"still here")
    assert [peer.failure for peer in cluster.peers.values()] == [None] * 3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("high", ["1", "12", "23"])
def test_peers_that_a_message_has_led_far_away_are_followed(high: str, seed: int) -> None:
    """Else those beyond the term that one may jump to, and those far below, would never take each other's messages."""
    cluster = VirtualCluster(3, seed)
    for peer_id in high:
        cluster.peers[peer_id].put_log([], TERM_JUMP_MAX + 5)
    cluster.start()
    cluster.commit(b"together")
    cluster.run_until(lambda: {peer.term for peer in cluster.peers.values()} == {cluster.leader().term})
    assert cluster.leader().term > TERM_JUMP_MAX + 5


def test_a_leader_far_below_makes_way_for_those_whom_a_message_has_led_away() -> None:
    cluster = VirtualCluster(3)
    cluster.start()
    cluster.commit(b"before")
    away = next(peer_id for peer_id in cluster.ids if peer_id != cluster.leader().id)
    cluster.crash(away)
    cluster.peers[away].persistence.update_vote(TERM_JUMP_MAX + 1, None)
    cluster.start(away)
    cluster.commit(b"after")
    cluster.run_until(lambda: len(cluster.peers[away].applied) >= 4)
    assert cluster.leader().term > TERM_JUMP_MAX
