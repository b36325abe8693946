"""Real peers on loopback in this process, and a raw DEALER to talk to them frame by frame."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import zmq

from support.command import PATIENCE_S, free_ports
from zmqraft.server.builder import build_peer
from zmqraft.server.peer import ZmqRaft
from zmqraft.server.settings import DataSettings, PeerAddress, Settings

SECRET = b"sekret"
#: Election timeouts for tests in which the leader has to stay: no disk of a slow machine takes that long.
PATIENT = {"election_timeout_min": 3000, "election_timeout_max": 4000}


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds. AssertionError when it does not within the deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE_S:g} s in vain for: {what}")
        time.sleep(0.005)


def cluster_settings(directory: Path, size: int, **changes: object) -> list[Settings]:
    """Settings of peers "1" to ``size``, each with a PUB socket and a data directory of its own."""
    ports = free_ports(2 * size)
    peers = tuple(
        PeerAddress(str(number), f"tcp://127.0.0.1:{ports[2 * number - 2]}", f"tcp://127.0.0.1:{ports[2 * number - 1]}")
        for number in range(1, size + 1)
    )
    return [
        Settings(id=peer.id, peers=peers, secret=SECRET, data=DataSettings(directory / peer.id), **changes)  # type: ignore[arg-type]
        for peer in peers
    ]


@contextlib.contextmanager
def running_cluster(directory: Path, size: int, **changes: object) -> Iterator[list[ZmqRaft]]:
    """Peers that run, and have a leader."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(build_peer(each)) for each in cluster_settings(directory, size, **changes)]
        wait_for(lambda: all(peer.leader_id for peer in peers), "a leader")
        yield peers


class RawClient:
    """A DEALER without any knowledge of the protocol."""

    def __init__(self, url: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvtimeo = int(PATIENCE_S * 1000)
        self.socket.connect(url)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self) -> list[bytes]:
        """The next message. zmq.Again when none comes within the deadline."""
        return self.socket.recv_multipart()

    def replies(self, frames: Sequence[bytes], last: Sequence[bytes]) -> list[list[bytes]]:
        """Everything that comes in answer to ``frames``: until the answer to ``last``, which is sent behind them.

        The server takes messages in order, so that what it does not answer before ``last`` it does not answer at once.
        """
        self.send(*frames)
        self.send(*last)
        received = []
        while (message := self.receive())[0] != last[0]:
            received.append(message)
        return received
