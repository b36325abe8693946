"""Majorities, of one list of voters or of both in a joint configuration (section 6 of the paper).

Plain functions without any Raft state, so that they can be checked against a dumb oracle.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

__all__ = ["committed_index", "is_quorum"]


def is_quorum(ids: Collection[str], voters: Sequence[frozenset[str]]) -> bool:
    """Whether ``ids`` hold a majority of each of the sets of voters."""
    return all(2 * sum(1 for voter in group if voter in ids) > len(group) for group in voters)


def committed_index(match: Mapping[str, int], voters: Sequence[frozenset[str]]) -> int:
    """The highest index that a majority of each set of voters has; a voter without an entry in ``match`` has 0."""
    committed: list[int] = []
    for group in voters:
        held = sorted([match.get(voter, 0) for voter in group], reverse=True)
        committed.append(held[len(group) // 2])
    return min(committed)
