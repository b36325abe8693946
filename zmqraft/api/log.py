"""The replaceable log: what a peer needs of durable storage for entries and the snapshot below them.

`zmqraft.FileLog` is the implementation that ships. The rule: `append` and `truncate_after` take effect for readers at
once, but promise nothing; only when `sync` has returned may anybody outside be told. After a failed write or sync every
later call that would write raises StorageFailedError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zmqraft.api.snapshot import SnapshotBase, SnapshotContext, SnapshotReceiver
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

    # --- compaction (section 7): a snapshot takes the place of the first entries --------------------------------------

    @abstractmethod
    def size_between(self, first: int, last: int) -> int:
        """The bytes of the entries from ``first`` to ``last``, which are within the log; 0 when there are none."""

    @abstractmethod
    def packed_requests(self, last: int) -> bytes:
        """The request ids that are remembered of entries up to ``last``, as `SnapshotContext.request_ids` has them."""

    @abstractmethod
    def begin_snapshot(self, index: int, context: SnapshotContext) -> Callable[[Iterable[bytes]], SnapshotBase]:
        """A snapshot of the entry at ``index``: returns a function that writes it from chunks of data.

        It may be called in another thread, while the log is used, and returns the snapshot, complete and durable, but
        not in its place: it changes nothing of the log. One at a time. It raises what the chunks raise, or
        StorageFailedError, and then there is no snapshot and nothing has changed.

        ValueError when ``index`` is not above the log's snapshot, or above the last entry.
        """

    @abstractmethod
    def begin_compaction(self, snapshot: SnapshotBase) -> Callable[[], None]:
        """Let a snapshot that `begin_snapshot` wrote take the place of the log's: returns a function that makes this
        durable, which may be called in another thread, while the log is used. Then `compact` follows.

        The entries up to the snapshot's index must be committed and synced. The function raises StorageFailedError, as
        any later write then does. It does nothing when a later snapshot was installed meanwhile: then `compact` raises
        ValueError. ValueError when this is no compaction: its index is not above that of the log's
        snapshot, or above the last entry, or its term is not the term of the entry there.
        """

    @abstractmethod
    def compact(self, snapshot: SnapshotBase) -> None:
        """What `begin_compaction` has made durable counts from now on: the first index moves up behind the snapshot.

        Request ids stay. Who still reads the snapshot before this one can go on. ValueError as `begin_compaction`.
        """

    def begin_prune(self, keep_files: int = 0) -> Callable[[], None] | None:
        """Remove the files that nobody needs: all entries in them are at or below both the snapshot's index and the
        prune index. ``keep_files`` of them are kept, the newest. None when there are none.

        Returns a function that removes them, durably, and may be called in another thread while the log is used. It
        raises StorageFailedError, as any later write then does.
        """
        return None

    def find_snapshot(self) -> SnapshotBase | None:
        """A complete snapshot that `begin_snapshot` wrote in an earlier life and that was not yet compacted to; None
        when there is none, or a damaged one. May be called from another thread, before any `begin_snapshot`.
        """
        return None

    # --- a leader's snapshot (section 7) ------------------------------------------------------------------------------

    @abstractmethod
    def begin_receive(self, index: int, term: int, size: int, context: SnapshotContext) -> SnapshotReceiver:
        """Receive a snapshot of the entry at ``index`` from a leader, of ``size`` bytes of data. It changes nothing of
        the log. One at a time: one that was begun before and was not installed is given up.

        ``context`` comes from the leader too; where it sends none it is `SnapshotContext.unknown`. ValueError when
        ``index`` is not above the log's snapshot. Raises StorageFailedError, and the log is as it was.
        """

    @abstractmethod
    def install(self, snapshot: SnapshotBase) -> None:
        """Let the snapshot that was received last take the place of the log's, durably when this returns.

        Where the log has the snapshot's last entry, by index and term, this is a compaction: the entries behind it and
        all request ids stay. Else the whole log gives way: it is empty then, above the snapshot, and only the request
        ids of the snapshot's context are remembered, with its `requests_forgotten_until`. So the snapshot's index must
        be above the commit index.

        What is being done in the background for the log as it was (`begin_compaction`, `begin_prune`, `prepare`) does
        no harm. ValueError when the snapshot is not the one received last, or not above that of the log; raises
        StorageFailedError, as any later write then does.
        """

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
