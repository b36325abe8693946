"""The DEALER socket to one other peer.

SPEC section 2, "Between peers". Which request is outstanding, and when it is repeated, is in `PeerLink`. The rule: a
send never waits; what cannot be sent now is kept, two messages at most, or dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import zmq

from zmqraft.protocol import EntryBatch
from zmqraft.protocol.zmq_io import receive_messages, send_message
from zmqraft.server.peer_link import Message

__all__ = ["ZmqRpcSocket"]

#: Replies of peers are a few numbers.
_REPLY_SIZE_MAX = 65536
_CONNECT_TIMEOUT_MS = 1000
#: As many as may be under way to a peer; of more, the oldest go.
_KEPT_MAX = 2
#: Messages that may wait here, and are taken at a time: there is one request outstanding, and a peer that sends more
#: than replies has to wait.
_RECEIVE_MAX = 16
#: When nothing could leave for so long, in seconds, the connection is made anew: libzmq never does so by itself after
#: the other side has broken ZeroMQ's protocol, or sent a frame above the limit. Long, since a peer of zmq-raft that was
#: only slow must not get on a second connection what it has on the first.
_STUCK_AFTER = 10.0


class ZmqRpcSocket:
    """A DEALER that holds at most one unsent message, and few that are kept behind it. To be used in one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], url: str, *, reconnect_interval_ms: int) -> None:
        self._context = context
        self.url = url
        self._reconnect_interval_ms = reconnect_interval_ms
        self._kept: deque[Message] = deque(maxlen=_KEPT_MAX)
        # Since when nothing could leave; None when the last message did.
        self._blocked_since: float | None = None
        self.socket = self._connect()

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.sndhwm = 1
        socket.rcvhwm = _RECEIVE_MAX
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

        With ``keep`` it is then sent by `flush` as soon as there is room, unless too many others are kept by then.
        """
        if not self._kept and send_message(self.socket, frames, entries):
            self._blocked_since = None
            return True
        if self._blocked_since is None:
            self._blocked_since = time.monotonic()
        if keep:
            self._kept.append((list(frames), entries))
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether nothing could leave for so long that only `reset` may help."""
        return self._blocked_since is not None and time.monotonic() - self._blocked_since > _STUCK_AFTER

    @property
    def has_kept(self) -> bool:
        """Whether a message waits for room: `flush` is to be called when the socket can be written to."""
        return bool(self._kept)

    def flush(self) -> bool:
        """Send what was kept, as far as there is room now. Returns whether nothing is kept any longer."""
        while self._kept and send_message(self.socket, *self._kept[0]):
            self._kept.popleft()
            self._blocked_since = None
        return not self._kept

    def receive(self) -> list[list[bytes]]:
        """The messages that have arrived."""
        return receive_messages(self.socket, _RECEIVE_MAX)

    def reset(self) -> None:
        """Drop what was not sent yet: disconnect, and connect anew under another identity."""
        self._kept.clear()
        self._blocked_since = None
        self.close()
        self.socket = self._connect()

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self.socket.close()
