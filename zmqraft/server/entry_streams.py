"""The streams of entries, and of snapshot chunks, that clients read with RequestEntries, and their flow control.

SPEC section 2, "RequestEntries". Knows nothing of sockets or of who leads: the caller serves only while it leads. The
rule: at most a few replies of a stream are unacknowledged, and none is sent but on request or acknowledgement, so a
slow client costs a bounded amount of memory.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from zmqraft.api import LogBase, SnapshotBase
from zmqraft.constants import (
    ENTRIES_LAST,
    ENTRIES_MORE,
    ENTRIES_NOT_LEADER,
    ENTRIES_SNAPSHOT,
    REQUEST_ENTRIES_COUNT_MAX,
)
from zmqraft.protocol import EntryBatch, Protocols
from zmqraft.server.settings import Settings

__all__ = ["STREAMS_PER_CONNECTION_MAX", "EntryStreams"]

#: Frames, and the entries that come behind them.
Reply = tuple[list[bytes], "EntryBatch | None"]
#: Streams of one connection; further ones are ignored. A client that does not read leaves all that they may send
#: unasked, 320 KiB each by default, in the server's memory.
STREAMS_PER_CONNECTION_MAX = 64

#: (socket identity, message id)
Route = tuple[bytes, bytes]
#: What an acknowledgement says: (previous index, snapshot offset).
Position = tuple[int, "int | None"]


@dataclass(slots=True)
class _Stream:
    """One stream. ``previous_index`` is the last index sent; ``until`` the last one to send."""

    previous_index: int
    until: int
    remaining: int | None
    expires_at: float
    #: The snapshot under way and the offset of its next chunk.
    snapshot: SnapshotBase | None = None
    offset: int = 0
    #: The acknowledgements that are awaited, oldest first.
    unacknowledged: deque[Position] = field(default_factory=deque)
    #: False: the next reply waits for every acknowledgement (after the last chunk, and after an oversized entry).
    pipelined: bool = True
    finished: bool = False


class EntryStreams:
    """All streams of a leader. Times are in seconds."""

    def __init__(self, log: LogBase, settings: Settings) -> None:
        self._log = log
        self._ttl = settings.request_entries_ttl / 1000
        self._streams_max = settings.request_entries_high_watermak
        self._pipelines = settings.request_entries_pipelines
        self._snapshot_pipelines = settings.request_entries_snapshot_pipelines
        self._entry_size_limit_pipeline = settings.request_entries_entry_size_limit_pipeline
        self._size_max = settings.peer_msg_data_size
        self._streams: dict[Route, _Stream] = {}
        #: How many of them a connection has, by its socket identity.
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._streams)

    def request(
        self, route: Route, previous_index: int, count: int | None, offset: int | None, last_applied: int, now: float
    ) -> Iterator[Reply]:
        """A RequestEntries message: a new stream, an acknowledgement, or (count 0) the end of a stream."""
        if count == 0:
            self._remove(route)
            return
        stream = self._streams.get(route)
        if stream is not None and stream.unacknowledged and stream.unacknowledged[0] == (previous_index, offset):
            stream.unacknowledged.popleft()
            # Moved to the end, so that the streams stay in the order of their expiry.
            self._streams[route] = self._streams.pop(route)
            stream.expires_at = now + self._ttl
        else:
            self._remove(route)
            if len(self._streams) >= self._streams_max or self._counts[route[0]] >= STREAMS_PER_CONNECTION_MAX:
                return
            stream = _Stream(previous_index, last_applied, count, now + self._ttl)
            if previous_index < self._log.snapshot.index:
                self._start_snapshot(stream, offset or 0)
            self._streams[route] = stream
            self._counts[route[0]] += 1
        yield from self._pump(route, stream)

    def expire(self, now: float) -> None:
        """Drop the streams whose client has not acknowledged anything for too long."""
        while self._streams:
            route, stream = next(iter(self._streams.items()))
            if stream.expires_at > now:
                return
            self._remove(route)

    def _remove(self, route: Route) -> None:
        if self._streams.pop(route, None) is None:
            return
        identity = route[0]
        self._counts[identity] -= 1
        if not self._counts[identity]:
            del self._counts[identity]

    def next_deadline(self) -> float:
        """When `expire` has something to do."""
        return next(iter(self._streams.values())).expires_at if self._streams else math.inf

    def refuse_all(self, leader_id: str | None) -> Iterator[list[bytes]]:
        """End every stream, since leadership is lost."""
        refusal = Protocols.REQUEST_ENTRIES.encode_response(ENTRIES_NOT_LEADER, leader_id)
        for route, stream in self._streams.items():
            if not stream.finished:
                yield [*route, *refusal]
        self._streams.clear()
        self._counts.clear()

    # --- sending ----------------------------------------------------------------------------------------------------

    def _start_snapshot(self, stream: _Stream, offset: int) -> None:
        stream.snapshot = self._log.snapshot
        # It may have been taken after the request came.
        stream.until = max(stream.until, stream.snapshot.index)
        stream.offset = min(offset, stream.snapshot.size)

    def _pump(self, route: Route, stream: _Stream) -> Iterator[Reply]:
        """Send what the acknowledgements so far allow."""
        while not stream.finished:
            if stream.snapshot is not None:
                if len(stream.unacknowledged) >= self._snapshot_pipelines:
                    return
                yield [*route, *self._next_chunk(stream, stream.snapshot)], None
                continue
            if stream.previous_index < self._log.snapshot.index:
                # Compacted away while the stream was under way.
                if stream.unacknowledged:
                    return
                self._start_snapshot(stream, 0)
                continue
            if len(stream.unacknowledged) >= (self._pipelines if stream.pipelined else 1):
                return
            frames, entries = self._next_entries(stream)
            yield [*route, *frames], entries
        if not stream.unacknowledged:
            self._remove(route)

    def _next_chunk(self, stream: _Stream, snapshot: SnapshotBase) -> list[bytes]:
        offset = stream.offset
        chunk = snapshot.read(offset, self._size_max)
        stream.offset += len(chunk)
        if stream.offset >= snapshot.size:
            stream.snapshot = None
            stream.pipelined = False
            stream.unacknowledged.append((snapshot.index, None))
            stream.previous_index = snapshot.index
        else:
            stream.unacknowledged.append((stream.previous_index, stream.offset))
        return Protocols.REQUEST_ENTRIES.encode_response(
            ENTRIES_SNAPSHOT, [offset, snapshot.size, snapshot.term], snapshot.index, [chunk]
        )

    def _next_entries(self, stream: _Stream) -> Reply:
        encode = Protocols.REQUEST_ENTRIES.encode_response
        first = stream.previous_index + 1
        count = REQUEST_ENTRIES_COUNT_MAX if stream.remaining is None else stream.remaining
        last = min(stream.until, first + min(count, REQUEST_ENTRIES_COUNT_MAX) - 1)
        if last < first:
            stream.finished = True
            return encode(ENTRIES_LAST, None, stream.until), None
        batch = self._log.read(first, last, self._size_max)
        stream.previous_index = batch.last_index
        if stream.remaining is not None:
            stream.remaining -= len(batch)
        stream.pipelined = batch.size <= self._entry_size_limit_pipeline
        stream.finished = batch.last_index >= stream.until or stream.remaining == 0
        if not stream.finished:
            stream.unacknowledged.append((batch.last_index, None))
        return encode(ENTRIES_LAST if stream.finished else ENTRIES_MORE, None, batch.last_index), batch
