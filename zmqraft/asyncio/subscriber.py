"""The asyncio subscribers: ZmqRaftSubscriber to the log of a cluster, ZmqRaftPeerSub to what one peer publishes.

They are the blocking ones as async iterators. The rule: a subscriber is for one reader at a time; closing it ends the
iteration, and cancelling a read loses nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import zmq

from zmqraft.asyncio.base import SNDHWM
from zmqraft.asyncio.clients import ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.asyncio.item_queue import ItemQueue
from zmqraft.asyncio.loop_driver import LoopDriver
from zmqraft.client.arguments import Limits, Urls, check_integer, to_seconds
from zmqraft.client.entries_request import item_size
from zmqraft.client.entry_cursor import EntryCursor
from zmqraft.client.pacing import PacedFeed, TakenSize
from zmqraft.client.peer_broadcast import Broadcast, PeerBroadcast, broadcast_size
from zmqraft.client.results import SnapshotChunk
from zmqraft.client.session import ClientSession
from zmqraft.client.session_sockets import Feed
from zmqraft.client.subscriber import BROADCAST_TIMEOUT_MS, PEER_SILENCE_S
from zmqraft.client.subscription import Subscription
from zmqraft.constants import CLIENT_SERVER_ELECTION_GRACE_DELAY_MS, CLIENT_TIMEOUT_MS
from zmqraft.errors import ClosedError
from zmqraft.protocol.entries_flow import EntriesItem
from zmqraft.protocol.entry import EntryBatch, LogEntry

__all__ = ["ZmqRaftPeerSub", "ZmqRaftSubscriber"]

_T = TypeVar("_T")


class _FeedReader(Generic[_T]):
    """Reads what a feed gives out, and tells it what was read."""

    def __init__(self, size_of: Callable[[_T], int], buffer_size_max: int) -> None:
        self.queue: ItemQueue[_T] = ItemQueue()
        self._taken = TakenSize(size_of, buffer_size_max)

    async def get(self, driver: LoopDriver, feed: PacedFeed, timeout_s: float | None) -> _T:
        item = await self.queue.get(timeout_s)
        if item is None:
            raise ClosedError("the subscriber is closed")
        if taken := self._taken.take(item):
            feed.consumed(taken, driver.now())
            driver.wake()
        return item


class ZmqRaftSubscriber(ZmqRaftClient):
    """Follows the log of a cluster: an async iterator without end over the entries from ``last_index`` + 1 on.

    As `zmqraft.ZmqRaftSubscriber`. It is a `ZmqRaftClient` too: updates and all other requests may be made on it.
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
        sndhwm: int = SNDHWM,
        deadline_s: float | None = None,
        limits: Limits | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """As `zmqraft.ZmqRaftSubscriber`, in a coroutine: RuntimeError when no event loop is running."""
        check_integer("last_index", last_index, 0)
        self._cursor = EntryCursor(last_index)
        self._silence_s = to_seconds(broadcast_timeout_ms, "broadcast_timeout_ms")
        self._retry_delay_s = to_seconds(server_election_grace_delay_ms, "server_election_grace_delay_ms")
        self._buffer_size_max = (limits or Limits()).buffer_size_max
        self._reader: _FeedReader[EntriesItem] = _FeedReader(item_size, self._buffer_size_max)
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
            self._reader.queue,
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

    async def get(self, timeout_s: float | None = None) -> LogEntry | SnapshotChunk:
        """The next entry or chunk. Raises RequestTimeoutError after ``timeout_s`` and ClosedError."""
        while (entry := self._cursor.next_entry()) is None:
            if (chunk := self._cursor.take(await self._next_item(timeout_s))) is not None:
                return chunk
        return entry

    async def get_batch(self, timeout_s: float | None = None) -> EntryBatch | SnapshotChunk:
        """As `get`, but all the entries that came together. May be mixed with it."""
        while (rest := self._cursor.rest()) is None:
            if (chunk := self._cursor.take(await self._next_item(timeout_s))) is not None:
                return chunk
        return rest

    async def batches(self) -> AsyncIterator[EntryBatch | SnapshotChunk]:
        """Iterates as the subscriber itself does, over all the entries that came together. Ends when it is closed."""
        while True:
            try:
                batch = await self.get_batch()
            except ClosedError:
                if not self.closed:
                    raise
                return
            yield batch

    async def _next_item(self, timeout_s: float | None) -> EntriesItem:
        return await self._reader.get(self._open_driver, self._feed, timeout_s)

    def __aiter__(self) -> AsyncIterator[LogEntry | SnapshotChunk]:
        return self

    async def __anext__(self) -> LogEntry | SnapshotChunk:
        try:
            return await self.get()
        except ClosedError:
            if not self.closed:
                raise
            raise StopAsyncIteration from None


class ZmqRaftPeerSub(ZmqRaftPeerClient):
    """What one peer publishes while it leads: an async iterator over (term, last applied index, entries).

    As `zmqraft.ZmqRaftPeerSub`.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: bytes | str = b"",
        timeout_ms: float = CLIENT_TIMEOUT_MS,
        deadline_s: float | None = None,
        sndhwm: int = SNDHWM,
        limits: Limits | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """As `zmqraft.ZmqRaftPeerSub`, in a coroutine: RuntimeError when no event loop is running."""
        self._buffer_size_max = (limits or Limits()).buffer_size_max
        self._reader: _FeedReader[Broadcast] = _FeedReader(broadcast_size, self._buffer_size_max)
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
            session, self._reader.queue, silence_s=PEER_SILENCE_S, buffer_size_max=self._buffer_size_max
        )
        return self._feed

    async def get(self, timeout_s: float | None = None) -> Broadcast:
        """The next message. Raises RequestTimeoutError after ``timeout_s`` and ClosedError."""
        return await self._reader.get(self._open_driver, self._feed, timeout_s)

    def __aiter__(self) -> AsyncIterator[Broadcast]:
        return self

    async def __anext__(self) -> Broadcast:
        try:
            return await self.get()
        except ClosedError:
            if not self.closed:
                raise
            raise StopAsyncIteration from None
