"""The replaceable state of a peer: term, vote and configuration, the things it must never forget.

`zmqraft.RaftPersistence` is the implementation that ships. The rule: when `update` returns, everything in it is on
disk, together or not at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["PeersValue", "PersistenceBase"]

#: ``[(id, url), ...]``, or ``{"old": [...], "new": [...]}`` while a change of the configuration is under way.
PeersValue: TypeAlias = "Sequence[tuple[str, str]] | dict[str, Sequence[tuple[str, str]]]"


class PersistenceBase(ABC):
    """Term, vote and configuration on disk (SPEC section 3, state file; section 5 of the Raft paper, figure 2)."""

    @property
    @abstractmethod
    def current_term(self) -> int:
        """The latest term that the peer has seen; 0 at first."""

    @property
    @abstractmethod
    def voted_for(self) -> str | None:
        """The candidate that got the peer's vote in the current term."""

    @property
    @abstractmethod
    def peers(self) -> PeersValue | None:
        """The configuration last stored; None while there never was one."""

    @property
    @abstractmethod
    def peers_update_request(self) -> bytes | None:
        """The request id of the CONFIG entry with that configuration."""

    @property
    @abstractmethod
    def peers_index(self) -> int | None:
        """The index of that CONFIG entry."""

    @property
    def is_identified(self) -> bool:
        """Whether the data says by itself that it is that of this peer, in a cluster with a secret of its own."""
        return False

    @abstractmethod
    def update_vote(self, current_term: int, voted_for: str | None) -> None:
        """Store term and vote, in one record. Durable on return.

        ValueError when the term would go back, or a vote would be taken back or go to another one in its term. Raises
        StorageFailedError when this or an earlier write failed.
        """

    @abstractmethod
    def update_peers(self, peers: PeersValue, request_id: bytes | None, index: int | None) -> None:
        """Store the configuration. Durable on return. Raises StorageFailedError as `update_vote`."""

    @abstractmethod
    def close(self) -> None:
        """Release the file. May be called twice."""
