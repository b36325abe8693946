"""Each side's subscribers to the other side's broadcasts: every entry once, in order, over the loss of leaders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.local_cluster import wait_for
from support.mixed_cluster import NODE, PYTHON, MixedCluster
from support.node_clients import NodeSubscriber
from zmqraft import LogEntry, SnapshotChunk, ZmqRaftClient, ZmqRaftPeerSub, ZmqRaftSubscriber, new_request_id

#: The kind of the peers, and of the subscriber.
CROSSED = [(PYTHON, NODE), (NODE, PYTHON)]


class Subscriber:
    """A subscriber of either kind: what it received so far, and its writing side."""

    def __init__(self, inner: ZmqRaftSubscriber | NodeSubscriber) -> None:
        self._inner = inner
        self._items: list[LogEntry | SnapshotChunk] = []

    def wait_index(self, index: int) -> list[LogEntry | SnapshotChunk]:
        """All that came, up to an index."""
        if isinstance(self._inner, NodeSubscriber):
            return self._inner.wait_index(index)
        while not self._items or self._items[-1].index < index:
            self._items.append(self._inner.get(60))
        return self._items

    def write(self, request_id: bytes, data: bytes) -> None:
        if isinstance(self._inner, NodeSubscriber):
            self._inner.write(request_id, data)
        else:
            self._inner.request_update(request_id, data, deadline_s=60)


@contextlib.contextmanager
def subscriber_of(kind: str, modules: Path, cluster: MixedCluster, last_index: int = 0) -> Iterator[Subscriber]:
    make: Callable[[], ZmqRaftSubscriber | NodeSubscriber]
    if kind == NODE:
        make = lambda: NodeSubscriber(modules, cluster.urls, secret=cluster.secret, last_index=last_index)  # noqa: E731
    else:
        make = lambda: ZmqRaftSubscriber(cluster.urls, secret=cluster.secret, last_index=last_index)  # noqa: E731
    with make() as inner:
        yield Subscriber(inner)


def update(client: ZmqRaftClient, count: int, text: str) -> dict[bytes, int]:
    """Make updates; their indexes by their request ids."""
    ids = [new_request_id() for _ in range(count)]
    updates = ((request_id, f"{text} {number}".encode()) for number, request_id in enumerate(ids))
    return dict(zip(ids, client.request_updates(updates, 32), strict=True))


@pytest.mark.parametrize(("peers", "kind"), CROSSED)
def test_every_entry_once_through_leader_changes(modules: Path, tmp_path: Path, peers: str, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, 3 * peers))
        client = stack.enter_context(cluster.client())
        made = update(client, 300, "before anybody listens")
        early = stack.enter_context(subscriber_of(kind, modules, cluster))
        middle = stack.enter_context(subscriber_of(kind, modules, cluster, 100))
        early.wait_index(100)
        for loss in range(2):
            made |= update(client, 100, f"before loss {loss}")
            leader = cluster.leader_id()
            cluster.kill(leader)
            made |= update(client, 100, f"during loss {loss}")
            cluster.start(leader)
            made |= update(client, 100, f"after loss {loss}")
        request_id = new_request_id()
        early.write(request_id, b"from the writing side")
        made |= update(client, 1, "the last")
        last = max(made.values())
        log = list(client.request_entries(0))
        for subscriber, first in ((early, 1), (middle, 101)):
            entries = subscriber.wait_index(last)
            assert [entry.index for entry in entries] == list(range(first, last + 1))
            assert entries == log[first - 1 : last]
        found = {entry.request_id: entry.index for entry in log if isinstance(entry, LogEntry) and entry.is_state}
        assert {id: found.get(id) for id in made} == made
        assert log[found[request_id] - 1].data == b"from the writing side"
        client.close()
        cluster.stop()


@pytest.mark.parametrize(("peers", "kind"), CROSSED)
def test_large_entries_and_a_gap_of_many(modules: Path, tmp_path: Path, peers: str, kind: str) -> None:
    """What one broadcast carries is far more than a reply of RequestEntries; and a late one has all of it to fetch."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, peers))
        client = stack.enter_context(cluster.client())
        early = stack.enter_context(subscriber_of(kind, modules, cluster))
        for size in (10, 100_000, 500):
            list(client.request_updates((bytes([size % 256]) * size for _ in range(100)), 64))
        last = client.request_update(None, b"the last")
        log = list(client.request_entries(0))
        assert early.wait_index(last) == log
        with subscriber_of(kind, modules, cluster, last - 150) as late:
            assert late.wait_index(last) == log[-150:]
            last = client.request_update(None, b"one more")
            assert late.wait_index(last)[-1].index == last
        client.close()
        cluster.stop()


def test_zmq_raft_peer_sub_of_our_leader(modules: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, 3 * PYTHON))
        client = stack.enter_context(cluster.client())
        update(client, 50, "before")
        url = cluster.places[cluster.leader_id()].url
        subscriber = stack.enter_context(NodeSubscriber(modules, [url], secret=cluster.secret, kind="peer"))
        subscriber.wait_index(10)
        last = max(update(client, 50, "after").values())
        assert subscriber.wait_index(last) == list(client.request_entries(0))
        # It tells the end of the stream when its peer does not lead any more.
        cluster.stop(cluster.leader_id())
        wait_for(lambda: any(each["event"] in ("end", "error") for each in subscriber.program.events), "the end")


def test_our_peer_sub_of_zmq_rafts_leader(modules: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, 3 * NODE))
        client = stack.enter_context(cluster.client())
        leader = cluster.places[cluster.leader_id()]
        subscriber = stack.enter_context(ZmqRaftPeerSub(leader.url, secret=cluster.secret))
        # From the first heartbeat on, nothing is missed.
        term, last_applied, entries = subscriber.get(60)
        assert list(entries) == []
        found: list[LogEntry] = []
        last = max(update(client, 200, "update").values())
        while not found or found[-1].index < last:
            message_term, last_applied, entries = subscriber.get(60)
            assert message_term == term
            found += entries
            assert last_applied == (found[-1].index if found else 0)
        assert found == list(client.request_entries(0))
