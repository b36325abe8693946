"""Each known bug, put in, is found: by the scenario that was written for it, and by a seed of the simulator.

So the scenarios are known to be able to fail.
"""

from __future__ import annotations

import pytest
from _pytest.outcomes import Failed

from support.mutant import Mutant, MutantError, Scenario, changed
from support.mutants import MUTANTS, NOT_FOUND_BY_SEEDS, NOT_SIMULATED, SEEDS, first_seed
from zmqraft.core.raft import Raft
from zmqraft.errors import ZmqRaftError
from zmqraft.testing.simulator import run_seed

#: What a scenario may raise when it fails: an assertion, a Violation, an error of a peer that noticed by itself, or a
#: reply that is not there.
_FAILURES = (AssertionError, LookupError, ZmqRaftError, ValueError, Failed)
#: Those that come later take too long here.
_SEED_MAX = 20


@pytest.mark.parametrize(
    ("mutant", "scenario"),
    [(mutant, scenario) for mutant in MUTANTS for scenario in mutant.scenarios],
    ids=lambda value: value.name if isinstance(value, Mutant) else value.test.rpartition("::")[2],
)
def test_the_scenario_finds_it(mutant: Mutant, scenario: Scenario) -> None:
    scenario.run()
    with mutant.patch(), pytest.raises(_FAILURES):
        scenario.run()


@pytest.mark.parametrize(
    "mutant",
    [each for each in MUTANTS if SEEDS.get(each.name, _SEED_MAX + 1) <= _SEED_MAX],
    ids=lambda mutant: mutant.name,
)
def test_random_seeds_find_it(mutant: Mutant) -> None:
    """In the first 200; none of these seeds fails by itself, as `test_simulator` says of others."""
    found = first_seed(mutant, 200)
    assert found is not None
    assert run_seed(found.seed).violation is None


def test_what_is_said_of_seeds_is_said_of_mutants() -> None:
    names = {mutant.name for mutant in MUTANTS}
    assert len(names) == len(MUTANTS)
    assert names == {*SEEDS, *NOT_FOUND_BY_SEEDS, *NOT_SIMULATED}
    assert len(names) == len(SEEDS) + len(NOT_FOUND_BY_SEEDS) + len(NOT_SIMULATED)


def test_random_seeds_find_most_of_them() -> None:
    assert len(SEEDS) >= 0.8 * len(MUTANTS)


def test_a_mutant_of_what_is_not_there_is_an_error() -> None:
    for patch in (changed(Raft, "tick", "no such text", ""), changed(Raft, "no_such_method", "x", "y")):
        with pytest.raises((MutantError, AttributeError)), patch():
            pass
