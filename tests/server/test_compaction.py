"""Compaction of running peers: by call, by settings, with a dropped snapshot; and what is there after a restart."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import pytest

from support.local_cluster import PATIENT, SECRET, cluster_settings, wait_for
from support.logs import make_entry
from zmqraft.api import SnapshotBase, SnapshotContext, StateMachineBase
from zmqraft.client import SnapshotChunk, ZmqRaftClient
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.errors import ClosedError, ConfigurationError, StorageFailedError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, encode_json, new_request_id
from zmqraft.server.builder import build_peer
from zmqraft.server.compaction import configuration_at, pieces_of
from zmqraft.server.peer import ZmqRaft
from zmqraft.server.recovery import open_raft
from zmqraft.server.settings import CompactSettings, Settings
from zmqraft.storage import FileLog, MemoryLog, MemoryPersistence, MemorySnapshot, SnapshotFile


class Lines(StateMachineBase):
    """Remembers the data of all entries, one a line, and where it began."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.restored: list[int] = []
        self.threads: set[str] = set()

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        self.lines += [entry.data for entry in entries if entry.is_state]

    def snapshot(self) -> bytes | Iterable[bytes] | None:
        return self._chunks(list(self.lines))

    def _chunks(self, lines: list[bytes]) -> Iterator[bytes]:
        self.threads.add(threading.current_thread().name)
        yield from (line + b"\n" for line in lines)

    def restore(self, snapshot: SnapshotBase) -> None:
        self.lines = b"".join(snapshot.chunks(10)).split(b"\n")[:-1]
        self.restored.append(snapshot.index)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return cluster_settings(tmp_path, 1, index_file_capacity=8)[0]


def with_compaction(settings: Settings, **changes: object) -> Settings:
    data = dataclasses.replace(settings.data, compact=CompactSettings(**changes))  # type: ignore[arg-type]
    return dataclasses.replace(settings, data=data)


def peer_with(settings: Settings, machine: StateMachineBase) -> ZmqRaft:
    return build_peer(settings, state_machine=lambda _: machine)


def client_of(peer: ZmqRaft) -> ZmqRaftClient:
    return ZmqRaftClient(peer.url, secret=SECRET, deadline_s=60.0)


def update(client: ZmqRaftClient, count: int) -> None:
    for future in [client.submit_update(b"%d" % number) for number in range(count)]:
        future.result()


def fill_with_old_entries(settings: Settings, count: int) -> None:
    """A log whose request ids are so old that nobody needs them any more."""
    log = FileLog.open(settings.data.log_path, settings.data.snapshot_path, capacity=settings.index_file_capacity)
    log.append(EntryBatch.from_entries([make_entry(index, 1, b"%d" % index) for index in range(1, count + 1)]))
    log.sync()
    log.close()


def drop(settings: Settings, index: int, term: int = 1, data: bytes = b"dropped\n") -> Path:
    path = settings.data.compact_install_path
    path.parent.mkdir(exist_ok=True)
    SnapshotFile.create(path, index, term, [data]).close()
    return path


# --- by call ---------------------------------------------------------------------------------------------------------


def test_a_forced_compaction_and_the_start_from_its_snapshot(settings: Settings) -> None:
    request_id = new_request_id()
    first, compacted = Lines(), []
    with peer_with(settings, first) as peer, client_of(peer) as client:
        peer.on("compact", compacted.append)
        repeated = client.request_update(request_id, b"only once")
        update(client, 20)
        assert peer.compact(force=True).result(60.0) == 22
        assert (peer._log.first_index, peer._log.snapshot.index, compacted) == (23, 22, [22])
        assert first.threads == {"zmqraft 1 compacts"}
        # Nothing has changed since.
        assert peer.compact(force=True).result(60.0) == 22
        update(client, 3)
        assert client.request_update(request_id, b"only once") == repeated == 2
        with client.request_entries(previous_index=0) as entries:
            received = list(entries)
    chunk = received[0]
    assert isinstance(chunk, SnapshotChunk)
    assert (chunk.index, bytes(chunk.data)) == (22, b"".join(line + b"\n" for line in first.lines[:21]))
    assert [entry.index for entry in received[1:]] == [23, 24, 25]
    second = Lines()
    with peer_with(settings, second) as peer, client_of(peer) as client:
        assert second.restored == [22]
        update(client, 2)
        assert second.lines == [*first.lines, b"0", b"1"]
        assert client.request_update(request_id, b"only once") == repeated


def test_a_compaction_waits_for_the_request_ids(settings: Settings) -> None:
    with peer_with(settings, Lines()) as peer, client_of(peer) as client:
        update(client, 10)
        assert peer.compact().result(60.0) == 11
        assert peer._log.first_index == 1
        update(client, 10)
    # Later, when the ids may be forgotten.
    old = dataclasses.replace(settings, request_id_ttl=2, request_id_ttl_accept_margin=1)
    machine = Lines()
    with peer_with(old, machine) as peer:
        wait_for(lambda: peer._log.first_index == 12, "the compaction to take place")
        assert machine.restored == []
    machine = Lines()
    with peer_with(settings, machine) as peer:
        wait_for(lambda: len(machine.lines) == 20, "everything to be applied")
        assert machine.restored == [11]


class Persistent(Lines):
    """It has stored what it applied, up to an index, and the lines up to there."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    @property
    def last_applied(self) -> int:
        return self.index

    def restore(self, snapshot: SnapshotBase) -> None:
        super().restore(snapshot)
        self.index = snapshot.index


def test_a_persistent_state_machine_is_restored_only_from_a_snapshot_that_is_ahead_of_it(settings: Settings) -> None:
    with peer_with(settings, Lines()) as peer, client_of(peer) as client:
        update(client, 10)
        assert peer.compact(force=True).result(60.0) == 11
        update(client, 5)
    for index, restored, lines in ((10, [11], 15), (11, [], 5), (14, [], 2)):
        machine = Persistent(index)
        with peer_with(settings, machine) as peer:
            wait_for(lambda: len(machine.lines) == lines, "the entries behind that to be applied")  # noqa: B023
            assert (machine.restored, machine.lines[-1]) == (restored, b"4")
    with pytest.raises(ConfigurationError, match="it belongs to other data"):
        peer_with(settings, Persistent(1000))


class Failing(Lines):
    fails: BaseException | None = RuntimeError("no view")

    def snapshot(self) -> bytes | Iterable[bytes] | None:
        if self.fails is not None:
            raise self.fails
        return self._failing()

    def _failing(self) -> Iterator[bytes]:
        yield b"some"
        raise RuntimeError("half-way")


def test_what_fails_in_a_snapshot_does_not_stop_the_peer(settings: Settings) -> None:
    machine = Failing()
    with peer_with(settings, machine) as peer, client_of(peer) as client:
        update(client, 5)
        with pytest.raises(RuntimeError, match="no view"):
            peer.compact(force=True).result(60.0)
        machine.fails = None
        with pytest.raises(RuntimeError, match="half-way"):
            peer.compact(force=True).result(60.0)
        update(client, 5)
        assert (peer.state, peer._log.first_index) == ("leader", 1)


class Bare(StateMachineBase):
    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        pass


def test_a_state_machine_without_snapshots(settings: Settings) -> None:
    with peer_with(settings, Bare()) as peer, client_of(peer) as client:
        update(client, 5)
        with pytest.raises(ConfigurationError, match="offers no snapshots"):
            peer.compact(force=True).result(60.0)
    with peer_with(settings, Lines()) as peer:
        wait_for(lambda: peer.engine.last_applied >= 6, "everything to be applied")
        peer.compact(force=True).result(60.0)
    with pytest.raises(ConfigurationError, match=r"snapshot of index \d, which Bare cannot restore"):
        peer_with(settings, Bare())
    # A peer without a state machine needs none.
    build_peer(settings).close()


@pytest.mark.parametrize("inline", [False, True])
def test_the_peer_serves_while_a_snapshot_is_written(settings: Settings, inline: bool) -> None:
    may_go_on, began = threading.Event(), threading.Event()

    class Slow(Lines):
        def _chunks(self, lines: list[bytes]) -> Iterator[bytes]:
            began.set()
            for line in lines:
                may_go_on.wait()
                yield line + b"\n"

    machine = Slow()
    machine.inline = inline
    with peer_with(settings, machine) as peer, client_of(peer) as client:
        try:
            update(client, 5)
            future = peer.compact(force=True)
            assert began.wait(60.0)
            update(client, 20)
            assert len(machine.lines) == 25
            assert not future.done()
        finally:
            may_go_on.set()
        assert future.result(60.0) == 6
        assert peer._log.snapshot.read(0, 100) == b"0\n1\n2\n3\n4\n"


def test_who_waits_is_told_when_the_peer_ends(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine on which all of this takes no time: there is no pause in which the end could be noticed.
    monkeypatch.setattr("zmqraft.server.compaction._WORK_MIN", math.inf)
    began, may_go_on = threading.Event(), threading.Event()

    class Slow(Lines):
        def _chunks(self, lines: list[bytes]) -> Iterator[bytes]:
            began.set()
            may_go_on.wait()
            yield b"1"
            yield b"2"

    peer = peer_with(settings, Slow())
    with peer, client_of(peer) as client:
        update(client, 5)
        futures = [peer.compact(force=True), peer.compact()]
        assert began.wait(60.0)
        closer = threading.Thread(target=peer.close)
        closer.start()
        for future in futures:
            assert isinstance(future.exception(60.0), ClosedError)
        may_go_on.set()
        closer.join()
    with pytest.raises(ClosedError):
        peer.compact().result(0.0)
    assert not settings.data.directory.joinpath("snap.next").exists()


def test_a_snapshot_that_cannot_take_its_place_stops_the_peer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, kept_max: int) -> None:
        raise OSError(5, "Input/output error")

    with peer_with(settings, Lines()) as peer, client_of(peer) as client:
        update(client, 5)
        monkeypatch.setattr("zmqraft.storage.log_snapshots.replace_file", fail)
        with pytest.raises(StorageFailedError, match="cannot install the snapshot of entry 6: Input/output error"):
            peer.compact(force=True).result(60.0)
        assert peer.wait_closed(60.0)
    assert isinstance(peer.error, StorageFailedError)


def test_a_stream_of_entries_under_way_goes_on_with_the_snapshot(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path, 1, peer_msg_data_size=64, request_entries_pipelines=1)[0]
    machine = Lines()
    with peer_with(settings, machine) as peer, client_of(peer) as client:
        update(client, 50)
        with client.request_entries(previous_index=0) as entries:
            first = next(entries)
            assert peer.compact(force=True).result(60.0) == 51
            update(client, 1)
            received = [first, *entries]
    found = [item for item in received if isinstance(item, LogEntry)]
    chunks = [item for item in received if isinstance(item, SnapshotChunk)]
    assert [entry.index for entry in found] == list(range(1, len(found) + 1))
    assert b"".join(bytes(chunk.data) for chunk in chunks) == b"".join(line + b"\n" for line in machine.lines[:50])
    assert {chunk.index for chunk in chunks} == {51}


def test_all_peers_of_a_cluster_go_on_behind_a_compaction(tmp_path: Path) -> None:
    machines = [Lines() for _ in range(3)]
    all_settings = cluster_settings(tmp_path, 3, **PATIENT)
    urls = [each.url for each in all_settings[0].peers]
    peers = [peer_with(each, machine) for each, machine in zip(all_settings, machines, strict=True)]
    with peers[0], peers[1], peers[2], ZmqRaftClient(urls, secret=SECRET, deadline_s=60.0) as client:
        for _ in range(3):
            update(client, 20)
            wait_for(lambda: len({len(machine.lines) for machine in machines}) == 1, "all to be applied everywhere")
            assert all(future.result(60.0) > 20 for future in [peer.compact(force=True) for peer in peers])
        update(client, 5)
        wait_for(lambda: all(len(machine.lines) == 65 for machine in machines), "all to be applied everywhere")
        assert all(peer._log.first_index > 60 for peer in peers)
    again = [Lines() for _ in range(3)]
    peers = [peer_with(each, machine) for each, machine in zip(all_settings, again, strict=True)]
    with peers[0], peers[1], peers[2], ZmqRaftClient(urls, secret=SECRET, deadline_s=60.0) as client:
        update(client, 5)
        wait_for(lambda: all(len(machine.lines) == 70 for machine in again), "all to be applied everywhere")
    assert all(machine.lines[:65] == machines[0].lines for machine in again)


# --- by settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"after_entries": 30}, {"after_bytes": 600}])
def test_settings_say_when(settings: Settings, changes: dict[str, int]) -> None:
    fill_with_old_entries(settings, 40)
    machine = Lines()
    with peer_with(with_compaction(settings, **changes, keep_files=1), machine) as peer:
        wait_for(lambda: peer._log.first_index >= 41, "the compaction")
        log = peer._log
        assert isinstance(log, FileLog)
        wait_for(lambda: not log.index_files()[0][1] < 24, "the removal of files")
    log = FileLog.open(settings.data.log_path, settings.data.snapshot_path)
    # Of those that nobody needs, the newest one is kept. Entry 41 is the leader's checkpoint.
    assert (log.first_index, log.index_files()[0][1:]) == (42, (32, 39))
    assert log.snapshot.read(0, 6) == b"1\n2\n3\n"
    log.close()


def test_settings_that_say_later(settings: Settings) -> None:
    fill_with_old_entries(settings, 20)
    assert settings.data.compact.keep_snapshots == 60
    with peer_with(with_compaction(settings, after_entries=1000, after_bytes=10**6, keep_files=0), Lines()) as peer:
        wait_for(lambda: peer.engine.last_applied >= 20, "everything to be applied")
        assert peer.compact().result(60.0) >= 20
        wait_for(lambda: peer._log.first_index > 20, "the compaction")


def test_without_snapshots_the_settings_say_nothing(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    fill_with_old_entries(settings, 20)
    with peer_with(with_compaction(settings, after_entries=5), Bare()):
        wait_for(lambda: "offers no snapshots" in caplog.text, "a complaint")
    assert caplog.text.count("offers no snapshots") == 1


# --- a dropped snapshot ----------------------------------------------------------------------------------------------


def test_a_dropped_snapshot_is_installed(settings: Settings) -> None:
    fill_with_old_entries(settings, 20)
    watching = with_compaction(settings, watch=True)
    machine = Lines()
    with peer_with(watching, machine) as peer, client_of(peer) as client:
        path = drop(settings, 12)
        wait_for(lambda: not path.exists(), "the snapshot to be taken")
        assert (peer._log.first_index, peer._log.snapshot.read(0, 100)) == (13, b"dropped\n")
        assert ClusterConfiguration.from_value(peer._log.snapshot.context.peers) == peer.engine.raft.configuration
        update(client, 2)
        assert len(machine.lines) == 22
        # One that a crash has left is taken away.
        SnapshotFile.create(path, 12, 1, [b"dropped\n"]).close()
        wait_for(lambda: not path.exists(), "the snapshot to be removed")
    again = Lines()
    with peer_with(settings, again) as peer:
        wait_for(lambda: len(again.lines) == 11, "everything to be applied")
        assert again.lines == [b"dropped", *machine.lines[12:]]


def test_what_is_dropped_and_no_compaction_stays_where_it_is(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    fill_with_old_entries(settings, 20)
    caplog.set_level(logging.DEBUG, "zmqraft.server.compaction")
    with peer_with(with_compaction(settings, watch=True), Lines()) as peer, client_of(peer) as client:
        update(client, 1)
        path = drop(settings, 12, term=7)
        wait_for(lambda: "belongs to another log: it has term 7 at index 12, here it is 1" in caplog.text, "a warning")
        drop(settings, 1000)
        wait_for(lambda: "index 1000, is above the last applied entry" in caplog.text, "a remark")
        path.write_bytes(b"rubbish")
        wait_for(lambda: "the header breaks off at offset 0" in caplog.text, "a warning")
        last = peer.engine.last_applied
        drop(settings, last, peer.engine.raft.current_term)
        wait_for(lambda: f"index {last}, waits: request ids are remembered" in caplog.text, "a remark")
        assert path.exists()
        assert peer._log.first_index == 1
        with pytest.raises(ValueError, match="waits"):
            peer.install_snapshot().result(60.0)
        assert peer.install_snapshot(force=True).result(60.0) == last
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            peer.install_snapshot().result(60.0)


def test_a_rotten_one_is_not_installed(settings: Settings) -> None:
    fill_with_old_entries(settings, 20)
    with peer_with(settings, Lines()) as peer:
        wait_for(lambda: peer.engine.last_applied >= 20, "everything to be applied")
        path = drop(settings, 12)
        content = path.read_bytes()
        path.write_bytes(content[:-3] + b"x" + content[-2:])
        with pytest.raises(Exception, match="does not match its checksum"):
            peer.install_snapshot().result(60.0)
        assert (peer.state, peer._log.first_index) == ("leader", 1)


# --- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[], [0], [1], [6] * 100_000, [1 << 18] * 3, [700_000, 3, 0, 300_000], [1 << 20]])
def test_a_snapshot_is_written_in_pieces_of_a_bounded_size(sizes: list[int]) -> None:
    chunks = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    whole = b"".join(chunks)
    rests: list[int] = []
    pieces = list(pieces_of(chunks, lambda: rests.append(1)))
    assert b"".join(pieces) == b"".join(pieces_of(whole)) == whole
    assert all(0 < len(piece) <= 1 << 18 for piece in pieces)
    assert len(pieces) <= len(whole) // (1 << 17) + 1
    assert len(rests) >= len(chunks)


# --- the configuration -----------------------------------------------------------------------------------------------


def config_entry(index: int, *ids: str) -> LogEntry:
    peers = [[peer_id, f"tcp://127.0.0.1:{9000 + int(peer_id)}"] for peer_id in ids]
    return LogEntry(index, 1, EntryType.CONFIG, index.to_bytes(12, "big"), encode_json(peers))


def configuration(*ids: str) -> ClusterConfiguration:
    return ClusterConfiguration(tuple((peer_id, f"tcp://127.0.0.1:{9000 + int(peer_id)}") for peer_id in ids))


def test_the_configuration_at_an_index_is_what_was_committed_there() -> None:
    """FAULTS 25 and 26: neither an older one nor one that may yet be truncated."""
    log = MemoryLog()
    base = (configuration("1", "2", "3"), 0)
    entries = [make_entry(1), config_entry(2, "1", "2"), make_entry(3), config_entry(4, "1", "2", "4"), make_entry(5)]
    log.append(EntryBatch.from_entries(entries))
    expected = [base, (configuration("1", "2"), 2), (configuration("1", "2"), 2), (configuration("1", "2", "4"), 4)]
    assert [configuration_at(index, log, base) for index in (1, 2, 3, 4)] == expected
    log.sync()
    snapshot = log.begin_snapshot(3, SnapshotContext())([b""])
    log.begin_compaction(snapshot)()
    log.compact(snapshot)
    assert configuration_at(3, log, expected[2]) == expected[2]
    assert configuration_at(5, log, expected[2]) == expected[3]


def test_a_peer_starts_with_the_configuration_of_its_snapshot(settings: Settings) -> None:
    """And falls back to it when a later one is truncated, whatever the state file and the settings say (FAULTS W7)."""
    peers = configuration("1", "2").to_value()
    log = MemoryLog(snapshot=MemorySnapshot(10, 1, b"", SnapshotContext(peers, 7)))
    log.append(EntryBatch.from_entries([make_entry(11), config_entry(12, "1", "2", "4")]))
    log.sync()
    persistence = MemoryPersistence()
    persistence.update_peers(configuration("1", "2", "4").to_value(), bytes(12), 12)
    raft = open_raft(settings, log, persistence, 10, 0.0, Random(1))
    assert (raft.configuration, raft.configurations.base) == (
        configuration("1", "2", "4"),
        (7, configuration("1", "2")),
    )
    raft.configurations.truncate_after(11)
    assert raft.configuration == configuration("1", "2")
