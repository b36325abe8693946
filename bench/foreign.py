"""Other replicated systems, for scale: PySyncObj and etcd, each with a load of its own kind.

The rule: what makes a figure hard to compare stands in the system's ``note``, which is printed under the table.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import zmq

from bench.processes import HOST, BenchError, Process, free_ports, python, run, wait_until
from bench.systems import PEERS, START_TIMEOUT_S, Measurement, Peer, Running, System

__all__ = ["Etcd", "PySyncObj"]

_CONTROL_TIMEOUT_S = 2.0
_HTTP_TIMEOUT_S = 2.0


class PySyncObj(System):
    """PySyncObj, where it can be imported."""

    name = "PySyncObj"
    note = (
        "keeps its log in memory, without any write or sync, and gets its updates in the leader's own process; "
        "at its defaults it waits up to 0.1 s for a batch to fill"
    )

    def unavailable(self) -> str | None:
        return None if find_spec("pysyncobj") else "PySyncObj is missing (pip install pysyncobj)"

    @contextlib.contextmanager
    def _cluster(self, directory: Path) -> Iterator[Running]:
        command, environment = python()
        ports = free_ports(2 * PEERS)
        addresses = [f"{HOST}:{port}" for port in ports[:PEERS]]
        controls = [f"tcp://{HOST}:{port}" for port in ports[PEERS:]]
        with contextlib.ExitStack() as stack:
            peers = []
            for number, (address, control) in enumerate(zip(addresses, controls, strict=True)):
                others = ",".join(other for other in addresses if other != address)
                arguments = [*command, "-m", "bench.pysyncobj_peer", address, others, control]
                process = Process(arguments, directory / f"{number}.out", environment=environment)
                peers.append(Peer(str(number), control, stack.enter_context(process)))
            leader = self._leader(peers)

            def measure(count: int, in_flight: int, size_bytes: int, timeout_s: float) -> Measurement:
                request = {"op": "measure", "count": count, "in_flight": in_flight, "size_bytes": size_bytes}
                reply = _control(leader.url, {**request, "timeout_s": timeout_s}, timeout_s + _CONTROL_TIMEOUT_S)
                if reply is None:
                    leader.process.check()
                    raise BenchError(f"PySyncObj did not finish within {timeout_s:.0f} s")
                return Measurement.parse(reply)

            yield Running(peers, measure)

    def _leader(self, peers: Sequence[Peer]) -> Peer:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            for peer in peers:
                peer.process.check()
                reply = _control(peer.url, {"op": "status"}, _CONTROL_TIMEOUT_S)
                if reply is not None and json.loads(reply)["leads"]:
                    return peer
            wait_until(deadline, "a leader of PySyncObj", 0.1)


def _control(url: str, request: object, timeout_s: float) -> str | None:
    """Ask a peer's driver; None without a reply in time."""
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(timeout_s * 1000)
        socket.connect(url)
        socket.send_string(json.dumps(request))
        try:
            return socket.recv_string()
        except zmq.Again:
            return None


class Etcd(System):
    """etcd, where it is in the PATH."""

    name = "etcd"
    note = "takes puts of one key through its JSON gateway, on a connection for each update in flight"

    def unavailable(self) -> str | None:
        return None if shutil.which("etcd") else "etcd is missing (Debian: etcd-server)"

    @contextlib.contextmanager
    def _cluster(self, directory: Path) -> Iterator[Running]:
        ports = free_ports(2 * PEERS)
        clients, others = ports[:PEERS], ports[PEERS:]
        with contextlib.ExitStack() as stack:
            peers = []
            for number, port in enumerate(clients):
                process = Process(_etcd_command(directory, number, port, others), directory / f"{number}.out")
                peers.append(Peer(str(number), str(port), stack.enter_context(process)))
            leader = self._leader(peers)

            def measure(count: int, in_flight: int, size_bytes: int, timeout_s: float) -> Measurement:
                command, environment = python()
                arguments = ["-m", "bench.etcd_load", *map(str, (count, in_flight, size_bytes)), leader.url]
                log = directory / "load.out"
                return Measurement.parse(run([*command, *arguments], log, timeout_s, environment=environment))

            yield Running(peers, measure)

    def _leader(self, peers: Sequence[Peer]) -> Peer:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            for peer in peers:
                peer.process.check()
                status = _post(int(peer.url), "/v3/maintenance/status")
                # Zero, which is no leader, is left out of the reply.
                if status and status.get("leader") and status["leader"] == status["header"]["member_id"]:
                    return peer
            wait_until(deadline, "a leader of etcd", 0.1)


def _etcd_command(directory: Path, number: int, port: int, peer_ports: Sequence[int]) -> list[str]:
    urls = [f"http://{HOST}:{each}" for each in peer_ports]
    client = f"http://{HOST}:{port}"
    options = {
        "name": str(number),
        "data-dir": str(directory / str(number)),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": urls[number],
        "initial-advertise-peer-urls": urls[number],
        "initial-cluster": ",".join(f"{other}={url}" for other, url in enumerate(urls)),
        "initial-cluster-state": "new",
        "log-level": "error",
    }
    # Debian's 3.4 chooses the logger that knows --log-level only when asked.
    return ["etcd", "--logger=zap", *(f"--{name}={value}" for name, value in options.items())]


def _post(port: int, path: str) -> dict[str, Any] | None:
    """An empty request to the JSON gateway; None when it does not answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_HTTP_TIMEOUT_S)
    try:
        connection.request("POST", path, b"{}", {"Content-Type": "application/json"})
        value = json.loads(connection.getresponse().read())
        return value if isinstance(value, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
