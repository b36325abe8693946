"""For who replaces a part of zmqraft: what the bases in `zmqraft.api` promise, as tests over any implementation.

A contract is a class with tests and one method that is left to derive from it::

    class TestMyLog(LogContract):
        def open_log(self, name, snapshot=(0, 0, b"")):
            return MyLog(self.directory / name, snapshot)

pytest collects the derived class as any other; without pytest, `run_contract` runs it. Nothing here needs pytest.

For who writes a state machine: `zmqraft.testing.simulator` runs whole clusters of it in virtual time, with many faults;
`zmqraft.testing.determinism` compares replicas in processes of their own; `zmqraft.testing.fixtures` has both as
fixtures for pytest. `zmqraft.testing.histories` checks what clients saw.
"""

from __future__ import annotations

from zmqraft.testing.contract import run_contract
from zmqraft.testing.log_contract import LogContract
from zmqraft.testing.persistence_contract import PersistenceContract
from zmqraft.testing.snapshot_contract import SnapshotContract

__all__ = ["LogContract", "PersistenceContract", "SnapshotContract", "run_contract"]
