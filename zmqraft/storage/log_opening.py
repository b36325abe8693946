"""Opening a log: everything that is checked once, and the repairs that are safe.

The rule: what can be proved never to have been acknowledged is trimmed, and a warning says so; anything else stops the
peer with a CorruptionError. What counts as a proof, given that the only fault is a crash or one damaged place:

- An entry is acknowledged only after an fdatasync that covers it. All that was written from one to the next is one
  unit, of which a crash may lose any sectors (512 bytes). Only the last unit of the newest file with entries can be
  torn, and the one before it, when that was still being synced: each older file was synced before the next got its
  first entry.

In files with checksums that we were writing to (`checksum_segment` says how that is known):

- Nothing was where the unit is, so a lost sector reads as zeros, or as what the unit before had put there and then
  zeros. So a torn entry has no checksum that matches, and from its beginning, or from the beginning of a sector in it,
  to the end of that sector all is zero, or the file ends. It is removed with all behind it, which are of its unit too.
- An entry whose checksum matches and has the mark of the first in a unit proves that all before it were durable, or
  all before the unit before it. So does the count in the record. Where it is proved that an entry was durable, it is
  damaged when it does not match, however it looks.
- An entry that does not match, and no sector of which is lost, is damaged. That stops.
- An entry without a checksum of which no sector is lost is complete: the sector of the checksum was lost, or zmq-raft
  wrote it behind ours. It is kept, and gets its checksum. So are those at the end that zmq-raft wrote over ours. (The
  other way round, an entry of zmq-raft's that has all zeros for such a part would be taken for a torn one, if we had
  crashed on this file before, since what we had written last could look like this.)
- The offsets are written last. So where a killed process has written the last one that is there only in part, the
  checksum of its entry matches for the whole one. Where it has zeroed the first one only in part, the record says that
  it is this one. Such an entry goes as a torn one does.
- An offset that is 0, though the checksum behind it proves that it was not, is damaged. The one of the last entry of
  a closed file is known from the record, and is put back.

In files without checksums, or that zmq-raft wrote last, where a completed fdatasync makes the size of the file durable:

- An entry that lies beyond the end of its file was never acknowledged. It is the usual state after a power cut: the
  table of offsets, in a block that was there before, is written back ahead of the data.
- But the offset of the *last* entry, when that is damaged, may point beyond the end of the file too, and then the entry
  is a good one. So entries are trimmed when the file ends exactly where an entry does (nothing of the others is there)
  or when more than one misses bytes (their offsets rise, so one damaged offset cannot cause it). When only the last
  one does, and a part of it is there, nothing in the file can tell a torn write from a damaged offset: that stops.
- Entries at the end of the log of which every byte is zero were never written: the file system had given the file its
  new size, not yet its data. No entry that was written is all zero, since the terms of entries start at 1.
- A newest file without a complete header holds nothing when its table and what follows it hold nothing: the header is
  durable before the first entry is written. (Ours get their names when they are complete.)
- A data block that was not written back, but lies within the file between good ones, cannot be found.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from zmqraft.api.snapshot import SnapshotBase
from zmqraft.constants import ENTRY_HEADER_SIZE, INDEX_FILE_CAPACITY_MAX
from zmqraft.errors import CorruptionError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.storage.checksum_segment import MARK_DURABLE, MARK_NONE, MARK_SYNCING, FileState, mark_of
from zmqraft.storage.checksums import checksum_bytes, count_matching, find_end
from zmqraft.storage.index_file import TABLE_OFFSET, IndexFile
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.storage.request_index import RequestIndex
from zmqraft.storage.rotation import rotate_directory
from zmqraft.storage.term_runs import TermRuns
from zmqraft.storage.token_file import REMEDY, IncompleteHeaderError

__all__ = [
    "LogContents",
    "capacity_at",
    "check_name",
    "check_table",
    "check_term",
    "count_untorn",
    "gaps",
    "log_capacity",
    "newest_with_entries",
    "open_log",
]

_log = logging.getLogger(__name__)

#: The largest power of two that is the capacity of a file.
_CAPACITY_MAX: Final = 1 << INDEX_FILE_CAPACITY_MAX.bit_length() - 1
#: Entries are read in pieces of this size when a log is opened: large enough for few calls, small in memory.
_SCAN_SIZE: Final = 1 << 20
#: More than this behind the table of a file without a complete header is not looked through.
_HEADER_REST_MAX: Final = 1 << 20
#: What a disk writes whole or not at all.
_SECTOR_SIZE: Final = 512


@dataclass
class LogContents:
    """What is known of a log without its entries' data."""

    files: list[IndexFile] = field(default_factory=list)
    terms: TermRuns = field(default_factory=TermRuns)
    config_indexes: list[int] = field(default_factory=list)
    requests: RequestIndex = field(default_factory=RequestIndex)

    @property
    def last_index(self) -> int:
        """The index of the last entry in the files."""
        return self.files[-1].last_index

    def note(self, batch: EntryBatch, runs: list[tuple[int, int]], after_seconds: int = 0) -> None:
        """Take in entries that follow those known; ``runs`` are the batch's `term_runs`, checked."""
        self.terms.extend(runs)
        self.config_indexes += [batch.first_index + position for position in batch.config_positions()]
        self.requests.add(batch, after_seconds)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def capacity_at(index: int, capacity: int) -> int:
    """The capacity of a file that starts at ``index``: it ends at the next multiple of the log's capacity."""
    return capacity - index % capacity


def log_capacity(first_index: int, first_file_capacity: int, wanted: int) -> int:
    """The capacity of an existing log: that of its first file, rounded up to a power of two.

    A first file that starts late is small whatever the capacity of the log was, so the ``wanted`` one, from the
    settings, is taken where the file could be one of such a log.
    """
    if capacity_at(first_index, wanted) == first_file_capacity:
        return wanted
    return min(1 << (first_file_capacity - 1).bit_length(), _CAPACITY_MAX)


def open_log(
    directory: LogDirectory, snapshot: SnapshotBase, capacity: int, after_seconds: int, request_id_cache_max: int | None
) -> LogContents:
    """Open, check and repair the index files. The newest one, where there is one, is durable on return.

    The list of files is empty when there is no log yet, and when the log that was found is below the snapshot: a
    snapshot of the leader had taken its place, and a crash came before its directory was renamed; it is renamed now.
    Raises CorruptionError, OSError.
    """
    contents = LogContents(requests=RequestIndex(request_id_cache_max))
    try:
        _open_files(directory, contents, capacity)
        for file in contents.files:
            check_table(file)
        _trim_unsynced_tail(contents)
        _remove_empty_files(directory, contents)
        for error in gaps(contents.files):
            raise error
        _scan(contents, after_seconds)
        matching = _match_snapshot(directory, contents, snapshot)
        for file in matching.files[-1:]:
            _note_leftovers(file)
            file.begin()
            directory.sync_path_of(file.path)
        return matching
    except BaseException:
        contents.close()
        raise


def _open_files(directory: LogDirectory, contents: LogContents, capacity: int) -> None:
    names = directory.index_files()
    for position, (first_index, path) in enumerate(names):
        try:
            file = IndexFile.open(path, fs=directory.fs)
        except IncompleteHeaderError as error:
            if position != len(names) - 1:
                raise
            if contents.files:
                first = contents.files[0]
                capacity = log_capacity(first.first_index, first.capacity, capacity)
            if not _holds_nothing(directory, path, capacity_at(first_index, capacity)):
                raise
            _log.warning(
                "removing the half-made index file %s, which holds no entry (%s)", path, error, extra={"file": path}
            )
            directory.remove_files([path])
            return
        contents.files.append(file)
        check_name(file, first_index)
        if position < len(names) - 2:
            file.release()


def check_name(file: IndexFile, first_index: int) -> None:
    """Raise CorruptionError when the file does not start with the index that its name says."""
    if file.first_index != first_index:
        raise CorruptionError(
            f"{file.path}: first index {file.first_index} at offset 16 where the name says {first_index}; {REMEDY}",
            path=file.path,
            offset=16,
        )


def _holds_nothing(directory: LogDirectory, path: str, capacity: int) -> bool:
    """Whether a file without a complete header has an empty table, and no entries behind it."""
    fs = directory.fs
    handle = fs.open(path)
    try:
        table_end = TABLE_OFFSET + 4 * capacity
        table = fs.pread(handle, 4 * capacity, TABLE_OFFSET)
        rest = fs.pread(handle, _HEADER_REST_MAX + 1, table_end)
    finally:
        fs.close(handle)
    return not any(table) and len(rest) <= _HEADER_REST_MAX and not any(_behind_segments(rest))


def _behind_segments(rest: bytes) -> bytes:
    """What follows the segments that ``rest`` begins with."""
    offset = 0
    while rest[offset : offset + 4].isalpha():
        token, length = rest[offset : offset + 4], int.from_bytes(rest[offset + 4 : offset + 8], "little")
        offset += 8 + length + -length % 4
        if token == b"ITMZ":
            break
    return rest[offset:]


def check_table(file: IndexFile) -> None:
    """Look for a damaged offset that makes the table end early: put it back when it is known, else stop.

    Raises CorruptionError, OSError.
    """
    record = file.record
    if record is None or record.state is FileState.CUTTING:
        return
    if record.state is FileState.CLOSED and not file.changed_by_others:
        return
    if record.state is FileState.CLOSED and record.entry_count:
        _restore_last_end(file, record.entry_count - 1, record.end)
    if file.count >= file.capacity:
        return
    table = file.read_table()
    behind = file.count + 1
    if record.state is FileState.CLOSED:
        # Nobody zeroes one offset and leaves those behind it.
        damaged = file.count < record.entry_count - 1 and 0 not in table[behind : record.entry_count]
        damaged = damaged and table[record.entry_count - 1] == record.end
    else:
        damaged = file.count < record.entry_count or _proves_entry_before(file, table, behind)
    if damaged:
        offset = TABLE_OFFSET + 4 * file.count
        raise CorruptionError(
            f"{file.path}: the offset of entry {file.last_index + 1}, stored at {offset}, is 0, "
            f"but the entry was durable; {REMEDY}",
            path=file.path,
            offset=offset,
            index=file.last_index + 1,
        )


def _restore_last_end(file: IndexFile, position: int, end: int) -> None:
    """Put back the offset of the last entry of a closed file when the entry is there as it was.

    Had zmq-raft taken the entry away, then it is there again: that is as if it had not been taken away yet, which
    a log may always be.
    """
    table = file.read_table()
    before = table[position - 1] if position else 0
    if table[position] == end or file.count < position or not before < end:
        return
    table[position] = end
    data = file.read_bytes(before, end)
    if count_matching(file.first_index, data, table, file.checksums(position, position + 1), position, position + 1):
        _log.warning(
            "%s: putting back the offset of entry %d, which is complete, but whose offset was %d instead of %d",
            file.path,
            file.first_index + position,
            file.read_table()[position],
            end,
            extra={"file": file.path, "offset": TABLE_OFFSET + 4 * position, "index": file.first_index + position},
        )
        file.store_end(position, end)


def _proves_entry_before(file: IndexFile, table: array[int], behind: int) -> bool:
    """Whether the first entry without an offset is there, and those behind it prove that it was durable."""
    if behind >= file.capacity or not table[behind] > file.data_size:
        return False
    position = behind - 1
    stop = next((at for at in range(behind, file.capacity) if not table[at]), file.capacity)
    slots = file.checksums(position, stop)
    data = memoryview(file.read_bytes(file.data_size, max(table[behind:stop])))
    index = file.first_index + position
    end = find_end(index, data, file.data_size, file.data_size + 1, table[behind], 1, slots[0])
    if end is None:
        return False
    table[position] = end
    under_way = False
    for at in range(behind, stop):
        mark = mark_of(slots[at - position])
        if mark == MARK_NONE or not table[at - 1] < table[at]:
            continue
        own = slots[at - position : at - position + 1]
        if count_matching(file.first_index, data[table[at - 1] - file.data_size :], table, own, at, at + 1):
            if mark == MARK_DURABLE or under_way:
                return True
            under_way = True
    return False


def newest_with_entries(files: list[IndexFile]) -> IndexFile | None:
    """The only file, of those in this order, the end of which a crash can have torn; None when there is none."""
    return next((file for file in reversed(files) if file.count or file.unordered_end is not None), None)


def _trim_unsynced_tail(contents: LogContents) -> None:
    """Remove from the table what was never synced; see the head of the module for why that is known."""
    file = newest_with_entries(contents.files)
    for other in contents.files:
        if other.unordered_end is not None and other is not file:
            raise other.unordered_error(other.count, other.unordered_end, other.data_size)
    if file is None:
        return
    kept = count_untorn(file)
    if file.unordered_end is not None and kept == file.count:
        _log.warning(
            "%s: removing entry %d, whose offset was not written or zeroed completely, and which nobody counts on",
            file.path,
            file.first_index + kept,
            extra={"file": file.path, "offset": TABLE_OFFSET + 4 * kept, "index": file.first_index + kept},
        )
    if kept < file.count:
        _log.warning(
            "%s: removing entries %d to %d, which were not written completely and never acknowledged",
            file.path,
            file.first_index + kept,
            file.last_index,
            extra={
                "file": file.path,
                "offset": file.file_offset(file.first_index + kept),
                "index": file.first_index + kept,
            },
        )
        file.truncate(kept)


def count_untorn(file: IndexFile) -> int:
    """How many of the first entries of the newest file that has any are left without those that a crash has torn.

    Raises CorruptionError when what is wrong with one of the others is not of a crash, OSError. Changes nothing.
    """
    if file.may_be_torn:
        kept = _count_before_torn(file)
        if file.unordered_end is not None and kept == file.count:
            _check_torn_end(file, file.count, file.unordered_end)
        return kept
    if file.has_checksums and not file.changed_by_others:
        # All in it was durable when we closed it: what is missing now is damage.
        return file.count
    return _count_before_zeros(file, _count_within_file(file))


def _count_before_torn(file: IndexFile) -> int:
    """How many entries are there before the first one of the last unit that a crash has torn."""
    assert file.record is not None
    unmatched = _unmatched(file)
    durable = file.record.entry_count if file.record.state is FileState.OPEN else 0
    slots = file.checksums(0, file.count)
    bad = {position for position, _ in unmatched}
    under_way = False
    for position in range(file.count - 1, durable - 1, -1):
        mark = MARK_NONE if position in bad else mark_of(slots[position])
        if mark == MARK_DURABLE or (mark == MARK_SYNCING and under_way):
            durable = position
            break
        under_way = under_way or mark == MARK_SYNCING
    for position, slot in unmatched:
        if position < durable:
            continue
        if _has_lost_sector(file, position) or _was_being_zeroed(file, position, file.ends[position]):
            return position
        if slot:
            last = position == file.count - 1 and file.unordered_end is None
            if last and _is_torn_end(file, position, file.ends[position]):
                return position
            raise file.checksum_error(position)
    return file.count


def _unmatched(file: IndexFile) -> list[tuple[int, int]]:
    """The positions and stored checksums of all entries that do not match them."""
    ends = file.ends
    found = []
    low = 0
    while low < file.count:
        start = ends[low - 1] if low else 0
        high = max(file.count_within(start + _SCAN_SIZE), low + 1)
        found += file.unmatched(file.read_bytes(start, ends[high - 1]), low, high)
        low = high
    return found


def _has_lost_sector(file: IndexFile, position: int) -> bool:
    """Whether the file ends within an entry, or a sector in it was not written."""
    index = file.first_index + position
    start, end = file.file_offset(index), file.file_offset(index + 1)
    sectors_end = end + -end % _SECTOR_SIZE
    data = file.read_bytes(start - file.data_offset, sectors_end - file.data_offset)
    if len(data) < end - start:
        return True
    part = 0
    while part < end - start:
        stop = part + _SECTOR_SIZE - (start + part) % _SECTOR_SIZE
        if not any(data[part:stop]):
            return True
        part = stop
    return False


def _was_being_zeroed(file: IndexFile, position: int, end: int) -> bool:
    """Whether the lower bytes of the first offset that was to be zeroed are."""
    return file.was_being_cut_at(position) and end & 0xFF == 0


def _is_torn_end(file: IndexFile, position: int, end: int) -> bool:
    """Whether only the lower bytes of an offset, ``end``, were written: the checksum of the entry matches for a higher
    one."""
    start = file.ends[position - 1] if position else 0
    (slot,) = file.checksums(position, position + 1)
    data = file.read_bytes(start, file.file_size() - file.data_offset)
    step = 256
    first = max(end + step, start + step - (start - end) % step)
    return find_end(file.first_index + position, data, start, first, start + len(data) + 1, step, slot) is not None


def _check_torn_end(file: IndexFile, position: int, end: int) -> None:
    if not (_was_being_zeroed(file, position, end) or _is_torn_end(file, position, end)):
        raise file.unordered_error(position, end, file.data_size)


def _count_within_file(file: IndexFile) -> int:
    """How many entries are there to their last byte. CorruptionError when that cannot be relied upon."""
    available = file.file_size() - file.data_offset
    if available >= file.data_size:
        return file.count
    kept = file.count_within(available)
    if kept == file.count - 1 and file.file_offset(file.first_index + kept) != file.data_offset + available:
        raise CorruptionError(
            f"{file.path}: the file ends at {file.data_offset + available}, within its last entry {file.last_index}, "
            f"which takes the bytes from {file.file_offset(file.last_index)} to {file.data_offset + file.data_size}: "
            f"either a crash tore the entry, or its offset, stored at {TABLE_OFFSET + 4 * (file.count - 1)}, is "
            f"damaged; {REMEDY}",
            path=file.path,
            offset=file.data_offset + available,
            index=file.last_index,
        )
    return kept


def _count_before_zeros(file: IndexFile, count: int) -> int:
    """How many of the first ``count`` entries are left without those at the end that are all zero."""
    while count:
        index = file.first_index + count - 1
        header, data_size = file.raw(index, ENTRY_HEADER_SIZE)
        if any(header) or any(file.raw(index, data_size)[0]):
            break
        count -= 1
    return count


def _remove_empty_files(directory: LogDirectory, contents: LogContents) -> None:
    """Remove files at the end that are empty, but not one that the next entry belongs into."""
    files = contents.files
    while len(files) > 1 and not files[-1].count and files[-1].first_index != files[-2].last_index + 1:
        file = files.pop()
        file.close()
        _log.warning("removing the index file %s, which is empty", file.path, extra={"file": file.path})
        directory.remove_files([file.path])


def gaps(files: list[IndexFile]) -> Iterator[CorruptionError]:
    """What to raise for each file that does not begin where the one before it ends."""
    for previous, file in pairwise(files):
        if previous.last_index + 1 != file.first_index:
            yield CorruptionError(
                f"{file.path}: begins with entry {file.first_index}, but {previous.path} ends with entry "
                f"{previous.last_index}: entries or a file are missing, or there twice; {REMEDY}",
                path=file.path,
                offset=16,
                index=file.first_index,
            )


def _note_leftovers(file: IndexFile) -> None:
    if file.leftover_count:
        _log.warning(
            "%s: zeroing %d offsets behind entry %d, left by a truncation or a write that a crash has cut short",
            file.path,
            file.leftover_count,
            file.last_index,
            extra={"file": file.path, "offset": TABLE_OFFSET + 4 * file.count, "index": file.last_index + 1},
        )


def _scan(contents: LogContents, after_seconds: int) -> None:
    """Read and check every entry once, for its type, term and request id."""
    for file in contents.files:
        index = file.first_index
        unknown = _Unknown(file)
        while index <= file.last_index:
            batch, unmatched = file.read_unmatched(index, file.last_index, _SCAN_SIZE)
            unknown.note(batch, unmatched)
            last_term = contents.terms.last_term or 0
            runs = batch.term_runs()
            for run_index, term in runs:
                check_term(file, run_index, term, last_term)
                last_term = term
            contents.note(batch, runs, after_seconds)
            index = batch.last_index + 1
        unknown.settle()
        if file is not contents.files[-1]:
            file.finish()
            file.release()


def check_term(file: IndexFile, index: int, term: int, last_term: int) -> None:
    """Raise CorruptionError when the term of an entry is below that of the one before it."""
    if term < last_term:
        raise file.entry_error(index, f" has term {term}, below {last_term}, that of the entry before it")


class _Unknown:
    """The entries of a file that have no checksum, or one of another entry that zmq-raft has written over."""

    def __init__(self, file: IndexFile) -> None:
        self._file = file
        #: The checksums that they get, by position.
        self.slots: dict[int, int] = {}
        # The first one whose checksum is that of another entry.
        self._replaced: int | None = None

    def note(self, batch: EntryBatch, unmatched: list[tuple[int, int]]) -> None:
        """Take in the next entries of the file. CorruptionError when one of them, or of those before, is damaged."""
        file = self._file
        for position, slot in unmatched:
            if slot and not file.changed_by_others:
                raise file.checksum_error(position)
            if slot and self._replaced is None:
                self._replaced = position
            index = file.first_index + position
            part = batch.slice(index, index)
            base = file.file_offset(index) - file.data_offset
            self.slots[position] = int.from_bytes(checksum_bytes(part, base, MARK_NONE), "little")
        if self._replaced is not None:
            # zmq-raft replaces all entries from one on: one of ours behind it proves that it is damaged.
            first = max(self._replaced, batch.first_index - file.first_index)
            if any(position not in self.slots for position in range(first, batch.last_index + 1 - file.first_index)):
                raise file.checksum_error(self._replaced)

    def settle(self) -> None:
        """Store the checksums, durably; from now on they count."""
        if self.slots:
            _log.warning(
                "%s: adding the checksums of %d entries, from %d on, that had none of their own",
                self._file.path,
                len(self.slots),
                self._file.first_index + min(self.slots),
                extra={"file": self._file.path, "index": self._file.first_index + min(self.slots)},
            )
            self._file.store_checksums(self.slots)


def _match_snapshot(directory: LogDirectory, contents: LogContents, snapshot: SnapshotBase) -> LogContents:
    if not contents.files:
        return contents
    first_index, last_index = contents.files[0].first_index, contents.last_index
    if first_index > snapshot.index + 1:
        raise CorruptionError(
            f"{contents.files[0].path}: the log begins with entry {first_index}, but the snapshot ends with entry "
            f"{snapshot.index}: what is between them is missing; {REMEDY}",
            path=contents.files[0].path,
            offset=16,
            index=first_index,
        )
    if last_index < snapshot.index or _conflicts(contents, snapshot):
        contents.close()
        name = rotate_directory(directory.fs, directory.path)
        _log.warning(
            "the log %s, which ends with entry %d, gives way to the snapshot of entry %d (term %d); it is kept as %s",
            directory.path,
            last_index,
            snapshot.index,
            snapshot.term,
            name,
            extra={"file": directory.path},
        )
        return LogContents(requests=RequestIndex(contents.requests.bound))
    term = contents.terms.term_at(snapshot.index + 1)
    if last_index > snapshot.index and term is not None and term < snapshot.term:
        raise CorruptionError(
            f"{contents.files[0].path}: entry {snapshot.index + 1} has term {term}, below {snapshot.term}, that of the "
            f"snapshot before it; {REMEDY}",
            path=contents.files[0].path,
            index=snapshot.index + 1,
        )
    return contents


def _conflicts(contents: LogContents, snapshot: SnapshotBase) -> bool:
    """Whether the log holds another entry than the snapshot at the snapshot's index."""
    if not contents.files[0].first_index <= snapshot.index <= contents.last_index:
        return False
    return contents.terms.term_at(snapshot.index) != snapshot.term
