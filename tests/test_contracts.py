"""The contracts in zmqraft.testing run without pytest, and can fail: each on something that breaks one promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from zmqraft.api import LogBase, PersistenceBase, SnapshotBase
from zmqraft.protocol.entry import EntryBatch
from zmqraft.storage import MemoryLog, MemoryPersistence, MemorySnapshot
from zmqraft.testing import LogContract, PersistenceContract, SnapshotContract, run_contract


class Logs(LogContract):
    seeds = range(2)
    kind: type[MemoryLog] = MemoryLog

    def __init__(self) -> None:
        self.logs: dict[str, MemoryLog] = {}

    def open_log(self, name: str, snapshot: tuple[int, int, bytes] = (0, 0, b"")) -> LogBase:
        if name in self.logs:
            log = self.logs[name].crash()
            log.__class__ = self.kind
        else:
            log = self.kind(snapshot=MemorySnapshot(*snapshot))
        self.logs[name] = log
        return log


class States(PersistenceContract):
    kind: type[MemoryPersistence] = MemoryPersistence

    def __init__(self) -> None:
        self.states: dict[str, MemoryPersistence] = {}

    def open_state(self, name: str) -> PersistenceBase:
        state = self.kind()
        if name in self.states:
            vars(state).update(vars(self.states[name].crash()))
        self.states[name] = state
        return state


class Snapshots(SnapshotContract):
    kind: type[MemorySnapshot] = MemorySnapshot

    def make_snapshot(self, index: int, term: int, data: bytes) -> SnapshotBase:
        return self.kind(index, term, data)


@pytest.mark.parametrize("contract", [Logs, States, Snapshots])
def test_the_set_in_memory_keeps_them(contract: type[Any]) -> None:
    assert len(run_contract(contract)) >= 4


class SyncsNothing(MemoryLog):
    def sync(self) -> None:
        pass

    def begin_sync(self) -> Callable[[], None] | None:
        return None


class ReadsTooMuch(MemoryLog):
    def read(self, first: int, last: int, size_max: int) -> EntryBatch:
        return super().read(first, last, size_max + 1)


class ReadsNothing(MemoryLog):
    def read(self, first: int, last: int, size_max: int) -> EntryBatch:
        batch = super().read(first, last, max(size_max, 40))
        return batch if batch.size <= size_max else EntryBatch.empty(first)


class KeepsConfigurations(MemoryLog):
    def truncate_after(self, index: int) -> None:
        configs = self.config_indexes()
        super().truncate_after(index)
        self._configs = configs


class KeepsRequests(MemoryLog):
    def truncate_after(self, index: int) -> None:
        if index < self.last_index:
            self._requests = type(self._requests)(None)
        super().truncate_after(index)


class TakesAnything(MemoryLog):
    def append(self, batch: EntryBatch) -> None:
        super().append(batch.with_first_index(self.last_index + 1))


class ForgetsTheSnapshot(MemoryLog):
    def term_at(self, index: int) -> int | None:
        return super().term_at(index) if index >= self.first_index else None


class StaysWhereItIs(MemoryLog):
    def compact(self, snapshot: SnapshotBase) -> None:
        self._check_compaction(snapshot)
        self._snapshot = snapshot


class CompactsToAnything(MemoryLog):
    def _check_compaction(self, snapshot: SnapshotBase) -> None:
        pass


class PlacesNothing(MemoryLog):
    def begin_compaction(self, snapshot: SnapshotBase) -> Callable[[], None]:
        super().begin_compaction(snapshot)
        return lambda: None


class ForgetsBelowTheSnapshot(MemoryLog):
    def compact(self, snapshot: SnapshotBase) -> None:
        super().compact(snapshot)
        self._requests = type(self._requests)(None)


class KeepsTheLog(MemoryLog):
    def install(self, snapshot: SnapshotBase) -> None:
        frames = self._frames
        super().install(snapshot)
        self._frames = frames


class ForgetsWhatItInstalled(MemoryLog):
    def install(self, snapshot: SnapshotBase) -> None:
        before = self._durable_snapshot
        super().install(snapshot)
        self._durable_snapshot = before


class CutsWhenItInstalls(MemoryLog):
    def install(self, snapshot: SnapshotBase) -> None:
        self._terms = type(self._terms)([(snapshot.index, snapshot.term + 1)])
        super().install(snapshot)


class InstallsAnything(MemoryLog):
    def install(self, snapshot: SnapshotBase) -> None:
        assert self._receiver is not None
        self._receiver.received = snapshot
        super().install(snapshot)


class TakesIdsForNewOnes(MemoryLog):
    def install(self, snapshot: SnapshotBase) -> None:
        super().install(snapshot)
        self._requests = type(self._requests)(None)


class GoesBack(MemoryLog):
    def begin_compaction(self, snapshot: SnapshotBase) -> Callable[[], None]:
        super().begin_compaction(snapshot)

        def place() -> None:
            self._durable_snapshot = snapshot

        return place


class ChangesVotes(MemoryPersistence):
    def update_vote(self, current_term: int, voted_for: str | None) -> None:
        self._voted_for = None
        super().update_vote(current_term, voted_for)


class ForgetsVotes(MemoryPersistence):
    def crash(self) -> MemoryPersistence:
        state = super().crash()
        state._voted_for = None
        return state


class SharesPeers(MemoryPersistence):
    def update_peers(self, peers: Any, request_id: bytes | None, index: int | None) -> None:
        super().update_peers(peers, request_id, index)
        self._peers = peers


class ReadsBackwards(MemorySnapshot):
    def read(self, offset: int, size: int) -> bytes:
        return super().read(min(offset, self.size - 1), size)


@pytest.mark.parametrize(
    ("contract", "broken"),
    [
        (Logs, SyncsNothing),
        (Logs, ReadsTooMuch),
        (Logs, ReadsNothing),
        (Logs, KeepsConfigurations),
        (Logs, KeepsRequests),
        (Logs, TakesAnything),
        (Logs, ForgetsTheSnapshot),
        (Logs, StaysWhereItIs),
        (Logs, CompactsToAnything),
        (Logs, PlacesNothing),
        (Logs, ForgetsBelowTheSnapshot),
        (Logs, KeepsTheLog),
        (Logs, ForgetsWhatItInstalled),
        (Logs, CutsWhenItInstalls),
        (Logs, InstallsAnything),
        (Logs, TakesIdsForNewOnes),
        (Logs, GoesBack),
        (States, ChangesVotes),
        (States, ForgetsVotes),
        (States, SharesPeers),
        (Snapshots, ReadsBackwards),
    ],
    ids=lambda value: value.__name__,
)
def test_a_broken_promise_is_found(contract: type[Any], broken: type) -> None:
    derived = type("Broken", (contract,), {"kind": broken})
    with pytest.raises(AssertionError, match=r": expected .*, (found|returned|raised) "):
        run_contract(derived)


def test_the_contracts_need_no_pytest() -> None:
    source = "import sys, zmqraft.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
