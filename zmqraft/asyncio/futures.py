"""The futures of asyncio clients: sinks of a session that may be cancelled at any time.

Knows nothing of sessions. The rule: whoever cancels a future ends its request at once, and an outcome that comes
nevertheless is swallowed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from zmqraft.client.requests import Request

__all__ = ["FutureOwner", "RequestFuture"]


class FutureOwner(Protocol):
    """The client that gave out a future."""

    def request_cancelled(self, request: Request) -> None:
        """The future of this request was cancelled."""

    def request_ended(self, size: int) -> None:
        """A request of ``size`` bytes has ended."""


class RequestFuture(asyncio.Future[Any]):
    """The outcome of a request; ``size`` is what it counts for among those in flight."""

    def __init__(self, owner: FutureOwner, size: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        #: The client and the request, until that has ended: a future that is kept must not keep them.
        self._owner: FutureOwner | None = owner
        self.request: Request | None = None
        self._size = size

    def set_result(self, result: Any, /) -> None:
        """For the session: the request succeeded."""
        self._ended()
        if not self.done():
            super().set_result(result)

    def set_exception(self, exception: type[BaseException] | BaseException, /) -> None:
        """For the session: the request failed."""
        self._ended()
        if not self.done():
            super().set_exception(exception)

    def cancel(self, msg: Any | None = None) -> bool:
        """End the request. Returns False when its outcome has come already.

        An update that was sent may or may not get into the log; repeating it later with the same id is safe.
        """
        if not super().cancel(msg):
            return False
        owner, request = self._owner, self.request
        self._ended()
        if owner is not None and request is not None:
            owner.request_cancelled(request)
        return True

    def abandon(self) -> None:
        """The request could not be made."""
        self._ended()

    def _ended(self) -> None:
        owner, self._owner, self.request = self._owner, None, None
        if owner is not None:
            owner.request_ended(self._size)
