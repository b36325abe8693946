"""Following the log without socket, clock or thread: where the leader publishes, and what was missed.

Knows nothing of threads or of who consumes. The rule: a gap is closed by RequestEntries, whatever it comes from: the
start, a message that was lost, another leader, or a consumer so slow that published entries were dropped.

Theory of operation. A session finds the leader; it is asked where it publishes; a SUB socket is wanted there. At once,
and whenever entries are heard of that did not come, a stream of RequestEntries runs until it meets what was published
meanwhile. After a silence of the publisher the leader is looked for again. Drive it as a session: hand in what
the SUB socket brings, then call `tick`, which acts on that and on what the session's requests have brought.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from zmqraft.client.entries_request import EntriesRequest, item_size
from zmqraft.client.requests import BroadcastUrlRequest
from zmqraft.client.session import ClientSession
from zmqraft.client.splicer import Splicer
from zmqraft.errors import ConfigurationError, RemoteProtocolError
from zmqraft.protocol.entries_flow import EntriesFlow, EntriesItem
from zmqraft.protocol.entry import EntryBatch
from zmqraft.protocol.schema import Protocols
from zmqraft.protocol.url import parse_url

__all__ = ["Subscription", "SubscriptionSink", "UrlAnswer", "decode_broadcast"]

#: A publisher's url that is not told within so many silences is given up, and asked for again after one more: there
#: may be no leader, or a state machine that does not publish. Then entries are fetched once in that time.
_ANSWER_SILENCES = 5


class SubscriptionSink(Protocol):
    """Where entries and chunks go. Must not raise."""

    def put(self, item: EntriesItem, /) -> None:
        """The next item; `Subscription.consumed` is to be called for its bytes, for several items at once or not."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Nothing more comes."""


class Subscription:
    """The log from behind ``last_index`` on, in order, without end."""

    def __init__(
        self,
        session: ClientSession,
        sink: SubscriptionSink,
        *,
        last_index: int,
        silence_s: float,
        retry_delay_s: float,
        buffer_size_max: int,
    ) -> None:
        """The publisher is lost when it is silent for ``silence_s``; what failed is tried again after
        ``retry_delay_s``. At most about ``buffer_size_max`` bytes are given out and not consumed, and as many kept
        beyond a gap."""
        #: The number of the SUB socket that is wanted, and where it connects to.
        self.generation = 0
        self.url: str | None = None
        self.topic = session.secret
        self.paused = False
        #: Messages that were malformed, or of another secret that begins with this one.
        self.malformed_messages = 0
        self._session = session
        self._sink = sink
        self._silence_s = silence_s
        self._retry_delay_s = retry_delay_s
        self._buffer_size_max = buffer_size_max
        self._splicer = Splicer(last_index, buffer_size_max)
        self._unconsumed_size = 0
        self._heard_at: float | None = None
        self._answer: UrlAnswer | None = None
        self._answered_link = 0
        self._renew = True
        self._fetch: _Fetch | None = None
        self._fetch_wanted = True
        self._fetch_at: float | None = None

    @property
    def position(self) -> int:
        """The index of the last entry that was given out."""
        return self._splicer.position

    def receive(self, frames: list[bytes], now: float, entries: EntryBatch | None = None) -> None:
        """Take a message of the SUB socket; its entries may come as a batch, instead of as frames."""
        try:
            message = decode_broadcast(frames, self.topic, entries)
        except RemoteProtocolError:
            self.malformed_messages += 1
            return
        self._heard_at = now
        _, last_applied, batch = message
        if last_applied > self._splicer.known_index:
            self._fetch_at = None
        self._splicer.heard_of(last_applied)
        if batch:
            self._splicer.published(batch)

    def consumed(self, size: int, now: float) -> None:
        """The consumer has taken items of ``size`` bytes together (`item_size`)."""
        self._unconsumed_size -= size

    def tick(self, now: float) -> None:
        """Do what is due, and act on what came in."""
        if self._session.closed:
            return
        self._tick_fetch(now)
        self._give_out_published()
        self._tick_publisher(now)
        self._maybe_fetch(now)

    def next_time(self) -> float | None:
        """When `tick` is to be called at the latest."""
        times = [self._fetch_at] if self._fetch is None and self._fetch_needed else []
        if self._answer is None and self._heard_at is not None:
            times.append(self._heard_at + self._silence_s)
        return min((t for t in times if t is not None), default=None)

    def close(self, error: Exception) -> None:
        """The session was closed."""
        self._sink.set_exception(error)

    # --- giving out -------------------------------------------------------------------------------------------------

    @property
    def _has_room(self) -> bool:
        return self._unconsumed_size < self._buffer_size_max

    def _give_out(self, item: EntriesItem) -> None:
        self._unconsumed_size += item_size(item)
        self._sink.put(item)

    def _give_out_published(self) -> None:
        while self._has_room and (batch := self._splicer.take()) is not None:
            self._give_out(batch)

    # --- the publisher ----------------------------------------------------------------------------------------------

    def _tick_publisher(self, now: float) -> None:
        if self._answer is not None:
            if self._answer.done:
                self._answered(self._answer, now)
        elif self._heard_at is None:
            self._ask_url(now)
        elif now >= self._heard_at + self._silence_s:
            # Perhaps only the publisher is gone: the leader is asked for what it has, and for its url again.
            self._renew = True
            self._fetch_wanted = True
            self._session.look_for_leader(now)
            self._ask_url(now)
        elif self._session.ready and self._session.link != self._answered_link:
            self._ask_url(now)

    def _ask_url(self, now: float) -> None:
        self._answer = UrlAnswer()
        deadline = now + _ANSWER_SILENCES * self._silence_s
        self._session.start(BroadcastUrlRequest(self._session.secret, self._answer, deadline), now)

    def _answered(self, answer: UrlAnswer, now: float) -> None:
        self._answer = None
        self._heard_at = now
        # The first time the fetch from the start is under way.
        self._fetch_wanted = self._fetch_wanted or answer.failed or self.generation > 0
        self._fetch_at = None
        if answer.failed:
            return
        self._answered_link = self._session.link
        wanted = answer.valid_url()
        if wanted != self.url or self._renew:
            self._renew = False
            self.generation += 1
            self.url = wanted

    # --- fetching what was missed -----------------------------------------------------------------------------------

    @property
    def _fetch_needed(self) -> bool:
        return self._has_room and (self._fetch_wanted or self._splicer.gap)

    def _maybe_fetch(self, now: float) -> None:
        if self._fetch is not None or not self._fetch_needed or (self._fetch_at is not None and now < self._fetch_at):
            return
        self._fetch_wanted = False
        self._fetch_at = now + self._retry_delay_s
        self._fetch = _Fetch(self._session, self._splicer.position)
        self._session.start(self._fetch.request, now)

    def _tick_fetch(self, now: float) -> None:
        fetch = self._fetch
        if fetch is None:
            return
        while fetch.items and self._has_room:
            item = self._splicer.fetched(fetch.items.popleft())
            if item is not None:
                self._give_out(item)
                self._fetch_at = None
            fetch.request.consumed(self._session, now)
        gap_end = self._splicer.gap_end
        if fetch.done and not fetch.items:
            self._fetch = None
        elif gap_end is not None and self._splicer.position >= gap_end:
            self._session.cancel(fetch.request)
            self._fetch = None


class UrlAnswer:
    """The sink of a request for the url of a publisher."""

    def __init__(self) -> None:
        self.done = False
        self.failed = False
        self._url: str | None = None

    def set_result(self, result: str | None, /) -> None:
        self._url = result
        self.done = True

    def set_exception(self, exception: BaseException, /) -> None:
        self.done = self.failed = True

    def valid_url(self) -> str | None:
        """The url, if there is one that can be connected to."""
        try:
            return parse_url(self._url) if self._url else None
        except ConfigurationError:
            return None


class _Fetch:
    """A stream of entries and its sink: keeps what came in until the next tick."""

    def __init__(self, session: ClientSession, position: int) -> None:
        self.items: deque[EntriesItem] = deque()
        self.done = False
        self.request = EntriesRequest(session.secret, EntriesFlow(position), self)

    def put(self, item: EntriesItem, /) -> None:
        self.items.append(item)

    def set_result(self, result: None, /) -> None:
        self.done = True

    def set_exception(self, exception: BaseException, /) -> None:
        self.done = True


def decode_broadcast(
    frames: list[bytes], secret: bytes, entries: EntryBatch | None = None
) -> tuple[int, int, EntryBatch]:
    """Term, last applied index and the entries up to it. Raises RemoteProtocolError, also for another secret.

    ``entries`` is what was behind the first frames, if that was made a batch already. A SUB socket takes everything
    that begins with the secret, so also what a cluster publishes whose secret is longer.
    """
    found, term, last_applied, entry_frames = Protocols.STATE_BROADCAST.decode_request(frames)
    if entries is None:
        entries = EntryBatch.from_checked_frames(0, entry_frames)
    if found != secret:
        raise RemoteProtocolError("a broadcast of another cluster")
    if last_applied < len(entries):
        raise RemoteProtocolError(f"a broadcast of {len(entries)} entries up to index {last_applied}")
    return term, last_applied, entries.with_first_index(last_applied - len(entries) + 1)
