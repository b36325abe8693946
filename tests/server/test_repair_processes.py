"""Peers as processes whose logs are damaged: what the others have is fetched, and nobody else is asked to help."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from support.command import PATIENCE_S, assert_fails_in_one_line, free_ports, run_command, started_command, write_config
from support.local_cluster import wait_for
from support.logs import read_all
from zmqraft.client import ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.protocol import LogEntry
from zmqraft.storage import FileLog, IndexFile

SECRET = "repair"


class Process:
    """A ``zmqraft run``, with what it has said."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.said: list[str] = []
        self.is_ready = threading.Event()
        for read in (self._read_url, self._read_log):
            threading.Thread(target=read, daemon=True).start()

    def _read_url(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().startswith(b"tcp://"):
            self.is_ready.set()

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line.decode())

    def wait_ready(self) -> None:
        wait_for(lambda: self.is_ready.is_set() or self._process.poll() is not None, "the url")
        assert self.is_ready.is_set(), self.said

    def has_said(self, text: str) -> bool:
        return any(text in line for line in self.said)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)


class Cluster:
    """Peers on ports of their own; with index files of 64 entries."""

    def __init__(self, directory: Path, size: int, stack: contextlib.ExitStack) -> None:
        self.ids = [str(number) for number in range(1, size + 1)]
        self.ports = dict(zip(self.ids, free_ports(size), strict=True))
        self.urls = {peer_id: f"tcp://127.0.0.1:{port}" for peer_id, port in self.ports.items()}
        self.directory = directory
        self.config = write_config(
            directory, [list(peer) for peer in self.urls.items()], secret=SECRET, indexFileCapacity=64
        )
        self._stack = stack
        self.running: dict[str, Process] = {}

    def begin(self, *ids: str) -> None:
        for peer_id in ids or self.ids:
            process = self._stack.enter_context(started_command("run", "-c", self.config, peer_id))
            self.running[peer_id] = Process(process)

    def start(self, *ids: str) -> None:
        self.begin(*ids)
        for peer_id in ids or self.ids:
            self.running[peer_id].wait_ready()

    def stop(self, *ids: str) -> None:
        for peer_id in ids or list(self.running):
            assert self.running.pop(peer_id).stop() == 0

    def client(self) -> ZmqRaftClient:
        return self._stack.enter_context(
            ZmqRaftClient(list(self.urls.values()), secret=SECRET, deadline_s=2 * PATIENCE_S)
        )

    def log(self, peer_id: str) -> FileLog:
        data = self.directory / "data" / peer_id
        return FileLog.open(data / "log", data / "snap")

    def entries(self, peer_id: str) -> list[LogEntry]:
        with contextlib.closing(self.log(peer_id)) as log:
            return read_all(log, 1 << 20)

    def damage(self, peer_id: str, *indexes: int) -> Path:
        """Change a byte of each of these entries on the disk; the file of the last one."""
        folder = self.directory / "data" / peer_id / "log/00000/00/00"
        path = folder
        for index in indexes:
            first = max(index - index % 64, 1)
            path = folder / f"{first:014x}.rlog"
            with contextlib.closing(IndexFile.open(str(path), writable=False)) as file:
                offset = file.file_offset(index) + 25
            with path.open("r+b") as content:
                content.seek(offset)
                (byte,) = content.read(1)
                content.seek(offset)
                content.write(bytes([byte ^ 0x20]))
        return path


@contextlib.contextmanager
def cluster_of(directory: Path, size: int, updates: int) -> Iterator[Cluster]:
    """Peers that have so many updates, and are stopped."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster(directory, size, stack)
        cluster.start()
        with ZmqRaftClient(list(cluster.urls.values()), secret=SECRET, deadline_s=PATIENCE_S) as client:
            last = max(client.request_updates(b"update %d " % number * 20 for number in range(updates)))
        for url in cluster.urls.values():
            with ZmqRaftPeerClient(url, secret=SECRET) as client:
                wait_for(lambda: client.request_log_info(deadline_s=PATIENCE_S).last_applied >= last, "all updates")
        cluster.stop()
        yield cluster


def test_damaged_entries_come_from_the_others(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, 500) as cluster:
        expected = cluster.entries("1")
        cluster.damage("1", 5, 6, 7, 63, 64, 300, 499)
        cluster.start("2", "3", "1")
        process = cluster.running["1"]
        wait_for(lambda: process.has_said("entries 499 to 499"), "the end of it")
        assert process.has_said("it neither votes nor leads until")
        assert process.has_said("entries 5 to 7 of ")
        cluster.client().request_update(None, b"after that")
        cluster.stop()
        for peer_id in cluster.ids:
            assert cluster.entries(peer_id)[: len(expected)] == expected


def test_a_damaged_peer_does_not_take_part(tmp_path: Path) -> None:
    """One that is good does not get its vote; with two that are good it is mended."""
    with cluster_of(tmp_path, 3, 100) as cluster:
        expected = cluster.entries("1")
        cluster.damage("1", 50)
        cluster.begin("1")
        cluster.start("2")
        damaged = cluster.running["1"]
        wait_for(lambda: damaged.has_said("fetching entries 50 to 50"), "the search")
        with ZmqRaftPeerClient(cluster.urls["2"], secret=SECRET) as client:
            term = expected[-1].term
            wait_for(lambda: client.request_log_info(deadline_s=PATIENCE_S).term > term, "an election")
            info = client.request_log_info(deadline_s=PATIENCE_S)
            assert not info.is_leader
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", cluster.ports["1"])) != 0
        assert not damaged.is_ready.is_set()
        cluster.start("3")
        damaged.wait_ready()
        cluster.client().request_update(None, b"after that")
        cluster.stop()
        assert cluster.entries("1")[: len(expected)] == expected


def test_who_cannot_be_helped_waits_until_it_is_stopped(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, 20) as cluster:
        path = cluster.damage("1", 5, 6)
        content = path.read_bytes()
        cluster.begin("1")
        process = cluster.running["1"]
        wait_for(lambda: process.has_said("fetching entries 5 to 6 from the other peers"), "the search")
        cluster.stop("1")
        assert not process.is_ready.is_set()
        assert path.read_bytes() == content


def test_alone_it_stops_and_says_where(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 1, 100) as cluster:
        path = cluster.damage("1", 70)
        result = run_command("run", "-c", cluster.config, "1")
        assert_fails_in_one_line(result, f"{path}: entry 70 at offset", "does not match its checksum", "backup")


def test_damage_while_it_runs(tmp_path: Path) -> None:
    """A leader that comes upon a damaged entry is mended by the next one, and the reader goes on there."""
    with cluster_of(tmp_path, 3, 500) as cluster:
        expected = cluster.entries("1")
        cluster.start()
        client = cluster.client()
        leader_id = client.request_config(deadline_s=PATIENCE_S).leader_id
        assert leader_id is not None
        cluster.damage(leader_id, 200)
        client.close()
        with cluster.client().request_entries(0, count=len(expected)) as entries:
            assert list(entries) == expected
        process = cluster.running[leader_id]
        wait_for(lambda: process.has_said("entries 200 to 200"), "the end of it")
        assert process.has_said("starting anew, since entry 200 of the log is damaged")
        cluster.client().request_update(None, b"after that")
        wait_for(lambda: answers(cluster.urls[leader_id]), "the peer to be there again")
        cluster.stop()
        for peer_id in cluster.ids:
            assert cluster.entries(peer_id)[: len(expected)] == expected


def answers(url: str) -> bool:
    with ZmqRaftPeerClient(url, secret=SECRET) as client:
        return client.request_log_info(deadline_s=PATIENCE_S).last_index > 0
