"""Each byte of a log, a snapshot and a state file, changed one at a time: detected, or without effect."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from support.file_systems import MemoryDisk
from support.logs import random_entry, read_all
from zmqraft.errors import ConfigurationError, CorruptionError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.storage import FileLog, RaftPersistence, SnapshotFile

FOLDER = "/data/log/00000/00/00"
PEERS = [(str(number), f"tcp://127.0.0.1:{8047 + 100 * number}") for number in range(3)]


def open_log(disk: MemoryDisk) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", capacity=32, allocation_size=1024, fs=disk)


def log_disk(*, closed: bool) -> MemoryDisk:
    """50 entries in two files, the second one with some room left."""
    random = Random(5)
    disk = MemoryDisk()
    disk.mkdir("/data")
    disk.sync_directory("/")
    SnapshotFile.create("/data/snap", 3, 1, [b"the state"], fs=disk).close()
    log = open_log(disk)
    terms = [1] * 20 + [2] * 20 + [300] * 10
    for first in range(0, 50, 5):
        unit = [random_entry(random, 4 + first + number, terms[first + number]) for number in range(5)]
        log.append(EntryBatch.from_entries(unit))
        log.sync()
    if closed:
        log.close()
    return disk.crash()


def damaged(disk: MemoryDisk, path: str) -> Iterator[tuple[MemoryDisk, int, int]]:
    """The disk with a byte of a file changed: a bit, all of them, to zero."""
    size = disk.size(disk.open(path))
    content = disk.pread(disk.open(path), size, 0)
    for offset in range(size):
        values = {content[offset] ^ 1, content[offset] ^ 0x40, content[offset] ^ 0xFF, 0}
        for value in sorted(values - {content[offset]}):
            copy = disk.crash()
            handle = copy.open(path, write=True)
            copy.pwrite(handle, bytes([value]), offset)
            copy.fdatasync(handle)
            yield copy, offset, value


def check_message(error: Exception, path: str) -> None:
    assert path in str(error)
    assert isinstance(error, ConfigurationError) or "backup" in str(error)


def outcome(disk: MemoryDisk) -> tuple[Any, ...] | None:
    """What a log shows; None when the damage was found."""
    try:
        log = open_log(disk)
        entries = read_all(log, 300)
    except CorruptionError as error:
        check_message(error, "/data/")
        return None
    snapshot = log.snapshot
    shown = (snapshot.index, snapshot.term, snapshot.read(0, 100), log.term_runs(), log.config_indexes(), entries)
    log.close()
    return shown


@pytest.mark.parametrize("path", [f"{FOLDER}/{first:014x}.rlog" for first in (4, 32)])
@pytest.mark.parametrize("closed", [True, False])
def test_a_log(path: str, closed: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    whole = log_disk(closed=closed)
    expected = outcome(whole.crash())
    assert expected is not None
    assert len(expected[-1]) == 50
    found = 0
    for disk, offset, value in damaged(whole, path):
        shown = outcome(disk)
        if shown is None:
            found += 1
        elif closed or path.endswith("4.rlog"):
            assert shown == expected, (offset, value)
        else:
            # Of a log that was not closed the last unit may be torn: it is shorter then, never different.
            assert shown[:3] == expected[:3]
            assert shown[-1] == expected[-1][: len(shown[-1])], (offset, value)
            assert len(shown[-1]) >= 45
    assert found > 2000


def test_damage_since_the_log_was_opened(caplog: pytest.LogCaptureFixture) -> None:
    """Of an entry that is read again: never another one."""
    disk = log_disk(closed=True)
    log = open_log(disk)
    expected = read_all(log)
    path = f"{FOLDER}/{32:014x}.rlog"
    handle = disk.open(path, write=True)
    content = disk.pread(handle, disk.size(handle), 0)
    for offset in range(content.index(b"ITMZ") + 8, len(content.rstrip(b"\0"))):
        disk.pwrite(handle, bytes([content[offset] ^ 0x10]), offset)
        try:
            assert read_all(log) == expected
        except CorruptionError:
            pass
        else:
            raise AssertionError(offset)
        disk.pwrite(handle, content[offset : offset + 1], offset)
    assert read_all(log) == expected
    log.close()


def test_a_snapshot() -> None:
    whole = MemoryDisk()
    data = Random(7).randbytes(300)
    SnapshotFile.create("/snap", 12, 3, [data], fs=whole).close()
    whole.sync_directory("/")
    for disk, offset, value in damaged(whole, "/snap"):
        try:
            snapshot = SnapshotFile.open("/snap", fs=disk)
        except CorruptionError as error:
            check_message(error, "/snap")
        else:
            # In the names and lengths of segments, or the version.
            shown = (snapshot.index, snapshot.term, snapshot.size, snapshot.read(0, 1000))
            assert shown == (12, 3, 300, data), (offset, value)
            snapshot.close()


def test_a_state_file(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    whole = MemoryDisk()
    whole.mkdir("/data")

    def open_state(disk: MemoryDisk) -> RaftPersistence:
        return RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"secret", fs=disk)

    state = open_state(whole)
    for term in range(1, 30):
        state.update_vote(term * 7, None)
        state.update_vote(term * 7, str(term % 3))
    state.update_peers(PEERS, b"123456789012", 40)
    state.update_vote(2**40, "2")
    state.close()
    whole.sync_directory("/")
    whole.sync_directory("/data")
    for disk, offset, value in damaged(whole, "/data/raft.pers"):
        try:
            state = open_state(disk)
        except (CorruptionError, ConfigurationError) as error:
            check_message(error, "/data/raft.pers")
        else:
            shown = (state.current_term, state.voted_for, state.peers, state.peers_update_request, state.peers_index)
            assert shown == (2**40, "2", PEERS, b"123456789012", 40), (offset, value)
            state.close()
