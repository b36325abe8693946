"""The requests to one other peer: one at a time, repeated with the same id until it is answered.

SPEC section 2, "Between peers". Knows nothing of sockets or of what the messages mean. The rule: a reply counts only
when it carries the id of the request that is outstanding, so late replies and those to abandoned requests are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from zmqraft.constants import PEER_MESSAGE_ID_MAX
from zmqraft.protocol import EntryBatch, encode_uint

__all__ = ["Message", "PeerLink"]

#: Frames, and the entries whose frames follow them.
Message: TypeAlias = "tuple[list[bytes], EntryBatch | None]"


class PeerLink:
    """The requesting side towards one peer. Times are in seconds."""

    __slots__ = ("_message", "_next_id", "_outstanding_id", "_resend_after", "deadline")

    def __init__(self) -> None:
        self._next_id = 1
        self._outstanding_id: bytes | None = None
        self._message: Message | None = None
        self._resend_after = 0.0
        #: When the outstanding request is to be sent again; infinity when there is none.
        self.deadline = math.inf

    @property
    def is_free(self) -> bool:
        """Whether no request is outstanding."""
        return self._outstanding_id is None

    def request(self, frames: Sequence[bytes], entries: EntryBatch | None, resend_after: float, now: float) -> Message:
        """Start a request. Returns what to send: the frames, the message id first, and the entries behind them."""
        self._outstanding_id = encode_uint(self._next_id)
        self._next_id = self._next_id + 1 if self._next_id < PEER_MESSAGE_ID_MAX else 0
        self._message = ([self._outstanding_id, *frames], entries)
        self._resend_after = resend_after
        self.deadline = now + resend_after
        return self._message

    def maybe_resend(self, now: float) -> Message | None:
        """The outstanding request again, when no reply came in time."""
        if now < self.deadline:
            return None
        self.deadline = now + self._resend_after
        return self._message

    def is_answered_by(self, message_id: bytes) -> bool:
        """Whether a reply with this id answers the outstanding request."""
        return message_id == self._outstanding_id

    def close_request(self) -> bool:
        """The outstanding request is answered or given up. Returns whether there was one."""
        was_outstanding = self._outstanding_id is not None
        self._outstanding_id = None
        self._message = None
        self.deadline = math.inf
        return was_outstanding
