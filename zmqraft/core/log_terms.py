"""The shape of the log: which index has which term. All that the core needs to know of entries.

Terms never go back along the log (section 5.3), so runs of equal terms say everything, and a log of millions of
entries is a handful of numbers. Knows nothing of the entries' bytes or of files. The rule:
``snapshot_index <= last_index``, and every run's index lies in ``snapshot_index + 1 ... last_index``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from zmqraft.errors import InvariantError

__all__ = ["LogTerms"]


class LogTerms:
    """Terms by index, from the snapshot's index to the last one."""

    def __init__(
        self,
        *,
        snapshot_index: int = 0,
        snapshot_term: int = 0,
        last_index: int | None = None,
        runs: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.snapshot_index = snapshot_index
        self.snapshot_term = snapshot_term
        self._firsts: list[int] = []
        self._terms: list[int] = []
        self.last_index = snapshot_index
        self.append(snapshot_index if last_index is None else last_index, runs)

    @property
    def first_index(self) -> int:
        """The index of the first entry behind the snapshot."""
        return self.snapshot_index + 1

    @property
    def last_term(self) -> int:
        """The term of the last entry, or of the snapshot."""
        return self._terms[-1] if self._terms else self.snapshot_term

    def term_at(self, index: int) -> int | None:
        """The term at an index; None below the snapshot's index and above the last one."""
        if not self.snapshot_index <= index <= self.last_index:
            return None
        run = bisect_right(self._firsts, index) - 1
        return self._terms[run] if run >= 0 else self.snapshot_term

    def first_index_of_term_at(self, index: int) -> int:
        """The first index of the run of equal terms that ``index`` lies in."""
        run = bisect_right(self._firsts, index) - 1
        return self._firsts[run] if run >= 0 else self.snapshot_index

    def append(self, last_index: int, runs: Iterable[tuple[int, int]]) -> None:
        """Add entries up to ``last_index`` whose terms are given as `EntryBatch.term_runs` gives them."""
        for position, (index, term) in enumerate(runs):
            if position == 0 and index != self.last_index + 1:
                raise InvariantError(f"an entry at index {index} cannot follow the last one, {self.last_index}")
            if index > last_index or term < self.last_term:
                raise InvariantError(f"term {term} at index {index} cannot follow term {self.last_term}")
            if not self._terms or term != self._terms[-1]:
                self._firsts.append(index)
                self._terms.append(term)
        self.last_index = last_index

    def truncate_after(self, index: int) -> None:
        """Forget the entries above ``index``."""
        if not self.snapshot_index <= index <= self.last_index:
            raise InvariantError(f"cannot cut at {index}, outside of {self.snapshot_index} to {self.last_index}")
        kept = bisect_right(self._firsts, index)
        del self._firsts[kept:], self._terms[kept:]
        self.last_index = index

    def compact(self, index: int) -> None:
        """The entries up to ``index`` are now in the snapshot."""
        term = self.term_at(index)
        if term is None:
            raise InvariantError(f"cannot compact at {index}, outside of {self.snapshot_index} to {self.last_index}")
        run = bisect_right(self._firsts, index)
        if run and self.term_at(index + 1) == term:
            run -= 1
            self._firsts[run] = index + 1
        del self._firsts[:run], self._terms[:run]
        self.snapshot_index, self.snapshot_term = index, term

    def reset(self, snapshot_index: int, snapshot_term: int) -> None:
        """Another snapshot has taken the place of the whole log."""
        self.snapshot_index, self.snapshot_term = snapshot_index, snapshot_term
        self.last_index = snapshot_index
        self._firsts, self._terms = [], []

    def find_conflict(self, runs: Iterable[tuple[int, int]], last_index: int) -> int | None:
        """The first index up to ``last_index`` at which both logs have an entry and the terms differ (section 5.3).

        ``runs`` are the terms of the other log's entries, which end at ``last_index``. Entries at or below the
        snapshot's index are not compared.
        """
        others = list(runs)
        for position, (first, term) in enumerate(others):
            end = others[position + 1][0] - 1 if position + 1 < len(others) else last_index
            index = max(first, self.first_index)
            while index <= min(end, self.last_index):
                if self.term_at(index) != term:
                    return index
                run = bisect_right(self._firsts, index)
                index = self._firsts[run] if run < len(self._firsts) else self.last_index + 1
        return None
