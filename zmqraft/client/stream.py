"""A blocking stream of entries: the consumer's end of an `EntriesRequest`.

Knows nothing of the wire. The rule: what the consumer has not taken is not acknowledged, so a slow consumer holds up
its own stream and nothing else.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue
from types import TracebackType

from zmqraft.client.entries_request import EntriesRequest
from zmqraft.client.entry_cursor import EntryCursor
from zmqraft.client.io_thread import Command, IoThread
from zmqraft.client.read_request import LinearizableEntriesRequest
from zmqraft.client.session import ClientSession
from zmqraft.errors import ClosedError
from zmqraft.protocol.entries_flow import EntriesFlow, EntriesItem, SnapshotChunk
from zmqraft.protocol.entry import EntryBatch, LogEntry

__all__ = ["EntriesStream"]


class _Queue:
    """From the client's thread to the consumer's: items, then the end, which is an error or None."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[EntriesItem | Exception | None] = SimpleQueue()
        self.get = self._queue.get

    def put(self, item: EntriesItem, /) -> None:
        self._queue.put(item)

    def set_result(self, result: None, /) -> None:
        self._queue.put(None)

    def set_exception(self, exception: BaseException, /) -> None:
        self._queue.put(exception if isinstance(exception, Exception) else ClosedError(repr(exception)))


class EntriesStream:
    """An iterator over log entries, and chunks of the snapshot that comes before them if they reach that far back.

    Made by ``request_entries``. Entries come in the order of the log, none twice and none left out, also when the
    leader is lost on the way; they end with the last one that was applied when they were asked for. For one consumer;
    `close` may come from any thread, and makes a waiting consumer raise ClosedError. A stream that is not read to its
    end is to be closed, by ``with`` or by `close`.

    Iteration raises RequestTimeoutError when the deadline passes, NotLeaderError when the one peer asked does not
    lead, OutOfOrderError when the peer left something out and ClosedError when the client or the stream is closed.
    """

    def __init__(
        self,
        thread: IoThread,
        session: ClientSession,
        secret: bytes,
        flow: EntriesFlow,
        deadline: float = math.inf,
        *,
        linearizable: bool = False,
    ) -> None:
        self._thread = thread
        self._session = session
        self._queue = _Queue()
        kind = LinearizableEntriesRequest if linearizable else EntriesRequest
        self._request = kind(secret, flow, self._queue, deadline)
        self._cursor = EntryCursor(flow.previous_index)
        self._closed = False
        self._ended = False
        thread.call(partial(session.start, self._request))

    @property
    def last_index(self) -> int:
        """The index of the last entry that was returned, or that a snapshot returned to its end stands for.

        A stream that failed can be followed by one that is asked for with this previous index.
        """
        return self._cursor.last_index

    def __iter__(self) -> Iterator[LogEntry | SnapshotChunk]:
        return self

    def __next__(self) -> LogEntry | SnapshotChunk:
        while (entry := self._cursor.next_entry()) is None:
            if (chunk := self._cursor.take(self._next_item())) is not None:
                return chunk
        return entry

    def batches(self) -> Iterator[EntryBatch | SnapshotChunk]:
        """The same, as it came in: many entries at a time. May be mixed with iterating over single entries."""
        while True:
            if (rest := self._cursor.rest()) is not None:
                yield rest
            try:
                item = self._next_item()
            except StopIteration:
                return
            if (chunk := self._cursor.take(item)) is not None:
                yield chunk

    def close(self) -> None:
        """End the stream, and tell the peer. May be called twice."""
        if not self._closed:
            self._closed = True
            self._cancel()
            self._queue.set_exception(ClosedError("the stream is closed"))

    def _next_item(self) -> EntriesItem:
        if self._closed:
            raise ClosedError("the stream is closed")
        if self._ended:
            raise StopIteration
        if self._thread.is_current():
            raise RuntimeError("a stream cannot be read in a callback of a future: that holds up the client's thread")
        item = self._queue.get()
        if item is None or isinstance(item, Exception):
            self._ended = True
            raise item or StopIteration
        if self._closed:
            raise ClosedError("the stream is closed")
        self._call_if_open(partial(self._request.consumed, self._session))
        return item

    def _cancel(self) -> None:
        self._call_if_open(lambda now: self._session.cancel(self._request))

    def _call_if_open(self, command: Command) -> None:
        # The queue ends with the error that closed the client.
        with contextlib.suppress(ClosedError):
            self._thread.call(command)

    def __enter__(self) -> EntriesStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True) and not self._closed:
            self._cancel()
