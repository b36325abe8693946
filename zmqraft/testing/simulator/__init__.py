"""Whole clusters of the real engine and the real storage in one thread, in virtual time, on simulated disks and links.

`run_seed` draws everything from a seed, and replays it exactly; ``python -m zmqraft.testing`` runs many. A
`SimulatedCluster` is for scenarios that are written by hand, and for state machines of users.
"""

from __future__ import annotations

from zmqraft.testing.simulator.clients import SimulatedClient
from zmqraft.testing.simulator.cluster import SimulatedCluster
from zmqraft.testing.simulator.fault_plan import Fault
from zmqraft.testing.simulator.machine import KeyValueMachine
from zmqraft.testing.simulator.run import RunResult, Workload, run_seed, shrink
from zmqraft.testing.simulator.violation import Violation

__all__ = [
    "Fault",
    "KeyValueMachine",
    "RunResult",
    "SimulatedClient",
    "SimulatedCluster",
    "Violation",
    "Workload",
    "run_seed",
    "shrink",
]
