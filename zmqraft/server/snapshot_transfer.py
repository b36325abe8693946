"""A snapshot on its way from a leader to a peer: chunk by chunk, each acknowledged, to be gone on with where it
stopped.

SPEC section 2, InstallSnapshot; section 7 of the paper. Knows nothing of terms, or of who may send. Between our own
peers a message of our own (`Protocols.OWN_INSTALL_SNAPSHOT`) also carries what a peer must know beside the data: its
bytes are those of the context (`zmqraft.storage.snapshot_context`), then those of the data. The rule: what is under way
is known by its leader, term, index and size; the chunk of any other begins at offset 0, or is refused with the offset
0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from zmqraft import constants
from zmqraft.api import LogBase, SnapshotBase, SnapshotContext, SnapshotReceiver
from zmqraft.errors import InvariantError, RemoteProtocolError
from zmqraft.protocol import Protocols
from zmqraft.storage.snapshot_context import encode_context, parse_context

__all__ = ["Chunk", "IncomingSnapshot", "OutgoingSnapshot"]

#: The context of a snapshot is held in memory until it is complete: 20 bytes for each of 50 million request ids.
_CONTEXT_SIZE_MAX = 1 << 30


class OutgoingSnapshot:
    """One snapshot on its way to one peer. Chunks get there in their order or not at all."""

    __slots__ = (
        "_acknowledged",
        "_chunk_size",
        "_context",
        "_ends",
        "_is_unknown",
        "_next",
        "_sent",
        "_snapshot",
        "is_own",
        "repeats",
    )

    def __init__(self, snapshot: SnapshotBase, chunk_size: int, *, is_own: bool) -> None:
        """``is_own``: the peer is known to be ours. Raises StorageError when the context cannot be read."""
        self._snapshot = snapshot
        self._chunk_size = chunk_size
        #: Whether it travels in our own messages.
        self.is_own = is_own
        self._context = encode_context(snapshot.context) if is_own else b""
        # Up to where the peer is known to have it, where the next chunk begins, up to where it was ever sent, and where
        # each of those that are under way ends.
        self._acknowledged = 0
        self._next = 0
        self._sent = 0
        self._ends: deque[int] = deque()
        # The peer has a part of it that did not come from here.
        self._is_unknown = False
        #: How often the chunks that are under way were sent again.
        self.repeats = 0

    @property
    def index(self) -> int:
        """The index of the last entry that it stands for."""
        return self._snapshot.index

    @property
    def is_under_way(self) -> bool:
        """Whether a chunk is to be answered."""
        return len(self._ends) > 0

    @property
    def has_more(self) -> bool:
        """Whether there is a chunk to send: the first one, which may be empty, or a part that was not sent."""
        return not self._ends or self._next < self._size

    @property
    def _size(self) -> int:
        return len(self._context) + self._snapshot.size

    def next_chunk(self, secret: bytes, leader_id: str, term: int) -> list[bytes]:
        """The frames of the next request, from the type on. Raises StorageError."""
        size, offset = self._size, self._next
        chunk = self._read(offset)
        if self._is_unknown:
            # The beginning of something else, so that it forgets what it has.
            size, chunk = size + 1, chunk[:1]
        self._next += len(chunk)
        self._sent = max(self._sent, self._next)
        self._ends.append(self._next)
        protocol = Protocols.OWN_INSTALL_SNAPSHOT if self.is_own else Protocols.INSTALL_SNAPSHOT
        own = (len(self._context),) if self.is_own else ()
        return protocol.encode_request(
            protocol.message_type,
            secret,
            leader_id,
            term,
            self._snapshot.index,
            self._snapshot.term,
            offset,
            size,
            chunk,
            *own,
        )

    def _read(self, offset: int) -> bytes:
        behind = offset - len(self._context)
        if behind >= 0:
            return self._snapshot.read(behind, self._chunk_size)
        chunk = self._context[offset : offset + self._chunk_size]
        return chunk + self._snapshot.read(0, self._chunk_size - len(chunk))

    def answered(self, count: int, offset: int | None) -> bool:
        """The reply to the last of the ``count`` oldest chunks under way, and so to them all; ``offset`` is where to go
        on, by default behind it. Returns whether the peer has all of it.

        A peer of zmq-raft goes on with what another leader has sent it of a snapshot of the same index, term and size,
        whose bytes need not be the same (FAULTS W5). It is made to forget that. So is one of ours that has more than
        was sent from here.

        Raises InvariantError when not so many are under way.
        """
        if not 1 <= count <= len(self._ends):
            raise InvariantError(f"{count} chunks of a snapshot are answered, {len(self._ends)} are under way")
        self.repeats = 0
        for _ in range(count - 1):
            self._ends.popleft()
        end = self._ends.popleft()
        was_unknown, self._is_unknown = self._is_unknown, False
        if was_unknown:
            self._go_to(0)
        elif offset is None or offset == end:
            self._acknowledged = end
            return end >= self._size
        elif offset < end:
            # What is under way behind it is refused as well.
            self._go_to(offset)
        elif self.is_own and offset >= self._size:
            self._ends.clear()
            return True
        elif not (self.is_own and offset <= self._sent):
            self._go_to(0)
            self._is_unknown = True
        elif offset > self._next:
            # What was given up has come, and the replies have not.
            self._go_to(offset)
        return False

    def lost(self) -> None:
        """What is under way is given up: begin anew behind what the peer has acknowledged."""
        self._go_to(self._acknowledged)

    def _go_to(self, offset: int) -> None:
        self._acknowledged = self._next = offset
        self._ends.clear()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A decoded InstallSnapshot request, of either kind. `context_size` is None in one of zmq-raft's kind."""

    leader_id: str
    term: int
    index: int
    index_term: int
    offset: int
    size: int
    data: bytes
    context_size: int | None = None

    @classmethod
    def decode(cls, frames: Sequence[bytes]) -> Chunk:
        """From the frames, the type first. Raises RemoteProtocolError, also when its numbers do not fit together."""
        is_own = frames[0] == constants.OWN_INSTALL_SNAPSHOT
        protocol = Protocols.OWN_INSTALL_SNAPSHOT if is_own else Protocols.INSTALL_SNAPSHOT
        chunk = cls(*protocol.decode_request(frames)[2:])
        if not (chunk.index >= 1 and 1 <= chunk.index_term <= chunk.term):
            raise RemoteProtocolError(
                f"a snapshot of index {chunk.index} and term {chunk.index_term} in a message of term {chunk.term}"
            )
        context_size = chunk.context_size or 0
        if chunk.offset + len(chunk.data) > chunk.size or not context_size <= min(chunk.size, _CONTEXT_SIZE_MAX):
            raise RemoteProtocolError(
                f"{len(chunk.data)} bytes at offset {chunk.offset} of a snapshot of {chunk.size} bytes, of which "
                f"{context_size} are context"
            )
        return chunk

    @property
    def key(self) -> tuple[object, ...]:
        """What tells one snapshot under way from another."""
        return (self.leader_id, self.term, self.index, self.index_term, self.size, self.context_size)


class IncomingSnapshot:
    """The snapshot that a leader is sending, if there is one."""

    def __init__(self, log: LogBase) -> None:
        self._log = log
        self._key: tuple[object, ...] = ()
        self._context = bytearray()
        self._receiver: SnapshotReceiver | None = None
        self._offset = 0

    @property
    def offset(self) -> int:
        """The bytes that have come of the one under way."""
        return self._offset

    def take(self, chunk: Chunk, now_seconds: int) -> int | SnapshotBase:
        """Take a chunk. Returns the offset to go on from, or the complete snapshot, which is durable, but not yet that
        of the log. ``now_seconds`` is the time since the epoch.

        Raises RemoteProtocolError when its context or its index are no good, StorageFailedError.
        """
        if chunk.key != self._key:
            self.abort()
            if chunk.offset:
                return 0
            self._key = chunk.key
        if chunk.offset != self._offset:
            return self._offset
        try:
            return self._take(chunk, now_seconds)
        except ValueError as error:
            self.abort()
            raise RemoteProtocolError(f"a snapshot that cannot be received: {error}") from error

    def _take(self, chunk: Chunk, now_seconds: int) -> int | SnapshotBase:
        data, context_size = memoryview(chunk.data), chunk.context_size or 0
        missing = context_size - len(self._context)
        self._context += data[:missing]
        if self._receiver is None and len(self._context) == context_size:
            context = SnapshotContext.unknown(now_seconds)
            if chunk.context_size is not None:
                context = parse_context(bytes(self._context))
            self._receiver = self._log.begin_receive(chunk.index, chunk.index_term, chunk.size - context_size, context)
        self._offset += len(data)
        if self._receiver is None:
            return self._offset
        self._receiver.write(data[max(missing, 0) :])
        if self._offset < chunk.size:
            return self._offset
        snapshot = self._receiver.finish()
        self._forget()
        return snapshot

    def abort(self) -> None:
        """Give up what is under way."""
        if self._receiver is not None:
            self._receiver.abort()
        self._forget()

    def _forget(self) -> None:
        self._key = ()
        self._context = bytearray()
        self._receiver = None
        self._offset = 0
