"""Reads that are never stale: clients who ask for an index to wait for (own message, READ_INDEX).

Knows nothing of how leadership is confirmed; that is `zmqraft.core.read_index`. The rule: the index is what was
committed when the read came, or later; and nobody is told one unless this peer still led after he had asked.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from zmqraft.core.raft import Raft
from zmqraft.protocol import Protocols

__all__ = ["ReadRequests"]

#: Reads that wait for a confirmation; further ones are dropped, and repeated by their clients.
_WAITING_MAX = 65536


class ReadRequests:
    """The reads of all clients of one peer."""

    def __init__(
        self, raft: Raft, reply: Callable[[bytes, bytes, Sequence[bytes]], None], dropped: Counter[str]
    ) -> None:
        self._raft = raft
        self._reply = reply
        self._dropped = dropped
        #: Number, commit index when it came (None: no entry of the term was committed yet), and who asked.
        self._waiting: deque[tuple[int, int | None, bytes, bytes]] = deque()

    def __len__(self) -> int:
        """The number of reads that wait."""
        return len(self._waiting)

    def request(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> None:
        """Somebody asks. Raises RemoteProtocolError."""
        Protocols.READ_INDEX.decode_request(frames)
        raft = self._raft
        if not raft.is_leader:
            self._refuse(identity, message_id)
        elif len(self._waiting) >= _WAITING_MAX:
            self._dropped["too many reads"] += 1
        else:
            commit_index = raft.commit_index if raft.commits_in_term else None
            self._waiting.append((raft.reads.begin(), commit_index, identity, message_id))

    def tick(self) -> None:
        """Answer the reads that are confirmed."""
        waiting, raft = self._waiting, self._raft
        if not waiting or not raft.is_leader or not raft.commits_in_term:
            return
        confirmed = raft.reads.confirmed(raft.id, raft.configuration.voters)
        while waiting and waiting[0][0] <= confirmed:
            _, commit_index, identity, message_id = waiting.popleft()
            index = raft.commit_index if commit_index is None else commit_index
            self._reply(identity, message_id, Protocols.READ_INDEX.encode_response(index))

    def leadership_lost(self) -> None:
        """Nobody is told anything but that. At once: what a later term of this peer confirms are other reads."""
        while self._waiting:
            _, _, identity, message_id = self._waiting.popleft()
            self._refuse(identity, message_id)

    def _refuse(self, identity: bytes, message_id: bytes) -> None:
        self._reply(identity, message_id, Protocols.READ_INDEX.encode_response(None, self._raft.known_leader_id))
