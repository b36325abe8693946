"""From a feed in the client's thread to the one who reads it.

Knows nothing of what is read. The rule: what the consumer has taken the feed hears of in its own thread.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from zmqraft.client.io_thread import IoThread
from zmqraft.client.pacing import PacedFeed, TakenSize
from zmqraft.errors import ClosedError, RequestTimeoutError

__all__ = ["FeedQueue"]

_T = TypeVar("_T")


class FeedQueue(Generic[_T]):
    """The sink of a feed, and its other end. `get` is for one thread."""

    def __init__(self, size_of: Callable[[_T], int], buffer_size_max: int) -> None:
        """``buffer_size_max`` is that of the feed."""
        self._queue: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()
        self._taken = TakenSize(size_of, buffer_size_max)

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
        if taken := self._taken.take(item):
            with contextlib.suppress(ClosedError):
                thread.call(partial(feed.consumed, taken))
        return item
