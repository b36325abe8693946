"""The DEALER socket to one other peer.

SPEC section 2, "Between peers". Which request is outstanding, and when it is repeated, is in `PeerLink`. The rule: a
send never waits; what cannot be sent now is kept, one message at most, or dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from zmqraft.protocol import EntryBatch
from zmqraft.server.peer_link import Message
from zmqraft.server.zmq_io import receive_messages, send_message

__all__ = ["ZmqRpcSocket"]

#: Replies of peers are a few numbers.
_REPLY_SIZE_MAX = 65536
_CONNECT_TIMEOUT_MS = 1000
_DRAIN_MAX = 64


class ZmqRpcSocket:
    """A DEALER that holds at most one unsent message, and one that is kept behind it. To be used in one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], url: str, *, reconnect_interval_ms: int) -> None:
        self._context = context
        self.url = url
        self._reconnect_interval_ms = reconnect_interval_ms
        self._kept: Message | None = None
        self.socket = self._connect()

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.sndhwm = 1
        socket.setsockopt(zmq.RECONNECT_IVL, self._reconnect_interval_ms)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_TIMEOUT_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, _REPLY_SIZE_MAX)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        if "[" in self.url:
            socket.setsockopt(zmq.IPV6, 1)
        socket.connect(self.url)
        return socket

    def send(self, frames: Sequence[bytes], entries: EntryBatch | None = None, *, keep: bool = False) -> bool:
        """Send a message, with a frame for each entry. Returns False when the one before it has not left yet.

        With ``keep`` it is then sent by `flush` as soon as there is room, unless another one takes its place before.
        """
        if keep:
            self._kept = None
        if self._kept is None and send_message(self.socket, frames, entries):
            return True
        if keep:
            self._kept = (list(frames), entries)
        return False

    @property
    def has_kept(self) -> bool:
        """Whether a message waits for room: `flush` is to be called when the socket can be written to."""
        return self._kept is not None

    def flush(self) -> bool:
        """Send what was kept, if there is room now. Returns whether nothing is kept any longer."""
        if self._kept is not None and send_message(self.socket, *self._kept):
            self._kept = None
        return self._kept is None

    def receive(self) -> list[list[bytes]]:
        """The messages that have arrived."""
        return receive_messages(self.socket, _DRAIN_MAX)

    def reset(self) -> None:
        """Drop what was not sent yet: disconnect, and connect anew under another identity."""
        self._kept = None
        self.close()
        self.socket = self._connect()

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self.socket.close()
