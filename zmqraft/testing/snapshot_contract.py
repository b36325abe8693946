"""The contract of `zmqraft.api.SnapshotBase`, as tests.

Knows nothing of how a snapshot is stored. The rule: it is complete, and never changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from random import Random

from zmqraft.api.snapshot import SnapshotBase
from zmqraft.constants import INTEGER_MAX
from zmqraft.testing.contract import check

__all__ = ["SnapshotContract"]


class SnapshotContract(ABC):
    """Derive from this, and implement `make_snapshot`."""

    @abstractmethod
    def make_snapshot(self, index: int, term: int, data: bytes) -> SnapshotBase:
        """A new snapshot with this data; there may be others already."""

    def test_index_term_and_size(self) -> None:
        """Those of the empty one, and up to the largest."""
        for index, term, data in ((0, 0, b""), (12, 3, b"x" * 9), (INTEGER_MAX, INTEGER_MAX, b"y")):
            snapshot = self.make_snapshot(index, term, data)
            check((snapshot.index, snapshot.term, snapshot.size), (index, term, len(data)), "index, term, size")
            check(snapshot.read(0, len(data) + 1), data, "the data")
            snapshot.close()

    def test_reading_any_part(self) -> None:
        """At most as much as asked for, and nothing at or beyond the end."""
        random = Random(1)
        for size in (1, 1000, 65536, 200_001):
            data = random.randbytes(size)
            snapshot = self.make_snapshot(7, 2, data)
            for _ in range(50):
                offset, wanted = random.randrange(size + 2), random.choice([0, 1, 100, 65536, size])
                part = snapshot.read(offset, wanted)
                check(part == data[offset : offset + wanted], True, f"{wanted} of {size} bytes from {offset} are right")
            check(b"".join(snapshot.read(at, 4096) for at in range(0, size, 4096)) == data, True, "the data is right")
            check((snapshot.read(size, 10), snapshot.read(size + 100, 10)), (b"", b""), "the data behind the end")
            snapshot.close()

    def test_who_reads_one_goes_on_with_it(self) -> None:
        """Also when a newer one is made."""
        old = self.make_snapshot(1, 1, b"old state")
        new = self.make_snapshot(2, 1, b"new state")
        check((old.read(0, 100), new.read(0, 100)), (b"old state", b"new state"), "the data of both")
        old.close()
        new.close()

    def test_closing_twice(self) -> None:
        """Nothing happens the second time."""
        snapshot = self.make_snapshot(1, 1, b"state")
        snapshot.close()
        snapshot.close()
