"""Each known bug, put in, is found: by the scenario that was written for it, and by a seed of the simulator.

So the scenarios are known to be able to fail.
"""

from __future__ import annotations

import pytest
from _pytest.outcomes import Failed

from support.mutants import MUTANTS, NOT_FOUND_BY_SEEDS, Mutant, first_seed
from zmqraft.errors import ZmqRaftError
from zmqraft.testing.simulator import run_seed

#: What a scenario may raise when it fails: an assertion, a Violation, an error of a peer that noticed by itself.
_FAILURES = (AssertionError, ZmqRaftError, ValueError, Failed)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_scenario_finds_it(mutant: Mutant) -> None:
    mutant.run_scenario()
    with mutant.patch(), pytest.raises(_FAILURES):
        mutant.run_scenario()


@pytest.mark.parametrize(
    "mutant", [each for each in MUTANTS if each.name not in NOT_FOUND_BY_SEEDS], ids=lambda mutant: mutant.name
)
def test_random_seeds_find_it(mutant: Mutant) -> None:
    """In the first 200; none of these seeds fails by itself, as `test_simulator` says of others."""
    found = first_seed(mutant, 200)
    assert found is not None
    assert run_seed(found.seed).violation is None


def test_random_seeds_find_most_of_them() -> None:
    assert len(NOT_FOUND_BY_SEEDS) <= 0.2 * len(MUTANTS)
