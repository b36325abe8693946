"""The sockets of a session, and of a feed beside it: what those say is done to these, and what comes in is handed on.

Knows nothing of threads or event loops, or of how one waits. The rule: nothing here waits; whoever owns this calls
`step`, then `receive`, whenever something may be due or may have come in.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import zmq

from zmqraft.client.session import ClientSession
from zmqraft.client.sockets import ZmqSocketBase
from zmqraft.constants import BROADCAST_HEAD_FRAMES
from zmqraft.errors import LocalProtocolError
from zmqraft.protocol.entry import EntryBatch

__all__ = ["Feed", "SessionSockets", "SocketOptions", "SocketWatcher", "options_for"]

_log = logging.getLogger("zmqraft.client")

#: So many messages are taken from a socket before the others get their turn.
_TURN_MESSAGES_MAX = 500
#: Messages of a publisher that wait in the socket of a consumer that is slow; more are lost.
_PUBLISHED_MAX = 1000
#: What a send queue has room for, at least, once updates are streamed: more makes nothing faster.
_WIDE_SEND_QUEUE = 1000
#: Room in the receive queue for replies beside those to updates in flight, of which there may be two for each.
_RECEIVE_QUEUE_MIN = 1000

# Plain integers: the operators of pyzmq's enumerations are slow.
_READABLE = int(zmq.POLLIN)
_WRITABLE = int(zmq.POLLOUT)


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What a client may choose of its sockets; numbers of messages, and bytes."""

    send_queue_max: int
    receive_queue_max: int
    frame_size_max: int


def options_for(send_queue_max: int, in_flight_max: int, frame_size_max: int) -> SocketOptions:
    """The options of a client that may have so many updates in flight."""
    return SocketOptions(send_queue_max, _RECEIVE_QUEUE_MIN + 2 * in_flight_max, frame_size_max)


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

    def receive(self, frames: list[bytes], now: float, entries: EntryBatch | None = None) -> None:
        """Take a message of the SUB socket; its entries may come as a batch, instead of as frames."""

    def tick(self, now: float) -> None:
        """Do what is due; called after everything that came in."""

    def next_time(self) -> float | None:
        """When `tick` is to be called at the latest."""

    def close(self, error: Exception) -> None:
        """The session has been closed."""


class SocketWatcher(Protocol):
    """Who waits for the sockets."""

    def opened(self, opened: ZmqSocketBase) -> None:
        """There is a new socket."""

    def closing(self, closing: ZmqSocketBase) -> None:
        """A socket is about to be closed."""


class SessionSockets:
    """The DEALER of a session, and the SUB socket of its feed, if there is one. Not thread-safe."""

    def __init__(
        self,
        session: ClientSession,
        feed: Feed | None,
        watcher: SocketWatcher,
        *,
        context: zmq.Context[Any],
        options: SocketOptions,
    ) -> None:
        #: Of the present connection, and of the publisher.
        self.dealer: ZmqSocketBase | None = None
        self.subscriber: ZmqSocketBase | None = None
        #: Whether the DEALER had no room for what is to be sent.
        self.blocked = False
        self._session = session
        self._feed = feed
        self._watcher = watcher
        self._context = context
        self._options = options
        self._widened = False
        self._link = 0
        self._generation = 0

    @property
    def paused(self) -> bool:
        """Whether messages of the publisher are to wait in its socket."""
        return self._feed is not None and self._feed.paused

    def widen_send_queue(self) -> None:
        """Let all connections made from now on take many messages at a time.

        A queue of 2 makes its owner wait for ZeroMQ's thread at every second message. A longer one keeps no more stale
        messages than that: it ends with its connection (see `ZmqSocketBase`), and the next one starts empty. The
        present connection stays as it is: libzmq 4.3.5 crashes when ZMQ_SNDHWM is changed while the peer goes away.
        """
        self._widened = True

    def step(self, now: float) -> None:
        """Do what is due, connect to where that leads, and send what there is room for."""
        self._session.tick(now)
        if self._feed is not None:
            self._feed.tick(now)
        self._follow()
        self._flush()

    def receive(self, now: float) -> int:
        """Take what has come in, of a flood only a part. Returns how many messages there were."""
        return self.receive_replies(now) + self.receive_published(now)

    def receive_replies(self, now: float) -> int:
        """As `receive`, from the DEALER alone."""
        session = self._session
        if self.dealer is None:
            return 0
        messages = self.dealer.receive_many(_TURN_MESSAGES_MAX)
        for frames in messages:
            if self._link != session.link:
                break  # what comes behind is of a connection that does not count any longer
            session.receive(frames, now)
        return len(messages)

    def receive_published(self, now: float) -> int:
        """As `receive`, from the SUB socket alone."""
        feed, count = self._feed, 0
        if feed is None or self.subscriber is None:
            return 0
        while count < _TURN_MESSAGES_MAX and not feed.paused:
            if (message := self.subscriber.receive_with_entries(BROADCAST_HEAD_FRAMES)) is None:
                break
            frames, entries = message
            feed.receive(frames, now, entries)
            count += 1
        return count

    def has_work(self) -> bool:
        """Whether a socket can be read, or has room again for what is to be sent."""
        dealer, subscriber = self.dealer, self.subscriber
        if dealer is not None and dealer.events() & (_READABLE | (_WRITABLE if self.blocked else 0)):
            return True
        return subscriber is not None and not self.paused and bool(subscriber.events() & _READABLE)

    def next_time(self) -> float | None:
        """When `step` is to be called at the latest; None: not before something comes in."""
        times = [self._session.next_time(), self._feed.next_time() if self._feed is not None else None]
        return min((t for t in times if t is not None), default=None)

    def end(self, error: Exception) -> None:
        """Let the session and the feed end with this error."""
        self._session.close(error)
        if self._feed is not None:
            self._feed.close(error)

    def close(self) -> None:
        """Close the sockets."""
        for owned in (self.dealer, self.subscriber):
            if owned is not None:
                self._watcher.closing(owned)
                owned.close()
        self.dealer = self.subscriber = None

    def _follow(self) -> None:
        if self._link != self._session.link:
            self._link = self._session.link
            self.dealer = self._replace(self.dealer, zmq.DEALER, self._session.url)
            self.blocked = False
        feed = self._feed
        if feed is not None and self._generation != feed.generation:
            self._generation = feed.generation
            self.subscriber = self._replace(self.subscriber, zmq.SUB, feed.url)
            if self.subscriber is not None:
                self.subscriber.subscribe(feed.topic)

    def _replace(self, old: ZmqSocketBase | None, socket_type: int, url: str | None) -> ZmqSocketBase | None:
        if old is not None:
            self._watcher.closing(old)
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
        self._watcher.opened(new)
        return new

    @property
    def _send_queue_max(self) -> int:
        chosen = self._options.send_queue_max
        return max(chosen, _WIDE_SEND_QUEUE) if chosen and self._widened else chosen  # 0: no limit

    def _flush(self) -> None:
        dealer, session = self.dealer, self._session
        if dealer is None:
            return
        while (frames := session.next_frames()) is not None:
            if not dealer.try_send(frames):
                self.blocked = True
                return
            session.sent()
        self.blocked = False
