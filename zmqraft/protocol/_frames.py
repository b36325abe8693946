"""Frames: the bytes of the scalars and of whole messages (SPEC section 1). The pure twin of _speedups/frames.pyx.

Knows nothing of which messages there are (that is `schema`) and of sockets. The rule: every ``encode_*`` raises
LocalProtocolError and every ``decode_*`` and ``check_*`` RemoteProtocolError, whatever it is given, and nothing else.
Same names, signatures, results and exceptions as the compiled twin; import either through `zmqraft.protocol.frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from zmqraft import _msgpack
from zmqraft.constants import ABSENT, ENTRY_HEADER_SIZE, INTEGER_MAX, REQUEST_ID_SIZE
from zmqraft.errors import LocalProtocolError, RemoteProtocolError, shown

#: What comes from a socket. A memoryview must be contiguous, of one dimension and of format "B".
Frame: TypeAlias = "bytes | bytearray | memoryview"

#: The longest form of a uint that is read; the shortest form of INTEGER_MAX has 7.
UINT_SIZE_MAX: Final = 8

_TYPE_OFFSET = REQUEST_ID_SIZE
_TERM_OFFSET = REQUEST_ID_SIZE + 1
_ENTRY_TYPE_MAX = 2
_TERM_SIZE = ENTRY_HEADER_SIZE - _TERM_OFFSET


def is_frame(value: object) -> bool:
    """Whether a value holds bytes, one after the other."""
    if isinstance(value, (bytes, bytearray)):
        return True
    try:
        return isinstance(value, memoryview) and value.format == "B" and value.ndim == 1 and value.contiguous
    except ValueError:  # a memoryview that was released
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _to_bytes(frame: object) -> bytes:
    """A frame that came in, as bytes."""
    if type(frame) is bytes:
        return frame
    if not is_frame(frame):
        raise RemoteProtocolError(f"a frame is bytes, not {type(frame).__name__}")
    return bytes(frame)  # type: ignore[call-overload, no-any-return]


# --- scalars --------------------------------------------------------------------------------------------------------


def encode_bytes(value: Frame) -> bytes:
    """Bytes as they are."""
    if not is_frame(value):
        raise LocalProtocolError(f"expected bytes, not {type(value).__name__}")
    return bytes(value)


def decode_bytes(frame: Frame) -> bytes:
    """Bytes as they are."""
    return _to_bytes(frame)


def encode_string(value: str) -> bytes:
    """UTF-8, no terminator."""
    if not isinstance(value, str):
        raise LocalProtocolError(f"expected a str, not {type(value).__name__}")
    try:
        return str.encode(value)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"cannot be written as UTF-8: {shown(value)} at {error.start}") from None


def decode_string(frame: Frame) -> str:
    """UTF-8, no terminator."""
    try:
        return _to_bytes(frame).decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"not UTF-8 at byte {error.start}") from None


def encode_uint(value: int) -> bytes:
    """An integer from 0 to INTEGER_MAX in the fewest bytes, at least one, the least significant first."""
    if not _is_integer(value):
        raise LocalProtocolError(f"expected an int, not {type(value).__name__}")
    if not 0 <= value <= INTEGER_MAX:
        raise LocalProtocolError(f"an integer is 0 to {INTEGER_MAX}, not {shown(value)}")
    return int(value).to_bytes((value.bit_length() + 7) // 8 or 1, "little")


def decode_uint(frame: Frame) -> int:
    """1 to 8 bytes, the least significant first; trailing zero bytes are accepted."""
    data = _to_bytes(frame)
    if not 1 <= len(data) <= UINT_SIZE_MAX:
        raise RemoteProtocolError(f"a uint has 1 to {UINT_SIZE_MAX} bytes, not {len(data)}")
    value = int.from_bytes(data, "little")
    if value > INTEGER_MAX:
        raise RemoteProtocolError(f"an integer is 0 to {INTEGER_MAX}, not {value}")
    return value


def encode_nuint(value: int | None) -> bytes:
    """As `encode_uint`, and None is the empty frame."""
    return b"" if value is None else encode_uint(value)


def decode_nuint(frame: Frame) -> int | None:
    """As `decode_uint`, and the empty frame is None."""
    data = _to_bytes(frame)
    return decode_uint(data) if data else None


def encode_bool(value: bool) -> bytes:
    """True is one byte 01, False the empty frame."""
    if not isinstance(value, bool):
        raise LocalProtocolError(f"expected a bool, not {type(value).__name__}")
    return b"\x01" if value else b""


def decode_bool(frame: Frame) -> bool:
    """True when the first byte exists and is not 0."""
    data = _to_bytes(frame)
    return bool(data) and data[0] != 0


def encode_json(value: object) -> bytes:
    """A value that JSON has, as MessagePack; integers from 2**31 on as float64. See `zmqraft._msgpack`."""
    return _msgpack.pack(value)


def decode_json(frame: Frame) -> object:
    """A value from MessagePack; an integral number is always an int."""
    return _msgpack.unpack(_to_bytes(frame))


def encode_request_id(value: Frame) -> bytes:
    """12 bytes, as `new_request_id` makes them."""
    if not is_frame(value) or len(value) != REQUEST_ID_SIZE:
        raise LocalProtocolError(f"a request id is {REQUEST_ID_SIZE} bytes, not {shown(value)}")
    return bytes(value)


def decode_request_id(frame: Frame) -> bytes:
    """12 bytes."""
    data = _to_bytes(frame)
    if len(data) != REQUEST_ID_SIZE:
        raise RemoteProtocolError(f"a request id has {REQUEST_ID_SIZE} bytes, not {len(data)}")
    return data


# --- log entries ----------------------------------------------------------------------------------------------------


def encode_entry(request_id: Frame, entry_type: int, term: int, data: Frame) -> bytes:
    """The bytes of a log entry: 12 of request id, 1 of type, 7 of term (least significant first), then the data."""
    if not (is_frame(request_id) and is_frame(data)):
        raise LocalProtocolError("the request id and the data of a log entry are bytes")
    if len(request_id) != REQUEST_ID_SIZE:
        raise LocalProtocolError(f"a request id has {REQUEST_ID_SIZE} bytes, not {len(request_id)}")
    if not (_is_integer(entry_type) and 0 <= entry_type <= _ENTRY_TYPE_MAX):
        raise LocalProtocolError(f"a log entry's type is 0 to {_ENTRY_TYPE_MAX}, not {shown(entry_type)}")
    if not (_is_integer(term) and 0 <= term <= INTEGER_MAX):
        raise LocalProtocolError(f"a term is 0 to {INTEGER_MAX}, not {shown(term)}")
    if len(data) == 0:
        raise LocalProtocolError("the data of a log entry is never empty")
    return b"%b%c%b%b" % (bytes(request_id), entry_type, int(term).to_bytes(_TERM_SIZE, "little"), bytes(data))


def check_entry(frame: Frame) -> None:
    """Raise RemoteProtocolError unless the bytes are a log entry."""
    if type(frame) is not bytes and not is_frame(frame):
        raise RemoteProtocolError(f"a frame is bytes, not {type(frame).__name__}")
    _check_header(frame, 0, len(frame))


def check_entries(data: Frame, ends: Sequence[int]) -> None:
    """Raise RemoteProtocolError unless the bytes are log entries one after the other that end at these offsets."""
    if not is_frame(data):
        raise RemoteProtocolError(f"a frame is bytes, not {type(data).__name__}")
    size = len(data)
    start = 0
    for end in ends:
        if (type(end) is not int and not _is_integer(end)) or not start < end <= size:
            raise RemoteProtocolError(f"a log entry ends at {shown(end)}, outside of {start} to {size}")
        _check_header(data, start, end)
        start = end
    if start != size:
        raise RemoteProtocolError(f"{size - start} bytes behind the last log entry")


def _check_header(data: Frame, start: int, end: int) -> None:
    """Check the log entry that stands between two offsets."""
    if end - start <= ENTRY_HEADER_SIZE:
        raise RemoteProtocolError(f"a log entry has more than {ENTRY_HEADER_SIZE} bytes, not {end - start}")
    if data[start + _TYPE_OFFSET] > _ENTRY_TYPE_MAX:
        entry_type = data[start + _TYPE_OFFSET]
        raise RemoteProtocolError(f"a log entry's type is 0 to {_ENTRY_TYPE_MAX}, not {entry_type}")
    term = int.from_bytes(data[start + _TERM_OFFSET : start + ENTRY_HEADER_SIZE], "little")
    if term > INTEGER_MAX:
        raise RemoteProtocolError(f"a term is 0 to {INTEGER_MAX}, not {term}")


def _encode_entry_frame(frame: Frame) -> bytes:
    try:
        check_entry(frame)
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from None
    return bytes(frame)


def _decode_entry_frame(frame: Frame) -> bytes:
    check_entry(frame)
    return bytes(frame)


# --- messages -------------------------------------------------------------------------------------------------------

#: One letter for each kind of frame: how it is written, how it is read, and what stands for one that is absent.
_KINDS: Final[dict[str, tuple[Callable[[Any], bytes], Callable[[Any], Any], object]]] = {
    "b": (encode_bytes, decode_bytes, None),
    "s": (encode_string, decode_string, None),
    "u": (encode_uint, decode_uint, None),
    "n": (encode_nuint, decode_nuint, None),
    "t": (encode_bool, decode_bool, None),
    "j": (encode_json, decode_json, ABSENT),
    "r": (encode_request_id, decode_request_id, None),
    "e": (_encode_entry_frame, _decode_entry_frame, None),
}


class MessageCodec:
    """The frames of one message, from the type frame on, to a tuple of values and back.

    ``kinds`` has one letter for each field in ``fields``; fields from position ``required`` on may be absent; with
    ``repeated`` the last field stands for any number of frames. ``first`` is what the first field, of bytes and
    required, must be, if anything. Made by `FramesProtocol` from its schema.
    """

    __slots__ = ("_absent", "_decoders", "_encoders", "_fields", "_first", "_name", "_repeated", "_required")

    def __init__(
        self, name: str, fields: Sequence[str], kinds: str, required: int, repeated: bool, first: bytes | None
    ) -> None:
        if len(fields) != len(kinds):
            raise ValueError(f"{name}: {len(fields)} fields of {len(kinds)} kinds")
        if first is not None and not (kinds.startswith("b") and required > 0):
            raise ValueError(f"{name}: the first field is not bytes, or not required")
        self._name = name
        self._fields = tuple(fields)
        self._encoders = tuple(_KINDS[kind][0] for kind in kinds)
        self._decoders = tuple(_KINDS[kind][1] for kind in kinds)
        self._absent = tuple(_KINDS[kind][2] for kind in kinds)
        self._required = required
        self._repeated = repeated
        self._first = first

    def encode(self, values: Sequence[Any]) -> list[bytes]:
        """The frames. Raises LocalProtocolError when the values are not what the message has."""
        if not isinstance(values, (list, tuple)):
            raise LocalProtocolError(f"{self._name}: expected a tuple of values, not {type(values).__name__}")
        if len(values) > len(self._fields):
            raise LocalProtocolError(f"{self._name} has at most {len(self._fields)} fields, not {len(values)}")
        last: Sequence[Any] = ()
        if self._repeated and len(values) == len(self._fields):
            *values, last = values
            if not isinstance(last, (list, tuple)):
                field = self._fields[-1]
                raise LocalProtocolError(f"{self._name}: {field}: expected a list, not {type(last).__name__}")
        count = self._present(values)
        if count < self._required or (last and count < len(self._fields) - 1):
            raise LocalProtocolError(f"{self._name}: {self._fields[count]} is missing")
        frames: list[bytes] = []
        position = 0
        try:
            if self._first is not None and encode_bytes(values[0]) != self._first:
                raise LocalProtocolError(f"expected {self._first!r}, not {shown(values[0])}")
            for position in range(count):
                frames.append(self._encoders[position](values[position]))
            if last:
                position = len(self._fields) - 1
                frames += map(self._encoders[position], last)
        except LocalProtocolError as error:
            raise LocalProtocolError(f"{self._name}: {self._fields[position]}: {error}") from None
        return frames

    def decode(self, frames: Sequence[Frame]) -> tuple[Any, ...]:
        """The values. Raises RemoteProtocolError when the frames are not the message."""
        if not isinstance(frames, (list, tuple)):
            raise RemoteProtocolError(f"{self._name}: expected a list of frames, not {type(frames).__name__}")
        if len(frames) < self._required:
            raise RemoteProtocolError(f"{self._name} has at least {self._required} frames, not {len(frames)}")
        single = len(self._fields) - self._repeated
        present = min(len(frames), single)
        values: list[Any] = []
        position = 0
        try:
            if self._first is not None and _to_bytes(frames[0]) != self._first:
                raise RemoteProtocolError(f"expected {self._first!r}, not {shown(frames[0])}")
            for position in range(present):
                values.append(self._decoders[position](frames[position]))
            values += self._absent[present:single]
            if self._repeated:
                position = single
                values.append([self._decoders[single](frame) for frame in frames[single:]])
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self._name}: {self._fields[position]}: {error}") from None
        return tuple(values)

    def _present(self, values: Sequence[Any]) -> int:
        """How many of the values are there, without those at the end that stand for absent frames."""
        count = len(values)
        while count > self._required and (values[count - 1] is self._absent[count - 1] or values[count - 1] is ABSENT):
            count -= 1
        return count
