"""Updates into a cluster, as many as it takes, from this process.

The rule: what feeds must cost little beside what is measured; so the frames of an update go out, and those of its reply
come in, with no client in between.
"""

from __future__ import annotations

import os
import time
from types import TracebackType

import zmq

from bench.processes import BenchError
from zmqraft.protocol.frames import decode_json
from zmqraft.protocol.zmq_io import receive_messages, send_message

__all__ = ["STEADY", "UPDATE_SIZE", "Feed", "update_at"]

#: For the configuration of a cluster that is fed: an update says its index, so another leader would spoil the run.
STEADY = {"electionTimeoutMin": 3000, "electionTimeoutMax": 4000}

UPDATE_SIZE = 128
_IN_FLIGHT = 1024
_PATIENCE_MS = 30_000
_RECEIVE_MAX = 4096


def update_at(index: int) -> bytes:
    """The data of the update whose entry has this index: it begins with that, in 8 bytes."""
    return index.to_bytes(8, "big").ljust(UPDATE_SIZE, b".")


class Feed:
    """A connection to a leader. Nobody else may write meanwhile, since each update says its index."""

    def __init__(self, leader_url: str, secret: str) -> None:
        self._secret = secret.encode()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.connect(leader_url)
        #: The index of the last update. One without the right data is the first.
        self.last_index = 0
        self.last_index = self.update(1)

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()
        self._context.term()

    def update(self, count: int) -> int:
        """Make so many updates; the index of the last one. BenchError when one is refused, or gets another index."""
        request_id = int(time.time()).to_bytes(4, "big") + os.urandom(4)
        sent = committed = index = 0
        while committed < count:
            while sent < count and sent - committed < _IN_FLIGHT:
                sent += 1
                update = update_at(self.last_index + sent)
                send_message(self._socket, [request_id + sent.to_bytes(4, "big"), b"=", self._secret, update])
            if not self._socket.poll(_PATIENCE_MS):
                raise BenchError(f"no reply within {_PATIENCE_MS / 1000:.0f} s")
            for reply in receive_messages(self._socket, _RECEIVE_MAX):
                if reply[1] != b"\x01":
                    raise BenchError("an update was refused")
                if len(reply) == 3:  # with two frames it is only accepted
                    committed += 1
                    index = max(index, decode_json(reply[2]))
        if self.last_index and index != self.last_index + count:
            raise BenchError(f"the last of {count} updates behind {self.last_index} has the index {index}")
        self.last_index = index
        return index
