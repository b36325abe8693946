"""Links in virtual time, as a DEALER that is connected to a ROUTER over TCP behaves.

Knows nothing of what messages mean. The rule: within one connection messages arrive in their order or not at all, and
when it breaks a last part of what is under way is lost, in both directions. The next connection has a new identity and
may overtake what the receiver has not read of the old one: that is the only way in which messages change places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

__all__ = ["Link", "Network"]

Frames = list[bytes]


@dataclass(slots=True)
class _Connection:
    """One life of a link. ``limit``: of what was sent, so many messages arrive; None while it lasts."""

    number: int
    sent: int = 0
    limit: int | None = None
    #: No message arrives before the one that was sent before it.
    request_at: float = 0.0
    reply_at: float = 0.0
    arrived: int = 0


@dataclass(slots=True)
class Link:
    """From the DEALER of ``source`` to the ROUTER of ``target``."""

    source: str
    target: str
    connection: _Connection = field(default_factory=lambda: _Connection(1))
    #: When something was last handed to the DEALER.
    sent_at: float = -1.0
    #: What waits for the end of a cut: (is a reply, frames, connection).
    stalled: deque[tuple[bool, Frames, _Connection]] = field(default_factory=deque)

    @property
    def identity(self) -> bytes:
        """What the ROUTER sees."""
        return f"{self.source}>{self.target}#{self.connection.number}".encode()


class Network:
    """All links. Who drives it sets the attributes, and gives ``at`` (schedule) and two ways to hand messages on."""

    def __init__(
        self,
        random: Random,
        at: Callable[[float, Callable[[], None]], None],
        on_request: Callable[[str, Frames], None],
        on_reply: Callable[[str, str, Frames], None],
    ) -> None:
        """``on_request(target, [identity, *frames])``; ``on_reply(source, target, frames)``, to the source."""
        self._random = random
        self._at = at
        self._on_request = on_request
        self._on_reply = on_reply
        self._links: dict[tuple[str, str], Link] = {}
        self.now = 0.0
        #: How long a message takes, in seconds.
        self.delay_min = 0.0005
        self.delay_max = 0.001
        #: The probability that a message breaks its connection, that a reply is dropped, that a message comes twice.
        self.loss = 0.0
        self.reply_loss = 0.0
        self.duplicates = 0.0
        #: One-way links, (from, to), on which messages take so much longer.
        self.slow: dict[tuple[str, str], float] = {}
        #: One-way cuts, (from, to): nothing gets there until they end.
        self.cut: set[tuple[str, str]] = set()
        #: What has really happened, by fault.
        self.counts = dict.fromkeys(("broken", "dropped", "duplicated", "stalled", "delayed", "overtaken"), 0)
        #: For tests that take the network's part: (is a reply, source, target, frames) to whether it may pass.
        self.filter: Callable[[bool, str, str, Frames], bool] | None = None

    def link(self, source: str, target: str) -> Link:
        """The link, made when it is first asked for."""
        pair = (source, target)
        link = self._links.get(pair)
        if link is None:
            link = self._links[pair] = Link(source, target)
        return link

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, source: str, target: str, frames: Frames, *, keep: bool = True) -> None:
        """A message from a DEALER. As with a high watermark of 1, what need not be kept gives way to one before it."""
        link = self.link(source, target)
        if link.sent_at == self.now and not keep:
            return
        link.sent_at = self.now
        if self.filter is not None and not self.filter(False, source, target, frames):
            return
        if self.loss and self._random.random() < self.loss:
            self.counts["broken"] += 1
            self.reset(source, target)
            return
        self._pass(link, False, frames, link.connection)
        if self.duplicates and self._random.random() < self.duplicates:
            # As if it had been repeated, since there was no answer in time.
            self.counts["duplicated"] += 1
            self._pass(link, False, frames, link.connection)

    def reply(self, identity: bytes, frames: Frames) -> None:
        """A message from a ROUTER, to the connection with this identity if that is still there."""
        name, _, number = identity.decode().partition("#")
        source, _, target = name.partition(">")
        link = self._links.get((source, target))
        if link is None or link.connection.number != int(number):
            return
        if self.filter is not None and not self.filter(True, source, target, frames):
            return
        if self.reply_loss and self._random.random() < self.reply_loss:
            self.counts["dropped"] += 1
            return
        self._pass(link, True, frames, link.connection)

    def _pass(self, link: Link, is_reply: bool, frames: Frames, connection: _Connection) -> None:
        way = (link.target, link.source) if is_reply else (link.source, link.target)
        if way in self.cut or (link.stalled and any(item[0] is is_reply for item in link.stalled)):
            self.counts["stalled"] += 1
            link.stalled.append((is_reply, frames, connection))
            return
        delay = self._random.uniform(self.delay_min, self.delay_max) + self.slow.get(way, 0.0)
        if delay > 0.01:
            self.counts["delayed"] += 1
        at = self.now + delay
        if is_reply:
            at = connection.reply_at = max(at, connection.reply_at)

            def reply_arrives() -> None:
                if link.connection is connection:
                    self._on_reply(link.source, link.target, frames)

            self._at(at, reply_arrives)
            return
        at = connection.request_at = max(at, connection.request_at)
        connection.sent += 1
        number = connection.sent
        identity = f"{link.source}>{link.target}#{connection.number}".encode()

        def arrives() -> None:
            if connection.limit is not None and number > connection.limit:
                return
            connection.arrived = number
            if link.connection is not connection and link.connection.arrived:
                self.counts["overtaken"] += 1
            self._on_request(link.target, [identity, *frames])

        self._at(at, arrives)

    # --- connections --------------------------------------------------------------------------------------------------

    def reset(self, source: str, target: str) -> None:
        """The connection breaks, and there is a new one. Of what was under way a first part still arrives."""
        link = self.link(source, target)
        old = link.connection
        old.limit = self._random.randint(old.arrived, old.sent)
        link.stalled.clear()
        link.connection = _Connection(old.number + 1)

    def reset_all(self, peer_id: str) -> None:
        """A process ends: nothing arrives there any more, and what it has sent arrives in part."""
        for (source, target), link in self._links.items():
            if target == peer_id:
                # What was under way is gone with the process that would have read it.
                old = link.connection
                self.reset(source, target)
                old.limit = old.arrived
            elif source == peer_id:
                self.reset(source, target)

    def heal(self, *, breaking: float = 0.0) -> None:
        """End every cut: what waited arrives, or with the probability ``breaking`` its connection had broken."""
        self.cut.clear()
        for link in self._links.values():
            if not link.stalled:
                continue
            if breaking and self._random.random() < breaking:
                self.reset(link.source, link.target)
                continue
            waiting, link.stalled = link.stalled, deque()
            for is_reply, frames, connection in waiting:
                self._pass(link, is_reply, frames, connection)
