"""From a session to the one coroutine that reads a stream: items, then the end.

Knows nothing of what is read. The rule: an item is taken out when the reader really has it, so that a read that is
cancelled loses nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from zmqraft.errors import ClosedError, RequestTimeoutError

__all__ = ["ItemQueue"]

_T = TypeVar("_T")


class ItemQueue(Generic[_T]):
    """The sink of a stream, and its other end. For one event loop; `get` is for one reader at a time."""

    def __init__(self) -> None:
        self._items: deque[_T] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: _T, /) -> None:
        """For the session: something came in."""
        self._items.append(item)
        self._wake()

    def set_result(self, result: None, /) -> None:
        """For the session: that was all."""
        self._end(None)

    def set_exception(self, exception: BaseException, /) -> None:
        """For the session: nothing more comes."""
        self._end(exception)

    def close(self) -> None:
        """Drop what has not been read; a reader gets ClosedError."""
        self._items.clear()
        self._ended, self._error = True, ClosedError("the stream is closed")
        self._wake()

    async def get(self, timeout_s: float | None = None) -> _T | None:
        """The next item; None at the end. Raises what ended the stream, RequestTimeoutError after ``timeout_s``."""
        while not self._items:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            await self._wait(timeout_s)
        return self._items.popleft()

    async def _wait(self, timeout_s: float | None) -> None:
        if self._reader is not None:
            raise RuntimeError("a stream is for one reader at a time")
        loop = asyncio.get_running_loop()
        reader = self._reader = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._give_up, reader, timeout_s)
        try:
            await reader
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    @staticmethod
    def _give_up(reader: asyncio.Future[None], timeout_s: float) -> None:
        if not reader.done():
            reader.set_exception(RequestTimeoutError(f"nothing was published within {timeout_s} s"))

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
