"""Log entries in batches: one contiguous buffer and the offsets in it. The pure twin of _speedups/log_index.pyx.

Knows nothing of sockets, files or Raft. The rule: an EntryBatch is immutable and was validated when it was made; who
holds one may trust every entry in it. Same names, signatures, results and exceptions as the compiled twin; import
either through `zmqraft.protocol.log_index`.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from operator import index as to_index
from typing import Final, final

from zmqraft.constants import ENTRY_HEADER_SIZE, INTEGER_MAX, REQUEST_ID_SIZE
from zmqraft.errors import LocalProtocolError, RemoteProtocolError, shown
from zmqraft.protocol._frames import Frame, check_entries, check_entry, encode_entry, is_frame
from zmqraft.protocol.log_entry import EntryType, LogEntry

__all__ = ["BatchBuilder", "EntryBatch", "table_bytes"]

_TYPE_OFFSET: Final = REQUEST_ID_SIZE
_TERM_OFFSET: Final = REQUEST_ID_SIZE + 1
#: Behind the last entry of the longest log there is an empty batch.
_INDEX_MAX: Final = INTEGER_MAX + 1
#: The largest offset in the table of an index file.
_OFFSET_MAX: Final = 2**32 - 1


def _checked_index(index: object) -> int:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= _INDEX_MAX:
        raise LocalProtocolError(f"the first index of a batch is 0 to {_INDEX_MAX}, not {shown(index)}")
    return index


def _checked_table(table: object) -> array[int]:
    if not isinstance(table, array) or table.typecode != "I":
        raise LocalProtocolError(f"the table of offsets is an array of type I, not {shown(table)}")
    return table


def _frozen(data: Frame) -> bytes | memoryview:
    """The bytes themselves where nobody can change them, else a copy."""
    if type(data) is bytes:
        return data
    try:
        view = memoryview(data)
        if view.readonly and view.format == "B" and view.ndim == 1 and view.contiguous:
            return view
        return bytes(data)
    except (TypeError, ValueError):
        raise LocalProtocolError(f"the data of a batch is bytes, not {type(data).__name__}") from None


def _check_sizes(offsets: Sequence[object], size: int) -> None:
    start = 0
    for position, end in enumerate(offsets[1:]):
        if not isinstance(end, int) or not start + ENTRY_HEADER_SIZE < end <= size:
            raise LocalProtocolError(
                f"the entry at position {position} ends at {shown(end)}, not {start + ENTRY_HEADER_SIZE + 1} to {size}"
            )
        start = end
    if start != size:
        raise LocalProtocolError(f"{size - start} bytes behind the last entry")


@final
class EntryBatch:
    """Consecutive log entries in one contiguous buffer.

    ``first_index`` is the index of the first entry, ``data`` the bytes of all entries one after the other (as in an
    index file), ``ends`` the end offset of each, in bytes from the start of ``data``.
    Immutable; what could be changed by others is copied. The constructor checks that every entry is longer than its
    header and lies within ``data`` (LocalProtocolError), and trusts the rest; bytes from outside come in through
    `from_frames`, `from_buffer` or `from_table`.
    """

    __slots__ = ("_buffer", "_count", "_first_index", "_low", "_offsets")

    def __init__(self, first_index: int, data: Frame, ends: Sequence[int]) -> None:
        self._first_index = _checked_index(first_index)
        self._buffer = _frozen(data)
        #: Where the entries begin and end in the buffer: those of this batch stand from position `_low` on.
        self._offsets: Sequence[int] = [0, *ends]
        self._low = 0
        self._count = len(self._offsets) - 1
        _check_sizes(self._offsets, len(self._buffer))

    @classmethod
    def _part(
        cls, first_index: int, buffer: bytes | memoryview, offsets: Sequence[int], low: int, count: int
    ) -> EntryBatch:
        """Trusts its arguments."""
        batch = object.__new__(cls)
        batch._first_index = first_index
        batch._buffer = buffer
        batch._offsets = offsets
        batch._low = low
        batch._count = count
        return batch

    @classmethod
    def empty(cls, first_index: int) -> EntryBatch:
        """A batch of no entries whose first one would have this index."""
        return cls._part(_checked_index(first_index), b"", (0,), 0, 0)

    @classmethod
    def from_frames(cls, first_index: int, frames: Iterable[Frame]) -> EntryBatch:
        """A batch of the frames of a message. Raises RemoteProtocolError when one is not a log entry."""
        _checked_index(first_index)
        parts = list(frames)
        for frame in parts:
            check_entry(frame)
        return cls._part(first_index, b"".join(parts), [0, *accumulate(map(len, parts))], 0, len(parts))

    @classmethod
    def from_checked_frames(cls, first_index: int, frames: Sequence[Frame]) -> EntryBatch:
        """A batch of frames that are known to be log entries: those of a message that a FramesProtocol decoded."""
        _checked_index(first_index)
        parts = list(frames)
        for position, frame in enumerate(parts):
            if type(frame) is not bytes and not is_frame(frame):
                raise LocalProtocolError(f"a frame is bytes, not {type(frame).__name__}")
            if len(frame) <= ENTRY_HEADER_SIZE:
                raise LocalProtocolError(f"the entry at position {position} has {len(frame)} bytes")
        return cls._part(first_index, b"".join(parts), [0, *accumulate(map(len, parts))], 0, len(parts))

    @classmethod
    def from_buffer(cls, first_index: int, data: Frame, ends: Sequence[int]) -> EntryBatch:
        """A batch of bytes that were read from a file. Raises RemoteProtocolError when an entry is malformed."""
        _checked_index(first_index)
        check_entries(data, ends)
        return cls(first_index, data, ends)

    @classmethod
    def from_table(cls, first_index: int, data: Frame, table: array[int], low: int, high: int) -> EntryBatch:
        """A batch of bytes that were read from an index file, by its table (an array of type "I") of end offsets.

        The entries are those at the positions from ``low`` up to, not including, ``high``. Raises
        RemoteProtocolError when one is malformed, or the bytes are more or less than theirs.
        """
        _checked_index(first_index)
        _checked_table(table)
        low, high = to_index(low), to_index(high)
        if not 0 <= low <= high <= len(table):
            raise LocalProtocolError(f"positions {low} to {high} in a table of {len(table)} entries")
        base = table[low - 1] if low else 0
        return cls.from_buffer(first_index, data, [end - base for end in table[low:high]])

    @classmethod
    def from_entries(cls, entries: Sequence[LogEntry]) -> EntryBatch:
        """A batch of entries with consecutive indexes; at least one."""
        if not entries:
            raise LocalProtocolError("a batch of no entries has no first index; use EntryBatch.empty")
        first = entries[0].index
        for position, entry in enumerate(entries):
            if entry.index != first + position:
                raise LocalProtocolError(f"entry {entry.index} does not follow {first + position - 1}")
        return cls.from_frames(first, [entry.to_bytes() for entry in entries])

    @classmethod
    def join(cls, batches: Sequence[EntryBatch]) -> EntryBatch:
        """One batch of several, each of which follows the one before it; at least one."""
        if not batches:
            raise LocalProtocolError("no batches to join; use EntryBatch.empty")
        for batch in batches:
            if not isinstance(batch, EntryBatch):
                raise TypeError(f"expected an EntryBatch, not {type(batch).__name__}")
        if len(batches) == 1:
            return batches[0]
        offsets = [0]
        next_index = batches[0].first_index
        for batch in batches:
            if batch.first_index != next_index:
                raise LocalProtocolError(f"entry {batch.first_index} does not follow {next_index - 1}")
            base = offsets[-1]
            offsets += [base + end for end in batch.ends]
            next_index += len(batch)
        data = b"".join([batch.data for batch in batches])
        return cls._part(batches[0].first_index, data, offsets, 0, len(offsets) - 1)

    @property
    def first_index(self) -> int:
        """The index of the first entry; where there is none, that which it would have."""
        return self._first_index

    @property
    def data(self) -> memoryview:
        """The bytes of all entries, one after the other."""
        return memoryview(self._buffer)[self._offsets[self._low] : self._offsets[self._low + self._count]]

    @property
    def ends(self) -> tuple[int, ...]:
        """The end offset of each entry, from the start of `data`. Made anew: for one or two ask `end`."""
        low, offsets = self._low, self._offsets
        base = offsets[low]
        return tuple([end - base for end in offsets[low + 1 : low + self._count + 1]])

    def __len__(self) -> int:
        return self._count

    @property
    def last_index(self) -> int:
        """The index of the last entry; first_index - 1 when there is none."""
        return self._first_index + self._count - 1

    @property
    def size(self) -> int:
        """The number of bytes of all entries together."""
        return self._offsets[self._low + self._count] - self._offsets[self._low]

    def _at(self, position: int) -> int:
        position = to_index(position)
        if not 0 <= position < self._count:
            raise IndexError(f"position {shown(position)} in a batch of {self._count} entries")
        return self._low + position

    def end(self, position: int) -> int:
        """The end offset of the entry at a position, from the start of `data`."""
        return self._offsets[self._at(position) + 1] - self._offsets[self._low]

    def frame(self, position: int) -> bytes:
        """The bytes of the entry at a position (0 is the first)."""
        at = self._at(position)
        return bytes(self._buffer[self._offsets[at] : self._offsets[at + 1]])

    def frames(self) -> list[bytes]:
        """The bytes of every entry: the last frames of an AppendEntries or a RequestEntries reply."""
        buffer, offsets, low = self._buffer, self._offsets, self._low
        return [bytes(buffer[offsets[at] : offsets[at + 1]]) for at in range(low, low + self._count)]

    def entry(self, position: int) -> LogEntry:
        """The entry at a position (0 is the first)."""
        return LogEntry._from_checked(self.frame(position), self._first_index + to_index(position))

    def __iter__(self) -> Iterator[LogEntry]:
        for position in range(self._count):
            yield self.entry(position)

    def term(self, position: int) -> int:
        """The term of the entry at a position."""
        start = self._offsets[self._at(position)]
        return int.from_bytes(self._buffer[start + _TERM_OFFSET : start + ENTRY_HEADER_SIZE], "little")

    def type(self, position: int) -> int:
        """The type of the entry at a position, as in `EntryType`."""
        return self._buffer[self._offsets[self._at(position)] + _TYPE_OFFSET]

    def request_id(self, position: int) -> bytes:
        """The request id of the entry at a position."""
        start = self._offsets[self._at(position)]
        return bytes(self._buffer[start : start + REQUEST_ID_SIZE])

    def payload(self, position: int) -> bytes:
        """The data of the entry at a position, without its header."""
        at = self._at(position)
        return bytes(self._buffer[self._offsets[at] + ENTRY_HEADER_SIZE : self._offsets[at + 1]])

    def term_runs(self) -> list[tuple[int, int]]:
        """``(index, term)`` for the first entry and for each whose term differs from the one before it."""
        runs: list[tuple[int, int]] = []
        last = -1
        for position in range(self._count):
            term = self.term(position)
            if term != last:
                runs.append((self._first_index + position, term))
                last = term
        return runs

    def config_positions(self) -> list[int]:
        """The positions of CONFIG entries."""
        return [position for position in range(self._count) if self.type(position) == EntryType.CONFIG]

    def with_first_index(self, first_index: int) -> EntryBatch:
        """The same entries under other indexes. Shares the bytes."""
        return self._part(_checked_index(first_index), self._buffer, self._offsets, self._low, self._count)

    def slice(self, first: int, last: int) -> EntryBatch:
        """The entries from index ``first`` to index ``last``, both included and clipped to the batch.

        Shares the bytes. An empty range gives an empty batch.
        """
        first, last = to_index(first), to_index(last)
        low = max(first - self._first_index, 0)
        high = min(last - self._first_index + 1, self._count)
        if low >= high:
            return self.empty(max(first, self._first_index))
        if low == 0 and high == self._count:
            return self
        return self._part(self._first_index + low, self._buffer, self._offsets, self._low + low, high - low)

    def count_within(self, size_max: int, first: int = 0) -> int:
        """How many entries from position ``first`` on fit in ``size_max`` bytes, taken together; maybe none."""
        size_max, first = to_index(size_max), to_index(first)
        if not 0 <= first <= self._count:
            raise IndexError(f"position {shown(first)} in a batch of {self._count} entries")
        low = self._low + first
        stop = bisect_right(self._offsets, self._offsets[low] + size_max, low, self._low + self._count + 1)
        return max(stop - 1 - low, 0)

    def prefix_of_size(self, size_max: int) -> EntryBatch:
        """As many of the first entries as fit in ``size_max`` bytes, but at least one (if there is one)."""
        count = max(self.count_within(size_max), 1)
        return self.slice(self._first_index, self._first_index + count - 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EntryBatch):
            return NotImplemented
        return self._first_index == other._first_index and self.ends == other.ends and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<EntryBatch of {self._count} entries from index {self._first_index}, {self.size} bytes>"


@final
class BatchBuilder:
    """Collects entries, one by one, into a batch. Their terms never go back."""

    __slots__ = ("_last_term", "_offsets", "_parts")

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._parts: list[bytes] = []
        self._offsets = [0]
        self._last_term = 0

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def size(self) -> int:
        """The number of bytes of all entries so far."""
        return self._offsets[-1]

    def append_entry(self, request_id: Frame, entry_type: int, term: int, data: Frame) -> None:
        """Add an entry. Raises LocalProtocolError, and adds nothing, on illegal values (see `encode_entry`)."""
        frame = encode_entry(request_id, entry_type, term, data)
        if term < self._last_term:
            raise LocalProtocolError(self._term_goes_back(term))
        self._add(frame, int(term))

    def append_frame(self, frame: Frame) -> None:
        """Add a frame of a message. Raises RemoteProtocolError, and adds nothing, when it is not a log entry."""
        check_entry(frame)
        term = int.from_bytes(frame[_TERM_OFFSET:ENTRY_HEADER_SIZE], "little")
        if term < self._last_term:
            raise RemoteProtocolError(self._term_goes_back(term))
        self._add(bytes(frame), term)

    def _term_goes_back(self, term: int) -> str:
        return f"the term goes back from {self._last_term} to {term} at position {len(self._parts)}"

    def _add(self, frame: bytes, term: int) -> None:
        self._parts.append(frame)
        self._offsets.append(self._offsets[-1] + len(frame))
        self._last_term = term

    def finish(self, first_index: int) -> EntryBatch:
        """The batch of the entries so far, the first of which gets this index; the builder is empty again."""
        batch = EntryBatch._part(_checked_index(first_index), b"".join(self._parts), self._offsets, 0, len(self._parts))
        self._clear()
        return batch


def table_bytes(batch: EntryBatch, base: int) -> bytes:
    """The part of an index file's table for a batch whose data begins ``base`` bytes behind the start of the file's.

    LocalProtocolError when an end lies at 4 GiB or more.
    """
    if not isinstance(batch, EntryBatch):
        raise LocalProtocolError(f"expected an EntryBatch, not {type(batch).__name__}")
    base = to_index(base)
    if not 0 <= base <= _OFFSET_MAX - batch.size:
        raise LocalProtocolError(f"{batch.size} bytes behind offset {shown(base)} end beyond {_OFFSET_MAX}")
    return struct.pack(f"<{len(batch)}I", *[base + end for end in batch.ends])
