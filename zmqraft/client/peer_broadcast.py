"""What one peer publishes, as it is, without socket, clock or thread.

Knows nothing of the order of entries: there are gaps where messages were lost, and silence while the peer does not
lead. The rule: a slow consumer holds up the socket, whose own queue is bounded; what does not fit there is lost.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from zmqraft.client.entries_request import ITEM_OVERHEAD
from zmqraft.client.requests import BroadcastUrlRequest
from zmqraft.client.session import ClientSession
from zmqraft.client.subscription import UrlAnswer, decode_broadcast
from zmqraft.errors import RemoteProtocolError
from zmqraft.protocol.entry import EntryBatch

__all__ = ["Broadcast", "PeerBroadcast", "PeerBroadcastSink", "broadcast_size"]

#: Term, last applied index, and the entries up to that; none in a heartbeat.
Broadcast: TypeAlias = "tuple[int, int, EntryBatch]"


class PeerBroadcastSink(Protocol):
    """Where messages go. Must not raise."""

    def put(self, item: Broadcast, /) -> None:
        """The next message; `PeerBroadcast.consumed` is to be called for its size."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Nothing more comes."""


class PeerBroadcast:
    """Asks a peer where it publishes, again whenever it is silent for long, since that may have changed."""

    def __init__(
        self, session: ClientSession, sink: PeerBroadcastSink, *, silence_s: float, buffer_size_max: int
    ) -> None:
        """At most about ``buffer_size_max`` bytes are given out and not consumed."""
        #: The number of the SUB socket that is wanted, and where it connects to.
        self.generation = 0
        self.url: str | None = None
        self.topic = session.secret
        #: Messages that were malformed, or of another secret that begins with this one.
        self.malformed_messages = 0
        self._session = session
        self._sink = sink
        self._silence_s = silence_s
        self._buffer_size_max = buffer_size_max
        self._unconsumed_size = 0
        self._heard_at: float | None = None
        self._answer: UrlAnswer | None = None

    @property
    def paused(self) -> bool:
        """Whether messages are to wait in the socket."""
        return self._unconsumed_size >= self._buffer_size_max

    def receive(self, frames: list[bytes], now: float, entries: EntryBatch | None = None) -> None:
        """Take a message of the SUB socket; its entries may come as a batch, instead of as frames."""
        try:
            message = decode_broadcast(frames, self.topic, entries)
        except RemoteProtocolError:
            self.malformed_messages += 1
            return
        self._heard_at = now
        self._unconsumed_size += broadcast_size(message)
        self._sink.put(message)

    def consumed(self, size: int, now: float) -> None:
        """The consumer has taken messages of ``size`` bytes together (`broadcast_size`)."""
        self._unconsumed_size -= size

    def tick(self, now: float) -> None:
        """Do what is due, and act on what came in."""
        if self._session.closed:
            return
        if self._answer is not None and self._answer.done:
            url = self._answer.valid_url()
            self._answer = None
            self._heard_at = now
            if url is not None and url != self.url:
                self.generation += 1
                self.url = url
        elif self._answer is None and (self._heard_at is None or now >= self._heard_at + self._silence_s):
            self._answer = UrlAnswer()
            self._session.start(BroadcastUrlRequest(self._session.secret, self._answer), now)

    def next_time(self) -> float | None:
        """When `tick` is to be called at the latest."""
        return None if self._answer is not None or self._heard_at is None else self._heard_at + self._silence_s

    def close(self, error: Exception) -> None:
        """The session was closed."""
        self._sink.set_exception(error)


def broadcast_size(message: Broadcast) -> int:
    """About how much memory a message takes, in bytes."""
    return ITEM_OVERHEAD + message[2].size
