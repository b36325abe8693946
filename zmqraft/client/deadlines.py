"""The deadlines of requests, in the order in which they pass.

Knows nothing of clocks. The rule: what has ended weighs nothing. Nearly all requests end long before their deadline,
and must not stay in memory until then.
"""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

__all__ = ["DeadlineQueue", "Expiring"]

#: A queue shorter than this is not worth sweeping.
_SWEEP_MIN = 64


class Expiring(Protocol):
    """What ends at ``deadline``, unless it has ended (``live`` is False) before."""

    deadline: float
    live: bool


_T = TypeVar("_T", bound=Expiring)


class DeadlineQueue(Generic[_T]):
    """A heap in which ended items stay until they are half of it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _T]] = []
        self._added = 0
        self._ended = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, item: _T) -> None:
        """Add a live item."""
        self._added += 1
        heapq.heappush(self._heap, (item.deadline, self._added, item))

    def ended(self) -> None:
        """An item that was added, and not popped, is no longer live."""
        self._ended += 1
        if len(self._heap) >= _SWEEP_MIN and 2 * self._ended > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].live]
            heapq.heapify(self._heap)
            self._ended = 0

    def pop_due(self, now: float) -> _T | None:
        """The live item whose deadline passed first; None when none has passed at ``now``."""
        while self._heap and (self._heap[0][0] <= now or not self._heap[0][2].live):
            item = heapq.heappop(self._heap)[2]
            if item.live:
                return item
            self._ended -= 1
        return None

    def next_time(self) -> float | None:
        """When `pop_due` has something to return; None when it never has."""
        while self._heap and not self._heap[0][2].live:
            heapq.heappop(self._heap)
            self._ended -= 1
        return self._heap[0][0] if self._heap else None
