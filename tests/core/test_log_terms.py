"""The shape of the log, checked against a plain list of terms."""

from __future__ import annotations

from itertools import groupby
from random import Random

import pytest

from zmqraft.core.log_terms import LogTerms
from zmqraft.errors import InvariantError


def runs_of(first_index: int, terms: list[int]) -> list[tuple[int, int]]:
    runs = []
    for term, group in groupby(enumerate(terms, first_index), key=lambda pair: pair[1]):
        runs.append((next(group)[0], term))
    return runs


class Model:
    """A list of terms above a snapshot."""

    def __init__(self, random: Random) -> None:
        self.snapshot_index = random.randint(0, 5)
        self.snapshot_term = random.randint(1, 3) if self.snapshot_index else 0
        self.terms: list[int] = []

    @property
    def last_index(self) -> int:
        return self.snapshot_index + len(self.terms)

    def term_at(self, index: int) -> int | None:
        if index == self.snapshot_index:
            return self.snapshot_term
        position = index - self.snapshot_index - 1
        return self.terms[position] if 0 <= position < len(self.terms) else None

    def following_terms(self, random: Random, previous: int) -> list[int]:
        terms = []
        for _ in range(random.randint(0, 6)):
            previous += random.choice((0, 0, 0, 1, 2))
            terms.append(max(previous, 1))
        return terms


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_a_list(seed: int) -> None:
    random = Random(seed)
    model = Model(random)
    log = LogTerms(snapshot_index=model.snapshot_index, snapshot_term=model.snapshot_term)
    for _ in range(100):
        action = random.choice(("append", "append", "truncate", "compact", "conflict"))
        if action == "append":
            terms = model.following_terms(random, model.term_at(model.last_index) or 0)
            log.append(model.last_index + len(terms), runs_of(model.last_index + 1, terms))
            model.terms += terms
        elif action == "truncate":
            index = random.randint(model.snapshot_index, model.last_index)
            log.truncate_after(index)
            del model.terms[index - model.snapshot_index :]
        elif action == "compact" and random.random() < 0.3:
            index = random.randint(model.snapshot_index, model.last_index)
            term = model.term_at(index)
            log.compact(index)
            del model.terms[: index - model.snapshot_index]
            model.snapshot_index, model.snapshot_term = index, term or 0
        else:
            first = random.randint(max(1, model.snapshot_index - 3), model.last_index + 1)
            terms = model.following_terms(random, random.randint(1, 6))
            last = first + len(terms) - 1
            expected = next(
                (
                    index
                    for index, term in enumerate(terms, first)
                    if model.snapshot_index < index <= model.last_index and model.term_at(index) != term
                ),
                None,
            )
            assert log.find_conflict(runs_of(first, terms), last) == expected
        assert log.last_index == model.last_index
        assert log.last_term == model.term_at(model.last_index)
        for index in range(model.last_index + 3):
            assert log.term_at(index) == model.term_at(index)
        for index in range(model.snapshot_index + 1, model.last_index + 1):
            start = log.first_index_of_term_at(index)
            assert all(model.term_at(each) == model.term_at(index) for each in range(start, index + 1))
            assert start - 1 <= model.snapshot_index or model.term_at(start - 1) != model.term_at(index)


def test_terms_never_go_back_and_indexes_leave_no_gap() -> None:
    log = LogTerms(last_index=3, runs=[(1, 2)])
    with pytest.raises(InvariantError, match="cannot follow"):
        log.append(4, [(4, 1)])
    with pytest.raises(InvariantError, match="cannot follow"):
        log.append(6, [(5, 2)])
    with pytest.raises(InvariantError, match="outside"):
        log.truncate_after(4)
    assert log.last_index == 3
