"""State machines that are ready to use: a key-value store, a lock service, counters; with clients for each.

A peer with one: ``build_peer(settings, state_machine=lambda _: KeyValueMachine())``. All peers of a cluster run the
same. Their clients are blocking (`KeyValueClient`) and for asyncio (`AsyncKeyValueClient`); reads are linearizable, and
a change that is repeated with its request id is made once. Machines and clients are of zmqraft: peers of zmq-raft may
be in the cluster, but reads fail while one of them leads.
"""

from __future__ import annotations

from zmqraft.machines.counter import AsyncCounterClient, CounterClient, CounterMachine
from zmqraft.machines.key_value import AsyncKeyValueClient, Change, KeyValueClient, KeyValueMachine, Stored
from zmqraft.machines.lock import AsyncLockClient, Lease, LockClient, LockMachine
from zmqraft.machines.machine import CommandError, ReplicatedMachine

__all__ = [
    "AsyncCounterClient",
    "AsyncKeyValueClient",
    "AsyncLockClient",
    "Change",
    "CommandError",
    "CounterClient",
    "CounterMachine",
    "KeyValueClient",
    "KeyValueMachine",
    "Lease",
    "LockClient",
    "LockMachine",
    "ReplicatedMachine",
    "Stored",
]
