"""The replaceable log: what a peer needs of durable storage for entries and the snapshot below them.

`zmqraft.FileLog` is the implementation that ships. The rule: `append` and `truncate_after` take effect for readers at
once, but promise nothing; only when `sync` has returned may anybody outside be told. After a failed write or sync every
later call that would write raises StorageFailedError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zmqraft.api.snapshot import SnapshotBase
    from zmqraft.protocol.entry import EntryBatch
    from zmqraft.storage.request_index import RequestIndex

__all__ = ["LogBase"]


class LogBase(ABC):
    """Entries from ``first_index`` to ``last_index``, above a snapshot that stands for all entries before them.

    Relations: ``snapshot.index + 1 == first_index <= last_index + 1``.
    """

    @property
    @abstractmethod
    def first_index(self) -> int:
        """The index of the first entry that can be read; 1 when nothing was ever compacted."""

    @property
    @abstractmethod
    def last_index(self) -> int:
        """The index of the last entry, synced or not; ``first_index - 1`` when there is none."""

    @property
    @abstractmethod
    def last_term(self) -> int:
        """The term of the last entry, or of the snapshot when there is none."""

    @property
    @abstractmethod
    def snapshot(self) -> SnapshotBase:
        """The snapshot below the first entry (index 0, term 0, size 0 when there never was one)."""

    @abstractmethod
    def term_at(self, index: int) -> int | None:
        """The term of the entry at ``index``, or of the snapshot at its own index; None when neither is there."""

    @abstractmethod
    def term_runs(self) -> list[tuple[int, int]]:
        """``(index, term)`` of the first entry and of every entry whose term differs from that of the one before."""

    @abstractmethod
    def config_indexes(self) -> list[int]:
        """The indexes of the CONFIG entries, rising."""

    @abstractmethod
    def append(self, batch: EntryBatch) -> None:
        """Add entries behind the last one: ``batch.first_index == last_index + 1``, else ValueError.

        Not durable before `sync`. Raises StorageFailedError when this or an earlier write failed.
        """

    @abstractmethod
    def truncate_after(self, index: int) -> None:
        """Remove every entry above ``index`` (not below ``first_index - 1``, else ValueError).

        Not durable before `sync`. Raises StorageFailedError when this or an earlier write failed.
        """

    @abstractmethod
    def sync(self) -> None:
        """Make everything so far durable. Raises StorageFailedError when it could not, now and from then on."""

    def begin_sync(self) -> Callable[[], None] | None:
        """The `sync` of what is there now as a function that another thread may run, while entries are appended; None
        when everything is durable.

        One at a time: the next call comes when the function has returned. It raises what `sync` raises. Every other
        change of the log waits for it.
        """
        self.sync()
        return None

    @abstractmethod
    def read(self, first: int, last: int, size_max: int) -> EntryBatch:
        """The entries from ``first`` to ``last``, as many as fit in ``size_max`` bytes, but at least one.

        ValueError when the range is empty or not within the log; CorruptionError when what is stored is damaged.
        """

    @abstractmethod
    def find_request(self, request_id: bytes) -> int | None:
        """The index of the entry with this request id, while it is remembered (also below the first index)."""

    @property
    def request_index(self) -> RequestIndex | None:
        """The table behind `find_request`, where there is one: compiled code looks into it without a detour."""
        return None

    @abstractmethod
    def forget_requests(self, before_seconds: int) -> None:
        """Forget ids whose own time is before this (seconds since the epoch), up to the first that is not."""

    @property
    def requests_forgotten_until(self) -> int:
        """For lack of room, ids whose own time (seconds since the epoch) is at or before this may be forgotten: an
        update with such an id that is not found must be refused. 0 when nothing was forgotten but by
        `forget_requests`."""
        return 0

    @property
    @abstractmethod
    def prune_index(self) -> int:
        """The index just below the first entry whose request id is remembered; the last index when none is."""

    @property
    def wants_preparation(self) -> bool:
        """Whether there is something that `prepare` can do now."""
        return False

    def prepare(self) -> None:
        """Do ahead of time what would make a later append wait, such as making the next file.

        The one method that may be called from another thread, while the others are in use. Raises
        StorageFailedError when that fails, as any later write then does.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the files. Does not sync. May be called twice."""
