"""`verify` says what a peer would meet, all of it, and where; and it changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from support.file_systems import MemoryDisk
from support.foreign_files import append_as_zmq_raft, truncate_as_zmq_raft, without_checksums
from support.logs import batch_of, make_entry, random_entry, read_all
from zmqraft.errors import CorruptionError, StorageError
from zmqraft.protocol.entry import EntryBatch, LogEntry
from zmqraft.storage import FileLog, RaftPersistence, SnapshotFile
from zmqraft.storage.verification import FileReport, Severity, verify

COMPAT = Path(__file__).parent.parent / "compat" / "data"
FIRST = "/data/log/00000/00/00/00000000000001.rlog"
SECOND = "/data/log/00000/00/00/00000000000008.rlog"


class ReadOnlyDisk(MemoryDisk):
    """A disk that takes no change once it is `sealed`."""

    sealed = False

    def open(self, path: str, *, write: bool = False, create: bool = False, truncate: bool = False) -> int:
        assert not (self.sealed and (write or create or truncate)), path
        return super().open(path, write=write, create=create, truncate=truncate)

    def lock(self, path: str) -> int:
        raise AssertionError(path)

    def unlink(self, path: str) -> None:
        assert not self.sealed, path
        super().unlink(path)

    def rename(self, source: str, target: str) -> None:
        assert not self.sealed, source
        super().rename(source, target)


def sealed(disk: MemoryDisk) -> ReadOnlyDisk:
    copy = ReadOnlyDisk()
    copy.root = disk.crash().root
    copy.sealed = True
    return copy


def open_log(disk: MemoryDisk) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", capacity=8, allocation_size=256, fs=disk)


def log_disk(*, closed: bool) -> MemoryDisk:
    """12 entries in two files, in units of 3."""
    random = Random(3)
    disk = MemoryDisk()
    disk.mkdir("/data")
    disk.sync_directory("/")
    log = open_log(disk)
    for first in range(1, 13, 3):
        log.append(EntryBatch.from_entries([random_entry(random, first + n, 1 + first // 6, 20) for n in range(3)]))
        log.sync()
    if closed:
        log.close()
    return disk.crash()


def content_of(disk: MemoryDisk, path: str) -> bytes:
    handle = disk.open(path)
    try:
        return disk.pread(handle, disk.size(handle), 0)
    finally:
        disk.close(handle)


def changed(disk: MemoryDisk, path: str, change: Callable[[bytearray], object]) -> MemoryDisk:
    """The disk with another content of a file."""
    copy = disk.crash()
    content = bytearray(content_of(copy, path))
    change(content)
    handle = copy.open(path, write=True, truncate=True)
    copy.pwrite(handle, content, 0)
    copy.fdatasync(handle)
    copy.close(handle)
    return copy


def flipped(disk: MemoryDisk, path: str) -> Iterator[tuple[MemoryDisk, int]]:
    """The disk with a byte of a file changed: a bit, all of them, to zero."""
    content = content_of(disk, path)
    for offset, byte in enumerate(content):
        for value in sorted({byte ^ 1, byte ^ 0x40, byte ^ 0xFF, 0} - {byte}):

            def change(content: bytearray, offset: int = offset, value: int = value) -> None:
                content[offset] = value

            yield changed(disk, path, change), offset


def found(reports: list[FileReport], severity: Severity) -> list[tuple[str, int | None, int | None]]:
    return [
        (report.path, finding.offset, finding.index)
        for report in reports
        for finding in report.findings
        if finding.severity is severity
    ]


def entries_after_opening(disk: MemoryDisk) -> list[LogEntry] | None:
    """What a peer finds; None when it does not start."""
    try:
        log = open_log(disk)
        entries = read_all(log)
        log.close()
    except CorruptionError:
        return None
    return entries


@pytest.mark.parametrize("path", [FIRST, SECOND])
@pytest.mark.parametrize("closed", [True, False])
def test_each_byte_of_a_log_flipped(path: str, closed: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Bad exactly where a peer does not start, torn where it starts with less, and always in the file that was hit."""
    caplog.set_level(logging.CRITICAL)
    whole = log_disk(closed=closed)
    expected = entries_after_opening(whole.crash())
    assert expected is not None
    assert len(expected) == 12
    damaged = 0
    for disk, offset in flipped(whole, path):
        reports = verify("/data", fs=sealed(disk))
        entries = entries_after_opening(disk)
        bad, torn = found(reports, Severity.BAD), found(reports, Severity.TORN)
        if entries is None:
            damaged += 1
            assert path in {place[0] for place in bad}, offset
            assert all(place[1:] != (None, None) for place in bad), (offset, bad)
        else:
            assert not bad, (offset, bad)
            assert len(entries) == 12 or torn, offset
            assert entries == expected[: len(entries)]
    assert damaged > 500


def test_each_byte_of_a_state_file_flipped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    whole = MemoryDisk()
    whole.mkdir("/data")
    state = RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"secret", fs=whole)
    for term in range(1, 6):
        state.update_vote(term, None)
        state.update_vote(term, str(term % 3))
    state.close()
    whole.sync_directory("/")
    whole.sync_directory("/data")
    damaged = 0
    for disk, offset in flipped(whole, "/data/raft.pers"):
        reports = verify("/data/raft.pers", fs=sealed(disk))
        try:
            RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"secret", fs=disk).close()
        except CorruptionError:
            damaged += 1
            bad = found(reports, Severity.BAD)
            assert bad, offset
            assert None not in [place[1] for place in bad]
        else:
            assert not found(reports, Severity.BAD), offset
    assert damaged > 200


def test_each_byte_of_a_snapshot_flipped() -> None:
    whole = MemoryDisk()
    SnapshotFile.create("/snap", 12, 3, [b"the state of it"], fs=whole).close()
    whole.sync_directory("/")
    for disk, offset in flipped(whole, "/snap"):
        reports = verify("/snap", fs=sealed(disk))
        try:
            SnapshotFile.open("/snap", fs=disk).close()
        except CorruptionError:
            assert found(reports, Severity.BAD), offset
        else:
            assert not found(reports, Severity.BAD), offset


@pytest.mark.parametrize("path", [FIRST, SECOND])
@pytest.mark.parametrize("closed", [True, False])
def test_a_log_that_was_cut_off(path: str, closed: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    whole = log_disk(closed=closed)
    for size in range(0, len(content_of(whole, path))):

        def cut(content: bytearray, size: int = size) -> None:
            del content[size:]

        disk = changed(whole, path, cut)
        reports = verify("/data", fs=sealed(disk))
        if entries_after_opening(disk) is None:
            assert path in {place[0] for place in found(reports, Severity.BAD)}, size
        else:
            assert not found(reports, Severity.BAD), size


def test_every_problem_is_found_not_only_the_first() -> None:
    whole = log_disk(closed=True)
    log = open_log(whole.crash())
    places = {index: log._contents.files[index > 7].file_offset(index) for index in (2, 5, 9)}
    log.close()

    def damage(content: bytearray, indexes: tuple[int, ...]) -> None:
        for index in indexes:
            content[places[index] + 3] ^= 1

    disk = changed(whole, FIRST, lambda content: damage(content, (2, 5)))
    disk = changed(disk, SECOND, lambda content: damage(content, (9,)))
    SnapshotFile.create("/data/snap", 0, 0, [b"x" * 10], fs=disk).close()
    disk = changed(disk, "/data/snap", lambda content: content.pop())
    reports = verify("/data", fs=sealed(disk))
    bad = found(reports, Severity.BAD)
    assert bad[1:] == [(FIRST, places[2], 2), (FIRST, places[5], 5), (SECOND, places[9], 9)]
    assert bad[0][0] == "/data/snap"
    assert [found(verify(path, fs=sealed(disk)), Severity.BAD) for path in (FIRST, SECOND)] == [bad[1:3], bad[3:]]


def test_a_torn_end_is_bad_in_a_file_that_is_not_the_newest() -> None:
    whole = log_disk(closed=False)

    def tear(content: bytearray) -> None:
        del content[len(content.rstrip(b"\0")) - 5 :]

    disk = changed(whole, SECOND, tear)
    (newest,) = verify(SECOND, fs=sealed(disk))
    assert newest.severity is Severity.TORN
    disk = changed(whole, FIRST, tear)
    (older,) = verify(FIRST, fs=sealed(disk))
    assert older.severity is Severity.BAD
    assert found(verify("/data", fs=sealed(disk)), Severity.BAD) == found([older], Severity.BAD)


def test_a_missing_file_is_a_gap() -> None:
    disk = log_disk(closed=True)
    disk.unlink(FIRST)
    assert found(verify("/data", fs=disk), Severity.BAD) == [(SECOND, 16, 8)]
    # A log without a snapshot beside it may begin anywhere.
    disk.unlink("/data/snap")
    disk.rename("/data/log", "/old")
    assert not found(verify("/old", fs=disk), Severity.BAD)


def test_a_file_in_a_wrong_folder() -> None:
    disk = log_disk(closed=True)
    disk.mkdir("/data/log/00001")
    disk.mkdir("/data/log/00001/00")
    disk.mkdir("/data/log/00001/00/00")
    wrong = "/data/log/00001/00/00/00000000000008.rlog"
    disk.rename(SECOND, wrong)
    assert found(verify("/data", fs=disk), Severity.BAD) == [(wrong, None, None)]


def test_a_file_that_cannot_be_read() -> None:
    whole = log_disk(closed=True)

    class BadSector(ReadOnlyDisk):
        def pread(self, handle: int, size: int, offset: int) -> bytes:
            if size > 100 and self._handles[handle] is self._find(FIRST) and offset > 150:
                raise OSError(5, "Input/output error")
            return super().pread(handle, size, offset)

    disk = BadSector()
    disk.root = whole.root
    (first, *_) = [report for report in verify("/data", fs=disk) if report.path == FIRST]
    assert [finding.text for finding in first.findings] == ["cannot be read: Input/output error"]


@pytest.mark.parametrize("name", ["compacted", "installed", "multifile", "truncated", "raft.pers", "raft-torn.pers"])
def test_what_zmq_raft_wrote_is_unknown_not_bad(name: str) -> None:
    before = {file: file.read_bytes() for file in COMPAT.rglob("*") if file.is_file()}
    reports = verify(COMPAT / name)
    assert {report.severity for report in reports} <= {Severity.UNKNOWN, Severity.TORN}
    assert any(found(reports, Severity.UNKNOWN))
    assert bool(found(reports, Severity.TORN)) == (name == "raft-torn.pers")
    assert {file: file.read_bytes() for file in COMPAT.rglob("*") if file.is_file()} == before


def test_a_log_that_both_wrote(tmp_path: Path) -> None:
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=8)
    log.append(batch_of(*(make_entry(index) for index in range(1, 11))))
    log.sync()
    log.close()
    newest = tmp_path / "log/00000/00/00/00000000000008.rlog"
    append_as_zmq_raft(newest, make_entry(11), make_entry(12))
    reports = verify(tmp_path)
    assert [(report.severity, [f.index for f in report.findings]) for report in reports] == [
        (None, []),
        (None, []),
        (Severity.UNKNOWN, [11]),
    ]
    truncate_as_zmq_raft(newest, 1)
    assert [report.severity for report in verify(tmp_path)] == [None, None, None]
    without_checksums(tmp_path)
    assert [report.severity for report in verify(tmp_path)] == [None, Severity.UNKNOWN, Severity.UNKNOWN]


def test_a_half_made_newest_file_is_torn() -> None:
    disk = log_disk(closed=True)
    third = "/data/log/00000/00/00/00000000000010.rlog"
    handle = disk.open(third, write=True, create=True)
    disk.pwrite(handle, b"RLOG", 0)
    reports = verify("/data", fs=disk)
    assert found(reports, Severity.BAD) == []
    assert found(reports, Severity.TORN) == [(third, None, None)]
    assert found(verify(third, fs=disk), Severity.TORN) == [(third, None, None)]


def test_a_log_below_its_snapshot_gives_way() -> None:
    disk = log_disk(closed=True)
    SnapshotFile.create("/data/snap", 50, 9, [b"state"], fs=disk).close()
    reports = verify("/data", fs=sealed(disk.crash()))
    assert found(reports, Severity.BAD) == []
    assert found(reports, Severity.TORN) == [("/data/log", None, None)]
    (report,) = [report for report in reports if report.path == "/data/log"]
    assert "gives way to the snapshot of entry 50" in report.findings[0].text


def test_what_is_no_data_of_a_peer(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no data directory"):
        verify(tmp_path)
    with pytest.raises(StorageError, match="no such file"):
        verify(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StorageError, match="begins with b'hell'"):
        verify(tmp_path / "text")


def test_repairs_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is repaired, so nobody is told of it but the caller."""
    whole = log_disk(closed=False)
    torn = changed(whole, SECOND, lambda content: content.__delitem__(slice(len(content.rstrip(b"\0")) - 5, None)))
    assert found(verify("/data", fs=sealed(torn)), Severity.TORN)
    assert caplog.records == []


class Changing(MemoryDisk):
    """A disk on which what a peer is writing is only half there when it is looked at for the first time."""

    def __init__(self, torn: MemoryDisk, whole: MemoryDisk) -> None:
        super().__init__()
        self.root = torn.root
        self._whole = whole

    def listdir(self, path: str) -> list[str]:
        names = super().listdir(path)
        if path == "/data/log":
            self._looks = getattr(self, "_looks", 0) + 1
            if self._looks > 2:
                self.root = self._whole.root
        return names


def test_what_was_only_seen_once_does_not_count() -> None:
    whole = log_disk(closed=False)
    torn = changed(whole, FIRST, lambda content: content.__setitem__(-3, 7))
    assert found(verify("/data", fs=sealed(torn)), Severity.BAD)
    assert not found(verify("/data", fs=Changing(torn, whole)), Severity.BAD)


@pytest.mark.parametrize("number", range(20))
def test_nothing_that_a_crash_leaves_is_bad(number: int, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a power cut keeps of what was not synced, a peer starts, and `verify` knows with what."""
    caplog.set_level(logging.CRITICAL)
    random = Random(seed * 1000 + number)
    disk = MemoryDisk()
    disk.mkdir("/data")
    disk.sync_directory("/")
    log = open_log(disk)
    for _ in range(15):
        if random.random() < 0.75 or not log.last_index:
            first = log.last_index + 1
            entries = [make_entry(first + n, log.last_term + 1, b"x" * random.randint(1, 600)) for n in range(4)]
            log.append(EntryBatch.from_entries(entries))
        else:
            log.truncate_after(random.randint(0, log.last_index))
        if random.random() < 0.5:
            log.sync()
        unsynced = disk.unsynced()
        crashed = disk.crash_with([item for item in unsynced if random.random() < 0.5])
        reports = verify("/data", fs=sealed(crashed))
        assert not found(reports, Severity.BAD)
        entries_then = entries_after_opening(crashed)
        assert entries_then is not None
        unknown = found(reports, Severity.UNKNOWN)
        if not found(reports, Severity.TORN) and not unknown and entries_then:
            last = [report.values["lastIndex"] for report in reports if "lastIndex" in report.values]
            assert max(last) == entries_then[-1].index
    log.close()
