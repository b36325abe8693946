"""The state machine of simulated clusters: a key-value store with get, put and compare-and-swap, through the log.

The rule: what a command returned is a function of the entries before it alone, so it is kept by index, and a chain of
hashes over all entries shows at once where two replicas part.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable

from zmqraft.api import SnapshotBase, StateMachineBase
from zmqraft.protocol import EntryBatch

__all__ = ["KeyValueMachine", "encode_command"]


def encode_command(*words: object) -> bytes:
    """``("get", key)``, ``("put", key, value)`` or ``("cas", key, expected, value)`` as the data of an update."""
    return json.dumps(words).encode()


class KeyValueMachine(StateMachineBase):
    """The store of one replica. ``results`` has what each command returned, by its index."""

    inline = True

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.results: dict[int, object] = {}
        #: The entry applied last, and a hash over all up to it.
        self.index = 0
        self.chain = 0

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        """Commands that are none change nothing."""
        for entry in entries:
            self.index = entry.index
            self.chain = zlib.crc32(entry.to_bytes(), self.chain)
            if entry.is_state:
                self.results[entry.index] = self._apply(json.loads(entry.data))

    def _apply(self, command: list[object]) -> object:
        kind, key, *rest = command
        name = str(key)
        before = self.values.get(name)
        if kind == "put":
            self.values[name] = rest[0]
        elif kind == "cas":
            if before != rest[0]:
                return False
            self.values[name] = rest[1]
            return True
        return before

    def snapshot(self) -> Iterable[bytes]:
        """All of it, at once."""
        results = {str(index): result for index, result in self.results.items()}
        return [json.dumps([self.values, results, self.index, self.chain]).encode()]

    def restore(self, snapshot: SnapshotBase) -> None:
        """As it was."""
        self.values, results, self.index, self.chain = json.loads(b"".join(snapshot.chunks()))
        self.results = {int(index): result for index, result in results.items()}
