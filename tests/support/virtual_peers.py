"""Three peers in virtual time, as a client sees them: they lead, die, are cut off, lose messages, and come back.

No Raft in it: one log, which whoever leads appends to. What is real is the protocol towards clients, with the flow
control of RequestEntries, and everything that can go wrong with it.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from support.session_driver import GRACE_S, PEERS, SECRET, TIMEOUT_S, URLS
from zmqraft.client.session import ClientSession
from zmqraft.client.subscription import Subscription
from zmqraft.constants import ABSENT
from zmqraft.protocol.entry import EntryBatch, EntryType, LogEntry
from zmqraft.protocol.frames import decode_uint
from zmqraft.protocol.schema import Protocols

#: Entries in a reply of RequestEntries, and replies that go out unasked.
_ENTRIES_MAX = 3
_PIPELINE = 5


@dataclass
class _Stream:
    next_index: int
    last_index: int
    unacknowledged: list[int] = field(default_factory=list)


class VirtualPeers:
    """The cluster, the network and the clock; drives one session, and a subscription if there is one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.leader: str | None = "1"
        self.dead: set[str] = set()
        #: A leader that accepts everything and commits nothing: cut off from the others, and does not know.
        self.isolated: str | None = None
        self.loss = 0.0
        self.log: list[LogEntry] = []
        self.index_by_id: dict[bytes, int] = {}
        self.session = ClientSession(
            [(None, url) for url in URLS.values()], secret=SECRET, timeout_s=TIMEOUT_S, grace_delay_s=GRACE_S
        )
        self.subscription: Subscription | None = None
        self._peer_by_url = {url: peer_id for peer_id, url in URLS.items()}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_count = 0
        self._broken: set[int] = set()
        self._last_arrival: dict[object, float] = {}
        self._streams: dict[tuple[int, bytes], _Stream] = {}

    # --- time -----------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass: deliver, tick, send."""
        end = self.now + seconds
        while True:
            self._turn()
            times = [self.session.next_time(), self.subscription.next_time() if self.subscription else None]
            times.append(self._events[0][0] if self._events else None)
            at = max(min((t for t in times if t is not None), default=end), self.now)
            if at > end or (at == self.now and not self._events):
                at = min(max(at, self.now + 0.001), end)
            self.now = at
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            if self.now >= end:
                return

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self._event_count += 1
        heapq.heappush(self._events, (self.now + delay, self._event_count, action))

    def _turn(self) -> None:
        for ticking in (self.session, self.subscription, self.session):
            if ticking is not None:
                ticking.tick(self.now)
        for ticking in (self.session, self.subscription):
            at = ticking.next_time() if ticking is not None else None
            assert at is None or at > self.now, "would be called again and again"
        while (frames := self.session.next_frames()) is not None:
            assert self.session.url is not None
            link, peer_id, message = self.session.link, self._peer_by_url[self.session.url], list(frames)
            self._in_order((link, "to"), lambda m=message, p=peer_id, k=link: self._arrive(k, p, m))
            self.session.sent()

    def _in_order(self, route: object, action: Callable[[], None]) -> None:
        """After a random delay, but not before what took the same route earlier."""
        arrival = max(self.now + self.random.choice((0.0, 0.001, 0.01, 0.05)), self._last_arrival.get(route, 0.0))
        self._last_arrival[route] = arrival
        self.at(arrival - self.now, action)

    # --- peers ----------------------------------------------------------------------------------------------------

    def commit(self, request_id: bytes, data: bytes) -> int:
        """Append once; publish it."""
        if request_id not in self.index_by_id:
            index = len(self.log) + 1
            self.log.append(LogEntry(index, 1, EntryType.STATE, request_id, data))
            self.index_by_id[request_id] = index
            self._publish([index])
        return self.index_by_id[request_id]

    def heartbeat(self) -> None:
        """Publish a heartbeat, now and every half second."""
        self._publish([])
        self.at(0.5, self.heartbeat)

    def _publish(self, indexes: list[int]) -> None:
        subscription = self.subscription
        if subscription is None or self.leader is None or self.leader in self.dead:
            return
        generation, url = subscription.generation, self.pub_url(self.leader)
        if subscription.url != url or self.random.random() < self.loss:
            return
        frames = [self.log[index - 1].to_bytes() for index in indexes]
        message = Protocols.STATE_BROADCAST.encode_request(SECRET, 1, len(self.log), frames)

        def deliver() -> None:
            if subscription.generation == generation:
                subscription.receive(message, self.now)

        self._in_order((generation, "published"), deliver)

    @staticmethod
    def pub_url(peer_id: str) -> str:
        return f"tcp://10.0.0.{peer_id}:9047"

    def _reply(self, link: int, message_id: bytes, frames: list[bytes]) -> None:
        def deliver() -> None:
            if self.session.link == link and link not in self._broken:
                self.session.receive([message_id, *frames], self.now)

        self._in_order((link, "from"), deliver)

    def _arrive(self, link: int, peer_id: str, message: list[bytes]) -> None:
        if self.random.random() < self.loss:
            # A server may drop an update that it has no room for; all else is lost only with the connection.
            if message[1] == b"=" and self.random.random() < 0.5:
                return
            self._broken.add(link)
        if peer_id in self.dead or link in self._broken:
            return
        message_id, message_type, _, *arguments = message
        leads = self.leader == peer_id or self.isolated == peer_id
        leader = peer_id if leads else self.leader
        if message_type == b"^":
            self._reply(link, message_id, Protocols.REQUEST_CONFIG.encode_response(leads, leader, PEERS))
        elif message_type == b"=":
            self._update(link, message_id, arguments[0], peer_id, leads)
        elif message_type == b"<":
            self._entries(link, message_id, arguments, leads, leader)
        elif message_type == b"*":
            self._reply(link, message_id, Protocols.REQUEST_BROADCAST_URL.encode_response(self.pub_url(peer_id)))

    def _update(self, link: int, message_id: bytes, data: bytes, peer_id: str, leads: bool) -> None:
        encode = Protocols.REQUEST_UPDATE.encode_response
        if not leads:
            self._reply(link, message_id, encode(False, self.leader))
            return
        if peer_id == self.isolated or self.random.random() < 0.2:
            self._reply(link, message_id, encode(True, ABSENT))
        if peer_id != self.isolated:
            self._reply(link, message_id, encode(True, self.commit(message_id, data)))

    def _entries(self, link: int, message_id: bytes, arguments: list[bytes], leads: bool, leader: str | None) -> None:
        key = (link, message_id)
        previous = decode_uint(arguments[0])
        count = decode_uint(arguments[1]) if len(arguments) > 1 and arguments[1] else None
        stream = self._streams.get(key)
        if count == 0:
            self._streams.pop(key, None)
            return
        if not leads:
            self._streams.pop(key, None)
            self._reply(link, message_id, Protocols.REQUEST_ENTRIES.encode_response(0, leader))
            return
        if stream is not None and stream.unacknowledged and stream.unacknowledged[0] == previous:
            stream.unacknowledged.pop(0)
        else:
            last = len(self.log) if count is None else min(len(self.log), previous + count)
            stream = self._streams[key] = _Stream(previous + 1, last)
            if previous >= last:
                self._reply(link, message_id, Protocols.REQUEST_ENTRIES.encode_response(1, None, len(self.log)))
        while stream.next_index <= stream.last_index and len(stream.unacknowledged) < _PIPELINE:
            self._send_entries(key, stream)

    def _send_entries(self, key: tuple[int, bytes], stream: _Stream) -> None:
        last = min(stream.next_index + _ENTRIES_MAX - 1, stream.last_index)
        frames = [entry.to_bytes() for entry in self.log[stream.next_index - 1 : last]]
        status = 1 if last == stream.last_index else 2
        self._reply(*key, Protocols.REQUEST_ENTRIES.encode_response(status, None, last, frames))
        stream.next_index = last + 1
        stream.unacknowledged.append(last)
        if status == 1:
            self._streams.pop(key, None)

    def entries(self, batch: EntryBatch) -> bool:
        """Whether these entries are those of the log."""
        return list(batch) == self.log[batch.first_index - 1 : batch.last_index]
