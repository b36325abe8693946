"""RequestEntries as a request of a session: a stream that goes on after the loss of a leader, at the consumer's pace.

Knows nothing of threads or of who consumes. The rule: a peer is told that it may send more only when something was
consumed, so what is buffered stays as small as the peer's pipeline; and the stream is requested anew, under a new id,
only when everything that came before has been consumed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from zmqraft.client.requests import Request, ResultSink, decode_leader_id
from zmqraft.constants import (
    ENTRIES_LAST,
    ENTRIES_MORE,
    ENTRIES_NOT_LEADER,
    ENTRIES_SNAPSHOT,
    REQUEST_ENTRIES,
    REQUEST_ENTRIES_TTL_MS,
)
from zmqraft.errors import OutOfOrderError, RemoteProtocolError
from zmqraft.protocol.entries_flow import EntriesFlow, EntriesItem, Position, Received, SnapshotChunk
from zmqraft.protocol.schema import Protocols

if TYPE_CHECKING:
    from zmqraft.client.session import ClientSession

__all__ = ["ITEM_OVERHEAD", "EntriesRequest", "EntriesSink", "item_size"]

#: A peer drops a stream that was idle for REQUEST_ENTRIES_TTL_MS; one that was idle for this long is requested anew.
_IDLE_S = 0.8 * REQUEST_ENTRIES_TTL_MS / 1000
#: A peer that sends on without acknowledgements is stopped at this many bytes. Five replies of the largest entries fit.
_BUFFER_SIZE_MAX = 64 * 1024 * 1024
#: What an item takes beside its bytes: many small ones must not pass for little.
ITEM_OVERHEAD = 256


class EntriesSink(ResultSink, Protocol):
    """Where entries and chunks go; then `set_result` with None, or `set_exception`."""

    def put(self, item: EntriesItem, /) -> None:
        """Take what came in; `EntriesRequest.consumed` is to be called once for each. Must not raise."""


class EntriesRequest(Request):
    """A stream of entries, and of chunks of the snapshot. The result is None when everything has come in.

    ``deadline`` is that of the whole stream.
    """

    __slots__ = ("_active_at", "_buffered", "_buffered_size", "_flow", "_link", "_secret", "_streaming", "_url")

    sink: EntriesSink

    def __init__(self, secret: bytes, flow: EntriesFlow, sink: EntriesSink, deadline: float = math.inf) -> None:
        super().__init__([b""], sink, deadline)
        self._secret = secret
        self._flow = flow
        #: Whether a peer is streaming, or has been asked to, under the present id.
        self._streaming = False
        self._link = 0
        self._url: str | None = None
        self._active_at = -math.inf
        #: Size and acknowledgement of what was put into the sink and not consumed; None: the last of the stream.
        self._buffered: deque[tuple[int, Position | None]] = deque()
        self._buffered_size = 0

    @property
    def flow(self) -> EntriesFlow:
        """Where the stream is."""
        return self._flow

    def prepare(self, session: ClientSession, now: float) -> bool:
        if session.link == self._link:
            self._stop(session)
        self._streaming = False
        if self._buffered:
            return False
        self._flow.restart(same_peer=session.url == self._url)
        self._streaming = True
        self._link = session.link
        self._url = session.url
        self._active_at = now
        session.change_id(self, self._encode(self._flow.position))
        return True

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        if not self._streaming:
            return
        status, value, index, parts = Protocols.REQUEST_ENTRIES.decode_response(frames)
        if status == ENTRIES_NOT_LEADER:
            leader_id = decode_leader_id(value)
            self._streaming = False
            session.not_leader(self, leader_id, now)
            return
        self._active_at = now
        try:
            received = self._receive(status, value, index, parts)
        except OutOfOrderError as error:
            session.fail(self, error)
            return
        self._act(received, status, session, now)

    def consumed(self, session: ClientSession, now: float) -> None:
        """The consumer has taken the oldest item that it had not taken before."""
        size, acknowledgement = self._buffered.popleft()
        self._buffered_size -= size
        if not self.live:
            return
        if self._streaming and now - self._active_at > _IDLE_S:
            self._stop(session)
        if self._streaming and acknowledgement is not None:
            self._acknowledge(acknowledgement, session, now)
        elif not self._streaming and not self._buffered:
            session.send_again(self, now)
        if self._streaming and not self._buffered:
            session.await_reply(self, now)

    def ended(self, session: ClientSession) -> None:
        self._stop(session)

    def timeout_message(self) -> str:
        return f"the stream of entries did not end before its deadline; entry {self._flow.previous_index} was the last"

    def _receive(self, status: int, value: object, index: int | None, parts: list[bytes]) -> Received:
        if status in (ENTRIES_LAST, ENTRIES_MORE):
            return self._flow.receive_entries(status, index, parts)
        if status == ENTRIES_SNAPSHOT:
            return self._flow.receive_chunk(value, index, parts)
        raise RemoteProtocolError(f"RequestEntries reply: unknown status {status}")

    def _act(self, received: Received, status: int, session: ClientSession, now: float) -> None:
        if received.item is not None:
            size = item_size(received.item)
            self._buffered.append((size, received.acknowledgement))
            self._buffered_size += size
            session.await_nothing(self)
            self.sink.put(received.item)
        if received.finished:
            self._streaming = status != ENTRIES_LAST
            session.finish(self, None)
        elif received.repeated:
            # Acknowledging it might start yet another stream. Asked for anew when the reply that is due does not come.
            self._stop(session)
        elif received.restart or self._buffered_size > _BUFFER_SIZE_MAX:
            self._stop(session)
            if not self._buffered:
                session.send_again(self, now)

    def _acknowledge(self, acknowledgement: Position, session: ClientSession, now: float) -> None:
        self._active_at = now
        session.send([self.id, *self._encode(acknowledgement)], self)

    def _stop(self, session: ClientSession) -> None:
        """Tell the peer to send no more; what still comes in is dropped."""
        if self._streaming:
            self._streaming = False
            session.send([self.id, *self._encode((self._flow.previous_index, 0, None))])

    def _encode(self, position: Position) -> list[bytes]:
        return Protocols.REQUEST_ENTRIES.encode_request(REQUEST_ENTRIES, self._secret, *position)


def item_size(item: EntriesItem) -> int:
    """About how much memory entries or a chunk take, in bytes."""
    return ITEM_OVERHEAD + (len(item.data) if isinstance(item, SnapshotChunk) else item.size)
