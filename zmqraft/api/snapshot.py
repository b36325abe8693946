"""The replaceable snapshot: the bytes in which a state machine wrote down all entries up to an index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from zmqraft.api.persistence import PeersValue

__all__ = ["SnapshotBase", "SnapshotContext", "SnapshotReceiver"]

#: `SnapshotBase.chunks` gives pieces of this many bytes.
_CHUNK_SIZE: Final = 65536


@dataclass(frozen=True, slots=True)
class SnapshotContext:
    """What a peer must know beside the state machine's data, when it has a snapshot in the place of the entries.

    Its members are those of the last CONFIG entry at or below the snapshot's index (Raft paper, section 7), and the
    request ids are those of entries up to there which may still be repeated.
    """

    #: The configuration at the snapshot's index; None when it is not known, as in a snapshot of zmq-raft's.
    peers: PeersValue | None = None
    #: The index of the CONFIG entry that brought it; 0 when none did.
    peers_index: int = 0
    #: The ids, oldest entry first: of each 12 bytes, then 8 of its index, least significant byte first.
    request_ids: bytes = b""
    #: Ids whose own time (seconds since the epoch) is at or before this may be forgotten.
    requests_forgotten_until: int = 0

    @classmethod
    def unknown(cls, now_seconds: int) -> SnapshotContext:
        """Of a snapshot that came without, as from zmq-raft: any id of now (seconds since the epoch) or before may be
        that of an entry which the snapshot stands for."""
        return cls(requests_forgotten_until=now_seconds)


class SnapshotBase(ABC):
    """A complete, immutable snapshot. `zmqraft.SnapshotFile` is the implementation that ships."""

    @property
    @abstractmethod
    def index(self) -> int:
        """The index of the last entry that the snapshot stands for; 0 for the empty one."""

    @property
    @abstractmethod
    def term(self) -> int:
        """The term of that entry; 0 for the empty one."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of bytes of its data."""

    @property
    def context(self) -> SnapshotContext:
        """The configuration and the request ids that travel with the snapshot. Raises StorageError."""
        return SnapshotContext()

    def chunks(self, size: int = _CHUNK_SIZE) -> Iterator[bytes]:
        """All data, in pieces of ``size`` bytes and a last one that may be shorter. Raises StorageError."""
        for offset in range(0, self.size, size):
            yield self.read(offset, size)

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of the data from ``offset``; empty at or beyond the end. Raises StorageError."""

    @abstractmethod
    def close(self) -> None:
        """Release the file. May be called twice."""


class SnapshotReceiver(ABC):
    """A snapshot that arrives in pieces, in order: `LogBase.begin_receive` makes one.

    Nothing counts on it before `finish` has returned; what a crash leaves of it is taken away.
    """

    @property
    @abstractmethod
    def index(self) -> int:
        """The index of the last entry that the snapshot stands for."""

    @property
    @abstractmethod
    def term(self) -> int:
        """The term of that entry."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of bytes of all its data."""

    @property
    @abstractmethod
    def offset(self) -> int:
        """The number of bytes that have come, which is where the next piece begins."""

    @abstractmethod
    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next piece, of any size. It is written and synced in bounded pieces, but may be lost in a crash.

        ValueError, and nothing is taken, when it goes beyond the end. Raises StorageFailedError when it could not be
        written: then this one is useless, and the log as it was. StorageError after `finish` or `abort`.
        """

    @abstractmethod
    def finish(self) -> SnapshotBase:
        """Make the complete snapshot durable, but not yet the log's: `LogBase.install` follows.

        ValueError, and nothing has changed, when data is missing. Raises as `write`.
        """

    @abstractmethod
    def abort(self) -> None:
        """Give up, and leave nothing behind. Nothing happens after `finish`, or the second time."""

    def check_fits(self, chunk: bytes | memoryview) -> None:
        """Raise ValueError when a piece goes beyond the end."""
        size = memoryview(chunk).nbytes
        if self.offset + size > self.size:
            raise ValueError(f"{size} bytes at offset {self.offset} go beyond the end of the snapshot, {self.size}")

    def check_complete(self) -> None:
        """Raise ValueError when data is missing."""
        if self.offset < self.size:
            raise ValueError(f"only {self.offset} of the {self.size} bytes of the snapshot have come")
