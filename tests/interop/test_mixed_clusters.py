"""Peers of both kinds in one cluster: the same logs on all, whoever leads and whoever is killed."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path

import pytest

from support.mixed_cluster import NODE, PYTHON, MixedCluster
from support.node import LONG, NodeProgram
from support.writers import Writers, check_logs, wait_all
from zmqraft import EntryBatch, EntryType, FileLog, LogEntry, RaftPersistence, new_request_id

UPDATES = 4000
KILLS = 2
#: The kinds of the peers, and of their leaders that are killed.
COMBINATIONS = [("PPN", NODE), ("NNP", PYTHON), ("PPPPN", PYTHON), ("PPPNN", NODE)]
if LONG:
    COMBINATIONS += [("PPN", PYTHON), ("NNP", NODE), ("PPPPN", NODE), ("PPPNN", PYTHON)]


@pytest.mark.parametrize(("kinds", "leading"), COMBINATIONS)
def test_leaders_are_killed(modules: Path, tmp_path: Path, kinds: str, leading: str) -> None:
    """A leader of the kind is killed while updates are under way, twice; it comes back behind the others."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, kinds))
        writers = stack.enter_context(Writers(modules, cluster.urls, cluster.secret))
        for _ in range(KILLS):
            leader = cluster.make_lead(cluster.of_kind(leading))
            writers.write(UPDATES // KILLS // 2)
            # Nobody was killed meanwhile, but a slow disk can make a leader step down.
            leader = cluster.make_lead(cluster.of_kind(leading))
            under_way = writers.start(UPDATES // KILLS // 2)
            cluster.kill(leader)
            wait_all(under_way)
            cluster.start(leader)
        assert len(writers.acknowledged) == UPDATES
        last = cluster.wait_caught_up()
        cluster.stop()
        check_logs(cluster.logs(), last, writers.acknowledged)


@pytest.mark.parametrize("kind", [NODE, PYTHON])
def test_programs_are_exchanged_over_the_same_data(modules: Path, tmp_path: Path, kind: str) -> None:
    """One peer after the other goes on in the other program, with its id, url and files; and all the way back."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, 3 * kind, indexFileCapacity=256))
        writers = stack.enter_context(Writers(modules, cluster.urls, cluster.secret))
        for peer_id in [*cluster.places, *cluster.places]:
            under_way = writers.start(300)
            cluster.change_kind(peer_id)
            wait_all(under_way)
            cluster.wait_caught_up()
        assert cluster.of_kind(kind) == ["1", "2", "3"]
        last = cluster.wait_caught_up()
        cluster.stop()
        check_logs(cluster.logs(), last, writers.acknowledged)


@pytest.mark.parametrize("length", [1, 300])
@pytest.mark.parametrize("kinds", ["PPN", "NNP"])
def test_a_conflict_is_repaired(modules: Path, tmp_path: Path, kinds: str, length: int) -> None:
    """One peer has entries of leaders that never got a majority; its leader, of the other kind, replaces them."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(MixedCluster(tmp_path, modules, kinds, indexFileCapacity=64))
        writers = stack.enter_context(Writers(modules, cluster.urls, cluster.secret))
        writers.write(100)
        last = cluster.wait_caught_up()
        cluster.stop()
        odd, *others = sorted(cluster.places, key=lambda peer_id: kinds.count(cluster.places[peer_id].kind))
        term = FileTerms(modules, cluster).raise_others(others)
        conflicting = [
            LogEntry(index, term - 5 + (index - last) * 4 // (length + 1), EntryType.STATE, new_request_id(), b"lost")
            for index in range(last + 1, last + 1 + length)
        ]
        append(cluster, odd, conflicting, modules)
        assert cluster.logs()[odd][last:] == conflicting

        cluster.start(*others)
        writers.write(50)
        cluster.start(odd)
        writers.write(50)
        last = cluster.wait_caught_up()
        cluster.stop()
        logs = cluster.logs()
        check_logs(logs, last, writers.acknowledged)
        assert not {entry.request_id for entry in conflicting} & {entry.request_id for entry in logs[odd]}


class FileTerms:
    """The terms in the state files of a cluster that is stopped."""

    def __init__(self, modules: Path, cluster: MixedCluster) -> None:
        self._modules = modules
        self._cluster = cluster

    def raise_others(self, peer_ids: list[str]) -> int:
        """Raise the term of these peers by more than any entry's, so that what they write is newer; the new term."""
        logs = self._cluster.logs()
        term = max(entry.term for log in logs.values() for entry in log) + 10
        for peer_id in peer_ids:
            file = self._cluster.data(peer_id) / "raft.pers"
            if self._cluster.places[peer_id].kind == PYTHON:
                secret = self._cluster.secret.encode()
                with contextlib.closing(RaftPersistence.open(file, peer_id=peer_id, cluster=secret)) as state:
                    state.update_vote(term, None)
            else:
                with NodeProgram(self._modules, "data.js") as node:
                    node.call("openState", file=str(file), peers=[])
                    node.call("updateState", changes={"currentTerm": term, "votedFor": None})
                    node.call("closeState")
        return term


def append(cluster: MixedCluster, peer_id: str, entries: list[LogEntry], modules: Path) -> None:
    """Write entries to the log of a peer that is stopped, as its own kind does."""
    data = cluster.data(peer_id)
    if cluster.places[peer_id].kind == PYTHON:
        with contextlib.closing(FileLog.open(data / "log", data / "snap")) as log:
            log.append(EntryBatch.from_entries(entries))
            log.sync()
    else:
        frames = [base64.b64encode(entry.to_bytes()).decode() for entry in entries]
        with NodeProgram(modules, "data.js") as node:
            node.call("openLog", directory=str(data), options={})
            node.call("append", entries=frames, index=entries[0].index)
            node.call("closeLog")
