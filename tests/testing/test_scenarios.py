"""Scenarios of FAULTS that need the real storage, in the simulator: every invariant is checked after each event."""

from __future__ import annotations

from random import Random

import pytest

from zmqraft.constants import CAPABILITIES
from zmqraft.errors import StorageFailedError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry
from zmqraft.storage import FileLog, RaftPersistence
from zmqraft.testing.simulator import SimulatedClient, SimulatedCluster, Violation
from zmqraft.testing.simulator.disk import SimulatedDisk
from zmqraft.testing.simulator.peer import SimulatedPeer


class Scenario:
    """A running cluster with one client, which does only what it is told."""

    def __init__(self, size: int = 3, seed: int = 1, **options: object) -> None:
        self.cluster = SimulatedCluster(size, seed, **options)  # type: ignore[arg-type]
        self.cluster.start()
        self.client = SimulatedClient(self.cluster, "c", Random(seed))
        self.client.stop()

    def leader(self) -> SimulatedPeer:
        self.cluster.run_until(self.cluster.leader)
        leader = self.cluster.leader()
        assert leader is not None
        return leader

    def update(self, count: int = 1) -> None:
        """Updates, one after the other, each acknowledged."""
        for _ in range(count):
            before = len(self.client.acknowledged)
            self.client.update()
            self.cluster.run_until(lambda before=before: len(self.client.acknowledged) > before)  # type: ignore[misc]

    def all_applied(self) -> bool:
        return self.cluster.invariants.logs_are_equal(self.cluster.ids)


def test_the_match_index_never_goes_back() -> None:
    """FAULTS 11 (raftos#25): acknowledgements only ever move it on; `Invariants` compares after each event."""
    scenario = Scenario()
    scenario.update(20)
    assert len(scenario.client.acknowledged) == 20


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("background", [False, True], ids=["in turn", "in background"])
def test_what_is_acknowledged_outlives_a_power_cut_of_all(size: int, background: bool) -> None:
    """FAULTS 3, 19, 21: every machine loses its power at once, again and again, right behind an acknowledgement."""
    scenario = Scenario(size, syncs_in_background=background)
    for _ in range(10):
        scenario.update(3)
        for peer in scenario.cluster.alive:
            scenario.cluster.power_cut(peer.id)
        scenario.cluster.start()
    scenario.update()
    scenario.cluster.run_until(scenario.all_applied)
    for request_id, _, index in scenario.client.acknowledged:
        for log in scenario.cluster.invariants.logs.values():
            assert log[index - 1].request_id == request_id


def test_a_single_peer_acknowledges_after_its_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 19 (etcd#14370): one peer with a slow disk; its reply waits, and what it says is then on the disk."""
    # This small sync is done in the background, too.
    monkeypatch.setattr("zmqraft.server.engine._BACKGROUND_SIZE_MIN", 0)
    scenario = Scenario(1, syncs_in_background=True)
    scenario.leader()
    peer = scenario.cluster.peers["1"]
    peer.disk.sync_s = 0.05
    before = scenario.cluster.now
    scenario.update()
    assert scenario.cluster.now - before >= 0.05
    _, _, index = scenario.client.acknowledged[0]
    assert peer.log.entry_is_durable(peer.disk, index)


def test_a_failed_sync_stops_the_peer() -> None:
    """FAULTS 45 (cockroach#37102), W13 to W15: the sync is not tried again, and nothing is acknowledged from it."""
    scenario = Scenario()
    leader = scenario.leader()
    scenario.update()
    ended: list[tuple[str, BaseException]] = []
    scenario.cluster.on_end = lambda peer, failure: ended.append((peer.id, failure))
    leader.disk.syncs_to_fail = 1
    scenario.client.update()
    scenario.cluster.run_until(lambda: ended)
    ((peer_id, failure),) = ended
    assert peer_id == leader.id
    assert isinstance(failure, StorageFailedError)
    assert leader.disk.syncs_to_fail == 0
    # The others go on; and the one that failed starts again from what is really on its disk.
    scenario.cluster.run_until(lambda: len(scenario.client.acknowledged) == 2)
    scenario.cluster.start(leader.id)
    scenario.cluster.run_until(scenario.all_applied)


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_full_disk_stops_a_peer_and_not_the_cluster(who: str) -> None:
    """FAULTS 47, 48: it does not lead, and is not elected, again and again; with room it is as good as before."""
    scenario = Scenario()
    leader = scenario.leader()
    victim = leader if who == "leader" else next(p for p in scenario.cluster.peers.values() if p is not leader)
    ended: list[str] = []
    scenario.cluster.on_end = lambda peer, failure: ended.append(peer.id)
    victim.disk.is_full = True
    for _ in range(400):
        scenario.update()
        if ended:
            break
    assert ended == [victim.id]
    scenario.update(10)
    victim.disk.is_full = False
    scenario.cluster.start(victim.id)
    scenario.cluster.run_until(scenario.all_applied)


def test_a_joint_configuration_needs_both_majorities() -> None:
    """Section 6: with the old members out of reach the new ones alone decide nothing."""
    scenario = Scenario()
    leader = scenario.leader()
    cluster = scenario.cluster
    for new in ("4", "5"):
        cluster.add(new, ["1", "2", "3"])
        cluster.start(new)
    scenario.update()
    cluster.partition([leader.id, "4", "5"])
    scenario.client.change_members(["4", "5"])
    before = len(cluster.invariants.committed)
    cluster.run(3.0)
    assert scenario.client.changes == 0
    assert len(cluster.invariants.committed) == before
    cluster.heal()
    cluster.run_until(lambda: scenario.client.changes == 1)
    scenario.update()
    # Where the old members have taken the change back meanwhile, it is done anew.
    final = cluster.leader()
    assert final is not None
    assert sorted(final.running.raft.configuration.urls) == ["4", "5"]


def test_a_peer_that_was_alone_counts_its_own_vote_in_a_joint_configuration() -> None:
    """FAULTS 7 (scylladb#10618): it has the joint entry and nobody else does, loses its power, and must lead again."""
    scenario = Scenario(1)
    scenario.leader()
    cluster = scenario.cluster
    for new in ("2", "3"):
        cluster.add(new, ["1"])
        cluster.start(new)
    scenario.update()
    cluster.partition(["1"], ["2", "3"])
    scenario.client.change_members(["2", "3"])
    cluster.run_until(lambda: cluster.peers["1"].running.raft.configuration.is_joint)
    cluster.run(0.05)
    cluster.power_cut("1")
    cluster.start("1")
    cluster.run(2.0)
    assert cluster.peers["1"].running.raft.configuration.is_joint
    assert cluster.leader() is None
    cluster.heal()
    cluster.run_until(lambda: scenario.client.changes == 1)
    final = scenario.leader()
    assert sorted(final.running.raft.configuration.urls) == ["2", "3"]


@pytest.mark.parametrize("seed", range(3))
def test_entries_in_a_new_file_outlive_a_power_cut(seed: int) -> None:
    """FAULTS 27, W20: the name of the next index file is durable before an entry in it is acknowledged."""
    scenario = Scenario(1, seed, index_file_capacity=4)
    for _ in range(30):
        scenario.update()
        scenario.cluster.power_cut("1")
        scenario.cluster.start("1")
    assert len(scenario.client.acknowledged) == 30


def test_a_truncation_outlives_a_power_cut() -> None:
    """Behind a leader's entries nothing comes back that it had replaced (FAULTS 23)."""
    for seed in range(20):
        disk = SimulatedDisk()
        log = FileLog.open("/data/log", "/data/snap", capacity=4, allocation_size=4096, fs=disk)
        entries = [LogEntry(i, 1, EntryType.STATE, bytes([i] * 12), b"data" * 60) for i in range(1, 11)]
        log.append(EntryBatch.from_entries(entries))
        log.sync()
        log.truncate_after(5)
        disk.power_cut(Random(seed))
        log = FileLog.open("/data/log", "/data/snap", capacity=4, allocation_size=4096, fs=disk)
        assert log.last_index == 5
        log.close()


def test_an_isolated_leader_applies_nothing() -> None:
    """Figure 3, state machine safety; FAULTS 38: what a leader without a majority appends is not applied."""
    scenario = Scenario()
    leader = scenario.leader()
    scenario.update()
    applied = leader.running.last_applied
    others = [peer_id for peer_id in scenario.cluster.ids if peer_id != leader.id]
    scenario.cluster.partition(others, [leader.id])
    scenario.client.update()
    scenario.cluster.run(0.2)
    assert leader.running.last_applied == applied
    # It steps down, the others elect one of theirs, and what it had appended goes.
    scenario.update(3)
    scenario.cluster.heal()
    scenario.cluster.run_until(scenario.all_applied)


def test_overwritten_again_and_again_at_one_index() -> None:
    """FAULTS 15: leaders of several terms write at the same index, each isolated with it, disks slow all the while."""
    scenario = Scenario(3, syncs_in_background=True)
    cluster = scenario.cluster
    scenario.update(3)
    for _ in range(6):
        leader = scenario.leader()
        for peer in cluster.peers.values():
            peer.disk.sync_s = 0.02
        cluster.partition([each for each in cluster.ids if each != leader.id], [leader.id])
        scenario.client.update()
        cluster.run(0.6)
        for peer in cluster.peers.values():
            peer.disk.sync_s = 0.0
        cluster.heal()
        cluster.run(0.3)
    scenario.update()
    cluster.run_until(scenario.all_applied)


def test_a_snapshot_is_installed_in_the_middle_of_everything() -> None:
    """FAULTS 22 to 25: a follower that was down while the log was compacted loses its power at each step of this."""
    for cut_after in range(0, 40, 3):
        scenario = Scenario(3, peer_msg_data_size=64)
        cluster = scenario.cluster
        scenario.update(3)
        leader = scenario.leader()
        victim = next(peer for peer in cluster.peers.values() if peer is not leader)
        cluster.power_cut(victim.id)
        scenario.update(20)
        for peer in cluster.alive:
            peer.compactor.request(force=True, install=False)
            peer.wake(cluster.now)
        cluster.run(0.5)
        assert leader.log.first_index > 10
        cluster.on_end = lambda peer, failure, cluster=cluster: cluster.start(peer.id)  # type: ignore[misc]
        cluster.start(victim.id)
        victim.disk.cut_after = cut_after
        scenario.update(5)
        cluster.run_until(scenario.all_applied)
        assert victim.log.snapshot.index > 10


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_power_cut_at_each_step_of_a_change(who: str) -> None:
    """FAULTS W8: the state file never says more than the log, or what it says more does no harm: the peer starts."""
    cut = 0
    for cut_after in range(12):
        scenario = Scenario()
        cluster = scenario.cluster
        leader = scenario.leader()
        cluster.add("4", ["1", "2", "3"])
        cluster.start("4")
        scenario.update()
        victim = leader if who == "leader" else next(peer for peer in cluster.peers.values() if peer is not leader)
        ended: list[str] = []

        cluster.on_end = lambda peer, failure, ended=ended: ended.append(peer.id)  # type: ignore[misc]
        victim.disk.cut_after = cut_after
        scenario.client.change_members(["1", "2", "3", "4"])
        cluster.run_until(lambda ended=ended, scenario=scenario: ended or scenario.client.changes == 1)  # type: ignore[misc]
        if ended:
            cluster.start(victim.id)
        cluster.run_until(lambda scenario=scenario: scenario.client.changes == 1)  # type: ignore[misc]
        scenario.update()
        cluster.run_until(scenario.all_applied)
        cut += bool(ended)
    assert cut >= 6


def test_a_compaction_does_not_make_up_a_configuration() -> None:
    """FAULTS 25, W6 (found by seed 2831): a peer that got a snapshot without a configuration, having missed a change,
    compacts its log, and starts again: it must still know that it does not know who the members are."""
    scenario = Scenario()
    cluster = scenario.cluster
    leader = scenario.leader()
    behind = next(peer for peer in cluster.peers.values() if peer is not leader)
    # None of them says that it is ours, as peers of zmq-raft do not.
    cluster.network.filter = lambda is_reply, source, target, frames: is_reply or frames[1] != CAPABILITIES
    cluster.power_cut(behind.id)
    for new in ("4", "5"):
        cluster.add(new, ["1", "2", "3"])
        cluster.start(new)
    scenario.client.change_members(["1", "2", "3", "4", "5"])
    cluster.run_until(lambda: scenario.client.changes == 1)
    scenario.update(10)
    for peer in cluster.alive:
        peer.compactor.request(force=True, install=False)
        peer.wake(cluster.now)
    cluster.run(0.5)
    cluster.start(behind.id)
    scenario.update(5)
    cluster.run_until(lambda: behind.log.snapshot.index > 0)
    assert not behind.running.raft.is_configuration_known
    before = behind.log.snapshot.index
    scenario.update(3)
    cluster.run_until(lambda: behind.running.last_applied > before)
    request = behind.compactor.request(force=True, install=False)
    behind.wake(cluster.now)
    cluster.run_until(request.done)
    assert behind.log.snapshot.index > before
    cluster.power_cut(behind.id)
    cluster.start(behind.id)
    assert not behind.running.raft.is_configuration_known


def test_a_disk_that_lost_what_was_durable_is_found_out() -> None:
    """The harness sees what peers themselves could not know: a machine that comes back with an empty disk."""
    scenario = Scenario()
    scenario.update(3)
    scenario.cluster.run_until(scenario.all_applied)
    scenario.cluster.power_cut("1")
    scenario.cluster.peers["1"].disk = SimulatedDisk()
    with pytest.raises(Violation, match="durability"):
        scenario.cluster.start("1")


class TestPagesThatAFailedSyncHasDropped:
    """FAULTS 45, W15: the kernel says once that a sync has failed, and takes the pages for clean.

    Whoever reads the file finds what was written, but no later sync writes it. So a peer that starts again writes what
    it goes by anew, or else a power cut would take away what it has stated.
    """

    @staticmethod
    def disk() -> SimulatedDisk:
        disk = SimulatedDisk()
        disk.drops_pages = True
        return disk

    def test_a_vote(self) -> None:
        disk = self.disk()

        def opened() -> RaftPersistence:
            return RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"secret", fs=disk)

        state = opened()
        state.update_vote(4, "2")
        disk.syncs_to_fail = 1
        with pytest.raises(StorageFailedError):
            state.update_vote(5, "3")
        disk.kill()
        # The page cache has it, so this peer would refuse another candidate of term 5, and say so.
        assert opened().voted_for == "3"
        disk.power_cut(Random(1))
        assert opened().voted_for == "3"

    def test_entries(self) -> None:
        disk = self.disk()

        def opened() -> FileLog:
            return FileLog.open("/data/log", "/data/snap", capacity=16, allocation_size=4096, fs=disk)

        def entries(first: int) -> EntryBatch:
            ids = range(first, first + 5)
            return EntryBatch.from_entries(
                [LogEntry(index, 1, EntryType.STATE, bytes([index] * 12), b"data" * 300) for index in ids]
            )

        log = opened()
        log.append(entries(1))
        log.sync()
        log.append(entries(6))
        disk.syncs_to_fail = 1
        with pytest.raises(StorageFailedError):
            log.sync()
        disk.kill()
        # The page cache has them, so this peer would acknowledge them.
        assert opened().last_index == 10
        disk.power_cut(Random(1))
        assert opened().last_index == 10
