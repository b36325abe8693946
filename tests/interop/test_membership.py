"""Members come and go, of both kinds, by the clients of both; and who is far behind gets a snapshot."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.mixed_cluster import NODE, PYTHON, MixedCluster, read_log
from support.node import NodeProgram
from support.node_clients import NodeClient
from support.writers import Writers, check_logs, wait_all
from zmqraft import FileLog, SnapshotContext, SnapshotFile, ZmqRaftClient

BOTH = [PYTHON, NODE]
SNAPSHOT = b"".join(number.to_bytes(4, "big") for number in range(75_000))


def other(kind: str) -> str:
    return NODE if kind == PYTHON else PYTHON


@contextlib.contextmanager
def client_of(kind: str, modules: Path, cluster: MixedCluster) -> Iterator[ZmqRaftClient | NodeClient]:
    if kind == NODE:
        with NodeClient(modules, cluster.urls, secret=cluster.secret) as client:
            yield client
    else:
        with cluster.client() as client:
            yield client


@pytest.mark.parametrize("client_kind", BOTH)
@pytest.mark.parametrize("kind", BOTH)
def test_members_come_and_go(modules: Path, tmp_path: Path, kind: str, client_kind: str) -> None:
    """A peer of the other kind joins; then a follower is removed, then the leader, until it leads alone."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, 3 * kind))
        client = stack.enter_context(client_of(client_kind, modules, cluster))
        writers = stack.enter_context(Writers(modules, cluster.urls, cluster.secret))
        writers.write(100)
        members = ["1", "2", "3"]
        newcomer = cluster.add(other(kind), members)
        members.append(newcomer)
        index = client.request_config_update(None, cluster.peers(members))
        writers.write(50)
        cluster.wait_applied(index)
        assert sorted(client.request_config().peers) == cluster.peers(members)

        for _ in range(3):
            leader = cluster.leader_id()
            removed = next((each for each in members if each not in (leader, newcomer)), leader)
            members.remove(removed)
            client.request_config_update(None, cluster.peers(members))
            # Before those that they began with are gone, clients have to hear of the others.
            writers.write(20)
            writers.refresh()
            cluster.kill(removed)
            writers.write(20)
            assert sorted(client.request_config().peers) == cluster.peers(members)
        assert (members, cluster.leader_id()) == ([newcomer], newcomer)
        last = cluster.wait_caught_up()
        cluster.stop()
        check_logs({"1": read_log(cluster.data(newcomer))}, last, writers.acknowledged)


def test_a_whole_cluster_is_replaced_and_back_under_load(modules: Path, tmp_path: Path) -> None:
    """Node, one by one, by Python, and that by Node again; every second change by the other client."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, 3 * NODE))
        clients = [stack.enter_context(client_of(kind, modules, cluster)) for kind in BOTH]
        writers = stack.enter_context(Writers(modules, cluster.urls, cluster.secret))
        members = ["1", "2", "3"]
        for change, kind in enumerate(3 * PYTHON + 3 * NODE):
            under_way = writers.start(300)
            newcomer = cluster.add(kind, members)
            removed = members.pop(0)
            members.append(newcomer)
            clients[change % 2].request_config_update(None, cluster.peers(members))
            wait_all(under_way)
            # Before those that they began with are gone, clients have to hear of the others.
            writers.refresh()
            for client in clients:
                assert sorted(client.request_config().peers) == sorted(cluster.peers(members))
            cluster.stop(removed)
        last = cluster.wait_caught_up()
        cluster.stop()
        assert {cluster.places[each].kind for each in members} == {NODE}
        logs = {"1": read_log(cluster.data(members[0])), **{each: read_log(cluster.data(each)) for each in members[1:]}}
        check_logs(logs, last, writers.acknowledged)


@pytest.mark.parametrize("kind", BOTH)
def test_a_peer_far_behind_gets_a_snapshot(modules: Path, tmp_path: Path, kind: str) -> None:
    """Two peers of a kind have compacted their logs before the third, of the other kind, has anything."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, 2 * kind + other(kind), start=False))
        cluster.start("1", "2")
        writers = stack.enter_context(Writers(modules, cluster.urls, cluster.secret))
        writers.write(200)
        index = cluster.wait_caught_up()
        cluster.stop()
        for peer_id in ("1", "2"):
            compact(cluster, peer_id, index - 10, modules)
        cluster.start("1", "2", "3")
        writers.write(200)
        last = cluster.wait_caught_up()
        cluster.stop()
        logs = cluster.logs()
        for log in logs.values():
            assert log[: last - index + 10] == logs["1"][: last - index + 10]
            assert log[0].index == index - 9
        with contextlib.closing(SnapshotFile.open(cluster.data("3") / "snap")) as snapshot:
            assert (snapshot.index, b"".join(snapshot.chunks())) == (index - 10, SNAPSHOT)

        # And it can lead with what it has.
        cluster.start("1", "2", "3")
        cluster.make_lead(["3"])
        writers.write(50)
        last = cluster.wait_caught_up()
        cluster.stop()
        logs = cluster.logs()
        assert len({tuple(entry for entry in log if entry.index <= last) for log in logs.values()}) == 1
        found = {entry.request_id: entry.index for entry in logs["1"]}
        recent = {id: index for id, index in writers.acknowledged.items() if index >= logs["1"][0].index}
        assert {id: found.get(id) for id in recent} == recent
        assert len(recent) >= 250


def compact(cluster: MixedCluster, peer_id: str, index: int, modules: Path) -> None:
    """Put a snapshot of several chunks in the place of the entries of a peer that is stopped, as its kind does."""
    data = cluster.data(peer_id)
    if cluster.places[peer_id].kind == PYTHON:
        with contextlib.closing(FileLog.open(data / "log", data / "snap")) as log:
            context = SnapshotContext(cluster.peers(["1", "2", "3"]), 0, log.packed_requests(index))
            snapshot = log.begin_snapshot(index, context)([SNAPSHOT])
            log.begin_compaction(snapshot)()
            log.compact(snapshot)
    else:
        content = base64.b64encode(SNAPSHOT).decode()
        with NodeProgram(modules, "data.js") as node:
            node.call("openLog", directory=str(data), options={})
            node.call("install", index=index, term=0, data=content, compaction=True)
            node.call("closeLog")
