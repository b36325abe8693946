"""What speaks zmq-raft's protocol, and so is driven by the one load generator: ours, zmq-raft for Node.js, the limit.

The rule: `System.running` gives three peers as three processes on loopback, with a leader, and leaves nothing behind.
"""

from __future__ import annotations

import abc
import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import wire
from bench.processes import HOST, BenchError, Process, free_ports, python, run
from bench.programs import Programs

__all__ = ["Limit", "Measurement", "NodeZmqRaft", "Peer", "Running", "System", "WireCluster", "ZmqRaft"]

PEERS = 3
SECRET = "bench"
#: How long three peers may take to start and elect a leader on a slow machine.
START_TIMEOUT_S = 60.0
#: How often to try again when somebody else has taken a port between its choice and its use.
_START_ATTEMPTS = 3


@dataclass(frozen=True)
class Measurement:
    """What one run of a load came to."""

    count: int
    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def parse(cls, text: str) -> Measurement:
        """From the line that a load generator prints. BenchError when it is not one, or updates were refused."""
        try:
            value: dict[str, Any] = json.loads(text)
            if value["refused"]:
                raise BenchError(f"{value['refused']} of {value['n']} updates were refused")
            return cls(
                int(value["n"]),
                float(value["per_s"]),
                float(value["p50_ms"]),
                float(value["p99_ms"]),
                float(value["max_ms"]),
            )
        except (ValueError, KeyError, TypeError):
            raise BenchError(f"not what a load generator prints: {text[:200]!r}") from None

    @property
    def duration_s(self) -> float:
        return self.count / self.per_s if self.per_s > 0 else float("inf")


@dataclass
class Peer:
    """One peer: what it is called, its url, and its process."""

    id: str
    url: str
    process: Process


#: ``measure(count, in_flight, size_bytes, timeout_s)``: that many updates, so many of them at a time on the way.
Measure = Callable[[int, int, int, float], Measurement]


@dataclass
class Running:
    """A cluster that has a leader."""

    peers: Sequence[Peer]
    measure: Measure
    secret: str = SECRET
    urls: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.urls = [peer.url for peer in self.peers]

    def leader(self, timeout_s: float = START_TIMEOUT_S) -> Peer:
        """The peer that leads. Only for what speaks zmq-raft's protocol."""
        url = wire.find_leader(self.urls, self.secret, timeout_s)
        return next(peer for peer in self.peers if peer.url == url)


class System(abc.ABC):
    """Something to measure: ``name`` in tables, ``note`` for what a reader must know to compare it."""

    name: str
    note: str = ""

    @abc.abstractmethod
    def unavailable(self) -> str | None:
        """Why it cannot be measured here, or None."""

    @abc.abstractmethod
    def _cluster(self, directory: Path) -> contextlib.AbstractContextManager[Running]:
        """Three peers with their data in a directory."""

    @contextlib.contextmanager
    def running(self, base: Path) -> Iterator[Running]:
        """Three peers with their data in a directory of their own below ``base``, which goes with them."""
        with contextlib.ExitStack() as stack:
            yield self._start(base, stack)

    def _start(self, base: Path, stack: contextlib.ExitStack) -> Running:
        for attempt in range(_START_ATTEMPTS):
            with contextlib.ExitStack() as tried:
                directory = Path(tempfile.mkdtemp(prefix=f"{self.name.split()[0]}-", dir=base))
                tried.callback(shutil.rmtree, directory, ignore_errors=True)
                try:
                    running = tried.enter_context(self._cluster(directory))
                except BenchError as error:
                    taken = "address already in use" in str(error).lower()
                    if not taken or attempt == _START_ATTEMPTS - 1:
                        raise
                    continue
                stack.push(tried.pop_all())
                return running
        raise BenchError(f"{self.name} did not start")


class WireCluster(System):
    """A system that the load generator drives."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    @abc.abstractmethod
    def _peers(self, directory: Path) -> list[Peer]:
        """Three peers that are not started yet."""

    @contextlib.contextmanager
    def _cluster(self, directory: Path) -> Iterator[Running]:
        with contextlib.ExitStack() as stack:
            peers = self._peers(directory)
            for peer in peers:
                stack.enter_context(peer.process)
            urls = self._urls(peers)
            try:
                wire.find_leader(urls, SECRET, START_TIMEOUT_S)
            except BenchError:
                for peer in peers:
                    peer.process.check()
                raise
            yield Running(peers, self._load(urls, directory, peers))

    def _urls(self, peers: Sequence[Peer]) -> list[str]:
        """Where the load generator may look for the leader."""
        return [peer.url for peer in peers]

    def _load(self, urls: Sequence[str], directory: Path, peers: Sequence[Peer]) -> Measure:
        def measure(count: int, in_flight: int, size_bytes: int, timeout_s: float) -> Measurement:
            command = [self._programs.loadgen, count, in_flight, size_bytes, SECRET, ",".join(urls)]
            try:
                text = run(list(map(str, command)), directory / "loadgen.out", timeout_s)
            except BenchError:
                for peer in peers:
                    peer.process.check()
                raise
            return Measurement.parse(text)

        return measure


def write_config(directory: Path, urls: Sequence[str], name: str = "cluster.json", **settings: object) -> Path:
    """A configuration file that zmqraft and zmq-raft both understand, peers "1" to "3" with their broadcasts."""
    publishers = [f"tcp://{HOST}:{port}" for port in free_ports(len(urls))]
    peers = [
        {"id": str(number), "url": url, "pub": publisher}
        for number, (url, publisher) in enumerate(zip(urls, publishers, strict=True), 1)
    ]
    data = {"path": str(directory / "data"), "appendIdToPath": True}
    section = {"secret": SECRET, "peers": peers, "data": data, "webmonitor": {"enable": False}, **settings}
    path = directory / name
    path.write_text(json.dumps({"raft": section}, indent=2))
    return path


def _peer_urls() -> list[str]:
    return [f"tcp://{HOST}:{port}" for port in free_ports(PEERS)]


class ZmqRaft(WireCluster):
    """This project, compiled or pure: three ``zmqraft run``."""

    name = "zmqraft"

    def __init__(self, programs: Programs, *, pure: bool = False, **settings: object) -> None:
        """``settings`` are what the configuration file has beside the peers."""
        super().__init__(programs)
        self._settings = settings
        if pure:
            self.name = f"{self.name} pure"
        variable = "ZMQRAFT_NO_EXTENSIONS" if pure else "ZMQRAFT_REQUIRE_EXTENSIONS"
        self.python, self.environment = python(**{variable: "1"})

    def unavailable(self) -> str | None:
        with tempfile.TemporaryDirectory(prefix="zmqraft-bench-") as directory:
            log = Path(directory, "version.out")
            try:
                run([*self.python, "-m", "zmqraft", "--version"], log, START_TIMEOUT_S, environment=self.environment)
            except BenchError as error:
                # Of a traceback, what it ends with.
                lines = log.read_text(errors="replace").splitlines() if log.exists() else []
                return lines[-1] if lines else str(error)
        return None

    def _peers(self, directory: Path) -> list[Peer]:
        urls = _peer_urls()
        config = write_config(directory, urls, **self._settings)
        return [
            Peer(peer_id, url, self.process([*self.python, "-m", "zmqraft", "run"], config, peer_id))
            for peer_id, url in zip(map(str, range(1, PEERS + 1)), urls, strict=True)
        ]

    def process(self, command: Sequence[str], config: Path, peer_id: str) -> Process:
        """The process of a peer, from the command to which the options of ``zmqraft run`` are added."""
        log = config.with_name(f"{peer_id}.out")
        return Process([*command, "-c", config, peer_id], log, environment=self.environment)


class NodeZmqRaft(WireCluster):
    """zmq-raft for Node.js, from a directory into which `programs.install_zmq_raft` has put it."""

    name = "zmq-raft (Node)"

    def __init__(self, programs: Programs, directory: Path | None) -> None:
        super().__init__(programs)
        self._command = None if directory is None else directory.resolve() / "node_modules" / ".bin" / "zmq-raft"

    def unavailable(self) -> str | None:
        if self._command is None:
            return "no --zmq-raft DIRECTORY was given (see: python -m bench install-zmq-raft)"
        if shutil.which("node") is None:
            return "node is missing"
        return None if self._command.exists() else f"{self._command} is missing"

    def _peers(self, directory: Path) -> list[Peer]:
        if self._command is None:
            raise BenchError("zmq-raft is not installed")
        urls = _peer_urls()
        config = write_config(directory, urls)
        return [
            Peer(str(number), url, Process([self._command, "-c", config, str(number)], directory / f"{number}.out"))
            for number, url in enumerate(urls, 1)
        ]


class Limit(WireCluster):
    """The program that only moves, writes and syncs the bytes: what the machine allows."""

    name = "limit"
    note = "moves, writes and syncs the same bytes without any consensus"

    def unavailable(self) -> str | None:
        return None

    def _peers(self, directory: Path) -> list[Peer]:
        ports = free_ports(PEERS)
        leader, *followers = map(str, ports)
        peers = [
            self._peer(f"follower{number}", port, directory, "follower", port, directory / f"{number}.log")
            for number, port in enumerate(followers, 1)
        ]
        peers.append(self._peer("leader", leader, directory, "leader", leader, directory / "0.log", *followers))
        return peers

    def _peer(self, name: str, port: str, directory: Path, *arguments: str | Path) -> Peer:
        process = Process([self._programs.limit, *arguments], directory / f"{name}.out")
        return Peer(name, f"tcp://{HOST}:{port}", process)

    def _urls(self, peers: Sequence[Peer]) -> list[str]:
        # A follower of the limit would take the question for something to write.
        return [peers[-1].url]
