"""What a call does, in a form in which two twins can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zmqraft.errors import ProtocolError

#: What a caller may get wrong, beside the protocol: a value of the wrong type, or a position that is not there.
EXPECTED_ERRORS = (ProtocolError, TypeError, ValueError, IndexError)


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """The result with its types, since True == 1 == 1.0; or the exception with its text."""
    try:
        result = call()
    except EXPECTED_ERRORS as error:
        # What Python itself says about types differs between the twins.
        return type(error), "" if type(error) is TypeError else str(error)
    return typed(result)


def typed(value: Any) -> tuple[Any, ...]:
    """A value that is equal to another only if the types are equal too. An EntryBatch counts by what is in it."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, memoryview):
        return memoryview, bytes(value), value.readonly
    if type(value).__name__ == "EntryBatch":
        return "EntryBatch", value.first_index, bytes(value.data), value.ends
    return type(value), value
