"""A leader makes way for another peer, which stands for election at once instead of after an election timeout.

Thesis 3.10. Knows nothing of sockets or of clients. It goes in steps, each within a turn of the engine:

1. The leader takes no more updates; who sends one is kept waiting.
2. When the target has every entry, and owes no reply, all peers of ours are told. From here on the leader sends
   nothing.
3. A moment later it steps down: the others, who no longer feel bound to it, and itself may vote for the target.

Where no peer of ours is there to take over, a leader that must go just steps down, and the others elect after their
timeouts. The rule: nothing here weakens an election; the target needs votes as any candidate does.
"""

from __future__ import annotations

import enum
import math

from zmqraft.core.raft import Raft
from zmqraft.server.peer_calls import PeerCalls

__all__ = ["LeadershipTransfer", "TransferStep"]

#: How long the leader stays silent before it steps down, in seconds: about as long as its word takes to the others.
_SILENCE = 0.002


class TransferStep(enum.Enum):
    """What the engine has to do now."""

    WAIT = "wait"
    NOTIFY = "notify"
    STEP_DOWN = "step down"
    GIVE_UP = "give up"


class LeadershipTransfer:
    """One transfer, from its request to the moment at which the leader steps down."""

    def __init__(
        self, raft: Raft, calls: PeerCalls, target_id: str | None, *, must: bool, patience: float, now: float
    ) -> None:
        """``target_id`` None: the peer of ours that has the most. ``must``: when nobody could take over after
        ``patience`` seconds, step down all the same. ValueError when the target is not another member."""
        others = [peer_id for peer_id, _ in raft.configuration.peers if peer_id != raft.id]
        if target_id is not None and target_id not in others:
            raise ValueError(f"leadership can be transferred to one of {others}, not to {target_id!r}")
        self._raft = raft
        self._calls = calls
        self._term = raft.current_term
        self._wanted = others if target_id is None else [target_id]
        self._must = must
        self._until = now + patience
        #: Who was named; None before `TransferStep.NOTIFY`.
        self.target_id: str | None = None
        self._down_at = math.inf

    @property
    def deadline(self) -> float:
        """When there is something to do, if nothing else happens."""
        return min(self._until, self._down_at)

    @property
    def is_silent(self) -> bool:
        """Whether the leader has given its word, so that it must not send anything more."""
        return self.target_id is not None

    @property
    def is_over(self) -> bool:
        """Whether the leadership that was to be transferred has ended."""
        return not self._raft.is_leader or self._raft.current_term != self._term

    def step(self, now: float) -> TransferStep:
        """Look whether there is something to do. After NOTIFY all peers of ours are to be told of `target_id`."""
        if now >= self.deadline:
            return TransferStep.STEP_DOWN if self._must or self.is_silent else TransferStep.GIVE_UP
        if self.is_silent:
            return TransferStep.WAIT
        candidates = [
            (progress.match, peer_id)
            for peer_id, progress in self._raft.progress.items()
            if peer_id in self._wanted and self._calls.is_ours(peer_id)
        ]
        if not candidates:
            return TransferStep.WAIT
        match, target_id = max(candidates)
        if match < self._raft.log.last_index or self._calls.has_outstanding(target_id):
            return TransferStep.WAIT
        self.target_id = target_id
        self._down_at = now + _SILENCE
        return TransferStep.NOTIFY
