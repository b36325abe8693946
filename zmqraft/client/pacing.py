"""How a feed goes no faster than its consumer, whoever carries its items to him.

Knows nothing of threads or event loops. The rule: the feed hears that something was consumed before it can be waiting
for that, but not for every single item.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from zmqraft.client.session_sockets import Feed

__all__ = ["PacedFeed", "TakenSize"]

_T = TypeVar("_T")


class PacedFeed(Feed, Protocol):
    """A feed that goes no faster than its consumer."""

    def consumed(self, size: int, now: float) -> None:
        """Items of ``size`` bytes together were taken."""


class TakenSize(Generic[_T]):
    """What a consumer has taken and the feed has not been told of."""

    def __init__(self, size_of: Callable[[_T], int], buffer_size_max: int) -> None:
        """``buffer_size_max`` is that of the feed: a quarter of it may be taken before the feed is told."""
        self._size_of = size_of
        self._report_size = max(buffer_size_max // 4, 1)
        self._size = 0

    def take(self, item: _T) -> int:
        """The consumer takes an item. How many bytes the feed is to be told of now; 0: none yet."""
        self._size += self._size_of(item)
        if self._size < self._report_size:
            return 0
        taken, self._size = self._size, 0
        return taken
