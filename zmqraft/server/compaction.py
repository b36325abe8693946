"""When the log is compacted, and the steps of it: by settings, by call, and with a snapshot that somebody dropped.

Section 7 of the paper. Knows nothing of sockets, and of threads only that its host has one for work that waits for the
disk. A compaction goes on like this; in between the peer serves as ever:

1. The state machine gives a view of its state, between two batches, in the thread that applies.
2. In the background the view is written to a snapshot, with the configuration and the request ids at its index.
3. The snapshot is complete, but waits until every request id at or below its index may be forgotten (the prune index):
   a peer that gets the snapshot instead of the entries, and knows nothing of our segments in it, would apply a repeated
   update twice. It waits over restarts as well. Who forces a compaction does not wait.
4. In the background the snapshot takes its place durably; then the log's first index moves up.
5. Files that nobody needs are removed in the background, if the settings say so.

A dropped snapshot is copied in step 2 instead of a view. The rule: one compaction at a time, and a snapshot that cannot
be made harms nobody: only a failure of step 4 or 5 stops the peer, since then it is not known what is on the disk.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from zmqraft.api import LogBase, PeersValue, SnapshotBase, SnapshotContext
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.errors import ClosedError, ConfigurationError, InvariantError, StorageError
from zmqraft.protocol import decode_json
from zmqraft.server.applier import View, ViewHandler
from zmqraft.server.engine import Engine
from zmqraft.server.settings import Settings
from zmqraft.storage import SnapshotFile

__all__ = ["CompactionHost", "Compactor", "configuration_at", "pieces_of"]

logger = logging.getLogger(__name__)

#: How often it is looked whether there is something to do, in seconds: in the next turn that there is anyway, or after
#: this time once more.
_CHECK_INTERVAL = 1.0
#: After a snapshot that could not be made the settings ask for none for so many seconds.
_RETRY_DELAY = 60.0
#: A snapshot is written in pieces of so many bytes. After so many seconds of work there is a pause, as long as the work
#: took, times a factor, but not longer than so many seconds.
_PIECE_SIZE = 1 << 18
_WORK_MIN = 0.0005
_PAUSE_RATIO = 2.0
_PAUSE_MAX = 0.1

_Result = TypeVar("_Result")


class CompactionHost(Protocol):
    """What a `Compactor` needs of the peer. Every callback comes in the peer's thread."""

    def take_view(self, on_view: ViewHandler) -> None:
        """See `Applier.take_view`."""

    def in_background(
        self,
        work: Callable[[], _Result],
        on_done: Callable[[_Result], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Run ``work`` in the background, one after the other, then call one of the two others."""

    def compacted(self, index: int) -> None:
        """The first index has moved up behind ``index``."""


@dataclass(slots=True)
class _Job:
    """One compaction: who waits for it, and whether it waits for the prune index."""

    force: bool = False
    #: From the dropped snapshot, not from the state machine.
    install: bool = False
    futures: list[Future[int]] = field(default_factory=list)

    def finish(self, index: int) -> None:
        for future in self.futures:
            future.set_result(index)
        self.futures.clear()

    def fail(self, error: BaseException) -> None:
        for future in self.futures:
            future.set_exception(error)
        self.futures.clear()


class Compactor:
    """All methods but `request` and `close` are for the peer's thread."""

    def __init__(self, settings: Settings, engine: Engine, log: LogBase) -> None:
        """To be made before the engine's first turn."""
        self._id = settings.id
        self._compact = settings.data.compact
        self._dropped_path = settings.data.compact_install_path
        self._engine = engine
        self._log = log
        # The configuration below the first entry of the log.
        index, configuration = engine.raft.configurations.base
        self._base = (configuration, index)
        self._host: CompactionHost
        # A complete snapshot that waits for the prune index.
        self._waiting: SnapshotBase | None = None
        self._searched = False
        # The job under way.
        self._job: _Job | None = None
        self._check_at = -math.inf
        self._retry_at = -math.inf
        # The state machine has no snapshots.
        self._has_none = False
        # What was said of the dropped snapshot, so that it is said once.
        self._said = ""
        self._lock = threading.Lock()
        self._requests: deque[_Job] = deque()
        self._closed = threading.Event()

    def attach(self, host: CompactionHost) -> None:
        """Let a host do what the compactor cannot; before `tick`."""
        self._host = host

    def snapshot_installed(self) -> None:
        """A leader's snapshot has taken the place of the log's."""
        context = self._log.snapshot.context
        if context.peers is not None:
            self._base = (ClusterConfiguration.from_value(context.peers), context.peers_index)
        else:
            index, configuration = self._engine.raft.configurations.base
            self._base = (configuration, min(index, self._log.snapshot.index))
        if self._waiting is not None and self._waiting.index <= self._log.snapshot.index:
            self._waiting = None

    # --- from any thread ----------------------------------------------------------------------------------------------

    def request(self, *, force: bool, install: bool) -> Future[int]:
        """Ask for a compaction with a view of the state machine, or (``install``) with the dropped snapshot."""
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed.is_set():
                future.set_exception(ClosedError(f"the peer {self._id} has ended"))
            else:
                self._requests.append(_Job(force, install, [future]))
        return future

    def close(self) -> None:
        """Let a snapshot that is being written be given up, and everybody who waits know. May be called twice.

        From another thread only after the peer's has ended.
        """
        with self._lock:
            self._closed.set()
            jobs = [*self._requests, *([self._job] if self._job is not None else [])]
            self._requests.clear()
        for job in jobs:
            job.fail(ClosedError(f"the peer {self._id} has ended"))

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Begin what is due. Returns the time of the next call, at the latest, if nothing is requested before."""
        if self._job is None and (self._requests or now >= self._check_at):
            self._check_at = now + _CHECK_INTERVAL
            self._begin_next(now)
        return math.inf if self._job is not None else self._check_at + _CHECK_INTERVAL

    def _begin_next(self, now: float) -> None:
        waiting = self._waiting
        if not self._searched:
            self._begin(_Job(), self._log.find_snapshot, self._found)
        elif self._requests:
            with self._lock:
                job = self._requests.popleft()
            self._begin_install(job) if job.install else self._begin_view(job)
        elif waiting is not None and waiting.index <= self._limit:
            self._place(_Job(), waiting)
        elif waiting is None and self._is_due(now):
            self._begin_view(_Job())
        elif (
            self._compact.keep_files is not None
            and (remove := self._log.begin_prune(self._compact.keep_files)) is not None
        ):
            self._begin(_Job(), remove, self._end, on_error=self._raise)
        elif self._compact.watch:
            self._begin_install(_Job(install=True))

    @property
    def _limit(self) -> int:
        """Compactions up to here may take place: entries are applied, and their request ids forgotten."""
        return min(self._engine.last_applied, self._log.prune_index)

    def _is_due(self, now: float) -> bool:
        compact, log, applied = self._compact, self._log, self._engine.last_applied
        if self._has_none or now < self._retry_at or applied <= log.snapshot.index:
            return False
        if compact.after_entries is not None and applied - log.snapshot.index >= compact.after_entries:
            return True
        return compact.after_bytes is not None and log.size_between(log.first_index, applied) >= compact.after_bytes

    # --- the steps; at the end of each the job is over or goes on -----------------------------------------------------

    def _begin(
        self,
        job: _Job,
        work: Callable[[], _Result],
        on_done: Callable[[_Result], None],
        *,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._job = job
        self._host.in_background(work, on_done, on_error or self._failed)

    def _end(self, _: Any = None) -> None:
        """The job is over; look at once whether there is something else."""
        self._job = None
        self._check_at = -math.inf

    def _pause(self) -> None:
        """The job is over, and nothing has changed: look again in a while."""
        self._job = None

    def _failed(self, error: BaseException) -> None:
        """There is no snapshot this time."""
        job = self._take_job()
        if not job.futures:
            logger.error("%s: a snapshot could not be made: %s", self._id, error, exc_info=error)
            self._retry_at = self._check_at - _CHECK_INTERVAL + _RETRY_DELAY
        job.fail(error)
        self._pause()

    def _raise(self, error: BaseException) -> None:
        self._take_job().fail(error)
        raise error

    def _take_job(self) -> _Job:
        if self._job is None:
            raise InvariantError("a step of a compaction that has not begun")
        return self._job

    def _found(self, snapshot: SnapshotBase | None) -> None:
        """Step 3 of an earlier life is where this one starts."""
        self._searched = True
        if snapshot is not None and snapshot.index > self._log.snapshot.index:
            self._waiting = snapshot
        self._end()

    def _begin_view(self, job: _Job) -> None:
        self._job = job
        self._host.take_view(self._viewed)

    def _viewed(self, index: int, view: View | BaseException) -> None:
        job = self._take_job()
        if isinstance(view, BaseException):
            self._failed(view)
        elif view is None:
            self._has_none = True
            error = ConfigurationError("the state machine offers no snapshots, so the log cannot be compacted")
            if not job.futures:
                logger.error("%s: %s", self._id, error)
            job.fail(error)
            self._pause()
        elif index <= self._log.snapshot.index:
            job.finish(self._log.snapshot.index)
            self._pause()
        else:
            write = self._log.begin_snapshot(index, self._context_at(index, job))
            self._begin(job, lambda: write(pieces_of(view, self._rest())), self._written)

    def _rest(self) -> Callable[[], None]:
        """For `pieces_of`: pauses, so that the disk and the interpreter are for others most of the time. It raises
        ClosedError when the peer ends."""
        began = time.monotonic()

        def rest() -> None:
            nonlocal began
            worked = time.monotonic() - began
            pause = min(worked * _PAUSE_RATIO, _PAUSE_MAX) if worked >= _WORK_MIN else 0.0
            if self._closed.wait(pause):
                raise ClosedError(f"the peer {self._id} has ended")
            if pause:
                began = time.monotonic()

        return rest

    def _context_at(self, index: int, job: _Job) -> SnapshotContext:
        configuration, at = configuration_at(index, self._log, self._base)
        peers: PeersValue | None = configuration.to_value()
        if configuration is self._base[0] and not self._engine.raft.is_configuration_known:
            # That came without one, and neither must the next snapshot make one up.
            peers, at = None, 0
        # Without force all of them are forgotten when the snapshot takes its place.
        request_ids = self._log.packed_requests(index) if job.force else b""
        return SnapshotContext(peers, at, request_ids, self._engine.requests_forgotten_until)

    def _written(self, snapshot: SnapshotBase) -> None:
        job = self._take_job()
        self._waiting = snapshot
        if job.force or snapshot.index <= self._limit:
            self._place(job, snapshot)
            return
        logger.info("%s: the snapshot of index %d waits for the prune index", self._id, snapshot.index)
        job.finish(snapshot.index)
        self._end()

    def _place(self, job: _Job, snapshot: SnapshotBase) -> None:
        try:
            place = self._log.begin_compaction(snapshot)
        except ValueError as error:
            logger.warning("%s: the snapshot of index %d is not used: %s", self._id, snapshot.index, error)
            self._waiting = None
            job.fail(error)
            self._pause()
        else:
            self._begin(job, place, lambda _: self._placed(snapshot), on_error=self._raise)

    def _placed(self, snapshot: SnapshotBase) -> None:
        job = self._take_job()
        if snapshot.index <= self._log.snapshot.index:
            # A leader's snapshot, which is above it, was installed meanwhile.
            self._waiting = None
            self._finish(job, self._log.snapshot.index)
            return
        self._base = configuration_at(snapshot.index, self._log, self._base)
        self._engine.compact(snapshot)
        self._waiting = None
        logger.info("%s: the log was compacted up to %d", self._id, snapshot.index)
        self._host.compacted(snapshot.index)
        self._finish(job, snapshot.index)

    def _finish(self, job: _Job, index: int) -> None:
        def finish(_: object = None) -> None:
            job.finish(index)
            self._end()

        if job.install:
            self._begin(job, self._remove_dropped, finish)
        else:
            finish()

    # --- a dropped snapshot -------------------------------------------------------------------------------------------

    def _begin_install(self, job: _Job) -> None:
        self._begin(job, lambda: _peek(self._dropped_path), self._peeked)

    def _peeked(self, found: tuple[int, int] | Exception | None) -> None:
        job = self._take_job()
        if isinstance(found, tuple):
            index, term = found
            if (index, term) == (self._log.snapshot.index, self._log.snapshot.term):
                # A crash came before it was taken away.
                self._finish(job, index)
                return
            problem, waits = self._problem_with(index, term, force=job.force)
            if problem is None:
                self._copy(job, index)
                return
        elif found is None:
            problem, waits = FileNotFoundError(f"no snapshot was dropped at {self._dropped_path}"), True
        else:
            problem, waits = found, False
        if not job.futures and str(problem) != self._said:
            self._said = str(problem)
            logger.log(logging.DEBUG if waits else logging.WARNING, "%s: %s", self._id, problem)
        job.fail(problem)
        self._pause()

    def _problem_with(self, index: int, term: int, *, force: bool) -> tuple[Exception | None, bool]:
        """Why a dropped snapshot is not installed now; and whether it may be later."""
        log, path = self._log, self._dropped_path
        if index <= log.snapshot.index:
            return ValueError(f"{path}, of index {index}, is not above the log's snapshot, {log.snapshot.index}"), False
        if index > self._engine.last_applied:
            reason = f"{path}, of index {index}, is above the last applied entry, {self._engine.last_applied}"
            return ValueError(reason), True
        if (own_term := log.term_at(index)) != term:
            reason = f"{path} belongs to another log: it has term {term} at index {index}, here it is {own_term}"
            return ValueError(reason), False
        if not force and index > self._limit:
            reason = f"{path}, of index {index}, waits: request ids are remembered from {log.prune_index + 1} on"
            return ValueError(reason), True
        return None, False

    def _copy(self, job: _Job, index: int) -> None:
        write = self._log.begin_snapshot(index, self._context_at(index, job))

        def copy() -> SnapshotBase:
            with contextlib.closing(SnapshotFile.open(self._dropped_path)) as dropped:
                if dropped.index != index:
                    raise StorageError(f"{self._dropped_path} has changed; it is looked at again")
                return write(pieces_of(dropped.chunks(_PIECE_SIZE), self._rest()))

        self._begin(job, copy, self._written)

    def _remove_dropped(self) -> None:
        with contextlib.suppress(OSError):
            self._dropped_path.unlink()


def _peek(path: Path) -> tuple[int, int] | Exception | None:
    """Index and term of a dropped snapshot, or what is wrong with it, or None."""
    try:
        index, term, _ = SnapshotFile.peek(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, StorageError) as error:
        return error
    return index, term


def pieces_of(view: bytes | Iterable[bytes], rest: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """What a state machine gave as its snapshot, one bytes object or chunks of any sizes, in pieces that are worth a
    write and not too large for one. ``rest`` is called in between, often."""
    buffer = bytearray()
    for chunk in [view] if isinstance(view, (bytes, bytearray, memoryview)) else view:
        for start in range(0, len(chunk), _PIECE_SIZE):
            part = chunk[start : start + _PIECE_SIZE] if len(chunk) > _PIECE_SIZE else chunk
            if len(buffer) + len(part) > _PIECE_SIZE:
                yield bytes(buffer)
                buffer.clear()
                rest()
            buffer += part
        rest()
    if buffer:
        yield bytes(buffer)


def configuration_at(
    index: int, log: LogBase, base: tuple[ClusterConfiguration, int]
) -> tuple[ClusterConfiguration, int]:
    """The last configuration in the log at or below ``index``, which is committed, and the index that brought it;
    ``base`` is what counts below the log's first entry."""
    for at in reversed(log.config_indexes()):
        if at <= index:
            return ClusterConfiguration.from_value(decode_json(log.read(at, at, 0).payload(0))), at
    return base
