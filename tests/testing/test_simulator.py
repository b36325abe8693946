"""The simulator itself: it replays, it finds what is there to be found, and it holds over fresh seeds in every run."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path
from random import Random

import pytest

from support.mutants import MUTANTS, first_seed
from support.twins import BUILDS, COMPILED
from zmqraft import constants
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, Protocols
from zmqraft.storage import MemorySnapshot
from zmqraft.testing import command
from zmqraft.testing.simulator import Fault, KeyValueMachine, SimulatedCluster, Violation, run_seed, shrink
from zmqraft.testing.simulator.clients import SimulatedClient
from zmqraft.testing.simulator.disk import PowerCut, SimulatedDisk
from zmqraft.testing.simulator.fault_plan import KINDS, draw_faults
from zmqraft.testing.simulator.faults import Faults
from zmqraft.testing.simulator.machine import encode_command
from zmqraft.testing.simulator.network import Network
from zmqraft.testing.simulator.routes import Routes

ROOT = Path(__file__).parent.parent.parent
#: Every seed that ever failed, for whatever reason: tests/README.md says why. What a seed draws changes with the
#: simulator, so it stands for its failure only together with the commit of that time; here it is one more run.
FAILED_SEEDS = (
    15,
    42,
    118,
    146,
    168,
    218,
    220,
    269,
    294,
    329,
    335,
    345,
    591,
    778,
    1072,
    1135,
    1508,
    1527,
    1696,
    2518,
    2544,
    2831,
    3603,
    7622,
    8091,
    8198,
    12531,
    13713,
    14999,
    17949,
)


def fresh_seed() -> int:
    """Another one for each commit, the same for the same commit. `.ci/run` may set it, where there is no repository."""
    given = os.environ.get("ZMQRAFT_FIRST_SEED")
    if given is not None:
        return int(given)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return 100_000 + zlib.crc32(commit.encode()) % 1_000_000_000


def check(seed: int) -> None:
    result = run_seed(seed)
    assert result.violation is None, (
        f"{result.message}\npython -m zmqraft.testing --seeds 1 --first-seed {seed} --trace trace.txt"
    )


@pytest.mark.parametrize("seed", FAILED_SEEDS)
def test_seeds_that_failed_once(seed: int) -> None:
    check(seed)


def test_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    """A few of the hundreds that `.ci/run` runs."""
    first = fresh_seed()
    with capsys.disabled():
        print(f" [seeds {first} to {first + 19}]", end="")
    for seed in range(first, first + 20):
        check(seed)


def hashes(seeds: int, tmp_path: Path, **environment: str) -> str:
    """As a process of its own writes them."""
    path = tmp_path / f"{'-'.join(environment.values()) or 'plain'}.txt"
    arguments = ["--seeds", str(seeds), "--first-seed", "40", "--hashes", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "zmqraft.testing", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"seeds 40 to {39 + seeds} (")
    return path.read_text(encoding="ascii")


def test_a_seed_replays_exactly(tmp_path: Path) -> None:
    """Whatever the seed of Python's hashes, pure and compiled."""
    first = hashes(12, tmp_path, PYTHONHASHSEED="1")
    assert len(first.splitlines()) == 12
    assert len({line.split()[1] for line in first.splitlines()}) == 12
    assert hashes(12, tmp_path, PYTHONHASHSEED="2") == first
    if COMPILED in BUILDS:
        assert hashes(12, tmp_path, ZMQRAFT_NO_EXTENSIONS="1", ZMQRAFT_REQUIRE_EXTENSIONS="0") == first


def test_every_kind_of_fault_is_drawn_and_delivered() -> None:
    missing = set(KINDS)
    for seed in range(1, 101):
        missing -= {kind for kind, count in run_seed(seed).counts.items() if count}
        if not missing:
            break
    assert not missing


def test_a_fault_that_is_never_delivered_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard against a false green: here the network loses nothing, although it should."""
    seed = next(seed for seed in range(1, 100) if any(fault.kind == "loss" for fault in draw_faults(seed, 5.0)))
    monkeypatch.setattr(Network, "loss", property(lambda self: 0.0, lambda self, value: None), raising=False)
    result = run_seed(seed)
    assert result.violation == "undelivered"
    assert "loss" in result.message


def test_a_failing_run_is_shrunk_to_the_faults_that_matter() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "appends cut the log")
    result = first_seed(mutant, 200)
    assert result is not None
    with mutant.patch():
        shrunk = shrink(result, runs_max=60)
        assert shrunk.violation == result.violation
        assert len(shrunk.faults) < len(result.faults)
        assert run_seed(result.seed, shrunk.faults).violation == result.violation
    assert shrunk.lines


def test_the_command_says_what_failed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "appends cut the log")
    found = first_seed(mutant, 200)
    assert found is not None
    trace = tmp_path / "trace.txt"
    with mutant.patch():
        status = command.main(["--seeds", "1", "--first-seed", str(found.seed), "--no-shrink", "--trace", str(trace)])
    printed = capsys.readouterr().out
    assert status == 1
    assert f"--- seed {found.seed}: " in printed
    assert f"1 violations (seeds {found.seed})" in printed.splitlines()[-1]
    assert "AppendEntries" in trace.read_text(encoding="utf-8")


def test_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seeds", "3", "--twice"]) == 0
    assert "0 violations" in capsys.readouterr().out


def test_a_long_run_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_PROGRESS_INTERVAL_S", 0.0)
    assert command.main(["--seeds", "3"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"{done} of 3 seeds, 0 violations" for done in range(3)]


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    hashes = [tmp_path / "one", tmp_path / "two"]
    for path, jobs in zip(hashes, ("1", "2"), strict=True):
        assert command.main(["--seeds", "5", "--jobs", jobs, "--hashes", str(path)]) == 0
    assert hashes[0].read_text() == hashes[1].read_text() != ""


# --- its parts ------------------------------------------------------------------------------------------------------


class TestDisk:
    """What is synced stays; of the rest, anything may be there after a power cut."""

    @staticmethod
    def written(seed: int, *, sync: bool) -> tuple[SimulatedDisk, bytes]:
        disk = SimulatedDisk()
        disk.mkdir("/d")
        disk.sync_directory("/")
        handle = disk.open("/d/f", write=True, create=True)
        disk.sync_directory("/d")
        disk.pwrite(handle, b"a" * 2000, 0)
        disk.fdatasync(handle)
        disk.pwrite(handle, b"b" * 1500, 700)
        if sync:
            disk.fdatasync(handle)
        disk.power_cut(Random(seed))
        handle = disk.open("/d/f")
        return disk, disk.pread(handle, 4000, 0)

    def test_what_is_synced_is_there(self) -> None:
        for seed in range(20):
            assert self.written(seed, sync=True)[1] == b"a" * 700 + b"b" * 1500

    def test_each_dirty_sector_is_kept_or_lost_by_itself(self) -> None:
        found = {self.written(seed, sync=False)[1] for seed in range(400)}
        assert len(found) > 16
        for content in found:
            assert len(content) in (2000, 2200)
            for offset, byte in enumerate(content[:700]):
                assert byte == ord("a"), offset
            for sector in range(2, 3):
                assert len(set(content[sector * 512 : (sector + 1) * 512])) == 1

    def test_a_name_that_was_not_synced_may_be_gone(self) -> None:
        kinds = set()
        for seed in range(20):
            disk = SimulatedDisk()
            disk.fdatasync(disk.open("/f", write=True, create=True))
            assert not disk.is_durable("/f")
            disk.power_cut(Random(seed))
            kinds.add(disk.kind("/f"))
        assert kinds == {None, "file"}

    def test_the_power_goes_in_the_middle(self) -> None:
        disk = SimulatedDisk()
        handle = disk.open("/f", write=True, create=True)
        disk.cut_after = 1
        disk.pwrite(handle, b"x", 0)
        with pytest.raises(PowerCut):
            disk.fdatasync(handle)

    def test_only_the_syncs_of_one_file_fail(self) -> None:
        disk = SimulatedDisk()
        good, bad = (disk.open(path, write=True, create=True) for path in ("/log", "/raft.pers"))
        disk.syncs_to_fail, disk.failing = 1, "raft.pers"
        disk.fdatasync(good)
        disk.sync_directory("/")
        assert disk.failed_syncs == 0
        with pytest.raises(OSError, match="Input/output error"):
            disk.fdatasync(bad)
        disk.fdatasync(bad)
        assert disk.failed_syncs == 1

    def test_a_failed_sync_drops_pages_that_a_later_one_does_not_write(self) -> None:
        disk = SimulatedDisk()
        disk.drops_pages = True
        handle = disk.open("/f", write=True, create=True)
        disk.sync_directory("/")
        disk.pwrite(handle, b"x" * 512, 0)
        disk.syncs_to_fail = 1
        with pytest.raises(OSError, match="Input/output error"):
            disk.fdatasync(handle)
        disk.fdatasync(handle)
        assert disk.pread(handle, 512, 0) == b"x" * 512
        assert not disk.is_durable("/f", 0, 512)
        disk.power_cut(Random(1))
        assert disk.pread(disk.open("/f"), 512, 0).strip(b"\0") == b""


def test_links_keep_the_order_within_a_connection() -> None:
    cluster = SimulatedCluster(2, seed=3)
    network = cluster.network
    network.delay_max = 0.1
    arrived: list[bytes] = []
    network._on_request = lambda target, frames: arrived.append(frames[1])
    for number in range(100):
        network.send("1", "2", [b"%02d" % number])
    cluster.run(1.0)
    assert arrived == [b"%02d" % number for number in range(100)]
    # What is under way when a connection breaks is lost from some point on, and never comes out of order.
    arrived.clear()
    for number in range(100):
        network.send("1", "2", [b"%02d" % number])
    network.reset("1", "2")
    cluster.run(1.0)
    assert len(arrived) < 100
    assert arrived == [b"%02d" % number for number in range(len(arrived))]


def test_a_cut_holds_messages_back_until_it_ends() -> None:
    cluster = SimulatedCluster(2)
    arrived: list[bytes] = []
    cluster.network._on_request = lambda target, frames: arrived.append(frames[1])
    cluster.partition(["1"], ["2"])
    cluster.network.send("1", "2", [b"x"])
    cluster.run(5.0)
    assert arrived == []
    cluster.heal(breaking=0.0)
    cluster.run(1.0)
    assert arrived == [b"x"]


def test_a_slow_link_is_slow_one_way_and_keeps_the_order() -> None:
    cluster = SimulatedCluster(2)
    network = cluster.network
    arrived: list[tuple[str, bytes, float]] = []
    network._on_request = lambda target, frames: arrived.append((target, frames[1], round(cluster.now, 1)))
    network.slow["1", "2"] = 0.3
    network.send("1", "2", [b"x"])
    del network.slow["1", "2"]
    network.send("1", "2", [b"y"])
    network.send("2", "1", [b"z"])
    cluster.run(1.0)
    assert arrived == [("1", b"z", 0.0), ("2", b"x", 0.3), ("2", b"y", 0.3)]


def test_a_power_cut_waits_for_its_occasion() -> None:
    """Whatever the occasion is that a number draws: an election is all that happens here."""
    cluster = SimulatedCluster(3)
    faults = Faults(cluster, [Fault("power cut in the middle", 0.0, 0.1, 0.0, number) for number in range(30)])
    cluster.start()
    cluster.run(0.1)
    assert not faults.delivered
    assert len(cluster.alive) == 3
    cluster.run(2.0)
    assert faults.delivered["power cut in the middle"] == faults.delivered["power cut"] > 0
    assert faults.undelivered == []


def test_a_peer_opens_what_a_crash_of_zmq_raft_has_left(caplog: pytest.LogCaptureFixture) -> None:
    """A file without all of its header, and entries without their data: neither is there when it is back."""
    cluster = SimulatedCluster(1, index_file_capacity=4)
    peer = cluster.peers["1"]
    faults = Faults(cluster, [Fault("foreign crash", 0.5 * number, 0.1, 0.0, number) for number in range(1, 20)])
    client = SimulatedClient(cluster, "c", Random(1), timeout_s=0.1)
    cluster.start()
    cluster.run(10.0)
    assert faults.delivered["foreign crash"] == 19
    for what in ("removing the half-made index file", "which were not written completely and never acknowledged"):
        assert what in caplog.text
    assert len(client.acknowledged) > 20
    assert peer.running.raft.log.last_index == len(cluster.invariants.logs["1"])


def test_an_update_is_answered_where_it_was_asked_for_last() -> None:
    cluster = SimulatedCluster(1)
    peer = cluster.peers["1"]
    routes = Routes()
    cluster.start()
    cluster.run_until(lambda: peer.role == "leader")
    request_id = bytes(12)
    accepted = Protocols.REQUEST_UPDATE.encode_response(True)
    done = Protocols.REQUEST_UPDATE.encode_response(True, 7)
    for identity in (b"first", b"last"):
        routes.arrived(peer, [identity, request_id, constants.REQUEST_UPDATE])
        routes.replied(peer, identity, request_id, accepted)
    routes.applied(peer, [request_id])
    routes.replied(peer, b"first", request_id, done)
    with pytest.raises(Violation, match="route"):
        routes.turned(peer)
    routes.applied(peer, [request_id])
    routes.replied(peer, b"last", request_id, done)
    routes.turned(peer)


def test_a_snapshot_of_two_pieces_is_noticed() -> None:
    """Two replicas write the same state in other bytes, so that what is half of one and half of the other shows."""
    entries = [LogEntry(index, 1, EntryType.STATE, bytes(12), encode_command("put", "k", "v")) for index in (1, 2)]
    written = []
    for batches in ([entries], [entries[:1], entries[1:]]):
        machine = KeyValueMachine()
        for batch in batches:
            machine.apply_entries(EntryBatch.from_entries(batch), 1)
        written.append(b"".join(machine.snapshot()))
    one, other = written
    assert len(one) == len(other)
    half = len(one) // 2
    for content in written:
        KeyValueMachine().restore(MemorySnapshot(2, 1, content))
    with pytest.raises(ValueError, match="begins as 000001 and ends as 000002"):
        KeyValueMachine().restore(MemorySnapshot(2, 1, one[:half] + other[half:]))


def test_without_a_majority_nothing_is_well() -> None:
    cluster = SimulatedCluster(3)
    cluster.start("1")
    with pytest.raises(Violation, match="liveness"):
        cluster.run_until(cluster.leader, 5.0)
