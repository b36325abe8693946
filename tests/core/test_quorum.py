"""Majorities, checked against a dumb oracle: try every index, count who has it."""

from __future__ import annotations

from random import Random

import pytest

from zmqraft.core.quorum import committed_index, is_quorum


def oracle(match: dict[str, int], voters: list[frozenset[str]]) -> int:
    index = 0
    while all(sum(match.get(voter, 0) > index for voter in group) * 2 > len(group) for group in voters):
        index += 1
    return index


@pytest.mark.parametrize("seed", range(20))
def test_committed_index_agrees_with_counting(seed: int) -> None:
    random = Random(seed)
    for _ in range(200):
        ids = "abcdefg"[: random.randint(1, 7)]
        voters = [frozenset(random.sample(ids, random.randint(1, len(ids)))) for _ in range(random.randint(1, 2))]
        match = {peer: random.randint(0, 6) for peer in ids if random.random() < 0.8}
        assert committed_index(match, voters) == oracle(match, voters)


@pytest.mark.parametrize("seed", range(5))
def test_a_quorum_is_more_than_half_of_each_list(seed: int) -> None:
    random = Random(seed)
    for _ in range(200):
        voters = [frozenset(random.sample("abcdefg", random.randint(1, 7))) for _ in range(random.randint(1, 2))]
        held = set(random.sample("abcdefg", random.randint(0, 7)))
        assert is_quorum(held, voters) == all(len(group & held) > len(group) / 2 for group in voters)


def test_two_of_four_are_no_quorum() -> None:
    assert not is_quorum({"a", "b"}, [frozenset("abcd")])
    assert is_quorum({"a", "b", "c"}, [frozenset("abcd")])


def test_a_joint_configuration_needs_both_majorities() -> None:
    """Section 6 of the paper."""
    old, new = frozenset("abc"), frozenset("cde")
    assert not is_quorum({"a", "b"}, [old, new])
    assert not is_quorum({"c", "d", "e"}, [old, new])
    assert is_quorum({"a", "c", "d"}, [old, new])
    assert committed_index({"a": 9, "b": 9, "c": 4, "d": 4}, [old, new]) == 4
