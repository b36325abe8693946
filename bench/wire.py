"""The few requests of the protocol that the benchmarks ask themselves, frame by frame (messages of a zmq-raft client).

Knows nothing of zmqraft: what is measured must not be what measures. The rule: every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zmq

from bench.processes import BenchError

__all__ = ["CommitProbe", "LogInfo", "find_leader", "log_info"]

_MESSAGE_ID = b"\x01"
_REPLY_TIMEOUT_MS = 500
_PAUSE_S = 0.05
#: How long the probe waits before it asks a peer again that refused, and one that says nothing.
_REFUSED_PAUSE_S = 0.005
_SILENT_PAUSE_S = 1.0
_POLL_MS = 1


@dataclass(frozen=True)
class LogInfo:
    """What RequestLogInfo says, as far as it matters here."""

    is_leader: bool
    commit_index: int
    last_index: int


@contextlib.contextmanager
def _dealer(context: zmq.Context[zmq.Socket[bytes]], url: str) -> Iterator[zmq.Socket[bytes]]:
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvtimeo = _REPLY_TIMEOUT_MS
    socket.connect(url)
    try:
        yield socket
    finally:
        socket.close()


def _ask(url: str, *frames: bytes) -> list[bytes] | None:
    """One request, and the frames of its reply after the id; None without a reply in time."""
    with zmq.Context() as context, _dealer(context, url) as socket:
        socket.send_multipart([_MESSAGE_ID, *frames])
        try:
            return socket.recv_multipart()[1:]
        except zmq.Again:
            return None


def find_leader(urls: Sequence[str], secret: str, timeout_s: float) -> str:
    """The url of the leader. BenchError when no peer says that it leads within the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        for url in urls:
            reply = _ask(url, b"^", secret.encode())
            if reply and _is_true(reply[0]):
                return url
        if time.monotonic() > deadline:
            raise BenchError(f"no leader within {timeout_s:.0f} s among {', '.join(urls)}")
        time.sleep(_PAUSE_S)


def log_info(url: str, secret: str) -> LogInfo | None:
    """The state of a peer's log, or None when it does not answer in time."""
    reply = _ask(url, b"%", secret.encode())
    if reply is None or len(reply) < 7:
        return None
    return LogInfo(_is_true(reply[0]), int.from_bytes(reply[5], "little"), int.from_bytes(reply[6], "little"))


def _is_true(frame: bytes) -> bool:
    return frame[:1] not in (b"", b"\x00")


class CommitProbe:
    """Asks several peers at once for an update until one of them has committed it.

    It finds the new leader sooner than any client that asks one peer after another: what it measures is the cluster.
    """

    def __init__(self, urls: Sequence[str], secret: str) -> None:
        self._secret = secret.encode()
        self._stack = contextlib.ExitStack()
        context = self._stack.enter_context(zmq.Context())
        self._sockets = [self._stack.enter_context(_dealer(context, url)) for url in urls]

    def __enter__(self) -> CommitProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_commit(self, timeout_s: float) -> None:
        """Wait for an update of this moment to be committed. BenchError when it is not within the time."""
        deadline = time.monotonic() + timeout_s
        ids = {socket: _request_id() for socket in self._sockets}
        due = dict.fromkeys(self._sockets, 0.0)
        poller = zmq.Poller()
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)
        while (now := time.monotonic()) < deadline:
            for socket, request_id in ids.items():
                if due[socket] <= now:
                    due[socket] = now + _SILENT_PAUSE_S
                    socket.send_multipart([request_id, b"=", self._secret, b"probe"])
            for socket, _ in poller.poll(_POLL_MS):
                reply = socket.recv_multipart()
                if reply[0] != ids[socket] or len(reply) < 2:
                    continue
                if not _is_true(reply[1]):
                    due[socket] = time.monotonic() + _REFUSED_PAUSE_S
                elif len(reply) > 2:
                    return
        raise BenchError(f"no commit within {timeout_s:.0f} s")


def _request_id() -> bytes:
    """A request id of now: 4 bytes seconds since the epoch, the rest at random."""
    return int(time.time()).to_bytes(4, "big") + os.urandom(8)
