"""Opening a damaged or half-written log: what is repaired, what stops, and what the message says."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from support.file_systems import MemoryDisk, ProbeFileSystem
from support.foreign_files import without_checksums, without_segment
from support.logs import batch_of, make_entry, read_all
from zmqraft.errors import CorruptionError
from zmqraft.protocol.entry import EntryBatch, EntryType, LogEntry
from zmqraft.storage import OS_FILE_SYSTEM, FileLog, SnapshotFile

TABLE = 24
FOLDER = Path("log/00000/00/00")


def entries(first: int, last: int, term: int = 1) -> list[LogEntry]:
    return [make_entry(index, term) for index in range(first, last + 1)]


def open_log(path: Path, **options: int) -> FileLog:
    return FileLog.open(path / "log", path / "snap", **{"capacity": 8, **options})


def make_log(path: Path, last: int) -> None:
    log = open_log(path)
    if last:
        log.append(EntryBatch.from_entries(entries(1, last)))
    log.sync()
    log.close()
    # As zmq-raft, or an early version of this, would have left it. What checksums change: test_checksums.py.
    without_checksums(path)


def file(path: Path, first: int) -> Path:
    return path / FOLDER / f"{first:014x}.rlog"


def patch(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def slot(path: Path, position: int) -> int:
    return int.from_bytes(path.read_bytes()[TABLE + 4 * position :][:4], "little")


def set_slot(path: Path, position: int, value: int) -> None:
    patch(path, TABLE + 4 * position, value.to_bytes(4, "little"))


def check(path: Path, last: int) -> None:
    """The log opens with the entries up to ``last``, takes more, and opens again without anything to repair."""
    log = open_log(path)
    assert read_all(log) == entries(1, last)
    more = [make_entry(index, 2) for index in range(last + 1, last + 12)]
    log.append(EntryBatch.from_entries(more))
    log.sync()
    log.close()
    before = {name: name.read_bytes() for name in path.rglob("*.rlog")}
    log = open_log(path)
    assert read_all(log) == entries(1, last) + more
    log.close()
    assert {name: name.read_bytes() for name in path.rglob("*.rlog")} == before


def refuse(path: Path, *parts: str) -> str:
    """The log does not open; the message has these parts and a remedy, and the files stay as they are, closed."""
    before = {name: name.read_bytes() for name in path.rglob("*") if name.is_file()}
    fs = ProbeFileSystem(OS_FILE_SYSTEM)
    with pytest.raises(CorruptionError) as caught:
        FileLog.open(path / "log", path / "snap", capacity=8, fs=fs)
    assert not fs.open_paths
    message = str(caught.value)
    assert "\n" not in message
    for part in (*parts, "backup"):
        assert part in message
    assert {name: name.read_bytes() for name in path.rglob("*") if name.is_file()} == before
    return message


# --- the newest file, half made --------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [0, 7, 15])
def test_a_newest_file_cut_off_in_its_header(tmp_path: Path, last: int, caplog: pytest.LogCaptureFixture) -> None:
    make_log(tmp_path / "whole", last + 1)
    newest = file(tmp_path / "whole", last + 1)
    header = newest.read_bytes().index(b"ITMZ") + 8
    for size in (0, 1, 8, 12, 23, 24, 40, header - 60, header - 9, header - 8, header - 1):
        path = tmp_path / str(size)
        make_log(path, last)
        content = bytearray(newest.read_bytes()[:size])
        content[TABLE:28] = bytes(len(content[TABLE:28]))
        file(path, last + 1).write_bytes(content)
        caplog.clear()
        check(path, last)
        assert "half-made index file" in caplog.text


@pytest.mark.parametrize("zeros", [(0, 512), (512, 1024), (0, 1024), (4000, 5000)])
def test_a_newest_file_with_zeros_for_a_part_of_its_header(tmp_path: Path, zeros: tuple[int, int]) -> None:
    """Sectors of the header that a crash lost; a later one may be there."""
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=1024)
    log.append(EntryBatch.from_entries(entries(1, 1023)))
    log.sync()
    log.close()
    path = file(tmp_path, 1024)
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=1024)
    log.append(batch_of(make_entry(1024)))
    log.truncate_after(1023)
    log.close()
    without_checksums(tmp_path)
    whole = file(tmp_path, 1).read_bytes()
    header = whole[: whole.index(b"ITMZ") + 8]
    new = bytearray(header[:12] + (1024).to_bytes(4, "little") + (1024).to_bytes(8, "little"))
    new[4:8] = (16 + 4096).to_bytes(4, "little")
    new += bytes(4096) + header[header.index(b"META") :]
    new[zeros[0] : zeros[1]] = bytes(zeros[1] - zeros[0])
    path.write_bytes(new)
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=1024)
    assert log.last_index == 1023
    log.append(batch_of(make_entry(1024)))
    log.sync()
    log.close()
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=1024)
    assert log.last_index == 1024
    log.close()


@pytest.mark.parametrize("damage", [(0, b"\0" * 8), (0, b"\0" * 28)])
def test_a_damaged_header_before_entries_is_no_half_made_file(tmp_path: Path, damage: tuple[int, bytes]) -> None:
    make_log(tmp_path, 10)
    patch(file(tmp_path, 8), *damage)
    refuse(tmp_path, str(file(tmp_path, 8)), "the header breaks off at offset 0")


def test_a_damaged_header_and_table_before_entries(tmp_path: Path) -> None:
    make_log(tmp_path, 8)
    patch(file(tmp_path, 8), 0, bytes(TABLE + 4 * 8))
    refuse(tmp_path, str(file(tmp_path, 8)), "the header breaks off at offset 0")


@pytest.mark.parametrize("size", [28, 40, 56, 60])
def test_a_newest_file_cut_off_in_its_header_whose_table_has_entries(tmp_path: Path, size: int) -> None:
    make_log(tmp_path, 10)
    path = file(tmp_path, 8)
    path.write_bytes(path.read_bytes()[:size])
    refuse(tmp_path, str(path))


def test_an_older_file_without_a_complete_header(tmp_path: Path) -> None:
    make_log(tmp_path, 10)
    file(tmp_path, 1).write_bytes(b"")
    refuse(tmp_path, str(file(tmp_path, 1)), "the header breaks off at offset 0 of 0 bytes")


# --- the tail --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [3, 7, 12])
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_entries_that_lie_wholly_beyond_the_end(
    tmp_path: Path, last: int, missing: int, caplog: pytest.LogCaptureFixture
) -> None:
    make_log(tmp_path, last)
    newest = file(tmp_path, 1 if last < 8 else 8)
    content = newest.read_bytes()
    newest.write_bytes(content[: -24 * missing])
    check(tmp_path, last - missing)
    assert f"removing entries {last - missing + 1} to {last}, which were not written completely" in caplog.text


@pytest.mark.parametrize("cut", range(1, 24))
def test_only_the_last_entry_is_cut(tmp_path: Path, cut: int) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 8)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    refuse(tmp_path, str(path), f"the file ends at {len(content) - cut}, within its last entry 12", "stored at 40")


@pytest.mark.parametrize("cut", range(25, 48))
def test_more_than_the_last_entry_is_cut(tmp_path: Path, cut: int) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 8)
    path.write_bytes(path.read_bytes()[:-cut])
    check(tmp_path, 10)


def test_a_damaged_last_offset_removes_no_entry(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 8)
    for bit in range(32):
        copy = tmp_path / f"bit{bit}"
        shutil.copytree(tmp_path / "log", copy / "log")
        shutil.copy(tmp_path / "snap", copy / "snap")
        set_slot(file(copy, 8), 4, slot(path, 4) ^ 1 << bit)
        refuse(copy, str(file(copy, 8)))


def test_a_first_free_offset_that_is_damaged_adds_no_entry(tmp_path: Path) -> None:
    make_log(tmp_path / "whole", 12)
    for bit in range(32):
        path = tmp_path / str(bit)
        shutil.copytree(tmp_path / "whole", path)
        set_slot(file(path, 8), 5, 1 << bit)
        if 1 << bit <= 5 * 24:
            refuse(path, "is not above that before it")
        else:
            check(path, 12)


@pytest.mark.parametrize("zeroed", [1, 3, 5])
def test_entries_at_the_end_that_are_all_zero(tmp_path: Path, zeroed: int, caplog: pytest.LogCaptureFixture) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 8)
    patch(path, len(path.read_bytes()) - 24 * zeroed, bytes(24 * zeroed))
    check(tmp_path, 12 - zeroed)
    assert f"removing entries {12 - zeroed + 1} to 12" in caplog.text


def test_zeros_before_good_entries_stop(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 8)
    offset = len(path.read_bytes()) - 48
    patch(path, offset, bytes(24))
    refuse(tmp_path, f"entry 11 at offset {offset} has term 0, below 1")


def test_an_older_file_that_is_short_stops(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 1)
    size = len(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-24])
    refuse(tmp_path, str(path), f"the file ends at {size - 24}, but entries 1 to 7")


def test_leftovers_of_a_truncation_are_zeroed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 8)
    set_slot(path, 2, 0)
    log = open_log(tmp_path)
    log.close()
    assert "zeroing 2 offsets behind entry 9" in caplog.text
    assert [slot(path, position) for position in range(2, 8)] == [0] * 6
    check(tmp_path, 9)


def test_a_truncation_that_emptied_files_without_removing_them(tmp_path: Path) -> None:
    make_log(tmp_path, 30)
    for first in (16, 24):
        set_slot(file(tmp_path, first), 0, 0)
    set_slot(file(tmp_path, 8), 3, 0)
    check(tmp_path, 10)


def test_an_empty_file_that_follows_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_log(tmp_path, 9)
    for position in (1, 0):
        set_slot(file(tmp_path, 8), position, 0)
    with caplog.at_level(logging.WARNING):
        check(tmp_path, 7)
    assert not caplog.text


# --- what stops ------------------------------------------------------------------------------------------------------


def test_offsets_that_do_not_rise(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 8)
    set_slot(path, 2, slot(path, 1))
    refuse(tmp_path, str(path), "offset 48 of entry 10, stored at 32, is not above that before it, 48")


def test_a_missing_file(tmp_path: Path) -> None:
    make_log(tmp_path, 30)
    file(tmp_path, 16).unlink()
    refuse(tmp_path, str(file(tmp_path, 24)), "begins with entry 24", "ends with entry 15")


def test_a_missing_first_file(tmp_path: Path) -> None:
    make_log(tmp_path, 30)
    file(tmp_path, 1).unlink()
    refuse(tmp_path, str(file(tmp_path, 8)), "begins with entry 8, but the snapshot ends with entry 0")


def test_an_older_file_that_ends_early(tmp_path: Path) -> None:
    make_log(tmp_path, 30)
    set_slot(file(tmp_path, 8), 5, 0)
    refuse(tmp_path, str(file(tmp_path, 16)), "begins with entry 16", "ends with entry 12")


def test_a_file_under_a_wrong_name(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    file(tmp_path, 8).rename(file(tmp_path, 9))
    refuse(tmp_path, str(file(tmp_path, 9)), "first index 8 at offset 16 where the name says 9")


def test_a_file_in_a_wrong_folder(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    (tmp_path / "log/00000/00/01").mkdir()
    file(tmp_path, 8).rename(tmp_path / "log/00000/00/01/00000000000008.rlog")
    refuse(tmp_path, "log/00000/00/01/00000000000008.rlog", "does not belong in this folder")


def test_a_term_that_goes_back(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.append(EntryBatch.from_entries(entries(1, 12, term=5)))
    log.sync()
    log.close()
    without_checksums(tmp_path)
    path = file(tmp_path, 8)
    patch(path, path.read_bytes().index(b"ITMZ") + 8 + 24 + 13, b"\3")
    offset = path.read_bytes().index(b"ITMZ") + 8 + 24
    refuse(tmp_path, str(path), f"entry 9 at offset {offset} has term 3, below 5")


def test_an_unknown_entry_type(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    path = file(tmp_path, 8)
    offset = path.read_bytes().index(b"ITMZ") + 8 + 24
    patch(path, offset + 12, b"\7")
    refuse(tmp_path, str(path), f"entry 9 at offset {offset}: ")


@pytest.mark.parametrize(
    ("offset", "data", "part"),
    [
        (0, b"XLOG", "begins with b'XLOG'"),
        (4, b"\x31", "segment"),
        (8, b"\2", "version 2 at offset 8"),
        (12, b"\7", "capacity 7 at offset 12"),
        (16, b"\0", "first index 0 at offset 16"),
    ],
)
def test_a_damaged_head(tmp_path: Path, offset: int, data: bytes, part: str) -> None:
    make_log(tmp_path, 12)
    patch(file(tmp_path, 8), offset, data)
    with pytest.raises(CorruptionError, match=r"00000000000008\.rlog"):
        open_log(tmp_path)
    if part != "segment":
        refuse(tmp_path, part)


# --- the snapshot ----------------------------------------------------------------------------------------------------


def test_a_missing_snapshot_of_a_whole_log_is_made_anew(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    (tmp_path / "snap").unlink()
    check(tmp_path, 12)
    assert (tmp_path / "snap").exists()


def test_a_snapshot_within_the_log_moves_the_first_index(tmp_path: Path) -> None:
    make_log(tmp_path, 30)
    SnapshotFile.create(tmp_path / "snap", 10, 1, [b"state"]).close()
    log = open_log(tmp_path)
    assert (log.first_index, log.last_index) == (11, 30)
    assert read_all(log) == entries(11, 30)
    assert log.find_request(make_entry(3).request_id) == 3
    log.close()


@pytest.mark.parametrize(("index", "term"), [(31, 1), (100, 4), (20, 2)])
def test_an_interrupted_installation_is_finished(
    tmp_path: Path, index: int, term: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The snapshot is above the log, or conflicts with it: the log was to be replaced (FAULTS W18)."""
    make_log(tmp_path, 30)
    SnapshotFile.create(tmp_path / "snap", index, term, [b"state"]).close()
    log = open_log(tmp_path)
    assert (log.first_index, log.last_index, log.last_term) == (index + 1, index, term)
    assert "gives way to the snapshot" in caplog.text
    (old,) = tmp_path.glob("log-*")
    log.append(batch_of(make_entry(index + 1, term)))
    log.sync()
    log.close()
    old_log = FileLog.open(old, tmp_path / "other-snap")
    assert read_all(old_log) == entries(1, 30)
    old_log.close()
    log = open_log(tmp_path)
    assert read_all(log) == [make_entry(index + 1, term)]
    log.close()


def test_the_name_of_a_replaced_log_is_durable_before_a_new_one_is_begun() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    FileLog.open("/data/log", "/data/snap", fs=disk).close()
    SnapshotFile.create("/data/snap", 10, 1, fs=disk).close()
    del disk.events[:]
    FileLog.open("/data/log", "/data/snap", fs=disk).close()
    calls = disk.calls()
    renamed = calls.index(("rename", "/data/log"))
    assert calls[renamed + 1 : renamed + 3] == [("sync_directory", "/data"), ("mkdir", "/data/log")]


def test_a_log_that_begins_above_its_snapshot(tmp_path: Path) -> None:
    SnapshotFile.create(tmp_path / "snap", 20, 1).close()
    log = open_log(tmp_path)
    log.append(batch_of(make_entry(21)))
    log.sync()
    log.close()
    SnapshotFile.create(tmp_path / "snap", 10, 1).close()
    refuse(tmp_path, "begins with entry 21, but the snapshot ends with entry 10")


def test_an_entry_below_the_term_of_its_snapshot(tmp_path: Path) -> None:
    SnapshotFile.create(tmp_path / "snap", 20, 1).close()
    log = open_log(tmp_path)
    log.append(batch_of(make_entry(21)))
    log.sync()
    log.close()
    SnapshotFile.create(tmp_path / "snap", 20, 3).close()
    refuse(tmp_path, "entry 21 has term 1, below 3")


# --- request ids -----------------------------------------------------------------------------------------------------


def test_ids_from_before_a_time_are_not_remembered(tmp_path: Path) -> None:
    make_log(tmp_path, 30)
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", remember_after_seconds=1_700_000_021)
    assert log.prune_index == 20
    assert log.find_request(make_entry(20).request_id) is None
    assert log.find_request(make_entry(21).request_id) == 21
    old = LogEntry(31, 1, EntryType.STATE, make_entry(2).request_id, b"old")
    log.append(batch_of(old))
    assert log.find_request(old.request_id) == 31
    log.close()


def test_segments_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    make_log(tmp_path, 12)
    for first in (1, 8):
        content = file(tmp_path, first).read_bytes()
        at = content.index(b"ITMZ")
        extension = b"XTRA" + (5).to_bytes(4, "little") + b"\1\2\3\4\5\0\0\0"
        file(tmp_path, first).write_bytes(content[:at] + extension + content[at:])
    snapshot = without_segment((tmp_path / "snap").read_bytes(), b"CRCS")
    at = snapshot.index(b"DATA")
    (tmp_path / "snap").write_bytes(snapshot[:at] + b"XTRA\1\0\0\0x\0\0\0" + snapshot[at:])
    check(tmp_path, 12)
