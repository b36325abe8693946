"""Updates as fast as they go, in the background, until they are stopped.

Knows nothing of the console. The rule: what was acknowledged is remembered, so that it can be looked for in the log.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from zmqraft.client import ZmqRaftClient
from zmqraft.errors import ConfigurationError, ZmqRaftError

__all__ = ["Flood", "Flooded"]


@dataclass(frozen=True)
class Flooded:
    """What came of it: the data by index, how long it took, and the error that ended it, if one did."""

    written: dict[int, bytes]
    seconds: float
    error: ZmqRaftError | None


class Flood:
    """Runs from its making to `stop`."""

    def __init__(self, client: ZmqRaftClient, size: int, in_flight: int) -> None:
        """Updates of ``size`` bytes. Raises ConfigurationError when that is too small to tell them apart."""
        self._prefix = os.urandom(8)
        if size < 16:
            raise ConfigurationError(f"an update of a flood has at least 16 bytes, not {size}")
        self._size = size
        self._stopping = threading.Event()
        self._written: dict[int, bytes] = {}
        self._error: ZmqRaftError | None = None
        self._began = time.monotonic()
        self._sent: list[bytes] = []
        updates = client.request_updates(self._updates(), in_flight)
        self._thread = threading.Thread(target=self._run, args=(updates,), name="zmqraft-console-flood", daemon=True)
        self._thread.start()

    def _updates(self) -> Iterator[bytes]:
        for number in itertools.count():
            if self._stopping.is_set():
                return
            data = (self._prefix + number.to_bytes(8, "big")).ljust(self._size, b".")
            self._sent.append(data)
            yield data

    def _run(self, updates: Iterator[int]) -> None:
        try:
            for position, index in enumerate(updates):
                self._written[index] = self._sent[position]
        except ZmqRaftError as error:
            self._error = error

    def stop(self) -> Flooded:
        """Let what is under way come to its end."""
        self._stopping.set()
        self._thread.join()
        return Flooded(self._written, time.monotonic() - self._began, self._error)
