"""The terms of a log in little memory: the index at which each run of equal terms starts.

Knows nothing of files. The rule: terms never go back from one entry to the next (Raft paper, section 5.3).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

__all__ = ["TermRuns"]


class TermRuns:
    """Terms by index; runs are added at the end and cut off there."""

    __slots__ = ("_indexes", "_terms")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._indexes: list[int] = []
        self._terms: list[int] = []
        self.extend(runs)

    @property
    def last_term(self) -> int | None:
        """The term of the last run; None when there is none."""
        return self._terms[-1] if self._terms else None

    def check(self, runs: Iterable[tuple[int, int]]) -> None:
        """Raise ValueError when these could not be added."""
        self._merged(runs)

    def extend(self, runs: Iterable[tuple[int, int]]) -> None:
        """Add ``(index, term)`` of runs behind the last one; those that continue it are merged with it.

        ValueError, and nothing is added, when an index does not rise or a term goes back.
        """
        indexes, terms = self._merged(runs)
        self._indexes += indexes
        self._terms += terms

    def _merged(self, runs: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
        indexes: list[int] = []
        terms: list[int] = []
        last_index = self._indexes[-1] if self._indexes else -1
        last_term = self._terms[-1] if self._terms else -1
        for index, term in runs:
            if index <= last_index:
                raise ValueError(f"entry {index} does not follow entry {last_index}")
            if term < last_term:
                raise ValueError(f"the term goes back from {last_term} to {term} at entry {index}")
            if term > last_term:
                indexes.append(index)
                terms.append(term)
            last_index, last_term = index, term
        return indexes, terms

    def truncate_after(self, index: int) -> None:
        """Remove the runs that start above ``index``."""
        count = bisect_right(self._indexes, index)
        del self._indexes[count:]
        del self._terms[count:]

    def term_at(self, index: int) -> int | None:
        """The term of the run that ``index`` lies in (the last run has no end); None when it lies before the first."""
        position = bisect_right(self._indexes, index)
        return self._terms[position - 1] if position else None

    def between(self, first: int, last: int) -> list[tuple[int, int]]:
        """The runs within ``first`` to ``last``; one that starts before ``first`` is given as if it started there."""
        if first > last:
            return []
        low = bisect_right(self._indexes, first)
        high = bisect_right(self._indexes, last)
        runs = [(first, self._terms[low - 1])] if low else []
        return runs + list(zip(self._indexes[low:high], self._terms[low:high], strict=True))
