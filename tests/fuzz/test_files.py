"""Everything that reads files, on files that are wrong in any way: a clear StorageError, or what was there.

The files are those that zmq-raft wrote (tests/compat), and ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from support.fuzzing import fuzz, mutated
from support.golden import COMPAT
from zmqraft.errors import ConfigurationError, StorageError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry
from zmqraft.storage import FileLog, RaftPersistence, SnapshotFile, StatePersistence
from zmqraft.storage.data_files import data_files, facts_of
from zmqraft.storage.verification import verify
from zmqraft.testing.simulator.disk import SimulatedDisk

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of lines about files that are wrong; the level comes back behind each test."""
    caplog.set_level(logging.CRITICAL, logger="zmqraft")


def foreign(name: str) -> Files:
    """A data directory of zmq-raft's."""
    root = COMPAT / "data" / name
    return {f"/data/{path.relative_to(root)}": path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def ours() -> Files:
    """One of ours, with several files, a snapshot, a state file."""
    disk = SimulatedDisk()
    log = FileLog.open("/data/log", "/data/snap", capacity=8, allocation_size=256, fs=disk)
    for first in range(1, 30, 5):
        entries = [
            LogEntry(index, first // 10 + 1, EntryType.STATE, index.to_bytes(12, "big"), b"x" * (index % 90 + 1))
            for index in range(first, first + 5)
        ]
        log.append(EntryBatch.from_entries(entries))
        log.sync()
    log.close()
    state = RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"secret", fs=disk)
    state.update_vote(3, "2")
    state.update_peers([("1", "tcp://127.0.0.1:1")], bytes(12), 4)
    state.close()
    applied = StatePersistence.open("/data/state.pers", fs=disk)
    applied.update(7)
    applied.close()
    files: Files = {}

    def walk(path: str) -> None:
        for name in disk.listdir(path):
            below = f"{path.rstrip('/')}/{name}"
            if disk.kind(below) == "directory":
                walk(below)
            else:
                handle = disk.open(below)
                files[below] = disk.pread(handle, disk.size(handle), 0)

    walk("/")
    return files


ALL: dict[str, Files] = {
    "ours": ours(),
    **{name: foreign(name) for name in ("compacted", "multifile", "truncated", "installed")},
}
STATES = [(COMPAT / "data" / name).read_bytes() for name in ("raft.pers", "raft-torn.pers")] + [
    ALL["ours"]["/data/raft.pers"],
    ALL["ours"]["/data/state.pers"],
]
SNAPSHOTS = [content for files in ALL.values() for path, content in files.items() if Path(path).name == "snap"]


def disk_of(files: Files) -> SimulatedDisk:
    disk = SimulatedDisk()
    for path, content in files.items():
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts)):
            folder = "/" + "/".join(parts[:depth])
            if disk.kind(folder) is None:
                disk.mkdir(folder)
        disk.pwrite(disk.open(path, write=True, create=True), content, 0)
    return disk


def tried(call: Callable[[], object]) -> object:
    """The result, or None after an error that may come out."""
    try:
        return call()
    except (StorageError, ConfigurationError, FileNotFoundError):
        return None


@pytest.mark.parametrize("name", ALL)
def test_logs(name: str, seed: int, fuzz_seconds: float | None) -> None:
    files = ALL[name]
    names = [path for path in files if path.endswith((".rlog", "/snap"))]

    def draw(random: Random) -> Files:
        changed = dict(files)
        for path in random.choices(names, k=random.choice((1, 1, 2))):
            changed[path] = mutated(random, changed[path], list(files.values()))
        if random.random() < 0.1:
            del changed[random.choice(names)]
        return changed

    def check(value: object) -> None:
        assert isinstance(value, dict)
        disk = disk_of(value)
        log = tried(lambda: FileLog.open("/data/log", "/data/snap", capacity=8, allocation_size=256, fs=disk))
        if isinstance(log, FileLog):
            # What opens can be read to its end, written to, and opened again.
            read_all(log)
            last = log.last_index
            entry = LogEntry(last + 1, log.last_term + 1, EntryType.STATE, b"n" * 12, b"new")
            log.append(EntryBatch.from_entries([entry]))
            log.sync()
            log.close()
            again = FileLog.open("/data/log", "/data/snap", capacity=8, allocation_size=256, fs=disk)
            assert (again.last_index, again.last_term) == (last + 1, entry.term)
            again.close()

    count = 40 if fuzz_seconds is None else None
    assert fuzz_some(seed, fuzz_seconds, draw, check, count)


def fuzz_some(
    seed: int,
    seconds: float | None,
    draw: Callable[[Random], object],
    check: Callable[[object], None],
    count: int | None,
) -> int:
    """As `fuzz`, with a number of inputs of its own."""
    if count is None:
        return fuzz(seed, seconds, draw, check)
    for number in range(count):
        value = draw(Random(f"{seed} {number}"))
        check(value)
    return count


def read_all(log: FileLog) -> None:
    index = log.first_index
    while index <= log.last_index:
        index = log.read(index, log.last_index, 1 << 20).last_index + 1


def test_the_tools_for_files(seed: int, fuzz_seconds: float | None) -> None:
    files = ALL["ours"]

    def draw(random: Random) -> Files:
        path = random.choice(list(files))
        return {**files, path: mutated(random, files[path], list(files.values()))}

    def check(value: object) -> None:
        assert isinstance(value, dict)
        disk = disk_of(value)
        tried(lambda: verify("/data", fs=disk))
        for file in tried(lambda: list(data_files(disk, "/data"))) or []:  # type: ignore[attr-defined]
            tried(lambda file=file: facts_of(disk, file))

    assert fuzz_some(seed, fuzz_seconds, draw, check, 100 if fuzz_seconds is None else None)


def test_state_files(seed: int, fuzz_seconds: float | None) -> None:
    def draw(random: Random) -> bytes:
        return mutated(random, random.choice(STATES), STATES)

    def check(content: object) -> None:
        assert isinstance(content, bytes)
        for open_state in (
            lambda fs: RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"secret", fs=fs),
            lambda fs: StatePersistence.open("/data/raft.pers", fs=fs),
        ):
            state = tried(lambda o=open_state: o(disk_of({"/data/raft.pers": content})))
            if isinstance(state, RaftPersistence):
                term = state.current_term
                state.update_vote(term + 1, "9")
                assert (state.current_term, state.voted_for) == (term + 1, "9")
                state.close()
            elif isinstance(state, StatePersistence):
                state.close()

    assert fuzz(seed, fuzz_seconds, draw, check)


def test_snapshots(seed: int, fuzz_seconds: float | None) -> None:
    def draw(random: Random) -> bytes:
        return mutated(random, random.choice(SNAPSHOTS), SNAPSHOTS)

    def check(content: object) -> None:
        assert isinstance(content, bytes)
        disk = disk_of({"/data/snap": content})
        tried(lambda: SnapshotFile.peek("/data/snap", fs=disk))
        snapshot = tried(lambda: SnapshotFile.open("/data/snap", fs=disk))
        if isinstance(snapshot, SnapshotFile):
            assert len(b"".join(snapshot.chunks())) == snapshot.size
            tried(lambda: snapshot.context)
            snapshot.close()

    assert fuzz(seed, fuzz_seconds, draw, check)
