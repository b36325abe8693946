"""The end of a log as a crash may have left it: which entries are torn, which are damaged, and which offsets are.

Knows nothing of other files than the newest ones. The rule: what can be proved never to have been acknowledged is
removed; what may have been is damage, and stops. What counts as a proof, given that the only fault is a crash or one
damaged place:

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
- A data block that was not written back, but lies within the file between good ones, cannot be found.
"""

from __future__ import annotations

import logging
from array import array
from typing import Final

from zmqraft.constants import ENTRY_HEADER_SIZE
from zmqraft.errors import CorruptionError, InvariantError
from zmqraft.storage.checksum_segment import MARK_DURABLE, MARK_NONE, MARK_SYNCING, FileState, mark_of
from zmqraft.storage.checksums import count_matching, find_end
from zmqraft.storage.index_file import TABLE_OFFSET, IndexFile
from zmqraft.storage.token_file import REMEDY

__all__ = ["check_table", "count_untorn", "newest_with_entries", "trim_torn_tail"]

_log = logging.getLogger(__name__)

#: Entries are read in pieces of this size.
_READ_SIZE: Final = 1 << 20
#: What a disk writes whole or not at all.
_SECTOR_SIZE: Final = 512


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


def trim_torn_tail(files: list[IndexFile]) -> None:
    """Remove from the table what was never synced; see the head of the module for why that is known."""
    file = newest_with_entries(files)
    for other in files:
        if other.unordered_end is not None and other is not file:
            raise other.unordered_error(other.count, other.unordered_end, other.data_size)
    if file is None:
        return
    kept = count_untorn(file)
    first = file.first_index + kept
    if file.unordered_end is not None and kept == file.count:
        _log.warning(
            "%s: removing entry %d, whose offset was not written or zeroed completely, and which nobody counts on",
            file.path,
            first,
            extra={"file": file.path, "offset": TABLE_OFFSET + 4 * kept, "index": first},
        )
    if kept < file.count:
        _log.warning(
            "%s: removing entries %d to %d, which were not written completely and never acknowledged",
            file.path,
            first,
            file.last_index,
            extra={"file": file.path, "offset": file.file_offset(first), "index": first},
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
    if file.record is None:
        raise InvariantError(f"{file.path}: has no checksums by which its end could be judged")
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
        high = max(file.count_within(start + _READ_SIZE), low + 1)
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
