"""Many updates, one after the other: indexes come out in the order in which updates went in, many are under way.

Knows nothing of the wire. In two halves: the `UpdatesStream` belongs to the consumer's thread, its `_Pipeline` to the
client's, and the requests know the second only, so that a stream that nobody holds any longer ends. The rule: what is
sent and what not is up to `UpdatePipeline`; here it is only waited for.

Considered and rejected: pulling in a thread of our own. It would serve a slow source better, but run the caller's
generator where the caller does not expect it. Futures, one for each update: they cost more than the update itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Protocol

from zmqraft.client.in_flight import InFlightLimit
from zmqraft.client.io_thread import IoThread
from zmqraft.client.requests import ResultSink, UpdateRequest
from zmqraft.client.session import ClientSession
from zmqraft.client.update_pipeline import PipelinedUpdate, UpdatePipeline
from zmqraft.errors import ClosedError

__all__ = ["MakeUpdate", "UpdatesStream"]


class MakeUpdate(Protocol):
    """Turns what the caller gave into a request."""

    def __call__(self, item: object, sink: ResultSink) -> UpdateRequest:
        """Raises LocalProtocolError when the item is not an update."""


class _Pipeline:
    """What is under way, in the client's thread, and who waits for it in another."""

    def __init__(self, thread: IoThread, session: ClientSession, limit: InFlightLimit) -> None:
        self._thread = thread
        self.updates = UpdatePipeline(session, limit.release, self._changed)
        self._awaited: PipelinedUpdate | None = None
        # Taken by itself: KeyboardInterrupt cannot come between taking it and the block, as it can with the condition.
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)

    # --- in the client's thread -------------------------------------------------------------------------------------

    def begin(self, _now: float) -> None:
        self._thread.widen_send_queue()

    def finish(self, _now: float) -> None:
        self.updates.finish()

    def _changed(self, update: PipelinedUpdate) -> None:
        # The consumer says what it waits for and looks at the outcome then, this thread does both the other way
        # round: one of the two sees the other.
        if update is self._awaited:
            self.wake()

    # --- in the consumer's thread -----------------------------------------------------------------------------------

    def wait(self, update: PipelinedUpdate, stream: UpdatesStream) -> None:
        """Until the update has an outcome, or the stream is closed."""
        with self._lock:
            self._awaited = update
            while update.outcome is None and not stream.closed:
                self._condition.wait()
            self._awaited = None

    def wake(self) -> None:
        """Let the consumer look again. In any thread."""
        with self._lock:
            self._condition.notify_all()


class UpdatesStream:
    """An iterator over the indexes of updates, in the order of the updates.

    Made by ``request_updates``, which says what it raises. Nothing happens before the first index is asked for, and
    no item is taken beyond those under way. For one consumer; `close` may come from any thread, and makes a waiting
    consumer raise ClosedError. A stream that is not read to its end is to be closed, by ``with`` or by `close`: what
    is under way is cancelled then, which says nothing of whether it gets into the log.
    """

    def __init__(
        self,
        thread: IoThread,
        session: ClientSession,
        limit: InFlightLimit,
        items: Iterator[object],
        make: MakeUpdate,
        in_flight: int,
    ) -> None:
        """``in_flight`` is in updates, from 1 on. Raises ClosedError."""
        self._thread = thread
        self._limit = limit
        self._items: Iterator[object] | None = items
        self._make = make
        self._in_flight = in_flight
        self._position = 0
        self._under_way: deque[PipelinedUpdate] = deque()
        self._closed = False
        self._ended = False
        self._pipeline = _Pipeline(thread, session, limit)
        thread.call(self._pipeline.begin)
        self._begun = True

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self._ended:
            raise StopIteration
        if self._thread.is_current():
            raise RuntimeError("a stream cannot be read in a callback of a future: that holds up the client's thread")
        self._fill()
        if self._closed:
            raise ClosedError("the stream is closed")
        if not self._under_way:
            self._end()
            raise StopIteration
        update = self._under_way[0]
        if update.outcome is None:
            self._pipeline.wait(update, self)
        if (outcome := update.outcome) is None:
            raise ClosedError("the stream is closed")
        self._under_way.popleft()
        if isinstance(outcome, BaseException):
            self._end()
            raise outcome
        return outcome

    def close(self) -> None:
        """End the stream, and cancel what is under way. May be called twice."""
        if not self._closed:
            self._closed = True
            if not self._ended:
                self._finish()
            self._pipeline.wake()

    def _fill(self) -> None:
        """Take items, and start them, until enough are under way."""
        while self._items is not None and len(self._under_way) < self._in_flight and not self._closed:
            if self._pipeline.updates.failed:
                return
            update = PipelinedUpdate(self._pipeline.updates, self._position)
            try:
                self._start(update, self._make(next(self._items), update))
            except StopIteration:
                self._items = None
                return
            except Exception as error:
                # The indexes of those before it come first.
                update.outcome = error
                self._items = None
            except BaseException:
                self.close()  # interrupted anywhere: whether this update was started is not known
                raise
            self._under_way.append(update)
            self._position += 1

    def _start(self, update: PipelinedUpdate, request: UpdateRequest) -> None:
        size = len(request.frames[-1])
        self._limit.acquire(size, request.deadline)
        update.size, update.request = size, request
        try:
            self._thread.call(partial(self._pipeline.updates.start, update))
        except BaseException:
            self._limit.release(size)
            raise

    def _end(self) -> None:
        self._ended = True
        self._under_way.clear()
        self._items = None
        self._finish()

    def _finish(self) -> None:
        # A client that was closed has ended everything.
        with contextlib.suppress(ClosedError):
            self._thread.call(self._pipeline.finish)

    def __enter__(self) -> UpdatesStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_begun", False) and not self._ended and not self._closed:
            self._finish()
