"""What users implement, or replace: the state machine, the log, the snapshot and the state of a peer."""

from __future__ import annotations

from zmqraft.api.log import LogBase
from zmqraft.api.persistence import PeersValue, PersistenceBase
from zmqraft.api.ready_emitter import ReadyEmitter
from zmqraft.api.snapshot import SnapshotBase, SnapshotContext, SnapshotReceiver
from zmqraft.api.state_machine import PeerHandle, StateMachineBase

__all__ = [
    "LogBase",
    "PeerHandle",
    "PeersValue",
    "PersistenceBase",
    "ReadyEmitter",
    "SnapshotBase",
    "SnapshotContext",
    "SnapshotReceiver",
    "StateMachineBase",
]
