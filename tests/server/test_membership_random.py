"""Random changes of the configuration, with cut links, crashes, restarts, compactions and transfers, in virtual time.

``ZMQRAFT_MEMBERSHIP_SEEDS=2000 pytest tests/server/test_membership_random.py`` runs more; ``2000:500`` from 2000 on.
"""

from __future__ import annotations

import os
from random import Random

import pytest

from support.invariants import Invariants
from support.virtual_cluster import Peer, VirtualCluster, sync_in_background
from zmqraft.protocol import new_request_id

_SEEDS = os.environ.get("ZMQRAFT_MEMBERSHIP_SEEDS", "40")
_FIRST, _COUNT = map(int, _SEEDS.split(":")) if ":" in _SEEDS else (0, int(_SEEDS))
_ALL = "1234567"
_EVENTS = 60


class Run:
    """One random run."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = VirtualCluster(self.random.choice((1, 2, 3, 3, 3, 5)), seed, peer_msg_data_size=200)
        members = list(self.cluster.ids)
        for peer_id in _ALL:
            if peer_id not in members:
                self.cluster.add(peer_id, members)
        for peer in self.cluster.peers.values():
            peer.configured = members
        if self.random.random() < 0.2:
            self.cluster.foreign = set(self.random.sample(_ALL, 3))
        self.invariants = Invariants(self.cluster)
        self.cluster.on_event = self.invariants.check
        self.updates: list[bytes] = []
        self.changes = 0

    def running(self) -> list[Peer]:
        return [peer for peer in self.cluster.peers.values() if peer.engine is not None]

    def some(self) -> Peer:
        """A running peer; mostly one that leads."""
        leaders = self.cluster.leaders
        return self.random.choice(leaders if leaders and self.random.random() < 0.8 else self.running())

    def update(self) -> None:
        request_id = new_request_id(self.cluster.wall)
        if self.updates and self.random.random() < 0.2:
            request_id = self.random.choice(self.updates[-20:])
        self.updates.append(request_id)
        self.cluster.update(self.some().id, b"update", request_id)

    def change(self) -> None:
        ids = self.random.sample(_ALL, self.random.choice((1, 2, 3, 3, 3, 4, 5)))
        self.cluster.ask_change(self.some().id, sorted(ids))
        self.changes += 1

    def crash(self) -> None:
        running = self.running()
        if len(running) > 4 or (len(running) > 1 and self.random.random() < 0.3):
            self.cluster.crash(self.random.choice(running).id)

    def restart(self) -> None:
        down = [peer.id for peer in self.cluster.peers.values() if peer.engine is None]
        if down:
            self.cluster.start(self.random.choice(down))

    def cut(self) -> None:
        pairs = [(a, b) for a in _ALL for b in _ALL if a != b]
        self.cluster.cut = set(self.random.sample(pairs, self.random.choice((1, 3, 10, 20))))

    def isolate(self) -> None:
        """A partition; or one peer alone, mostly the leader."""
        ids = list(_ALL)
        self.random.shuffle(ids)
        size = self.random.randint(1, 3)
        self.cluster.partition(ids[:size], ids[size:])

    def compact(self) -> None:
        peer = self.random.choice(self.running())
        low, high = peer.log.snapshot.index, min(peer.running.last_applied, len(peer.applied))
        is_known = low == 0 or peer.log.snapshot.context.peers is not None
        if high > low and is_known:
            peer.compact(self.random.randint(low + 1, high))

    def transfer(self) -> None:
        for leader in self.cluster.leaders:
            leader.running.begin_transfer(None, self.cluster.now, must=self.random.random() < 0.5)

    def go(self) -> None:
        cluster, random = self.cluster, self.random
        cluster.start()
        actions = [self.update] * 8 + [self.change] * 3 + [self.restart] * 3 + [cluster.heal] * 2
        actions += [self.crash, self.crash, self.cut, self.isolate, self.compact, self.compact, self.transfer]
        for _ in range(_EVENTS):
            random.choice(actions)()
            cluster.run(random.choice((0.0, 0.005, 0.02, 0.1, 0.4)))
            self.note_acknowledgements()
        self.end()

    def note_acknowledgements(self) -> None:
        for request_id in self.updates:
            if (index := self.cluster.committed(request_id)) is not None:
                self.invariants.acknowledged(request_id, index)

    def end(self) -> None:
        """Everybody is back: then an entry commits, a change that is under way is finished, and all logs are equal."""
        cluster = self.cluster
        cluster.heal()
        for peer in cluster.peers.values():
            if peer.engine is None:
                cluster.start(peer.id)
        last = cluster.commit(b"the last")
        leader = cluster.leader()
        cluster.run_until(lambda: not cluster.leader().running.raft.is_changing)
        members = [peer for peer in cluster.peers.values() if peer.id in leader.running.raft.configuration]
        cluster.run_until(lambda: all(peer.running.last_applied >= last for peer in members))
        if not cluster.foreign:
            assert all(peer.running.raft.is_configuration_known for peer in members)
        self.note_acknowledgements()
        self.invariants.check_end()


@pytest.mark.parametrize("seed", range(_FIRST, _FIRST + _COUNT))
def test_random_changes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sync_in_background(monkeypatch, 0.002 if seed % 2 else None)
    Run(seed).go()
