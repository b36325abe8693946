"""The contract of `zmqraft.api.PersistenceBase`, as tests.

Knows nothing of how the state is stored. The rule: what `update_vote` and `update_peers` have returned from is found by
the next process, and a vote is never taken back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar

from zmqraft.api.persistence import PeersValue, PersistenceBase
from zmqraft.constants import INTEGER_MAX
from zmqraft.testing.contract import check, check_refused

__all__ = ["PersistenceContract"]

_PEERS: Sequence[tuple[str, str]] = [("1", "tcp://127.0.0.1:8047"), ("2", "tcp://127.0.0.1:8147")]
_JOINT: dict[str, Sequence[tuple[str, str]]] = {"old": _PEERS, "new": [*_PEERS, ("3", "tcp://127.0.0.1:8247")]}
_REQUEST_ID = bytes.fromhex("65956dd526f27e10dc00000d")


def _values(state: PersistenceBase) -> tuple[Any, ...]:
    return state.current_term, state.voted_for, state.peers, state.peers_update_request, state.peers_index


class PersistenceContract(ABC):
    """Derive from this, and implement `open_state`."""

    #: Each makes another run of the random test.
    seeds: ClassVar[Sequence[int]] = range(5)

    @abstractmethod
    def open_state(self, name: str) -> PersistenceBase:
        """The state called ``name``: at first an empty one. Each later call with the name closes what the one before
        returned, and returns what the next process finds."""

    def test_an_empty_state(self) -> None:
        """Term 0, and nothing else."""
        for _ in range(2):
            state = self.open_state("empty")
            check(_values(state), (0, None, None, None, None), "the values")
        state.close()
        state.close()

    def test_values_come_back(self) -> None:
        """Of every kind, up to the largest."""
        configurations: list[PeersValue] = [_PEERS, _JOINT, [], [("ü", "tcp://[::1]:1")]]
        number = 0
        for peers in configurations:
            for request_id in (_REQUEST_ID, None):
                for index in (None, 0, 12, 2**31, INTEGER_MAX):
                    number += 1
                    name = f"values-{number}"
                    state = self.open_state(name)
                    state.update_vote(INTEGER_MAX, "1")
                    state.update_peers(peers, request_id, index)
                    expected = (INTEGER_MAX, "1", peers, request_id, index)
                    check(_values(state), expected, "the values")
                    state = self.open_state(name)
                    check(_values(state), expected, "the values after opening anew")
                    state.close()

    def test_a_vote_is_never_taken_back(self) -> None:
        """Nor given to another one in its term, nor does the term go back; also after opening anew."""
        state = self.open_state("vote")
        state.update_vote(3, None)
        state.update_vote(3, "2")
        state.update_vote(3, "2")
        for _ in range(2):
            for term, voted_for in ((3, None), (3, "1"), (2, "2"), (2, None)):
                check_refused(ValueError, f"term {term} with the vote {voted_for}", state.update_vote, term, voted_for)
                check(_values(state)[:2], (3, "2"), "term and vote")
            state = self.open_state("vote")
        state.update_vote(4, "1")
        check(_values(state)[:2], (4, "1"), "term and vote")
        state.close()

    def test_what_is_handed_over_is_a_copy(self) -> None:
        """Neither who stored the peers nor who got them can change them."""
        state = self.open_state("copy")
        given: dict[str, Any] = {"old": list(_PEERS), "new": list(_PEERS)}
        state.update_peers(given, _REQUEST_ID, 5)
        given["old"].clear()
        got = state.peers
        if isinstance(got, dict):
            got["new"] = []
        check(state.peers, {"old": _PEERS, "new": _PEERS}, "the peers")
        state.close()

    def test_random_updates(self) -> None:
        """Each is found by the next process, with all that was stored before."""
        for seed in self.seeds:
            random = Random(seed)
            state = self.open_state(f"random-{seed}")
            expected: tuple[Any, ...] = _values(state)
            for _ in range(60):
                if random.random() < 0.6:
                    term = expected[0] + random.randint(1, 3)
                    voted_for = random.choice([None, "1", "2"])
                    state.update_vote(term, voted_for)
                    expected = (term, voted_for, *expected[2:])
                else:
                    peers: PeersValue = _PEERS if random.random() < 0.5 else _JOINT
                    request_id = random.choice([None, _REQUEST_ID])
                    index = random.randint(1, 99)
                    state.update_peers(peers, request_id, index)
                    expected = (*expected[:2], peers, request_id, index)
                if random.random() < 0.3:
                    state = self.open_state(f"random-{seed}")
                check(_values(state), expected, f"the values (seed {seed})")
            state.close()
