"""How much a client may have in flight: whoever submits more waits.

Knows nothing of what is in flight. The rule: one item is always let in, however large, so that nothing waits for ever.
"""

from __future__ import annotations

import threading
import time

from zmqraft.errors import ClosedError, RequestTimeoutError

__all__ = ["InFlightLimit"]


class InFlightLimit:
    """Counts items and their bytes. Thread-safe."""

    def __init__(self, count_max: int, size_max: int) -> None:
        self._count_max = count_max
        self._size_max = size_max
        self._count = 0
        self._size = 0
        self._closed = False
        # Taken by itself: KeyboardInterrupt cannot come between taking it and the block, as it can with the condition.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def acquire(self, size: int, deadline: float, *, wait: bool = True) -> None:
        """Let in an item of ``size`` bytes, as soon as there is room; with ``wait`` False, at once.

        Raises RequestTimeoutError when there is none before ``deadline`` (time.monotonic), ClosedError after `close`.
        """
        with self._lock:
            while not self._closed and wait and not self._has_room(size):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise RequestTimeoutError(
                        f"{self._count} requests with {self._size} bytes were in flight until the deadline had passed;"
                        " this one was not sent"
                    )
                self._changed.wait(min(remaining, threading.TIMEOUT_MAX))
            if self._closed:
                raise ClosedError("the client is closed")
            self._count += 1
            self._size += size
            self._changed.notify()  # there may be room for another one

    def release(self, size: int) -> None:
        """An item has ended."""
        with self._lock:
            self._count -= 1
            self._size -= size
            self._changed.notify()

    def close(self) -> None:
        """Wake up everybody who waits."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return self._count == 0 or (self._count < self._count_max and self._size + size <= self._size_max)
