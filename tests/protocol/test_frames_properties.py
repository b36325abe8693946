"""What holds for every value and for every frame, whatever it is."""

from __future__ import annotations

from types import ModuleType

from hypothesis import given
from hypothesis import strategies as st

from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import RemoteProtocolError
from zmqraft.protocol import Protocols as Chosen

UINTS = st.integers(0, INTEGER_MAX) | st.integers(0, 53).map(lambda bits: 2**bits - 1)
NAMES = [name for name in vars(Chosen) if name.isupper()]
FRAMES = st.lists(st.binary(max_size=30) | st.sampled_from([b"", b"\x00", b"\xc0", b"?", b"+", b"secret"]), max_size=10)


@given(UINTS)
def test_a_uint_round_trips_in_its_shortest_form(frames: ModuleType, value: int) -> None:
    frame = frames.encode_uint(value)
    assert frames.decode_uint(frame) == value
    assert len(frame) == 1 or frame[-1] != 0
    assert frames.decode_uint(frame.ljust(8, b"\0")) == value


@given(st.binary(max_size=12))
def test_a_uint_is_read_when_it_has_8_bytes_and_53_bits(frames: ModuleType, frame: bytes) -> None:
    try:
        value = frames.decode_uint(frame)
    except RemoteProtocolError:
        assert not 1 <= len(frame) <= 8 or int.from_bytes(frame, "little") > INTEGER_MAX
    else:
        assert value == int.from_bytes(frame, "little")


@given(st.text())
def test_a_string_round_trips(frames: ModuleType, value: str) -> None:
    assert frames.decode_string(frames.encode_string(value)) == value


@given(st.binary(min_size=12, max_size=12), st.integers(0, 2), UINTS, st.binary(min_size=1, max_size=50))
def test_an_entry_is_its_parts(frames: ModuleType, request_id: bytes, kind: int, term: int, data: bytes) -> None:
    entry = frames.encode_entry(request_id, kind, term, data)
    frames.check_entry(entry)
    assert (entry[:12], entry[12], int.from_bytes(entry[13:20], "little"), entry[20:]) == (request_id, kind, term, data)


@given(st.sampled_from(NAMES), st.booleans(), st.booleans(), FRAMES)
def test_any_frames_are_a_message_or_refused(
    schema: ModuleType, name: str, request: bool, typed: bool, message: list[bytes]
) -> None:
    """And what was a message is the same message again when it is written and read."""
    protocol = getattr(schema.Protocols, name)
    if typed and request and protocol.message_type is not None:
        message = [protocol.message_type, *message]
    encode, decode = (
        (protocol.encode_request, protocol.decode_request)
        if request
        else (protocol.encode_response, protocol.decode_response)
    )
    try:
        values = decode(message)
    except RemoteProtocolError:
        return
    assert decode(encode(*values)) == values
