"""From a feed in the client's thread to the one who reads it.

Knows nothing of what is read. The rule: the feed hears that something was consumed before it can be waiting for that,
but not for every single item.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeVar

from zmqraft.client.io_thread import IoThread
from zmqraft.client.session_sockets import Feed
from zmqraft.errors import ClosedError, RequestTimeoutError

__all__ = ["FeedQueue", "PacedFeed"]

_T = TypeVar("_T")


class PacedFeed(Feed, Protocol):
    """A feed that goes no faster than its consumer."""

    def consumed(self, size: int, now: float) -> None:
        """Items of ``size`` bytes together were taken."""


class FeedQueue(Generic[_T]):
    """The sink of a feed, and its other end. `get` is for one thread."""

    def __init__(self, size_of: Callable[[_T], int], buffer_size_max: int) -> None:
        """``buffer_size_max`` is that of the feed: a quarter of it may be taken before the feed is told."""
        self._queue: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()
        self._size_of = size_of
        self._report_size = max(buffer_size_max // 4, 1)
        self._taken_size = 0

    def put(self, item: _T, /) -> None:
        """For the feed."""
        self._queue.put((item, None))

    def set_exception(self, exception: BaseException, /) -> None:
        """For the feed: nothing more comes."""
        self._queue.put((None, exception))

    def get(self, thread: IoThread, feed: PacedFeed, timeout_s: float | None) -> _T:
        """The next item. Raises RequestTimeoutError after ``timeout_s``, and what ended the feed."""
        if thread.is_current():
            raise RuntimeError("a subscriber cannot be read in a callback of a future: that holds up its own thread")
        try:
            # No clock goes further than TIMEOUT_MAX; nobody waits for so long.
            item, error = self._queue.get(timeout=None if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX))
        except queue.Empty:
            raise RequestTimeoutError(f"nothing was published within {timeout_s} s") from None
        if item is None:
            self._queue.put((None, error))  # for whoever asks next
            raise error or ClosedError("the subscriber is closed")
        self._taken_size += self._size_of(item)
        if self._taken_size >= self._report_size:
            taken, self._taken_size = self._taken_size, 0
            with contextlib.suppress(ClosedError):
                thread.call(partial(feed.consumed, taken))
        return item
