"""The futures that blocking clients give out: sinks of a session that live in two threads.

Knows nothing of sessions. The rule: the client's thread ends a future once, and one that was cancelled in another
thread before swallows the outcome.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from zmqraft.client.requests import Request

__all__ = ["FutureOwner", "RequestFuture"]


class FutureOwner(Protocol):
    """The client that gave out a future."""

    def request_cancelled(self, future: RequestFuture, request: Request) -> None:
        """Somebody cancelled the future, in any thread."""

    def request_ended(self, size: int) -> None:
        """The request of ``size`` bytes has ended; called in the client's thread, before the outcome is set."""


class RequestFuture(Future[Any]):
    """The outcome of a request; ``size`` is what it counts for among those in flight."""

    def __init__(self, owner: FutureOwner, size: int) -> None:
        super().__init__()
        self._owner = owner
        self._size = size
        #: The request, until it has ended: each knows the other, and a cycle would be left to the garbage collector.
        self.request: Request | None = None

    def set_result(self, result: Any) -> None:
        """For the session: the request succeeded."""
        self.ended()
        if self.set_running_or_notify_cancel():
            super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        """For the session: the request failed."""
        self.ended()
        if self.set_running_or_notify_cancel():
            super().set_exception(exception)

    def cancel(self) -> bool:
        """End the request. Returns False when its outcome has come already.

        An update that was sent may or may not get into the log; repeating it later with the same id is safe.
        """
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        request = self.request
        if request is not None:
            self._owner.request_cancelled(self, request)
        return True

    def ended(self) -> None:
        """For the client's thread: the request is no longer under way."""
        self.request = None
        self._owner.request_ended(self._size)
