"""Request ids: 12 bytes that name a client's update for as long as the cluster remembers it.

Made as MongoDB's ObjectId: 4 bytes of seconds since the epoch (big endian), 3 bytes of machine, 2 bytes of process id
(big endian), 3 bytes of counter (big endian, random start, wraps). Knows nothing of messages. The rule: two calls of
`new_request_id` never return the same id, in any thread, nor in a process forked off this one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import socket
import threading
import time

from zmqraft.constants import REQUEST_ID_SIZE

__all__ = [
    "new_request_id",
    "request_id_from_text",
    "request_id_seconds",
    "request_id_to_base64",
]

_COUNTER_MODULUS = 1 << 24


class _Generator:
    """The state behind `new_request_id`; one for the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._machine = hashlib.md5(socket.gethostname().encode(), usedforsecurity=False).digest()[:3]
        self.reseed()

    def reseed(self) -> None:
        self._lock = threading.Lock()
        self._process = (os.getpid() & 0xFFFF).to_bytes(2, "big")
        self._counter = secrets.randbelow(_COUNTER_MODULUS)

    def next(self, seconds: int) -> bytes:
        with self._lock:
            self._counter = (self._counter + 1) % _COUNTER_MODULUS
            counter = self._counter
        return seconds.to_bytes(4, "big") + self._machine + self._process + counter.to_bytes(3, "big")


_generator = _Generator()
os.register_at_fork(after_in_child=_generator.reseed)


def new_request_id(seconds: float | None = None) -> bytes:
    """A fresh request id, 12 bytes. ``seconds`` since the epoch is the time in it, by default now."""
    return _generator.next(int(time.time() if seconds is None else seconds) & 0xFFFFFFFF)


def request_id_seconds(request_id: bytes) -> int:
    """The time in a request id, in seconds since the epoch."""
    return int.from_bytes(request_id[:4], "big")


def request_id_to_base64(request_id: bytes) -> str:
    """The 16 characters of base64 that stand for a request id in the state file."""
    return base64.b64encode(request_id).decode("ascii")


def request_id_from_text(text: str) -> bytes:
    """A request id from its text: 24 hexadecimal digits or 16 characters of base64. Raises ValueError otherwise."""
    try:
        request_id = bytes.fromhex(text) if len(text) == 2 * REQUEST_ID_SIZE else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"not a request id: {text!r} ({error})") from None
    # Both decoders accept some texts of the right length that stand for fewer bytes: with spaces, with padding.
    if len(request_id) != REQUEST_ID_SIZE:
        raise ValueError(f"not a request id: {text!r} (24 hexadecimal digits or 16 characters of base64)")
    return request_id
