"""The contract of LogBase, over every implementation that ships: random operations against a plain list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from support.file_systems import MemoryDisk
from support.logs import batch_of, make_entry, random_entry, read_all
from zmqraft.api import LogBase
from zmqraft.errors import StorageError, StorageFailedError
from zmqraft.protocol.entry import EntryBatch, EntryType, LogEntry
from zmqraft.storage import FileLog, MemoryLog, MemorySnapshot, SnapshotFile

OpenLog = Callable[[], LogBase]


@pytest.fixture(params=["memory", "files", "small files"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenLog]:
    """Makes the log, or closes the one that was made before and opens its files anew."""
    logs: list[LogBase] = []
    disk = MemoryDisk()

    def open_() -> LogBase:
        previous = logs.pop() if logs else None
        if previous is not None:
            previous.close()
        if request.param == "small files":
            limits = {"capacity": 8, "data_size_max": 500, "open_files_max": 3, "tail_cache_size_max": 1500}
            logs.append(FileLog.open("/data/log", "/data/snap", fs=disk, **limits))
        elif request.param == "memory":
            logs.append(previous.crash() if isinstance(previous, MemoryLog) else MemoryLog())
        else:
            logs.append(FileLog.open(tmp_path / "log", tmp_path / "snap"))
        return logs[0]

    yield open_
    for log in logs:
        log.close()


class Model:
    """A log as a list of entries, with nothing clever in it."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.forgotten = 0

    def append(self, entries: list[LogEntry]) -> None:
        self.entries += entries

    def truncate_after(self, index: int) -> None:
        del self.entries[index:]
        self.forgotten = min(self.forgotten, index)

    def remembered(self) -> list[LogEntry]:
        """The entries that the request index holds: the first ones with their id, above those forgotten."""
        seen: set[bytes] = set()
        first = []
        for entry in self.entries:
            if any(entry.request_id) and not entry.is_checkpoint and entry.request_id not in seen:
                seen.add(entry.request_id)
                first.append(entry)
        return [entry for entry in first if entry.index > self.forgotten]

    def check(self, log: LogBase, random: Random) -> None:
        entries = self.entries
        assert (log.first_index, log.last_index) == (1, len(entries))
        assert log.last_term == (entries[-1].term if entries else 0)
        assert log.term_runs() == (EntryBatch.from_entries(entries).term_runs() if entries else [])
        assert log.config_indexes() == [entry.index for entry in entries if entry.is_config]
        assert log.term_at(0) == 0
        assert log.term_at(len(entries) + 1) is None
        for _ in range(5 if entries else 0):
            first = random.randint(1, len(entries))
            last = random.randint(first, len(entries))
            size_max = random.choice([0, 1, 50, 200, 10_000])
            batch = log.read(first, last, size_max)
            assert list(batch) == entries[first - 1 : batch.last_index]
            assert batch.last_index <= last
            assert len(batch) == 1 or batch.size <= size_max
            assert log.term_at(first) == entries[first - 1].term
            entry = entries[first - 1]
            assert log.find_request(entry.request_id) == self.find(entry.request_id)

    def find(self, request_id: bytes) -> int | None:
        return next((entry.index for entry in self.remembered() if entry.request_id == request_id), None)


@pytest.mark.parametrize("seed", range(15))
def test_random_operations_against_a_list(open_log: OpenLog, seed: int) -> None:
    random = Random(seed)
    model = Model()
    log = open_log()
    term = 1
    for _ in range(60):
        action = random.random()
        if action < 0.6:
            entries = []
            for index in range(log.last_index + 1, log.last_index + 1 + random.choice([1, 1, 2, 5, 12, 30])):
                term += random.random() < 0.05
                entries.append(random_entry(random, index, term))
            log.append(EntryBatch.from_entries(entries))
            model.append(entries)
        elif action < 0.75:
            index = random.randint(0, log.last_index) if random.random() < 0.3 else max(log.last_index - 3, 0)
            log.truncate_after(index)
            model.truncate_after(index)
        elif action < 0.85:
            log.sync()
        elif action < 0.95:
            log.sync()
            log = open_log()
            model.forgotten = 0
        model.check(log, random)
    assert read_all(log) == model.entries


@pytest.mark.parametrize("seed", range(10))
def test_forgetting_requests_from_the_oldest_on(open_log: OpenLog, seed: int) -> None:
    random = Random(seed)
    log = open_log()
    entries = [random_entry(random, index, 1) for index in range(1, 40)]
    log.append(EntryBatch.from_entries(entries))
    model = Model()
    model.append(entries)
    for seconds in sorted(random.sample(range(1000, 1045), 6)):
        log.forget_requests(seconds)
        for entry in model.remembered():
            if int.from_bytes(entry.request_id[:4], "big") >= seconds:
                break
            model.forgotten = entry.index
        remembered = model.remembered()
        assert log.prune_index == (remembered[0].index - 1 if remembered else log.last_index)
        for entry in entries:
            assert log.find_request(entry.request_id) == model.find(entry.request_id)


def test_an_empty_log(open_log: OpenLog) -> None:
    log = open_log()
    assert (log.first_index, log.last_index, log.last_term) == (1, 0, 0)
    assert (log.snapshot.index, log.snapshot.term, log.snapshot.size) == (0, 0, 0)
    assert log.snapshot.read(0, 10) == b""
    assert (log.term_runs(), log.config_indexes(), log.prune_index) == ([], [], 0)
    assert log.find_request(bytes(12)) is None
    with pytest.raises(ValueError, match="not within the log"):
        log.read(1, 1, 100)


def test_a_slice_of_a_batch_is_appended_from_its_own_bytes(open_log: OpenLog) -> None:
    log = open_log()
    whole = batch_of(*(make_entry(index, data=b"%d" % index) for index in range(1, 21)))
    log.append(whole.slice(1, 5))
    log.append(whole.slice(6, 17))
    assert read_all(log) == list(whole)[:17]


def test_what_does_not_follow_is_refused_and_changes_nothing(open_log: OpenLog) -> None:
    log = open_log()
    log.append(batch_of(make_entry(1, 2), make_entry(2, 3)))
    for bad in (
        batch_of(make_entry(2, 3)),
        batch_of(make_entry(4, 3)),
        batch_of(make_entry(3, 2)),
        batch_of(make_entry(3, 5), make_entry(4, 4)),
    ):
        with pytest.raises(ValueError, match=r"does not follow|goes back"):
            log.append(bad)
        assert (log.last_index, log.last_term, log.term_runs()) == (2, 3, [(1, 2), (2, 3)])
        assert log.find_request(bad.request_id(0)) == (2 if bad.first_index == 2 else None)
    log.append(EntryBatch.empty(3))
    log.append(batch_of(make_entry(3, 3)))
    assert read_all(log) == [make_entry(1, 2), make_entry(2, 3), make_entry(3, 3)]


def test_truncating_below_the_first_index_is_refused(open_log: OpenLog) -> None:
    log = open_log()
    log.append(batch_of(make_entry(1)))
    with pytest.raises(ValueError, match="cannot truncate after -1"):
        log.truncate_after(-1)
    log.truncate_after(1)
    log.truncate_after(5)
    assert log.last_index == 1
    log.truncate_after(0)
    assert (log.last_index, log.last_term) == (0, 0)


def test_append_after_truncate_before_sync(open_log: OpenLog) -> None:
    log = open_log()
    log.append(batch_of(*(make_entry(index) for index in range(1, 31))))
    log.sync()
    log.truncate_after(5)
    log.append(batch_of(make_entry(6, 2, b"new"), make_entry(7, 2, b"x" * 100, EntryType.CONFIG)))
    log.sync()
    log = open_log()
    kept = [make_entry(index) for index in range(1, 6)]
    assert read_all(log) == [*kept, make_entry(6, 2, b"new"), make_entry(7, 2, b"x" * 100, EntryType.CONFIG)]
    assert log.config_indexes() == [7]


def test_nothing_is_written_after_a_failure(open_log: OpenLog) -> None:
    log = open_log()
    log.append(batch_of(make_entry(1)))
    assert isinstance(log, MemoryLog | FileLog)
    cause = OSError(5, "Input/output error")
    log.fail(cause)
    log.fail(OSError(28, "No space left on device"))
    assert log.failure is cause
    for write in (lambda: log.append(batch_of(make_entry(2))), lambda: log.truncate_after(0), log.sync):
        with pytest.raises(StorageFailedError, match="Input/output error") as caught:
            write()
        assert caught.value.__cause__ is cause
    assert log.last_index == 1


def test_the_log_above_a_snapshot(tmp_path: Path) -> None:
    SnapshotFile.create(tmp_path / "snap", 50, 6, [b"snapshot"]).close()
    files = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=8)
    for log in (files, MemoryLog(snapshot=MemorySnapshot(50, 6, b"snapshot"))):
        assert (log.first_index, log.last_index, log.last_term, log.prune_index) == (51, 50, 6, 50)
        assert (log.term_at(49), log.term_at(50), log.term_at(51)) == (None, 6, None)
        assert log.snapshot.read(4, 100) == b"shot"
        with pytest.raises(ValueError, match="goes back from 6 to 5"):
            log.append(batch_of(make_entry(51, 5)))
        log.append(batch_of(make_entry(51, 6), make_entry(52, 7)))
        assert log.term_runs() == [(51, 6), (52, 7)]
        with pytest.raises(ValueError, match="cannot truncate after 49"):
            log.truncate_after(49)
        log.truncate_after(50)
        assert (log.last_index, log.last_term) == (50, 6)
    files.close()


def test_close_twice(open_log: OpenLog) -> None:
    log = open_log()
    log.close()
    log.close()


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
