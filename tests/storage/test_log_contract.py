"""The contracts of LogBase, SnapshotBase and PersistenceBase, over every implementation that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.file_systems import MemoryDisk
from support.logs import batch_of, make_entry, read_all
from zmqraft.api import LogBase, PersistenceBase, SnapshotBase
from zmqraft.errors import StorageError, StorageFailedError
from zmqraft.storage import (
    OS_FILE_SYSTEM,
    FileLog,
    FileSystem,
    MemoryLog,
    MemoryPersistence,
    MemorySnapshot,
    RaftPersistence,
    SnapshotFile,
)
from zmqraft.testing import LogContract, PersistenceContract, SnapshotContract

SMALL = {"capacity": 8, "data_size_max": 500, "open_files_max": 3, "tail_cache_size_max": 1500}


class TestMemoryLog(LogContract):
    @pytest.fixture(autouse=True)
    def _logs(self) -> None:
        self.logs: dict[str, MemoryLog] = {}

    def open_log(self, name: str, snapshot: tuple[int, int, bytes] = (0, 0, b"")) -> LogBase:
        found = self.logs.get(name)
        log = MemoryLog(snapshot=MemorySnapshot(*snapshot)) if found is None else found.crash()
        self.logs[name] = log
        return log


class _FileLogs(LogContract):
    """Logs in files of a file system; the one before is closed, or, on a disk in memory, its power is cut."""

    fs: FileSystem
    directory: str
    limits: dict[str, int]
    logs: dict[str, FileLog]

    def open_log(self, name: str, snapshot: tuple[int, int, bytes] = (0, 0, b"")) -> LogBase:
        path = f"{self.directory}/{name}"
        if name in self.logs:
            self.logs[name].close()
        elif snapshot != (0, 0, b""):
            self.fs.mkdir(path)
            self.fs.sync_directory(self.directory or "/")
            index, term, data = snapshot
            SnapshotFile.create(f"{path}/snap", index, term, [data], fs=self.fs).close()
        log = FileLog.open(f"{path}/log", f"{path}/snap", fs=self.fs, **self.limits)
        self.logs[name] = log
        return log


class TestFileLog(_FileLogs):
    seeds = range(6)

    @pytest.fixture(autouse=True)
    def _disk(self, tmp_path: Path) -> None:
        self.fs, self.directory, self.limits, self.logs = OS_FILE_SYSTEM, str(tmp_path), {}, {}


class TestSmallFileLog(_FileLogs):
    @pytest.fixture(autouse=True)
    def _disk(self) -> None:
        self.fs, self.directory, self.limits, self.logs = MemoryDisk(), "", SMALL, {}


class TestFileLogAfterPowerCuts(_FileLogs):
    """What the next process finds is what a power cut has left."""

    @pytest.fixture(autouse=True)
    def _disk(self) -> None:
        self.fs, self.directory, self.limits, self.logs = MemoryDisk(), "", SMALL, {}

    def open_log(self, name: str, snapshot: tuple[int, int, bytes] = (0, 0, b"")) -> LogBase:
        if name in self.logs:
            assert isinstance(self.fs, MemoryDisk)
            self.fs = self.fs.crash()
            del self.logs[name]
            snapshot = (0, 0, b"")
        return super().open_log(name, snapshot)


class TestMemorySnapshot(SnapshotContract):
    def make_snapshot(self, index: int, term: int, data: bytes) -> SnapshotBase:
        return MemorySnapshot(index, term, data)


class TestSnapshotFile(SnapshotContract):
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "snap"

    def make_snapshot(self, index: int, term: int, data: bytes) -> SnapshotBase:
        return SnapshotFile.create(self.path, index, term, [data])


class TestMemoryPersistence(PersistenceContract):
    @pytest.fixture(autouse=True)
    def _states(self) -> None:
        self.states: dict[str, MemoryPersistence] = {}

    def open_state(self, name: str) -> PersistenceBase:
        found = self.states.get(name)
        self.states[name] = MemoryPersistence() if found is None else found.crash()
        return self.states[name]


class TestRaftPersistence(PersistenceContract):
    """On a disk the power of which is cut."""

    @pytest.fixture(autouse=True)
    def _disk(self) -> None:
        self.disk = MemoryDisk()

    def open_state(self, name: str) -> PersistenceBase:
        self.disk = self.disk.crash()
        return RaftPersistence.open(f"/{name}/raft.pers", peer_id="1", cluster=b"secret", size_max=300, fs=self.disk)


# --- what the contracts do not say --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_nothing_is_written_after_a_failure(kind: str) -> None:
    log = MemoryLog() if kind == "memory" else FileLog.open("/log", "/snap", fs=MemoryDisk())
    log.append(batch_of(make_entry(1)))
    cause = OSError(5, "Input/output error")
    log.fail(cause)
    log.fail(OSError(28, "No space left on device"))
    assert log.failure is cause
    for write in (lambda: log.append(batch_of(make_entry(2))), lambda: log.truncate_after(0), log.sync):
        with pytest.raises(StorageFailedError, match="Input/output error") as caught:
            write()
        assert caught.value.__cause__ is cause
    assert log.last_index == 1


def test_memory_log_loses_what_was_not_synced() -> None:
    log = MemoryLog()
    log.append(batch_of(make_entry(1), make_entry(2), make_entry(3)))
    log.sync()
    log.truncate_after(1)
    log.append(batch_of(make_entry(2, 2)))
    found = log.crash()
    assert read_all(found) == [make_entry(1), make_entry(2), make_entry(3)]
    with pytest.raises(StorageError):
        log.sync()
    found.truncate_after(1)
    found.append(batch_of(make_entry(2, 2)))
    found.sync()
    assert read_all(found.crash()) == [make_entry(1), make_entry(2, 2)]


def test_a_bounded_number_of_request_ids_shrinks_the_window_also_after_opening_anew() -> None:
    disk = MemoryDisk()
    logs: list[LogBase] = [
        FileLog.open("/data/log", "/data/snap", fs=disk, request_id_cache_max=5),
        MemoryLog(request_id_cache_max=5),
    ]
    entries = [make_entry(index) for index in range(1, 21)]
    for log in logs:
        log.append(batch_of(*entries[:5]))
        assert log.requests_forgotten_until == 0
        log.append(batch_of(*entries[5:]))
        log.sync()
    log, memory_log = logs
    log.close()
    assert isinstance(memory_log, MemoryLog)
    for log in (FileLog.open("/data/log", "/data/snap", fs=disk, request_id_cache_max=5), memory_log.crash()):
        assert log.requests_forgotten_until == int.from_bytes(entries[14].request_id[:4], "big")
        assert [log.find_request(entry.request_id) for entry in entries] == [None] * 15 + [16, 17, 18, 19, 20]
        assert log.prune_index == 15
        log.close()
