"""The Raft consensus protocol over ZeroMQ: a replicated, durable, ordered log.

- A cluster's peer: `build_peer` makes a `ZmqRaft` from `Settings`; a `StateMachineBase` of yours applies what commits.
- Its clients: `ZmqRaftClient` updates and reads the log, `ZmqRaftSubscriber` follows it.
- What can be replaced: `LogBase`, `SnapshotBase`, `PersistenceBase`, and the implementations on files.
- The protocol itself: `Protocols`, `LogEntry`, `EntryBatch`, request ids.

Peers, clients and files work together with those of zmq-raft for Node.js.
"""

from __future__ import annotations

from zmqraft._accel import EXTENSIONS
from zmqraft.api import (
    LogBase,
    PeerHandle,
    PersistenceBase,
    ReadyEmitter,
    SnapshotBase,
    SnapshotContext,
    StateMachineBase,
)
from zmqraft.client import (
    ClusterInfo,
    EntriesStream,
    Limits,
    LogInfo,
    SnapshotChunk,
    ZmqProtocolSocket,
    ZmqRaftClient,
    ZmqRaftPeerClient,
    ZmqRaftPeerSub,
    ZmqRaftSubscriber,
    ZmqSocketBase,
)
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.errors import (
    ClosedError,
    CompactedError,
    ConfigUpdateInProgressError,
    ConfigUpdateRefusedError,
    ConfigurationError,
    CorruptionError,
    InvariantError,
    LocalProtocolError,
    NotLeaderError,
    NotSupportedError,
    OutOfOrderError,
    PeerFailedError,
    ProtocolError,
    RemoteProtocolError,
    RequestError,
    RequestExpiredError,
    RequestTimeoutError,
    ResultForgottenError,
    StorageError,
    StorageFailedError,
    ZmqRaftError,
)
from zmqraft.protocol import (
    ABSENT,
    EntryBatch,
    EntryType,
    FramesProtocol,
    LogEntry,
    Protocols,
    new_request_id,
    request_id_from_text,
    request_id_seconds,
    request_id_to_base64,
)
from zmqraft.protocol.url import parse_url
from zmqraft.server.broadcast import BroadcastStateMachine
from zmqraft.server.builder import build_peer
from zmqraft.server.peer import ZmqRaft
from zmqraft.server.rpc_socket import ZmqRpcSocket
from zmqraft.server.settings import (
    BroadcastSettings,
    CompactSettings,
    DataSettings,
    PeerAddress,
    Settings,
    WebMonitorSettings,
)
from zmqraft.storage import (
    FileLog,
    FilePersistence,
    IndexFile,
    MemoryLog,
    MemoryPersistence,
    MemorySnapshot,
    RaftPersistence,
    SnapshotFile,
)

__all__ = [
    "ABSENT",
    "EXTENSIONS",
    "BroadcastSettings",
    "BroadcastStateMachine",
    "ClosedError",
    "ClusterConfiguration",
    "ClusterInfo",
    "CompactSettings",
    "CompactedError",
    "ConfigUpdateInProgressError",
    "ConfigUpdateRefusedError",
    "ConfigurationError",
    "CorruptionError",
    "DataSettings",
    "EntriesStream",
    "EntryBatch",
    "EntryType",
    "FileLog",
    "FilePersistence",
    "FramesProtocol",
    "IndexFile",
    "InvariantError",
    "Limits",
    "LocalProtocolError",
    "LogBase",
    "LogEntry",
    "LogInfo",
    "MemoryLog",
    "MemoryPersistence",
    "MemorySnapshot",
    "NotLeaderError",
    "NotSupportedError",
    "OutOfOrderError",
    "PeerAddress",
    "PeerFailedError",
    "PeerHandle",
    "PersistenceBase",
    "ProtocolError",
    "Protocols",
    "RaftPersistence",
    "ReadyEmitter",
    "RemoteProtocolError",
    "RequestError",
    "RequestExpiredError",
    "RequestTimeoutError",
    "ResultForgottenError",
    "Settings",
    "SnapshotBase",
    "SnapshotChunk",
    "SnapshotContext",
    "SnapshotFile",
    "StateMachineBase",
    "StorageError",
    "StorageFailedError",
    "WebMonitorSettings",
    "ZmqProtocolSocket",
    "ZmqRaft",
    "ZmqRaftClient",
    "ZmqRaftError",
    "ZmqRaftPeerClient",
    "ZmqRaftPeerSub",
    "ZmqRaftSubscriber",
    "ZmqRpcSocket",
    "ZmqSocketBase",
    "build_peer",
    "new_request_id",
    "parse_url",
    "request_id_from_text",
    "request_id_seconds",
    "request_id_to_base64",
]

__version__ = "0.1.0"
