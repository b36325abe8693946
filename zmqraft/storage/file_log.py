"""The log of a peer in files: index files of fixed capacity in a tree of folders, and a snapshot below them.

Knows nothing of Raft. The rules, by which a crash at any moment leaves a log that opens:

- `append` writes the data of entries, their checksums and then their offsets; `sync` makes them durable with one
  fdatasync. What a crash before it loses, the checksums tell (see `torn_tail`).
- All index files but the newest are durable: a file is synced, and then noted to be closed, before the next one is
  made, and the next one's header, name and folders are durable before an entry is written to it.
- The newest file is allocated ahead of the entries, so that a sync writes them and not the size of the file as well.
- A truncation is durable when `truncate_after` returns. It takes entries away from the end: the newest file is emptied
  first, the file that holds the new end is cut last, and only then are emptied files unlinked, newest first. So a
  crash in between leaves a longer log, never one with a gap.
- The next file may be made ahead, and the newest one allocated further (`prepare`, maybe in another thread; never
  while files change places). It is made under another name, and renamed into its place when it is needed.
- A compaction writes a snapshot beside that of the log, then renames it over that one, durably; only then the first
  index moves up. Files below it stay for their request ids, until `begin_prune` unlinks those whose entries nobody
  needs, oldest first.
- A leader's snapshot is written beside that of the log too, and renamed over it. Then, where it is no compaction, the
  log's directory gets another name, and an empty log its place. Where a crash comes in between, the snapshot is above
  the end of the log when this is opened, or has another term than the entry there: the replacement is finished then
  (see `log_opening`).
- After a failed write or sync nothing is written any more (`failure` says why), nor is it tried again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Final

from zmqraft.api.log import LogBase
from zmqraft.api.snapshot import SnapshotBase, SnapshotContext, SnapshotReceiver
from zmqraft.constants import (
    INDEX_FILE_CAPACITY,
    INDEX_FILE_CAPACITY_MAX,
    INDEX_FILE_DATA_SIZE_MAX,
    ROTATED_FILES_MAX,
)
from zmqraft.errors import ConfigurationError, StorageError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.storage.checksum_segment import MARK_DURABLE, MARK_NONE, MARK_SYNCING
from zmqraft.storage.failure import FailStop, describe
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.index_file import IndexFile
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.storage.log_opening import LogContents, capacity_at, give_way, log_capacity, open_log
from zmqraft.storage.log_snapshots import LogSnapshots, own_file
from zmqraft.storage.request_index import RequestIndex
from zmqraft.storage.snapshot_context import check_receivable
from zmqraft.storage.tail_cache import TAIL_CACHE_SIZE_MAX, TailCache

__all__ = ["FileLog"]

_log = logging.getLogger(__name__)

#: As many index files are open at once, of a log of any size.
_OPEN_FILES_MAX: Final = 64
#: Files are allocated ahead by that many bytes; by a quarter where somebody waits for it.
_ALLOCATION_SIZE: Final = 4 << 20
#: Zeros are written into the next file, so that its syncs are faster, where it will have less data than this, and the
#: batches of the file before had less on average.
_FILLED_SIZE_MAX: Final = 8 << 20
_FILLED_BATCH_SIZE_MAX: Final = 16 << 10


class FileLog(FailStop, LogBase):
    """The log that ships. `FileLog.open` makes one. Not for use from several threads at once, but for `prepare`,
    `find_snapshot` and what the methods return that begin something."""

    def __init__(
        self,
        directory: LogDirectory,
        contents: LogContents,
        snapshot: SnapshotBase,
        snapshots: LogSnapshots,
        capacity: int,
        data_size_max: int,
        open_files_max: int,
        tail: TailCache,
        allocation_size: int,
    ) -> None:
        """For `open` only."""
        super().__init__(f"the log {directory.path}")
        self._directory = directory
        self._contents = contents
        self._files = contents.files
        # Whoever changes it does not close the one before: somebody may be reading that. Its file is closed with the
        # last one who does.
        self._snapshot = snapshot
        self._snapshots = snapshots
        self._capacity = capacity
        self._data_size_max = data_size_max
        self._open_files_max = open_files_max
        # What readers see; an append that fails half-way does not move it.
        self._last_index = contents.last_index
        # Whether the newest file has writes that are not synced. The others never have.
        self._dirty = False
        # Held while a sync that `begin_sync` gave out has not returned.
        self._syncing = threading.Lock()
        self._tail = tail
        # Open files other than the newest, the one used last at the end.
        self._recent: OrderedDict[int, IndexFile] = OrderedDict()
        self._closed = False
        # The next file, made ahead. After a truncation, or when a file was started early, a later one.
        self._spare: IndexFile | None = None
        self._allocation_size = allocation_size
        # How often something was written to the newest file.
        self._batch_count = 0
        # Held while files are made ahead or allocated, and while they come, go or are cut.
        self._files_lock = threading.Lock()
        # Held while files are removed that nobody needs, and while the log gives way to a snapshot.
        self._removing = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | PurePath,
        snapshot_path: str | PurePath,
        *,
        capacity: int = INDEX_FILE_CAPACITY,
        remember_after_seconds: int = 0,
        request_id_cache_max: int | None = None,
        data_size_max: int = INDEX_FILE_DATA_SIZE_MAX,
        open_files_max: int = _OPEN_FILES_MAX,
        tail_cache_size_max: int = TAIL_CACHE_SIZE_MAX,
        allocation_size: int = _ALLOCATION_SIZE,
        old_snapshots_max: int = ROTATED_FILES_MAX,
        fs: FileSystem = OS_FILE_SYSTEM,
    ) -> FileLog:
        """Open the log in the directory ``path`` with its snapshot, or make both; everything in it is then durable.

        ``capacity`` (entries in a file, a power of two) is for a new log; an existing one keeps its own. Request ids
        whose own time is before ``remember_after_seconds`` (since the epoch) are not remembered, and never more than
        ``request_id_cache_max`` of them. The data of one file stays below ``data_size_max`` bytes. The entries appended
        last are kept in memory as well, in about ``tail_cache_size_max`` bytes. Room in the newest file is allocated
        ahead in steps of ``allocation_size`` bytes; 0 lets files grow as they are written. ``old_snapshots_max``
        snapshots are kept of those that others have replaced.

        Raises ConfigurationError for a bad capacity, CorruptionError for damaged files, StorageError for files that
        cannot be opened, read or made.
        """
        if not 1 <= capacity <= INDEX_FILE_CAPACITY_MAX or capacity & (capacity - 1):
            raise ConfigurationError(
                f"the index file capacity is a power of two up to {INDEX_FILE_CAPACITY_MAX}, not {capacity}"
            )
        directory = LogDirectory(fs, str(PurePath(path)))
        try:
            snapshots = LogSnapshots(fs, snapshot_path, old_snapshots_max)
            snapshot = snapshots.open()
            contents = LogContents()
            try:
                contents = open_log(directory, snapshot, capacity, remember_after_seconds, request_id_cache_max)
                if not contents.files:
                    first_index = snapshot.index + 1
                    contents.files.append(directory.create_file(first_index, capacity_at(first_index, capacity)))
                newest = contents.files[-1]
                newest.fill(newest.data_size + allocation_size // 4)
            except BaseException:
                contents.close()
                snapshot.close()
                raise
        except OSError as error:
            raise StorageError(f"cannot open the log {directory.path}: {describe(error)}") from error
        first = contents.files[0]
        capacity = log_capacity(first.first_index, first.capacity, capacity)
        tail = TailCache(tail_cache_size_max)
        return cls(
            directory,
            contents,
            snapshot,
            snapshots,
            capacity,
            data_size_max,
            open_files_max,
            tail,
            allocation_size,
        )

    # --- what it holds --------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The directory of the index files."""
        return self._directory.path

    @property
    def capacity(self) -> int:
        """The entries in a full index file that does not start late."""
        return self._capacity

    @property
    def first_index(self) -> int:
        return self._snapshot.index + 1

    @property
    def last_index(self) -> int:
        return self._last_index

    @property
    def last_term(self) -> int:
        return self._snapshot.term if self._last_index == self._snapshot.index else self._contents.terms.last_term or 0

    @property
    def snapshot(self) -> SnapshotBase:
        return self._snapshot

    def term_at(self, index: int) -> int | None:
        if self.first_index <= index <= self._last_index:
            return self._contents.terms.term_at(index)
        return self._snapshot.term if index == self._snapshot.index else None

    def term_runs(self) -> list[tuple[int, int]]:
        return self._contents.terms.between(self.first_index, self._last_index)

    def config_indexes(self) -> list[int]:
        configs = self._contents.config_indexes
        return configs[bisect_right(configs, self._snapshot.index) :]

    def read(self, first: int, last: int, size_max: int) -> EntryBatch:
        if not self.first_index <= first <= last <= self._last_index:
            raise ValueError(f"{first} to {last} is not within the log, {self.first_index} to {self._last_index}")
        self._check_open()
        cached = self._tail.read(first, last, size_max)
        return self._read_file(first, last, size_max) if cached is None else cached

    def _read_file(self, first: int, last: int, size_max: int) -> EntryBatch:
        file = self._files[self._position_of(first)]
        try:
            self._use(file)
            return file.read(first, min(last, file.last_index), size_max)
        except OSError as error:
            raise StorageError(f"cannot read {file.path}: {describe(error)}") from error

    def find_request(self, request_id: bytes) -> int | None:
        return self._contents.requests.find(request_id)

    @property
    def request_index(self) -> RequestIndex:
        return self._contents.requests

    def forget_requests(self, before_seconds: int) -> None:
        self._contents.requests.forget_before(before_seconds)

    @property
    def requests_forgotten_until(self) -> int:
        return self._contents.requests.oldest_accepted_seconds

    @property
    def prune_index(self) -> int:
        return self._contents.requests.prune_index(self._last_index)

    def index_files(self) -> list[tuple[str, int, int]]:
        """``(path, first index, last index)`` of every file, also of those below the first index, which are kept for
        the request ids in them."""
        return [(file.path, file.first_index, file.last_index) for file in self._files]

    # --- changing it ----------------------------------------------------------------------------------------------

    def append(self, batch: EntryBatch) -> None:
        if batch.first_index != self._last_index + 1:
            raise ValueError(f"entry {batch.first_index} does not follow {self._last_index}")
        self.check_writable()
        if not len(batch):
            return
        runs = batch.term_runs()
        if runs[0][1] < self.last_term:
            raise ValueError(f"the term goes back from {self.last_term} to {runs[0][1]} at entry {batch.first_index}")
        self._contents.terms.check(runs)
        if batch.size >= self._data_size_max:
            self._check_entry_sizes(batch)
        with self.writing(f"append entries {batch.first_index} to {batch.last_index}"):
            self._write(batch)
            self._contents.note(batch, runs)
            self._tail.append(batch)
        self._last_index = batch.last_index

    def _check_entry_sizes(self, batch: EntryBatch) -> None:
        start = 0
        for index, end in enumerate(batch.ends, batch.first_index):
            if end - start >= self._data_size_max:
                raise ValueError(f"entry {index} has {end - start} bytes; a file holds less than {self._data_size_max}")
            start = end

    def _write(self, batch: EntryBatch) -> None:
        while len(batch):
            file = self._files[-1]
            count = file.room_for(batch, self._data_size_max)
            if count == 0:
                self._start_file(batch.first_index)
                continue
            part = batch.slice(batch.first_index, batch.first_index + count - 1)
            size = file.data_size + part.size
            if size > file.allocated and self._allocation_size:
                file.allocate(size + self._allocation_size // 4)
            self._batch_count += 1
            mark = MARK_NONE if self._dirty else self._mark()
            self._dirty = True
            file.write(part, mark)
            if count == len(batch):
                return
            batch = batch.slice(batch.first_index + count, batch.last_index)

    def _mark(self) -> int:
        """What the first entry of a unit says of those before it."""
        if self._syncing.locked():
            return MARK_SYNCING
        # A sync that has failed meanwhile has said so before it was over.
        self.check_writable()
        return MARK_DURABLE

    def _start_file(self, first_index: int) -> None:
        """Make the newest file durable, then the next one."""
        self._batch_count = 0
        self._wait_for_sync()
        self._sync_newest()
        full = self._files[-1]
        with self._files_lock:
            full.finish()
            if self._spare is not None and self._spare.first_index == first_index:
                file, self._spare = self._spare, None
                # In the list first: whatever happens, it is closed with the others.
                self._files.append(file)
                self._directory.place_spare(file)
            else:
                capacity = capacity_at(first_index, self._capacity)
                self._files.append(self._directory.create_file(first_index, capacity))
        self._use(full)

    @property
    def wants_preparation(self) -> bool:
        return (self._wants_room or self._wants_spare) and self.failure is None

    @property
    def _wants_spare(self) -> bool:
        newest, spare = self._files[-1], self._spare
        return 2 * newest.count > newest.capacity and (spare is None or spare.first_index != newest.next_file_index)

    @property
    def _wants_room(self) -> bool:
        """Whether little is left of what is allocated, and less than the rest of the file will take."""
        newest = self._files[-1]
        allocated, count = newest.allocated, newest.count
        room = allocated - newest.data_size
        if 4 * room >= self._allocation_size or allocated < 0 or not self._allocation_size:
            return False
        return room * count < (newest.capacity - count) * newest.data_size

    def prepare(self) -> None:
        with self._files_lock:
            newest = self._files[-1]
            if self.failure is None and self._wants_room:
                with self.writing(f"allocate {newest.path}"):
                    newest.allocate(min(newest.data_size + self._allocation_size, self._data_size_max), is_idle=False)
            if self.failure is None and self._wants_spare:
                first_index = newest.next_file_index
                with self.writing(f"make the file for entry {first_index} ahead"):
                    self._close_spare()
                    self._spare = self._directory.create_spare(first_index, capacity_at(first_index, self._capacity))
                    size = self._expected_size(newest)
                    (self._spare.fill if self._is_worth_filling(size) else self._spare.allocate)(size)

    def _expected_size(self, file: IndexFile) -> int:
        """About as many bytes of data as the next file will have when it is like this one; within bounds."""
        size = file.data_size * self._capacity // file.count
        return min(max(size, self._allocation_size // 4), 4 * self._allocation_size, self._data_size_max)

    def _is_worth_filling(self, size: int) -> bool:
        """Whether room of ``size`` bytes is to be written once more for the sake of faster syncs: not where so much
        goes into each sync that the disk has enough to do."""
        return size <= _FILLED_SIZE_MAX and self._files[-1].data_size < _FILLED_BATCH_SIZE_MAX * self._batch_count

    def _close_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()

    def truncate_after(self, index: int) -> None:
        if index < self.first_index - 1:
            raise ValueError(f"cannot truncate after {index}: the log starts at {self.first_index}")
        self.check_writable()
        if index >= self._last_index:
            return
        self._wait_for_sync()
        with self.writing(f"truncate after entry {index}"):
            with self._files_lock:
                self._cut_files(index)
            self._contents.terms.truncate_after(index)
            configs = self._contents.config_indexes
            del configs[bisect_right(configs, index) :]
            self._contents.requests.truncate_after(index)
            self._tail.truncate_after(index)
        self._last_index = index

    def _cut_files(self, index: int) -> None:
        files = self._files
        # The file that holds the new last entry; the first file, emptied, when there is no entry left.
        newest = max(self._position_of(index), 0)
        for file in reversed(files[newest:]):
            file.truncate(max(index + 1 - file.first_index, 0))
        self._dirty = False
        emptied = files[newest + 1 :]
        del files[newest + 1 :]
        for file in emptied:
            self._recent.pop(file.first_index, None)
            file.close()
        self._directory.remove_files([file.path for file in reversed(emptied)])
        self._recent.pop(files[-1].first_index, None)

    def begin_sync(self) -> Callable[[], None] | None:
        self.check_writable()
        if not self._dirty:
            return None
        if not self._syncing.acquire(blocking=False):
            raise RuntimeError("a sync that was given out has not returned")
        # What is appended from here on is for the next one.
        self._dirty = False
        file = self._files[-1]

        def sync() -> None:
            try:
                with self.writing("sync"):
                    file.sync()
            finally:
                self._syncing.release()

        return sync

    def _wait_for_sync(self) -> None:
        """Wait for a sync that was given out. Raises StorageFailedError when it has failed."""
        with self._syncing:
            self.check_writable()

    def sync(self) -> None:
        self._wait_for_sync()
        if self._dirty:
            with self.writing("sync"):
                self._sync_newest()

    def _sync_newest(self) -> None:
        if self._dirty:
            self._files[-1].sync()
            self._dirty = False

    # --- compaction -----------------------------------------------------------------------------------------------

    def size_between(self, first: int, last: int) -> int:
        if first > last:
            return 0
        if not self.first_index <= first <= last <= self._last_index:
            raise ValueError(f"{first} to {last} is not within the log, {self.first_index} to {self._last_index}")
        size = 0
        for file in self._files[self._position_of(first) : self._position_of(last) + 1]:
            if first <= file.first_index and file.last_index <= last:
                size += file.data_size
            else:
                try:
                    self._use(file)
                    after = file.file_offset(min(last, file.last_index) + 1)
                    size += after - file.file_offset(max(first, file.first_index))
                except OSError as error:
                    raise StorageError(f"cannot read {file.path}: {describe(error)}") from error
        return size

    def packed_requests(self, last: int) -> bytes:
        return self._contents.requests.packed(last)

    def begin_snapshot(self, index: int, context: SnapshotContext) -> Callable[[Iterable[bytes]], SnapshotBase]:
        term = self.term_at(index)
        if term is None or index <= self._snapshot.index:
            raise ValueError(
                f"no snapshot can be taken at {index}: the log has entries {self.first_index} to {self._last_index}"
            )
        return self._snapshots.begin(index, term, context)

    def begin_compaction(self, snapshot: SnapshotBase) -> Callable[[], None]:
        self.check_writable()
        self._check_compaction(snapshot)
        own_file(snapshot)
        return lambda: self._place(snapshot)

    def _place(self, snapshot: SnapshotBase) -> None:
        with self.writing(f"install the snapshot of entry {snapshot.index}"):
            self._snapshots.place(snapshot)

    def _check_compaction(self, snapshot: SnapshotBase) -> None:
        if not self._snapshot.index < snapshot.index <= self._last_index:
            raise ValueError(
                f"the snapshot of entry {snapshot.index} is not within the log, {self.first_index} to "
                f"{self._last_index}"
            )
        if (term := self.term_at(snapshot.index)) != snapshot.term:
            raise ValueError(f"the snapshot of entry {snapshot.index} has term {snapshot.term}, the entry {term}")

    def compact(self, snapshot: SnapshotBase) -> None:
        self.check_writable()
        self._check_compaction(snapshot)
        self._snapshot = snapshot

    def begin_prune(self, keep_files: int = 0) -> Callable[[], None] | None:
        self.check_writable()
        paths = self.removable_files()
        paths = paths[: len(paths) - keep_files] if keep_files < len(paths) else []
        if not paths:
            return None
        files = self._files
        with self._files_lock:
            removed = files[: len(paths)]
            del files[: len(paths)]
        for file in removed:
            self._recent.pop(file.first_index, None)
            file.close()

        def remove() -> None:
            with self._removing:
                # Else the log has given way to a snapshot, and its directory has another name.
                if self._files is files:
                    with self.writing("remove files that are no longer needed"):
                        self._directory.remove_files(paths)

        return remove

    def removable_files(self) -> list[str]:
        """The paths of the files that nobody needs, oldest first: all entries in them are at or below the snapshot's
        index and the prune index."""
        needed = min(self._snapshot.index, self.prune_index)
        return [file.path for file in self._files[:-1] if file.last_index <= needed]

    def find_snapshot(self) -> SnapshotBase | None:
        return self._snapshots.find_waiting()

    # --- a leader's snapshot --------------------------------------------------------------------------------------

    def begin_receive(self, index: int, term: int, size: int, context: SnapshotContext) -> SnapshotReceiver:
        self._check_open()
        check_receivable(self._snapshot, index, term, size, context)
        return self._snapshots.receive(index, term, size, context)

    def install(self, snapshot: SnapshotBase) -> None:
        self._snapshots.check_received(snapshot)
        if snapshot.index <= self.snapshot.index:
            raise ValueError(f"the snapshot of entry {snapshot.index} is not above {self.snapshot.index}, the log's")
        # A crash from here on must not leave less of the log than what the snapshot is compared with.
        self.sync()
        self._place(snapshot)
        if self.term_at(snapshot.index) != snapshot.term:
            with (
                self.writing(f"start anew behind the snapshot of entry {snapshot.index}"),
                self._removing,
                self._files_lock,
            ):
                self._give_way(snapshot)
        self._snapshot = snapshot

    def _give_way(self, snapshot: SnapshotBase) -> None:
        """Let an empty log take the place of this one. `open_log` does the same where a crash comes in between."""
        self._close_spare()
        self._directory.remove_spare()
        self._recent.clear()
        self._tail.truncate_after(-1)
        self._dirty = False
        self._batch_count = 0
        contents = give_way(self._directory, self._contents, snapshot)
        first_index = snapshot.index + 1
        contents.files.append(self._directory.create_file(first_index, capacity_at(first_index, self._capacity)))
        self._contents, self._files = contents, contents.files
        self._last_index = snapshot.index

    def close(self) -> None:
        """Release the files. What was not synced is not: then they are left as a crash would leave them."""
        if self._closed:
            return
        self._closed = True
        with self._syncing, self._files_lock:
            if self.failure is None and not self._dirty:
                # Where it cannot be noted that the file is done, it is as after a crash.
                with contextlib.suppress(OSError):
                    self._files[-1].finish()
            if self._spare is not None:
                self._close_spare()
                # It does no harm where it is.
                with contextlib.suppress(OSError):
                    self._directory.remove_spare()
            self.fail(StorageError("it is closed"))
        self._tail = TailCache(0)
        self._contents.close()
        self._snapshots.close()
        self._snapshot.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"the log {self.path} is closed")

    def _position_of(self, index: int) -> int:
        """The position of the file that an index falls into; -1 when it is before the first file."""
        return bisect_right(self._files, index, key=_first_index) - 1

    def _use(self, file: IndexFile) -> None:
        """Note that a file is used, and release the one used longest ago when too many are open."""
        if file is self._files[-1]:
            return
        self._recent[file.first_index] = file
        self._recent.move_to_end(file.first_index)
        if len(self._recent) >= self._open_files_max:
            self._recent.popitem(last=False)[1].release()

    def __repr__(self) -> str:
        return f"<FileLog {self.path} with entries {self.first_index} to {self._last_index}>"


def _first_index(file: IndexFile) -> int:
    return file.first_index
