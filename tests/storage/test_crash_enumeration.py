"""Every crash that can be thought of, laid out on a disk in memory and opened: nothing acknowledged is lost, nothing
half-written is seen, and it goes on from there.

`support.crashes` says which there are; what is drawn comes from ``--seed``.

    ZMQRAFT_CRASH_STATES=200000 pytest tests/storage/test_crash_enumeration.py -s

lays out about as many states (default: 6,000), all subsets of up to 12; ``-s`` shows how many there were.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from support.crash_scenarios import (
    PEERS,
    change_scenario,
    install_scenario,
    mending_scenario,
    open_log,
    open_state,
    snapshot_data,
)
from support.crashes import Crashes, Disk, Scenario
from support.file_systems import MemoryDisk
from support.logs import ToldOfLog, read_all
from zmqraft.api import SnapshotContext
from zmqraft.storage import FileLog, RaftPersistence, SnapshotFile, StatePersistence

STATES = int(os.environ.get("ZMQRAFT_CRASH_STATES", "6000"))


# --- the log ---------------------------------------------------------------------------------------------------------


def log_scenario(
    capacity: int,
    before: Callable[[FileLog, ToldOfLog], None],
    workload: Callable[[FileLog, ToldOfLog], None],
    *,
    closed: bool = False,
    torn: int | None = None,
) -> Scenario:
    """A workload on a log that is opened in it, after another one, which closed the log or ended with a crash that
    tore what it had not synced, as drawn from the seed ``torn``."""

    def prepare(fs: MemoryDisk, told: ToldOfLog) -> MemoryDisk | None:
        log = open_log(fs, capacity)
        before(log, told)
        if torn is not None:
            if torn == KILLED:
                return fs
            random = Random(torn)
            items = [item for item in fs.unsynced() if item.number or torn != OFFSETS]
            return fs.crash_with(frozenset(item for item in items if torn == OFFSETS or random.random() < 0.7))
        told.sync(log)
        if closed:
            log.close()
        return None

    def run(fs: Disk, told: ToldOfLog) -> None:
        log = open_log(fs, capacity)
        workload(log, told)
        log.close()

    def check(disk: Disk, told: ToldOfLog) -> None:
        log = open_log(disk, capacity)
        found = read_all(log, 100_000)
        told.check(found)
        told.durable = found
        told.append(log, 3, 99, 30)
        told.sync(log)
        assert isinstance(disk, MemoryDisk)
        again = open_log(disk.crash(), capacity)
        assert read_all(again, 100_000) == told.durable
        again.close()
        log.close()

    return prepare, run, ToldOfLog, check


#: For a seed: all but the offsets of the first entries is kept.
OFFSETS = -1
#: And: only the process ended, so that nothing is lost, but nothing more is durable either.
KILLED = -2


def nothing(log: FileLog, told: ToldOfLog) -> None:
    pass


def some(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 3, 1, 20)
    told.sync(log)
    told.append(log, 2, 1, 200)


def tear(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 2, 1, 40)
    told.sync(log)
    told.append(log, 90, 1, 25)


def append_one(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 1, 2, 10)
    told.sync(log)


def append_large_ones(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 3, 2, 300)
    told.sync(log)
    told.append(log, 1, 2, 1)
    told.append(log, 1, 2, 500)
    told.sync(log)


def append_some(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 30, 2, 70)
    told.sync(log)


def append_many(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 1000, 2, 8)
    told.sync(log)


def append_across_files(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 20, 2, 15)
    told.sync(log)
    log.prepare()
    told.append(log, 3, 2, 100)
    told.sync(log)


def append_while_syncing(log: FileLog, told: ToldOfLog) -> None:
    for _ in range(3):
        told.append(log, 2, 2, 60)
        known = read_all(log, 100_000)
        finish = log.begin_sync()
        told.append(log, 3, 2, 60)
        assert finish is not None
        finish()
        told.durable = known
        told.sync(log)


def truncate_within_a_file(log: FileLog, told: ToldOfLog) -> None:
    told.truncate_after(log, log.last_index - 2)
    told.append(log, 2, 3, 40)
    told.sync(log)


def truncate_across_files(log: FileLog, told: ToldOfLog) -> None:
    told.truncate_after(log, 4)
    told.append(log, 5, 3, 40)
    told.sync(log)


def truncate_what_is_not_synced(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 12, 2, 40)
    told.truncate_after(log, 9)
    told.append(log, 1, 3, 40)
    told.truncate_after(log, 9)
    told.append(log, 2, 4, 140)
    told.sync(log)


def over_files(log: FileLog, told: ToldOfLog) -> None:
    told.append(log, 20, 1, 30)


# --- compaction ------------------------------------------------------------------------------------------------------


class ToldOfCompaction(ToldOfLog):
    """Also of snapshots: the index of the one that counts, and of those that may have taken its place."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshots = {0}


def compact(log: FileLog, told: ToldOfCompaction, index: int) -> None:
    context = SnapshotContext(PEERS[:index], index, log.packed_requests(index), 7)
    data = snapshot_data(index)
    snapshot = log.begin_snapshot(index, context)(data[at : at + 600] for at in range(0, len(data), 600))
    place = log.begin_compaction(snapshot)
    told.snapshots.add(index)
    place()
    told.snapshots = {index}
    log.compact(snapshot)


def compaction_scenario() -> Scenario:
    """Two compactions, the second one above the ids that are remembered, and the files below removed."""

    def prepare(fs: MemoryDisk, told: ToldOfCompaction) -> None:
        log = open_log(fs, 8)
        told.append(log, 20, 1, 10)
        told.sync(log)
        log.close()

    def run(fs: Disk, told: ToldOfCompaction) -> None:
        log = open_log(fs, 8)
        compact(log, told, 3)
        told.append(log, 4, 1, 10)
        log.sync()
        told.durable = [*told.durable[: log.snapshot.index], *read_all(log)]
        compact(log, told, 18)
        log.forget_requests(1_700_000_000 + 19)
        for remove in (log.begin_prune(1), log.begin_prune()):
            assert remove is not None
            remove()
        assert log.begin_prune() is None
        log.close()

    def check(disk: Disk, told: ToldOfCompaction) -> None:
        log = open_log(disk, 8)
        index = log.snapshot.index
        assert index in told.snapshots
        found = read_all(log, 100_000)
        assert found[: len(told.durable) - index] == told.durable[index:]
        assert log.last_index >= len(told.durable)
        if index:
            assert log.snapshot.read(0, 10_000) == snapshot_data(index)
            assert log.snapshot.context.peers == PEERS[:index]
        for entry in told.durable[18:]:
            assert log.find_request(entry.request_id) == entry.index
        if index < 18:
            assert log.find_request(told.durable[0].request_id) == 1
        waiting = log.find_snapshot()
        if waiting is not None:
            assert waiting.read(0, 10_000) == snapshot_data(waiting.index)
            waiting.close()
        if index < 18:
            compact(log, told, 18)
        log.forget_requests(1_700_000_000 + 19)
        if (remove := log.begin_prune()) is not None:
            remove()
        assert log.index_files()[0][1] == 16
        told.append(log, 3, 9, 30)
        log.sync()
        found = read_all(log)
        assert isinstance(disk, MemoryDisk)
        again = open_log(disk.crash(), 8)
        assert (again.snapshot.index, read_all(again)) == (18, found)
        again.close()
        log.close()

    return prepare, run, ToldOfCompaction, check


# --- state files and the snapshot ------------------------------------------------------------------------------------


def state_of(state: RaftPersistence) -> tuple[Any, ...]:
    return state.current_term, state.voted_for, state.peers, state.peers_index


def state_scenario(size_max: int) -> Scenario:
    def prepare(fs: MemoryDisk, told: list[Any]) -> None:
        state = open_state(fs, size_max)
        state.update_vote(1, "1")
        told[:] = [state_of(state)]

    def update(fs: Disk, told: list[Any]) -> None:
        """What is told: the values that were durable last, and those that are being stored."""
        state = open_state(fs, size_max)
        for term in range(2, 6):
            told[1:] = [(term, f"peer {term}", state.peers, state.peers_index)]
            state.update_vote(term, f"peer {term}")
            told[:] = [state_of(state)]
            told[1:] = [(term, f"peer {term}", PEERS[:term], term)]
            state.update_peers(PEERS[:term] if term < 5 else PEERS, b"123456789012", term)
            told[:] = [state_of(state)]
        state.close()

    def check(disk: Disk, told: list[Any]) -> None:
        state = open_state(disk, size_max)
        values = state_of(state)
        # The last update is of other peers than it says.
        assert values in told or (values[3] == 5 and values[2] == PEERS)
        state.update_vote(50, "1")
        state.close()
        assert isinstance(disk, MemoryDisk)
        state = open_state(disk.crash(), size_max)
        assert state_of(state) == (50, "1", *values[2:])
        state.close()

    return prepare, update, list, check


def applied_scenario() -> Scenario:
    def open_applied(fs: Disk) -> StatePersistence:
        return StatePersistence.open("/data/state.pers", size_max=700, fs=fs)

    def prepare(fs: MemoryDisk, told: list[int]) -> None:
        open_applied(fs).update(1)

    def update(fs: Disk, told: list[int]) -> None:
        """What is told: the index that was durable last."""
        state = open_applied(fs)
        for index in range(2, 60):
            state.update(index, durable=index % 7 == 0)
            if index % 7 == 0:
                told[:] = [index]
        state.close()

    def check(disk: Disk, told: list[int]) -> None:
        state = open_applied(disk)
        assert (told or [1])[0] <= state.last_applied < 60
        state.update(100)
        state.close()
        assert isinstance(disk, MemoryDisk)
        assert open_applied(disk.crash()).last_applied == 100

    return prepare, update, list, check


def snapshot_scenario() -> Scenario:
    chunks = [b"old state" * 50, b"new state" * 200]

    def prepare(fs: MemoryDisk, told: list[int]) -> None:
        fs.mkdir("/data")
        fs.sync_directory("/")
        SnapshotFile.create("/data/snap", 1, 1, [chunks[0]], fs=fs).close()

    def replace(fs: Disk, told: list[int]) -> None:
        SnapshotFile.create("/data/snap", 2, 1, [chunks[1][:700], chunks[1][700:]], fs=fs).close()
        told.append(2)

    def check(disk: Disk, told: list[int]) -> None:
        snapshot = SnapshotFile.open("/data/snap", fs=disk)
        assert snapshot.read(0, 10_000) == chunks[snapshot.index - 1]
        assert not told or snapshot.index == 2
        snapshot.close()

    return prepare, replace, list, check


SCENARIOS: dict[str, Scenario] = {
    "a new log": log_scenario(8, nothing, append_one),
    "append one": log_scenario(64, some, append_one),
    "append one to a closed log": log_scenario(64, some, append_one, closed=True),
    "append large ones": log_scenario(64, some, append_large_ones),
    "append 1000": log_scenario(2048, some, append_many),
    "append across files": log_scenario(8, some, append_across_files),
    "append while syncing": log_scenario(64, some, append_while_syncing),
    "truncate within a file": log_scenario(64, some, truncate_within_a_file),
    "truncate in tables of sectors": log_scenario(512, append_many, truncate_within_a_file),
    "truncate across files": log_scenario(8, over_files, truncate_across_files, closed=True),
    "truncate what is not synced": log_scenario(8, some, truncate_what_is_not_synced),
    **{f"open a torn log {seed}": log_scenario(512, tear, append_one, torn=seed) for seed in range(6)},
    "append where offsets were lost": log_scenario(512, tear, append_large_ones, torn=OFFSETS),
    "append after being killed": log_scenario(512, tear, append_one, torn=KILLED),
    "state update": state_scenario(10_000),
    "state rotation": state_scenario(400),
    "last applied": applied_scenario(),
    "snapshot": snapshot_scenario(),
    "compaction": compaction_scenario(),
    "install above the log": install_scenario(50, 3),
    "install over a conflict": install_scenario(12, 3),
    "install a compaction": install_scenario(12, 1),
    "mend a closed log": mending_scenario(closed=True),
    "mend a log": mending_scenario(closed=False),
    "configuration change": change_scenario(),
    # More than all subsets can be laid out of, and quick: what the others leave is drawn here.
    "append 30": log_scenario(64, some, append_some),
}


counts: dict[str, int] = {}


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_crash(name: str, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    scenario = SCENARIOS[name]
    # What is small leaves its share to others.
    wanted = (STATES - sum(counts.values())) // max(len(SCENARIOS) - len(counts), 1)
    states = 0
    for disk, told in Crashes(scenario, max(wanted, 100), seed):
        scenario[3](disk, told)
        states += 1
    counts[name] = states
    print(f"{name}: {states} states, seed {seed}")


def test_there_were_enough() -> None:
    if len(counts) == len(SCENARIOS):
        print(f"{sum(counts.values())} states")
        assert sum(counts.values()) >= 0.9 * STATES
