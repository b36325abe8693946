"""One file of the log: a table of the end offsets of its entries, then their bytes.

On disk (SPEC section 3, integers least significant byte first)::

    RLOG  16 + 4 x capacity bytes: version 1, capacity, first index (8 bytes), then 4 bytes for each entry:
          the offset of its end, counted from the start of the data; 0 where no entry is stored
    META  MessagePack map: created, hostname
    ...   segments that this version does not know
    ITMZ  length 0; the entries follow, one after the other

Knows nothing of the other files of the log. The rule: an entry exists when its offset in the table is not 0 and all
before it are not; so data is written first, and the table after it. Nothing is durable before `IndexFile.sync`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

from zmqraft.constants import INDEX_FILE_CAPACITY_MAX, INTEGER_MAX
from zmqraft.errors import CorruptionError, RemoteProtocolError
from zmqraft.protocol.entry import EntryBatch, check_entry
from zmqraft.protocol.log_index import table_bytes
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
        header = b"".join((head, bytes(_SLOT_SIZE * capacity), encode_meta(fs), extensions, encode_segment(_ITMZ)))
        handle = fs.open(path, write=True, create=True)
        try:
            fs.pwrite(handle, header, 0)
            fs.fdatasync(handle)
        except BaseException:
            fs.close(handle)
            raise
        return cls(fs, path, handle, first_index, capacity, len(header))

    @classmethod
    def open(cls, path: str, *, fs: FileSystem = OS_FILE_SYSTEM, writable: bool = True) -> IndexFile:
        """Open a file and check its header and table, not yet its entries.

        Raises CorruptionError, which is IncompleteHeaderError when the header was not written completely; OSError.
        """
        handle = fs.open(path, write=writable)
        try:
            file = cls._read_header(fs, path, handle)
            file._writable = writable
            file._read_table()
        except BaseException:
            fs.close(handle)
            raise
        return file

    @classmethod
    def _read_header(cls, fs: FileSystem, path: str, handle: int) -> IndexFile:
        segments = read_segments(fs, handle, path, _RLOG, _ITMZ)
        head = fs.pread(handle, _HEAD.size, 0)
        if len(head) < _HEAD.size:
            raise IncompleteHeaderError(f"{path}: the header breaks off at offset {len(head)}; {REMEDY}")
        _, length, version, capacity, first_index = _HEAD.unpack(head)
        if version != _VERSION:
            raise CorruptionError(f"{path}: version {version} at offset 8, where {_VERSION} is known; {REMEDY}")
        if not 1 <= capacity <= INDEX_FILE_CAPACITY_MAX or length != 16 + _SLOT_SIZE * capacity:
            raise CorruptionError(
                f"{path}: capacity {capacity} at offset 12 does not go with the length {length} at offset 4; {REMEDY}"
            )
        if not 1 <= first_index <= INTEGER_MAX - capacity:
            raise CorruptionError(f"{path}: first index {first_index} at offset 16 is out of range; {REMEDY}")
        file = cls(fs, path, handle, first_index, capacity, segments[_ITMZ].offset)
        file.meta = read_meta(fs, handle, segments)
        return file

    def _read_table(self) -> None:
        table = _slots_from_bytes(self._fs.pread(self.handle, _SLOT_SIZE * self.capacity, TABLE_OFFSET))
        try:
            count = table.index(0)
        except ValueError:
            count = len(table)
        leftovers = table[count:]
        ends = table[:count]
        if ends.tolist() != sorted(set(ends)):
            position = next(p for p in range(1, count) if ends[p - 1] >= ends[p])
            raise CorruptionError(
                f"{self.path}: offset {ends[position]} of entry {self.first_index + position}, stored at "
                f"{TABLE_OFFSET + _SLOT_SIZE * position}, is not above that before it, {ends[position - 1]}; {REMEDY}"
            )
        self._ends = ends
        self.count = count
        self.data_size = ends[-1] if count else 0
        self.leftover_count = len(leftovers) - leftovers.count(0)

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
                raise CorruptionError(f"{self.path}: the table of offsets has changed while in use; {REMEDY}")
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

    def raw(self, index: int, size_max: int) -> tuple[bytes, int]:
        """The first ``size_max`` bytes of an entry, unchecked, and the number of all its bytes. OSError."""
        start = self.file_offset(index)
        size = self.file_offset(index + 1) - start
        return self._fs.pread(self.handle, min(size, size_max), start), size

    def read(self, first: int, last: int, size_max: int) -> EntryBatch:
        """The entries from ``first`` to ``last``, as many as fit in ``size_max`` bytes but at least one; checked.

        The range is within the file. Raises CorruptionError, OSError.
        """
        ends = self.ends
        low = first - self.first_index
        start = ends[low - 1] if low else 0
        high = max(bisect_right(ends, start + size_max, low, last - self.first_index + 1), low + 1)
        size, offset = ends[high - 1] - start, self.data_offset + start
        data = self._fs.pread(self.handle, size, offset)
        if len(data) != size:
            raise CorruptionError(
                f"{self.path}: the file ends at {offset + len(data)}, but entries {first} to "
                f"{self.first_index + high - 1} take the bytes from {offset} to {offset + size}; {REMEDY}"
            )
        try:
            return EntryBatch.from_table(first, data, ends, low, high)
        except RemoteProtocolError:
            raise self._bad_entry(first, data, [end - start for end in ends[low:high]]) from None

    def _bad_entry(self, first: int, data: bytes, ends: Sequence[int]) -> CorruptionError:
        start = 0
        for index, end in enumerate(ends, first):
            try:
                check_entry(data[start:end])
            except RemoteProtocolError as error:
                return CorruptionError(
                    f"{self.path}: entry {index} at offset {self.file_offset(index)}: {error}; {REMEDY}"
                )
            start = end
        return CorruptionError(f"{self.path}: entries {first} to {first + len(ends) - 1} are damaged; {REMEDY}")

    # --- changing it ----------------------------------------------------------------------------------------------

    def room_for(self, batch: EntryBatch, data_size_max: int) -> int:
        """How many of the first entries of a batch fit into the file; its data stays below ``data_size_max`` bytes."""
        return min(self.capacity - self.count, batch.count_within(data_size_max - self.data_size - 1))

    def write(self, batch: EntryBatch) -> None:
        """Add the entries of a batch, of which there is at least one and for which there is room. Does not sync.
        OSError."""
        ends = self.ends
        table = table_bytes(batch, self.data_size)
        self._fs.pwrite(self.handle, batch.data, self.data_offset + self.data_size)
        self._fs.pwrite(self.handle, table, TABLE_OFFSET + _SLOT_SIZE * self.count)
        ends += _slots_from_bytes(table)
        self.count += len(batch)
        self.data_size += batch.size

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` entries and zero the slots of the others, durably. OSError."""
        ends = self.ends
        if count < self.count:
            self._zero_slots(count, self.count)
            del ends[count:]
            self.count = count
            self.data_size = ends[-1] if count else 0

    def clear_leftovers(self) -> None:
        """Zero the slots behind the last entry, durably, so that the next entry does not bring them back. OSError."""
        if self.leftover_count:
            self._zero_slots(self.count, self.capacity)
            self.leftover_count = 0

    def _zero_slots(self, first: int, stop: int) -> None:
        self._fs.pwrite(self.handle, bytes(_SLOT_SIZE * (stop - first)), TABLE_OFFSET + _SLOT_SIZE * first)
        self._fs.fdatasync(self.handle)

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
