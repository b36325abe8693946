"""Damaged entries that are put back: each byte of a log changed, and more than one; and what is never put back."""

from __future__ import annotations

import logging
from random import Random

import pytest

from support.file_systems import Crash, MemoryDisk, ProbeFileSystem
from support.logs import make_entry, random_entry, read_all
from zmqraft.api import SnapshotContext
from zmqraft.errors import CorruptionError
from zmqraft.protocol.entry import EntryBatch, EntryType, LogEntry
from zmqraft.storage import FileLog, IndexFile
from zmqraft.storage.mending import find_damage, mend, term_on_disk

FOLDER = "/data/log/00000/00/00"
PATHS = [f"{FOLDER}/{first:014x}.rlog" for first in (1, 32)]


def open_log(disk: MemoryDisk | ProbeFileSystem) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", capacity=32, allocation_size=1024, fs=disk)


def make_log(*, closed: bool) -> tuple[MemoryDisk, list[LogEntry]]:
    """50 entries of 5 units in two files, which need not have been closed; only the last unit might be torn."""
    random = Random(5)
    disk = MemoryDisk()
    log = open_log(disk)
    entries = [random_entry(random, index, 1 + index // 20) for index in range(1, 51)]
    for first in range(0, 50, 10):
        log.append(EntryBatch.from_entries(entries[first : first + 10]))
        log.sync()
    if closed:
        log.close()
    return disk.crash(), entries


def content_of(disk: MemoryDisk, path: str) -> bytes:
    handle = disk.open(path)
    return disk.pread(handle, disk.size(handle), 0)


def change(disk: MemoryDisk, path: str, offset: int, data: bytes) -> None:
    handle = disk.open(path, write=True)
    disk.pwrite(handle, data, offset)
    disk.fdatasync(handle)
    disk.close(handle)


def open_mended(disk: MemoryDisk, entries: list[LogEntry], runs: list[tuple[int, int]]) -> FileLog:
    """Open a log as a peer does that can ask others for these entries. ``runs`` is what it asked for."""
    while True:
        try:
            return open_log(disk)
        except CorruptionError as error:
            damage = find_damage(error, fs=disk)
            if damage is None:
                raise
            assert (damage.first, damage.last) not in runs
            runs.append((damage.first, damage.last))
            mend(damage.path, EntryBatch.from_entries(entries[damage.first - 1 : damage.last]), fs=disk)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("closed", [True, False])
def test_each_byte(path: str, closed: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Of an entry, its checksum and its offset: put back. Of the header: it stops, as ever."""
    caplog.set_level(logging.CRITICAL)
    whole, entries = make_log(closed=closed)
    content = content_of(whole, path)
    file = IndexFile.open(path, fs=whole, writable=False)
    data_offset, count, first = file.data_offset, file.count, file.first_index
    slots = content.index(b"CRCS") + 28
    protected = {*range(24, 24 + 4 * count), *range(slots, slots + 4 * count), *range(data_offset, len(content))}
    expected = content.rstrip(b"\0")
    asked = stopped = 0
    for offset in range(len(expected)):
        for value in {content[offset] ^ 0x40, 0} - {content[offset]}:
            disk = whole.crash()
            change(disk, path, offset, bytes([value]))
            runs: list[tuple[int, int]] = []
            try:
                log = open_mended(disk, entries, runs)
            except CorruptionError:
                assert offset not in protected, (offset, value)
                stopped += 1
                continue
            found = read_all(log)
            if closed or path == PATHS[0]:
                assert found == entries, (offset, value)
            else:
                assert found == entries[: max(len(found), 40)], (offset, value)
            log.close()
            asked += bool(runs)
            assert all(first <= low <= high <= low + 1 for low, high in runs)
            if runs and offset >= data_offset and not closed:
                assert content_of(disk, path)[data_offset:].rstrip(b"\0") == content[data_offset:].rstrip(b"\0")
    assert asked > 1000
    assert stopped > 20


def test_a_damaged_block_and_other_places() -> None:
    whole, entries = make_log(closed=True)
    start = IndexFile.open(PATHS[0], fs=whole, writable=False).data_offset
    random = Random(7)
    for _ in range(20):
        disk = whole.crash()
        change(disk, PATHS[0], start + random.randrange(300), random.randbytes(400))
        change(disk, PATHS[0], start + 1000, b"\xff\xff\xff")
        change(disk, PATHS[1], start + 100, b"\xff\xff\xff")
        runs: list[tuple[int, int]] = []
        log = open_mended(disk, entries, runs)
        assert read_all(log) == entries
        log.close()
        assert len(runs) == 3
        assert runs[0][1] - runs[0][0] > 3
        again = open_log(disk.crash())
        assert read_all(again) == entries
        again.close()


def test_another_entry_is_never_put_in_its_place() -> None:
    """As where others have committed another one: then this one never was, but that is for somebody to look at."""
    whole, entries = make_log(closed=True)
    start = IndexFile.open(PATHS[0], fs=whole, writable=False).data_offset
    change(whole, PATHS[0], start + 13, b"\xff")
    with pytest.raises(CorruptionError, match="entry 1 at offset") as caught:
        open_log(whole)
    damage = find_damage(caught.value, fs=whole)
    assert damage == (PATHS[0], 1, 1)
    before = content_of(whole, PATHS[0])
    own = entries[0]
    for other in (
        LogEntry(1, own.term + 1, own.type, own.request_id, own.data),
        LogEntry(1, own.term, own.type, own.request_id, own.data + b"x"),
        LogEntry(1, own.term, own.type, own.request_id, own.data[:-1] + bytes([own.data[-1] ^ 1])),
        make_entry(33),
    ):
        with pytest.raises(CorruptionError, match=r"does not match its checksum; restore") as refused:
            mend(PATHS[0], EntryBatch.from_entries([other]), fs=whole)
        assert (refused.value.path, refused.value.index) == (PATHS[0], other.index)
        assert content_of(whole, PATHS[0]) == before
    mend(PATHS[0], EntryBatch.from_entries(entries[:1]), fs=whole)
    log = open_log(whole)
    assert read_all(log) == entries
    log.close()


def test_what_is_not_of_an_entry_is_not_looked_for(tmp_path: str) -> None:
    disk, _ = make_log(closed=True)
    for error in (
        CorruptionError("no place"),
        CorruptionError("a snapshot", path="/data/snap", index=3),
        CorruptionError("no index", path=PATHS[0]),
        CorruptionError("a good entry", path=PATHS[0], index=3),
        CorruptionError("behind the last", path=PATHS[1], index=51),
        CorruptionError("behind the file", path=PATHS[1], index=5100),
        CorruptionError("before the file", path=PATHS[1], index=5),
    ):
        assert find_damage(error, fs=disk) is None, error
    change(disk, PATHS[0], 8, b"\xff")
    assert find_damage(CorruptionError("the header", path=PATHS[0], index=3), fs=disk) is None


def test_a_crash_at_each_call_leaves_damage_or_the_entries() -> None:
    whole, entries = make_log(closed=False)
    start = IndexFile.open(PATHS[0], fs=whole, writable=False).data_offset
    change(whole, PATHS[0], start + 13, b"\xff" * 90)
    number = 0
    while True:
        disk = whole.crash()
        probe = ProbeFileSystem(disk)
        probe.fail_at, probe.error = number, Crash
        with pytest.raises(CorruptionError) as caught:
            open_log(disk)
        damage = find_damage(caught.value, fs=disk)
        assert damage is not None
        try:
            mend(damage.path, EntryBatch.from_entries(entries[damage.first - 1 : damage.last]), fs=probe)
        except Crash:
            pass
        else:
            break
        for seed in range(10):
            after = disk.crash(Random(seed))
            log = open_mended(after, entries, [])
            assert read_all(log) == entries
            log.close()
        number += 1
    assert number > 4


def test_a_log_without_checksums_is_left_alone() -> None:
    """What zmq-raft wrote proves nothing."""
    disk = MemoryDisk()
    log = open_log(disk)
    log.append(EntryBatch.from_entries([make_entry(index) for index in range(1, 4)]))
    log.close()
    path = log.index_files()[0][0]
    content = content_of(disk, path)
    change(disk, path, content.index(b"CRCS"), b"OTHR")
    file = IndexFile.open(path, fs=disk, writable=False)
    change(disk, path, file.data_offset + 12, bytes([len(EntryType) + 9]))
    with pytest.raises(CorruptionError, match="entry 1 at offset") as caught:
        open_log(disk)
    assert find_damage(caught.value, fs=disk) is None


@pytest.mark.parametrize("closed", [True, False])
def test_what_is_damaged_below_the_snapshot_is_passed_over(closed: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It is there for its request ids only; those that are not known must not be taken for new ones."""
    whole, entries = make_log(closed=closed)
    log = open_log(whole)
    snapshot = log.begin_snapshot(40, SnapshotContext())([b"state"])
    log.begin_compaction(snapshot)()
    log.compact(snapshot)
    log.close()
    for indexes in ((1,), (31,), (32,), (39,), (5, 6, 7, 20), range(1, 40)):
        disk = whole.crash()
        disk.now += 1000
        for index in indexes:
            path = PATHS[index >= 32]
            file = IndexFile.open(path, fs=disk, writable=False)
            change(disk, path, file.file_offset(index) + 14, b"\xff")
        caplog.clear()
        log = open_log(disk)
        assert "below the snapshot, and passed over" in caplog.text
        assert (log.first_index, read_all(log)) == (41, entries[40:])
        assert log.term_at(40) == entries[39].term
        assert log.requests_forgotten_until == int(disk.now)
        good = [entry for entry in entries[:39] if entry.index not in indexes]
        known = open_log(whole.crash())
        for entry in good:
            first = known.find_request(entry.request_id)
            if first is None or first not in indexes:
                assert log.find_request(entry.request_id) == first
        log.close()
        known.close()
    for index in (40, 41, 50):
        disk = whole.crash()
        file = IndexFile.open(PATHS[1], fs=disk, writable=False)
        change(disk, PATHS[1], file.file_offset(index) + 14, b"\xff")
        with pytest.raises(CorruptionError, match=f"entry {index} at offset"):
            open_log(disk)


def test_the_term_of_an_entry_of_a_log_that_does_not_open() -> None:
    disk, entries = make_log(closed=True)
    file = IndexFile.open(PATHS[0], fs=disk, writable=False)
    change(disk, PATHS[0], file.file_offset(9) + 14, b"\xff")
    terms = {index: term_on_disk("/data/log", index, fs=disk) for index in range(52)}
    assert terms == {0: None, **{entry.index: entry.term for entry in entries}, 9: None, 51: None}
    change(disk, PATHS[1], 0, b"XXXX")
    assert term_on_disk("/data/log", 40, fs=disk) is None
