"""FileLog on disk: the layout, the order of writes and syncs, the roll to the next file, what happens on failure."""

from __future__ import annotations

import errno
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from support.file_systems import MemoryDisk, ProbeFileSystem
from support.logs import batch_of, make_entry, read_all
from zmqraft.errors import ConfigurationError, StorageError, StorageFailedError
from zmqraft.protocol.entry import EntryBatch, LogEntry
from zmqraft.storage import FileLog, SnapshotFile
from zmqraft.storage.checksums import checksum_bytes
from zmqraft.storage.log_opening import log_capacity

FOLDER = "/data/log/00000/00/00"


def entries(first: int, last: int, term: int = 1, data: bytes = b"data") -> list[LogEntry]:
    return [make_entry(index, term, data) for index in range(first, last + 1)]


def batch(first: int, last: int, term: int = 1, data: bytes = b"data") -> EntryBatch:
    return batch_of(*entries(first, last, term, data))


def open_log(disk: MemoryDisk | ProbeFileSystem, **options: int) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", fs=disk, **{"capacity": 8, **options})


def file(index: int) -> str:
    return f"{FOLDER}/{index:014x}.rlog"


#: Under this name a file is made; the probe knows it by that, since it was open before it got its own.
NEW = "/data/log.new"


def ranges(log: FileLog) -> list[tuple[int, int]]:
    return [(first, last) for _, first, last in log.index_files()]


# --- layout ----------------------------------------------------------------------------------------------------------


def test_files_end_at_multiples_of_the_capacity() -> None:
    log = open_log(MemoryDisk())
    log.append(batch(1, 30))
    assert log.index_files() == [(file(1), 1, 7), (file(8), 8, 15), (file(16), 16, 23), (file(24), 24, 30)]


@pytest.mark.parametrize("first", [1, 7, 8, 9, 15, 16])
def test_a_log_that_starts_late_keeps_its_capacity(first: int) -> None:
    disk = MemoryDisk()
    disk.mkdir("/data")
    SnapshotFile.create("/data/snap", first - 1, 1, fs=disk).close()
    log = open_log(disk)
    log.append(batch(first, first + 40))
    log.sync()
    log.close()
    for _ in range(2):
        log = open_log(disk)
        assert log.capacity == 8
        assert all(end % 8 == 7 for _, end in ranges(log)[:-1])
        log.append(batch(log.last_index + 1, log.last_index + 20))
        log.sync()
        log.close()


def test_an_existing_log_keeps_the_capacity_of_its_first_file() -> None:
    disk = MemoryDisk()
    log = open_log(disk, capacity=4)
    log.append(batch(1, 5))
    log.sync()
    log.close()
    log = open_log(disk, capacity=16384)
    log.append(batch(6, 9))
    assert log.capacity == 4
    assert ranges(log) == [(1, 3), (4, 7), (8, 9)]


@pytest.mark.parametrize(
    ("first_index", "first_file", "wanted", "capacity"),
    [
        (1, 7, 16384, 8),
        (1, 16383, 8, 16384),
        (51, 5, 16384, 8),
        # A first file that starts late tells little: what the settings say counts where the file fits it.
        (16382, 2, 16384, 16384),
        (16382, 2, 1024, 1024),
        (16382, 2, 65536, 2),
        (16384, 16384, 16384, 16384),
        (1, 1, 2, 2),
        (2, 1, 1, 1),
        (1, 2**24 - 1, 16384, 2**23),
    ],
)
def test_the_capacity_of_an_existing_log(first_index: int, first_file: int, wanted: int, capacity: int) -> None:
    assert log_capacity(first_index, first_file, wanted) == capacity


@pytest.mark.parametrize("capacity", [0, 3, 6, 2**24, -8])
def test_a_capacity_that_is_no_power_of_two(capacity: int) -> None:
    with pytest.raises(ConfigurationError, match=f"power of two up to 16777215, not {capacity}"):
        open_log(MemoryDisk(), capacity=capacity)


def test_a_file_whose_data_would_pass_the_limit_is_followed_early() -> None:
    disk = MemoryDisk()
    log = open_log(disk, data_size_max=100, capacity=64)
    # 24 bytes each: four stay below 100 bytes, five do not.
    log.append(batch(1, 6))
    log.append(batch(7, 7, data=b"x" * 79))
    log.append(batch(8, 8))
    assert ranges(log) == [(1, 4), (5, 6), (7, 7), (8, 8)]
    with pytest.raises(ValueError, match="entry 10 has 100 bytes; a file holds less than 100"):
        log.append(batch_of(make_entry(9), make_entry(10, data=b"x" * 80)))
    log.sync()
    log.close()
    log = open_log(disk, data_size_max=100, capacity=64)
    assert log.capacity == 64
    assert [entry.index for entry in read_all(log)] == list(range(1, 9))


def test_a_read_ends_with_its_file() -> None:
    log = open_log(MemoryDisk(), tail_cache_size_max=0)
    log.append(batch(1, 30))
    assert [log.read(first, 30, 10_000).last_index for first in (1, 7, 8, 24)] == [7, 7, 15, 30]


def test_few_files_are_open_at_once() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk, open_files_max=4)
    log.append(batch(1, 200))
    log.sync()
    for first in (1, 100, 50, 190, 9, 77, 150, 1):
        assert list(log.read(first, first, 100)) == entries(first, first)
    # The snapshot is one more, and a file is opened before another one is closed.
    assert disk.open_max <= 4 + 2
    log.close()
    assert not disk.open_paths
    log = open_log(disk, open_files_max=4)
    assert read_all(log) == entries(1, 200)
    assert disk.open_max <= 4 + 2
    log.close()
    assert not disk.open_paths


# --- the order of writes and syncs -----------------------------------------------------------------------------------


def test_a_new_log_syncs_every_level() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    open_log(disk)
    created = disk.calls()
    for path in ("/data", "/data/log", "/data/log/00000", "/data/log/00000/00", FOLDER):
        assert created.index(("mkdir", path)) + 1 == created.index(
            ("sync_directory", str(Path(path).parent)), created.index(("mkdir", path))
        )
    assert created.index(("fdatasync", NEW)) < created.index(("rename", NEW))
    renamed = created.index(("rename", NEW))
    assert created[renamed : renamed + 3] == [("rename", NEW), ("sync_directory", FOLDER), ("allocate", NEW)]
    # And zeros, so that syncs need not change what is known of the file.
    assert set(created[renamed + 3 :]) == {("pwrite", NEW), ("fdatasync", NEW)}


def test_an_append_writes_data_checksums_and_offsets_and_syncs_once() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    del disk.events[:]
    whole = batch(1, 3)
    log.append(whole)
    assert disk.calls() == [("pwrite", NEW)] * 3
    (_, _, data, data_offset), (_, _, checksums, checksums_offset), (_, _, offsets, table_offset) = disk.events
    assert data == bytes(whole.data)
    assert checksums == checksum_bytes(whole, 0, 1)
    assert 24 + 4 * 7 < checksums_offset < data_offset - 4 * 7
    assert offsets == b"".join(end.to_bytes(4, "little") for end in whole.ends)
    assert table_offset == 24 < data_offset
    log.sync()
    log.sync()
    assert disk.calls()[3:] == [("fdatasync", NEW)]


def test_only_the_first_entry_behind_a_sync_is_marked() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    del disk.events[:]
    log.append(batch(1, 2))
    log.append(batch(3, 3))
    log.sync()
    log.append(batch(4, 5))
    marks = [event[2][::4] for event in disk.events[1::3] if event[0] == "pwrite" and len(event[2]) <= 8]
    assert [[byte & 3 for byte in marked] for marked in marks] == [[1, 0], [0]]
    log.truncate_after(3)
    del disk.events[:]
    log.append(batch(4, 5, 2))
    assert [byte & 3 for byte in disk.events[2][2][::4]] == [1, 0]


def test_an_entry_behind_a_sync_that_is_under_way_is_marked_so() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    log.append(batch(1, 1))
    finish = log.begin_sync()
    assert finish is not None
    del disk.events[:]
    log.append(batch(2, 3))
    finish()
    log.append(batch(4, 4))
    log.sync()
    log.append(batch(5, 5))
    marks = [event[2][::4] for event in disk.events[1::3] if event[0] == "pwrite" and len(event[2]) <= 8]
    assert [[byte & 3 for byte in marked] for marked in marks] == [[2, 0], [0]]
    assert disk.events[8][2][0] & 3 == 1


def test_what_is_allocated_ahead_is_given_back() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk, allocation_size=4096)
    log.append(batch(1, 9))
    log.sync()
    sizes = {path: disk.size(disk.open(path)) for path in (file(1), file(8))}
    header = sizes[file(1)] - 7 * 24
    assert header < 200
    # One more offset and checksum.
    assert sizes[file(8)] == header + 8 + 2 * 24 + 1024
    log.close()
    assert disk.size(disk.open(file(8))) == header + 8 + 2 * 24


def test_room_is_made_ahead_where_the_rest_of_the_file_needs_it() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk, allocation_size=400, capacity=64)
    assert not log.wants_preparation
    log.append(batch(1, 2))
    assert log.wants_preparation
    log.prepare()
    assert not log.wants_preparation
    before = disk.calls().count(("allocate", NEW))
    for index in range(3, 16):
        log.append(batch(index, index))
    assert disk.calls().count(("allocate", NEW)) == before
    log.close()


def test_room_that_another_thread_has_got_only_in_part_is_given_back_by_the_one_that_writes() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk, allocation_size=400, capacity=64)
    log.append(batch(1, 2))
    disk.error = lambda: OSError(errno.ENOSPC, "no room")
    disk.fail_call = "allocate"
    assert log.wants_preparation
    log.prepare()
    assert disk.calls()[-1] == ("allocate", NEW)
    assert not log.wants_preparation
    log.append(batch(3, 3))
    assert [call for call, _ in disk.calls()[-4:]] == ["truncate", "pwrite", "pwrite", "pwrite"]
    log.append(batch(4, 40))
    log.sync()
    assert disk.failed == 1
    log.close()
    log = open_log(disk.inner.crash(), capacity=64)  # type: ignore[attr-defined]
    assert read_all(log) == entries(1, 40)
    log.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_without_room_ahead_files_grow(code: int) -> None:
    disk = ProbeFileSystem(MemoryDisk())
    disk.error = lambda: OSError(code, "no room")
    disk.fail_call = "allocate"
    log = open_log(disk)
    assert disk.calls()[-1] == ("truncate", NEW)
    log.append(batch(1, 5))
    log.prepare()
    # The file made ahead, which nobody writes to.
    assert disk.calls()[-1] == ("truncate", "/data/log.next")
    log.append(batch(6, 20))
    log.sync()
    assert disk.failed >= 2
    log.close()
    log = open_log(disk.inner.crash())  # type: ignore[attr-defined]
    assert read_all(log) == entries(1, 20)
    log.close()


def test_a_file_is_durable_before_the_next_one_gets_an_entry() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    del disk.events[:]
    log.append(batch(1, 10))
    log.sync()
    assert disk.calls() == [
        *[("pwrite", NEW)] * 3,
        ("fdatasync", NEW),
        # It is noted that the file is closed.
        ("truncate", NEW),
        ("pwrite", NEW),
        ("fdatasync", NEW),
        ("create", NEW),
        ("pwrite", NEW),
        ("fdatasync", NEW),
        ("rename", NEW),
        ("sync_directory", FOLDER),
        ("allocate", NEW),
        *[("pwrite", NEW)] * 3,
        ("fdatasync", NEW),
    ]


def truncated(path: str) -> list[tuple[str, str]]:
    write, sync = ("pwrite", path), ("fdatasync", path)
    # The record; the offsets; the checksums, the bytes and the record again.
    return [write, sync, write, sync, write, ("truncate", path), write, sync]


def test_a_truncation_goes_from_the_end_and_is_synced() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    log.append(batch(1, 20))
    log.sync()
    log.close()
    log = open_log(disk)
    del disk.events[:]
    log.truncate_after(5)
    assert disk.calls() == [
        *truncated(file(16)),
        *truncated(file(8)),
        *truncated(file(1)),
        ("unlink", file(16)),
        ("sync_directory", FOLDER),
        ("unlink", file(8)),
        ("sync_directory", FOLDER),
    ]
    assert ranges(log) == [(1, 5)]
    log.append(batch(6, 10, 2))
    assert read_all(log) == entries(1, 5) + entries(6, 10, 2)


def test_a_truncation_leaves_nothing_to_sync() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    log.append(batch(1, 20))
    log.truncate_after(18)
    before = len(disk.events)
    log.sync()
    assert len(disk.events) == before


def test_the_newest_file_stays_open_until_it_is_synced() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk, open_files_max=2)
    log.append(batch(1, 60))
    log.sync()
    assert list(log.read(17, 17, 100)) == entries(17, 17)
    log.truncate_after(17)
    log.append(batch(18, 18, 2))
    for first in (1, 8, 1, 8):
        assert list(log.read(first, first, 100)) == entries(first, first)
    assert file(16) in disk.open_paths.values()
    log.sync()
    assert disk.calls()[-1] == ("fdatasync", file(16))


def test_what_a_killed_process_left_unsynced_is_durable_once_it_was_found() -> None:
    disk = MemoryDisk()
    open_log(disk).append(batch(1, 3))
    log = open_log(disk)
    assert read_all(log) == entries(1, 3)
    assert read_all(open_log(disk.crash())) == entries(1, 3)


def test_truncating_everything_keeps_an_empty_first_file() -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    log.append(batch(1, 20))
    log.truncate_after(0)
    assert ranges(log) == [(1, 0)]
    log.close()
    log = open_log(disk)
    log.append(batch(1, 9, 3))
    assert read_all(log) == entries(1, 9, 3)


def test_the_folders_of_high_indexes() -> None:
    disk = MemoryDisk()
    disk.mkdir("/data")
    SnapshotFile.create("/data/snap", 0x1ABCDEE, 1, fs=disk).close()
    log = open_log(disk, capacity=16)
    log.append(batch(0x1ABCDEF, 0x1ABCDF1))
    assert [path for path, _, _ in log.index_files()] == [
        "/data/log/00000/00/1a/00000001abcdef.rlog",
        "/data/log/00000/00/1a/00000001abcdf0.rlog",
    ]


# --- failures --------------------------------------------------------------------------------------------------------


def workload(log: FileLog) -> None:
    log.append(batch(1, 3))
    log.sync()
    log.append(batch(4, 20))
    log.sync()
    log.truncate_after(6)
    log.append(batch(7, 9, 2))
    log.sync()


def calls_of_workload() -> list[str]:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    before = len(disk.events)
    workload(log)
    return [call for call, _ in disk.calls()[before:]]


FAILURES = [
    (number, code)
    for number, call in enumerate(calls_of_workload())
    for code in (errno.EIO, errno.ENOSPC)
    # Where there is no room ahead there may be enough for the entry.
    if (call, code) != ("allocate", errno.ENOSPC)
]


@pytest.mark.parametrize(("number", "code"), FAILURES)
def test_any_failed_call_is_final(number: int, code: int) -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    disk.fail_at = len(disk.events) + number
    disk.error = lambda: OSError(code, "the disk says no")
    with pytest.raises(StorageFailedError, match=r"/data/log: cannot .*the disk says no") as caught:
        workload(log)
    assert disk.failed == 1
    assert log.failure is caught.value.__cause__
    after = len(disk.events)
    for write in (
        lambda: log.append(batch(log.last_index + 1, log.last_index + 1, 9)),
        lambda: log.truncate_after(0),
        log.sync,
    ):
        with pytest.raises(StorageFailedError, match="takes no more writes"):
            write()
    # Neither tried again, nor anything else.
    assert len(disk.events) == after
    log.close()
    assert not disk.open_paths
    disk.fail_at = None
    log = open_log(disk)
    found = read_all(log)
    assert [entry.index for entry in found] == list(range(1, len(found) + 1))
    log.close()


def test_an_interrupt_within_a_write_is_final_too() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    disk.fail_at = len(disk.events) + 1
    disk.error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        log.append(batch(1, 3))
    assert log.last_index == 0
    with pytest.raises(StorageFailedError, match="KeyboardInterrupt"):
        log.sync()


def test_a_closed_log() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    log = open_log(disk)
    log.append(batch(1, 3))
    log.close()
    assert not disk.open_paths
    with pytest.raises(StorageError, match="is closed"):
        log.read(1, 3, 100)
    with pytest.raises(StorageFailedError, match="it is closed"):
        log.append(batch(4, 4))
    assert not disk.open_paths


@pytest.mark.parametrize("where", ["log", "snap", "both"])
def test_paths_that_cannot_be_used(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "x"
    log_path = below if where in ("log", "both") else tmp_path / "log"
    snapshot_path = below if where in ("snap", "both") else tmp_path / "snap"
    with pytest.raises(StorageError, match=r"Not a directory: .*file/x") as caught:
        FileLog.open(log_path, snapshot_path)
    assert "\n" not in str(caught.value)


def test_a_file_where_the_log_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x")
    with pytest.raises(StorageError, match=rf"cannot open the log {tmp_path}/log: "):
        FileLog.open(tmp_path / "log", tmp_path / "snap")


def test_no_permission(tmp_path: Path) -> None:
    disk = ProbeFileSystem(MemoryDisk())
    disk.fail_at = 0
    disk.error = lambda: PermissionError(errno.EACCES, "Permission denied", "/data")
    with pytest.raises(StorageError, match="cannot open the log /data/log: Permission denied: /data"):
        open_log(disk)
    assert not disk.open_paths


def test_the_table_and_the_data_on_a_real_disk(tmp_path: Path) -> None:
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=8)
    whole = batch(1, 5)
    log.append(whole)
    log.sync()
    content = (tmp_path / "log/00000/00/00/00000000000001.rlog").read_bytes()
    start = content.index(b"ITMZ\0\0\0\0") + 8
    assert content[start : start + whole.size] == bytes(whole.data)
    assert len(content) > start + whole.size
    assert not any(content[start + whole.size :])
    ends = [int.from_bytes(content[24 + 4 * slot : 28 + 4 * slot], "little") for slot in range(7)]
    assert ends == [*whole.ends, 0, 0]
    assert all(low < high for low, high in pairwise(ends[:5]))
    log.close()


# --- the next file, made ahead ----------------------------------------------------------------------------------------


SPARE = "/data/log.next"


def test_a_file_made_ahead_is_used() -> None:
    probe = ProbeFileSystem(MemoryDisk())
    log = open_log(probe)
    log.append(batch(1, 4))
    assert log.wants_preparation
    log.prepare()
    assert not log.wants_preparation
    log.prepare()
    assert probe.inner.kind(SPARE) == "file"
    assert ranges(log) == [(1, 4)]
    log.append(batch(5, 7))
    log.sync()
    probe.events.clear()
    log.append(batch(8, 8))
    assert [call for call, _ in probe.calls()] == [
        *("truncate", "pwrite", "fdatasync"),
        *("rename", "sync_directory"),
        *("pwrite", "pwrite", "pwrite"),
    ]
    assert (probe.inner.kind(SPARE), probe.inner.kind(file(8))) == (None, "file")
    assert ranges(log) == [(1, 7), (8, 8)]
    log.close()


def test_nothing_is_made_ahead_for_a_file_with_much_room() -> None:
    log = open_log(MemoryDisk())
    log.append(batch(1, 3))
    assert not log.wants_preparation
    log.prepare()
    assert not log.wants_preparation
    log.close()


def test_after_a_truncation_another_file_is_made_ahead() -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    log.append(batch(1, 14))
    log.prepare()
    log.truncate_after(5)
    assert log.wants_preparation
    log.prepare()
    log.append(batch(6, 17, 2))
    log.sync()
    assert ranges(log) == [(1, 7), (8, 15), (16, 17)]
    assert [entry.term for entry in read_all(log)] == [1] * 5 + [2] * 12
    log.close()
    log = open_log(disk.crash())
    assert [entry.term for entry in read_all(log)] == [1] * 5 + [2] * 12
    log.close()


def test_closing_removes_a_file_made_ahead_and_what_a_crash_leaves_is_written_anew() -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    log.append(batch(1, 6))
    log.sync()
    log.prepare()
    disk.sync_directory("/data")
    crashed = disk.crash()
    log.close()
    assert disk.kind(SPARE) is None
    assert crashed.kind(SPARE) == "file"
    log = open_log(crashed)
    log.append(batch(7, 7))
    log.prepare()
    log.append(batch(8, 12))
    assert read_all(log) == entries(1, 12)
    log.close()


def test_a_file_that_cannot_be_made_ahead_is_the_end_of_the_log() -> None:
    probe = ProbeFileSystem(MemoryDisk())
    log = open_log(probe)
    log.append(batch(1, 6))
    probe.fail_at = len(probe.events)
    with pytest.raises(StorageFailedError, match="make the file for entry 8 ahead"):
        log.prepare()
    assert not log.wants_preparation
    with pytest.raises(StorageFailedError):
        log.append(batch(7, 7))
    log.close()
    log.prepare()


def test_files_are_made_ahead_in_another_thread(tmp_path: Path) -> None:
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=8)
    stop = threading.Event()
    failures: list[BaseException] = []

    def prepare() -> None:
        try:
            while not stop.is_set():
                log.prepare()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=prepare)
    thread.start()
    try:
        for _ in range(40):
            log.append(batch(log.last_index + 1, log.last_index + 5))
            if log.last_index % 15 == 0:
                log.truncate_after(log.last_index - 7)
    finally:
        stop.set()
        thread.join()
    last = log.last_index
    log.sync()
    log.close()
    assert failures == []
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=8)
    assert [entry.index for entry in read_all(log)] == list(range(1, last + 1))
    log.close()
