"""Many updates, one after the other: indexes come out in the order in which updates went in, many are under way.

Knows nothing of the wire. In two halves: the `UpdatesStream` belongs to the consumer's thread, its `_Pipeline` to the
client's, and the requests know the second only, so that a stream that nobody holds any longer ends. The rule: an update
behind one that failed for good is not sent.

Considered and rejected: pulling in a thread of our own. It would serve a slow source better, but run the caller's
generator where the caller does not expect it. Futures, one for each update: they cost more than the update itself.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Protocol

from zmqraft.client.in_flight import InFlightLimit
from zmqraft.client.io_thread import IoThread
from zmqraft.client.requests import Request, ResultSink, UpdateRequest
from zmqraft.client.session import ClientSession
from zmqraft.errors import ClosedError

__all__ = ["MakeUpdate", "UpdatesStream"]


class MakeUpdate(Protocol):
    """Turns what the caller gave into a request."""

    def __call__(self, item: object, sink: ResultSink) -> UpdateRequest:
        """Raises LocalProtocolError when the item is not an update."""


class _Update:
    """One update, as the sink of its request; ``outcome`` is None while it is under way."""

    __slots__ = ("outcome", "pipeline", "position", "request", "size")

    def __init__(self, pipeline: _Pipeline, position: int) -> None:
        self.pipeline = pipeline
        self.position = position
        self.size = 0
        #: None when there is none yet, or none any longer: each knows the other, and a cycle would be left behind.
        self.request: Request | None = None
        self.outcome: int | BaseException | None = None

    def set_result(self, result: int, /) -> None:
        self.pipeline.ended(self, result)

    def set_exception(self, exception: BaseException, /) -> None:
        self.pipeline.ended(self, exception)


class _Pipeline:
    """What is under way. All but `wait` and `wake` happens in the client's thread."""

    def __init__(self, thread: IoThread, session: ClientSession, limit: InFlightLimit) -> None:
        self._thread = thread
        self._session = session
        self._limit = limit
        self._started: dict[int, _Update] = {}
        #: Updates from this position on are not started.
        self._end: float = math.inf
        self._awaited: _Update | None = None
        # Taken by itself: KeyboardInterrupt cannot come between taking it and the block, as it can with the condition.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    @property
    def failed(self) -> bool:
        """Whether an update failed for good, so that those behind it are in vain. May be read in any thread."""
        return self._end < math.inf

    def begin(self, _now: float) -> None:
        self._thread.widen_send_queue()

    def start(self, update: _Update, now: float) -> None:
        if update.position >= self._end or update.request is None:
            self._limit.release(update.size)
        else:
            self._started[update.position] = update
            self._session.start(update.request, now)

    def ended(self, update: _Update, outcome: int | BaseException) -> None:
        if self._started.pop(update.position, None) is None:
            return  # a session that is closing tells also those that were cancelled while it was at it
        self._limit.release(update.size)
        update.request = None
        update.outcome = outcome
        # The consumer says what it waits for and looks at the outcome then, this thread does both the other way
        # round: one of the two sees the other.
        if update is self._awaited:
            self.wake()
        if isinstance(outcome, BaseException):
            self._cancel_from(update.position)

    def finish(self, _now: float) -> None:
        self._cancel_from(-1)

    def _cancel_from(self, end: int) -> None:
        self._end = min(self._end, end)
        for update in [each for each in self._started.values() if each.position > end]:
            if update.request is not None and self._session.cancel(update.request):
                del self._started[update.position]
                self._limit.release(update.size)
                update.request = None

    # --- in the consumer's thread -----------------------------------------------------------------------------------

    def wait(self, update: _Update, stream: UpdatesStream) -> None:
        """Until the update has an outcome, or the stream is closed."""
        with self._lock:
            self._awaited = update
            while update.outcome is None and not stream.closed:
                self._changed.wait()
            self._awaited = None

    def wake(self) -> None:
        """Let the consumer look again. In any thread."""
        with self._lock:
            self._changed.notify_all()


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
        self._under_way: deque[_Update] = deque()
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
            if self._pipeline.failed:
                return
            update = _Update(self._pipeline, self._position)
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

    def _start(self, update: _Update, request: UpdateRequest) -> None:
        size = len(request.frames[-1])
        self._limit.acquire(size, request.deadline)
        update.size, update.request = size, request
        try:
            self._thread.call(partial(self._pipeline.start, update))
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
