"""For pytest: fixtures that run a user's state machine in the simulator, and on replicas in processes of their own.

Name this module in a conftest.py: ``pytest_plugins = ["zmqraft.testing.fixtures"]``. Only this module needs pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

import pytest

from zmqraft.api import StateMachineBase
from zmqraft.testing.determinism import canonical, check_determinism
from zmqraft.testing.simulator import RunResult, Workload, run_seed, shrink

__all__ = ["RaftSimulation", "raft_determinism", "raft_simulation"]


class RaftSimulation:
    """Runs clusters of a state machine, with faults of all kinds, and compares the replicas after every entry."""

    def __call__(
        self,
        machine: Callable[[], StateMachineBase],
        command: Callable[[Random], bytes],
        *,
        seeds: int = 10,
        first_seed: int = 1,
        state_of: Callable[[StateMachineBase], object] | None = None,
    ) -> list[RunResult]:
        """Each seed is a cluster of 1 to 5 peers of ``machine()``, whose clients send what ``command(random)`` gives.

        What is compared is ``state_of(machine)``, by default all its attributes. AssertionError names the seed, the
        index at which replicas part, and the faults that are enough for it. Everything runs in one process: for what
        depends on the seed of hashes, use `raft_determinism`.
        """
        workload = Workload(machine, command, state_of or (lambda each: canonical(vars(each))))
        results = []
        for seed in range(first_seed, first_seed + seeds):
            result = run_seed(seed, workload=workload)
            if result.violation is not None:
                raise AssertionError(f"seed {seed}: {result.message}\n{_story(result, workload)}")
            results.append(result)
        return results


def _story(result: RunResult, workload: Workload) -> str:
    shrunk = shrink(result, runs_max=20, workload=workload)
    faults = "\n".join(f"  {fault}" for fault in shrunk.faults)
    trace = "\n".join(f"  {line}" for line in shrunk.lines[-40:])
    return f"with these faults:\n{faults}\nthe end of the trace:\n{trace}"


@pytest.fixture
def raft_simulation() -> RaftSimulation:
    """Call it with a state machine and a source of updates; see `RaftSimulation`."""
    return RaftSimulation()


@pytest.fixture
def raft_determinism() -> Callable[[type[StateMachineBase], Iterable[bytes]], int]:
    """`check_determinism`."""
    return check_determinism
