"""A leader that makes way for another peer, in virtual time. Thesis 3.10."""

from __future__ import annotations

import pytest

from support.virtual_cluster import SECRET, Peer, VirtualCluster
from zmqraft.constants import ABSENT, TRANSFER_NOTICE
from zmqraft.protocol import Protocols, new_request_id


def known(cluster: VirtualCluster) -> Peer:
    """The leader, when it knows which peers are ours."""
    leader = cluster.leader()
    rest = [peer_id for peer_id in cluster.ids if peer_id != leader.id]
    cluster.run_until(lambda: all(leader.running._calls.is_ours(peer_id) for peer_id in rest))
    return leader


def started(size: int = 3, seed: int = 1) -> tuple[VirtualCluster, Peer]:
    cluster = VirtualCluster(size, seed)
    cluster.start()
    return cluster, known(cluster)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_target_leads_at_once(size: int, seed: int) -> None:
    """Long before anybody's election timeout, and in the next term."""
    cluster, leader = started(size, seed)
    cluster.commit(b"before")
    target = next(peer for peer in cluster.peers.values() if peer is not leader)
    term, before = leader.term, cluster.now
    cluster.transfer(target.id)
    cluster.run_until(lambda: target.role == "leader")
    assert cluster.now - before < 0.05
    assert target.term == term + 1
    cluster.run_until(lambda: leader.running.raft.leader_id == target.id and not leader.running.is_making_way)
    assert leader.role == "follower"
    cluster.commit(b"after")


def test_without_a_target_it_is_the_one_with_the_most() -> None:
    cluster, leader = started()
    one, other = (peer for peer in cluster.peers.values() if peer is not leader)
    cluster.cut = {(leader.id, one.id), (one.id, leader.id)}
    cluster.commit(b"only two have it")
    cluster.transfer(None)
    cluster.run_until(lambda: other.role == "leader")


def test_the_target_gets_what_it_lacks_first() -> None:
    cluster, leader = started()
    target = next(peer for peer in cluster.peers.values() if peer is not leader)
    cluster.cut = {(leader.id, target.id), (target.id, leader.id)}
    for number in range(20):
        cluster.commit(b"%d" % number)
    cluster.heal()
    cluster.run_until(lambda: leader.running._calls.is_ours(target.id), 10.0)
    for number in range(20):
        cluster.update(leader.id, b"more %d" % number)
    cluster.transfer(target.id)
    cluster.run_until(lambda: target.role == "leader")
    cluster.run_until(lambda: len([entry for entry in target.applied if entry.is_state]) == 40)


def test_clients_that_wait_are_answered_by_who_leads_then() -> None:
    """None is told that nobody leads: who waits is told of the new leader, or that his update is applied."""
    cluster, leader = started()
    target = next(peer for peer in cluster.peers.values() if peer is not leader)
    before = [cluster.update(leader.id, b"before %d" % number) for number in range(10)]
    cluster.transfer(target.id)
    during = []
    for number in range(10):
        cluster.run(0.001)
        during.append(cluster.update(leader.id, b"during %d" % number))
    cluster.run_until(lambda: not leader.running.is_making_way)
    cluster.run(0.1)
    for request_id in [*before, *during]:
        result = cluster.result(request_id)
        assert result is not None
        assert result[0] or result == (False, target.id)
    for request_id in [*before, *during]:
        if cluster.committed(request_id) is None:
            cluster.client_replies.pop(request_id)
            cluster.update(target.id, b"repeated", request_id)
    cluster.run_until(lambda: all(cluster.committed(request_id) for request_id in [*before, *during]))
    ids = [entry.request_id for entry in target.applied if entry.is_state]
    assert sorted(ids) == sorted([*before, *during])


def test_an_update_that_another_leader_overwrites_is_refused() -> None:
    """Its client waits for an index at which then stands something else."""
    cluster, leader = started()
    one, other = (peer for peer in cluster.peers.values() if peer is not leader)
    cluster.cut = {(a.id, b.id) for a in (leader, one, other) for b in (leader, one, other) if leader in (a, b)}
    request_id = cluster.update(leader.id, b"nobody has it")
    cluster.run(0.01)
    leader.running.begin_transfer(None, cluster.now, must=True)
    cluster.run(0.02)
    cluster.run_until(lambda: one.role == "leader" or other.role == "leader")
    cluster.heal()
    for number in range(5):
        cluster.update(cluster.leader().id, b"%d" % number)
    cluster.run_until(lambda: not leader.running.is_making_way)
    cluster.run(0.5)
    assert cluster.result(request_id) is not None
    assert cluster.committed(request_id) is None


def test_a_target_that_is_not_there_keeps_the_leader() -> None:
    cluster, leader = started()
    target = next(peer for peer in cluster.peers.values() if peer is not leader)
    cluster.crash(target.id)
    cluster.run(0.5)
    term = leader.term
    cluster.transfer(target.id)
    cluster.run(0.1)
    request_id = cluster.update(leader.id, b"waits")
    cluster.run_until(lambda: not leader.running.is_making_way)
    cluster.run_until(lambda: cluster.committed(request_id))
    assert (leader.role, leader.term) == ("leader", term)


def test_a_leader_that_must_go_goes_alone_when_nobody_is_ours() -> None:
    cluster = VirtualCluster(3)
    cluster.foreign = {"1", "2", "3"}
    cluster.start()
    leader = cluster.leader()
    cluster.transfer(None, must=True)
    cluster.run_until(lambda: leader.role != "leader")
    cluster.commit(b"somebody leads")


def test_the_target_must_be_another_member() -> None:
    cluster, leader = started()
    for target_id in (leader.id, "4"):
        with pytest.raises(ValueError, match="leadership can be transferred to one of"):
            leader.running.begin_transfer(target_id, cluster.now, must=False)
    assert not leader.running.is_making_way


def test_who_does_not_lead_does_nothing() -> None:
    cluster, leader = started()
    follower = next(peer for peer in cluster.peers.values() if peer is not leader)
    follower.running.begin_transfer(None, cluster.now, must=True)
    assert not follower.running.is_making_way


@pytest.mark.parametrize("what", ["leader", "term", "target"])
def test_a_notice_that_is_not_the_leaders_is_ignored(what: str) -> None:
    cluster, leader = started()
    follower, other = (peer for peer in cluster.peers.values() if peer is not leader)
    notice = {
        "leader": (other.id, leader.term, follower.id),
        "term": (leader.id, leader.term - 1, follower.id),
        "target": (leader.id, leader.term, "9"),
    }[what]
    frames = Protocols.TRANSFER_NOTICE.encode_request(TRANSFER_NOTICE, SECRET, *notice)
    cluster.request(follower.id, b"\0", frames)
    cluster.run(1.0)
    assert leader.role == "leader"
    assert b"\0" not in cluster.client_replies


def test_a_notice_that_is_lost_costs_an_election_timeout_and_no_more() -> None:
    cluster, leader = started()
    cluster.cut = {(leader.id, peer_id) for peer_id in cluster.ids}
    leader.running.begin_transfer(None, cluster.now, must=True)
    cluster._soon(leader)
    cluster.run(0.01)
    cluster.heal()
    assert leader.role == "follower"
    cluster.commit(b"somebody leads")


def test_what_is_kept_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmqraft.server.client_requests._HELD_COUNT_MAX", 5)
    cluster, leader = started()
    target = next(peer for peer in cluster.peers.values() if peer is not leader)
    cluster.crash(target.id)
    cluster.transfer(target.id)
    cluster.run(0.01)
    ids = [cluster.update(leader.id, b"%d" % number) for number in range(8)]
    cluster.run(1.0)
    assert leader.running.dropped["too many requests during a transfer"] == 3
    assert [cluster.result(each) is None for each in ids] == [False] * 5 + [True] * 3


def test_reads_and_changes_wait_as_well() -> None:
    cluster, leader = started()
    target = next(peer for peer in cluster.peers.values() if peer is not leader)
    cluster.transfer(target.id)
    cluster.run(0.001)
    change = cluster.ask_change(leader.id, [leader.id, target.id], new_request_id(cluster.wall))
    cluster.request(leader.id, b"\5", Protocols.REQUEST_ENTRIES.encode_request(b"<", SECRET, 0))
    cluster.run(0.2)
    assert cluster.change_result(change) == (0, target.id)
    assert Protocols.REQUEST_ENTRIES.decode_response(cluster.client_replies[b"\5"][-1])[:2] == (0, target.id)
    assert cluster.change_result(change) != (1, ABSENT)
