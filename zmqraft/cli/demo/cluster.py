"""Three peers of the demo, each a process of its own (``zmqraft run``), with their data in one directory.

Knows nothing of what is replicated. The rule: no process outlives the cluster, however the demo ends. Waiting for one
ends with click.Abort when the demo is to end.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from zmqraft.cli.demo.interruption import Interruption
from zmqraft.errors import ZmqRaftError

__all__ = ["Cluster", "DemoError"]

_IDS = ("a", "b", "c")
_HOST = "127.0.0.1"
#: How long a peer may take to start or to close on a very slow machine.
_PATIENCE_S = 60.0
#: How often to try again when somebody else has taken a port between its choice and its use.
_PORT_ATTEMPTS = 10
_PORT_PAUSE_S = 0.5


class DemoError(ZmqRaftError):
    """The demo could not be carried through, or what it shows did not hold."""


class _PortTakenError(DemoError):
    """A peer found its port in use."""


class _Peer:
    """One ``zmqraft run`` process."""

    def __init__(self, peer_id: str, config: Path, interruption: Interruption) -> None:
        self.id = peer_id
        self._interruption = interruption
        self._config = config
        self._log = config.with_name(f"{peer_id}.err")
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        self.kill()
        command = [sys.executable, "-m", "zmqraft", "run", "-c", str(self._config), self.id]
        with self._log.open("wb") as log:
            # In a session of its own: an interrupt from the keyboard is for the demo, which then ends its peers.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait for the line with the url. Raises DemoError with what the peer said when it ends or hangs instead."""
        process = self._process
        if process is None or process.stdout is None:
            raise DemoError(f"peer {self.id} was never started")
        output = process.stdout.fileno()
        line = b""
        while not line.endswith(b"\n"):
            if not self._interruption.wait_for(
                lambda wait_s: bool(select.select([output], [], [], wait_s)[0]), _PATIENCE_S
            ):
                raise DemoError(f"peer {self.id} was not ready within {_PATIENCE_S:.0f} s{self._said()}")
            part = os.read(output, 4096)
            if not part:
                raise self._ended(process.wait())
            line += part

    def _ended(self, status: int) -> DemoError:
        said = self._said()
        error = _PortTakenError if "Address already in use" in said else DemoError
        return error(f"peer {self.id} ended with status {status}{said}")

    def _said(self) -> str:
        text = " ".join(self._log.read_text(errors="replace").split())
        return f": {text[-500:]}" if text else ""

    def signal_kill(self) -> None:
        """Send SIGKILL to the process, if there is one."""
        if self._process is not None:
            self._process.kill()

    def kill(self) -> None:
        """End the process with SIGKILL, if there is one."""
        self.signal_kill()
        if self._process is not None:
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def request_stop(self) -> None:
        """Ask the process to close. Raises DemoError when it is not running any more."""
        if self._process is None or self._process.poll() is not None:
            raise DemoError(f"peer {self.id} has ended by itself{self._said()}")
        self._process.send_signal(signal.SIGTERM)

    def wait_stopped(self) -> None:
        """Wait for the end of the process. Raises DemoError unless its status is 0."""
        process = self._process
        if process is None:
            return
        if not self._interruption.wait_for(lambda wait_s: _has_ended(process, wait_s), _PATIENCE_S):
            raise DemoError(f"peer {self.id} did not close within {_PATIENCE_S:.0f} s{self._said()}")
        if process.returncode != 0:
            raise DemoError(f"peer {self.id} closed with status {process.returncode}{self._said()}")


class Cluster:
    """Three peers on free ports; ``with`` starts them and, in the end, kills what still runs.

    ``urls`` are theirs, ``secret`` is made for this cluster. Raises DemoError when they do not start.
    """

    def __init__(self, directory: Path, interruption: Interruption) -> None:
        self._directory = directory
        self._interruption = interruption
        self._peers: dict[str, _Peer] = {}
        self.urls: dict[str, str] = {}
        self.secret = secrets.token_hex(8)

    def __enter__(self) -> Cluster:
        try:
            self._start_all()
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill_all()

    def _start_all(self) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            config = self._configure()
            self._peers = {peer_id: _Peer(peer_id, config, self._interruption) for peer_id in _IDS}
            try:
                for peer in self._peers.values():
                    peer.launch()
                for peer in self._peers.values():
                    peer.wait_ready()
                return
            except _PortTakenError:
                self._kill_all()
                if attempt == _PORT_ATTEMPTS - 1:
                    raise

    def _configure(self) -> Path:
        """Write a configuration file with ports that are free now."""
        ports = _free_ports(2 * len(_IDS))
        self.urls = {peer_id: f"tcp://{_HOST}:{ports.pop()}" for peer_id in _IDS}
        peers = [
            {"id": peer_id, "url": url, "pub": f"tcp://{_HOST}:{ports.pop()}"} for peer_id, url in self.urls.items()
        ]
        data = {"path": str(self._directory), "appendIdToPath": True}
        config = self._directory / "zmqraft.json"
        config.write_text(json.dumps({"raft": {"secret": self.secret, "peers": peers, "data": data}}, indent=2))
        return config

    def _kill_all(self) -> None:
        for peer in self._peers.values():
            peer.signal_kill()
        for peer in self._peers.values():
            peer.kill()

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the peers."""
        return _IDS

    def id_of(self, url: str | None) -> str | None:
        """The id of the peer with a url."""
        return next((peer_id for peer_id, its_url in self.urls.items() if its_url == url), None)

    def data_directory(self, peer_id: str) -> Path:
        """Where a peer keeps its data."""
        return self._directory / peer_id

    def check(self) -> None:
        """Raise DemoError when a peer has ended that nobody asked to."""
        for peer in self._peers.values():
            if not peer.running:
                raise DemoError(f"peer {peer.id} has ended by itself")

    def kill(self, peer_id: str) -> None:
        """End a peer as a power failure would: SIGKILL."""
        self._peers[peer_id].kill()

    def launch(self, peer_id: str) -> None:
        """Start a peer again on its data, without waiting for it."""
        self._peers[peer_id].launch()

    def wait_ready(self, peer_id: str) -> None:
        """Wait until a peer that was launched runs. Raises DemoError."""
        peer = self._peers[peer_id]
        for _ in range(_PORT_ATTEMPTS - 1):
            try:
                return peer.wait_ready()
            except _PortTakenError:
                # Some other process has the port for now, as the source port of a connection most likely.
                self._interruption.sleep(_PORT_PAUSE_S)
                peer.launch()
        peer.wait_ready()

    def stop(self) -> None:
        """Close all peers with SIGTERM. Raises DemoError unless all of them do so with exit status 0."""
        for peer in self._peers.values():
            peer.request_stop()
        for peer in self._peers.values():
            peer.wait_stopped()


def _has_ended(process: subprocess.Popen[bytes], wait_s: float) -> bool:
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
