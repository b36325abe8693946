"""RequestEntries without a session: the order and the flow control of one stream (SPEC section 2 "RequestEntries").

Knows nothing of message ids, time or who consumes. The rule: what `EntriesFlow.receive` returns follows exactly on
what it returned before, whatever the peers sent, and over any number of restarts at other peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from zmqraft.constants import ENTRIES_LAST, ENTRIES_MORE
from zmqraft.errors import OutOfOrderError, RemoteProtocolError
from zmqraft.protocol.entry import EntryBatch

__all__ = ["EntriesFlow", "EntriesItem", "Position", "Received", "SnapshotChunk"]


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """A part of the snapshot that stands for all entries up to ``index``.

    ``term`` is the term of the entry at ``index``, ``offset`` the position of ``data`` in the snapshot and ``size``
    the size of the whole snapshot, in bytes. The chunks of one snapshot follow on one another without a gap. A chunk
    with offset 0 starts the snapshot (or another one) over: what came before of it is to be thrown away; so is an
    unfinished snapshot that is followed by an entry. Both happen only when the peer that sent it was lost.
    """

    index: int
    term: int
    offset: int
    size: int
    data: bytes

    @property
    def is_last(self) -> bool:
        """Whether the snapshot ends with this chunk."""
        return self.offset + len(self.data) == self.size


EntriesItem: TypeAlias = "EntryBatch | SnapshotChunk"
#: Previous index, count and snapshot offset of a request or an acknowledgement.
Position: TypeAlias = "tuple[int, int | None, int | None]"


@dataclass(frozen=True, slots=True)
class Received:
    """What came of a reply.

    ``item`` is what is new in it, if anything; ``acknowledgement`` lets the peer send one more reply, None when none
    is wanted; ``finished``: the stream is complete; ``restart``: it is to be requested anew, from its position;
    ``repeated``: everything in it had been received before, so the peer and this side are out of step.
    """

    item: EntriesItem | None
    acknowledgement: Position | None = None
    finished: bool = False
    restart: bool = False
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The snapshot of which chunks came in up to ``offset``: ``0 <= offset < size``."""

    index: int
    term: int
    size: int
    offset: int


class EntriesFlow:
    """The entries after ``previous_index``, at most ``count``; if needed a snapshot, from ``snapshot_offset`` on.

    ``previous_index`` is that of the last entry received, or of the last one in a snapshot that was received whole.
    """

    def __init__(self, previous_index: int, count: int | None = None, snapshot_offset: int | None = None) -> None:
        self.previous_index = previous_index
        #: How many entries are still wanted; None: all.
        self.count = count
        #: Entries up to here must have come before the stream may end, unless ``count`` ends it.
        self.least_index = 0
        self._snapshot: _Snapshot | None = None
        self._snapshot_offset = snapshot_offset
        self._more_follow = False
        self._owed = False

    @property
    def position(self) -> Position:
        """What to request in order to go on."""
        return self.previous_index, self.count, self._snapshot.offset if self._snapshot else self._snapshot_offset

    def restart(self, same_peer: bool) -> None:
        """The stream is about to be requested anew. At another peer a snapshot starts over: its bytes may differ."""
        self._owed = self._owed or self._more_follow
        self._more_follow = False
        if not same_peer and self._snapshot is not None:
            self._snapshot = None
            self._snapshot_offset = None

    def receive_entries(self, status: int, last_index: int | None, frames: Sequence[bytes]) -> Received:
        """Act on a reply of status 1 or 2.

        Raises OutOfOrderError when there is a gap before its entries, RemoteProtocolError when it is malformed.
        """
        if status not in (ENTRIES_MORE, ENTRIES_LAST) or last_index is None or last_index < len(frames):
            raise RemoteProtocolError(f"RequestEntries: status {status} with {len(frames)} entries to {last_index}")
        if not frames:
            return self._receive_no_entries(status)
        batch = EntryBatch.from_frames(last_index - len(frames) + 1, frames)
        if self._snapshot is not None:
            raise OutOfOrderError(f"entries from {batch.first_index} on came before the end of the snapshot")
        if batch.first_index > self.previous_index + 1:
            raise OutOfOrderError(f"entries from {batch.first_index} on came after entry {self.previous_index}")
        return self._receive_batch(status, batch)

    def receive_chunk(self, value: object, index: int | None, frames: Sequence[bytes]) -> Received:
        """Act on a reply of status 3: ``value`` is [byte offset, total size, snapshot term].

        Raises OutOfOrderError when there is a gap before the chunk, RemoteProtocolError when it is malformed.
        """
        chunk = _decode_chunk(value, index, frames)
        if chunk.index <= self.previous_index:
            raise OutOfOrderError(f"a snapshot to index {chunk.index} came after entry {self.previous_index}")
        known = self._snapshot
        if known is None:
            self._check_first_offset(chunk)
        elif (known.index, known.term, known.size) != (chunk.index, chunk.term, chunk.size):
            if chunk.offset > 0:
                self.restart(same_peer=False)
                return Received(None, restart=True)
        elif chunk.offset > known.offset:
            raise OutOfOrderError(f"chunk at {chunk.offset} of the snapshot came after its first {known.offset} bytes")
        elif chunk.offset < known.offset:
            return Received(None, repeated=True)
        return self._receive_next_chunk(chunk)

    def _receive_no_entries(self, status: int) -> Received:
        if status == ENTRIES_MORE:
            raise RemoteProtocolError("RequestEntries reply: more entries follow, but there is none in it")
        # The peer before this one had applied more. This one will, as what was applied is committed: ask it again.
        return Received(None, finished=not self._owed and self.previous_index >= self.least_index)

    def _receive_batch(self, status: int, batch: EntryBatch) -> Received:
        new = batch.slice(self.previous_index + 1, batch.last_index)
        if self.count is not None:
            new = new.slice(new.first_index, new.first_index + self.count - 1)
        if not new:
            return Received(None, finished=status == ENTRIES_LAST and not self._owed, repeated=True)
        self.previous_index = new.last_index
        self._snapshot_offset = None
        if self.count is not None:
            self.count -= len(new)
        is_short = status == ENTRIES_LAST and self.count != 0 and self.previous_index < self.least_index
        finished = status == ENTRIES_LAST or self.count == 0
        self._more_follow = not finished
        self._owed = False
        if is_short:
            return Received(new, restart=True)
        return Received(new, None if finished else (self.previous_index, self.count, None), finished)

    def _receive_next_chunk(self, chunk: SnapshotChunk) -> Received:
        self._more_follow = True
        if chunk.is_last:
            self.previous_index = chunk.index
            self._snapshot = None
            self._snapshot_offset = None
            return Received(chunk, (chunk.index, self.count, None))
        self._snapshot = _Snapshot(chunk.index, chunk.term, chunk.size, chunk.offset + len(chunk.data))
        return Received(chunk, (self.previous_index, self.count, self._snapshot.offset))

    def _check_first_offset(self, chunk: SnapshotChunk) -> None:
        wanted = min(self._snapshot_offset or 0, chunk.size)
        if chunk.offset not in (wanted, 0):
            raise OutOfOrderError(f"the snapshot came from byte {chunk.offset} on, not from {wanted}")


def _decode_chunk(value: object, index: int | None, frames: Sequence[bytes]) -> SnapshotChunk:
    if not (isinstance(value, list) and len(value) == 3 and all(type(v) is int and v >= 0 for v in value)):
        raise RemoteProtocolError(f"RequestEntries reply: a snapshot is [offset, size, term], not {value!r:.100}")
    offset, size, term = value
    if index is None or len(frames) != 1:
        raise RemoteProtocolError(f"RequestEntries reply: a chunk has an index and one frame, not {len(frames)}")
    end = offset + len(frames[0])
    if end > size or (end == offset and offset < size):
        raise RemoteProtocolError(f"RequestEntries reply: bytes {offset} to {end} of a snapshot of {size}")
    return SnapshotChunk(index, term, offset, size, bytes(frames[0]))
