"""How commands, questions and answers of the ready-made machines are written: MessagePack, within limits.

Knows nothing of what they mean. The rule: whatever the bytes are, reading them gives a list or raises
RemoteProtocolError; an entry of the log may come from anybody who knows the secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from zmqraft.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
    RequestTimeoutError,
    ResultForgottenError,
)

__all__ = ["FORGOTTEN", "OK", "REFUSED", "WAITED", "WaitedError", "pack", "parse_answer", "unpack"]

# How an answer begins.
OK: Final = 0
#: The question made no sense to the machine; its text follows.
REFUSED: Final = 1
#: The result of a command is no longer remembered; the index of its entry follows.
FORGOTTEN: Final = 2
#: Nothing has happened that would answer the question; the index of the last entry applied follows.
WAITED: Final = 3

_ITEMS_MAX: Final = 1_000_000


class WaitedError(RequestTimeoutError):
    """A machine has waited in vain. ``index`` is that of the last entry that it has applied meanwhile."""

    def __init__(self, index: int) -> None:
        super().__init__("nothing has happened in the time that a state machine lets one wait")
        self.index = index


def pack(value: Sequence[Any]) -> bytes:
    """Raises LocalProtocolError for what MessagePack does not have."""
    try:
        packed: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot be written: {error}") from None
    return packed


def unpack(data: bytes) -> list[Any]:
    """Raises RemoteProtocolError unless the bytes are one list."""
    try:
        value = msgpack.unpackb(data, max_array_len=_ITEMS_MAX, max_map_len=_ITEMS_MAX, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not MessagePack: {error}") from None
    if not isinstance(value, list):
        raise RemoteProtocolError(f"a command is a list, not {type(value).__name__}")
    return value


def parse_answer(frames: Sequence[bytes]) -> Any:
    """What a machine answered. Raises ResultForgottenError, WaitedError, and RequestError when it did not understand
    the question."""
    if len(frames) != 1:
        raise RemoteProtocolError(f"an answer of a state machine is one frame, not {len(frames)}")
    status, value = _checked(unpack(frames[0]))
    if status == OK:
        return value
    if status == FORGOTTEN:
        raise ResultForgottenError(int(value))
    if status == WAITED:
        raise WaitedError(int(value))
    raise RequestError(f"the state machine refused a question: {value}")


def _checked(answer: list[Any]) -> tuple[int, Any]:
    if len(answer) != 2 or not isinstance(answer[0], int):
        raise RemoteProtocolError(f"an answer is a status and a value, not {answer!r:.100}")
    return answer[0], answer[1]
