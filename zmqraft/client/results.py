"""What requests return: small immutable values.

Knows nothing of sockets or sessions. The rule: a value that came from outside was validated where it was decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from zmqraft.protocol.entries_flow import SnapshotChunk

__all__ = ["ClusterInfo", "LogInfo", "SessionCounters", "SnapshotChunk"]


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """What a peer knows of its cluster: whether it leads, who leads (or None), and all peers as (id, url)."""

    is_leader: bool
    leader_id: str | None
    peers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LogInfo:
    """What a peer knows of its log. Indexes are those of entries; ``snapshot_size`` is in bytes.

    ``first_index`` is 1 above the snapshot's index. Compaction up to min(``commit_index``, ``prune_index``) loses no
    request id that must still be remembered.
    """

    is_leader: bool
    leader_id: str | None
    term: int
    first_index: int
    last_applied: int
    commit_index: int
    last_index: int
    snapshot_size: int
    prune_index: int


@dataclass(slots=True)
class SessionCounters:
    """What happened in a client since it began; the one thing here that changes, until it is copied."""

    #: Replies to requests that had ended, or never were; dropped.
    unknown_replies: int = 0
    #: Replies that did not decode or made no sense; dropped.
    malformed_replies: int = 0
    #: Requests sent again over the same connection.
    repeated_requests: int = 0
    #: Searches for the leader, or for one peer: new connections after silence.
    searches: int = 0
    #: Leaders found.
    leaders: int = 0
