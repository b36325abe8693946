"""The request-id index: which entry of the log holds a request id. The pure twin of _speedups/request_index.pyx.

A first-in first-out set: ids come in the order of their entries, leave at the old end when their time has passed and at
the new end when the log is truncated. Knows nothing of files or clocks. The rule: the first index of an id counts, and
an id that is forgotten has no index, whatever entries follow.

It costs about 170 bytes for each id, the compiled one at most 64. Considered and rejected: a dict alone, which is
ordered too; but finding its oldest key passes over every slot that was deleted before it.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import islice
from operator import index as to_index
from typing import Final, final

from zmqraft.constants import INTEGER_MAX, REQUEST_ID_NONE, REQUEST_ID_SIZE
from zmqraft.errors import shown
from zmqraft.protocol._log_index import EntryBatch
from zmqraft.protocol.log_entry import EntryType
from zmqraft.protocol.request_id import request_id_seconds

__all__ = ["RequestIndex"]

_SECONDS_MAX: Final = 2**32 - 1
#: What `RequestIndex.packed` gives for each id: the id, then the index, least significant byte first.
_RECORD_SIZE: Final = REQUEST_ID_SIZE + 8
#: A bytes object of an id, its number, and their places in the dict's order.
_ID_MEMORY_SIZE: Final = sys.getsizeof(REQUEST_ID_NONE) + sys.getsizeof(2**32)


def _checked_bound(bound: object) -> int | None:
    if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool) or bound < 1):
        raise ValueError(f"the largest number of request ids is 1 or more, or None, not {shown(bound)}")
    return bound


def _time_prefix(seconds: int) -> bytes:
    """Bytes that compare with a request id as ``seconds`` does with the time in it, which is its first 4 bytes."""
    seconds = to_index(seconds)
    if seconds > _SECONDS_MAX:
        return b"\xff" * (REQUEST_ID_SIZE + 1)
    return max(seconds, 0).to_bytes(4, "big")


@final
class RequestIndex:
    """Request id (12 bytes) to log index, for STATE and CONFIG entries whose id is not all zero.

    ``bound`` is the largest number of ids that are remembered, or None. Beyond it the oldest entries' ids are
    forgotten, and `oldest_accepted_seconds` rises so that none of them is taken for a new one.
    """

    __slots__ = ("_bound", "_indexes", "_oldest_accepted", "_order")

    def __init__(self, bound: int | None = None) -> None:
        self._bound = _checked_bound(bound)
        self._indexes: dict[bytes, int] = {}
        # The keys of _indexes, oldest entry first: their indexes rise.
        self._order: deque[bytes] = deque()
        self._oldest_accepted = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def bound(self) -> int | None:
        """The largest number of ids that are remembered."""
        return self._bound

    @property
    def oldest_accepted_seconds(self) -> int:
        """An id whose own time (seconds since the epoch) is at or before this may have been forgotten for the bound's
        sake; 0 when none was."""
        return self._oldest_accepted

    @property
    def memory_size(self) -> int:
        """The memory in use, in bytes; in the pure twin about."""
        return sys.getsizeof(self._indexes) + sys.getsizeof(self._order) + len(self._order) * _ID_MEMORY_SIZE

    def add(self, batch: EntryBatch, after_seconds: int = 0) -> None:
        """Remember the ids of entries that follow those known so far, unless an id's time is before ``after_seconds``.

        ``after_seconds`` is meant for opening a log, where old ids are not worth their memory; an entry that is
        appended is always remembered, since the clock may be wrong.
        """
        if not isinstance(batch, EntryBatch):
            raise TypeError(f"expected an EntryBatch, not {type(batch).__name__}")
        indexes, data = self._indexes, batch.data
        oldest = _time_prefix(after_seconds)
        start = 0
        for index, end in enumerate(batch.ends, batch.first_index):
            request_id = bytes(data[start : start + REQUEST_ID_SIZE])
            if (
                request_id >= oldest
                and request_id not in indexes
                and request_id != REQUEST_ID_NONE
                and data[start + REQUEST_ID_SIZE] != EntryType.CHECKPOINT
            ):
                self._insert(request_id, index)
            start = end

    def packed(self, last_index: int) -> bytes:
        """The ids of entries up to ``last_index``, oldest first: of each the 12 bytes of the id, then 8 of its index,
        least significant byte first."""
        last_index = to_index(last_index)
        parts = []
        for request_id in self._order:
            index = self._indexes[request_id]
            if index > last_index:
                break
            parts.append(request_id + index.to_bytes(8, "little"))
        return b"".join(parts)

    def add_packed(self, records: bytes, last_index: int, after_seconds: int = 0) -> None:
        """Remember what `packed` gave, of entries up to ``last_index`` that follow those known so far; the rest as
        `add`. ValueError, and nothing is added, when that is not what they are."""
        if not isinstance(records, bytes):
            raise TypeError(f"packed request ids are bytes, not {type(records).__name__}")
        last_index, oldest = to_index(last_index), _time_prefix(after_seconds)
        if len(records) % _RECORD_SIZE:
            raise ValueError(f"packed request ids have {_RECORD_SIZE} bytes each, not {len(records)} in all")
        indexes, order = self._indexes, self._order
        last = indexes[order[-1]] if order else 0
        found = []
        for start in range(0, len(records), _RECORD_SIZE):
            request_id = records[start : start + REQUEST_ID_SIZE]
            index = int.from_bytes(records[start + REQUEST_ID_SIZE : start + _RECORD_SIZE], "little")
            if not last < index <= INTEGER_MAX:
                raise ValueError(f"the request id of entry {index} does not follow that of entry {last}")
            last = index
            found.append((request_id, index))
        for request_id, index in found:
            if index > last_index:
                return
            if request_id >= oldest and request_id != REQUEST_ID_NONE and request_id not in indexes:
                self._insert(request_id, index)

    def refuse_until(self, seconds: int) -> None:
        """Let `oldest_accepted_seconds` be at least this: ids of that time were forgotten elsewhere."""
        self._oldest_accepted = max(self._oldest_accepted, min(to_index(seconds), _SECONDS_MAX))

    def _insert(self, request_id: bytes, index: int) -> None:
        """Remember an id that is not known."""
        indexes, order = self._indexes, self._order
        indexes[request_id] = index
        order.append(request_id)
        if self._bound is not None and len(order) > self._bound:
            self._oldest_accepted = max(self._oldest_accepted, request_id_seconds(order[0]))
            del indexes[order.popleft()]

    def find(self, request_id: bytes) -> int | None:
        """The index of the first entry with this id, or None."""
        if not isinstance(request_id, bytes):
            raise TypeError(f"a request id is bytes, not {type(request_id).__name__}")
        return self._indexes.get(request_id)

    def truncate_after(self, index: int) -> None:
        """Drop the ids of entries above ``index``."""
        index = to_index(index)
        indexes, order = self._indexes, self._order
        while order and indexes[order[-1]] > index:
            del indexes[order.pop()]

    def forget_before(self, seconds: int) -> None:
        """Forget ids whose own time (seconds since the epoch) is before this, from the oldest entry up to the first
        whose id is not."""
        indexes, order = self._indexes, self._order
        oldest = _time_prefix(seconds)
        while order and order[0] < oldest:
            del indexes[order.popleft()]

    def prune_index(self, last_index: int) -> int:
        """The index just below the first entry that is remembered, or ``last_index`` when none is."""
        for request_id in islice(self._order, 1):
            return self._indexes[request_id] - 1
        return last_index
