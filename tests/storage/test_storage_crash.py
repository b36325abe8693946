"""Crashes at every call, on a disk in memory that knows what is durable: everything opens, nothing synced is lost.

Of what was not synced a crash keeps nothing or a part: of each file some first writes, of each directory any changes.
(That a single write is torn, and the checksums against it, have an issue of their own.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Generic, TypeVar

import pytest

from support.file_systems import Crash, MemoryDisk, ProbeFileSystem
from support.logs import ToldOfLog, make_entry, read_all
from zmqraft.protocol.entry import EntryBatch
from zmqraft.storage import FileLog, RaftPersistence, SnapshotFile

Told = TypeVar("Told")


class CrashPoints(Generic[Told]):
    """Runs a workload again and again, with a crash at its first call that changes something, its second, ..."""

    def __init__(
        self,
        workload: Callable[[ProbeFileSystem, Told], None],
        told: Callable[[], Told],
        *,
        disk: MemoryDisk | None = None,
        draws: int = 8,
    ) -> None:
        self.workload = workload
        self.told = told
        self.disk = disk or MemoryDisk()
        self.draws = draws

    def __iter__(self) -> Iterator[tuple[MemoryDisk, Told]]:
        """Each disk that may be found after a crash, with what the workload had been told before."""
        number = 0
        while True:
            told = self.told()
            disk = self.disk.crash()
            probe = ProbeFileSystem(disk)
            probe.fail_at, probe.error = number, Crash
            try:
                self.workload(probe, told)
            except Crash:
                pass
            else:
                return
            yield disk.crash(), deepcopy(told)
            for draw in range(self.draws):
                yield disk.crash(Random(1000 * number + draw)), deepcopy(told)
            number += 1


# --- the log ---------------------------------------------------------------------------------------------------------


def open_log(fs: MemoryDisk | ProbeFileSystem) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", capacity=4, data_size_max=200, fs=fs)


def append_and_truncate(fs: ProbeFileSystem, told: ToldOfLog) -> None:
    log = open_log(fs)
    told.append(log, 1, 1)
    told.sync(log)
    told.append(log, 1, 1)
    told.append(log, 9, 1)
    told.sync(log)
    told.truncate_after(log, 5)
    told.append(log, 1, 2, 9)
    told.sync(log)
    told.append(log, 3, 2, 20)
    told.sync(log)
    told.truncate_after(log, 7)
    told.truncate_after(log, 2)
    told.sync(log)
    log.close()


def append_with_files_made_ahead(fs: ProbeFileSystem, told: ToldOfLog) -> None:
    log = open_log(fs)
    told.append(log, 2, 1)
    log.prepare()
    told.append(log, 1, 1)
    told.sync(log)
    # Into the file that was made ahead, past it, and the next one made ahead.
    told.append(log, 7, 1)
    log.prepare()
    told.sync(log)
    # One that is started early, since the data grows too large, comes before the one made ahead.
    told.append(log, 1, 1, 40)
    told.append(log, 1, 1, 40)
    told.sync(log)
    log.prepare()
    told.truncate_after(log, 5)
    told.append(log, 2, 2)
    log.prepare()
    told.sync(log)
    log.close()


def check_and_go_on(disk: MemoryDisk, told: ToldOfLog) -> None:
    log = open_log(disk)
    found = read_all(log)
    told.check(found)
    # What was found is durable, and the log goes on from there.
    told.durable = found
    log.close()
    log = open_log(disk.crash())
    assert read_all(log) == found
    told.append(log, 6, 9)
    told.sync(log)
    log.close()


@pytest.mark.parametrize("scenario", [append_and_truncate, append_with_files_made_ahead])
def test_appending_and_truncating(scenario: Callable[[ProbeFileSystem, ToldOfLog], None]) -> None:
    states = 0
    for disk, told in CrashPoints(scenario, ToldOfLog):
        check_and_go_on(disk, told)
        states += 1
    assert states > 500


def test_a_crash_while_opening_after_a_crash() -> None:
    states = 0
    found = list(CrashPoints(append_and_truncate, ToldOfLog, draws=1))
    for disk, told in found[::3]:
        for again, _ in CrashPoints(lambda fs, _: open_log(fs).close(), object, disk=disk, draws=1):
            check_and_go_on(again, deepcopy(told))
            states += 1
    assert states > 500


def test_a_snapshot_in_the_place_of_a_log() -> None:
    """The snapshot is installed, then the peer is started again, which finishes the replacement."""

    def prepare() -> MemoryDisk:
        disk = MemoryDisk()
        log = open_log(disk)
        log.append(EntryBatch.from_entries([make_entry(index) for index in range(1, 10)]))
        log.sync()
        log.close()
        return disk

    def install(fs: ProbeFileSystem, told: list[int]) -> None:
        snapshot = SnapshotFile.create("/data/snap", 100, 4, [b"state", b"of 100"], fs=fs)
        told.append(snapshot.index)
        snapshot.close()
        open_log(fs).close()

    outcomes = set()
    start = prepare()
    for disk, told in CrashPoints(install, list, disk=start.crash()):
        log = open_log(disk)
        outcomes.add(log.snapshot.index)
        if log.snapshot.index == 100:
            assert log.snapshot.read(0, 100) == b"stateof 100"
            assert (log.first_index, log.last_index, log.last_term) == (101, 100, 4)
        else:
            assert not told
            assert log.last_index == 9
        log.close()
    assert outcomes == {0, 100}


# --- the state file --------------------------------------------------------------------------------------------------


def test_the_state_file() -> None:
    peers = [("1", "tcp://127.0.0.1:8047")]

    def open_state(fs: MemoryDisk | ProbeFileSystem) -> RaftPersistence:
        return RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"", size_max=200, fs=fs)

    def vote(fs: ProbeFileSystem, told: list[tuple[int, str | None]]) -> None:
        state = open_state(fs)
        for term in range(1, 12):
            state.update_vote(term, None)
            told.append((term, None))
            state.update_vote(term, f"peer {term}")
            told.append((term, f"peer {term}"))
            if term == 5:
                state.update_peers(peers, b"123456789012", 7)
                told.append((term, "with peers"))
        state.close()

    states = 0
    for disk, told in CrashPoints(vote, list):
        state = open_state(disk)
        known = [vote for vote in told if vote[1] != "with peers"]
        term, voted_for = known[-1] if known else (0, None)
        following = (term + 1, None) if voted_for or not term else (term, f"peer {term}")
        assert (state.current_term, state.voted_for) in ((term, voted_for), following)
        if len(known) != len(told):
            assert (state.peers, state.peers_update_request, state.peers_index) == (peers, b"123456789012", 7)
        state.update_vote(50, "1")
        state.close()
        state = open_state(disk.crash())
        assert (state.current_term, state.voted_for) == (50, "1")
        state.close()
        states += 1
    assert states > 300
