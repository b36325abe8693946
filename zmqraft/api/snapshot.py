"""The replaceable snapshot: the bytes in which a state machine wrote down all entries up to an index."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["SnapshotBase"]


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

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of the data from ``offset``; empty at or beyond the end. Raises StorageError."""

    @abstractmethod
    def close(self) -> None:
        """Release the file. May be called twice."""
