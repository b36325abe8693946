"""How much an asyncio client may have in flight: whoever submits more waits, the first who came first.

Knows nothing of what is in flight. The rule: one item is always let in, however large, so that nothing waits for ever;
and who is cancelled while he waits, or just when he was let in, leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from zmqraft.errors import ClosedError, RequestTimeoutError

__all__ = ["InFlightLimit"]


class InFlightLimit:
    """Counts items and their bytes. For one event loop."""

    def __init__(self, count_max: int, size_max: int, loop: asyncio.AbstractEventLoop) -> None:
        self._count_max = count_max
        self._size_max = size_max
        self._loop = loop
        self._count = 0
        self._size = 0
        self._closed = False
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def count(self) -> int:
        """How many items are in flight."""
        return self._count

    def try_acquire(self, size: int) -> bool:
        """Let in an item of ``size`` bytes if there is room for it, and nobody waits."""
        if self._waiting or not self._has_room(size):
            return False
        self._let_in(size)
        return True

    async def acquire(self, size: int, deadline: float) -> None:
        """Let in an item of ``size`` bytes, as soon as there is room.

        Raises RequestTimeoutError when there is none before ``deadline`` (the loop's time), ClosedError after `close`.
        """
        if self._closed:
            raise ClosedError("the client is closed")
        if self.try_acquire(size):
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((turn, size))
        timer = None if deadline == math.inf else self._loop.call_at(deadline, self._give_up, turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(size)  # let in, and cancelled before it was seen
            else:
                self._let_in_all()  # perhaps there is room for those behind
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self, size: int) -> None:
        """An item has ended."""
        self._count -= 1
        self._size -= size
        if self._waiting:
            self._let_in_all()

    def close(self) -> None:
        """Turn away everybody who waits."""
        self._closed = True
        waiting, self._waiting = self._waiting, deque()
        for turn, _ in waiting:
            if not turn.done():
                turn.set_exception(ClosedError("the client is closed"))

    def _let_in(self, size: int) -> None:
        self._count += 1
        self._size += size

    def _let_in_all(self) -> None:
        while self._waiting:
            turn, size = self._waiting[0]
            if not turn.done():
                if not self._has_room(size):
                    return
                self._let_in(size)
                turn.set_result(None)
            self._waiting.popleft()

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            turn.set_exception(
                RequestTimeoutError(
                    f"{self._count} requests with {self._size} bytes were in flight until the deadline had passed;"
                    " this one was not sent"
                )
            )

    def _has_room(self, size: int) -> bool:
        return self._count == 0 or (self._count < self._count_max and self._size + size <= self._size_max)
