"""MessagePack as zmq-raft for Node.js writes it, within limits: what json frames, META segments and state files hold.

Only what JSON has: null, booleans, numbers, strings, lists, and maps with string keys. Knows nothing of messages or
files. The rule: JavaScript has one kind of number, so a number is an int here exactly when it is integral: integers
from 2**31 on are written as float64, and read back as int.
"""

from __future__ import annotations

import math
from typing import Final

import msgpack

from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import LocalProtocolError, RemoteProtocolError, shown

__all__ = ["DEPTH_MAX", "ITEMS_MAX", "SIZE_MAX", "pack", "unpack"]

#: Bytes of one value: a configuration of thousands of peers is far below it.
SIZE_MAX: Final = 1024 * 1024
#: Items of one list or map. Bounds what the reader sets aside for a length that a hostile sender made up.
ITEMS_MAX: Final = 4096
#: Lists and maps within each other; the deepest that the protocol has is 3. Bounds recursion.
DEPTH_MAX: Final = 16

#: Outside of these Node writes float64.
_INT_MIN: Final = -(2**31)
_INT_MAX: Final = 2**31 - 1


def pack(value: object) -> bytes:
    """The bytes of a value. Raises LocalProtocolError for one that JSON does not have, or beyond the limits."""
    plain = _to_node(value, DEPTH_MAX)
    try:
        data: bytes = msgpack.packb(plain)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"cannot be written as UTF-8: {shown(error.object)}") from None
    if len(data) > SIZE_MAX:
        raise LocalProtocolError(f"a json value has at most {SIZE_MAX} bytes, not {len(data)}")
    return data


def unpack(data: bytes) -> object:
    """The value that the bytes stand for. Raises RemoteProtocolError when they are anything but one value of JSON."""
    if len(data) > SIZE_MAX:
        raise RemoteProtocolError(f"a json value has at most {SIZE_MAX} bytes, not {len(data)}")
    try:
        value = msgpack.unpackb(data, max_array_len=ITEMS_MAX, max_map_len=ITEMS_MAX)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"not one value of MessagePack: {type(error).__name__}: {error}") from None
    return _from_node(value, DEPTH_MAX)


def _to_node(value: object, depth: int) -> object:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise LocalProtocolError(f"an integer is at most {INTEGER_MAX}, not {shown(value)}")
        return int(value) if _INT_MIN <= value <= _INT_MAX else float(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise LocalProtocolError(f"json has no {value}")
        return int(value) if value.is_integer() and _INT_MIN <= value <= _INT_MAX else value
    if depth == 0:
        raise LocalProtocolError(f"lists and maps go at most {DEPTH_MAX} deep")
    if isinstance(value, (list, tuple)):
        _check_count(len(value))
        return [_to_node(item, depth - 1) for item in value]
    if isinstance(value, dict):
        _check_count(len(value))
        for key in value:
            if not isinstance(key, str):
                raise LocalProtocolError(f"the keys of a map are strings, not {shown(key)}")
        return {key: _to_node(item, depth - 1) for key, item in value.items()}
    raise LocalProtocolError(f"json has no {type(value).__name__}")


def _check_count(count: int) -> None:
    if count > ITEMS_MAX:
        raise LocalProtocolError(f"a list or map has at most {ITEMS_MAX} items, not {count}")


def _from_node(value: object, depth: int) -> object:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise RemoteProtocolError(f"an integer is at most {INTEGER_MAX}, not {shown(value)}")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RemoteProtocolError(f"json has no {value}")
        return int(value) if value.is_integer() and abs(value) <= INTEGER_MAX else value
    if depth == 0:
        raise RemoteProtocolError(f"lists and maps go at most {DEPTH_MAX} deep")
    if isinstance(value, list):
        return [_from_node(item, depth - 1) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise RemoteProtocolError(f"the keys of a map are strings, not {shown(key)}")
        return {key: _from_node(item, depth - 1) for key, item in value.items()}
    raise RemoteProtocolError(f"json has no {type(value).__name__}")
