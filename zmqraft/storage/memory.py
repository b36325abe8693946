"""A log, a snapshot and a peer's state in memory: for tests, and for clusters that may forget everything.

Durability is modelled, not given: what was not synced is gone after `crash`. The rule: these keep exactly the contract
of `zmqraft.api`, so that whatever runs on them runs on files; one contract test runs over both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from zmqraft.api.log import LogBase
from zmqraft.api.persistence import PeersValue, PersistenceBase
from zmqraft.api.snapshot import SnapshotBase, SnapshotContext, SnapshotReceiver
from zmqraft.errors import StorageError, StorageFailedError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.storage.failure import FailStop
from zmqraft.storage.raft_persistence import check_vote
from zmqraft.storage.request_index import RequestIndex
from zmqraft.storage.snapshot_context import check_receivable
from zmqraft.storage.term_runs import TermRuns

__all__ = ["MemoryLog", "MemoryPersistence", "MemorySnapshot"]


class MemorySnapshot(SnapshotBase):
    """A snapshot that is a bytes object."""

    def __init__(
        self, index: int = 0, term: int = 0, data: bytes = b"", context: SnapshotContext | None = None
    ) -> None:
        self._index = index
        self._term = term
        self._data = data
        self._context = context or SnapshotContext()

    @property
    def context(self) -> SnapshotContext:
        return self._context

    @property
    def index(self) -> int:
        return self._index

    @property
    def term(self) -> int:
        return self._term

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self) -> None:
        pass


class _MemoryReceiver(SnapshotReceiver):
    """A snapshot that arrives."""

    def __init__(self, index: int, term: int, size: int, context: SnapshotContext) -> None:
        self._index = index
        self._term = term
        self._size = size
        self._context = context
        self._data: bytearray | None = bytearray()
        #: What `finish` returned.
        self.received: SnapshotBase | None = None

    @property
    def index(self) -> int:
        return self._index

    @property
    def term(self) -> int:
        return self._term

    @property
    def size(self) -> int:
        return self._size

    @property
    def offset(self) -> int:
        return self._size if self._data is None else len(self._data)

    def _open_data(self) -> bytearray:
        if self._data is None:
            raise StorageError("the snapshot is already finished or given up")
        return self._data

    def write(self, chunk: bytes | memoryview) -> None:
        data = self._open_data()
        self.check_fits(chunk)
        data += chunk

    def finish(self) -> SnapshotBase:
        data = self._open_data()
        self.check_complete()
        self._data = None
        self.received = MemorySnapshot(self._index, self._term, bytes(data), self._context)
        return self.received

    def abort(self) -> None:
        self._data = None


class MemoryLog(FailStop, LogBase):
    """A log whose entries are a list of frames. ``sync_count`` counts the syncs that had something to do."""

    def __init__(
        self, first_index: int = 1, *, snapshot: SnapshotBase | None = None, request_id_cache_max: int | None = None
    ) -> None:
        """An empty log from ``first_index``, or, when a snapshot is given, from the index after it.

        ``request_id_cache_max`` is the largest number of request ids that are remembered.
        """
        super().__init__("the log in memory")
        self._snapshot = snapshot or MemorySnapshot(first_index - 1)
        self._first_index = self._snapshot.index + 1
        self._frames: list[bytes] = []
        self._durable_frames: list[bytes] = []
        # The number of leading entries that are known to be the same in both lists: <= the length of either.
        self._common = 0
        self._terms = TermRuns()
        self._configs: list[int] = []
        self._requests = RequestIndex(request_id_cache_max)
        context = self._snapshot.context
        self._requests.refuse_until(context.requests_forgotten_until)
        self._requests.add_packed(context.request_ids, self._snapshot.index)
        # What a crash would find: maybe a newer one than `compact` was told.
        self._durable_snapshot = self._snapshot
        self._receiver: _MemoryReceiver | None = None
        self.sync_count = 0
        # What `begin_sync` gave out and has not run.
        self._syncing: Callable[[], None] | None = None

    @property
    def first_index(self) -> int:
        return self._first_index

    @property
    def last_index(self) -> int:
        return self._first_index + len(self._frames) - 1

    @property
    def last_term(self) -> int:
        term = self._terms.last_term
        return self._snapshot.term if term is None else term

    @property
    def snapshot(self) -> SnapshotBase:
        return self._snapshot

    def term_at(self, index: int) -> int | None:
        if self._first_index <= index <= self.last_index:
            return self._terms.term_at(index)
        return self._snapshot.term if index == self._snapshot.index else None

    def term_runs(self) -> list[tuple[int, int]]:
        return self._terms.between(self._first_index, self.last_index)

    def config_indexes(self) -> list[int]:
        return list(self._configs)

    def append(self, batch: EntryBatch) -> None:
        self.check_writable()
        if batch.first_index != self.last_index + 1:
            raise ValueError(f"entry {batch.first_index} does not follow {self.last_index}")
        if not len(batch):
            return
        runs = batch.term_runs()
        if runs[0][1] < self.last_term:
            raise ValueError(f"the term goes back from {self.last_term} to {runs[0][1]} at entry {batch.first_index}")
        self._terms.extend(runs)
        self._configs += [batch.first_index + position for position in batch.config_positions()]
        self._requests.add(batch)
        self._frames += batch.frames()

    def truncate_after(self, index: int) -> None:
        self.check_writable()
        if index < self._first_index - 1:
            raise ValueError(f"cannot truncate after {index}: the log starts at {self._first_index}")
        if index >= self.last_index:
            return
        self._finish_sync()
        count = index - self._first_index + 1
        del self._frames[count:]
        self._common = min(self._common, count)
        self._terms.truncate_after(index)
        self._configs = [config for config in self._configs if config <= index]
        self._requests.truncate_after(index)

    def sync(self) -> None:
        self.check_writable()
        self._finish_sync()
        if self._is_dirty:
            self._make_durable(len(self._frames))

    def begin_sync(self) -> Callable[[], None] | None:
        self.check_writable()
        if not self._is_dirty:
            return None
        count = len(self._frames)

        def finish() -> None:
            if self._syncing is finish:
                self._syncing = None
                self._make_durable(count)

        self._syncing = finish
        return finish

    def _finish_sync(self) -> None:
        if self._syncing is not None:
            self._syncing()

    @property
    def _is_dirty(self) -> bool:
        return not self._common == len(self._frames) == len(self._durable_frames)

    def _make_durable(self, count: int) -> None:
        self._durable_frames[self._common :] = self._frames[self._common : count]
        self._common = count
        self.sync_count += 1

    def read(self, first: int, last: int, size_max: int) -> EntryBatch:
        if not self._first_index <= first <= last <= self.last_index:
            raise ValueError(f"{first} to {last} is not within the log, {self._first_index} to {self.last_index}")
        frames: list[bytes] = []
        ends: list[int] = []
        end = 0
        for frame in self._frames[first - self._first_index : last - self._first_index + 1]:
            end += len(frame)
            if end > size_max and frames:
                break
            frames.append(frame)
            ends.append(end)
        return EntryBatch(first, b"".join(frames), ends)

    def find_request(self, request_id: bytes) -> int | None:
        return self._requests.find(request_id)

    @property
    def request_index(self) -> RequestIndex:
        return self._requests

    def forget_requests(self, before_seconds: int) -> None:
        self._requests.forget_before(before_seconds)

    @property
    def requests_forgotten_until(self) -> int:
        return self._requests.oldest_accepted_seconds

    @property
    def prune_index(self) -> int:
        return self._requests.prune_index(self.last_index)

    def size_between(self, first: int, last: int) -> int:
        if first > last:
            return 0
        return self.read(first, last, sum(map(len, self._frames))).size

    def packed_requests(self, last: int) -> bytes:
        return self._requests.packed(last)

    def begin_snapshot(self, index: int, context: SnapshotContext) -> Callable[[Iterable[bytes]], SnapshotBase]:
        term = self.term_at(index)
        if term is None or index <= self._snapshot.index:
            raise ValueError(
                f"no snapshot can be taken at {index}: the log has entries {self._first_index} to {self.last_index}"
            )
        return lambda chunks: MemorySnapshot(index, term, b"".join(chunks), context)

    def begin_compaction(self, snapshot: SnapshotBase) -> Callable[[], None]:
        self.check_writable()
        self._check_compaction(snapshot)

        def place() -> None:
            if snapshot.index > self._durable_snapshot.index:
                self._durable_snapshot = snapshot

        return place

    def _check_compaction(self, snapshot: SnapshotBase) -> None:
        if not self._first_index <= snapshot.index <= self.last_index:
            raise ValueError(
                f"the snapshot of entry {snapshot.index} is not within the log, {self._first_index} to "
                f"{self.last_index}"
            )
        if (term := self.term_at(snapshot.index)) != snapshot.term:
            raise ValueError(f"the snapshot of entry {snapshot.index} has term {snapshot.term}, the entry {term}")

    def compact(self, snapshot: SnapshotBase) -> None:
        self.check_writable()
        self._check_compaction(snapshot)
        self._finish_sync()
        count = snapshot.index - self._snapshot.index
        runs = self._terms.between(snapshot.index + 1, self.last_index)
        self._snapshot = snapshot
        self._first_index = snapshot.index + 1
        del self._frames[:count], self._durable_frames[:count]
        self._common = max(self._common - count, 0)
        self._terms = TermRuns(runs)
        self._configs = [config for config in self._configs if config > snapshot.index]

    def begin_receive(self, index: int, term: int, size: int, context: SnapshotContext) -> SnapshotReceiver:
        check_receivable(self._snapshot, index, term, size, context)
        if self._receiver is not None:
            self._receiver.abort()
        self._receiver = _MemoryReceiver(index, term, size, context)
        return self._receiver

    def install(self, snapshot: SnapshotBase) -> None:
        if self._receiver is None or self._receiver.received is not snapshot:
            raise ValueError(f"{snapshot!r} is not the snapshot that was received last")
        if snapshot.index <= self._snapshot.index:
            raise ValueError(f"the snapshot of entry {snapshot.index} is not above {self._snapshot.index}, the log's")
        self.sync()
        self._durable_snapshot = snapshot
        if self.term_at(snapshot.index) == snapshot.term:
            self.compact(snapshot)
            return
        bound = self._requests.bound
        empty = MemoryLog(snapshot=snapshot, request_id_cache_max=bound)
        self._snapshot, self._first_index = snapshot, empty._first_index
        self._frames, self._durable_frames, self._common = [], [], 0
        self._terms, self._configs, self._requests = empty._terms, empty._configs, empty._requests

    def close(self) -> None:
        pass

    def crash(self) -> MemoryLog:
        """What is found after a crash: a new log of what was synced. This one refuses every later write."""
        self.fail(StorageFailedError("the log has crashed"))
        log = MemoryLog(snapshot=self._durable_snapshot, request_id_cache_max=self._requests.bound)
        # What is below the snapshot is kept for its ids, as files are.
        log._requests = RequestIndex(self._requests.bound)
        log._requests.refuse_until(self._requests.oldest_accepted_seconds)
        log._requests.add_packed(self._requests.packed(log._snapshot.index), log._snapshot.index)
        frames = self._durable_frames[log._snapshot.index - self._snapshot.index :]
        if frames:
            log.append(EntryBatch.from_frames(log.first_index, frames))
            log.sync()
            log.sync_count = 0
        return log


class MemoryPersistence(FailStop, PersistenceBase):
    """The state of a peer in memory. ``update_count`` counts the records that a file would have got."""

    def __init__(self) -> None:
        super().__init__("the state in memory")
        self._current_term = 0
        self._voted_for: str | None = None
        self._peers: PeersValue | None = None
        self._peers_update_request: bytes | None = None
        self._peers_index: int | None = None
        self.update_count = 0

    @property
    def current_term(self) -> int:
        return self._current_term

    @property
    def voted_for(self) -> str | None:
        return self._voted_for

    @property
    def peers(self) -> PeersValue | None:
        return copy.deepcopy(self._peers)

    @property
    def peers_update_request(self) -> bytes | None:
        return self._peers_update_request

    @property
    def peers_index(self) -> int | None:
        return self._peers_index

    def update_vote(self, current_term: int, voted_for: str | None) -> None:
        self.check_writable()
        check_vote((self._current_term, self._voted_for), current_term, voted_for)
        self._current_term = current_term
        self._voted_for = voted_for
        self.update_count += 1

    def update_peers(self, peers: PeersValue, request_id: bytes | None, index: int | None) -> None:
        self.check_writable()
        self._peers = copy.deepcopy(peers)
        self._peers_update_request = request_id
        self._peers_index = index
        self.update_count += 1

    def close(self) -> None:
        pass

    def crash(self) -> MemoryPersistence:
        """What is found after a crash: a new object with all that was stored. This one refuses every later update."""
        state = MemoryPersistence()
        state._current_term = self._current_term
        state._voted_for = self._voted_for
        state._peers = copy.deepcopy(self._peers)
        state._peers_update_request = self._peers_update_request
        state._peers_index = self._peers_index
        self.fail(StorageFailedError("the state has crashed"))
        return state
