"""The asyncio clients: ZmqProtocolSocket and ZmqRaftPeerClient for one peer, ZmqRaftClient for the leader.

The methods are those of the blocking clients of the same names, which say what each means; here is what differs. The
rule: cancelling a call that asks something only drops the answer; of an update it leaves open whether it gets into the
log, and repeating it with the same request id is safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from functools import partial
from typing import Any, cast

import zmq

from zmqraft.asyncio.base import SNDHWM, ClientBase
from zmqraft.asyncio.streams import EntriesStream, UpdatesStream
from zmqraft.client.arguments import (
    IN_FLIGHT,
    Bytes,
    Limits,
    Urls,
    check_in_flight,
    cluster_session,
    make_config_update,
    make_entries_flow,
    make_update,
    peer_session,
    split_update,
)
from zmqraft.client.read_request import ReadIndexRequest
from zmqraft.client.requests import BroadcastUrlRequest, ClusterInfoRequest, LogInfoRequest, Request, ResultSink
from zmqraft.client.results import ClusterInfo, LogInfo
from zmqraft.client.session import ClientSession
from zmqraft.client.session_sockets import Feed
from zmqraft.constants import CLIENT_SERVER_ELECTION_GRACE_DELAY_MS, CLIENT_TIMEOUT_MS

__all__ = ["ZmqProtocolSocket", "ZmqRaftClient", "ZmqRaftPeerClient"]


class ZmqProtocolSocket(ClientBase):
    """Messages to one peer, with replies matched by their ids, repeated over a new connection when it is silent."""

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
        """As `zmqraft.ZmqProtocolSocket`, in a coroutine: RuntimeError when no event loop is running."""
        session = peer_session(url, secret, timeout_ms)
        feed = self._new_feed(session)
        super().__init__(session, deadline_s=deadline_s, sndhwm=sndhwm, limits=limits, context=context, feed=feed)

    def _new_feed(self, session: ClientSession) -> Feed | None:
        return None


class RaftRequests(ClientBase):
    """The requests of clients to peers."""

    async def request_update(self, request_id: bytes | None, data: Bytes, *, deadline_s: float | None = None) -> int:
        """Append ``data`` to the replicated log, and wait until it is committed and applied; the index of its entry.

        As `zmqraft.ZmqRaftClient.request_update`, with the same errors. More than ``limits`` allows wait for room.

        When it is cancelled while it waits for room, nothing was sent. Later the update may or may not be in the log,
        or get there after the cancellation; it is not sent again. To know, repeat it with the same ``request_id``,
        which for that must be one of the caller's (`zmqraft.new_request_id`).
        """
        return await (await self.submit_update(data, request_id=request_id, deadline_s=deadline_s))

    async def submit_update(
        self, data: Bytes, *, request_id: bytes | None = None, deadline_s: float | None = None
    ) -> asyncio.Future[int]:
        """As `request_update`, but only until there is room: a future of the index.

        Many may be in flight; they are sent in the order in which they were submitted, and, when the leader is lost,
        sent again in that order. The future may be cancelled, which says nothing of whether the update gets into the
        log. One that failed and is never awaited is reported by asyncio, as any future is.
        """
        make, size = make_update(self._secret, request_id, data, self._limits.data_size_max)
        deadline = self._deadline(deadline_s)
        if not self._limit.try_acquire(size):
            await self._limit.acquire(size, deadline)
        return self._start(make, deadline, size)

    def request_updates(
        self,
        updates: Iterable[Bytes | tuple[bytes | None, Bytes]] | AsyncIterable[Bytes | tuple[bytes | None, Bytes]],
        in_flight: int = IN_FLIGHT,
        *,
        deadline_s: float | None = None,
    ) -> UpdatesStream:
        """Append all ``updates``, data or (request id, data) each: an async iterator over their indexes, in order.

        As `zmqraft.ZmqRaftClient.request_updates`, with the same errors. ``updates`` may be an async iterable too;
        while its next item is waited for, indexes come out. The iterator is to be closed, by ``async with`` or
        ``close()``, when it is not read to its end.
        """
        check_in_flight(in_flight)
        self._deadline(deadline_s)
        self._open_driver.check_open()

        def make(item: object, sink: ResultSink) -> tuple[Request, int]:
            make_request, size = make_update(self._secret, *split_update(item), self._limits.data_size_max)
            return make_request(sink, self._deadline(deadline_s)), size

        return UpdatesStream(self._open_driver, self._session, self._limit, updates, make, in_flight)

    def request_entries(
        self,
        previous_index: int = 0,
        *,
        count: int | None = None,
        snapshot_offset: int | None = None,
        linearizable: bool = False,
        deadline_s: float | None = None,
    ) -> EntriesStream:
        """Read the log: the entries after ``previous_index``, at most ``count``, up to the last one applied now.

        As `zmqraft.ZmqRaftClient.request_entries`, with the same errors.
        """
        flow = make_entries_flow(previous_index, count, snapshot_offset)
        deadline = self._deadline(deadline_s)
        return EntriesStream(self._open_driver, self._session, self._secret, flow, deadline, linearizable=linearizable)

    async def read_index(self, *, deadline_s: float | None = None) -> int:
        """An index for a linearizable read: who has applied the entries up to there sees all that was committed before
        this call.

        As `zmqraft.ZmqRaftClient.read_index`, with the same errors.
        """
        return cast(int, await self._ask(partial(ReadIndexRequest, self._secret), deadline_s))

    async def request_config(self, *, deadline_s: float | None = None) -> ClusterInfo:
        """Who leads, and which peers there are. Raises RequestTimeoutError and ClosedError."""
        return cast(ClusterInfo, await self._ask(partial(ClusterInfoRequest, self._secret), deadline_s))

    async def request_log_info(self, *, deadline_s: float | None = None) -> LogInfo:
        """Term, indexes and sizes of a peer's log. Raises RequestTimeoutError and ClosedError."""
        return cast(LogInfo, await self._ask(partial(LogInfoRequest, self._secret), deadline_s))

    async def request_broadcast_url(self, *, deadline_s: float | None = None) -> str | None:
        """Where the peer publishes entries while it leads; None when it does not publish.

        Raises RequestTimeoutError (also when its state machine does not answer) and ClosedError.
        """
        return cast("str | None", await self._ask(partial(BroadcastUrlRequest, self._secret), deadline_s))

    async def request_config_update(
        self, request_id: bytes | None, peers: Iterable[tuple[str, str]], *, deadline_s: float | None = None
    ) -> int:
        """Change the members of the cluster to ``peers``, (id, url) each; the index of the entry that began it.

        As `zmqraft.ZmqRaftClient.request_config_update`, with the same errors. When it is cancelled the change may or
        may not take place.
        """
        return cast(int, await self._ask(make_config_update(self._secret, request_id, peers), deadline_s))


class ZmqRaftPeerClient(RaftRequests, ZmqProtocolSocket):
    """A client of exactly one peer. Where a request needs the leader and the peer is not, NotLeaderError is raised."""


class ZmqRaftClient(RaftRequests):
    """A client of a cluster: it finds the leader, follows it, and repeats what got no reply, with the same id."""

    def __init__(
        self,
        urls: Urls,
        *,
        secret: bytes | str = b"",
        timeout_ms: float = CLIENT_TIMEOUT_MS,
        server_election_grace_delay_ms: float = CLIENT_SERVER_ELECTION_GRACE_DELAY_MS,
        heartbeat_ms: float = 0,
        sndhwm: int = SNDHWM,
        deadline_s: float | None = None,
        limits: Limits | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """As `zmqraft.ZmqRaftClient`, in a coroutine: RuntimeError when no event loop is running."""
        session = cluster_session(urls, secret, timeout_ms, server_election_grace_delay_ms, heartbeat_ms)
        feed = self._new_feed(session)
        super().__init__(session, deadline_s=deadline_s, sndhwm=sndhwm, limits=limits, context=context, feed=feed)

    @property
    def leader_url(self) -> str | None:
        """The url of the leader, while it is known."""
        return self._session.url if self._session.ready else None

    def _new_feed(self, session: ClientSession) -> Feed | None:
        return None
