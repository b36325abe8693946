"""Linearizable reads: whether a leader still led after it was asked (thesis 6.4, section 8 of the paper).

Knows nothing of entries, of who asks or of time. The rule: a read is confirmed by a majority that has answered, in the
leader's term, appends which were *begun* after the read had come; how late an answer comes says nothing.

Reads are numbered, and all that come before the next append is sent share a number. Every append that is sent carries,
in the leader's memory only, the number of the newest reads; its answer confirms these and all before them. So any
number of reads cost one round, and under load none of their own. Whoever was elected in a later term has got the vote
of one of that majority after its answer, thus after the reads had come: what they do not see was written later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from zmqraft.core.quorum import committed_index

__all__ = ["ReadIndex"]


class ReadIndex:
    """The reads of one leader in one term. A new term, or the same one after it stopped leading, has another."""

    def __init__(self) -> None:
        #: The number of the newest reads, and whether an append was sent since they came.
        self._newest = 0
        self._is_sent = True
        # By peer: the numbers that are under way to it, the oldest first; the newest one sent; the newest one answered.
        self._under_way: dict[str, deque[int]] = {}
        self._sent: dict[str, int] = {}
        self._answered: dict[str, int] = {}

    def begin(self) -> int:
        """A read has come. Returns its number, from 1 on."""
        if self._is_sent:
            self._newest += 1
            self._is_sent = False
        return self._newest

    def wants(self, peer_id: str) -> bool:
        """Whether this peer was not sent an append since the newest read."""
        return self._sent.get(peer_id, 0) < self._newest

    def sent(self, peer_id: str) -> None:
        """An append is on its way."""
        self._is_sent = True
        self._sent[peer_id] = self._newest
        self._under_way.setdefault(peer_id, deque()).append(self._newest)

    def answered(self, peer_id: str, count: int) -> None:
        """The last of the ``count`` oldest appends under way was answered, in the leader's own term."""
        under_way = self._under_way[peer_id]
        for _ in range(count - 1):
            under_way.popleft()
        number = under_way.popleft()
        self._answered[peer_id] = max(self._answered.get(peer_id, 0), number)

    def lost(self, peer_id: str) -> None:
        """No answer to what is under way to this peer counts any more."""
        self._under_way.pop(peer_id, None)
        self._sent[peer_id] = self._answered.get(peer_id, 0)

    def confirmed(self, own_id: str, voters: Sequence[frozenset[str]]) -> int:
        """The number up to which reads are confirmed; 0 if none is."""
        return committed_index({**self._answered, own_id: self._newest}, voters)
