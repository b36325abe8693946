"""The snapshot of a log on disk, and those that may take its place: one taken here, and one that a leader sends.

In the directory of the log's snapshot, beside it::

    snap                one that counts when the log is opened; never missing once it was there
    snap.next           taken here, complete; it waits until it may take the place of the first
    snap.received       sent by a leader, complete; it takes its place at once
    snap-DATE           those that were replaced, as many as are kept
    *.tmp               being written

Knows nothing of entries. The rule: `place` only ever moves forward, so that no snapshot that was made in the
background takes the place of one that was installed meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Final

from zmqraft.api.snapshot import SnapshotBase, SnapshotContext, SnapshotReceiver
from zmqraft.errors import CorruptionError
from zmqraft.storage.fs import FileSystem
from zmqraft.storage.log_directory import ensure_directory
from zmqraft.storage.rotation import TEMPORARY_SUFFIX, replace_file
from zmqraft.storage.snapshot_file import SnapshotFile, SnapshotWriter

__all__ = ["LogSnapshots", "own_file"]

_log = logging.getLogger(__name__)

_NEXT_SUFFIX: Final = ".next"
_RECEIVED_SUFFIX: Final = ".received"
#: What is received comes in the thread that syncs the log: it waits for nobody else, so more is synced at once.
_RECEIVED_SYNC_SIZE: Final = 1 << 20


class LogSnapshots:
    """The files. Which snapshot counts for readers is the log's to know: on disk there may be a newer one already."""

    def __init__(self, fs: FileSystem, path: str | PurePath, kept_max: int) -> None:
        """``path`` is that of the log's snapshot; ``kept_max`` are kept of those that others have replaced."""
        self._fs = fs
        self._path = str(PurePath(path))
        self._kept_max = kept_max
        # The index of the one on disk, and what is held while another takes its place.
        self._placed_index = 0
        self._placing = threading.Lock()
        self._receiver: _Receiver | None = None

    def open(self) -> SnapshotFile:
        """Open the log's snapshot; make the empty one, which zmq-raft expects too, where there is none.

        What a crash has left of one that was being received goes. Raises CorruptionError, StorageError, OSError.
        """
        fs, path = self._fs, self._path
        received = path + _RECEIVED_SUFFIX
        for left in (received, received + TEMPORARY_SUFFIX, path + TEMPORARY_SUFFIX):
            if fs.kind(left) is not None:
                self._remove_useless(left, "whoever sent it sends it again")
        try:
            snapshot = SnapshotFile.open(path, fs=fs)
        except FileNotFoundError:
            ensure_directory(fs, str(PurePath(path).parent))
            snapshot = SnapshotFile.create(path, 0, 0, fs=fs)
        self._placed_index = snapshot.index
        return snapshot

    def begin(self, index: int, term: int, context: SnapshotContext) -> Callable[[Iterable[bytes]], SnapshotBase]:
        """As `LogBase.begin_snapshot`."""
        path = self._path + _NEXT_SUFFIX

        def write(chunks: Iterable[bytes]) -> SnapshotBase:
            with SnapshotWriter(path, index, term, fs=self._fs, context=context, kept_max=0) as writer:
                for chunk in chunks:
                    writer.write(chunk)
                return writer.finish()

        return write

    def receive(self, index: int, term: int, size: int, context: SnapshotContext) -> SnapshotReceiver:
        """As `LogBase.begin_receive`, of what can be received. Raises StorageFailedError."""
        if self._receiver is not None:
            self._receiver.abort()
        path = self._path + _RECEIVED_SUFFIX
        writer = SnapshotWriter(
            path, index, term, fs=self._fs, context=context, kept_max=0, sync_size=_RECEIVED_SYNC_SIZE
        )
        self._receiver = _Receiver(writer, size)
        return self._receiver

    def check_received(self, snapshot: SnapshotBase) -> None:
        """Raise ValueError unless this is what was received last: another one has its name on disk by now."""
        if self._receiver is None or self._receiver.received is not snapshot:
            raise ValueError(f"{snapshot!r} is not the snapshot that was received last")

    def place(self, snapshot: SnapshotBase) -> None:
        """Rename a snapshot that was written here over the log's, durably, unless a newer one is there. OSError."""
        file = own_file(snapshot)
        with self._placing:
            if file.index > self._placed_index:
                replace_file(self._fs, file.path, self._path, kept_max=self._kept_max)
                self._placed_index = file.index
                file.path = self._path

    def find_waiting(self) -> SnapshotBase | None:
        """As `LogBase.find_snapshot`."""
        fs, path = self._fs, self._path + _NEXT_SUFFIX
        if fs.kind(path + TEMPORARY_SUFFIX) is not None:
            self._remove_useless(path + TEMPORARY_SUFFIX, "it was not written to its end")
        try:
            snapshot = SnapshotFile.open(path, fs=fs)
        except FileNotFoundError:
            return None
        except CorruptionError as error:
            self._remove_useless(path, str(error))
            return None
        if snapshot.index > self._placed_index:
            return snapshot
        snapshot.close()
        self._remove_useless(path, f"it is not above the log's, of index {self._placed_index}")
        return None

    def _remove_useless(self, path: str, reason: str) -> None:
        """Nothing depends on it: there will be another one."""
        _log.warning("removing the snapshot %s: %s", path, reason)
        with contextlib.suppress(OSError):
            self._fs.unlink(path)

    def close(self) -> None:
        """Give up what is being received. May be called twice."""
        if self._receiver is not None:
            self._receiver.abort()


def own_file(snapshot: SnapshotBase) -> SnapshotFile:
    """The snapshot as the file that it is. TypeError for one of another making."""
    if not isinstance(snapshot, SnapshotFile):
        raise TypeError(f"a snapshot of another log: {snapshot!r}")
    return snapshot


class _Receiver(SnapshotReceiver):
    """Writes what comes to a file."""

    def __init__(self, writer: SnapshotWriter, size: int) -> None:
        self._writer = writer
        self._size = size
        #: What `finish` returned.
        self.received: SnapshotBase | None = None

    @property
    def index(self) -> int:
        return self._writer.index

    @property
    def term(self) -> int:
        return self._writer.term

    @property
    def size(self) -> int:
        return self._size

    @property
    def offset(self) -> int:
        return self._writer.size

    def write(self, chunk: bytes | memoryview) -> None:
        self.check_fits(chunk)
        self._writer.write(chunk)

    def finish(self) -> SnapshotBase:
        self.check_complete()
        self.received = self._writer.finish()
        return self.received

    def abort(self) -> None:
        self._writer.abort()
