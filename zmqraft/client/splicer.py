"""Joins two sources of the log, published entries and fetched ones, into one without gap or repetition.

Knows nothing of messages, peers or time. The rule: what comes out always begins right behind ``position``; whatever
does not is kept aside, if there is room for it, or dropped, since it can be fetched.
"""

from __future__ import annotations

from collections import deque

from zmqraft.protocol.entries_flow import EntriesItem, SnapshotChunk
from zmqraft.protocol.entry import EntryBatch

__all__ = ["Splicer"]


class Splicer:
    """``position`` is the index of the last entry that came out (or that a complete snapshot stands for)."""

    def __init__(self, position: int, aside_size_max: int) -> None:
        """At most ``aside_size_max`` bytes of entries are kept aside, or one message that is larger."""
        self.position = position
        #: The highest index that is known to be applied somewhere.
        self.known_index = position
        #: In the order of the log, perhaps with gaps, all behind the position.
        self._aside: deque[EntryBatch] = deque()
        self._aside_size = 0
        self._aside_size_max = aside_size_max

    @property
    def behind(self) -> bool:
        """Whether entries are known of that have not come out."""
        return self.position < self.known_index

    @property
    def gap(self) -> bool:
        """Whether entries are missing that must be fetched before anything can come out."""
        return self.behind and not (self._aside and self._aside[0].first_index <= self.position + 1)

    @property
    def gap_end(self) -> int | None:
        """The index before the first entry kept aside: up to there it is enough to fetch. None: all that there is."""
        return self._aside[0].first_index - 1 if self._aside else None

    def heard_of(self, index: int) -> None:
        """A peer has applied the entry at ``index``."""
        self.known_index = max(self.known_index, index)

    def published(self, batch: EntryBatch) -> None:
        """Keep published entries; `take` gives them out when their turn has come."""
        self.heard_of(batch.last_index)
        end = self._aside[-1].last_index if self._aside else max(batch.first_index - 1, self.position)
        new = batch.slice(end + 1, batch.last_index)
        if new and (not self._aside or self._aside_size + new.size <= self._aside_size_max):
            self._aside.append(new)
            self._aside_size += new.size

    def take(self) -> EntryBatch | None:
        """The next entries among those that were published; None when it is not their turn."""
        while self._aside and self._aside[0].first_index <= self.position + 1:
            batch = self._aside.popleft()
            self._aside_size -= batch.size
            new = batch.slice(self.position + 1, batch.last_index)
            if new:
                self.position = new.last_index
                return new
        return None

    def fetched(self, item: EntriesItem) -> EntriesItem | None:
        """What is new in what was fetched; None when nothing is. Fetched items come in order, from the position on."""
        if isinstance(item, SnapshotChunk):
            if item.index <= self.position:
                return None
            if item.is_last:
                self.position = item.index
            self.heard_of(item.index)
            return item
        new = item.slice(self.position + 1, item.last_index)
        if not new or new.first_index != self.position + 1:
            return None
        self.position = new.last_index
        self.heard_of(new.last_index)
        return new
