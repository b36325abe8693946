"""What happened in a run: a hash over everything, and the last part of it to be read.

The rule: two runs with the same hash did the same, message by message and byte by byte. Lines are made only when
somebody reads them.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Sequence

from zmqraft import constants
from zmqraft.errors import ZmqRaftError
from zmqraft.protocol import Protocols

__all__ = ["Trace"]

_REQUESTS = {
    constants.REQUEST_VOTE: Protocols.REQUEST_VOTE,
    constants.APPEND_ENTRIES: Protocols.APPEND_ENTRIES,
    constants.REQUEST_UPDATE: Protocols.REQUEST_UPDATE,
    constants.REQUEST_ENTRIES: Protocols.REQUEST_ENTRIES,
    constants.COMMIT_NOTICE: Protocols.COMMIT_NOTICE,
}
#: Head of each line in the hash: the time.
_TIME = struct.Struct("<d")


class Trace:
    """Keeps the last ``kept`` events, or all of them when it is None."""

    def __init__(self, kept: int | None = 2000) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._events: deque[tuple[float, str, Sequence[bytes]]] = deque(maxlen=kept)
        #: The number of events.
        self.count = 0

    def note(self, now: float, what: str, frames: Sequence[bytes] = ()) -> None:
        """Something happens; ``frames`` is the message that it is about."""
        self.count += 1
        self._hash.update(b"".join((_TIME.pack(now), what.encode(), *frames)))
        self._events.append((now, what, frames))

    def hexdigest(self) -> str:
        """The hash over all events."""
        return self._hash.hexdigest()

    def lines(self) -> list[str]:
        """The events that were kept, to be read."""
        return [f"{now:10.6f}  {what}{_described(frames)}" for now, what, frames in self._events]


def _described(frames: Sequence[bytes]) -> str:
    """A message that a ROUTER got, its identity first; anything else as bytes."""
    if not frames:
        return ""
    if len(frames) > 3 and (protocol := _REQUESTS.get(frames[2])) is not None:
        try:
            values = protocol.decode_request(frames[2:])[2:]
        except ZmqRaftError:
            values = ()
        fields = protocol.request_fields[2:]
        shown = ", ".join(f"{name} {_short(value)}" for name, value in zip(fields, values, strict=False))
        return f": {protocol.name} {frames[1].hex()} ({shown})"
    return ": " + " ".join(_short(frame) for frame in frames)


def _short(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    if isinstance(value, bytes):
        text = value.decode() if value.isascii() and value.decode().isprintable() else value.hex()
    else:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
