"""The entries appended last, kept as they came: sending and applying them reads no file and checks nothing again.

Knows nothing of files. The rule: what is cached is the end of the log, without a gap; whoever changes the log changes
the cache with it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Final

from zmqraft.protocol.entry import EntryBatch

__all__ = ["TAIL_CACHE_SIZE_MAX", "TailCache"]

#: Some hundred messages to a follower: one that is further behind is fed from the files.
TAIL_CACHE_SIZE_MAX: Final = 8 << 20
#: About what a batch and an entry in it cost beside the entry's bytes.
_BATCH_OVERHEAD: Final = 400
_ENTRY_OVERHEAD: Final = 8


class TailCache:
    """The last batches of a log. `size` is the memory that they take, in bytes, about."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        # Each follows the one before it; none is empty.
        self._batches: deque[EntryBatch] = deque()
        self.size = 0

    def append(self, batch: EntryBatch) -> None:
        """Add entries that follow those cached, and let the oldest go when it gets too much."""
        self._batches.append(batch)
        self.size += _cost(batch)
        while self.size > self._size_max:
            self.size -= _cost(self._batches.popleft())

    def truncate_after(self, index: int) -> None:
        """Drop the entries above ``index``."""
        batches = self._batches
        while batches and batches[-1].last_index > index:
            batch = batches.pop()
            self.size -= _cost(batch)
            if batch.first_index <= index:
                self.append(batch.slice(batch.first_index, index))

    def read(self, first: int, last: int, size_max: int) -> EntryBatch | None:
        """Entries from ``first`` on, which is not above the last one, to ``last`` at most; None when they are not here.

        As many as fit in ``size_max`` bytes, but at least one; or fewer, where they are half of that already and
        another batch would have to be copied to them.
        """
        batches = self._batches
        if not batches or first < batches[0].first_index:
            return None
        position = len(batches) - 1
        if first < batches[position].first_index:
            position = bisect_right(batches, first, key=_first_index) - 1
        part = batches[position].slice(first, last).prefix_of_size(size_max)
        if part.last_index < min(last, batches[position].last_index) or 2 * part.size >= size_max:
            return part
        parts = [part]
        size = part.size
        # Not by an iterator, which would walk up to here from the beginning.
        for behind in range(position + 1, len(batches)):
            batch = batches[behind]
            if batch.first_index > last:
                break
            wanted = batch.slice(batch.first_index, last)
            count = wanted.count_within(size_max - size)
            if not count:
                break
            parts.append(wanted.slice(wanted.first_index, wanted.first_index + count - 1))
            size += parts[-1].size
            if count < len(wanted):
                break
        return EntryBatch.join(parts)


def _cost(batch: EntryBatch) -> int:
    return batch.size + len(batch) * _ENTRY_OVERHEAD + _BATCH_OVERHEAD


def _first_index(batch: EntryBatch) -> int:
    return batch.first_index
