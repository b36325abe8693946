"""A leader's syncs in the background: what counts before they are done, and what ends them. Virtual time."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from support.virtual_cluster import SECRET, VirtualCluster, sync_in_background
from zmqraft.errors import InvariantError, StorageFailedError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, Protocols, new_request_id
from zmqraft.storage import FileLog, MemoryLog
from zmqraft.storage.fs import OsFileSystem

WALL = 1_800_000_000.0


@pytest.fixture
def sync_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """Longer than the links take to and fro."""
    sync_in_background(monkeypatch, 0.05)
    return 0.05


def entries(first: int, last: int, term: int = 1) -> EntryBatch:
    return EntryBatch.from_entries(
        [LogEntry(index, term, EntryType.STATE, new_request_id(WALL), b"data") for index in range(first, last + 1)]
    )


def test_entries_travel_while_the_leader_syncs_and_are_acknowledged_behind_it(sync_s: float) -> None:
    """FAULTS section 3, invariant 4: both followers have the entry, but nothing is told before the leader has it."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.commit(b"first")
    cluster.run(1.0)
    began = cluster.now
    request_id = cluster.update(leader.id, b"second")
    cluster.run(sync_s / 2)
    assert [peer.log.last_index for peer in cluster.peers.values()] == [3, 3, 3]
    assert leader.running.raft.synced_index == 2
    assert cluster.committed(request_id) is None
    assert len(leader.applied) == 2
    cluster.run_until(lambda: cluster.committed(request_id) == 3)
    assert cluster.now - began == pytest.approx(sync_s, abs=4 * cluster.delay)


def test_a_leader_alone_acknowledges_only_what_is_synced(sync_s: float) -> None:
    """FAULTS 19."""
    cluster = VirtualCluster(1)
    cluster.start()
    leader = cluster.leader()
    cluster.run(1.0)
    request_id = cluster.update("1", b"data")
    cluster.run(sync_s / 2)
    assert leader.running.raft.commit_index == 1
    cluster.crash("1")
    cluster.start("1")
    cluster.run(1.0)
    assert cluster.committed(request_id) is None
    assert [entry for entry in leader.entries() if entry.is_state] == []


def test_what_comes_during_a_sync_is_the_next_one(sync_s: float) -> None:
    cluster = VirtualCluster(1)
    cluster.start()
    leader = cluster.leader()
    cluster.run(1.0)
    first = cluster.update("1", b"first")
    cluster.run(sync_s / 2)
    second = cluster.update("1", b"second")
    cluster.run(sync_s * 0.75)
    assert (cluster.committed(first), cluster.committed(second)) == (2, None)
    assert leader.running.raft.synced_index == 2
    cluster.run(sync_s)
    assert cluster.committed(second) == 3


def test_a_sync_that_ends_after_its_leader_was_deposed_counts_for_nothing(sync_s: float) -> None:
    """FAULTS 15: what it covered may have been cut off and written anew by then."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.run(1.0)
    raft = leader.running.raft
    cluster.update(leader.id, b"data")
    cluster.run(0.0)
    assert raft.synced_index < leader.log.last_index
    other = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
    heartbeat = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, other, leader.term + 1, 1, 1, 0)
    cluster.inject(leader.id, 1, heartbeat, identity=b"by hand")
    # Its turn syncs by itself, before it says anything.
    cluster.run(0.0)
    assert leader.role == "follower"
    synced = raft.synced_index
    assert synced == leader.log.last_index
    cluster.run(sync_s)
    with pytest.raises(InvariantError, match="synced"):
        raft.log_synced(synced)


def test_a_leader_whose_disk_hangs_steps_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 46: heartbeats alone must not keep it in office."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.run(1.0)
    term = leader.term
    sync_in_background(monkeypatch, 3600.0)
    cluster.update(leader.id, b"data")
    cluster.run(0.25)
    assert leader.role == "leader"
    cluster.run(0.1)
    assert (leader.role, leader.term) == ("follower", term)


class TestFileLog:
    def test_a_sync_that_was_given_out_covers_what_was_there(self, tmp_path: Path) -> None:
        log = FileLog.open(tmp_path / "log", tmp_path / "snap")
        assert log.begin_sync() is None
        log.append(entries(1, 3))
        sync = log.begin_sync()
        assert sync is not None
        log.append(entries(4, 4))
        with pytest.raises(RuntimeError, match="has not returned"):
            log.begin_sync()
        sync()
        again = log.begin_sync()
        assert again is not None
        again()
        assert log.begin_sync() is None
        log.close()

    def test_one_that_fails_is_the_end_of_the_log(self, tmp_path: Path) -> None:
        """FAULTS W13, W15, 45."""

        class FailingFileSystem(OsFileSystem):
            fails = False

            def fdatasync(self, handle: int) -> None:
                if self.fails:
                    raise OSError(errno.EIO, "Input/output error")
                super().fdatasync(handle)

        fs = FailingFileSystem()
        log = FileLog.open(tmp_path / "log", tmp_path / "snap", fs=fs)
        log.append(entries(1, 3))
        sync = log.begin_sync()
        assert sync is not None
        fs.fails = True
        with pytest.raises(StorageFailedError, match="Input/output error"):
            sync()
        fs.fails = False
        for change in (log.sync, lambda: log.append(entries(4, 4)), lambda: log.truncate_after(1), log.begin_sync):
            with pytest.raises(StorageFailedError):
                change()
        log.close()


@pytest.mark.parametrize("is_done", [False, True])
def test_a_log_in_memory_keeps_what_its_sync_covered(is_done: bool) -> None:
    log = MemoryLog()
    log.append(entries(1, 3))
    sync = log.begin_sync()
    assert sync is not None
    log.append(entries(4, 5))
    if is_done:
        sync()
    assert log.crash().last_index == (3 if is_done else 0)


def test_a_log_in_memory_that_changes_before_its_sync_is_done_keeps_the_change() -> None:
    log = MemoryLog()
    log.append(entries(1, 3))
    sync = log.begin_sync()
    assert sync is not None
    log.truncate_after(2)
    log.append(entries(3, 3, term=2))
    log.sync()
    sync()
    assert [entry.term for entry in log.crash().read(1, 3, 1 << 20)] == [1, 1, 2]


def test_a_sync_that_is_reported_in_the_turn_in_which_its_leader_is_deposed_counts_for_nothing(sync_s: float) -> None:
    """The host may hand in what has arrived in any order."""
    cluster = VirtualCluster(3)
    cluster.start()
    leader = cluster.leader()
    cluster.run(1.0)
    engine = leader.running
    cluster.update(leader.id, b"data")
    cluster.run(0.0)
    sync = engine._sync
    assert sync is not None
    other = next(peer_id for peer_id in cluster.ids if peer_id != leader.id)
    heartbeat = Protocols.APPEND_ENTRIES.encode_request(b"+", SECRET, other, leader.term + 1, 1, 1, 0)
    engine.receive([b"by hand", b"\1", *heartbeat], cluster.now, cluster.wall)
    assert leader.role == "follower"
    before = engine.raft.synced_index
    sync.run()
    engine.synced(sync)
    assert engine.raft.synced_index == before
