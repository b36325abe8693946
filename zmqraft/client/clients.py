"""The blocking clients: ZmqProtocolSocket and ZmqRaftPeerClient for one peer, ZmqRaftClient for the leader.

Each method here is one request of SPEC section 2. How they travel is in `base` and `session`. The rule: what reads as
"raises RequestTimeoutError" of an update says nothing of whether it got into the log; repeat it with the same id.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

import zmq

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
from zmqraft.client.base import ClientBase
from zmqraft.client.read_request import ReadIndexRequest
from zmqraft.client.requests import (
    BroadcastUrlRequest,
    ClusterInfoRequest,
    LogInfoRequest,
    ResultSink,
    UpdateRequest,
)
from zmqraft.client.results import ClusterInfo, LogInfo
from zmqraft.client.session import ClientSession
from zmqraft.client.session_sockets import Feed
from zmqraft.client.stream import EntriesStream
from zmqraft.client.updates_stream import UpdatesStream
from zmqraft.constants import (
    CLIENT_SERVER_ELECTION_GRACE_DELAY_MS,
    CLIENT_SNDHWM,
    CLIENT_TIMEOUT_MS,
)

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
        sndhwm: int = CLIENT_SNDHWM,
        limits: Limits | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """``url`` is ``host``, ``host:port`` or ``tcp://host:port``; the port is 8047 by default.

        ``secret`` names the cluster. A peer that owes a reply for ``timeout_ms`` gets everything again over a new
        connection. ``deadline_s`` is the default for requests without their own, None: they wait for ever.
        ``sndhwm`` is ZMQ_SNDHWM, in messages; a larger one makes many small updates faster. ``context`` is the
        process's own by default. Raises ConfigurationError.
        """
        session = peer_session(url, secret, timeout_ms)
        feed = self._new_feed(session)
        super().__init__(session, deadline_s=deadline_s, sndhwm=sndhwm, limits=limits, context=context, feed=feed)

    def _new_feed(self, session: ClientSession) -> Feed | None:
        return None


class RaftRequests(ClientBase):
    """The requests of clients to peers."""

    def request_update(self, request_id: bytes | None, data: Bytes, *, deadline_s: float | None = None) -> int:
        """Append ``data`` to the replicated log, and wait until it is committed and applied; the index of its entry.

        ``request_id`` (see `new_request_id`; None makes one) makes this idempotent: repeated with the same id within
        hours, by this client or another, the entry gets into the log once, and the index is the same.

        Raises RequestTimeoutError after ``deadline_s``: the update may or may not be in the log, repeat it with the
        same id. Raises RequestExpiredError when the id is too old or too far in the future, NotLeaderError when this
        client talks to one peer and that does not lead, LocalProtocolError when ``data`` is empty or too large,
        ClosedError when the client is closed.
        """
        return self._result(self._start_update(request_id, data, deadline_s))

    def submit_update(
        self, data: Bytes, *, request_id: bytes | None = None, deadline_s: float | None = None
    ) -> Future[int]:
        """As `request_update`, without waiting for the commit: a future of the index.

        Many may be in flight; they are sent in the order in which they were submitted, and, when the leader is lost,
        sent again in that order. More than ``limits`` allows wait here, until ``deadline_s`` (RequestTimeoutError).
        The future may be cancelled, which says nothing of whether the update gets into the log.
        """
        return self._start_update(request_id, data, deadline_s)

    def request_updates(
        self,
        updates: Iterable[Bytes | tuple[bytes | None, Bytes]],
        in_flight: int = IN_FLIGHT,
        *,
        deadline_s: float | None = None,
    ) -> UpdatesStream:
        """Append all ``updates``, data or (request id, data) each: an iterator over their indexes, in their order.

        Up to ``in_flight`` are taken, sent, and not returned yet; more are taken as the caller iterates, in its
        thread. So an endless generator is fine, but one that waits for its next item holds up the indexes as well:
        `submit_update` is for those. When the leader is lost, what is under way is sent again, with the same ids and
        in the same order. ``deadline_s`` is for each update.

        The default ``sndhwm`` of 2 costs more than half of the throughput. So connections that the client makes from
        now on have 1000, if that is more; one that exists keeps what it has. Where it matters, make the client with
        ``sndhwm=1000``, or begin with this. A connection that is lost takes its queue along, however long.

        Iterating raises what `request_update` does for the first update that fails for good, or what ``updates``
        itself raises, after the indexes of all updates before it. From then on nothing more is sent or taken; what
        was sent behind it may or may not be in the log, so give ids of your own where that matters. The iterator is
        to be closed, by ``with`` or ``close()``, when it is not read to its end; the same holds for what it had sent.

        This call raises ConfigurationError when ``in_flight`` is below 1, or for a wrong deadline, and ClosedError.
        """
        check_in_flight(in_flight)
        self._deadline(deadline_s)

        def make(item: object, sink: ResultSink) -> UpdateRequest:
            make_request, _ = make_update(self._secret, *split_update(item), self._limits.data_size_max)
            return cast(UpdateRequest, make_request(sink, self._deadline(deadline_s)))

        return UpdatesStream(self._io_thread, self._session, self._limit, iter(updates), make, in_flight)

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

        A snapshot comes first if the log does not reach that far back; from byte ``snapshot_offset`` on, for one who
        has its beginning. With ``linearizable`` all that was committed before this call is in it, also if the leader
        has just been deposed, and reading it may raise NotSupportedError; see `read_index`. ``deadline_s`` is for the
        whole stream. See `EntriesStream` for what reading it raises; this call raises LocalProtocolError and
        ClosedError.
        """
        flow = make_entries_flow(previous_index, count, snapshot_offset)
        deadline = self._deadline(deadline_s)
        return EntriesStream(self._io_thread, self._session, self._secret, flow, deadline, linearizable=linearizable)

    def read_index(self, *, deadline_s: float | None = None) -> int:
        """An index for a linearizable read: who has applied the entries up to there sees all that was committed before
        this call.

        The leader makes sure that it still leads, with one round to a majority, which all reads that come meanwhile
        share. Raises NotSupportedError when the leader is a peer of zmq-raft, RequestTimeoutError and ClosedError; and
        NotLeaderError when this client talks to one peer and that does not lead.
        """
        return cast(int, self._ask(partial(ReadIndexRequest, self._secret), deadline_s))

    def submit_read_index(self, *, deadline_s: float | None = None) -> Future[int]:
        """As `read_index`, without waiting: a future of the index. Many may be under way, and share their rounds."""
        return self._start(partial(ReadIndexRequest, self._secret), deadline_s)

    def request_config(self, *, deadline_s: float | None = None) -> ClusterInfo:
        """Who leads, and which peers there are. Raises RequestTimeoutError and ClosedError."""
        return cast(ClusterInfo, self._ask(partial(ClusterInfoRequest, self._secret), deadline_s))

    def request_log_info(self, *, deadline_s: float | None = None) -> LogInfo:
        """Term, indexes and sizes of a peer's log. Raises RequestTimeoutError and ClosedError."""
        return cast(LogInfo, self._ask(partial(LogInfoRequest, self._secret), deadline_s))

    def request_broadcast_url(self, *, deadline_s: float | None = None) -> str | None:
        """Where the peer publishes entries while it leads; None when it does not publish.

        Raises RequestTimeoutError (also when its state machine does not answer) and ClosedError.
        """
        return cast("str | None", self._ask(partial(BroadcastUrlRequest, self._secret), deadline_s))

    def request_config_update(
        self, request_id: bytes | None, peers: Iterable[tuple[str, str]], *, deadline_s: float | None = None
    ) -> int:
        """Change the members of the cluster to ``peers``, (id, url) each; the index of the entry that began it.

        Idempotent by ``request_id``, as `request_update`, and with the same errors; moreover
        ConfigUpdateRefusedError when the leader refuses the list and ConfigUpdateInProgressError while another change
        is under way.
        """
        return cast(int, self._ask(make_config_update(self._secret, request_id, peers), deadline_s))

    def _start_update(self, request_id: bytes | None, data: Bytes, deadline_s: float | None) -> Future[int]:
        make, size = make_update(self._secret, request_id, data, self._limits.data_size_max)
        return self._start(make, deadline_s, size)


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
        sndhwm: int = CLIENT_SNDHWM,
        deadline_s: float | None = None,
        limits: Limits | None = None,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        """``urls`` are those of any peers: one, several, or (id, url) pairs; the others are learned from them.

        A peer that owes a reply for ``timeout_ms`` makes the client look for the leader at the next one. While no
        peer knows of one, it waits for ``server_election_grace_delay_ms`` in between. Every ``heartbeat_ms`` (0:
        never) the leader is asked for the configuration, so that a client without requests notices a change. The
        rest is as for `ZmqProtocolSocket`. Raises ConfigurationError.
        """
        session = cluster_session(urls, secret, timeout_ms, server_election_grace_delay_ms, heartbeat_ms)
        feed = self._new_feed(session)
        super().__init__(session, deadline_s=deadline_s, sndhwm=sndhwm, limits=limits, context=context, feed=feed)

    @property
    def leader_url(self) -> str | None:
        """The url of the leader, while it is known."""
        return self._session.url if self._session.ready else None

    def _new_feed(self, session: ClientSession) -> Feed | None:
        return None
