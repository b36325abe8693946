"""What users get: their state machine in the simulator, and the check whether it is deterministic."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from random import Random

import pytest

from zmqraft.api import StateMachineBase
from zmqraft.protocol import EntryBatch
from zmqraft.testing.determinism import NotDeterministicError, canonical, check_determinism
from zmqraft.testing.fixtures import RaftSimulation, raft_determinism, raft_simulation

__all__ = ["raft_determinism", "raft_simulation"]


class Words(StateMachineBase):
    """Deterministic: counts words."""

    def __init__(self) -> None:
        self.counts: dict[bytes, int] = {}
        self.seen: set[bytes] = set()

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        for entry in entries:
            if entry.is_state:
                self.counts[entry.data] = self.counts.get(entry.data, 0) + 1
                self.seen.add(entry.data)


class FirstOfSet(Words):
    """Depends on the order of a set, from the third word on."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen = b""

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        super().apply_entries(entries, term)
        if len(self.seen) >= 3:
            self.chosen = next(iter(self.seen))


class Clocked(Words):
    """Looks at the clock for the fourth word."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        super().apply_entries(entries, term)
        if sum(self.counts.values()) == 4:
            self.at = int(time.time())


class Dicing(Words):
    """Throws dice for the second word."""

    def __init__(self) -> None:
        super().__init__()
        self.thrown = 0

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        super().apply_entries(entries, term)
        if sum(self.counts.values()) == 2:
            self.thrown = random.randrange(1 << 30)


class CountsBatches(Words):
    """Depends on how entries are cut into batches, and on the peer's term."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = 0

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        super().apply_entries(entries, term)
        self.terms = max(self.terms, term)


WORDS = [b"alpha", b"beta", b"gamma", b"delta", b"epsilon", b"alpha", b"zeta", b"eta", b"theta", b"iota"] * 3


def test_a_deterministic_machine_passes(
    raft_determinism: Callable[[type[StateMachineBase], Iterable[bytes]], int],
) -> None:
    assert raft_determinism(Words, WORDS) == len(WORDS)


@pytest.mark.parametrize(("machine", "first", "last"), [(FirstOfSet, 3, 30), (Clocked, 4, 4), (Dicing, 2, 2)])
def test_the_index_at_which_replicas_part(machine: type[StateMachineBase], first: int, last: int) -> None:
    with pytest.raises(NotDeterministicError, match=f"{machine.__name__} is not deterministic") as raised:
        check_determinism(machine, WORDS, replicas=3)
    assert first <= raised.value.index <= last
    assert f"after entry {raised.value.index} " in str(raised.value)


def test_a_replica_that_fails_is_no_difference() -> None:
    with pytest.raises(RuntimeError, match="replica 1 failed after 1 entries"):
        check_determinism(Fails, [b"good", b"bad"])


class Fails(Words):
    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        if entries.request_id(0)[-1] > 1:
            raise KeyError("bad")


def test_equal_states_look_the_same() -> None:
    first, second = {b"a": {3, 1}, b"b": [1.5, None]}, {b"b": [1.5, None], b"a": {1, 3}}
    assert canonical(first) == canonical(second)
    assert canonical([1]) != canonical(["1"])
    assert canonical({1: 2}) != canonical({1: 3})


def word(chance: Random) -> bytes:
    return chance.choice(WORDS)


def test_a_machine_in_the_simulator(raft_simulation: RaftSimulation) -> None:
    results = raft_simulation(Words, word, seeds=8)
    assert [result.violation for result in results] == [None] * 8
    assert sum(result.acknowledged for result in results) > 60


def test_a_machine_that_depends_on_its_peer_is_found(raft_simulation: RaftSimulation) -> None:
    with pytest.raises(AssertionError, match=r"seed \d+: divergence: after entry \d+ ") as raised:
        raft_simulation(CountsBatches, word, seeds=10)
    assert "with these faults:" in str(raised.value)
