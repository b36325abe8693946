"""The state machine of simulated clusters: a key-value store with get, put and compare-and-swap, through the log.

The rule: what a command returned is a function of the entries before it alone, so it is kept by index, and a chain of
hashes over all entries shows at once where two replicas part. Two replicas' snapshots of an index say the same in other
bytes, as those of many real machines do, and as many of them.
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
        self._batches = 0

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        """Commands that are none change nothing."""
        self._batches += 1
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
        mark = f"{self._batches:06}"
        return [json.dumps([mark, self.values, results, self.index, self.chain, mark]).encode()]

    def restore(self, snapshot: SnapshotBase) -> None:
        """As it was. ValueError when it is not of one piece."""
        first, self.values, results, self.index, self.chain, last = json.loads(b"".join(snapshot.chunks()))
        if first != last:
            raise ValueError(f"a snapshot that begins as {first} and ends as {last}")
        self.results = {int(index): result for index, result in results.items()}
