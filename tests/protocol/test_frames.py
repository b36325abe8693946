"""Scalars, byte for byte as zmq-raft writes and reads them (SPEC section 1), and everything that is refused."""

from __future__ import annotations

import enum
import inspect
from types import ModuleType
from typing import Any

import pytest

from support.golden import load
from support.twins import COMPILED, PURE, twin
from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import LocalProtocolError, RemoteProtocolError
from zmqraft.protocol import frames as dispatcher

SCALARS = load("frames.json")["scalars"]


class Number(enum.IntEnum):
    SEVEN = 7


class Text(str):
    __slots__ = ()


def ids(case: dict[str, Any]) -> str:
    return case["hex"] or "empty"


@pytest.mark.parametrize("case", SCALARS["uint"], ids=ids)
def test_uint_golden(frames: ModuleType, case: dict[str, Any]) -> None:
    assert frames.encode_uint(case["value"]) == bytes.fromhex(case["hex"])
    assert frames.decode_uint(bytes.fromhex(case["hex"])) == case["value"]


@pytest.mark.parametrize("case", SCALARS["uint_decode"], ids=ids)
def test_uint_decode_golden(frames: ModuleType, case: dict[str, Any]) -> None:
    assert frames.decode_uint(bytes.fromhex(case["hex"])) == case["value"]


@pytest.mark.parametrize("case", SCALARS["nuint"], ids=ids)
def test_nuint_golden(frames: ModuleType, case: dict[str, Any]) -> None:
    assert frames.encode_nuint(case["value"]) == bytes.fromhex(case["hex"])
    assert frames.decode_nuint(bytes.fromhex(case["hex"])) == case["value"]


@pytest.mark.parametrize("case", SCALARS["bool"], ids=ids)
def test_bool_golden(frames: ModuleType, case: dict[str, Any]) -> None:
    assert frames.encode_bool(case["value"]) == bytes.fromhex(case["hex"])
    assert frames.decode_bool(bytes.fromhex(case["hex"])) is case["value"]


@pytest.mark.parametrize("case", SCALARS["bool_decode"], ids=ids)
def test_bool_decode_golden(frames: ModuleType, case: dict[str, Any]) -> None:
    assert frames.decode_bool(bytes.fromhex(case["hex"])) is case["value"]


@pytest.mark.parametrize("case", SCALARS["json"], ids=ids)
def test_json_golden(frames: ModuleType, case: dict[str, Any]) -> None:
    assert frames.encode_json(case["value"]) == bytes.fromhex(case["hex"])
    decoded = frames.decode_json(bytes.fromhex(case["hex"]))
    assert decoded == case["value"]
    assert type(decoded) is type(case["value"])


@pytest.mark.parametrize("value", [-1, 2**53, 2**64, -(2**64), 1.0, 1.9, True, False, None, "1", b"\x01"])
def test_uint_refuses(frames: ModuleType, value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        frames.encode_uint(value)


def test_an_integer_too_long_to_show_is_refused(frames: ModuleType) -> None:
    """Python itself refuses to write more than 4300 digits, with a ValueError."""
    for value in (10**5000, -(10**5000)):
        for encode in (frames.encode_uint, frames.encode_json):
            with pytest.raises(LocalProtocolError, match="not <int>"):
                encode(value)


@pytest.mark.parametrize("frame", ["", "00" * 9, "01" + "00" * 8, "00000000000020", "ff" * 7, "ff" * 8, "ff" * 100])
def test_uint_decode_refuses(frames: ModuleType, frame: str) -> None:
    with pytest.raises(RemoteProtocolError):
        frames.decode_uint(bytes.fromhex(frame))


@pytest.mark.parametrize("value", [0, 1, None, "", b"", 1.0])
def test_bool_refuses(frames: ModuleType, value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        frames.encode_bool(value)


@pytest.mark.parametrize("value", [b"text", 1, None, "\ud800", "ok\udfff"])
def test_string_refuses(frames: ModuleType, value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        frames.encode_string(value)


@pytest.mark.parametrize("frame", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"abc\xc5", b"\xf4\x90\x80\x80"])
def test_string_decode_refuses(frames: ModuleType, frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not UTF-8 at byte"):
        frames.decode_string(frame)


@pytest.mark.parametrize("text", ["", "01", "żółw", "\x00", "\U0001f600", Text("sub")])
def test_string(frames: ModuleType, text: str) -> None:
    assert frames.encode_string(text) == text.encode()
    assert frames.decode_string(text.encode()) == text


@pytest.mark.parametrize("value", ["text", 1, None, [1], memoryview(b"abcd").cast("I"), memoryview(b"abcd")[::2]])
def test_bytes_refuses(frames: ModuleType, value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        frames.encode_bytes(value)
    with pytest.raises(RemoteProtocolError):
        frames.decode_bytes(value)


def test_a_released_memoryview_is_refused(frames: ModuleType) -> None:
    view = memoryview(b"abcd")
    view.release()
    with pytest.raises(LocalProtocolError):
        frames.encode_bytes(view)
    with pytest.raises(RemoteProtocolError):
        frames.check_entry(view)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_whatever_holds_bytes_is_a_frame(frames: ModuleType, kind: Any) -> None:
    assert type(frames.decode_bytes(kind(b"abc"))) is bytes
    assert frames.decode_bytes(kind(b"abc")) == b"abc"
    assert type(frames.encode_bytes(kind(b"abc"))) is bytes
    assert frames.decode_uint(kind(b"\x2c\x01")) == 300
    assert frames.decode_string(kind(b"abc")) == "abc"
    assert frames.decode_json(kind(b"\xa1a")) == "a"
    assert frames.decode_request_id(kind(bytes(12))) == bytes(12)


@pytest.mark.parametrize(
    ("packed", "value"),
    [
        (b"\x7f", 127),
        (b"\xcc\x05", 5),
        (b"\xcc\xff", 255),
        (b"\xcd\x00\x05", 5),
        (b"\xcd\xff\xfe", 0xFFFE),
        (b"\xce\x00\x00\x00\x05", 5),
        (b"\xce\xff\xfe\xfd\xfc", 0xFFFEFDFC),
        (b"\xcf\x00\x1f\xff\xff\xff\xff\xff\xff", 2**53 - 1),
        (b"\xd0\xff", -1),
    ],
)
def test_json_integers_of_every_width(frames: ModuleType, packed: bytes, value: int) -> None:
    decoded = frames.decode_json(packed)
    assert (decoded, type(decoded)) == (value, int)
    for wrong in (packed[:-1], packed + b"\x00"):
        with pytest.raises(RemoteProtocolError):
            frames.decode_json(wrong)


def test_an_int_enum_is_an_int(frames: ModuleType) -> None:
    assert frames.encode_uint(Number.SEVEN) == b"\x07"
    assert frames.encode_json(Number.SEVEN) == b"\x07"


def test_request_id(frames: ModuleType) -> None:
    assert frames.encode_request_id(bytes(range(12))) == bytes(range(12))
    assert frames.decode_request_id(bytes(range(12))) == bytes(range(12))


@pytest.mark.parametrize("value", [b"", bytes(11), bytes(13)])
def test_request_id_refuses(frames: ModuleType, value: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        frames.encode_request_id(value)
    with pytest.raises(RemoteProtocolError):
        frames.decode_request_id(value)


@pytest.mark.parametrize("value", [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 2**31 - 1, 2**31, INTEGER_MAX])
@pytest.mark.parametrize("sign", [1, -1])
def test_json_integers_come_back_as_int(frames: ModuleType, value: int, sign: int) -> None:
    decoded = frames.decode_json(frames.encode_json(sign * value))
    assert decoded == sign * value
    assert type(decoded) is int


@pytest.mark.parametrize("build", [COMPILED])
@pytest.mark.parametrize("name", dispatcher.__all__)
def test_twins_have_the_same_signatures_and_docstrings(name: str, build: str) -> None:
    pure, compiled = getattr(twin("frames", PURE), name), getattr(twin("frames", build), name)
    assert inspect.getdoc(compiled) == inspect.getdoc(pure)
    if inspect.isclass(pure):
        for method in ("encode", "decode"):
            expected = list(inspect.signature(getattr(pure, method)).parameters)
            assert list(inspect.signature(getattr(compiled, method)).parameters) == expected
            assert inspect.getdoc(getattr(compiled, method)) == inspect.getdoc(getattr(pure, method))
    else:
        assert list(inspect.signature(compiled).parameters) == list(inspect.signature(pure).parameters)
