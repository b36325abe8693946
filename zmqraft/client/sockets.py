"""One ZeroMQ socket with the settings of this project, used without blocking.

Knows nothing of sessions. The rule: nothing here waits; whoever owns the socket polls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import zmq

from zmqraft.errors import ClosedError, LocalProtocolError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.protocol.zmq_io import receive_messages, receive_with_entries, send_message

__all__ = ["ZmqSocketBase"]

#: Probes on a silent TCP connection start after this, and go on at this interval, so that routers keep it and a
#: vanished host is noticed. Failed probes end the connection after about a minute.
_KEEPALIVE_IDLE_S = 30
_KEEPALIVE_INTERVAL_S = 10
_KEEPALIVE_COUNT = 3
#: How long ZeroMQ waits before it connects again, where it may: at first, and at most.
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 2000
#: Not -1, which says "never" too, and not ZMQ_IMMEDIATE: with either libzmq 4.3.5 takes the queue of a connection that
#: ends away from under its reader, and when that is within a message it aborts the process (fq.cpp, "!_more").
_RECONNECT_NEVER_MS = 10**9


class ZmqSocketBase:
    """A connecting socket: LINGER 0, TCP keepalive, bounded queues and frames. Not thread-safe.

    ``reconnect``: whether ZeroMQ may connect again by itself after the connection broke or failed. A DEALER whose
    owner keeps track of what was sent says no, and makes a new socket instead. With ``reconnect`` False there is one
    connection at most: what is taken after its end is never sent, and no more than ``send_queue_max`` messages are.
    """

    def __init__(
        self,
        socket_type: int,
        context: zmq.Context[Any],
        *,
        reconnect: bool,
        send_queue_max: int = 1000,
        receive_queue_max: int = 1000,
        frame_size_max: int = -1,
    ) -> None:
        """Queue lengths are in messages (ZMQ_SNDHWM, ZMQ_RCVHWM), ``frame_size_max`` in bytes (-1: no limit)."""
        self._socket: zmq.Socket[bytes] = context.socket(socket_type)
        try:
            self._set_options(reconnect, send_queue_max, receive_queue_max, frame_size_max)
        except BaseException:
            self._socket.close()
            raise

    def _set_options(self, reconnect: bool, send_queue_max: int, receive_queue_max: int, frame_size_max: int) -> None:
        options = {
            zmq.LINGER: 0,
            zmq.SNDHWM: send_queue_max,
            zmq.RCVHWM: receive_queue_max,
            zmq.RECONNECT_IVL: _RECONNECT_MS if reconnect else _RECONNECT_NEVER_MS,
            zmq.RECONNECT_IVL_MAX: _RECONNECT_MAX_MS if reconnect else 0,
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: _KEEPALIVE_IDLE_S,
            zmq.TCP_KEEPALIVE_INTVL: _KEEPALIVE_INTERVAL_S,
            zmq.TCP_KEEPALIVE_CNT: _KEEPALIVE_COUNT,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.MAXMSGSIZE, frame_size_max)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket itself, to poll it."""
        return self._socket

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.closed

    def connect(self, url: str) -> None:
        """Connect, in the background. Raises LocalProtocolError when ZeroMQ refuses the url."""
        self._check_open()
        try:
            # Only for addresses: with it a name like localhost would lead to IPv6, where most peers do not listen.
            self._socket.setsockopt(zmq.IPV6, 1 if "[" in url else 0)
            self._socket.connect(url)
        except zmq.ZMQError as error:
            raise LocalProtocolError(f"cannot connect to {url!r}: {error}") from error

    def subscribe(self, topic: bytes) -> None:
        """Receive messages whose first frame starts with ``topic`` (a SUB socket)."""
        self._check_open()
        self._socket.setsockopt(zmq.SUBSCRIBE, topic)

    def try_send(self, frames: Sequence[bytes]) -> bool:
        """Hand over a message. Returns False when the socket takes none now: poll for POLLOUT and try again."""
        self._check_open()
        return send_message(self._socket, frames)

    def receive(self) -> list[bytes] | None:
        """The next message; None when there is none now."""
        messages = self.receive_many(1)
        return messages[0] if messages else None

    def receive_with_entries(self, head_count: int) -> tuple[list[bytes], EntryBatch | None] | None:
        """The next message, its frames behind the first ones as entries; None when there is none now."""
        self._check_open()
        messages = receive_with_entries(self._socket, head_count, 1)
        return messages[0] if messages else None

    def receive_many(self, count_max: int) -> list[list[bytes]]:
        """The messages that have come in, at most ``count_max`` of them."""
        self._check_open()
        return receive_messages(self._socket, count_max)

    def events(self) -> int:
        """ZMQ_EVENTS: POLLIN and POLLOUT as they are now. Asking is also what makes ZMQ_FD tell of what comes next."""
        self._check_open()
        return int(self._socket.getsockopt(zmq.EVENTS))

    def close(self) -> None:
        """Close the socket and drop what it has not sent. May be called twice."""
        self._socket.close(0)

    def _check_open(self) -> None:
        if self._socket.closed:
            raise ClosedError("the socket is closed")

    def __enter__(self) -> ZmqSocketBase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
