"""What a large snapshot costs those who update meanwhile: the latency of updates before and while one is written.

    python bench/snapshot_latency.py --mib 1024

A peer in a process of its own, alone in its cluster, takes updates from this process, one after the other; then it is
asked for a snapshot of so many MiB, incompressible, on the disk of ``--data``. The issue's aim: p99 at most doubles.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from zmqraft import (
    DataSettings,
    EntryBatch,
    PeerAddress,
    PeerHandle,
    Settings,
    StateMachineBase,
    ZmqRaft,
    ZmqRaftClient,
    build_peer,
)

URL = "tcp://127.0.0.1:18447"
CHUNK = os.urandom(1 << 20)


class Blob(StateMachineBase):
    """A state of so many MiB; the message ``snap`` asks for a snapshot, and is answered when it has its place."""

    def __init__(self, mib: int) -> None:
        self.mib = mib
        self.peer: ZmqRaft | None = None

    def start(self, peer: PeerHandle) -> None:
        assert isinstance(peer, ZmqRaft)
        self.peer = peer

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        """Only the number of bytes counts."""

    def snapshot(self) -> Iterator[bytes]:
        return (CHUNK for _ in range(self.mib))


def run_peer(directory: str, mib: int, begin: multiprocessing.synchronize.Event, done: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    settings = Settings(id="1", peers=(PeerAddress("1", URL),), data=DataSettings(directory))
    with build_peer(settings, state_machine=lambda _: Blob(mib)) as peer:
        begin.wait()
        started = time.monotonic()
        peer.compact(force=True).result()
        done.put(time.monotonic() - started)
        peer.wait_closed()


def measure(client: ZmqRaftClient, until: float, done: multiprocessing.Queue | None = None) -> list[float]:  # type: ignore[type-arg]
    """The latencies of updates of 128 bytes, in ms, until a time or until something is done."""
    latencies = []
    while done.empty() if done is not None else time.monotonic() < until:
        began = time.perf_counter()
        client.request_update(None, bytes(128))
        latencies.append((time.perf_counter() - began) * 1000)
    return latencies


def shown(name: str, latencies: Sequence[float]) -> str:
    ordered = sorted(latencies)
    p50, p99 = (ordered[int(len(ordered) * part)] for part in (0.5, 0.99))
    return f"{name}: {len(ordered)} updates, p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {ordered[-1]:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the measurement before the snapshot")
    parser.add_argument("--data", type=Path, help="a directory on the disk that is meant")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=arguments.data) as directory:
        begin, done = spawn.Event(), spawn.Queue()
        process = spawn.Process(target=run_peer, args=(directory, arguments.mib, begin, done), daemon=True)
        process.start()
        with ZmqRaftClient(URL, deadline_s=60.0) as client:
            client.request_update(None, b"ready")
            print(shown("before", measure(client, time.monotonic() + arguments.seconds)))
            begin.set()
            print(shown("while it is written", measure(client, 0.0, done)))
            seconds = done.get()
        print(f"{arguments.mib} MiB in {seconds:.1f} s, {arguments.mib / seconds:.0f} MiB/s")
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
