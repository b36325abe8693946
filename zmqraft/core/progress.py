"""What a leader knows of one follower, and what it has to tell it next.

Figure 2 of the paper (nextIndex, matchIndex), with the etcd names for the two ways of sending. Knows nothing of
messages' bytes. The relation that always holds: ``0 <= match < next``; and ``next == match + 1`` when nothing is under
way to a follower whose match is known.
"""

from __future__ import annotations

import enum
import math
from collections import deque

from zmqraft.errors import InvariantError

__all__ = ["Progress", "ProgressState"]


class ProgressState(enum.Enum):
    """PROBE: the follower's match is not known, one entry at a time. REPLICATE: it is, as many as fit. SNAPSHOT: it is
    sent a snapshot, and nothing else."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower, from the view of the leader. Times are in seconds."""

    __slots__ = (
        "commit_told",
        "has_lost_data",
        "heartbeat_at",
        "last_contact",
        "match",
        "next",
        "notice_at",
        "pending",
        "state",
    )

    def __init__(self, next_index: int, now: float) -> None:
        self.match = 0
        self.next = next_index
        self.state = ProgressState.PROBE
        #: The (previous index, last index, commit index) of every request that is under way, the oldest first. `next`
        #: is behind the last of them.
        self.pending: deque[tuple[int, int, int]] = deque()
        #: The commit index that the follower has been told: acknowledged, or in a notice, which is not.
        self.commit_told = 0
        self.heartbeat_at = now
        #: When a notice of the commit index is due, if no request tells it before.
        self.notice_at = math.inf
        #: When it last answered, or was first known: who has just become a leader, or got a new member, need not have
        #: heard of anybody yet.
        self.last_contact = now
        #: Whether it denies entries that it had acknowledged.
        self.has_lost_data = False

    def sent(self, prev_index: int, last_index: int, commit_index: int) -> None:
        """A request that ends at ``last_index`` is on its way."""
        self.pending.append((prev_index, last_index, commit_index))
        self.next = last_index + 1
        self.notice_at = math.inf

    def _answered(self, count: int) -> tuple[int, int, int]:
        for _ in range(count - 1):
            self.pending.popleft()
        return self.pending.popleft()

    def maybe_update(self, count: int) -> bool:
        """The last of the ``count`` oldest requests under way succeeded, thus all of them. Returns whether the match
        moved."""
        _, last_index, commit_index = self._answered(count)
        self.commit_told = max(self.commit_told, min(commit_index, last_index))
        self.state = ProgressState.REPLICATE
        self.has_lost_data = False
        moved = last_index > self.match
        self.match = max(self.match, last_index)
        self.next = max(self.next, self.match + 1)
        return moved

    def maybe_tell_commit(self, commit_index: int, now: float, delay: float) -> int | None:
        """The commit index that a notice is to tell now, which then counts as told; None when there is no news.

        News wait for ``delay`` seconds, since a request may take them along. Only what the follower has is told. A
        notice that gets lost is made up for by the next request.
        """
        if not self.wants_notice(commit_index, now, delay):
            return None
        self.notice_at = math.inf
        self.commit_told = min(commit_index, self.match)
        return self.commit_told

    def wants_notice(self, commit_index: int, now: float, delay: float) -> bool:
        """Whether `maybe_tell_commit` has something to tell now; if only later, `notice_at` says when from now on."""
        if self.state is not ProgressState.REPLICATE or min(commit_index, self.match) <= self.commit_told:
            return False
        if self.notice_at == math.inf:
            self.notice_at = now + delay
        return now >= self.notice_at

    def installed(self, index: int) -> bool:
        """It has a snapshot of ``index``. Returns whether the match moved."""
        moved = index > self.match
        self.match = max(self.match, index)
        self.next = self.match + 1
        self.state = ProgressState.REPLICATE
        self.has_lost_data = False
        return moved

    def lost(self) -> None:
        """Nothing is under way any more, and what of it has arrived is not known."""
        self.pending.clear()
        self.state = ProgressState.PROBE
        self.next = self.match + 1

    def maybe_decrease(self, conflict_index: int | None, count: int) -> bool:
        """The last of the ``count`` oldest requests under way was refused, so those behind it will be: go back.

        Returns False when the follower denies what it acknowledged. Where its conflicting term begins may well be below
        that: the entries of that term up to the match are the same, and those behind it are not.
        """
        prev_index, _, _ = self._answered(count)
        self.pending.clear()
        self.state = ProgressState.PROBE
        wanted = prev_index if conflict_index is None else min(conflict_index, prev_index)
        self.next = max(wanted, self.match + 1)
        if self.next < 1:
            raise InvariantError(f"next index {self.next} below 1")
        return prev_index > self.match

    def __repr__(self) -> str:
        return f"<Progress {self.state.value} match {self.match} next {self.next} pending {self.pending}>"
