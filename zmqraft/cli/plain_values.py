"""Values of MessagePack as JSON can show them, without loss of what they were.

The rule: the result is always JSON; what JSON does not have is an object with one key that starts with ``$``.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import msgpack

__all__ = ["decoded", "plain"]

_DEPTH_MAX = 100


def decoded(data: bytes) -> Any:
    """The one value that the bytes stand for, as JSON has it. ValueError when they are anything else."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False, timestamp=0)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ValueError(f"not one value of MessagePack: {error}") from None
    return plain(value)


def plain(value: object, depth: int = _DEPTH_MAX) -> Any:
    """A value of MessagePack as JSON has it. ValueError when lists and maps go more than 100 deep."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return {"$base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, msgpack.ExtType):
        return {"$ext": value.code, "data": base64.b64encode(value.data).decode("ascii")}
    if isinstance(value, msgpack.Timestamp):
        return {"$timestamp": [value.seconds, value.nanoseconds]}
    if depth == 0:
        raise ValueError(f"lists and maps go more than {_DEPTH_MAX} deep")
    if isinstance(value, (list, tuple)):
        return [plain(item, depth - 1) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: plain(item, depth - 1) for key, item in value.items()}
        return {"$map": [[plain(key, depth - 1), plain(item, depth - 1)] for key, item in value.items()]}
    raise ValueError(f"JSON has no {type(value).__name__}")
