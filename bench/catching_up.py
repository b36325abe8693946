"""How fast a peer that was away gets a snapshot and the entries behind it, and what that costs those who update
meanwhile.

    python bench/catching_up.py --mib 100 --entries 200000

Three peers in processes of their own. One is stopped; the others go on for some index files, take a snapshot of so many
MiB, incompressible, and then so many entries of 128 bytes. Then it comes back, while a client goes on with updates, 64
in flight. Beside it stands what the disk of ``--data`` and the loopback do with the same bytes: one file written and
synced, one socket pair. The aims: at least 0.5 of the slower of the two, with the rate of updates not below 0.7 of what
it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zmqraft import (
    DataSettings,
    EntryBatch,
    PeerAddress,
    PeerHandle,
    Settings,
    SnapshotBase,
    StateMachineBase,
    ZmqRaft,
    ZmqRaftClient,
    ZmqRaftPeerClient,
    build_peer,
)
from zmqraft.constants import INDEX_FILE_CAPACITY

URLS = {str(number): f"tcp://127.0.0.1:{18450 + number}" for number in (1, 2, 3)}
CHUNK = os.urandom(1 << 20)
UPDATE = bytes(128)
ENTRY_SIZE = len(UPDATE) + 20
#: So many that entries of before the snapshot are no longer in any index file.
COMPACTED = 2 * INDEX_FILE_CAPACITY


class Blob(StateMachineBase):
    """A state of so many MiB."""

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

    def restore(self, snapshot: SnapshotBase) -> None:
        for _ in snapshot.chunks(1 << 20):
            """All of it is read."""


def run_peer(peer_id: str, directory: str, mib: int, ready: Any, compact: Any, compacted: Any, stop: Any) -> None:
    peers = tuple(PeerAddress(*item) for item in URLS.items())
    settings = Settings(id=peer_id, peers=peers, data=DataSettings(Path(directory) / peer_id))
    with build_peer(settings, state_machine=lambda _: Blob(mib)) as peer:
        ready.set()
        while not stop.wait(0.05):
            if compact.is_set() and not compacted.is_set():
                peer.compact(force=True).result()
                compacted.set()


class Peer:
    """A peer in a process of its own."""

    def __init__(self, peer_id: str, directory: str, mib: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.ready, self.compact, self.compacted, self._stop = (spawn.Event() for _ in range(4))
        arguments = (peer_id, directory, mib, self.ready, self.compact, self.compacted, self._stop)
        self._process = spawn.Process(target=run_peer, args=arguments, daemon=True)
        self._process.start()

    def stop(self) -> None:
        self._stop.set()
        self._process.join()


class Load(threading.Thread):
    """A client with 64 updates in flight."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._stopping = False
        self.count = 0

    def run(self) -> None:
        def updates() -> Iterator[bytes]:
            while not self._stopping:
                yield UPDATE

        with ZmqRaftClient(list(URLS.values()), deadline_s=60.0) as client:
            for _ in client.request_updates(updates(), in_flight=64):
                self.count += 1

    def rate(self, seconds: float) -> float:
        before, began = self.count, time.monotonic()
        time.sleep(seconds)
        return (self.count - before) / (time.monotonic() - began)

    def stop(self) -> None:
        self._stopping = True
        self.join()


def disk_speed(directory: str, size: int) -> float:
    """Bytes/s of a file that is written in pieces of 1 MiB and synced in the end."""
    path = Path(directory) / "disk"
    began = time.monotonic()
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(CHUNK)
        file.flush()
        os.fdatasync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return size / seconds


def loopback_speed(size: int) -> float:
    """Bytes/s of one TCP connection on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
        with sender, receiver:
            thread = threading.Thread(target=lambda: [sender.sendall(CHUNK) for _ in range(size >> 20)])
            began = time.monotonic()
            thread.start()
            left = size >> 20 << 20
            while left:
                left -= len(receiver.recv(1 << 20))
            thread.join()
            return size / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--data", type=Path, help="a directory on the disk that is meant")
    arguments = parser.parse_args()
    size = (arguments.mib << 20) + arguments.entries * ENTRY_SIZE
    with tempfile.TemporaryDirectory(dir=arguments.data) as directory:
        peers = {peer_id: Peer(peer_id, directory, arguments.mib) for peer_id in URLS}
        with ZmqRaftClient(list(URLS.values()), deadline_s=60.0) as client:
            client.request_update(None, b"ready")
            leader_id = client.request_config().leader_id
            away = next(peer_id for peer_id in URLS if peer_id != leader_id)
            peers[away].stop()
            *_, compacted = client.request_updates((UPDATE for _ in range(COMPACTED)), in_flight=1024)
            for peer_id in URLS:
                if peer_id != away:
                    peers[peer_id].compact.set()
                    peers[peer_id].compacted.wait()
            *_, last = client.request_updates((UPDATE for _ in range(arguments.entries)), in_flight=1024)
        disk, loopback = disk_speed(directory, size), loopback_speed(size)
        load = Load()
        load.start()
        before = load.rate(5.0)
        peers[away] = Peer(away, directory, arguments.mib)
        peers[away].ready.wait()
        count, began = load.count, time.monotonic()
        with ZmqRaftPeerClient(URLS[away], deadline_s=60.0) as client:
            while client.request_log_info().first_index <= compacted:
                time.sleep(0.01)
            snapshot_seconds = time.monotonic() - began
            while client.request_log_info().last_applied < last:
                time.sleep(0.01)
        seconds = time.monotonic() - began
        during = (load.count - count) / seconds
        load.stop()
        for peer in peers.values():
            peer.stop()
    limit = min(disk, loopback)
    speed = size / seconds
    print(f"{size >> 20} MiB in {seconds:.2f} s: {speed / 2**20:.0f} MiB/s, {speed / limit:.2f} of the limit")
    print(f"the snapshot: {snapshot_seconds:.2f} s, {arguments.mib / snapshot_seconds:.0f} MiB/s")
    print(f"the entries: {arguments.entries / (seconds - snapshot_seconds):.0f}/s")
    print(f"the limit: disk {disk / 2**20:.0f} MiB/s, loopback {loopback / 2**20:.0f} MiB/s")
    print(f"updates meanwhile: {during:.0f}/s, {during / before:.2f} of {before:.0f}/s before")


if __name__ == "__main__":
    main()
