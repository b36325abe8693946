"""RequestUpdate, in virtual time, over whole engines (SPEC section 2, "Updates")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from support.virtual_cluster import SECRET, Peer, VirtualCluster
from zmqraft.constants import ABSENT
from zmqraft.protocol import Protocols, decode_json, new_request_id
from zmqraft.server import client_requests
from zmqraft.server.client_requests import ACCEPT_AFTER

HOUR = 3600.0
ACCEPTED = (True, ABSENT)
REFUSED_FOR_EVER = (False, ABSENT)


@pytest.fixture
def cluster() -> VirtualCluster:
    cluster = VirtualCluster(3)
    cluster.start()
    cluster.leader()
    cluster.run(0.1)
    return cluster


def replies(cluster: VirtualCluster, request_id: bytes) -> list[tuple[object, ...]]:
    return [Protocols.REQUEST_UPDATE.decode_response(frames) for frames in cluster.client_replies.get(request_id, [])]


def test_a_committed_update_is_answered_once_with_its_index(cluster: VirtualCluster) -> None:
    request_id = cluster.update(cluster.leader().id, b"data")
    cluster.run(1.0)
    assert replies(cluster, request_id) == [(True, 2)]


def test_it_is_answered_only_when_a_majority_has_it_on_disk(cluster: VirtualCluster) -> None:
    leader = cluster.leader()
    cluster.partition()
    request_id = cluster.update(leader.id, b"data")
    cluster.run(0.1)
    assert leader.log.last_index == 2
    assert replies(cluster, request_id) == []


def test_a_repeated_id_gets_the_same_index_whatever_its_data(cluster: VirtualCluster) -> None:
    request_id = cluster.update(cluster.leader().id, b"data")
    cluster.run(0.1)
    cluster.update(cluster.leader().id, b"other data", request_id)
    cluster.run(0.1)
    assert replies(cluster, request_id) == [(True, 2), (True, 2)]
    assert cluster.leader().log.last_index == 2


def test_a_repeated_id_is_known_to_the_next_leader_and_after_restarts(cluster: VirtualCluster) -> None:
    """FAULTS 42: the leader dies after the commit, the client repeats."""
    request_id = cluster.update(cluster.leader().id, b"data")
    cluster.run(0.1)
    cluster.crash(*cluster.ids)
    cluster.start()
    cluster.update(cluster.leader().id, b"data", request_id)
    cluster.run(0.5)
    assert replies(cluster, request_id)[-1] == (True, 2)
    assert sum(entry.request_id == request_id for entry in cluster.leader().entries()) == 1


def test_a_repetition_before_the_commit_is_accepted_and_answered_on_its_own_route(cluster: VirtualCluster) -> None:
    """FAULTS W22: the final reply goes to who asked last."""
    leader = cluster.leader()
    routes: list[bytes] = []
    reply = cluster._reply

    def note(peer: Peer, messages: Iterable[Sequence[bytes]]) -> None:
        messages = list(messages)
        routes.extend(frames[0] for frames in messages if frames[1] == request_id)
        reply(peer, messages)

    cluster._reply = note  # type: ignore[method-assign]
    request_id = new_request_id(cluster.wall)
    frames = Protocols.REQUEST_UPDATE.encode_request(b"=", SECRET, b"data")
    now, wall = cluster.now, cluster.wall
    leader.running.receive([b"old route", request_id, *frames], now, wall)
    leader.running.receive([b"new route", request_id, *frames], now, wall)
    leader.running.begin_turn(now, wall)
    leader.running.finish_turn(now)
    assert list(leader.running.take_replies()) == [[b"new route", request_id, b"\1"]]
    cluster.run(0.5)
    assert replies(cluster, request_id) == [(True, 2)]
    assert routes == [b"new route"]
    assert leader.log.last_index == 2


def test_an_update_that_takes_long_is_accepted_once_in_between(cluster: VirtualCluster) -> None:
    leader = cluster.leader()
    cluster.partition()
    request_id = cluster.update(leader.id, b"data")
    cluster.run(ACCEPT_AFTER - 0.01)
    assert replies(cluster, request_id) == []
    cluster.run(0.02)
    assert replies(cluster, request_id) == [ACCEPTED]
    cluster.heal()
    cluster.run(1.0)
    assert replies(cluster, request_id)[1:] in ([(True, 2)], [(False, None)])


def test_a_follower_refuses_and_says_who_leads(cluster: VirtualCluster) -> None:
    leader = cluster.leader()
    follower = next(peer for peer in cluster.peers.values() if peer is not leader)
    request_id = cluster.update(follower.id, b"data")
    cluster.run(0.1)
    assert replies(cluster, request_id) == [(False, leader.id)]


def test_who_does_not_know_the_leader_says_so() -> None:
    cluster = VirtualCluster(3)
    cluster.start("1")
    cluster.run(0.1)
    request_id = cluster.update("1", b"data")
    cluster.run(0.1)
    assert replies(cluster, request_id) == [(False, None)]


@pytest.mark.parametrize(
    ("age_s", "final"),
    [
        (9 * HOUR, REFUSED_FOR_EVER),
        (7.76 * HOUR, REFUSED_FOR_EVER),
        (7.74 * HOUR, (True, 2)),
        (0.0, (True, 2)),
        (-0.24 * HOUR, (True, 2)),
        (-0.26 * HOUR, REFUSED_FOR_EVER),
    ],
)
def test_the_time_in_an_unknown_id_must_be_near(cluster: VirtualCluster, age_s: float, final: object) -> None:
    """Later than now - (8 h - 15 min), earlier than now + 15 min."""
    request_id = new_request_id(cluster.wall - age_s)
    cluster.update(cluster.leader().id, b"data", request_id)
    cluster.run(0.1)
    assert replies(cluster, request_id) == [final]


def test_a_known_id_is_answered_however_old_it_looks(cluster: VirtualCluster) -> None:
    request_id = new_request_id(cluster.wall - 7.7 * HOUR)
    cluster.update(cluster.leader().id, b"data", request_id)
    # Past the window in which it would be taken as a new one, within the time to live.
    cluster.wall_step = 0.2 * HOUR
    cluster.run(1.5)
    cluster.update(cluster.leader().id, b"data", request_id)
    cluster.run(0.1)
    assert replies(cluster, request_id) == [(True, 2), (True, 2)]


def test_without_a_time_to_live_any_id_is_taken() -> None:
    cluster = VirtualCluster(1, request_id_ttl=None)
    cluster.start()
    cluster.leader()
    request_id = new_request_id(1.0)
    cluster.update("1", b"data", request_id)
    cluster.run(0.1)
    assert replies(cluster, request_id) == [(True, 2)]


def test_an_id_that_was_forgotten_stays_refused_when_the_clock_is_set_back(cluster: VirtualCluster) -> None:
    """FAULTS W21: a jump of the clock must not let an update in twice."""
    leader = cluster.leader()
    request_id = cluster.update(leader.id, b"data")
    cluster.wall_step = 9 * HOUR
    cluster.run(2.0)
    assert leader.log.find_request(request_id) is None
    cluster.wall_step = 0.0
    cluster.update(leader.id, b"data", request_id)
    cluster.run(0.1)
    assert replies(cluster, request_id)[-1] == REFUSED_FOR_EVER
    assert sum(entry.request_id == request_id for entry in leader.entries()) == 1


@pytest.mark.parametrize("data", [b"", bytes(10 * 1024 * 1024 + 1)], ids=["empty", "too large"])
def test_data_of_a_wrong_size_is_ignored(cluster: VirtualCluster, data: bytes) -> None:
    leader = cluster.leader()
    request_id = cluster.update(leader.id, data)
    cluster.run(0.1)
    assert replies(cluster, request_id) == []
    assert leader.running.dropped["malformed message"] == 1
    assert leader.log.last_index == 1


def test_a_leader_that_steps_down_tells_who_waits(cluster: VirtualCluster) -> None:
    leader = cluster.leader()
    others = [peer_id for peer_id in cluster.ids if peer_id != leader.id]
    cluster.partition(others)
    waiting = [cluster.update(leader.id, b"data") for _ in range(3)]
    cluster.run(0.5)
    assert leader.role != "leader"
    assert all(replies(cluster, request_id)[-1] == (False, None) for request_id in waiting)


def test_an_update_that_came_with_the_end_of_leadership_is_not_stamped_with_a_later_term(
    cluster: VirtualCluster,
) -> None:
    """FAULTS 14: queued in one term, written in another."""
    leader = cluster.leader()
    request_id = new_request_id(cluster.wall)
    frames = Protocols.REQUEST_UPDATE.encode_request(b"=", SECRET, b"data")
    leader.running.receive([b"client", request_id, *frames], cluster.now, cluster.wall)
    other = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
    append = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, other, 78, 1, 1, 1)
    leader.running.receive([b"x", b"\1", *append], cluster.now, cluster.wall)
    cluster._soon(leader)
    cluster.run(0.001)
    assert leader.log.last_index == 1
    assert replies(cluster, request_id) == [(False, other)]


def test_what_a_leader_without_a_majority_holds_is_bounded(
    cluster: VirtualCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS W23: further updates are dropped, and taken again when there is room."""
    monkeypatch.setattr(client_requests, "UNCOMMITTED_COUNT_MAX", 5)
    leader = cluster.leader()
    cut, cluster.cut = cluster.cut, {(a, b) for a in cluster.ids for b in cluster.ids}
    ids = [cluster.update(leader.id, b"data") for _ in range(8)]
    cluster.run(0.05)
    assert leader.log.last_index == 6
    assert leader.running.dropped["too many uncommitted updates"] == 3
    cluster.cut = cut
    cluster.run(0.2)
    assert [bool(cluster.committed(request_id)) for request_id in ids] == [True] * 5 + [False] * 3
    cluster.update(leader.id, b"data", ids[-1])
    cluster.run(0.1)
    assert cluster.committed(ids[-1]) == 7


def test_the_bound_on_bytes_is_for_what_waits_now(cluster: VirtualCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_requests, "UNCOMMITTED_SIZE_MAX", 1000)
    for _ in range(10):
        request_ids = [cluster.update(cluster.leader().id, bytes(400)) for _ in range(2)]
        cluster.run(0.1)
        assert all(map(cluster.committed, request_ids))
    assert "too many uncommitted updates" not in cluster.leader().running.dropped


def test_a_config_update_is_refused_for_now(cluster: VirtualCluster) -> None:
    leader = cluster.leader()
    request_id = new_request_id(cluster.wall)
    cluster.request(leader.id, request_id, Protocols.CONFIG_UPDATE.encode_request(b"&", SECRET, [["1", "tcp://a:1"]]))
    cluster.run(0.1)
    ((status, reason),) = cluster.client_replies[request_id]
    assert status == b"\2"
    assert set(decode_json(reason)) == {"name", "message"}  # type: ignore[call-overload]
