"""A running peer: its life, its events, the state machine in its own thread, and its end when something fails."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from support.local_cluster import PATIENT, SECRET, RawClient, cluster_settings, running_cluster, wait_for
from zmqraft.api import PeerHandle, StateMachineBase
from zmqraft.client import ZmqRaftClient
from zmqraft.errors import ClosedError, ConfigurationError, PeerFailedError, StorageFailedError
from zmqraft.protocol import EntryBatch, new_request_id
from zmqraft.server.builder import build_peer, open_log
from zmqraft.server.peer import ZmqRaft
from zmqraft.server.settings import Settings
from zmqraft.storage import FileLog, MemoryLog, MemoryPersistence


class Recorder(StateMachineBase):
    """Remembers what it was given, and in which thread."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.threads: set[str] = set()
        self.roles: list[tuple[str, int]] = []
        self.may_apply = threading.Event()
        self.may_apply.set()
        self.closed = 0
        self.peer: PeerHandle

    def start(self, peer: PeerHandle) -> None:
        self.peer = peer

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        self.may_apply.wait()
        self.threads.add(threading.current_thread().name)
        self.data += [entry.data for entry in entries if entry.is_state]

    def on_message(self, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]) -> None:
        self.peer.send(route, [message_type, *frames, b"%d" % len(self.data)])

    def role_changed(self, role: str, term: int) -> None:
        self.roles.append((role, term))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return cluster_settings(tmp_path, 1)[0]


def client_of(peer: ZmqRaft) -> ZmqRaftClient:
    return ZmqRaftClient(peer.url, secret=SECRET, deadline_s=60.0)


def volatile_peer(settings: Settings, machine: StateMachineBase, log: MemoryLog | None = None) -> ZmqRaft:
    return build_peer(
        settings,
        state_machine=lambda _: machine,
        persistence=lambda _: MemoryPersistence(),
        log=lambda _: log or MemoryLog(),
    )


def test_life_in_a_with_block(settings: Settings) -> None:
    peer = build_peer(settings)
    states: list[tuple[str, int]] = []
    closed: list[str] = []
    peer.on("state", lambda *values: states.append(values))  # type: ignore[arg-type]
    peer.on("close", lambda: closed.append(threading.current_thread().name))
    assert peer.state == "closed"
    with peer:
        wait_for(lambda: states, "an event")
        assert (peer.state, peer.leader_id, peer.url) == ("leader", "1", settings.peers[0].url)
    assert peer.state == "closed"
    assert states == [("leader", 1)]
    assert closed == ["zmqraft 1"]
    assert peer.wait_closed(0.0)
    peer.close()


def test_life_in_an_async_with_block(settings: Settings) -> None:
    async def main() -> str:
        async with build_peer(settings) as peer:
            return peer.state

    assert asyncio.run(main()) in ("candidate", "leader")


def test_it_is_started_once(settings: Settings) -> None:
    with build_peer(settings) as peer, pytest.raises(ClosedError):
        peer.start()
    with pytest.raises(ClosedError):
        peer.start()


def test_a_peer_that_never_started_is_closed_and_frees_its_directory(settings: Settings) -> None:
    build_peer(settings).close()
    build_peer(settings).close()


def test_two_peers_never_share_a_directory(settings: Settings) -> None:
    with build_peer(settings), pytest.raises(ConfigurationError, match="in use by another process"):
        build_peer(settings)


def test_a_port_in_use_is_a_configuration_error(tmp_path: Path, settings: Settings) -> None:
    with build_peer(settings):
        other = cluster_settings(tmp_path / "other", 1)[0]
        taken = Settings(id="1", peers=settings.peers, secret=SECRET, data=other.data)
        with pytest.raises(ConfigurationError, match=r"cannot bind tcp://127\.0\.0\.1:\d+: Address already in use"):
            build_peer(taken).__enter__()


def test_entries_are_applied_in_order_in_a_thread_of_their_own(settings: Settings) -> None:
    machine = Recorder()
    with volatile_peer(settings, machine) as peer, client_of(peer) as client:
        futures = [client.submit_update(b"%d" % number) for number in range(300)]
        assert [future.result() for future in futures] == list(range(2, 302))
        assert machine.data == [b"%d" % number for number in range(300)]
        assert machine.threads == {"zmqraft 1 applies"}
    assert machine.closed == 1
    assert machine.roles[-1] == ("leader", 1)


def test_an_update_is_acknowledged_only_when_it_is_applied(settings: Settings) -> None:
    machine = Recorder()
    with volatile_peer(settings, machine) as peer, client_of(peer) as client:
        client.request_update(None, b"first")
        machine.may_apply.clear()
        future = client.submit_update(b"second")
        wait_for(lambda: peer.engine.raft.commit_index == 3, "the commit")
        assert not future.done()
        machine.may_apply.set()
        assert future.result() == 3


def test_a_slow_state_machine_does_not_hold_up_the_peer(tmp_path: Path) -> None:
    """It goes on leading, takes updates, and what waits to be applied is bounded."""
    machine = Recorder()
    settings = cluster_settings(tmp_path, 3, **PATIENT)
    with build_peer(settings[1]), build_peer(settings[2]), volatile_peer(settings[0], machine) as slow:
        machine.may_apply.clear()
        urls = [each.url for each in settings[0].peers]
        try:
            with ZmqRaftClient(urls, secret=SECRET, deadline_s=60.0) as client:
                futures = [client.submit_update(bytes(100_000)) for _ in range(300)]
                wait_for(lambda: slow.engine.raft.commit_index >= 300, "commits while nothing is applied")
                term = slow.engine.raft.current_term
                assert slow.engine.last_applied == 0
                assert slow.engine._submitted <= 18 * 11
                machine.may_apply.set()
                assert len({future.result() for future in futures}) == 300
                wait_for(lambda: len(machine.data) == 300, "all to be applied")
                assert slow.engine.raft.current_term == term
        finally:
            machine.may_apply.set()


def test_own_messages_reach_the_state_machine_and_come_back(settings: Settings) -> None:
    with volatile_peer(settings, Recorder()) as peer, RawClient(peer.url) as client:
        client.send(b"\x05", b"mine", SECRET, b"a", b"b")
        assert client.receive() == [b"\x05", b"mine", b"a", b"b", b"0"]
        client.send(b"\x06", b"mine", b"wrong secret", b"a")
        client.send(b"\x07", b"mine", SECRET)
        assert client.receive() == [b"\x07", b"mine", b"0"]


class Failing(Recorder):
    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        if any(entry.data == b"poison" for entry in entries):
            raise RuntimeError("cannot take it")


@pytest.mark.parametrize("inline", [False, True])
def test_a_state_machine_that_fails_stops_the_peer(settings: Settings, inline: bool) -> None:
    machine = Failing()
    machine.inline = inline
    errors: list[BaseException] = []
    with volatile_peer(settings, machine) as peer, client_of(peer) as client:
        peer.on("error", errors.append)
        client.request_update(None, b"good")
        future = client.submit_update(b"poison")
        assert peer.wait_closed(60.0)
        assert not future.done()
        future.cancel()
    assert peer.state == "failed"
    assert errors == [peer.error]
    assert "cannot take it" in str(peer.error)
    assert machine.closed == 1


def test_a_failed_sync_stops_the_peer_and_acknowledges_nothing(settings: Settings) -> None:
    """FAULTS W14, 45: fail-stop, also as a library."""

    class FailingLog(MemoryLog):
        def sync(self) -> None:
            if self.last_index >= 3:
                self.fail(OSError(errno.EIO, "Input/output error"))
            super().sync()

        def begin_sync(self) -> Callable[[], None] | None:
            return super().begin_sync() and self.sync

    machine = Recorder()
    with volatile_peer(settings, machine, FailingLog()) as peer, client_of(peer) as client:
        assert client.request_update(None, b"good") == 2
        future = client.submit_update(b"bad")
        assert peer.wait_closed(60.0)
        assert not future.done()
        future.cancel()
    assert isinstance(peer.error, StorageFailedError)
    assert peer.state == "failed"
    assert machine.data == [b"good"]


def test_an_error_that_nobody_expected_stops_the_peer(settings: Settings) -> None:
    with volatile_peer(settings, Recorder()) as peer:
        peer.call_soon(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        assert peer.wait_closed(60.0)
    assert isinstance(peer.error, ZeroDivisionError)
    assert peer.state == "failed"


def test_a_state_machine_that_cannot_start_is_an_error_at_the_start(settings: Settings) -> None:
    class Broken(Recorder):
        def start(self, peer: PeerHandle) -> None:
            raise RuntimeError("no")

    with pytest.raises(PeerFailedError, match="no"):
        volatile_peer(settings, Broken()).__enter__()


def test_a_callback_that_fails_does_not_stop_the_peer(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    peer = volatile_peer(settings, Recorder())
    peer.on("state", lambda *_: 1 / 0)
    with peer, client_of(peer) as client:
        assert client.request_update(None, b"data") == 2
    assert "a callback for the event 'state' failed" in caplog.text


def test_it_may_be_closed_from_its_own_callback(settings: Settings) -> None:
    peer = volatile_peer(settings, Recorder())
    peer.on("state", lambda *_: peer.close())
    peer.start()
    assert peer.wait_closed(60.0)
    assert peer.state == "closed"


def test_data_survives_a_restart_and_a_state_machine_starts_where_it_was(settings: Settings) -> None:
    first = Recorder()
    with build_peer(settings, state_machine=lambda _: first) as peer, client_of(peer) as client:
        request_id = new_request_id()
        assert client.request_update(request_id, b"data") == 2

    class Persistent(Recorder):
        @property
        def last_applied(self) -> int:
            return 2

    second, third = Recorder(), Persistent()
    with build_peer(settings, state_machine=lambda _: second) as peer, client_of(peer) as client:
        assert client.request_update(request_id, b"again") == 2
        assert client.request_update(None, b"more") == 4
    assert second.data == [b"data", b"more"]
    with build_peer(settings, state_machine=lambda _: third) as peer, client_of(peer) as client:
        client.request_update(None, b"last")
    assert third.data == [b"more", b"last"]


def test_a_state_machine_ahead_of_the_log_belongs_to_other_data(settings: Settings) -> None:
    class Ahead(Recorder):
        @property
        def last_applied(self) -> int:
            return 7

    with pytest.raises(ConfigurationError, match="applied entries up to 7, but the log ends at 0"):
        build_peer(settings, state_machine=lambda _: Ahead())
    # Nothing is left open: the directory can be used again.
    build_peer(settings).close()


def test_data_of_other_peers_is_refused(settings: Settings) -> None:
    state = MemoryPersistence()
    state.update_peers([("8", "tcp://127.0.0.1:8"), ("9", "tcp://127.0.0.1:9")], None, None)
    with pytest.raises(ConfigurationError, match="data of another cluster: its peers are 8, 9, configured are 1"):
        build_peer(settings, persistence=lambda _: state)


@pytest.mark.parametrize("lost", ["raft.pers", "log", "both"])
def test_a_peer_that_has_lost_its_data_is_refused(settings: Settings, lost: str) -> None:
    """FAULTS 28 and 36: it would forget its votes, and what it acknowledged; if the settings say that it has data."""
    data = settings.data.directory
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, must_exist=True))
    with pytest.raises(
        ConfigurationError, match=r"raft\.pers is missing, but data\.mustExist says that peer '1' has data"
    ):
        build_peer(settings)
    with build_peer(dataclasses.replace(settings, data=dataclasses.replace(settings.data, must_exist=False))) as peer:
        wait_for(lambda: peer.state == "leader", "its own election")
    with build_peer(settings) as peer:
        wait_for(lambda: peer.state == "leader", "its own election")
    if lost != "log":
        (data / "raft.pers").unlink()
    if lost != "raft.pers":
        shutil.rmtree(data / "log")
    before = sorted(data.rglob("*"))
    with pytest.raises(ConfigurationError, match="is missing, but data"):
        build_peer(settings)
    assert sorted(data.rglob("*")) == before


def test_an_id_keeps_its_url(settings: Settings) -> None:
    state = MemoryPersistence()
    state.update_peers([("1", "tcp://127.0.0.1:8")], None, None)
    with pytest.raises(ConfigurationError, match="an id keeps its url"):
        build_peer(settings, persistence=lambda _: state)


def test_every_component_can_be_replaced(settings: Settings) -> None:
    made: list[object] = []

    def log(given: Settings) -> FileLog:
        made.append(given)
        opened = open_log(given)
        assert isinstance(opened, FileLog)
        return opened

    with build_peer(settings, log=log) as peer, client_of(peer) as client:
        assert client.request_update(None, b"data") == 2
    assert made == [settings]


def test_the_next_index_file_is_made_ahead(settings: Settings) -> None:
    small = dataclasses.replace(settings, index_file_capacity=8)
    spare = settings.data.log_path.with_name("log.next")
    with build_peer(small) as peer, client_of(peer) as client:
        for number in range(2, 6):
            assert client.request_update(None, b"data") == number
        wait_for(spare.exists, "the next file")
        for number in range(6, 30):
            assert client.request_update(None, b"data") == number
    assert peer.error is None


def test_a_file_ahead_that_cannot_be_made_stops_the_peer(settings: Settings) -> None:
    class Unprepared(MemoryLog):
        @property
        def wants_preparation(self) -> bool:
            return self.failure is None and self.last_index > 2

        def prepare(self) -> None:
            self.fail(OSError(errno.ENOSPC, "No space left on device"))
            raise StorageFailedError("no space")

    with volatile_peer(settings, Recorder(), Unprepared()) as peer, client_of(peer) as client:
        client.submit_update(b"data")
        client.submit_update(b"data")
        assert peer.wait_closed(60.0)
    assert isinstance(peer.error, StorageFailedError)


def test_the_broadcast_remembers_what_it_published_over_restarts(settings: Settings) -> None:
    for expected in (2, 4):
        with build_peer(settings) as peer, client_of(peer) as client:
            assert client.request_update(None, b"data") == expected
    with build_peer(settings) as peer:
        assert peer.engine.last_applied >= 4


def test_a_peer_outside_of_its_configuration_never_stands(tmp_path: Path) -> None:
    """SPEC section 2, difference 8: state CLIENT; it serves what clients ask, and starts no election."""
    with running_cluster(tmp_path / "cluster", 1) as (member,):
        (other,) = cluster_settings(tmp_path / "joining", 1)
        joining = Settings(
            id="9", peers=member.settings.peers, secret=SECRET, router_bind=other.peers[0].url, data=other.data
        )
        with build_peer(joining) as peer, RawClient(peer.url) as client:
            client.send(b"\1", b"^", SECRET)
            assert client.receive()[:2] == [b"\1", b""]
            assert peer.state == "client"
            assert peer.engine.raft.next_deadline(0.0) == float("inf")


def test_a_message_on_which_the_state_machine_fails_is_dropped(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    class Fussy(Recorder):
        def on_message(self, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]) -> None:
            self.peer.send(route, [b"%d" % int(frames[0])])

    with volatile_peer(settings, Fussy()) as peer, RawClient(peer.url) as client:
        client.send(b"\1", b"number", SECRET, b"none")
        client.send(b"\2", b"number", SECRET)
        client.send(b"\3", b"number", SECRET, b"4")
        assert client.receive() == [b"\3", b"4"]
        assert peer.engine.dropped["malformed message"] == 2
    assert peer.error is None
    assert "the state machine failed on a message b'number'" in caplog.text


def test_a_state_machine_can_stop_its_peer_from_a_message(settings: Settings) -> None:
    class Broken(Recorder):
        def on_message(self, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]) -> None:
            raise StorageFailedError("its disk is full")

    with volatile_peer(settings, Broken()) as peer, RawClient(peer.url) as client:
        client.send(b"\1", b"number", SECRET)
        assert peer.wait_closed(60.0)
    assert isinstance(peer.error, StorageFailedError)
