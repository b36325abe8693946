"""The blocking subscribers: ZmqRaftSubscriber to the log of a cluster, ZmqRaftPeerSub to what one peer publishes.

How the log is put together is in `subscription`. The rule: a subscriber is for one consumer; closing it, from any
thread, ends the iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import zmq

from zmqraft.client.arguments import Limits, Urls, check_integer, to_seconds
from zmqraft.client.clients import ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.client.entries_request import item_size
from zmqraft.client.entry_cursor import EntryCursor
from zmqraft.client.feed_queue import FeedQueue
from zmqraft.client.peer_broadcast import Broadcast, PeerBroadcast, broadcast_size
from zmqraft.client.results import SnapshotChunk
from zmqraft.client.session import ClientSession
from zmqraft.client.session_sockets import Feed
from zmqraft.client.subscription import Subscription
from zmqraft.constants import CLIENT_SERVER_ELECTION_GRACE_DELAY_MS, CLIENT_SNDHWM, CLIENT_TIMEOUT_MS
from zmqraft.errors import ClosedError
from zmqraft.protocol.entries_flow import EntriesItem
from zmqraft.protocol.entry import EntryBatch, LogEntry

__all__ = ["BROADCAST_TIMEOUT_MS", "PEER_SILENCE_S", "ZmqRaftPeerSub", "ZmqRaftSubscriber"]

#: A leader publishes something every 500 ms; after twice that it is looked for again.
BROADCAST_TIMEOUT_MS = 1000
#: A peer that does not lead publishes nothing. It is asked again where it would after this, in case that changed.
PEER_SILENCE_S = 5.0


class ZmqRaftSubscriber(ZmqRaftClient):
    """Follows the log of a cluster: an iterator without end over the entries from ``last_index`` + 1 on.

    Entries of all types come in order, none twice and none left out, over the loss of leaders and of messages. Where
    the log does not reach back to ``last_index`` a snapshot comes first, in chunks; see `SnapshotChunk`. It is a
    `ZmqRaftClient` too: updates and all other requests may be made on it, from any thread.
    """

    def __init__(
        self,
        urls: Urls,
        *,
        secret: bytes | str = b"",
        last_index: int = 0,
        broadcast_timeout_ms: float = BROADCAST_TIMEOUT_MS,
        timeout_ms: float = CLIENT_TIMEOUT_MS,
        server_election_grace_delay_ms: float = CLIENT_SERVER_ELECTION_GRACE_DELAY_MS,
        heartbeat_ms: float = 0,
        sndhwm: int = CLIENT_SNDHWM,
        deadline_s: float | None = None,
        limits: Limits | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """``last_index`` is the index of the last entry that is not wanted. When nothing was published for
        ``broadcast_timeout_ms``, the leader is looked for again. The rest is as for `ZmqRaftClient`.
        """
        check_integer("last_index", last_index, 0)
        self._cursor = EntryCursor(last_index)
        self._silence_s = to_seconds(broadcast_timeout_ms, "broadcast_timeout_ms")
        self._retry_delay_s = to_seconds(server_election_grace_delay_ms, "server_election_grace_delay_ms")
        self._buffer_size_max = (limits or Limits()).buffer_size_max
        self._queue: FeedQueue[EntriesItem] = FeedQueue(item_size, self._buffer_size_max)
        super().__init__(
            urls,
            secret=secret,
            timeout_ms=timeout_ms,
            server_election_grace_delay_ms=server_election_grace_delay_ms,
            heartbeat_ms=heartbeat_ms,
            sndhwm=sndhwm,
            deadline_s=deadline_s,
            limits=limits,
            context=context,
        )

    def _new_feed(self, session: ClientSession) -> Feed:
        self._feed = Subscription(
            session,
            self._queue,
            last_index=self._cursor.last_index,
            silence_s=self._silence_s,
            retry_delay_s=self._retry_delay_s,
            buffer_size_max=self._buffer_size_max,
        )
        return self._feed

    @property
    def last_index(self) -> int:
        """The index of the last entry that was returned, or that a snapshot returned to its end stands for."""
        return self._cursor.last_index

    def get(self, timeout_s: float | None = None) -> LogEntry | SnapshotChunk:
        """The next entry or chunk. Raises RequestTimeoutError after ``timeout_s`` and ClosedError."""
        while (entry := self._cursor.next_entry()) is None:
            if (chunk := self._cursor.take(self._queue.get(self._io_thread, self._feed, timeout_s))) is not None:
                return chunk
        return entry

    def get_batch(self, timeout_s: float | None = None) -> EntryBatch | SnapshotChunk:
        """As `get`, but all the entries that came together. May be mixed with it."""
        while (rest := self._cursor.rest()) is None:
            if (chunk := self._cursor.take(self._queue.get(self._io_thread, self._feed, timeout_s))) is not None:
                return chunk
        return rest

    def batches(self) -> Iterator[EntryBatch | SnapshotChunk]:
        """Iterates as the subscriber itself does, over all the entries that came together. Ends when it is closed."""
        while True:
            try:
                yield self.get_batch()
            except ClosedError:
                if not self.closed:
                    raise
                return

    def __iter__(self) -> Iterator[LogEntry | SnapshotChunk]:
        return self

    def __next__(self) -> LogEntry | SnapshotChunk:
        try:
            return self.get()
        except ClosedError:
            if not self.closed:
                raise
            raise StopIteration from None


class ZmqRaftPeerSub(ZmqRaftPeerClient):
    """What one peer publishes while it leads: an iterator without end over (term, last applied index, entries).

    Heartbeats are messages without entries. Messages are lost when the consumer is slow, or the connection: where
    entries do not follow on those before, fetch what is missing with ``request_entries``, or use `ZmqRaftSubscriber`.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: bytes | str = b"",
        timeout_ms: float = CLIENT_TIMEOUT_MS,
        deadline_s: float | None = None,
        sndhwm: int = CLIENT_SNDHWM,
        limits: Limits | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """As for `ZmqProtocolSocket`."""
        self._buffer_size_max = (limits or Limits()).buffer_size_max
        self._queue: FeedQueue[Broadcast] = FeedQueue(broadcast_size, self._buffer_size_max)
        super().__init__(
            url,
            secret=secret,
            timeout_ms=timeout_ms,
            deadline_s=deadline_s,
            sndhwm=sndhwm,
            limits=limits,
            context=context,
        )

    def _new_feed(self, session: ClientSession) -> Feed:
        self._feed = PeerBroadcast(
            session, self._queue, silence_s=PEER_SILENCE_S, buffer_size_max=self._buffer_size_max
        )
        return self._feed

    def get(self, timeout_s: float | None = None) -> Broadcast:
        """The next message. Raises RequestTimeoutError after ``timeout_s`` and ClosedError."""
        return self._queue.get(self._io_thread, self._feed, timeout_s)

    def __iter__(self) -> Iterator[Broadcast]:
        return self

    def __next__(self) -> Broadcast:
        try:
            return self.get()
        except ClosedError:
            if not self.closed:
                raise
            raise StopIteration from None
