"""Logs that are compacted in the middle of elections, crashes and repetitions, in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from support.logs import read_all
from support.virtual_cluster import SECRET, Peer, VirtualCluster, settings_of
from zmqraft import constants
from zmqraft.api import SnapshotContext
from zmqraft.errors import InvariantError
from zmqraft.protocol import EntryBatch, LogEntry, Protocols, new_request_id
from zmqraft.server.applier import ViewHandler
from zmqraft.server.compaction import Compactor
from zmqraft.storage import MemorySnapshot


def compact(peer: Peer, index: int) -> None:
    log = peer.log
    peers = peer.running.raft.configuration.to_value()
    context = SnapshotContext(peers, 0, log.packed_requests(index), peer.running.requests_forgotten_until)
    snapshot = log.begin_snapshot(index, context)([b"state at %d" % index])
    log.begin_compaction(snapshot)()
    peer.running.compact(snapshot)
    assert peer.log.first_index == peer.running.raft.log.first_index == index + 1


class Check:
    """What was applied at an index is the same everywhere and for ever; each peer applies without gaps."""

    def __init__(self, cluster: VirtualCluster) -> None:
        self.cluster = cluster
        self.entries: dict[int, LogEntry] = {}

    def __call__(self) -> None:
        for peer in self.cluster.peers.values():
            assert peer.failure is None
            for position, entry in enumerate(peer.applied):
                assert self.entries.setdefault(entry.index, entry) == entry
                assert entry.index == peer.applied[0].index + position
            for entry in read_all(peer.log):
                known = self.entries.get(entry.index)
                assert known is None or peer.engine is None or entry.term <= peer.term


def send(cluster: VirtualCluster, request_id: bytes, data: bytes) -> int:
    for _ in range(20):
        cluster.client_replies.pop(request_id, None)
        cluster.update(cluster.leader().id, data, request_id)
        cluster.run_until(lambda: cluster.result(request_id) is not None)
        if (index := cluster.committed(request_id)) is not None:
            return index
        cluster.run(0.3)
    raise AssertionError("20 leaders in a row refused an update")


@pytest.mark.parametrize("seed", range(8))
def test_compactions_at_any_time(seed: int) -> None:
    random = Random(seed)
    cluster = VirtualCluster(3, seed=seed)
    cluster.start()
    check = Check(cluster)
    acknowledged: dict[bytes, int] = {}
    compactions = 0
    for _ in range(60):
        kind = random.random()
        peer = cluster.peers[random.choice(cluster.ids)]
        if kind < 0.4:
            for _ in range(random.randint(1, 5)):
                request_id = new_request_id(cluster.wall)
                acknowledged[request_id] = send(cluster, request_id, b"data of " + request_id)
        elif kind < 0.7:
            applied = min(each.running.last_applied for each in cluster.peers.values())
            if peer.log.snapshot.index < applied:
                compact(peer, random.randint(peer.log.snapshot.index + 1, applied))
                compactions += 1
        elif kind < 0.8:
            cluster.crash(peer.id)
            cluster.run(random.random())
            cluster.start(peer.id)
        elif kind < 0.9:
            cluster.partition([each for each in cluster.ids if each != peer.id])
            cluster.run(random.random())
            cluster.heal()
        elif acknowledged:
            request_id = random.choice(list(acknowledged))
            assert send(cluster, request_id, b"data of " + request_id) == acknowledged[request_id]
        cluster.run(random.random() * 0.1)
        check()
    assert compactions > 5
    last = send(cluster, new_request_id(cluster.wall), b"the end")
    cluster.run_until(lambda: all(each.running.last_applied >= last for each in cluster.peers.values()))
    check()
    for request_id, index in acknowledged.items():
        if index in check.entries:
            assert check.entries[index].request_id == request_id


def test_an_old_append_to_a_compacted_log_changes_nothing() -> None:
    """FAULTS 17 and 18: a message that was under way since before the compaction."""
    cluster = VirtualCluster(3)
    cluster.start()
    for number in range(10):
        cluster.commit(b"%d" % number)
    leader = cluster.leader()
    cluster.run_until(lambda: all(peer.running.last_applied >= 11 for peer in cluster.peers.values()))
    follower = next(peer for peer in cluster.peers.values() if peer is not leader)
    old = follower.log.read(1, 8, 1 << 20)
    compact(follower, 9)
    before = read_all(follower.log)
    for count in (0, 3, 8):
        frames = Protocols.APPEND_ENTRIES.encode_request(
            constants.APPEND_ENTRIES,
            SECRET,
            leader.id,
            leader.term,
            0,
            0,
            11,
            *([old.frames()[:count]] if count else []),
        )
        cluster.inject(follower.id, 77 + count, frames, b"%s>%s#9" % (leader.id.encode(), follower.id.encode()))
        cluster.run(0.05)
        assert read_all(follower.log) == before
    assert cluster.commit(b"goes on") == 12
    cluster.run_until(lambda: follower.running.last_applied >= 12)


def test_a_snapshot_above_what_is_applied_is_refused() -> None:
    cluster = VirtualCluster(1)
    cluster.start()
    cluster.commit(b"1")
    peer = cluster.leader()
    peer.log.append(EntryBatch.from_entries([LogEntry.checkpoint(peer.log.last_index + 1, peer.term)]))
    with pytest.raises(InvariantError, match="a snapshot of index 3, but 2 is the last applied"):
        peer.running.compact(MemorySnapshot(3, peer.term))
    assert (peer.log.first_index, peer.running.raft.log.first_index) == (1, 1)


class Later:
    """A host whose background work is done when the test says so."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self.index = 0

    def take_view(self, on_view: ViewHandler) -> None:
        on_view(self.index, b"state at %d" % self.index)

    def in_background(
        self, work: Callable[[], Any], on_done: Callable[[Any], None], on_error: Callable[[BaseException], None]
    ) -> None:
        self.jobs.append((work, on_done))

    def compacted(self, index: int) -> None:
        raise AssertionError(f"compacted at {index}")


def test_a_leaders_snapshot_overtakes_a_compaction() -> None:
    """Installed while the other one was taking its place in the background: that one is not used any more."""
    cluster = VirtualCluster(1)
    cluster.start()
    for number in range(10):
        cluster.commit(b"%d" % number)
    peer = cluster.peers["1"]
    log, host = peer.log, Later()
    compactor = Compactor(settings_of("1", ["1"]), peer.running, log)
    compactor.attach(host)
    host.index = 5
    future = compactor.request(force=True, install=False)
    compactor.tick(0.0)
    # Looking for one that waits, then writing one.
    for _ in range(2):
        work, done = host.jobs.popleft()
        done(work())
        compactor.tick(10.0)
    place, placed = host.jobs.popleft()
    result = place()
    receiver = log.begin_receive(9, log.term_at(9) or 0, 3, SnapshotContext())
    receiver.write(b"new")
    log.install(receiver.finish())
    placed(result)
    assert future.result(0) == 9
    assert (log.snapshot.index, log.snapshot.read(0, 9), log.crash().snapshot.index) == (9, b"new", 9)
