"""The requests to one other peer: one at a time, or two, repeated with the same id until they are answered.

SPEC section 2, "Between peers". Knows nothing of sockets or of what the messages mean. The rule: a reply counts only
when it carries the id of a request that is outstanding, so late replies and those to abandoned requests are dropped.
Requests get there in their order or not at all, so a reply answers those before it as well.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from zmqraft.constants import PEER_MESSAGE_ID_MAX
from zmqraft.protocol import EntryBatch, encode_uint

__all__ = ["Message", "PeerLink"]

#: Frames, and the entries whose frames follow them.
Message: TypeAlias = "tuple[list[bytes], EntryBatch | None]"


class PeerLink:
    """The requesting side towards one peer. Times are in seconds."""

    __slots__ = ("_next_id", "deadline", "outstanding")

    def __init__(self) -> None:
        self._next_id = 1
        #: The requests that are not answered, the oldest first: (message, seconds until it is repeated). Not to be
        #: changed by others.
        self.outstanding: deque[tuple[Message, float]] = deque()
        #: When the oldest outstanding request is to be sent again; infinity when there is none.
        self.deadline = math.inf

    def request(self, frames: Sequence[bytes], entries: EntryBatch | None, resend_after: float, now: float) -> Message:
        """Start a request. Returns what to send: the frames, the message id first, and the entries behind them."""
        message = ([encode_uint(self._next_id), *frames], entries)
        self._next_id = self._next_id + 1 if self._next_id < PEER_MESSAGE_ID_MAX else 0
        self.outstanding.append((message, resend_after))
        if len(self.outstanding) == 1:
            self.deadline = now + resend_after
        return message

    def resend(self, now: float) -> Message:
        """The oldest outstanding request again."""
        message, resend_after = self.outstanding[0]
        self.deadline = now + resend_after
        return message

    def answered_by(self, message_id: bytes) -> int:
        """How many of the outstanding requests, from the oldest on, a reply with this id answers; 0 if none."""
        for count, (message, _) in enumerate(self.outstanding, 1):
            if message[0][0] == message_id:
                return count
        return 0

    def close_requests(self, count: int, now: float) -> None:
        """The ``count`` oldest requests are answered; the others have all their time from now on."""
        for _ in range(count):
            self.outstanding.popleft()
        self.deadline = now + self.outstanding[0][1] if self.outstanding else math.inf

    def give_up(self) -> bool:
        """No reply to what is outstanding counts any more. Returns whether there was anything."""
        was_outstanding = bool(self.outstanding)
        self.outstanding.clear()
        self.deadline = math.inf
        return was_outstanding
