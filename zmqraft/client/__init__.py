"""Blocking clients of a cluster; `ZmqRaftClient` is the one to start with."""

from __future__ import annotations

from zmqraft.client.arguments import Limits
from zmqraft.client.clients import ZmqProtocolSocket, ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.client.results import ClusterInfo, LogInfo, SessionCounters, SnapshotChunk
from zmqraft.client.sockets import ZmqSocketBase
from zmqraft.client.stream import EntriesStream
from zmqraft.client.subscriber import ZmqRaftPeerSub, ZmqRaftSubscriber
from zmqraft.client.updates_stream import UpdatesStream
from zmqraft.protocol.url import parse_url

__all__ = [
    "ClusterInfo",
    "EntriesStream",
    "Limits",
    "LogInfo",
    "SessionCounters",
    "SnapshotChunk",
    "UpdatesStream",
    "ZmqProtocolSocket",
    "ZmqRaftClient",
    "ZmqRaftPeerClient",
    "ZmqRaftPeerSub",
    "ZmqRaftSubscriber",
    "ZmqSocketBase",
    "parse_url",
]
