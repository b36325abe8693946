"""The client's side of the protocol without socket, clock or thread: the table of requests, whom to ask, when again.

The blocking clients and those for asyncio drive the same `ClientSession`:

- Keep one connection to ``session.url`` (none while that is None), and make a new one whenever ``session.link`` has
  changed. A connection must not come back by itself after it broke: what was in it is lost, and the session, which
  sees only silence, sends everything again over a new one, in the order in which it was started.
- Send what `next_frames` returns and then call `sent`; when the socket takes no more, ask again later.
- Hand every message of the present connection to `receive`, and call `tick` at the latest at `next_time`.

Times are seconds of any clock that does not go back; they come in as arguments. Sinks are called from within.

Theory of operation. A session that follows the leader is IDLE until something is asked of it. It asks one peer after
the other whether it leads (PROBING), waits for the grace delay when a pass over all of them found no leader (PAUSED),
and sends everything to the one that does (READY). A reply that says "not the leader", and a leader that is silent,
lead back to PROBING. A session for one peer is READY from the first request on, and makes a new connection to it
where the other one would look for another peer.

Whether a leader that owes a reply is well is decided by what else it has answered within the timeout; see `Silence`. A
request that is merely queued behind others is not sent again: only one that was overtaken by a later one is.
"""

from __future__ import annotations

import enum
import math
import sys
from collections import OrderedDict, deque
from collections.abc import Sequence

from zmqraft.client.deadlines import DeadlineQueue
from zmqraft.client.leader_search import LeaderSearch
from zmqraft.client.requests import Request, ResultSink, Silence, decode_cluster_info
from zmqraft.client.results import SessionCounters
from zmqraft.constants import CLIENT_MESSAGE_ID_MAX, REQUEST_CONFIG
from zmqraft.errors import (
    ClosedError,
    ConfigurationError,
    LocalProtocolError,
    NotLeaderError,
    RemoteProtocolError,
    RequestTimeoutError,
)
from zmqraft.protocol.frames import encode_uint
from zmqraft.protocol.schema import Protocols

__all__ = ["ClientSession"]


#: The sequence number of what has not been sent over the present connection: nothing has overtaken it.
_UNSENT = sys.maxsize


class _Phase(enum.Enum):
    IDLE = enum.auto()
    PROBING = enum.auto()
    PAUSED = enum.auto()
    READY = enum.auto()


class ClientSession:
    """All requests of one client. See the module for how to drive it. Not thread-safe."""

    def __init__(
        self,
        peers: Sequence[tuple[str | None, str]],
        *,
        secret: bytes,
        timeout_s: float,
        grace_delay_s: float,
        heartbeat_s: float = 0.0,
        follows_leader: bool = True,
    ) -> None:
        """``peers`` are (id or None, canonical url): the seeds, or the one peer if ``follows_leader`` is False.

        A reply is overdue after ``timeout_s``; a pass over all peers that found no leader is followed by
        ``grace_delay_s``; every ``heartbeat_s`` (0: never) the leader is asked for the configuration.
        """
        if not peers or (not follows_leader and len(peers) > 1):
            raise ConfigurationError(f"a client needs {'a url' if follows_leader else 'one url'}, not {len(peers)}")
        #: The number of the connection that is wanted, and where it goes to.
        self.link = 0
        self.url: str | None = None
        self.secret = secret
        self.follows_leader = follows_leader
        #: The connection whose peer is known to answer READ_INDEX.
        self.reads_link = 0
        self.counters = SessionCounters()
        self.closed = False
        self._timeout_s = timeout_s
        self._grace_delay_s = grace_delay_s
        self._heartbeat_s = heartbeat_s
        self._peers = LeaderSearch(peers)
        self._phase = _Phase.IDLE
        self._phase_ends = math.inf
        self._next_id = 0
        #: Requests of callers by message id, in the order in which they were started.
        self._table: dict[bytes, Request] = {}
        #: The session's own questions whether a peer leads, by message id.
        self._own: dict[bytes, Request] = {}
        #: Requests that a reply is due for, the one longest untouched first.
        self._waiting: OrderedDict[bytes, Request] = OrderedDict()
        self._deadlines: DeadlineQueue[Request] = DeadlineQueue()
        #: Messages to be sent; with a request, only as long as that is live.
        self._outbox: deque[tuple[Request | None, list[bytes]]] = deque()
        self._sequence = 0
        self._overtaken_below = 0
        self._heard_at = -math.inf
        #: Whether a request was given up to which the peer owed a reply, and nothing was heard from it since.
        self._unanswered = False
        self._committed_at = -math.inf
        self._heartbeat_at = math.inf

    # --- for the one who drives the session -------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the connection goes to where the requests are to go."""
        return self._phase is _Phase.READY

    @property
    def request_count(self) -> int:
        """How many requests are in flight or waiting for a leader."""
        return len(self._table)

    def start(self, request: Request, now: float) -> None:
        """Begin a request. Its sink hears of the end, perhaps from within this call."""
        if self.closed:
            request.sink.set_exception(ClosedError("the client is closed"))
            return
        request.live = True
        if request.deadline < math.inf:
            self._deadlines.add(request)
        if request.id in self._table:
            self._start_twin(self._table[request.id], request)
            return
        if not request.id:
            request.frames[0] = self.new_id()
        self._table[request.id] = request
        if self._phase is _Phase.READY:
            self._send_request(request, now)
        elif self._phase is _Phase.IDLE:
            self._search(None, None, now)

    def cancel(self, request: Request) -> bool:
        """End a request without an outcome. Returns False when it had ended before.

        An update that was sent may or may not get into the log.
        """
        if not request.live:
            return False
        self._give_up(request)
        self._remove(request)
        return True

    def look_for_leader(self, now: float) -> None:
        """Search anew, because there is reason to think that the leader is another one, or is dead."""
        if self._phase is _Phase.READY:
            self._lost(now)

    def receive(self, frames: Sequence[bytes], now: float) -> None:
        """Act on a message of the present connection. Malformed and unknown ones are dropped and counted."""
        request = (self._table.get(frames[0]) or self._own.get(frames[0])) if frames else None
        if request is None:
            self.counters.unknown_replies += 1
            return
        try:
            request.receive(frames[1:], self, now)
        except RemoteProtocolError:
            self.counters.malformed_replies += 1
        else:
            self._heard_at = now

    def next_frames(self) -> list[bytes] | None:
        """The message to send next, without removing it; None when there is none."""
        outbox = self._outbox
        while outbox:
            request, frames = outbox[0]
            if request is None or request.live:
                return frames
            outbox.popleft()
        return None

    def sent(self) -> None:
        """What `next_frames` returned was handed to the socket."""
        request, _ = self._outbox.popleft()
        if request is not None:
            self._sequence += 1
            request.sequence = self._sequence

    def next_time(self) -> float | None:
        """When `tick` is to be called at the latest; None: nothing happens until something comes in."""
        times = [self._phase_ends]
        if self._phase is _Phase.READY:
            times.append(self._heartbeat_at if not self._unanswered else -math.inf)
            if self._waiting:
                times.append(next(iter(self._waiting.values())).touched + self._timeout_s)
        elif self._phase is _Phase.IDLE and self._wanted:
            return -math.inf
        deadline = self._deadlines.next_time()
        if deadline is not None:
            times.append(deadline)
        earliest = min(times)
        return earliest if earliest < math.inf else None

    def tick(self, now: float) -> None:
        """Do what is due at ``now``."""
        while (request := self._deadlines.pop_due(now)) is not None:
            request.deadline = math.inf
            self._give_up(request)
            self._fail_one(request, RequestTimeoutError(request.timeout_message()))
        if self._phase is _Phase.IDLE:
            if self._wanted and not self.closed:
                self._search(None, None, now)
        elif self._phase is _Phase.READY:
            self._tick_ready(now)
        elif now >= self._phase_ends:
            self._phase_over(now)

    def close(self, error: Exception | None = None) -> None:
        """Fail everything that is under way, with ``error`` or ClosedError. May be called twice."""
        self.closed = True
        self._disconnect()
        for request in list(self._table.values()):
            for one in [request, *(request.twins or ())]:
                self._fail_one(one, error or ClosedError("the client was closed before the request had ended"))

    # --- for requests, which know what a reply means ----------------------------------------------------------------

    def finish(self, request: Request, result: object) -> None:
        """The request, and all with the same id, have succeeded."""
        twins = self._end(request)
        request.sink.set_result(result)
        for twin in twins:
            twin.sink.set_result(result)

    def learn(self, peers: Sequence[tuple[str, str]]) -> None:
        """The leader has told its configuration, (id, url) each: later searches look there too."""
        if self.follows_leader:
            self._peers.learn(peers)

    def committed(self, request: Request, index: int, now: float) -> None:
        """The request has succeeded, and proved that the leader commits."""
        self._committed_at = now
        if request.sequence < _UNSENT:
            self._overtaken_below = max(self._overtaken_below, request.sequence)
        self.finish(request, index)

    def fail(self, request: Request, error: Exception) -> None:
        """The request, and all with the same id, have failed for good."""
        twins = self._end(request)
        request.sink.set_exception(error)
        for twin in twins:
            twin.sink.set_exception(error)

    def accepted(self, request: Request, now: float) -> None:
        """The request was taken, its result comes later: the timer starts anew."""
        self.await_reply(request, now)

    def not_leader(self, request: Request, leader_id: str | None, now: float) -> None:
        """The peer does not lead; perhaps the one that it named does."""
        if self.follows_leader:
            if self._phase is _Phase.READY:
                self._search(self.url, leader_id, now)
        else:
            self.fail(request, NotLeaderError(leader_id))

    # --- for streams ------------------------------------------------------------------------------------------------

    def new_id(self) -> bytes:
        """A message id that no live request has."""
        while True:
            self._next_id = self._next_id % CLIENT_MESSAGE_ID_MAX + 1
            message_id = encode_uint(self._next_id)
            if message_id not in self._table and message_id not in self._own:
                return message_id

    def change_id(self, request: Request, frames: list[bytes]) -> None:
        """Give a request other frames, with a new id: replies to the old one are no longer known."""
        del self._table[request.id]
        self._waiting.pop(request.id, None)
        request.frames = [self.new_id(), *frames]
        self._table[request.id] = request

    def send(self, frames: list[bytes], request: Request | None = None) -> None:
        """Send a message beside those that start requests; it is dropped when the connection is lost."""
        if self._phase is _Phase.READY:
            self._outbox.append((request, frames))

    def send_again(self, request: Request, now: float) -> None:
        """Send the request itself again, as soon as there is a leader."""
        if self._phase is _Phase.READY:
            self._send_request(request, now)

    def await_reply(self, request: Request, now: float) -> None:
        """A reply to the request is due within the timeout from ``now`` on."""
        request.touched = now
        self._waiting[request.id] = request
        self._waiting.move_to_end(request.id)

    def await_nothing(self, request: Request) -> None:
        """No reply to the request is due."""
        self._waiting.pop(request.id, None)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _start_twin(self, request: Request, twin: Request) -> None:
        if type(twin) is not type(request):
            error = LocalProtocolError(f"request id {twin.id.hex()} is in use for another kind of request")
            self._fail_one(twin, error)
        else:
            request.twins = [*(request.twins or ()), twin]

    def _send_request(self, request: Request, now: float) -> None:
        if request.prepare(self, now):
            request.sequence = _UNSENT
            self._outbox.append((request, request.frames))
            self.await_reply(request, now)

    def _send_all(self, now: float) -> None:
        for request in list(self._table.values()):
            self._send_request(request, now)

    def _fail_one(self, request: Request, error: Exception) -> None:
        self._remove(request)
        request.sink.set_exception(error)

    def _end(self, request: Request) -> list[Request]:
        """Take a request and its twins out of everything. Returns the twins."""
        twins = request.twins or []
        request.twins = None
        self._remove(request)
        for twin in twins:
            self._release(twin)
        return twins

    def _remove(self, request: Request) -> None:
        """Take a request out of everything; if it has twins, one of them takes its place."""
        if not request.live:
            return
        self._release(request)
        holder = self._table.get(request.id)
        if holder is not request:
            if holder is not None and holder.twins is not None and request in holder.twins:
                holder.twins.remove(request)
            return
        if request.twins:
            self._replace(request, request.twins)
            return
        del self._table[request.id]
        self._waiting.pop(request.id, None)
        request.ended(self)

    def _give_up(self, request: Request) -> None:
        """Nobody waits for its reply any longer. Whether the peer is silent has to be found out all the same: requests
        that are all given up within the timeout would never be overdue."""
        if self._waiting.get(request.id) is request and self._heard_at < request.touched:
            self._unanswered = True

    def _release(self, request: Request) -> None:
        request.live = False
        if request.deadline < math.inf:
            self._deadlines.ended()

    def _replace(self, request: Request, twins: list[Request]) -> None:
        heir = twins[0]
        request.twins = None
        heir.twins = twins[1:]
        heir.touched = request.touched
        heir.sequence = request.sequence
        self._table[request.id] = heir
        if request.id in self._waiting:
            self._waiting[request.id] = heir
        self._outbox = deque((heir if one is request else one, frames) for one, frames in self._outbox)

    # --- the leader -------------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> bool:
        return bool(self._table) or (self._heartbeat_s > 0 and not self.closed)

    def _connect(self, url: str | None) -> None:
        """Want a new connection: what was said over the old one does not count any longer."""
        self.link += 1
        self.url = url
        self._outbox.clear()
        self._waiting.clear()
        self._own.clear()
        self._sequence = self._overtaken_below = 0
        self._unanswered = False
        self._phase_ends = math.inf

    def _disconnect(self) -> None:
        self._connect(None)
        self._phase = _Phase.IDLE

    def _lost(self, now: float) -> None:
        """The peer is silent."""
        self.counters.searches += 1
        self._search(self.url, None, now)

    def _search(self, suspect: str | None, leader_id: str | None, now: float) -> None:
        self._peers.begin(suspect)
        if self.follows_leader:
            self._ask_next(leader_id, now)
        else:
            self._connect(self._peers.urls[0])
            self._become_ready(now)

    def _ask_next(self, leader_id: str | None, now: float) -> None:
        url = self._peers.next(leader_id)
        self._connect(url)
        if url is None:
            self._phase = _Phase.PAUSED
            self._phase_ends = now + self._grace_delay_s
            return
        self._phase = _Phase.PROBING
        self._phase_ends = now + self._timeout_s
        self._ask_own(_Probe(self.secret))

    def _ask_own(self, question: Request) -> None:
        question.live = True
        question.frames[0] = self.new_id()
        self._own[question.id] = question
        self._outbox.append((question, question.frames))

    def _phase_over(self, now: float) -> None:
        if not self._wanted:
            self._disconnect()
        elif self._phase is _Phase.PAUSED:
            self._peers.next_pass()
            self._ask_next(None, now)
        elif self.url is not None:
            self._peers.silent(self.url)
            self._ask_next(None, now)

    def probed(self, question: Request, frames: Sequence[bytes], now: float) -> None:
        """The reply to the session's own question whether the peer leads. Raises RemoteProtocolError."""
        info = decode_cluster_info(frames)
        del self._own[question.id]
        self.await_nothing(question)
        self.learn(info.peers)
        if self._phase is _Phase.PROBING:
            if info.is_leader:
                self._become_ready(now)
            else:
                self._ask_next(info.leader_id, now)
        elif not info.is_leader and self.follows_leader:
            self._search(self.url, info.leader_id, now)

    def _become_ready(self, now: float) -> None:
        self._phase = _Phase.READY
        self._phase_ends = math.inf
        self._heartbeat_at = now + self._heartbeat_s if self._heartbeat_s > 0 else math.inf
        self.counters.leaders += self.follows_leader
        self._send_all(now)

    # --- overdue replies --------------------------------------------------------------------------------------------

    def _tick_ready(self, now: float) -> None:
        while self._waiting and self._phase is _Phase.READY:
            request = next(iter(self._waiting.values()))
            if request.touched + self._timeout_s > now:
                break
            self._overdue(request, now)
        if self._phase is _Phase.READY and self._unanswered:
            self._unanswered = False
            self._check(now)
        if self._phase is _Phase.READY and now >= self._heartbeat_at:
            self._heartbeat_at = now + self._heartbeat_s
            self._check(now)

    def _overdue(self, request: Request, now: float) -> None:
        if request.silence is Silence.COMMITS:
            if self._committed_at + self._timeout_s <= now:
                self._lost(now)
            elif request.sequence < self._overtaken_below:
                self._repeat(request, now)
            else:
                self.await_reply(request, now)
        elif self._heard_at + self._timeout_s > now:
            if request.silence is Silence.REPLIES:
                self._repeat(request, now)
            else:
                self.await_reply(request, now)
        elif request.silence is Silence.REPLIES or self._own:
            self._lost(now)
        else:
            self._check(now)
            self.await_reply(request, now)

    def _repeat(self, request: Request, now: float) -> None:
        self.counters.repeated_requests += 1
        self._send_request(request, now)

    def _check(self, now: float) -> None:
        """Ask the leader whether it still is one; one question at a time."""
        if not self._own:
            question = _Probe(self.secret)
            self._ask_own(question)
            self.await_reply(question, now)


class _Probe(Request):
    """RequestConfig, for the session itself."""

    __slots__ = ()

    def __init__(self, secret: bytes) -> None:
        super().__init__([b"", *Protocols.REQUEST_CONFIG.encode_request(REQUEST_CONFIG, secret)], _NO_SINK)

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        session.probed(self, frames, now)


class _NoSink:
    def set_result(self, result: object, /) -> None:
        pass

    def set_exception(self, exception: BaseException, /) -> None:
        pass


_NO_SINK: ResultSink = _NoSink()
