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
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import zmq

from zmqraft.client.session import ClientSession
from zmqraft.client.sockets import ZmqSocketBase
from zmqraft.errors import ClosedError, LocalProtocolError

__all__ = ["Command", "Feed", "IoThread", "SocketOptions"]

_log = logging.getLogger("zmqraft.client")

#: So many messages are taken from a socket before the others get their turn.
_TURN_MESSAGES_MAX = 500
#: Messages of a publisher that wait in the socket of a consumer that is slow; more are lost.
_PUBLISHED_MAX = 1000
#: What a send queue has room for, at least, once updates are streamed: more makes nothing faster.
_WIDE_SEND_QUEUE = 1000
#: The longest wait of a poll, in seconds: ZeroMQ takes 31 bits of milliseconds.
_POLL_MAX_S = 3600.0

#: What is run in the thread, with the time.
Command: TypeAlias = Callable[[float], object]


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What a client may choose of its sockets; numbers of messages, and bytes."""

    send_queue_max: int
    receive_queue_max: int
    frame_size_max: int


class Feed(Protocol):
    """What a subscriber adds to a session: a SUB socket, and something to do with what it brings."""

    @property
    def generation(self) -> int:
        """The number of the SUB socket that is wanted; another number: a new socket."""

    @property
    def url(self) -> str | None:
        """Where it connects to; None: nowhere."""

    @property
    def topic(self) -> bytes:
        """What it subscribes to."""

    @property
    def paused(self) -> bool:
        """Whether messages are to wait in the socket."""

    def receive(self, frames: list[bytes], now: float) -> None:
        """Take a message of the SUB socket."""

    def tick(self, now: float) -> None:
        """Do what is due; called after everything that came in."""

    def next_time(self) -> float | None:
        """When `tick` is to be called at the latest."""

    def close(self, error: Exception) -> None:
        """The session has been closed."""


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
        self._session = session
        self._feed = feed
        self._context = context
        self._options = options
        # Reentrant: the garbage collector may end a stream, which calls in here, at any place.
        self._lock = threading.RLock()
        self._commands: list[Command] = []
        self._awake = False
        self._closing = False
        self._ended = False
        self._link = 0
        self._dealer: ZmqSocketBase | None = None
        self._blocked = False
        self._widened = False
        self._generation = 0
        self._paused = False
        self._subscriber: ZmqSocketBase | None = None
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
        """Let all connections made from now on take many messages at a time.

        A queue of 2 makes this thread wait for ZeroMQ's at every second message. A longer one keeps no more stale
        messages than that: it ends with its connection (see `ZmqSocketBase`), and the next one starts empty. The
        present connection stays as it is: libzmq 4.3.5 crashes when ZMQ_SNDHWM is changed while the peer goes away.
        """
        self._widened = True

    @property
    def _send_queue_max(self) -> int:
        chosen = self._options.send_queue_max
        return max(chosen, _WIDE_SEND_QUEUE) if chosen and self._widened else chosen  # 0: no limit

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
        self._session.close(error)
        if self._feed is not None:
            self._feed.close(error)
        for command in commands:
            command(time.monotonic())
        for owned in (self._dealer, self._subscriber):
            if owned is not None:
                owned.close()
        self._wake_in.close()

    def _turn(self) -> bool:
        now = time.monotonic()
        with self._lock:
            if self._closing:
                return False
            commands, self._commands = self._commands, []
        for command in commands:
            command(now)
        self._session.tick(now)
        if self._feed is not None:
            self._feed.tick(now)
        self._update_sockets()
        self._flush()
        self._poll(now)
        return True

    def _update_sockets(self) -> None:
        if self._link != self._session.link:
            self._link = self._session.link
            self._dealer = self._replace(self._dealer, zmq.DEALER, self._session.url)
            self._blocked = False
        if self._feed is not None and self._generation != self._feed.generation:
            self._generation = self._feed.generation
            self._paused = False
            self._subscriber = self._replace(self._subscriber, zmq.SUB, self._feed.url)
            if self._subscriber is not None:
                self._subscriber.subscribe(self._feed.topic)

    def _replace(self, old: ZmqSocketBase | None, socket_type: int, url: str | None) -> ZmqSocketBase | None:
        if old is not None:
            if old.socket in self._poller:
                self._poller.unregister(old.socket)
            old.close()
        if url is None:
            return None
        _log.debug("connecting to %s", url)
        new = ZmqSocketBase(
            socket_type,
            self._context,
            reconnect=socket_type == zmq.SUB,
            send_queue_max=self._send_queue_max,
            receive_queue_max=self._options.receive_queue_max if socket_type == zmq.DEALER else _PUBLISHED_MAX,
            frame_size_max=self._options.frame_size_max,
        )
        try:
            new.connect(url)
        except LocalProtocolError as error:
            # The session takes it for a peer that is silent.
            _log.warning("%s", error)
            new.close()
            return None
        self._poller.register(new.socket, zmq.POLLIN)
        return new

    def _flush(self) -> None:
        dealer, session = self._dealer, self._session
        if dealer is None:
            return
        blocked = False
        while (frames := session.next_frames()) is not None:
            if not dealer.try_send(frames):
                blocked = True
                break
            session.sent()
        if blocked != self._blocked:
            self._blocked = blocked
            self._poller.modify(dealer.socket, zmq.POLLIN | zmq.POLLOUT if blocked else zmq.POLLIN)

    def _poll(self, now: float) -> None:
        if self._feed is not None and self._subscriber is not None and self._paused != self._feed.paused:
            self._paused = self._feed.paused
            self._poller.modify(self._subscriber.socket, 0 if self._paused else zmq.POLLIN)
        for polled, events in self._poller.poll(self._timeout_ms(now)):
            if polled == self._wake_in.fileno():
                self._drain_wake()
            elif events & zmq.POLLIN:
                self._receive(polled)

    def _timeout_ms(self, now: float) -> int:
        times = [self._session.next_time(), self._feed.next_time() if self._feed is not None else None]
        wait = min((t - now for t in times if t is not None), default=_POLL_MAX_S)
        return math.ceil(min(max(wait, 0.0), _POLL_MAX_S) * 1000)

    def _drain_wake(self) -> None:
        with self._lock:
            self._awake = False
            self._wake_in.recv(16)

    def _receive(self, polled: object) -> None:
        now = time.monotonic()
        if self._dealer is not None and polled is self._dealer.socket:
            for _ in range(_TURN_MESSAGES_MAX):
                if self._link != self._session.link or (frames := self._dealer.receive()) is None:
                    break
                self._session.receive(frames, now)
        elif self._feed is not None and self._subscriber is not None and polled is self._subscriber.socket:
            for _ in range(_TURN_MESSAGES_MAX):
                if self._feed.paused or (frames := self._subscriber.receive()) is None:
                    break
                self._feed.receive(frames, now)
