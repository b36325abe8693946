"""One file of the log: a table of the end offsets of its entries, then their bytes.

On disk (SPEC section 3, integers least significant byte first)::

    RLOG  16 + 4 x capacity bytes: version 1, capacity, first index (8 bytes), then 4 bytes for each entry:
          the offset of its end, counted from the start of the data; 0 where no entry is stored
    META  MessagePack map: created, hostname
    CRCS  our checksums of the entries, see `checksum_segment`; not in files that zmq-raft or an early version made
    ...   segments that this version does not know
    ITMZ  length 0; the entries follow, one after the other, and zeros behind the last one, as far as the file is
          allocated: none in a file that is closed

Knows nothing of the other files of the log. The rule: an entry exists when its offset in the table is not 0 and all
before it are not; so data is written first, then its checksums, then the table. Nothing is durable before
`IndexFile.sync`, and one sync is enough for all three, since checksums tell what of them a crash has lost.

Behind the last entry there is nothing: neither bytes nor checksums, durably, before the next one is written there. So
what a crash loses of a write reads as zeros, and nothing older can be taken for it.
"""

from __future__ import annotations

import errno
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from operator import lt
from typing import Any, Final

from zmqraft.constants import INDEX_FILE_CAPACITY_MAX, INTEGER_MAX
from zmqraft.errors import CorruptionError, RemoteProtocolError
from zmqraft.protocol.entry import EntryBatch, check_entry
from zmqraft.protocol.log_index import table_bytes
from zmqraft.storage.checksum_segment import (
    CRCS,
    MARK_DURABLE,
    RECORD_SIZE,
    FileState,
    Record,
    decode_record,
    encode_checksum_segment,
    slots_offset,
)
from zmqraft.storage.checksums import checksum_bytes, count_matching
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.token_file import (
    REMEDY,
    IncompleteHeaderError,
    encode_meta,
    encode_segment,
    read_meta,
    read_segments,
)

__all__ = ["INDEX_FILE_SUFFIX", "TABLE_OFFSET", "IndexFile", "index_file_name"]

INDEX_FILE_SUFFIX: Final = ".rlog"

_RLOG: Final = b"RLOG"
_ITMZ: Final = b"ITMZ"
_VERSION: Final = 1
#: Token, length, version, capacity, first index.
_HEAD: Final = struct.Struct("<4sIIIQ")
#: Where the table of offsets stands in every index file.
TABLE_OFFSET: Final = _HEAD.size
_SLOT_SIZE: Final = 4
#: Token and length.
_SEGMENT_HEAD_SIZE: Final = 8
#: Zeros are written so many bytes at a time: the syncs of others wait for each.
_FILL_SIZE: Final = 256 << 10
#: For `IndexFile.allocated` of a file that is not allocated ahead.
_UNBOUNDED: Final = 1 << 62
#: And of one that was allocated only in part, and by another thread than the one that writes to it.
_TO_GIVE_BACK: Final = -1
#: Where a file system has no room to allocate ahead, or cannot, files grow as they are written.
_NO_ALLOCATION: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
)


def index_file_name(first_index: int) -> str:
    """The path of an index file below the log directory, with the folders it lies in."""
    digits = f"{first_index:014x}"
    return f"{digits[:5]}/{digits[5:7]}/{digits[7:9]}/{digits}{INDEX_FILE_SUFFIX}"


def _slots_from_bytes(data: bytes) -> array[int]:
    slots = array("I")
    slots.frombytes(data)
    if sys.byteorder == "big":
        slots.byteswap()
    return slots


class IndexFile:
    """An index file that is there. `create` and `open` make it; `release` gives back its handle and memory, which
    come again by themselves when they are needed.

    Relations: ``first_index - 1 <= last_index < next_file_index``; ``count <= capacity``.
    """

    def __init__(
        self, fs: FileSystem, path: str, handle: int, first_index: int, capacity: int, data_offset: int
    ) -> None:
        """For `create` and `open` only."""
        self._fs = fs
        self.path = path
        self._handle: int | None = handle
        self._writable = True
        #: The index of the first entry that is, or would be, in the file.
        self.first_index = first_index
        #: The number of entries that the table has room for.
        self.capacity = capacity
        #: Where the entries begin, in bytes from the start of the file.
        self.data_offset = data_offset
        #: The number of entries stored.
        self.count = 0
        #: The number of bytes of these entries.
        self.data_size = 0
        #: Slots behind the first empty one that are not empty: left by a truncation that was not finished.
        self.leftover_count = 0
        #: An offset behind that of the last entry which is not above it: perhaps only a part of it was written.
        self.unordered_end: int | None = None
        #: What is wrong with the offset behind that of the last entry, where no crash has left it.
        self.table_error: CorruptionError | None = None
        #: As many bytes of data have room in the file as it is; beyond, `allocate` is due.
        self.allocated = _UNBOUNDED
        #: What we noted last about the file; None in one without checksums.
        self.record: Record | None = None
        # Where the checksums begin in the file; 0 when it has none.
        self._slots_offset = 0
        self.meta: dict[str, Any] = {}
        self._ends: array[int] | None = array("I")

    # --- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str, first_index: int, capacity: int, *, fs: FileSystem = OS_FILE_SYSTEM, extensions: bytes = b""
    ) -> IndexFile:
        """Write a new, empty file and make its content durable; its name in the directory is the caller's to sync.

        ``extensions`` are further segments, encoded. FileExistsError when the file is there; OSError.
        """
        if not (1 <= capacity <= INDEX_FILE_CAPACITY_MAX and 1 <= first_index <= INTEGER_MAX):
            raise ValueError(f"{path}: no index file has first index {first_index} and capacity {capacity}")
        head = _HEAD.pack(_RLOG, 16 + _SLOT_SIZE * capacity, _VERSION, capacity, first_index)
        before = b"".join((head, bytes(_SLOT_SIZE * capacity), encode_meta(fs)))
        header = b"".join((before, encode_checksum_segment(capacity), extensions, encode_segment(_ITMZ)))
        handle = fs.open(path, write=True, create=True)
        try:
            fs.pwrite(handle, header, 0)
            fs.fdatasync(handle)
        except BaseException:
            fs.close(handle)
            raise
        file = cls(fs, path, handle, first_index, capacity, len(header))
        file.allocated = 0
        file.record = Record(FileState.OPEN)
        file._slots_offset = len(before) + _SEGMENT_HEAD_SIZE + RECORD_SIZE
        return file

    @classmethod
    def open(
        cls, path: str, *, fs: FileSystem = OS_FILE_SYSTEM, writable: bool = True, tolerant: bool = False
    ) -> IndexFile:
        """Open a file and check its header and table, not yet its entries.

        Raises CorruptionError, which is IncompleteHeaderError when the header was not written completely; OSError.
        ``tolerant``: where offsets in the table do not rise, `table_error` says so, and the entries end before them.
        """
        handle = fs.open(path, write=writable)
        try:
            file = cls._read_header(fs, path, handle)
            file._writable = writable
            file._read_table()
            if file.table_error is not None and not tolerant:
                raise file.table_error
        except BaseException:
            fs.close(handle)
            raise
        return file

    @classmethod
    def _read_header(cls, fs: FileSystem, path: str, handle: int) -> IndexFile:
        segments = read_segments(fs, handle, path, _RLOG, _ITMZ)
        head = fs.pread(handle, _HEAD.size, 0)
        if len(head) < _HEAD.size:
            raise IncompleteHeaderError(
                f"{path}: the header breaks off at offset {len(head)}; {REMEDY}", path=path, offset=len(head)
            )
        _, length, version, capacity, first_index = _HEAD.unpack(head)
        if version != _VERSION:
            raise CorruptionError(
                f"{path}: version {version} at offset 8, where {_VERSION} is known; {REMEDY}", path=path, offset=8
            )
        if not 1 <= capacity <= INDEX_FILE_CAPACITY_MAX or length != 16 + _SLOT_SIZE * capacity:
            raise CorruptionError(
                f"{path}: capacity {capacity} at offset 12 does not go with the length {length} at offset 4; {REMEDY}",
                path=path,
                offset=12,
            )
        if not 1 <= first_index <= INTEGER_MAX - capacity:
            raise CorruptionError(
                f"{path}: first index {first_index} at offset 16 is out of range; {REMEDY}", path=path, offset=16
            )
        file = cls(fs, path, handle, first_index, capacity, segments[_ITMZ].offset)
        file.meta = read_meta(fs, handle, segments)
        offset = slots_offset(segments.get(CRCS), capacity)
        if offset is not None:
            file._slots_offset = offset
            file.record = decode_record(fs.pread(handle, RECORD_SIZE, offset - RECORD_SIZE))
        return file

    def read_table(self) -> array[int]:
        """The whole table as it is on disk. OSError."""
        return _slots_from_bytes(self._fs.pread(self.handle, _SLOT_SIZE * self.capacity, TABLE_OFFSET))

    def _read_table(self) -> None:
        table = self.read_table()
        try:
            count = table.index(0)
        except ValueError:
            count = len(table)
        leftovers = table[count:]
        ends = table[:count]
        if not all(map(lt, ends, ends[1:])):
            position = next(p for p in range(1, count) if ends[p - 1] >= ends[p])
            if not (self.may_be_torn and (position == count - 1 or self.was_being_cut_at(position))):
                self.table_error = self.unordered_error(position, ends[position], ends[position - 1])
            self.unordered_end = ends[position]
            del ends[position:]
            count = position
            leftovers = table[position:]
        self._ends = ends
        self.count = count
        self.data_size = ends[-1] if count else 0
        self.leftover_count = len(leftovers) - leftovers.count(0)

    def unordered_error(self, position: int, end: int, before: int) -> CorruptionError:
        """What to raise for the offset at a position that is not above that before it."""
        index, offset = self.first_index + position, TABLE_OFFSET + _SLOT_SIZE * position
        return CorruptionError(
            f"{self.path}: offset {end} of entry {index}, stored at {offset}, is not above that before it, {before}; "
            f"{REMEDY}",
            path=self.path,
            offset=offset,
            index=index,
        )

    # --- what it holds --------------------------------------------------------------------------------------------

    @property
    def last_index(self) -> int:
        """The index of the last entry; first_index - 1 when there is none."""
        return self.first_index + self.count - 1

    @property
    def next_file_index(self) -> int:
        """The index behind the last one that the table has room for."""
        return self.first_index + self.capacity

    @property
    def has_checksums(self) -> bool:
        """Whether checksums are stored for what is written to the file."""
        return self._slots_offset > 0

    @property
    def may_be_torn(self) -> bool:
        """Whether we were writing to the file, with checksums, and were not done."""
        return self.record is not None and self.record.state is not FileState.CLOSED

    def was_being_cut_at(self, position: int) -> bool:
        """Whether we were removing the entries from a position on, and were not done."""
        record = self.record
        return record is not None and record.state is FileState.CUTTING and record.entry_count == position

    @property
    def changed_by_others(self) -> bool:
        """Whether the table is not as it was when we closed the file: then zmq-raft wrote to it."""
        record = self.record
        if record is None or record.state is not FileState.CLOSED:
            return False
        return (record.entry_count, record.end) != (self.count, self.data_size)

    @property
    def handle(self) -> int:
        """The open file; opened again when it was released."""
        if self._handle is None:
            self._handle = self._fs.open(self.path, write=self._writable)
        return self._handle

    @property
    def ends(self) -> array[int]:
        """The end offsets of the entries, from the start of the data; read again when they were released."""
        if self._ends is None:
            ends = _slots_from_bytes(self._fs.pread(self.handle, _SLOT_SIZE * self.count, TABLE_OFFSET))
            if len(ends) != self.count or (self.count and ends[-1] != self.data_size):
                raise CorruptionError(
                    f"{self.path}: the table of offsets has changed while in use; {REMEDY}", path=self.path
                )
            self._ends = ends
        return self._ends

    def file_offset(self, index: int) -> int:
        """Where the entry at ``index`` begins, in bytes from the start of the file; for ``last_index + 1`` the end."""
        position = index - self.first_index
        return self.data_offset + (self.ends[position - 1] if position else 0)

    def file_size(self) -> int:
        """The size of the file in bytes, whatever its table says. OSError."""
        return self._fs.size(self.handle)

    def count_within(self, size: int) -> int:
        """How many entries end within the first ``size`` bytes of the data."""
        return bisect_right(self.ends, size)

    def read_bytes(self, start: int, stop: int) -> bytes:
        """The data of the file from ``start`` up to, not including, ``stop``, or to where the file ends. OSError."""
        return self._fs.pread(self.handle, max(stop - start, 0), self.data_offset + start)

    def raw(self, index: int, size_max: int) -> tuple[bytes, int]:
        """The first ``size_max`` bytes of an entry, unchecked, and the number of all its bytes. OSError."""
        start = self.file_offset(index)
        size = self.file_offset(index + 1) - start
        return self._fs.pread(self.handle, min(size, size_max), start), size

    def read(self, first: int, last: int, size_max: int) -> EntryBatch:
        """The entries from ``first`` to ``last``, as many as fit in ``size_max`` bytes but at least one; checked.

        The range is within the file. Raises CorruptionError, OSError.
        """
        batch, unmatched = self.read_unmatched(first, last, size_max)
        for position, slot in unmatched:
            if slot and not self.changed_by_others:
                raise self.checksum_error(position)
        return batch

    def read_unmatched(self, first: int, last: int, size_max: int) -> tuple[EntryBatch, list[tuple[int, int]]]:
        """As `read`, with the positions in the file, and what is stored as checksums, of the entries which do not match
        their checksums: what that means is for the caller to say."""
        ends = self.ends
        low = first - self.first_index
        start = ends[low - 1] if low else 0
        high = max(bisect_right(ends, start + size_max, low, last - self.first_index + 1), low + 1)
        size, offset = ends[high - 1] - start, self.data_offset + start
        data = self._fs.pread(self.handle, size, offset)
        if len(data) != size:
            raise CorruptionError(
                f"{self.path}: the file ends at {offset + len(data)}, but entries {first} to "
                f"{self.first_index + high - 1} take the bytes from {offset} to {offset + size}; {REMEDY}",
                path=self.path,
                offset=offset + len(data),
                index=first,
            )
        unmatched = self.unmatched(data, low, high) if self._slots_offset else []
        if unmatched and unmatched[0][1] and not self.changed_by_others:
            # Before anything is made of its bytes.
            raise self.checksum_error(unmatched[0][0])
        try:
            return EntryBatch.from_table(first, data, ends, low, high), unmatched
        except RemoteProtocolError:
            raise self._bad_entry(first, data, ends, low, high) from None

    def unmatched(self, data: bytes, low: int, high: int) -> list[tuple[int, int]]:
        """The positions and stored checksums of the entries that do not match them, from the position ``low`` up to,
        not including, ``high``; ``data`` are their bytes, or as many of the first of them as there are. OSError."""
        ends, slots = self.ends, self.checksums(low, high)
        found: list[tuple[int, int]] = []
        view = memoryview(data)
        base = ends[low - 1] if low else 0
        position = low
        while True:
            start = ends[position - 1] - base if position > low else 0
            rest = slots[position - low :] if position > low else slots
            position += count_matching(self.first_index, view[start:], ends, rest, position, high)
            if position == high:
                return found
            slot = slots[position - low]
            found.append((position, slot))
            position += 1
            while not slot and position < high and not slots[position - low]:
                found.append((position, 0))
                position += 1

    def checksums(self, low: int, high: int) -> array[int]:
        """What is stored as checksums at the positions from ``low`` up to, not including, ``high``. OSError."""
        data = self._fs.pread(self.handle, _SLOT_SIZE * (high - low), self._slots_offset + _SLOT_SIZE * low)
        return _slots_from_bytes(data)

    def checksum_error(self, position: int) -> CorruptionError:
        """What to raise for the entry at a position, which is damaged."""
        index = self.first_index + position
        return self.entry_error(
            index, f" does not match its checksum, stored at {self._slots_offset + _SLOT_SIZE * position}"
        )

    def entry_error(self, index: int, problem: str) -> CorruptionError:
        """What to raise for an entry; ``problem`` goes behind where it is."""
        offset = self.file_offset(index)
        return CorruptionError(
            f"{self.path}: entry {index} at offset {offset}{problem}; {REMEDY}",
            path=self.path,
            offset=offset,
            index=index,
        )

    def _bad_entry(self, first: int, data: bytes, table: Sequence[int], low: int, high: int) -> CorruptionError:
        base = table[low - 1] if low else 0
        start = 0
        for index, end in enumerate([end - base for end in table[low:high]], first):
            try:
                check_entry(data[start:end])
            except RemoteProtocolError as error:
                return self.entry_error(index, f": {error}")
            start = end
        return self.entry_error(first, f", or one of the {high - low - 1} behind it, is damaged")

    # --- changing it ----------------------------------------------------------------------------------------------

    def room_for(self, batch: EntryBatch, data_size_max: int) -> int:
        """How many of the first entries of a batch fit into the file; its data stays below ``data_size_max`` bytes."""
        return min(self.capacity - self.count, batch.count_within(data_size_max - self.data_size - 1))

    def allocate(self, size: int, *, is_idle: bool = True) -> None:
        """Give the file room for ``size`` bytes of data, so that writing them does not change its size. OSError.

        Where the disk has no room, it grows from then on; and what could be allocated is given back, since others need
        it: at once when the file ``is_idle``, so that nobody else writes to it, or else with the next call.
        """
        if self.allocated == _TO_GIVE_BACK:
            self._cut(always=True)
            self.allocated = _UNBOUNDED
        start = self.allocated
        if size <= start:
            return
        try:
            self._fs.allocate(self.handle, self.data_offset + start, size - start)
            self.allocated = size
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
            if is_idle:
                self._cut(always=True)
            self.allocated = _UNBOUNDED if is_idle else _TO_GIVE_BACK

    def fill(self, size: int) -> None:
        """As `allocate`, and write zeros into the new room, durably: a sync of what is first written into room that was
        only allocated waits for the file system's journal. Nobody may write to the file meanwhile. OSError."""
        start = self.allocated
        self.allocate(size)
        if self.allocated == size:
            for offset in range(start, size, _FILL_SIZE):
                self._fs.pwrite(self.handle, bytes(min(_FILL_SIZE, size - offset)), self.data_offset + offset)
                self._fs.fdatasync(self.handle)

    def write(self, batch: EntryBatch, mark: int = MARK_DURABLE) -> None:
        """Add the entries of a batch, of which there is at least one and for which there is room. Does not sync.

        ``mark`` says what is known to be durable, see `checksum_segment`. OSError.
        """
        ends, count, data_size, handle = self.ends, self.count, self.data_size, self.handle
        table = table_bytes(batch, data_size)
        pwrite = self._fs.pwrite
        pwrite(handle, batch.data, self.data_offset + data_size)
        if self._slots_offset:
            pwrite(handle, checksum_bytes(batch, data_size, mark), self._slots_offset + _SLOT_SIZE * count)
        pwrite(handle, table, TABLE_OFFSET + _SLOT_SIZE * count)
        ends += _slots_from_bytes(table)
        self.count = count + len(batch)
        self.data_size = data_size + batch.size

    def begin(self) -> None:
        """Make what is in the file durable, and ready for more: nothing is behind its last entry. OSError."""
        if self.leftover_count or self.unordered_end is not None:
            self._zero_table(self.count, self.capacity)
        if self._slots_offset:
            self._clear_behind()
        self._write_anew()
        self._fs.fdatasync(self.handle)
        self.leftover_count, self.unordered_end = 0, None
        if self._slots_offset:
            # Behind the sync: the record vouches for the entries.
            self._write_record(Record(FileState.OPEN, self.count, self.data_size))
            self._fs.fdatasync(self.handle)

    def _write_anew(self) -> None:
        """A sync that failed in an earlier process may have left pages that are read, but never written any more: the
        kernel takes them for clean."""
        end = self.data_offset + self.data_size
        for offset in range(0, end, _FILL_SIZE):
            self._fs.pwrite(self.handle, self._fs.pread(self.handle, min(_FILL_SIZE, end - offset), offset), offset)

    def finish(self) -> None:
        """Note durably that the file is done, and how far; give back the room behind its last entry.

        Everything in it is synced. OSError.
        """
        if self._slots_offset and (self.may_be_torn or self.changed_by_others):
            self._clear_behind()
            self._write_record(Record(FileState.CLOSED, self.count, self.data_size))
            self._fs.fdatasync(self.handle)

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` entries and remove the others, durably. OSError.

        The offsets are gone before anything of the entries is, and what is gone before does not count any more.
        """
        if count < self.count:
            # What zmq-raft wrote does not match: so it must not be said that we write, before `begin`.
            own = self._slots_offset > 0 and not self.changed_by_others
            if own:
                self._write_record(Record(FileState.CUTTING, count, self.ends[count - 1] if count else 0))
                self._fs.fdatasync(self.handle)
            ends = self.ends
            self._zero_table(count, self.count)
            self._fs.fdatasync(self.handle)
            removed = self.count
            del ends[count:]
            self.count = count
            self.data_size = ends[-1] if count else 0
            if own:
                self._zero_checksums(count, removed)
                self._cut()
                self._write_record(Record(FileState.OPEN, self.count, self.data_size))
                self._fs.fdatasync(self.handle)

    def store_checksums(self, slots: dict[int, int]) -> None:
        """Store checksums by position, durably. OSError."""
        for position, slot in slots.items():
            self._fs.pwrite(self.handle, slot.to_bytes(4, "little"), self._slots_offset + _SLOT_SIZE * position)
        self._fs.fdatasync(self.handle)

    def restore(self, position: int, end: int, data: bytes | memoryview) -> None:
        """Write the bytes of the entry at a position, which ends at ``end``, and its offset, as they were. For a file
        that is not used otherwise: what is known of it stays as it is. Does not sync. OSError."""
        self._fs.pwrite(self.handle, data, self.data_offset + end - len(data))
        self._fs.pwrite(self.handle, end.to_bytes(4, "little"), TABLE_OFFSET + _SLOT_SIZE * position)

    def store_end(self, position: int, end: int) -> None:
        """Put back the offset at a position, durably, and read the table anew. CorruptionError, OSError."""
        self._fs.pwrite(self.handle, end.to_bytes(4, "little"), TABLE_OFFSET + _SLOT_SIZE * position)
        self._fs.fdatasync(self.handle)
        self.unordered_end = self.table_error = None
        self._read_table()
        if self.table_error is not None:
            raise self.table_error

    def _write_record(self, record: Record) -> None:
        self._fs.pwrite(self.handle, record.encode(), self._slots_offset - RECORD_SIZE)
        self.record = record

    def _clear_behind(self) -> None:
        """Remove bytes and checksums behind the last entry."""
        if self.count < self.capacity:
            slots = self.checksums(self.count, self.capacity)
            if slots.count(0) != len(slots):
                self._zero_checksums(self.count, self.capacity)
        self._cut()

    def _cut(self, *, always: bool = False) -> None:
        # Blocks may be allocated behind the end of the file, too.
        end = self.data_offset + self.data_size
        if always or self._fs.size(self.handle) > end:
            self._fs.truncate(self.handle, end)
        self.allocated = self.data_size

    def _zero_checksums(self, first: int, stop: int) -> None:
        self._fs.pwrite(self.handle, bytes(_SLOT_SIZE * (stop - first)), self._slots_offset + _SLOT_SIZE * first)

    def _zero_table(self, first: int, stop: int) -> None:
        self._fs.pwrite(self.handle, bytes(_SLOT_SIZE * (stop - first)), TABLE_OFFSET + _SLOT_SIZE * first)

    def sync(self) -> None:
        """Make everything written durable. OSError."""
        self._fs.fdatasync(self.handle)

    def release(self) -> None:
        """Close the file and give back the memory of its table, until they are needed again. It must be synced."""
        self._ends = None
        self.close()

    def close(self) -> None:
        """Close the file. Does not sync. May be called twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._fs.close(handle)

    def __repr__(self) -> str:
        return f"<IndexFile {self.path} with entries {self.first_index} to {self.last_index} of {self.capacity}>"
