"""MessagePack as Node writes it: its habits with numbers, and limits that hold against whatever comes in."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zmqraft._msgpack import DEPTH_MAX, ITEMS_MAX, SIZE_MAX, pack, unpack
from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import LocalProtocolError, RemoteProtocolError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=20
)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@given(VALUES)
def test_round_trip(value: Any) -> None:
    assert unpack(pack(value)) == value


@given(VALUES)
def test_what_msgpack_reads_is_the_same(value: Any) -> None:
    assert msgpack.unpackb(pack(value)) == value


@pytest.mark.parametrize(
    ("value", "frame"), [(2**31, 2.0**31), (-(2**31) - 1, -(2.0**31) - 1), (2**53 - 1, 2.0**53 - 1)]
)
def test_large_integers_are_float64(value: int, frame: float) -> None:
    assert pack(value) == b"\xcb" + struct.pack(">d", frame)
    assert type(unpack(pack(value))) is int


@pytest.mark.parametrize(
    ("value", "frame"), [(1.0, "01"), (-1.0, "ff"), (-0.0, "00"), (300.0, "cd012c"), (1.5, "cb3ff8000000000000")]
)
def test_integral_floats_are_integers(value: float, frame: str) -> None:
    assert pack(value).hex() == frame


@pytest.mark.parametrize(
    "data", ["cf000000000000000a", "d3000000000000000a", "ca41200000", "cb4024000000000000", "d00a"]
)
def test_an_integer_however_written_is_an_int(data: str) -> None:
    value = unpack(bytes.fromhex(data))
    assert value == 10
    assert type(value) is int


@pytest.mark.parametrize(
    "value",
    [
        *(2**53, -(2**53), math.nan, math.inf, -math.inf, 1j),
        *({1: 2}, {b"key": 1}, {None: 1}, {1, 2}, b"bytes", object()),
        *("\ud800", ["ok", "\ud800"], {"\udfff": 1}, {"a": {"b": [b"deep"]}}),
    ],
)
def test_what_json_does_not_have_is_not_written(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        pack(value)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="nothing"),
        pytest.param("c0c0", id="two values"),
        pytest.param("c1", id="the byte that is never used"),
        pytest.param("cf0020000000000000", id="2**53"),
        pytest.param("cfffffffffffffffff", id="2**64 - 1"),
        pytest.param("d38000000000000000", id="-2**63"),
        pytest.param("cb7ff8000000000000", id="nan"),
        pytest.param("cb7ff0000000000000", id="inf"),
        pytest.param("ca7f800000", id="inf of 32 bits"),
        pytest.param("c40161", id="bin"),
        pytest.param("c400", id="empty bin"),
        pytest.param("d40100", id="fixext"),
        pytest.param("c70001", id="empty ext"),
        pytest.param("d6ff00000000", id="timestamp"),
        pytest.param("d7ffffffffffffffffff", id="timestamp with too many nanoseconds"),
        pytest.param("c70cff000000000000000000000000", id="timestamp of 96 bits"),
        pytest.param("c703ff000000", id="timestamp of no size"),
        pytest.param("a1ff", id="not UTF-8"),
        pytest.param("a3eda080", id="a surrogate"),
        pytest.param("a2", id="string cut off"),
        pytest.param("dbffffffff", id="string of 4 GiB"),
        pytest.param("ddffffffff", id="list of 4 G"),
        pytest.param("dfffffffff", id="map of 4 G"),
        pytest.param("dcffff" + "c0" * 0xFFFF, id="list beyond the limit"),
        pytest.param("9201", id="list cut off"),
        pytest.param("8101c0", id="key not a string"),
        pytest.param("81c0c0", id="key nil"),
        pytest.param("81c40161c0", id="key bin"),
        pytest.param("819001", id="key a list"),
        pytest.param("81" * 40 + "c0", id="maps as keys"),
        pytest.param("91" * (DEPTH_MAX + 1) + "c0", id="too deep"),
        pytest.param("91" * 100_000 + "c0", id="far too deep"),
        pytest.param("91" * 100_000, id="far too deep and cut off"),
        pytest.param("dd00001000" * 2000, id="large lists in each other"),
    ],
)
def test_what_json_does_not_have_is_not_read(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(bytes.fromhex(data))


def test_limits_hold_both_ways() -> None:
    assert unpack(pack(nested(DEPTH_MAX))) == nested(DEPTH_MAX)
    assert unpack(pack([0] * ITEMS_MAX)) == [0] * ITEMS_MAX
    longest = "x" * (SIZE_MAX - 5)
    assert unpack(pack(longest)) == longest
    for value in (
        nested(DEPTH_MAX + 1),
        [0] * (ITEMS_MAX + 1),
        dict.fromkeys(map(str, range(ITEMS_MAX + 1))),
        longest + "x",
    ):
        with pytest.raises(LocalProtocolError):
            pack(value)
        with pytest.raises(RemoteProtocolError):
            unpack(msgpack.packb(value))


def test_a_value_within_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(LocalProtocolError, match="deep"):
        pack(endless)


@given(st.binary(max_size=100))
@example(b"\xc7\x00\xff")
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    try:
        value = unpack(data)
    except RemoteProtocolError:
        return
    assert unpack(pack(value)) == value


def test_any_damage_to_a_frame_is_a_value_or_refused() -> None:
    rng = random.Random(20)
    good = pack([["1", "tcp://127.0.0.1:8047", 1.5, 2**40], {"old": [None, True], "new": -5}])
    for _ in range(20_000):
        frame = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        try:
            value = unpack(bytes(frame[: rng.randint(0, len(frame))] if rng.random() < 0.2 else frame))
        except RemoteProtocolError:
            continue
        assert unpack(pack(value)) == value
