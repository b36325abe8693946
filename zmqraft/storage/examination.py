"""The entries of an index file one by one, those that are damaged included: for tools, which go on where a peer stops.

Knows nothing of other files. The rule: `IndexFile` says what is wrong with an entry; this only goes on behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from zmqraft.errors import CorruptionError, RemoteProtocolError
from zmqraft.protocol.entry import EntryBatch, check_entry
from zmqraft.storage.index_file import IndexFile

__all__ = ["Part", "examine"]

#: What stands in `_kind_of` for an entry; the first two are good, as far as can be told.
_PROVED: Final = 0
_UNKNOWN: Final = 1
_DAMAGED: Final = 2
_MISSING: Final = 3


class Part(NamedTuple):
    """Some entries that follow each other: good ones in ``batch``, or one that is not, for the reason ``error``."""

    first_index: int
    last_index: int
    batch: EntryBatch | None
    error: CorruptionError | None
    #: Whether each one matches a checksum of its own. The others were written by zmq-raft, or by an early version.
    proved: bool


def examine(file: IndexFile, first: int, last: int, size_max: int) -> Iterator[Part]:
    """The entries from ``first`` to ``last``, which the table of the file has, all of them and in their order.

    They are read in pieces of ``size_max`` bytes, or of one entry. OSError.
    """
    ends = file.ends
    low, stop = first - file.first_index, last - file.first_index + 1
    while low < stop:
        start = ends[low - 1] if low else 0
        high = min(max(file.count_within(start + size_max), low + 1), stop)
        yield from _parts(file, file.read_bytes(start, ends[high - 1]), low, high)
        low = high


def _parts(file: IndexFile, data: bytes, low: int, high: int) -> Iterator[Part]:
    """The entries at the positions from ``low`` up to, not including, ``high``; ``data`` are as many of their bytes as
    there are."""
    base = file.ends[low - 1] if low else 0
    kinds = _kinds(file, data, low, file.count_within(base + len(data)), high)
    position = low
    for kind, group in groupby(kinds):
        stop = position + len(list(group))
        if kind in (_PROVED, _UNKNOWN):
            start = (file.ends[position - 1] if position else 0) - base
            piece = data[start : file.ends[stop - 1] - base]
            yield from _batches(file, piece, position, stop, kind == _PROVED)
        else:
            for bad in range(position, stop):
                index = file.first_index + bad
                error = file.checksum_error(bad) if kind == _DAMAGED else _missing_error(file, index)
                yield Part(index, index, None, error, False)
        position = stop


def _kinds(file: IndexFile, data: bytes, low: int, whole: int, high: int) -> Sequence[int]:
    if not file.has_checksums:
        kinds = [_UNKNOWN] * (high - low)
    else:
        kinds = [_PROVED] * (high - low)
        others = file.changed_by_others
        for position, slot in file.unmatched(data, low, high):
            kinds[position - low] = _DAMAGED if slot and not others else _UNKNOWN
    if whole < high:
        kinds[max(whole - low, 0) :] = [_MISSING] * (high - max(whole, low))
    return kinds


def _missing_error(file: IndexFile, index: int) -> CorruptionError:
    return file.entry_error(
        index, f" should end at {file.file_offset(index + 1)}, but the file ends at {file.file_size()}"
    )


def _batches(file: IndexFile, data: bytes, low: int, high: int, proved: bool) -> Iterator[Part]:
    """Entries that are there, in batches of those that are well-formed."""
    first = file.first_index + low
    try:
        batch = EntryBatch.from_table(first, data, file.ends, low, high)
    except RemoteProtocolError:
        if high - low > 1:
            middle = (low + high) // 2
            base = file.ends[low - 1] if low else 0
            size = file.ends[middle - 1] - base
            yield from _batches(file, data[:size], low, middle, proved)
            yield from _batches(file, data[size:], middle, high, proved)
        else:
            yield Part(first, first, None, _malformed_error(file, first, data), False)
    else:
        yield Part(first, batch.last_index, batch, None, proved)


def _malformed_error(file: IndexFile, index: int, data: bytes) -> CorruptionError:
    try:
        check_entry(data)
    except RemoteProtocolError as error:
        return file.entry_error(index, f": {error}")
    return file.entry_error(index, " is damaged")
