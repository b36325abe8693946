"""Single entries out of batches: where a consumer of the log is.

Knows nothing of where batches come from. The rule: ``last_index`` is that of what the consumer has got, not of what
has come in.
"""

from __future__ import annotations

from zmqraft.client.results import SnapshotChunk
from zmqraft.protocol.entries_flow import EntriesItem
from zmqraft.protocol.entry import EntryBatch, LogEntry

__all__ = ["EntryCursor"]


class EntryCursor:
    """Ask with `next_entry` or `rest`; when they have nothing, hand in the next item with `take`."""

    __slots__ = ("_batch", "_position", "last_index")

    def __init__(self, last_index: int) -> None:
        #: The index of the last entry given out, or that a snapshot given out to its end stands for.
        self.last_index = last_index
        self._batch = EntryBatch.empty(1)
        self._position = 0

    def next_entry(self) -> LogEntry | None:
        """The next entry of the batch; None when all were given out."""
        if self._position == len(self._batch):
            return None
        entry = self._batch.entry(self._position)
        self._position += 1
        self.last_index = entry.index
        return entry

    def rest(self) -> EntryBatch | None:
        """All that is left of the batch; None when all was given out."""
        if self._position == len(self._batch):
            return None
        rest = self._batch.slice(self._batch.first_index + self._position, self._batch.last_index)
        self._position = len(self._batch)
        self.last_index = rest.last_index
        return rest

    def take(self, item: EntriesItem) -> SnapshotChunk | None:
        """Go on with what came in. Returns a chunk of a snapshot, which is given out as it is."""
        if isinstance(item, SnapshotChunk):
            if item.is_last:
                self.last_index = item.index
            return item
        self._batch, self._position = item, 0
        return None
