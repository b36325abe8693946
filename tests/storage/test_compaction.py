"""Compaction of a log: the first index moves up, request ids stay, files go when nobody needs them, over every log."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from support.file_systems import MemoryDisk, ProbeFileSystem
from support.logs import batch_of, make_entry, read_all
from zmqraft.api import LogBase, SnapshotContext
from zmqraft.errors import CorruptionError, StorageFailedError
from zmqraft.storage import FileLog, MemoryLog, SnapshotFile, SnapshotWriter

PEERS = [("1", "tcp://127.0.0.1:8047"), ("2", "tcp://127.0.0.1:8147")]
START = 1_700_000_000


def open_files(disk: MemoryDisk | ProbeFileSystem, **options: int) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", fs=disk, **{"capacity": 8, **options})


class Logs:
    """A log, and what is found of it after a crash."""

    def __init__(self, kind: str) -> None:
        self.disk = MemoryDisk()
        self.log: LogBase = open_files(self.disk) if kind == "files" else MemoryLog()

    def crash(self) -> LogBase:
        if isinstance(self.log, MemoryLog):
            self.log = self.log.crash()
        else:
            self.disk = self.disk.crash()
            self.log = open_files(self.disk)
        return self.log


@pytest.fixture(params=["memory", "files"])
def logs(request: pytest.FixtureRequest) -> Iterator[Logs]:
    made = Logs(request.param)
    yield made
    made.log.close()


def fill(log: LogBase, count: int, term: int = 1) -> None:
    log.append(batch_of(*(make_entry(log.last_index + number, term) for number in range(1, count + 1))))
    log.sync()


def compact(log: LogBase, index: int, data: bytes = b"state", context: SnapshotContext | None = None) -> None:
    context = context or SnapshotContext(PEERS, 1, log.packed_requests(index))
    snapshot = log.begin_snapshot(index, context)([data])
    log.begin_compaction(snapshot)()
    log.compact(snapshot)


def test_the_first_index_moves_up_and_ids_stay(logs: Logs) -> None:
    log = logs.log
    fill(log, 20)
    fill(log, 10, 3)
    for index in (5, 20, 24, 30):
        compact(log, index, b"state %d" % index)
        for found in (log, logs.crash()):
            assert (found.first_index, found.last_index) == (index + 1, 30)
            assert (found.snapshot.index, found.snapshot.read(0, 100)) == (index, b"state %d" % index)
            assert found.snapshot.context.peers == PEERS
            assert found.term_at(index) == found.snapshot.term == (1 if index <= 20 else 3)
            assert (found.term_at(index - 1), found.last_term) == (None, 3)
            assert [entry.index for entry in read_all(found)] == list(range(index + 1, 31))
            runs = [(max(first, index + 1), term) for first, term in ((1, 1), (21, 3)) if index < 30]
            assert found.term_runs() == (runs if index < 20 else runs[1:])
            assert [found.find_request(make_entry(at, 1 if at <= 20 else 3).request_id) for at in (1, 20, 25)] == [
                1,
                20,
                25,
            ]
            assert found.prune_index == 0
        log = logs.log
    fill(log, 3, 4)
    assert [entry.index for entry in read_all(logs.crash())] == [31, 32, 33]


def test_what_is_no_compaction_is_refused_and_changes_nothing(logs: Logs) -> None:
    log = logs.log
    fill(log, 10)
    for index in (-1, 0, 11):
        with pytest.raises(ValueError, match="no snapshot can be taken at"):
            log.begin_snapshot(index, SnapshotContext())
    stale = log.begin_snapshot(8, SnapshotContext())([b"8"])
    log.truncate_after(6)
    for call in (log.begin_compaction, log.compact):
        with pytest.raises(ValueError, match="is not within the log, 1 to 6"):
            call(stale)
    fill(log, 4, 2)
    for call in (log.begin_compaction, log.compact):
        with pytest.raises(ValueError, match="has term 1, the entry 2"):
            call(stale)
    compact(log, 9)
    for call in (log.begin_compaction, log.compact):
        with pytest.raises(ValueError, match="is not within the log, 10 to 10"):
            call(stale)
    assert (log.first_index, log.snapshot.read(0, 9)) == (10, b"state")


def test_a_failing_state_machine_leaves_everything_as_it_was(logs: Logs) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"some"
        raise RuntimeError("it fails")

    log = logs.log
    fill(log, 10)
    with pytest.raises(RuntimeError, match="it fails"):
        log.begin_snapshot(5, SnapshotContext())(chunks())
    assert (log.first_index, log.find_snapshot()) == (1, None)
    compact(log, 5)
    assert log.first_index == 6


def test_sizes(logs: Logs) -> None:
    log = logs.log
    fill(log, 30)
    size = make_entry(1).to_bytes()
    for first, last in ((1, 30), (1, 1), (5, 20), (7, 8), (8, 7), (30, 30), (16, 23)):
        assert log.size_between(first, last) == len(size) * max(last - first + 1, 0)
    compact(log, 10)
    assert log.size_between(11, 30) == len(size) * 20
    with pytest.raises(ValueError, match="not within the log"):
        log.size_between(10, 30)


def test_truncating_stops_at_the_snapshot(logs: Logs) -> None:
    log = logs.log
    fill(log, 20)
    compact(log, 12)
    with pytest.raises(ValueError, match="cannot truncate after 11: the log starts at 13"):
        log.truncate_after(11)
    log.truncate_after(12)
    assert (log.last_index, log.last_term) == (12, 1)
    fill(log, 2, 5)
    assert [(entry.index, entry.term) for entry in read_all(logs.crash())] == [(13, 5), (14, 5)]


@pytest.mark.parametrize("seed", range(10))
def test_random_compactions(logs: Logs, seed: int) -> None:
    random = Random(seed)
    log = logs.log
    entries = []
    snapshot = forgotten = 0
    for _ in range(40):
        kind = random.random()
        if kind < 0.5:
            count = random.choice((1, 3, 20))
            entries += [make_entry(log.last_index + number) for number in range(1, count + 1)]
            fill(log, count)
        elif kind < 0.7 and log.last_index > snapshot:
            snapshot = random.randint(snapshot + 1, log.last_index)
            compact(log, snapshot)
        elif kind < 0.8:
            forgotten = max(forgotten, random.randint(0, log.last_index))
            log.forget_requests(START + forgotten + 1)
            if (remove := log.begin_prune(random.randint(0, 2))) is not None:
                remove()
        elif kind < 0.9:
            index = random.randint(snapshot, log.last_index)
            log.truncate_after(index)
            log.sync()
            del entries[index:]
            forgotten = min(forgotten, index)
        else:
            log = logs.crash()
        assert read_all(log) == entries[snapshot:]
        for entry in random.sample(entries, min(len(entries), 5)):
            if entry.index > forgotten:
                assert log.find_request(entry.request_id) == entry.index


# --- request ids and the configuration -------------------------------------------------------------------------------


def test_ids_come_from_the_snapshot_where_there_are_no_files() -> None:
    """As on a peer that got the snapshot from another one."""
    disk, context = MemoryDisk(), SnapshotContext(PEERS, 4, b"", 1234)
    log = open_files(disk)
    fill(log, 10)
    context = SnapshotContext(PEERS, 4, log.packed_requests(7), 1234)
    log.close()
    other = MemoryDisk()
    other.mkdir("/data")
    SnapshotWriter("/data/snap", 7, 1, fs=other, context=context).finish().close()
    for _ in range(2):
        log = open_files(other, remember_after_seconds=START + 3)
        assert [log.find_request(make_entry(index).request_id) for index in range(1, 9)] == [
            *(None, None),
            *range(3, 8),
            None,
        ]
        assert (log.prune_index, log.requests_forgotten_until) == (2, 1234)
        assert log.snapshot.context == context
        log.append(batch_of(make_entry(log.last_index + 1, 1, b"x")))
        log.sync()
        log.truncate_after(7)
        log.close()


def test_a_log_below_its_snapshot_gives_way_and_the_ids_of_the_snapshot_count() -> None:
    disk = MemoryDisk()
    log = open_files(disk)
    fill(log, 3)
    log.close()
    records = b"".join(make_entry(index, 2).request_id + index.to_bytes(8, "little") for index in (5, 9))
    SnapshotWriter("/data/snap", 9, 2, fs=disk, context=SnapshotContext(PEERS, 1, records)).finish().close()
    log = open_files(disk)
    assert (log.first_index, log.last_index, log.last_term) == (10, 9, 2)
    assert [log.find_request(make_entry(*at).request_id) for at in ((1, 1), (5, 2), (9, 2))] == [None, 5, 9]
    log.close()


@pytest.mark.parametrize(
    ("extensions", "part"),
    [
        (b"CONF\1\0\0\0\xc0\0\0\0", "bad configuration at offset"),
        (b"REQS\4\0\0\0\1\0\0\0", "bad request ids at offset"),
        (b"REQS\x0c\0\0\0\2" + bytes(11), "bad request ids at offset"),
    ],
)
def test_a_context_that_does_not_decode(extensions: bytes, part: str) -> None:
    disk = MemoryDisk()
    with pytest.raises(CorruptionError, match=part):
        SnapshotWriter("/snap", 9, 2, fs=disk, extensions=extensions).finish()


def test_packed_ids_that_go_back_are_damage() -> None:
    disk = MemoryDisk()
    disk.mkdir("/data")
    context = SnapshotContext(PEERS, 1, b"a" * 12 + bytes([5, *bytes(7)]) + b"b" * 12 + bytes([4, *bytes(7)]))
    SnapshotWriter("/data/snap", 9, 2, fs=disk, context=context).finish().close()
    with pytest.raises(CorruptionError, match="the snapshot of index 9: the request id of entry 4 does not follow"):
        open_files(disk)


# --- files -----------------------------------------------------------------------------------------------------------


def ranges(log: FileLog) -> list[tuple[int, int]]:
    return [(first, last) for _, first, last in log.index_files()]


def test_files_go_when_neither_entries_nor_ids_are_needed() -> None:
    disk = MemoryDisk()
    log = open_files(disk)
    fill(log, 40)
    all_files = [(1, 7), (8, 15), (16, 23), (24, 31), (32, 39), (40, 40)]
    assert ranges(log) == all_files
    compact(log, 30)
    assert log.begin_prune() is None
    log.forget_requests(START + 16)
    assert log.prune_index == 15
    assert log.begin_prune(2) is None
    paths = [path for path, *_ in log.index_files()]
    assert log.removable_files() == paths[:2]
    remove = log.begin_prune(1)
    assert remove is not None
    remove()
    assert ranges(log) == all_files[1:]
    log.forget_requests(START + 1000)
    remove = log.begin_prune()
    assert remove is not None
    remove()
    assert ranges(log) == all_files[3:]
    assert [disk.kind(path) for path in paths] == [None, None, None, "file", "file", "file"]
    log.close()
    log = open_files(disk.crash())
    assert (ranges(log), log.first_index, log.capacity) == (all_files[3:], 31, 8)
    # The newest file stays, whatever it holds.
    compact(log, 40)
    log.forget_requests(START + 1000)
    assert log.removable_files() == [path for path, *_ in log.index_files()[:-1]]
    log.close()


def test_a_half_done_removal_leaves_no_gap() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_files(disk)
    fill(log, 40)
    compact(log, 30)
    log.forget_requests(START + 1000)
    remove = log.begin_prune()
    assert remove is not None
    disk.fail_at = len(disk.events) + 2
    with pytest.raises(StorageFailedError, match="cannot remove files that are no longer needed"):
        remove()
    with pytest.raises(StorageFailedError):
        fill(log, 1)
    log.close()
    disk.fail_at = None
    log = open_files(disk)
    assert [entry.index for entry in read_all(log)] == list(range(31, 41))
    log.close()


@pytest.mark.parametrize("number", range(20))
def test_any_failed_call_of_a_compaction(number: int) -> None:
    """Before the snapshot is to take its place nothing has happened to the log; from then on it takes no more."""
    disk = ProbeFileSystem(MemoryDisk())
    log = open_files(disk)
    fill(log, 20)
    disk.fail_at = len(disk.events) + number
    placing = False
    try:
        snapshot = log.begin_snapshot(12, SnapshotContext(PEERS, 1))([b"state"])
        place = log.begin_compaction(snapshot)
        placing = True
        place()
        log.compact(snapshot)
    except StorageFailedError:
        assert (log.failure is not None) == placing
        assert log.first_index == 1
        if not placing:
            fill(log, 1)
            compact(log, 12)
    else:
        assert number > 8
    log.close()
    del log
    disk.fail_at = None
    log = open_files(disk)
    assert log.first_index in (1, 13)
    log.close()


def test_a_full_disk_is_no_reason_to_stop() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_files(disk)
    fill(log, 20)
    disk.fail_at = len(disk.events) + 2
    disk.error = lambda: OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageFailedError, match=r"snap\.next\.tmp: cannot write: No space left"):
        log.begin_snapshot(12, SnapshotContext())([b"state"])
    assert disk.listdir("/data") == ["log", "snap"]
    fill(log, 1)
    log.close()


def test_a_snapshot_that_waited_is_found_again() -> None:
    disk = MemoryDisk()
    log = open_files(disk)
    fill(log, 20)
    log.begin_snapshot(12, SnapshotContext(PEERS, 1))([b"state"]).close()
    log.close()
    log = open_files(disk.crash())
    assert log.first_index == 1
    snapshot = log.find_snapshot()
    assert snapshot is not None
    log.begin_compaction(snapshot)()
    log.compact(snapshot)
    assert (log.first_index, log.find_snapshot()) == (13, None)
    log.close()


def test_a_damaged_one_that_waited_is_not_used(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", old_snapshots_max=1)
    fill(log, 20)
    for index in (3, 4, 5):
        compact(log, index)
    assert len(list(tmp_path.glob("snap-*"))) == 1
    (tmp_path / "snap.next.tmp").write_bytes(b"")
    (tmp_path / "snap.next").write_bytes(b"SNAP")
    assert log.find_snapshot() is None
    SnapshotFile.create(tmp_path / "snap.next", 5, 1).close()
    assert log.find_snapshot() is None
    assert [part in caplog.text for part in ("its end", "breaks off", "not above the log's, of index 5")] == [True] * 3
    assert not list(tmp_path.glob("snap.*"))
    log.close()


def test_who_reads_the_snapshot_before_goes_on_and_its_file_is_closed_with_the_last_reader() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_files(disk)
    fill(log, 20)
    compact(log, 5, b"old")
    old = log.snapshot
    compact(log, 12, b"new")
    assert (old.read(0, 9), log.snapshot.read(0, 9)) == (b"old", b"new")
    del old
    gc.collect()
    assert sorted(path for path in disk.open_paths.values() if "snap" in path) == ["/data/snap.next"]
    log.close()
    assert not [path for path in disk.open_paths.values() if "snap" in path]


# --- a large one is written in bounded pieces ------------------------------------------------------------------------


def test_syncs_are_bounded() -> None:
    """Nobody who syncs another file waits for a whole snapshot."""
    disk = ProbeFileSystem(MemoryDisk())
    data = bytes(range(256)) * 4096 * 5
    snapshot = SnapshotFile.create("/snap", 1, 1, [data, b"", memoryview(b"end")], fs=disk)  # type: ignore[list-item]
    unsynced = 0
    for call, _, *details in disk.events:
        if call == "pwrite":
            assert len(details[0]) <= 1 << 18
            unsynced += len(details[0])
        elif call == "fdatasync":
            unsynced = 0
        assert unsynced < 2 << 18
    assert b"".join(snapshot.chunks(100_000)) == data + b"end"
    snapshot.close()


@pytest.mark.parametrize("sizes", [[65536], [1, 65535, 1], [70_000, 60_000, 1_000], [300_000], [10] * 7000, []])
def test_what_is_read_of_a_new_snapshot_is_compared_with_what_was_written(sizes: list[int]) -> None:
    disk = MemoryDisk()
    random = Random(len(sizes))
    chunks = [random.randbytes(size) for size in sizes]
    new = SnapshotFile.create("/snap", 1, 1, chunks, fs=disk)
    opened = SnapshotFile.open("/snap", fs=disk)
    assert b"".join(new.chunks(50_000)) == b"".join(opened.chunks(50_000)) == b"".join(chunks)
    if chunks:
        handle = disk.open("/snap", write=True)
        disk.pwrite(handle, b"xyz", new.data_offset + new.size - 3)
        disk.close(handle)
        for snapshot in (new, opened):
            with pytest.raises(CorruptionError, match="has changed since it was opened"):
                snapshot.read(new.size - 5, 5)
    new.close()
    opened.close()
