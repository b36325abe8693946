"""Checksums of what is on disk: CRC32C, and the 4 bytes that stand for each entry of an index file. The pure twin of
_speedups/checksums.pyx.

Knows nothing of files. The rule: a checksum covers an entry's bytes, its index, where it ends in the file, and a mark
of the writer's, 0 to 2; so it fits that entry in that place only. Of the 32 bits the lowest two are the mark, and the
others are of the CRC; 0 stands for no checksum, and one that would be 0 becomes 4.
"""

from __future__ import annotations

import struct
from array import array
from operator import index as to_index
from typing import Any, Final

from zmqraft.errors import shown
from zmqraft.protocol._log_index import EntryBatch

__all__ = ["checksum_bytes", "count_matching", "crc32c", "find_end"]

_OFFSET_MAX: Final = 2**32 - 1
_INDEX_STOP: Final = 1 << 62
#: Changes the other bits of a checksum with the mark, so that the mark alone cannot be damaged unnoticed.
_MARKED: Final = (0, 0xA5A5A5A4, 0x5A5A5A58)
#: An index and where its entry ends.
_PLACE: Final = struct.Struct("<QI")


def _make_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE: Final = _make_table()


def _updated(crc: int, data: bytes | memoryview) -> int:
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc


def _slot_value(crc: int, index: int, end: int, mark: int) -> int:
    """The checksum of an entry, from that of its bytes (still inverted)."""
    crc = _updated(crc, _PLACE.pack(index, end)) ^ 0xFFFFFFFF
    return (crc ^ _MARKED[mark]) & 0xFFFFFFFC | mark or 4


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """The CRC32C (Castagnoli) of some bytes; of more bytes in several steps, by the ``value`` of those before."""
    value = to_index(value)
    if not 0 <= value <= _OFFSET_MAX:
        raise ValueError(f"a checksum is 0 to {_OFFSET_MAX}, not {shown(value)}")
    return _updated(value ^ 0xFFFFFFFF, memoryview(data).cast("B")) ^ 0xFFFFFFFF


def checksum_bytes(batch: EntryBatch, base: int, mark: int) -> bytes:
    """The checksums of a batch whose data begins ``base`` bytes behind the start of the file's: 4 bytes for each entry.

    The first one gets the ``mark``, 0 to 2. ValueError for another one, and when an end lies at 4 GiB or more.
    """
    if not isinstance(batch, EntryBatch):
        raise TypeError(f"expected an EntryBatch, not {type(batch).__name__}")
    base = to_index(base)
    mark = to_index(mark)
    if not 0 <= mark <= 2:
        raise ValueError(f"a mark is 0 to 2, not {shown(mark)}")
    if not 0 <= base <= _OFFSET_MAX - batch.size:
        raise ValueError(f"{batch.size} bytes behind offset {shown(base)} end beyond {_OFFSET_MAX}")
    data = batch.data
    slots = []
    start = 0
    for index, end in enumerate(batch.ends, batch.first_index):
        slots.append(_slot_value(_updated(0xFFFFFFFF, data[start:end]), index, base + end, mark))
        start, mark = end, 0
    return struct.pack(f"<{len(slots)}I", *slots)


def count_matching(
    first_index: int, data: bytes | bytearray | memoryview, ends: array[int], slots: array[int], low: int, high: int
) -> int:
    """How many entries, from the first on, match their checksums, of those at the positions ``low`` up to, not
    including, ``high`` of a file that starts at ``first_index``.

    ``ends`` and ``slots`` are arrays of type "I", of the file's end offsets and of its checksums from ``low`` on;
    ``data`` the bytes of these entries. An entry that is not wholly in ``data`` does not match. ValueError when a
    position is not in the arrays.
    """
    table: Any
    for table in (ends, slots):
        if not isinstance(table, array) or table.typecode != "I":
            raise TypeError(f"a table is an array of type I, not {shown(table)}")
    first_index, low, high = to_index(first_index), to_index(low), to_index(high)
    if not (0 <= low <= high <= len(ends) and high - low <= len(slots) and 0 <= first_index < _INDEX_STOP):
        raise ValueError(f"positions {shown(low)} to {shown(high)} in tables of {len(ends)} and {len(slots)}")
    view = memoryview(data).cast("B")
    base = start = ends[low - 1] if low else 0
    for position in range(low, high):
        end, slot = ends[position], slots[position - low]
        if not start <= end <= base + len(view):
            return position - low
        crc = _updated(0xFFFFFFFF, view[start - base : end - base])
        if slot == 0 or slot & 3 == 3 or slot != _slot_value(crc, first_index + position, end, slot & 3):
            return position - low
        start = end
    return high - low


def find_end(
    index: int, data: bytes | bytearray | memoryview, start: int, low: int, high: int, step: int, slot: int
) -> int | None:
    """Where an entry ends, by its checksum: the first of ``low``, ``low + step``, ... below ``high`` for which it
    matches; None when there is no one.

    ``data`` are the bytes of the file's data from ``start`` on, where the entry begins; ``high`` is clipped to them.
    """
    index, start, step = to_index(index), to_index(start), to_index(step)
    low, high, slot = to_index(low), to_index(high), to_index(slot)
    if not (0 <= index < _INDEX_STOP and 0 <= start <= low <= _OFFSET_MAX and step >= 1 and 0 <= slot <= _OFFSET_MAX):
        raise ValueError(f"no entry {shown(index)} begins at {shown(start)} and ends from {shown(low)} on")
    view = memoryview(data).cast("B")
    crc, done = 0xFFFFFFFF, start
    for end in range(low, min(high, start + len(view) + 1, _OFFSET_MAX), step) if slot and slot & 3 != 3 else ():
        crc = _updated(crc, view[done - start : end - start])
        done = end
        if _slot_value(crc, index, end, slot & 3) == slot:
            return end
    return None
