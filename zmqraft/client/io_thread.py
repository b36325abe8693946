"""The thread behind a blocking client: it owns the sockets and drives a session with them.

Knows nothing of requests. The rule: everything of the session happens in this thread; others hand in a function
through `IoThread.call`, and get results through futures and queues.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import zmq

from zmqraft.client.session import ClientSession
from zmqraft.client.session_sockets import Feed, SessionSockets, SocketOptions
from zmqraft.client.sockets import ZmqSocketBase
from zmqraft.errors import ClosedError

__all__ = ["Command", "IoThread"]

_log = logging.getLogger("zmqraft.client")

#: The longest wait of a poll, in seconds: ZeroMQ takes 31 bits of milliseconds.
_POLL_MAX_S = 3600.0

#: What is run in the thread, with the time.
Command: TypeAlias = Callable[[float], object]


class IoThread:
    """Runs a session, and a feed if there is one, until `close`."""

    def __init__(
        self,
        session: ClientSession,
        *,
        context: zmq.Context[Any],
        options: SocketOptions,
        name: str,
        feed: Feed | None = None,
    ) -> None:
        self._sockets = SessionSockets(session, feed, self, context=context, options=options)
        # Reentrant: the garbage collector may end a stream, which calls in here, at any place.
        self._lock = threading.RLock()
        self._commands: list[Command] = []
        self._awake = False
        self._closing = False
        self._ended = False
        # What each socket is polled for.
        self._polled: dict[ZmqSocketBase, int] = {}
        self._poller = zmq.Poller()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._poller.register(self._wake_in.fileno(), zmq.POLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def is_current(self) -> bool:
        """Whether the caller runs in this thread, as the callbacks of futures do. It must not wait for a result."""
        return threading.current_thread() is self._thread

    def call(self, command: Command) -> None:
        """Run ``command`` in the thread, soon. Raises ClosedError after `close`."""
        with self._lock:
            if self._closing or self._ended:
                raise ClosedError("the client is closed")
            self._commands.append(command)
            if not self._awake:
                self._wake()

    def close(self) -> None:
        """End the thread, close the sockets and fail what is under way with ClosedError. May be called twice."""
        with self._lock:
            self._closing = True
            if not self._ended:
                self._wake()
        # While the interpreter ends, threads like this one stand still for ever.
        if not self.is_current() and not sys.is_finalizing():
            self._thread.join()

    def _wake(self) -> None:
        """Let the thread's poll return; with the lock held."""
        # In this order: KeyboardInterrupt may come in between, and a byte too many does no harm.
        with contextlib.suppress(BlockingIOError):
            self._wake_out.send(b"\0")
        self._awake = True

    # --- in the thread ----------------------------------------------------------------------------------------------

    def widen_send_queue(self) -> None:
        """See `SessionSockets.widen_send_queue`."""
        self._sockets.widen_send_queue()

    def opened(self, opened: ZmqSocketBase) -> None:
        """For the sockets, as their `SocketWatcher`."""
        self._polled[opened] = zmq.POLLIN
        self._poller.register(opened.socket, zmq.POLLIN)

    def closing(self, closing: ZmqSocketBase) -> None:
        """For the sockets, as their `SocketWatcher`."""
        if self._polled.pop(closing) and closing.socket in self._poller:
            self._poller.unregister(closing.socket)

    def _run(self) -> None:
        error = ClosedError("the client was closed")
        try:
            while self._turn():
                pass
        except zmq.ContextTerminated:
            error = ClosedError("the client's ZeroMQ context was terminated")
        except BaseException as cause:
            _log.exception("the client's thread failed")
            error = ClosedError(f"the client's thread failed: {cause!r}")
            error.__cause__ = cause
        finally:
            self._end(error)

    def _end(self, error: ClosedError) -> None:
        with self._lock:
            self._ended = True
            commands, self._commands = self._commands, []
            self._wake_out.close()
        self._sockets.end(error)
        for command in commands:
            command(time.monotonic())
        self._sockets.close()
        self._wake_in.close()

    def _turn(self) -> bool:
        now = time.monotonic()
        with self._lock:
            if self._closing:
                return False
            commands, self._commands = self._commands, []
        for command in commands:
            command(now)
        self._sockets.step(now)
        self._watch(self._sockets.dealer, zmq.POLLIN | zmq.POLLOUT if self._sockets.blocked else zmq.POLLIN)
        self._watch(self._sockets.subscriber, 0 if self._sockets.paused else zmq.POLLIN)
        self._poll(now)
        return True

    def _watch(self, polled: ZmqSocketBase | None, events: int) -> None:
        if polled is not None and self._polled[polled] != events:
            self._polled[polled] = events
            self._poller.modify(polled.socket, events)

    def _poll(self, now: float) -> None:
        sockets = self._sockets
        for polled, events in self._poller.poll(self._timeout_ms(now)):
            if polled == self._wake_in.fileno():
                self._drain_wake()
            elif events & zmq.POLLIN and sockets.dealer is not None and polled is sockets.dealer.socket:
                sockets.receive_replies(time.monotonic())
            elif events & zmq.POLLIN:
                sockets.receive_published(time.monotonic())

    def _timeout_ms(self, now: float) -> int:
        at = self._sockets.next_time()
        wait = _POLL_MAX_S if at is None else at - now
        return math.ceil(min(max(wait, 0.0), _POLL_MAX_S) * 1000)

    def _drain_wake(self) -> None:
        with self._lock:
            self._awake = False
            self._wake_in.recv(16)
