"""Workloads for `support.crashes` in which more than one thing changes on the disk: a leader's snapshot takes the place
of the log, damaged entries are put back, the members of the cluster change.
"""

from __future__ import annotations

from support.crashes import Disk, Scenario
from support.file_systems import MemoryDisk
from support.logs import ToldOfLog, batch_of, make_entry, read_all, request_id_at
from zmqraft.api import SnapshotContext
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.errors import CorruptionError
from zmqraft.protocol import encode_json
from zmqraft.protocol.entry import EntryType, LogEntry
from zmqraft.server.recovery import recover_configurations
from zmqraft.server.settings import DataSettings, PeerAddress, Settings
from zmqraft.storage import FileLog, IndexFile, RaftPersistence
from zmqraft.storage.mending import find_damage, mend

__all__ = [
    "PEERS",
    "change_scenario",
    "install_scenario",
    "mending_scenario",
    "open_log",
    "open_state",
    "snapshot_data",
]

PEERS = [(str(number), f"tcp://host-{number}.example.org:8047") for number in range(1, 20)]


def open_log(fs: Disk, capacity: int) -> FileLog:
    return FileLog.open("/data/log", "/data/snap", capacity=capacity, allocation_size=4096, fs=fs)


def open_state(fs: Disk, size_max: int) -> RaftPersistence:
    return RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"", size_max=size_max, fs=fs)


def snapshot_data(index: int) -> bytes:
    return b"state after %d " % index * 100


# --- a leader's snapshot ----------------------------------------------------------------------------------------------


class ToldOfInstall(ToldOfLog):
    """Also of snapshots; ``durable`` is what is above the snapshot that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshots = {0}
        self.before: list[LogEntry] = []

    def is_right(self, log: FileLog) -> None:
        index = log.snapshot.index
        assert index in self.snapshots
        found = read_all(log, 100_000)
        durable = self.before if index == 0 else [entry for entry in self.durable if entry.index > index]
        assert found[: len(durable)] == durable
        assert all(entry in self.written[entry.index] for entry in found)
        if index:
            assert log.snapshot.read(0, 10_000) == snapshot_data(index)
            assert log.snapshot.context.peers == PEERS[:3]
            assert log.requests_forgotten_until == 1_600_000_000


#: An id that only the leader's log had, below its snapshot.
LEADERS_ID = request_id_at(1_700_000_002, 77)


def install(log: FileLog, index: int, term: int) -> None:
    data = snapshot_data(index)
    context = SnapshotContext(PEERS[:3], 2, LEADERS_ID + (2).to_bytes(8, "little"), 1_600_000_000)
    receiver = log.begin_receive(index, term, len(data), context)
    for at in range(0, len(data), 700):
        receiver.write(data[at : at + 700])
    log.install(receiver.finish())


def install_scenario(index: int, term: int) -> Scenario:
    """A snapshot of the leader's, over a log of 20 entries of term 1 that are durable and 3 that are not."""
    gives_way = (index, term) != (12, 1)

    def prepare(fs: MemoryDisk, told: ToldOfInstall) -> None:
        log = open_log(fs, 8)
        told.append(log, 20, 1, 10)
        told.sync(log)
        told.before = told.durable
        log.close()

    def run(fs: Disk, told: ToldOfInstall) -> None:
        log = open_log(fs, 8)
        told.append(log, 3, 1, 10)
        told.snapshots.add(index)
        if gives_way:
            told.durable = []
        install(log, index, term)
        told.snapshots = {index}
        told.durable = read_all(log)
        assert len(told.durable) == (0 if gives_way else 11)
        told.append(log, 9, term, 30)
        told.sync(log)
        log.close()

    def check(disk: Disk, told: ToldOfInstall) -> None:
        log = open_log(disk, 8)
        told.is_right(log)
        assert not [name for name in disk.listdir("/data") if name.startswith("snap.")]
        at = log.snapshot.index
        assert log.find_request(LEADERS_ID) == (2 if at and gives_way else None)
        assert log.find_request(told.before[0].request_id) == (None if at and gives_way else 1)
        assert log.term_at(at) == log.snapshot.term
        assert all(term_at >= log.snapshot.term for _, term_at in log.term_runs())
        told.snapshots.add(100)
        install(log, 100, 9)
        told.append(log, 3, 9, 30)
        log.sync()
        assert isinstance(disk, MemoryDisk)
        again = open_log(disk.crash(), 8)
        assert (again.snapshot.index, [entry.index for entry in read_all(again)]) == (100, [101, 102, 103])
        told.is_right(again)
        again.close()
        log.close()

    return prepare, run, ToldOfInstall, check


# --- damaged entries that are put back --------------------------------------------------------------------------------


def open_mended(fs: Disk, told: ToldOfLog) -> FileLog:
    """Open a log, with the entries that were told of in the place of those that are damaged."""
    while True:
        try:
            return open_log(fs, 64)
        except CorruptionError as error:
            damage = find_damage(error, fs=fs)
            assert damage is not None
            mend(damage.path, batch_of(*told.durable[damage.first - 1 : damage.last]), fs=fs)


def mending_scenario(*, closed: bool) -> Scenario:
    """Bytes of some entries that follow each other, of one by itself, and an offset; the last unit may be torn."""

    def prepare(fs: MemoryDisk, told: ToldOfLog) -> None:
        log = open_log(fs, 64)
        for _ in range(3):
            told.append(log, 10, 1, 60)
            told.sync(log)
        if closed:
            log.close()
        path = "/data/log/00000/00/00/00000000000001.rlog"
        file = IndexFile.open(path, fs=fs, writable=False)
        handle = fs.open(path, write=True)
        for index in (3, 4, 5, 12):
            fs.pwrite(handle, b"\xff" * 30, file.file_offset(index) + 30)
        fs.pwrite(handle, b"\xff", 24 + 4 * 20)
        fs.fdatasync(handle)
        file.close()

    def run(fs: Disk, told: ToldOfLog) -> None:
        open_mended(fs, told).close()

    def check(disk: Disk, told: ToldOfLog) -> None:
        log = open_mended(disk, told)
        assert read_all(log, 100_000) == told.durable
        log.close()

    return prepare, run, ToldOfLog, check


# --- a change of the configuration ------------------------------------------------------------------------------------

SETTINGS = Settings(
    id="1", secret=b"", peers=(PeerAddress("1", "tcp://host-1.example.org:8047"),), data=DataSettings("/data")
)


class ToldOfChange:
    """The configuration of which it is known that it is in the log, durably, and those that may be instead."""

    def __init__(self) -> None:
        self.configurations = [ClusterConfiguration.from_value(SETTINGS.peer_urls)]


def change_scenario() -> Scenario:
    """A joint configuration and the one after it, then another joint one that is truncated: first the log, then the
    state file, as `Engine` does it."""
    joint = ClusterConfiguration.from_value({"old": PEERS[:1], "new": PEERS[:3]})
    new = ClusterConfiguration.from_value(PEERS[:3])
    other = ClusterConfiguration.from_value({"old": PEERS[:3], "new": PEERS[:2]})

    def prepare(fs: MemoryDisk, told: ToldOfChange) -> None:
        open_log(fs, 8).close()
        state = open_state(fs, 400)
        state.update_peers(SETTINGS.peer_urls, None, None)
        state.close()

    def run(fs: Disk, told: ToldOfChange) -> None:
        log, state = open_log(fs, 8), open_state(fs, 400)

        def append(index: int, term: int, configuration: ClusterConfiguration) -> None:
            told.configurations.append(configuration)
            data = encode_json(configuration.to_value())
            log.append(batch_of(make_entry(index, term, data, EntryType.CONFIG)))
            log.append(batch_of(make_entry(index + 1, term)))
            log.sync()
            told.configurations = [configuration]
            store(index, term, configuration)

        def store(index: int, term: int, configuration: ClusterConfiguration) -> None:
            state.update_peers(configuration.to_value(), make_entry(index, term).request_id, index)

        append(1, 1, joint)
        append(3, 1, new)
        append(5, 1, other)
        told.configurations.append(new)
        log.truncate_after(4)
        told.configurations = [new]
        store(3, 1, new)
        log.append(batch_of(make_entry(5, 2)))
        log.sync()
        log.close()
        state.close()

    def check(disk: Disk, told: ToldOfChange) -> None:
        log, state = open_log(disk, 8), open_state(disk, 400)
        found = recover_configurations(SETTINGS, log, state)
        assert found.current in told.configurations
        assert found.current_index == max([0, *log.config_indexes()])
        state.close()
        log.close()

    return prepare, run, ToldOfChange, check
