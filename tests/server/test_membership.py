"""Changes of the configuration by joint consensus, in virtual time. Section 6 of the paper; FAULTS, "Membership"."""

from __future__ import annotations

from random import Random

import pytest

from support.invariants import Invariants
from support.virtual_cluster import SECRET, Peer, VirtualCluster, url_of
from zmqraft.constants import ABSENT, INTRODUCTION
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, Protocols, new_request_id
from zmqraft.storage import MemoryLog, MemoryPersistence


def started(size: int = 3, new: str = "", **settings: object) -> VirtualCluster:
    """A running cluster with a leader, and new peers that run but are no members."""
    cluster = VirtualCluster(size, **settings)  # type: ignore[arg-type]
    members = list(cluster.ids)
    for peer_id in new:
        cluster.add(peer_id, members)
    cluster.start()
    cluster.leader()
    return cluster


def others(cluster: VirtualCluster, peer: Peer) -> list[Peer]:
    return [each for each in cluster.peers.values() if each is not peer]


def check_same(cluster: VirtualCluster, ids: str) -> None:
    """All these come to have applied the same, and know each other."""
    peers = [cluster.peers[peer_id] for peer_id in ids]
    last = cluster.commit(b"the last")
    cluster.run_until(lambda: all(peer.running.last_applied >= last for peer in peers))
    cluster.run_until(lambda: len({peer.running.last_applied for peer in peers}) == 1)
    assert [peer.members for peer in peers] == [ids] * len(ids)
    assert all(peer.applied == peers[0].applied for peer in peers)
    assert [peer.failure for peer in cluster.peers.values()] == [None] * len(cluster.peers)


@pytest.mark.parametrize(
    ("new", "ids"),
    [("4", "1234"), ("45", "12345"), ("", "12"), ("", "1"), ("456", "456"), ("45", "145"), ("45", "1245")],
    ids=["add one", "add two", "remove one", "remove two", "replace all", "add two, remove two", "add two, remove one"],
)
def test_a_change(new: str, ids: str) -> None:
    cluster = started(3, new)
    before = cluster.commit(b"before")
    index = cluster.change(ids)
    assert index > before
    assert cluster.commit(b"after") > index
    check_same(cluster, ids)
    leader = cluster.leader()
    assert [entry.data for entry in leader.applied if entry.is_state] == [b"before", b"after", b"the last"]
    # The joint configuration, then the new one.
    assert next(entry.index for entry in leader.applied if entry.is_config) == index
    assert len([entry for entry in leader.applied if entry.is_config]) == 2
    for peer_id in set(cluster.ids) - set(ids):
        assert cluster.peers[peer_id].role == "client"


def test_a_new_peer_is_a_client_until_a_configuration_has_it() -> None:
    cluster = started(3, "4")
    cluster.run(5.0)
    assert (cluster.peers["4"].role, cluster.peers["4"].members) == ("client", "123")
    cluster.change("1234")
    cluster.run_until(lambda: cluster.peers["4"].role == "follower")


def test_the_configuration_counts_from_the_moment_it_is_in_the_log() -> None:
    """Committed or not: with both new peers down, nothing commits any more until one of them is there."""
    cluster = started(2, "34")
    cluster.crash("3", "4")
    leader = cluster.leader()
    request_id = cluster.ask_change(leader.id, "1234")
    cluster.run(0.1)
    assert {peer.members for peer in (cluster.peers["1"], cluster.peers["2"])} == {"12 1234"}
    update = cluster.update(leader.id, b"waits")
    cluster.run(0.1)
    assert cluster.committed(update) is None
    assert leader.running.raft.commit_index < leader.log.last_index
    cluster.start("3")
    cluster.run_until(lambda: cluster.change_result(request_id) not in (None, (1, ABSENT)))
    cluster.commit(b"goes on")
    assert cluster.leader().members == "1234"


def test_a_second_change_waits_for_the_first() -> None:
    cluster = started(3, "4567")
    cluster.crash("4", "5", "6", "7")
    leader = cluster.leader()
    first = cluster.ask_change(leader.id, "1234567")
    cluster.run(0.1)
    second = cluster.ask_change(leader.id, "12")
    cluster.run(0.01)
    assert cluster.change_result(second) == (3, ABSENT)
    cluster.start("4", "5", "6", "7")
    cluster.run_until(lambda: cluster.changed(first))
    assert cluster.change("12") > 0
    check_same(cluster, "12")


def test_the_leader_is_removed() -> None:
    """It leads until the final configuration is committed, tells its client, and steps down; the others go on."""
    cluster = started(3)
    leader = cluster.leader()
    rest = "".join(peer.id for peer in others(cluster, leader))
    request_id = cluster.ask_change(leader.id, rest)
    cluster.run_until(lambda: cluster.changed(request_id))
    cluster.run_until(lambda: leader.role == "client")
    assert cluster.leader().id in rest
    cluster.commit(b"without it")
    check_same(cluster, rest)
    # It still says who is in the cluster.
    assert leader.members == rest


def test_the_clients_of_a_leader_that_is_removed_are_sent_to_the_next() -> None:
    """It is told by nobody who that is, so it asks; nobody hears that there is no leader."""
    cluster = started(3)
    leader = cluster.leader()
    cluster.run(0.5)
    cluster.ask_change(leader.id, [peer.id for peer in others(cluster, leader)])
    updates: list[bytes] = []

    def update() -> bool:
        updates.append(cluster.update(leader.id, b"%d" % len(updates)))
        return leader.role == "client" and not leader.running.is_making_way

    while not update():
        cluster.run(0.002)
    new = cluster.leader()
    assert new is not leader
    replies = [cluster.result(request_id) for request_id in updates]
    assert (False, new.id) in replies
    assert not [reply for reply in replies if reply is not None and not reply[0] and reply != (False, new.id)]
    # And who asks it later.
    request = Protocols.REQUEST_CONFIG.encode_request(b"^", SECRET)
    cluster.request(leader.id, b"\7", request)
    cluster.run(0.01)
    is_leader, leader_id, _ = Protocols.REQUEST_CONFIG.decode_response(cluster.client_replies[b"\7"][-1])
    assert (is_leader, leader_id) == (False, new.id)


def test_a_leader_that_is_removed_leads_until_the_final_configuration_commits() -> None:
    """FAULTS W10: not at any commit, and not before."""
    cluster = started(5)
    leader = cluster.leader()
    rest = [peer.id for peer in others(cluster, leader)]
    # Of the five, two others are there: a majority of the old ones, but only two of four of the new.
    cluster.crash(*rest[2:])
    request_id = cluster.ask_change(leader.id, rest)
    cluster.run(0.15)
    update = cluster.update(leader.id, b"another commit")
    cluster.run(0.05)
    assert cluster.committed(update) is None
    assert leader.role == "leader"
    assert leader.running.raft.configuration.is_joint
    assert cluster.change_result(request_id) == (1, ABSENT)
    cluster.start(rest[2])
    cluster.run_until(lambda: leader.role == "client")
    assert cluster.changed(request_id)
    assert cluster.committed(update)
    cluster.commit(b"goes on")
    assert cluster.leader().members == "".join(rest)


@pytest.mark.parametrize("seed", range(10))
def test_a_new_leader_leaves_a_joint_configuration_that_it_took_over(seed: int) -> None:
    """FAULTS 31 and W9: without any traffic of clients."""
    cluster = VirtualCluster(3, seed)
    cluster.add("4", "123")
    cluster.start()
    leader = cluster.leader()
    cluster.ask_change(leader.id, "1234")
    # The joint configuration reaches the others, but not the news that it is committed.
    _run_until_all_have_joint(cluster, leader)
    cluster.crash(leader.id)
    _run_until_members(cluster, "1234", "1234".replace(leader.id, ""))
    cluster.start(leader.id)
    cluster.commit(b"after")
    check_same(cluster, "1234")


def _run_until_all_have_joint(cluster: VirtualCluster, leader: Peer) -> None:
    cluster.run_until(lambda: all(peer.members == "123 1234" for peer in others(cluster, leader) if peer.id != "4"))


def _run_until_members(cluster: VirtualCluster, members: str, ids: str) -> None:
    cluster.run_until(lambda: all(cluster.peers[peer_id].members == members for peer_id in ids))


def test_the_final_configuration_waits_for_the_joint_one_to_commit() -> None:
    """FAULTS 32: also with a leader that found the joint entry in its log, uncommitted."""
    cluster = started(3, "45")
    cluster.crash("4", "5")
    leader = cluster.leader()
    cluster.ask_change(leader.id, "145")
    cluster.run(0.1)
    cluster.crash(leader.id)
    cluster.start(leader.id)
    cluster.run(5.0)
    # Of 1, 4 and 5 only 1 is there.
    assert {peer.members for peer in cluster.peers.values() if peer.engine is not None} == {"123 145"}
    cluster.start("4")
    cluster.run_until(lambda: cluster.leader().members == "145")
    cluster.commit(b"goes on")


@pytest.mark.parametrize("restart", [False, True])
def test_a_configuration_that_is_truncated_gives_way_to_the_one_before(restart: bool) -> None:
    """FAULTS 30 and W7: also after a restart."""
    cluster = started(3, "45")
    leader = cluster.leader()
    rest = [peer.id for peer in others(cluster, leader) if peer.id in "123"]
    cluster.partition([leader.id], [*rest, "4", "5"])
    cluster.ask_change(leader.id, "12345")
    cluster.run(0.02)
    assert leader.members == "123 12345"
    if restart:
        cluster.run(1.0)
        cluster.crash(leader.id)
        cluster.start(leader.id)
        assert leader.members == "123 12345"
    cluster.run_until(lambda: any(cluster.peers[each].role == "leader" for each in rest))
    cluster.heal()
    cluster.commit(b"of another leader")
    cluster.run_until(lambda: leader.members == "123")
    cluster.run(0.1)
    cluster.crash(leader.id)
    cluster.start(leader.id)
    cluster.run(0.0)
    assert leader.members == "123"
    cluster.change("12345")
    check_same(cluster, "12345")


def test_a_removed_peer_that_never_heard_of_it_disturbs_nobody() -> None:
    """FAULTS 35: it stays on the old list, times out, and asks for votes for ever."""
    cluster = started(4)
    cluster.leader()
    gone = next(peer for peer in cluster.peers.values() if peer.role == "follower")
    rest = "".join(peer.id for peer in others(cluster, gone))
    cluster.partition(rest)
    cluster.change(rest)
    cluster.run(5.0)
    cluster.heal()
    leader = cluster.leader()
    term = leader.term
    for _ in range(20):
        cluster.commit(b"undisturbed")
        cluster.run(0.5)
    assert (leader.role, leader.term) == ("leader", term)


def test_removed_peers_hear_of_it_and_do_not_stand_for_election() -> None:
    cluster = started(4)
    leader = cluster.leader()
    gone = others(cluster, leader)[0]
    cluster.change("".join(peer.id for peer in others(cluster, gone)))
    cluster.run_until(lambda: gone.role == "client")
    cluster.run(2.0)
    assert gone.id not in gone.members
    assert gone.term == cluster.leader().term
    assert not leader.running.raft.leaving


def test_a_removed_peer_that_is_not_there_is_not_waited_for() -> None:
    cluster = started(3)
    leader = cluster.leader()
    gone, rest = others(cluster, leader)
    cluster.crash(gone.id)
    cluster.change([leader.id, rest.id])
    assert list(leader.running.raft.leaving) == [gone.id]
    cluster.run_until(lambda: not leader.running.raft.leaving, 10.0)
    assert set(leader.running.link_urls) == {rest.id}


def test_one_that_is_not_waited_for_any_more_comes_back_in_the_same_turn() -> None:
    """Nothing that is under way to it counts: neither is it waited for. Found by seed 7622."""
    cluster = started(3)
    leader = cluster.leader()
    gone, rest = others(cluster, leader)
    cluster.crash(gone.id)
    cluster.change([leader.id, rest.id])
    cluster.run_until(lambda: leader.running._calls.has_outstanding(gone.id))
    leader.running.raft._leaving_until = cluster.now
    cluster.ask_change(leader.id, "123", new_request_id(cluster.wall))
    cluster.run(1.0)
    assert gone.id in leader.members
    cluster.start(gone.id)
    check_same(cluster, "123")


def test_a_member_votes_although_it_does_not_know_that_it_is_one() -> None:
    """FAULTS 34: promoted, but the leader dies before it hears of it."""
    cluster = started(3, "4")
    leader = cluster.leader()
    rest = [peer for peer in others(cluster, leader) if peer.id != "4"]
    cluster.change("1234")
    cluster.run_until(lambda: cluster.peers["4"].role == "follower")
    four = cluster.peers["4"]
    # As if nothing of the change had got there.
    cluster.crash("4")
    four.log, four.persistence = type(four.log)(), type(four.persistence)()
    cluster.crash(leader.id, rest[1].id)
    cluster.start("4", rest[1].id)
    cluster.run_until(lambda: rest[0].role == "leader" or rest[1].role == "leader", 30.0)
    cluster.commit(b"with its vote")
    check_same_applied(cluster, [rest[0], rest[1], four])


def check_same_applied(cluster: VirtualCluster, peers: list[Peer]) -> None:
    cluster.run_until(lambda: len({peer.running.last_applied for peer in peers}) == 1)
    assert all(peer.applied == peers[0].applied for peer in peers)


def test_a_change_during_a_partition_is_done_once_and_by_one_side() -> None:
    cluster = started(5, "67")
    leader = cluster.leader()
    rest = [peer.id for peer in others(cluster, leader) if peer.id in "12345"]
    cluster.partition([leader.id, rest[0]], rest[1:], ["6", "7"])
    lost = cluster.ask_change(leader.id, "1234567")
    cluster.run_until(lambda: any(cluster.peers[each].role == "leader" for each in rest[1:]))
    new = next(each for each in rest[1:] if cluster.peers[each].role == "leader")
    done = cluster.ask_change(new, [leader.id, *rest[1:]])
    cluster.run(1.0)
    cluster.heal()
    cluster.run_until(lambda: cluster.leader().members == "".join(sorted([leader.id, *rest[1:]])))
    assert cluster.change_result(lost) != (1, done)
    cluster.commit(b"one history")
    check_same(cluster, "".join(sorted([leader.id, *rest[1:]])))


def test_the_same_request_again_is_the_same_change() -> None:
    cluster = started(3, "4")
    leader = cluster.leader()
    request_id = cluster.ask_change(leader.id, "1234")
    cluster.run_until(lambda: cluster.changed(request_id))
    index = cluster.changed(request_id)
    cluster.client_replies.clear()
    cluster.ask_change(cluster.leader().id, "1234", request_id)
    cluster.run(0.01)
    assert [reply[0] for reply in cluster.client_replies[request_id]] == [b"\1"]
    assert cluster.changed(request_id) == index
    assert len([entry for entry in cluster.leader().applied if entry.is_config]) == 2


def test_who_waits_for_a_change_is_told_that_it_goes_on() -> None:
    cluster = started(2, "34")
    cluster.crash("3", "4")
    request_id = cluster.ask_change(cluster.leader().id, "1234")
    cluster.run(0.25)
    assert cluster.client_replies[request_id] == [[b"\1"], [b"\1"]]
    # Without a majority of the new members it does not lead much longer.
    cluster.run(1.0)
    assert cluster.client_replies[request_id][2:] == [[b"\0", b"\xc0"]]


def test_updates_that_were_collected_keep_their_indexes() -> None:
    """They have been given indexes: the configuration comes behind them."""
    cluster = started(3, "4")
    leader = cluster.leader()
    for other in others(cluster, leader):
        cluster.cut |= {(leader.id, other.id), (other.id, leader.id)}
    updates = [cluster.update(leader.id, b"%d" % number) for number in range(20)]
    cluster.run(0.05)
    more = [cluster.update(leader.id, b"more %d" % number) for number in range(20)]
    request_id = cluster.ask_change(leader.id, "1234")
    cluster.run(0.05)
    cluster.heal()
    cluster.run_until(lambda: cluster.changed(request_id))
    cluster.run_until(lambda: all(cluster.committed(each) is not None for each in [*updates, *more]))
    by_index = {entry.index: entry for entry in cluster.leader().applied}
    assert [by_index[cluster.committed(each) or 0].request_id for each in [*updates, *more]] == [*updates, *more]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("x", ("TypeError", "peers must be an array")),
        ([], ("AssertionError", "at least one peer must be defined in a cluster")),
        ([["1", "tcp://127.0.0.1:8000"], ["1", "tcp://127.0.0.1:9"]], ("AssertionError", "peer id must be unique")),
        ([["1", "tcp://127.0.0.1:8000"], ["9", "tcp://127.0.0.1:8000"]], ("AssertionError", "peer url must be unique")),
        ([["1", "tcp://127.0.0.1:8000"], ["", "tcp://127.0.0.1:9"]], ("AssertionError", "peer id must be")),
        ([["1", "tcp://127.0.0.1:9"]], ("AssertionError", "new peers must be consistent with current configuration")),
        ([["9", "tcp://127.0.0.1:8000"]], ("AssertionError", "new peers must be consistent")),
        ([["1", "nonsense"]], ("AssertionError", "peer url")),
        ([["9", "udp://127.0.0.1:9"]], ("AssertionError", "peer url protocol must be tcp:")),
        ([["9", "tcp://0.0.0.0:9"]], ("AssertionError", "peer url protocol must be tcp:")),
        ([["9", "tcp://127.0.0.1"]], ("AssertionError", "peer url must be tcp://address:port")),
        ([["9", "tcp://127.0.0.1:0"]], ("AssertionError", "peer url protocol must be tcp:")),
        ([["9", "tcp://127.0.0.1:70000"]], ("AssertionError", "peer url protocol must be tcp:")),
        ([["9", "tcp://127.0.0.1:9/x"]], ("AssertionError", "peer url protocol must be tcp:")),
        ([["9"]], ("TypeError", "a peer must be an array")),
        ([7], ("TypeError", "a peer must be an array")),
        ([[7, "tcp://127.0.0.1:9"]], ("TypeError", "a peer must be an array")),
        (
            [["1", "tcp://127.0.0.1:8000"], ["2", "tcp://127.0.0.1:8001"], ["3", "tcp://127.0.0.1:8002"]],
            ("Error", "no change in cluster membership"),
        ),
    ],
    ids=str,
)
def test_a_bad_configuration_is_refused(value: object, error: tuple[str, str]) -> None:
    cluster = started(3)
    leader = cluster.leader()
    request_id = new_request_id(cluster.wall)
    cluster.request(leader.id, request_id, Protocols.CONFIG_UPDATE.encode_request(b"&", SECRET, value))
    cluster.run(0.01)
    status, found = cluster.change_result(request_id) or (None, None)
    assert (status, isinstance(found, dict)) == (2, True)
    assert isinstance(found, dict)
    assert (found["name"], found["message"][: len(error[1])]) == error
    assert leader.members == "123"
    assert not leader.running.raft.is_changing


def test_a_request_that_is_too_old_is_refused() -> None:
    cluster = started(3, "4")
    request_id = cluster.ask_change(cluster.leader().id, "1234", new_request_id(cluster.wall - 9 * 3600))
    cluster.run(0.01)
    assert cluster.change_result(request_id) == (4, ABSENT)


def test_a_follower_names_the_leader() -> None:
    cluster = started(3)
    leader = cluster.leader()
    request_id = cluster.ask_change(others(cluster, leader)[0].id, "12")
    cluster.run(0.01)
    assert cluster.change_result(request_id) == (0, leader.id)


class TestJoining:
    """SPEC section 2, difference 8: a peer that is no member downloads snapshot and log, and follows."""

    def test_it_reads_what_is_committed_and_goes_on(self) -> None:
        cluster = started(3, "4")
        for number in range(10):
            cluster.commit(b"%d" % number)
        four = cluster.peers["4"]
        cluster.run_until(lambda: four.applied == cluster.leader().applied)
        last = cluster.commit(b"later")
        cluster.run_until(lambda: four.running.last_applied == last)
        assert four.role == "client"
        progress = four.running.catch_up_progress
        assert progress is not None
        assert (progress.index, progress.snapshot) == (last, None)
        cluster.run_until(lambda: str(four.running.catch_up_progress) == f"entry {last} (100 %)")
        cluster.change("1234")
        cluster.run_until(lambda: four.role == "follower")
        assert four.running.catch_up_progress is None

    @pytest.mark.parametrize("foreign", [False, True])
    def test_it_reads_a_snapshot_first(self, foreign: bool) -> None:
        """RequestEntries is what peers of zmq-raft understand too."""
        cluster = VirtualCluster(3, peer_msg_data_size=64)
        cluster.add("4", "123")
        if foreign:
            cluster.foreign = {"1", "2", "3", "4"}
        cluster.start("1", "2", "3")
        last = max(cluster.commit(b"update %d" % number) for number in range(50))
        members = [cluster.peers[each] for each in "123"]
        cluster.run_until(lambda: all(peer.running.last_applied == last for peer in members))
        for peer in members:
            peer.compact(last - 10)
        cluster.start("4")
        four = cluster.peers["4"]
        seen = set()
        cluster.run_until(lambda: seen.add(str(four.running.catch_up_progress)) or four.running.last_applied == last)
        assert any(each.startswith("a snapshot, ") for each in seen)
        assert four.applied == cluster.leader().applied
        assert four.log.snapshot.index == last - 10
        cluster.change("1234")
        cluster.commit(b"after")
        check_same(cluster, "1234")

    def test_another_snapshot_begins_anew(self) -> None:
        """While it was not reached, the one that it had half of has given way to a later one."""
        cluster = VirtualCluster(1, peer_msg_data_size=64)
        cluster.add("4", "1")
        cluster.start("1")
        one, four = cluster.peers["1"], cluster.peers["4"]
        last = max(cluster.commit(b"update %d" % number) for number in range(50))
        one.compact(last)
        cluster.start("4")
        cluster.run_until(lambda: four.running._catching_up._incoming.offset > 500)
        cluster.cut = {("1", "4"), ("4", "1")}
        cluster.run(0.1)
        last = max(cluster.commit(b"more %d" % number) for number in range(50))
        one.compact(last)
        cluster.run(5.0)
        cluster.heal()
        cluster.run_until(lambda: four.running.last_applied == last)
        assert four.applied == one.applied

    def test_it_goes_on_where_it_was(self) -> None:
        """After the loss of the leader, of its connections, and of itself."""
        cluster = VirtualCluster(3, peer_msg_data_size=64)
        cluster.add("4", "123")
        cluster.start("1", "2", "3")
        last = max(cluster.commit(b"update %d" % number) for number in range(100))
        cluster.start("4")
        four = cluster.peers["4"]
        cluster.run_until(lambda: four.log.last_index > 20)
        leader = cluster.leader()
        cluster.cut = {(leader.id, "4"), ("4", leader.id)}
        cluster.run(3.0)
        had = four.log.last_index
        assert had < last
        cluster.crash("4", leader.id)
        assert four.log.last_index >= 20
        cluster.heal()
        cluster.start("4")
        cluster.run_until(lambda: four.running.last_applied >= last)
        cluster.start(leader.id)
        cluster.change("1234")
        check_same(cluster, "1234")

    def test_it_learns_of_peers_that_came_after_its_configuration_file(self) -> None:
        cluster = started(3, "45")
        cluster.change("12345")
        cluster.change("145")
        cluster.commit(b"new members")
        late = cluster.add("6", "123")
        cluster.start("6")
        cluster.run_until(lambda: late.members == "145")
        cluster.change("1456")
        check_same(cluster, "1456")

    def test_uncommitted_entries_of_a_former_member_give_way(self) -> None:
        cluster = started(4)
        gone = others(cluster, cluster.leader())[0]
        rest = "".join(peer.id for peer in others(cluster, gone))
        cluster.crash(gone.id)
        cluster.change(rest)
        for number in range(5):
            cluster.commit(b"%d" % number)
        # It comes back as a client, with entries that nobody else has.
        gone.configured = list(rest)
        had = gone.entries()
        first, term = gone.log.last_index + 1, gone.log.last_term
        extra = [LogEntry(first + n, term, EntryType.STATE, new_request_id(), b"x") for n in range(3)]
        gone.log.append(EntryBatch.from_entries(extra))
        gone.log.sync()
        gone.persistence.update_peers([(each, url_of(each)) for each in rest], None, None)
        cluster.start(gone.id)
        assert gone.role == "client"
        cluster.run_until(lambda: gone.applied == cluster.leader().applied)
        assert gone.entries()[: len(had)] == had

    def test_what_does_not_follow_is_not_taken(self) -> None:
        cluster = VirtualCluster(3)
        cluster.add("4", "123")
        cluster.start("4")
        four = cluster.peers["4"]
        entries = [LogEntry(index, 2, EntryType.STATE, new_request_id(), b"x") for index in (5, 6)]
        four.running.raft.step_committed_entries(EntryBatch.from_entries(entries), [], cluster.now)
        cluster.run(0.01)
        assert (four.log.last_index, four.term) == (0, 0)

    def test_a_member_takes_nothing_this_way(self) -> None:
        cluster = VirtualCluster(3)
        cluster.start("1")
        one = cluster.peers["1"]
        entries = [LogEntry(index, 2, EntryType.STATE, new_request_id(), b"x") for index in (1, 2)]
        one.running.raft.step_committed_entries(EntryBatch.from_entries(entries), [], cluster.now)
        cluster.run(0.01)
        assert (one.log.last_index, one.term) == (0, 0)


class TestStrangers:
    """FAULTS 33: a member that never got the configuration by which another one is a member too."""

    def cut_off(self) -> tuple[VirtualCluster, Peer, Peer, list[Peer]]:
        """1, 2, 3 have become 1, 2, 4 while one of the old ones was cut off. Returns it, and 4, and the others."""
        cluster = started(3, "4")
        leader = cluster.leader()
        lonely = others(cluster, leader)[0]
        keep = [leader.id, next(peer.id for peer in others(cluster, leader) if peer.id not in (lonely.id, "4"))]
        cluster.partition([*keep, "4"], [lonely.id])
        cluster.change(sorted([leader.id, lonely.id, "4"]))
        cluster.run(1.0)
        return cluster, lonely, cluster.peers["4"], [cluster.peers[each] for each in keep]

    def test_they_elect_one_of_them(self) -> None:
        cluster, lonely, four, rest = self.cut_off()
        cluster.crash(*(peer.id for peer in rest))
        cluster.heal()
        assert four.id not in lonely.members
        cluster.run_until(lambda: four.role == "leader")
        cluster.commit(b"by the two")
        cluster.run_until(lambda: lonely.members == four.members)
        cluster.run_until(lambda: lonely.applied == four.applied)

    def test_one_that_leads_is_followed(self) -> None:
        cluster, lonely, four, rest = self.cut_off()
        cluster.transfer("4")
        cluster.run_until(lambda: four.role == "leader")
        cluster.crash(*(peer.id for peer in rest))
        cluster.heal()
        cluster.commit(b"by the two")
        cluster.run_until(lambda: lonely.members == four.members)

    def test_nobody_is_listened_to_who_has_not_introduced_himself(self) -> None:
        """SPEC section 2, difference 1."""
        cluster, lonely, four, rest = self.cut_off()
        cluster.crash("4", *(peer.id for peer in rest))
        last = four.log.last_index
        vote = Protocols.REQUEST_VOTE.encode_request(b"?", SECRET, "4", 50, last, four.log.last_term)
        cluster.request(lonely.id, b"\7", vote)
        append = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, "4", 50, 0, 0, 0)
        cluster.request(lonely.id, b"\10", append)
        cluster.run(0.01)
        assert cluster.client_replies.keys().isdisjoint([b"\7", b"\10"])
        introduction = Protocols.INTRODUCTION.encode_request(INTRODUCTION, SECRET, "4")
        cluster.request(lonely.id, b"\0", introduction)
        cluster.request(lonely.id, b"\7", vote)
        cluster.run(0.01)
        (reply,) = cluster.client_replies[b"\7"]
        assert Protocols.REQUEST_VOTE.decode_response(reply) == (50, True)

    def test_nobody_is_listened_to_while_a_leader_is_there(self) -> None:
        cluster = started(3)
        leader = cluster.leader()
        follower, _ = others(cluster, leader)
        cluster.commit(b"x")
        cluster.request(follower.id, b"\0", Protocols.INTRODUCTION.encode_request(INTRODUCTION, SECRET, "9"))
        cluster.request(follower.id, b"\7", Protocols.REQUEST_VOTE.encode_request(b"?", SECRET, "9", 50, 99, 50))
        cluster.request(follower.id, b"\10", Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, "9", 50, 0, 0, 0))
        cluster.run(0.5)
        assert cluster.client_replies.keys().isdisjoint([b"\7", b"\10"])
        assert leader.role == "leader"

    def test_one_with_less_gets_no_vote(self) -> None:
        cluster = VirtualCluster(3)
        cluster.peers["1"].set_log(1, 2, 2)
        cluster.start("1")
        cluster.request("1", b"\0", Protocols.INTRODUCTION.encode_request(INTRODUCTION, SECRET, "9"))
        for last_term, last_index in ((2, 3), (2, 2), (1, 9)):
            request = Protocols.REQUEST_VOTE.encode_request(b"?", SECRET, "9", 50, last_index, last_term)
            cluster.request("1", b"\7", request)
        cluster.run(0.01)
        assert b"\7" not in cluster.client_replies

    def test_one_that_contradicts_what_is_committed_is_ignored(self) -> None:
        """From a member that would be the end of this peer."""
        cluster = VirtualCluster(3)
        one = cluster.peers["1"]
        one.set_log(1, 1, 1)
        one.applied = one.entries()
        cluster.start("1")
        cluster.request("1", b"\0", Protocols.INTRODUCTION.encode_request(INTRODUCTION, SECRET, "9"))
        entry = LogEntry(2, 50, EntryType.STATE, new_request_id(), b"x").to_bytes()
        for prev in ((2, 7), (1, 1)):
            append = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, "9", 50, *prev, 3, [entry])
            cluster.request("1", b"\7", append)
            cluster.run(0.01)
        assert b"\7" not in cluster.client_replies
        assert (one.failure, one.terms(), one.term) == (None, [1, 1, 1], 1)


@pytest.mark.parametrize("ids", ["1234", "12", "124", "3456"])
def test_a_change_while_a_member_gets_a_snapshot(ids: str) -> None:
    """It is added to, removed from, or the one that stays in the cluster."""
    cluster = VirtualCluster(3, peer_msg_data_size=64)
    for peer_id in "456":
        cluster.add(peer_id, "123")
    cluster.foreign = {"3"}
    cluster.start()
    cluster.commit(b"before")
    cluster.crash("3")
    last = max(cluster.commit(b"update %d" % number) for number in range(50))
    rest = [peer for peer in cluster.peers.values() if peer.id != "3"]
    cluster.run_until(lambda: all(peer.running.last_applied >= last for peer in rest))
    for peer in rest:
        peer.compact(last)
    cluster.start("3")
    three = cluster.peers["3"]
    cluster.run_until(lambda: sum(target == "3" and frames[1] == b"$" for _, target, frames in cluster.sent) > 5)
    assert three.log.snapshot.index == 0
    cluster.change(ids)
    cluster.commit(b"after")
    check_same(cluster, ids)
    if "3" in ids:
        assert three.log.snapshot.index >= last
    else:
        cluster.run_until(lambda: three.role == "client")


def test_a_snapshot_has_the_configuration_at_its_index() -> None:
    """FAULTS 26: not a later one, which may be truncated."""
    cluster = started(3)
    leader = cluster.leader()
    index = cluster.commit(b"before")
    rest = [peer.id for peer in others(cluster, leader)]
    cluster.partition([leader.id], rest)
    cluster.ask_change(leader.id, [leader.id, rest[0]])
    cluster.run(0.05)
    assert " " in leader.members
    leader.compact(index)
    assert leader.log.snapshot.context.peers == [(each, url_of(each)) for each in "123"]
    cluster.crash(leader.id)
    cluster.start(leader.id)
    cluster.heal()
    check_same(cluster, "123")


def test_two_changes_of_two_leaders_have_no_disjoint_majorities() -> None:
    """FAULTS 29: each of two leaders has appended a change of one member that nobody else has."""
    cluster = started(4, "56")
    leader = cluster.leader()
    rest = [peer.id for peer in others(cluster, leader) if peer.id in "1234"]
    cluster.partition([leader.id, "5"], [*rest, "6"])
    cluster.ask_change(leader.id, "12345")
    cluster.run_until(lambda: any(cluster.peers[each].role == "leader" for each in rest))
    second = next(cluster.peers[each] for each in rest if cluster.peers[each].role == "leader")
    cluster.partition([leader.id, "5"], [second.id, "6"], [each for each in rest if each != second.id])
    cluster.ask_change(second.id, "12346")
    cluster.run(2.0)
    assert (leader.members, second.members) == ("1234 12345", "1234 12346")
    cluster.heal()
    cluster.commit(b"one history")
    leader = cluster.leader()
    check_same(cluster, "".join(sorted(dict(leader.running.raft.configuration.peers))))


@pytest.mark.parametrize("seed", range(5))
def test_a_leader_whose_removal_only_it_has_stands_for_election_again(seed: int) -> None:
    """Thesis 4.2.2: the others need its vote, which it cannot give to a log that has less than its own."""
    cluster = VirtualCluster(2, seed)
    cluster.start()
    cluster.commit(b"before")
    leader = cluster.leader()
    (other,) = others(cluster, leader)
    cluster.ask_change(leader.id, [other.id])
    cluster.run_until(lambda: leader.members == other.id)
    # The final configuration is on its disk, and nowhere else.
    cluster.cut = {(leader.id, other.id), (other.id, leader.id)}
    cluster.run(0.05)
    assert other.members == f"12 {other.id}"
    cluster.crash(leader.id)
    cluster.heal()
    cluster.start(leader.id)
    assert leader.members == other.id
    cluster.run_until(lambda: other.members == other.id)
    cluster.run_until(lambda: (leader.role, other.role) == ("client", "leader"))
    cluster.commit(b"after")
    cluster.run(5.0)
    assert (leader.role, other.role) == ("client", "leader")


def test_a_peer_whose_removal_is_committed_does_not_stand_again() -> None:
    """Although it has forgotten that it is committed, as long as it can read that."""
    cluster = started(3)
    gone = others(cluster, cluster.leader())[0]
    cluster.change([peer.id for peer in cluster.peers.values() if peer is not gone])
    cluster.run_until(lambda: gone.role == "client")
    cluster.crash(gone.id)
    cluster.start(gone.id)
    leader = cluster.leader()
    term = leader.term
    cluster.run(10.0)
    assert (gone.role, leader.role, leader.term) == ("client", "leader", term)
    assert gone.term <= term


class TestComingBack:
    """FAULTS 36: an id that was removed comes back with an empty disk. It is a new peer, once all others know that.

    Before that it must not even be started: who lags behind takes its vote for that of the member it was, and may win
    without what was committed meanwhile.
    """

    @pytest.mark.parametrize("wait_s", [0.0, 0.5, 10.0])
    @pytest.mark.parametrize("as_member", [False, True])
    def test_it_gets_everything(self, wait_s: float, as_member: bool) -> None:
        """Also when it takes itself for a member, by its configuration file, and when the leader still has it among
        those whom it lets know."""
        cluster = started(3)
        last = max(cluster.commit(b"%d" % number) for number in range(10))
        leader = cluster.leader()
        gone, other = others(cluster, leader)
        cluster.run_until(lambda: leader.running.raft.progress[gone.id].match == last)
        cluster.crash(gone.id)
        cluster.change([leader.id, other.id])
        assert leader.running.raft.leaving
        gone.log, gone.persistence = MemoryLog(), MemoryPersistence()
        gone.configured = list("123") if as_member else [leader.id, other.id]
        cluster.run(wait_s)
        cluster.start(gone.id)
        cluster.change("123")
        cluster.run_until(lambda: gone.applied == leader.applied)
        assert not leader.running.raft.progress[gone.id].has_lost_data
        # A majority of it and the leader decides, and one of it and the other has what was decided.
        cluster.partition([leader.id, gone.id], [other.id])
        last = cluster.commit(b"without the other")
        cluster.run_until(lambda: gone.running.last_applied == last)
        cluster.partition([gone.id, other.id], [leader.id])
        cluster.run_until(lambda: gone.role == "leader")
        cluster.heal()
        check_same(cluster, "123")

    @pytest.mark.parametrize("seed", range(20))
    def test_at_random(self, seed: int) -> None:
        """Again and again, with partitions all the while."""
        random = Random(seed)
        cluster = VirtualCluster(random.choice((3, 4, 5)), seed)
        everybody = list(cluster.ids)
        for peer in cluster.peers.values():
            peer.configured = everybody
        invariants = Invariants(cluster)
        cluster.on_event = invariants.check
        cluster.start()
        for _ in range(8):
            cluster.heal()
            cluster.commit(b"before")
            gone = cluster.peers[random.choice(everybody)]
            if random.random() < 0.5:
                cluster.crash(gone.id)
            cluster.change([each for each in everybody if each != gone.id])
            cluster.run(random.choice((0.0, 0.01, 1.0, 5.0)))
            if gone.engine is not None:
                cluster.crash(gone.id)
            leader = cluster.leader()
            members = [each for each in cluster.peers.values() if each is not gone]
            known = leader.running.raft.configurations.current_index
            cluster.run_until(lambda: all(each.log.last_index >= known for each in members))  # noqa: B023
            gone.log, gone.persistence = MemoryLog(), MemoryPersistence()
            invariants.forget(gone.id)
            cluster.start(gone.id)
            cluster.run(random.choice((0.0, 0.3, 1.0)))
            cluster.ask_change(cluster.leader().id, everybody)
            for _ in range(4):
                group = random.sample(everybody, random.randint(1, len(everybody) - 1))
                cluster.partition(group, [each for each in everybody if each not in group])
                for leader in cluster.leaders:
                    cluster.update(leader.id, b"update")
                cluster.run(random.choice((0.01, 0.3, 1.0)))
            cluster.heal()
            cluster.run_until(lambda: not cluster.leader().running.raft.is_changing)
            if cluster.leader().members != "".join(everybody):
                cluster.change(everybody)
        cluster.heal()
        check_same(cluster, "".join(everybody))
        invariants.check_end()
