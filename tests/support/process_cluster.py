"""A cluster of ``zmqraft run`` processes, clients that write to it, and the check of what is left in the end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from support.command import PATIENCE_S, free_ports, started_command, write_config
from support.local_cluster import wait_for
from support.logs import read_all
from zmqraft.client import ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.protocol import LogEntry, new_request_id
from zmqraft.storage import FileLog

__all__ = ["PeerProcess", "ProcessCluster", "Writer", "check_entries"]

SECRET = "process cluster"


class PeerProcess:
    """A ``zmqraft run``, with what it has said on standard error."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said: list[str] = []
        self.is_ready = threading.Event()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_url, self._read_log)]
        for reader in self._readers:
            reader.start()

    def _read_url(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline().startswith(b"tcp://"):
            self.is_ready.set()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.decode())

    def wait_ready(self) -> None:
        wait_for(lambda: self.is_ready.is_set() or self.process.poll() is not None, "the url")
        assert self.is_ready.is_set(), self.said

    def has_said(self, text: str) -> bool:
        return any(text in line for line in self.said)

    def end(self, number: signal.Signals | None) -> int:
        """Send a signal, if any, and wait for the end: the exit status."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return status


class ProcessCluster:
    """Peers "1" to ``size`` on ports of their own, with their data below ``directory``. `running` are the processes."""

    def __init__(self, directory: Path, size: int, stack: contextlib.ExitStack, **settings: Any) -> None:
        self.ids = [str(number) for number in range(1, size + 1)]
        self.ports = dict(zip(self.ids, free_ports(size), strict=True))
        self.urls = {peer_id: f"tcp://127.0.0.1:{port}" for peer_id, port in self.ports.items()}
        self.directory = directory
        peers = [list(peer) for peer in self.urls.items()]
        self.config = write_config(directory, peers, secret=SECRET, **settings)
        self._stack = stack
        self.running: dict[str, PeerProcess] = {}

    def begin(self, *ids: str, prefix: Sequence[str] = ()) -> None:
        """Start peers, all when none is named, and do not wait."""
        for peer_id in ids or self.ids:
            process = self._stack.enter_context(started_command("run", "-c", self.config, peer_id, prefix=prefix))
            self.running[peer_id] = PeerProcess(process)

    def join(self, *ids: str) -> None:
        """Start peers that no configuration file knows, on ports of their own, and wait until they are ready."""
        for peer_id, port in zip(ids, free_ports(len(ids)), strict=True):
            self.ids.append(peer_id)
            self.ports[peer_id] = port
            self.urls[peer_id] = f"tcp://127.0.0.1:{port}"
            self.begin_joining(peer_id)
        for peer_id in ids:
            self.running[peer_id].wait_ready()

    def begin_joining(self, peer_id: str) -> None:
        """Start a peer that no configuration file knows."""
        arguments = ("run", "-c", self.config, "-b", self.urls[peer_id], peer_id)
        self.running[peer_id] = PeerProcess(self._stack.enter_context(started_command(*arguments)))

    def start(self, *ids: str, prefix: Sequence[str] = ()) -> None:
        """Start peers, and wait until they are ready."""
        self.begin(*ids, prefix=prefix)
        for peer_id in ids or self.ids:
            self.running[peer_id].wait_ready()

    def stop(self, *ids: str) -> None:
        """Ask peers to end, which they do without an error."""
        for peer_id in ids or list(self.running):
            peer = self.running.pop(peer_id)
            assert peer.end(signal.SIGTERM) == 0, peer.said

    def kill(self, peer_id: str) -> None:
        """SIGKILL."""
        self.running.pop(peer_id).end(signal.SIGKILL)

    def client(self) -> ZmqRaftClient:
        """A client that lasts as long as the cluster."""
        client = ZmqRaftClient(list(self.urls.values()), secret=SECRET, deadline_s=2 * PATIENCE_S)
        return self._stack.enter_context(client)

    def peer_client(self, peer_id: str) -> ZmqRaftPeerClient:
        """A client of one peer."""
        return ZmqRaftPeerClient(self.urls[peer_id], secret=SECRET)

    def wait_until_all_have(self, last_index: int) -> None:
        """Wait until every peer has applied the entry at this index."""
        for peer_id in self.ids:
            with self.peer_client(peer_id) as client:
                wait_for(
                    lambda: client.request_log_info(deadline_s=PATIENCE_S).last_applied >= last_index,
                    f"index {last_index} on peer {peer_id}",
                )

    def log(self, peer_id: str) -> FileLog:
        """The log of a peer that does not run."""
        data = self.directory / "data" / peer_id
        return FileLog.open(data / "log", data / "snap")

    def entries(self, peer_id: str) -> list[LogEntry]:
        """All entries of a peer that does not run."""
        with contextlib.closing(self.log(peer_id)) as log:
            return read_all(log, 1 << 20)


class Writer(threading.Thread):
    """A client that makes one update after the other until it is stopped, each repeated with its id until it is
    acknowledged. ``acknowledged`` are their indexes by id; ``error`` is what it could not bear."""

    def __init__(self, urls: Sequence[str], number: int = 0, size: int = 100) -> None:
        super().__init__(name=f"writer {number}", daemon=True)
        self._urls = list(urls)
        self._number = number
        self._size = size
        self._stopping = threading.Event()
        self.acknowledged: dict[bytes, int] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with ZmqRaftClient(self._urls, secret=SECRET) as client:
                while not self._stopping.is_set():
                    request_id = new_request_id()
                    data = b"%d:%d " % (self._number, len(self.acknowledged))
                    update = client.submit_update(data.ljust(self._size, b"."), request_id=request_id)
                    while not self._stopping.is_set():
                        with contextlib.suppress(futures.TimeoutError):
                            self.acknowledged[request_id] = update.result(0.05)
                            break
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Let it end. What it waits for is given up."""
        self._stopping.set()
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def check_entries(entries: Sequence[LogEntry], acknowledged: dict[bytes, int]) -> None:
    """Every acknowledged update is in a log at the index that was acknowledged, and no update is there twice."""
    by_id = [(entry.request_id, entry.index) for entry in entries if entry.is_state]
    found = dict(by_id)
    assert len(found) == len(by_id), "an update is in the log twice"
    lost = {index: request_id for request_id, index in acknowledged.items() if found.get(request_id) != index}
    assert not lost, f"acknowledged, but not there: {sorted(lost)}"
