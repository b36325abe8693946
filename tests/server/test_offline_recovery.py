"""A survivor that is not running gets a new list of members: what it says before, what it does, and where it may crash.

The disk is one in memory that knows what is durable, see `support.file_systems`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from random import Random

import pytest

from support.crashes import Crashes, Disk, Scenario
from support.file_systems import MemoryDisk, ProbeFileSystem
from support.logs import batch_of, make_entry, read_all
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.raft import Role
from zmqraft.errors import ConfigurationError, ZmqRaftError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, encode_json, new_request_id
from zmqraft.server.offline_recovery import Recovery, RecoveryPlan, recover_offline
from zmqraft.server.recovery import open_raft, recover_configurations
from zmqraft.server.settings import DataSettings, PeerAddress, Settings
from zmqraft.storage import FileLog, FileSystem, RaftPersistence, SnapshotWriter, StatePersistence
from zmqraft.storage.rotation import keep_copy

STATES = int(os.environ.get("ZMQRAFT_CRASH_STATES", "400"))
PEERS = tuple(PeerAddress(peer_id, f"tcp://h:{peer_id}") for peer_id in "123")
SETTINGS = Settings(id="1", peers=PEERS, data=DataSettings("/data"), index_file_capacity=8)
ALONE = [("1", "tcp://h:1")]
ENTRIES = [make_entry(index, 1 + index // 8) for index in range(1, 30)]


def urls(*ids: str) -> list[tuple[str, str]]:
    return [(peer_id, f"tcp://h:{peer_id}") for peer_id in ids]


def config_entry(index: int, term: int, value: object) -> LogEntry:
    return LogEntry(index, term, EntryType.CONFIG, new_request_id(0), encode_json(value))


def open_log(fs: FileSystem) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", capacity=8, allocation_size=4096, fs=fs)


def open_state(fs: FileSystem) -> RaftPersistence:
    return RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"", fs=fs)


def write_data(fs: FileSystem, entries: Sequence[LogEntry], *, term: int = 0, sync: bool = True) -> None:
    """The files of peer 1 with these entries; ``sync`` closes them as a clean end does."""
    with contextlib.closing(open_state(fs)) as state:
        state.update_peers(urls("1", "2", "3"), None, None)
        state.update_vote(max([term, *(entry.term for entry in entries)]), "2")
    log = open_log(fs)
    if entries:
        log.append(EntryBatch.from_entries(entries))
    if sync:
        log.sync()
        log.close()


def disk_with(entries: Sequence[LogEntry] = ENTRIES, *, term: int = 0) -> MemoryDisk:
    disk = MemoryDisk()
    write_data(disk, entries, term=term)
    return disk


def recovered(fs: FileSystem, peers: Sequence[tuple[str, str]] | None = None) -> Recovery:
    recovery = recover_offline(SETTINGS, peers, lambda _: True, fs=fs)
    assert recovery is not None
    return recovery


def contents(fs: FileSystem, folder: str = "/data") -> dict[str, bytes]:
    """The bytes of all files below a directory, by path."""
    found: dict[str, bytes] = {}
    for name in fs.listdir(folder):
        path = f"{folder}/{name}"
        if fs.kind(path) == "directory":
            found |= contents(fs, path)
        else:
            handle = fs.open(path)
            found[path] = fs.pread(handle, fs.size(handle), 0)
            fs.close(handle)
    return found


@dataclass
class Opened:
    """What a start makes of the files."""

    entries: list[LogEntry]
    configuration: ClusterConfiguration
    index: int
    term: int
    voted_for: str | None
    role: Role


def start(fs: FileSystem) -> Opened:
    with contextlib.closing(open_state(fs)) as state, contextlib.closing(open_log(fs)) as log:
        raft = open_raft(SETTINGS, log, state, 0, 0.0, Random(1))
        history = recover_configurations(SETTINGS, log, state)
        stored = (state.current_term, state.voted_for)
        return Opened(read_all(log), history.current, history.current_index, *stored, raft.role)


def test_the_survivor_is_alone_in_a_new_term() -> None:
    disk = disk_with(term=7)
    recovery = recovered(disk)
    assert (recovery.index, recovery.term, recovery.is_new) == (30, 1007, True)
    opened = start(disk.crash())
    assert opened.entries[:-1] == ENTRIES
    added = opened.entries[-1]
    assert (added.index, added.term, added.type) == (30, 1007, EntryType.CONFIG)
    assert (opened.configuration.urls, opened.configuration.is_joint) == (dict(ALONE), False)
    assert (opened.term, opened.voted_for) == (1007, "1")
    # It leads at once, with all of its log.
    assert opened.role is Role.LEADER
    with contextlib.closing(open_state(disk)) as state:
        assert (state.peers, state.peers_index, state.peers_update_request) == (ALONE, 30, added.request_id)


def test_what_is_known_before_is_told_before() -> None:
    disk = disk_with([*ENTRIES, config_entry(30, 4, {"old": urls("1", "2", "3"), "new": urls("1", "4")})])
    with contextlib.closing(StatePersistence.open("/data/state.pers", fs=disk)) as applied:
        applied.update(20)
    plans: list[RecoveryPlan] = []
    before = contents(disk)
    assert recover_offline(SETTINGS, None, lambda plan: bool(plans.append(plan)), fs=disk) is None
    # Nobody agreed, so not a byte is another.
    assert contents(disk) == before
    (plan,) = plans
    assert plan.before == ClusterConfiguration(tuple(urls("1", "4")), tuple(urls("1", "2", "3")))
    assert plan.after == ClusterConfiguration(tuple(ALONE))
    assert (plan.last_index, plan.last_term, plan.committed, plan.term) == (30, 4, 20, 1004)
    assert plan.files == ("/data/raft.pers", "/data/log/00000/00/00/00000000000018.rlog")
    recovered(disk)
    assert start(disk).configuration.urls == dict(ALONE)


@pytest.mark.parametrize("count", [1, 7, 29])
def test_a_copy_is_kept_of_all_that_changes(count: int) -> None:
    """Also where the new entry starts a file of its own."""
    disk = disk_with(ENTRIES[:count])
    before = contents(disk)
    recovery = recovered(disk)
    after = contents(disk)
    changed = {path for path in before if after[path] != before[path]}
    copies = dict(recovery.copies)
    assert changed <= set(copies)
    for path, copy in copies.items():
        assert after[copy] == before[path]
        assert PurePath(copy).parent == PurePath("/data")
        assert PurePath(copy).name.startswith(f"{PurePath(path).name}-2023-11-14-")
    assert not [path for path in after if path.endswith(".tmp")]


def test_a_copy_is_durable() -> None:
    disk = disk_with()
    copy = keep_copy(disk, "/data/raft.pers", "/data")
    after = contents(disk.crash())
    assert after[copy] == after["/data/raft.pers"]


def test_other_survivors_may_stay() -> None:
    disk = disk_with()
    recovered(disk, urls("2", "1"))
    opened = start(disk)
    assert (opened.configuration.urls, opened.role) == (dict(urls("1", "2")), Role.FOLLOWER)


def test_what_is_done_is_not_done_again() -> None:
    disk = disk_with()
    recovered(disk)
    before = contents(disk)

    def nobody(plan: RecoveryPlan) -> bool:
        raise AssertionError("nothing is to be asked")

    assert recover_offline(SETTINGS, ALONE, nobody, fs=disk) == Recovery(30, 1004, False, ())
    assert contents(disk) == before


@pytest.mark.parametrize(
    ("peers", "reason"),
    [
        (urls("2", "3"), "the new members (2, 3) are without '1', whose data this is"),
        ([("1", "tcp://h:9")], "the new members have '1' at tcp://h:9, the settings at tcp://h:1"),
        ([*ALONE, ("2", "tcp://h:1")], "a peer url is in the list twice"),
        ([], "at least one peer"),
    ],
)
def test_a_list_that_cannot_be_meant(peers: list[tuple[str, str]], reason: str) -> None:
    disk = disk_with()
    before = contents(disk)
    with pytest.raises(ConfigurationError) as error:
        recovered(disk, peers)
    assert reason in str(error.value)
    assert contents(disk) == before


def test_where_there_is_no_data() -> None:
    disk = MemoryDisk()
    with pytest.raises(ConfigurationError, match="there is no data of a peer in /data: "):
        recovered(disk)
    assert disk.kind("/data") is None
    disk.mkdir("/data")
    open_state(disk).close()
    with pytest.raises(ConfigurationError, match="there is no log at /data/log"):
        recovered(disk)
    with pytest.raises(ConfigurationError, match="the log at /data/log is empty: there is nothing to recover"):
        recovered(disk_with([]))


def test_a_peer_that_joined_and_is_in_no_configuration_file() -> None:
    disk = MemoryDisk()
    settings = Settings(id="4", peers=PEERS, data=DataSettings("/data"), router_bind="tcp://*:4")
    with contextlib.closing(RaftPersistence.open("/data/raft.pers", peer_id="4", cluster=b"", fs=disk)) as state:
        state.update_vote(3, None)
    log = open_log(disk)
    log.append(batch_of(make_entry(1)))
    log.sync()
    with pytest.raises(ConfigurationError, match="others cannot connect to it"):
        recover_offline(settings, None, lambda _: True, fs=disk)
    log.append(EntryBatch.from_entries([config_entry(2, 3, urls("1", "2", "3", "4"))]))
    log.sync()
    log.close()
    recovery = recover_offline(settings, None, lambda _: True, fs=disk)
    assert recovery is not None
    with contextlib.closing(open_log(disk)) as log:
        (entry,) = log.read(recovery.index, recovery.index, 0)
        assert entry.data == encode_json(urls("4"))


@pytest.mark.parametrize("name", ["multifile", "truncated", "compacted", "installed"])
def test_files_of_zmq_raft(tmp_path: Path, name: str) -> None:
    source = Path(__file__).parents[1] / "compat/data"
    shutil.copytree(source / name, tmp_path, dirs_exist_ok=True)
    shutil.copy(source / "raft.pers", tmp_path / "raft.pers")
    settings = Settings(id="1", peers=PEERS, data=DataSettings(tmp_path))
    last_index = json.loads((source / "expected.json").read_text())[name]["last_index"]
    recovery = recover_offline(settings, None, lambda plan: plan.last_index == last_index)
    assert recovery is not None
    assert recovery.index == last_index + 1
    for path, copy in recovery.copies:
        assert Path(copy).parent == tmp_path
        original = source / "raft.pers" if path.endswith(".pers") else source / name / Path(path).relative_to(tmp_path)
        assert Path(copy).read_bytes() == original.read_bytes()
    with contextlib.closing(FileLog.open(tmp_path / "log", tmp_path / "snap")) as log:
        assert log.config_indexes()[-1] == recovery.index


def test_a_log_that_a_start_has_to_finish_first() -> None:
    """A crash came when a leader's snapshot had its place, and the log had not yet given way."""
    disk = disk_with()
    with SnapshotWriter("/data/snap", 50, 9, fs=disk, kept_max=0) as writer:
        writer.write(b"state")
        writer.finish().close()
    before = contents(disk)
    with pytest.raises(ConfigurationError, match="half-way through a change that a start finishes: start the peer"):
        recovered(disk)
    assert contents(disk) == before
    start(disk)
    assert recovered(disk).index == 51
    assert start(disk).configuration.urls == dict(ALONE)


# --- crashes and failures --------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What was on the disk before, and whether the recovery was said to be done."""

    before: dict[str, bytes] = field(default_factory=dict)
    done: bool = False


def scenario(count: int, *, torn: bool) -> Scenario:
    """A recovery of a log with so many entries, which was closed; or else cut off by a kill, in the next entries."""

    def prepare(fs: MemoryDisk, told: Told) -> MemoryDisk | None:
        write_data(fs, ENTRIES[:count])
        if torn:
            log = open_log(fs)
            log.append(EntryBatch.from_entries(ENTRIES[count : count + 2]))
            fs = fs.crash(Random(count))
        told.before = contents(fs)
        return fs if torn else None

    def run(fs: Disk, told: Told) -> None:
        recovered(fs)
        told.done = True

    def check(disk: Disk, told: Told) -> None:
        check_copies(disk, told)
        opened = start(disk)
        is_new = opened.configuration.urls == dict(ALONE)
        assert is_new or (not told.done and opened.configuration.urls == dict(urls("1", "2", "3")))
        states = [entry for entry in opened.entries if not entry.is_config]
        assert len(states) >= count
        assert states == ENTRIES[: len(states)]
        assert opened.role is (Role.LEADER if is_new else Role.FOLLOWER)
        if told.done:
            assert (opened.term, opened.voted_for) == (opened.entries[-1].term, "1")
        # Whatever was reached, it is finished by doing it once more.
        recovered(disk)
        assert isinstance(disk, MemoryDisk)
        again = start(disk.crash())
        assert again.configuration.urls == dict(ALONE)
        assert again.entries[: len(opened.entries)] == opened.entries
        assert again.role is Role.LEADER

    return prepare, run, Told, check


def check_copies(disk: Disk, told: Told) -> None:
    """Every file is as it was, or there is a copy of it as it was."""
    after = contents(disk)
    kept = list(after.values())
    for path, content in told.before.items():
        assert after.get(path) == content or content in kept, path


@pytest.mark.parametrize("count", [1, 7, 20])
@pytest.mark.parametrize("torn", [False, True])
def test_a_crash_at_any_moment(count: int, torn: bool, seed: int) -> None:
    *_, check = made = scenario(count, torn=torn)
    states = 0
    finished = 0
    for disk, told in Crashes(made, STATES // 6, seed):
        check(disk, told)
        states += 1
        finished += told.done
    assert states > min(30, STATES // 12)
    assert finished


def test_a_failure_at_any_call_is_an_error_and_loses_nothing() -> None:
    number = 0
    while True:
        probe = ProbeFileSystem(disk := disk_with())
        told = Told(contents(disk))
        probe.fail_at = number
        with contextlib.suppress(ZmqRaftError):
            recovered(probe)
        if not probe.failed:
            break
        check_copies(disk, told)
        assert start(disk).entries[: len(ENTRIES)] == ENTRIES
        recovered(disk)
        assert start(disk).configuration.urls == dict(ALONE)
        number += 1
    assert number > 20
    assert start(disk).configuration.urls == dict(ALONE)
