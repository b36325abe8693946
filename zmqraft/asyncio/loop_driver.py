"""The event loop behind an asyncio client: it watches the sockets of a session, and drives it.

Knows nothing of requests. Considered and rejected: `zmq.asyncio`, which makes a future and a turn of the loop for every
single message; and the thread of the blocking clients, with a hand-over for each result.

The rule: ZMQ_FD is edge-triggered, it tells only of what has not been looked at. So whatever has sent or received
something asks for ZMQ_EVENTS behind it, and goes on until nothing is left to do; only then may the loop wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import Any

import zmq

from zmqraft.client.requests import Request
from zmqraft.client.session import ClientSession
from zmqraft.client.session_sockets import Feed, SessionSockets, SocketOptions
from zmqraft.client.sockets import ZmqSocketBase
from zmqraft.errors import ClosedError

__all__ = ["LoopDriver"]

_log = logging.getLogger("zmqraft.client")

#: So often the sockets are looked at before other things of the loop get their turn.
_ROUNDS_MAX = 4


class LoopDriver:
    """Runs a session, and a feed if there is one, in the running event loop, until `close`. Not thread-safe."""

    def __init__(
        self,
        session: ClientSession,
        *,
        context: zmq.Context[Any],
        options: SocketOptions,
        feed: Feed | None = None,
    ) -> None:
        """Raises RuntimeError when no event loop is running."""
        self.loop = asyncio.get_running_loop()
        self._session = session
        self._sockets = SessionSockets(session, feed, self, context=context, options=options)
        self._descriptors: dict[ZmqSocketBase, int] = {}
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.wake()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    def now(self) -> float:
        """The time of the session: that of the loop, in seconds."""
        return self.loop.time()

    def check_open(self) -> None:
        """Raise ClosedError after `close`."""
        if self._closed:
            raise ClosedError("the client is closed")

    def start(self, request: Request) -> None:
        """Begin a request. Raises ClosedError after `close`."""
        self.check_open()
        self._session.start(request, self.loop.time())
        self.wake()

    def wake(self) -> None:
        """Let there be a turn soon, since the session or the feed has something to do. Many calls make one turn."""
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def cancel(self, request: Request) -> None:
        """End a request without an outcome."""
        if self._session.cancel(request):
            self.wake()

    def cancel_soon(self, request: Request) -> None:
        """As `cancel`, in any thread: for what the garbage collector finds."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so is all that it ran
            self.loop.call_soon_threadsafe(self.cancel, request)

    def close(self, error: Exception | None = None) -> None:
        """Close the sockets and fail what is under way, with ``error`` or ClosedError. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self._sockets.end(error or ClosedError("the client was closed"))
        finally:
            self._sockets.close()

    # --- for the sockets, as their `SocketWatcher` ------------------------------------------------------------------

    def opened(self, opened: ZmqSocketBase) -> None:
        """Watch a new socket."""
        descriptor = int(opened.socket.getsockopt(zmq.FD))
        self._descriptors[opened] = descriptor
        self.loop.add_reader(descriptor, self.wake)

    def closing(self, closing: ZmqSocketBase) -> None:
        """Watch a socket no longer."""
        descriptor = self._descriptors.pop(closing)
        # A loop that is closed watches nothing.
        with contextlib.suppress(RuntimeError):
            self.loop.remove_reader(descriptor)

    # --- a turn -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        try:
            self._work()
        except zmq.ContextTerminated:
            self.close(ClosedError("the client's ZeroMQ context was terminated"))
        except Exception as cause:
            _log.exception("the client failed")
            error = ClosedError(f"the client failed: {cause!r}")
            error.__cause__ = cause
            self.close(error)

    def _work(self) -> None:
        sockets = self._sockets
        for _ in range(_ROUNDS_MAX):
            now = self.loop.time()
            sockets.step(now)
            if not sockets.receive(now) and not sockets.has_work():
                break
        else:
            self.wake()
        self._set_timer()

    def _set_timer(self) -> None:
        """Have a turn when it is due. A timer that comes too early does no harm, and is cheaper than a new one."""
        at = self._sockets.next_time()
        if at is None or at == math.inf:
            return
        if at <= self.loop.time():
            self.wake()
        elif self._timer is None or at < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(at, self._timer_came)

    def _timer_came(self) -> None:
        self._timer = None
        self.wake()
