"""The twins do the same: both get the same random operations, hostile values among them (DESIGN, "Twins")."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from support.golden import golden_frames, golden_values, load, protocol_name
from support.twins import COMPILED, PURE, module_over, twin
from zmqraft.constants import ABSENT
from zmqraft.errors import LocalProtocolError, RemoteProtocolError
from zmqraft.protocol.frames import encode_entry

GOLDEN = load("frames.json")["rpcs"]
OPERATIONS = 110_000
#: Those of one value.
SCALARS = ["bool", "bytes", "json", "nuint", "request_id", "string", "uint"]
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53 - 1, 2**53),
    *(2**63, 2**64, -(2**31), -(2**31) - 1, -(2**63), 1.0, 1.9, -0.0, 1e300, float("nan"), float("inf")),
    *("", "01", "żółw", "\ud800", b"", b"\x00", b"\xc0", bytes(12), bytes(21), bytes(8), b"\xff" * 8, b"\xff" * 30),
    *(bytearray(b"ab"), memoryview(b"ab"), memoryview(b"abcd")[::2], memoryview(bytes(8)).cast("I")),
    *([], [1], (), (b"",), {}, {"a": 1}, {1: 2}, object, ABSENT, ["\ud800"], [[[]]], b"\xcb\x41\xe0" + bytes(5)),
]


def outcome(call: Callable[[], Any]) -> tuple[Any, ...]:
    """What a call does, so that it can be compared: types count, since True == 1 == 1.0."""
    try:
        result = call()
    except (LocalProtocolError, RemoteProtocolError) as error:
        return type(error), str(error)
    return typed(result)


def typed(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    return type(value), value


class Operations:
    """A stream of operations, each a function of a twin's frames and schema; the same for the same seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def draw(self) -> Callable[[Any, Any], Any]:
        return self._rng.choice([self._scalar, self._entry, self._entries, self._message, self._frames])()

    def _integer(self) -> int:
        return self._rng.getrandbits(self._rng.randint(0, 54))

    def _bytes(self, longest: int) -> bytes:
        return self._rng.randbytes(self._rng.randint(0, longest))

    def _value(self) -> Any:
        kind = self._rng.randrange(5)
        if kind == 0:
            return self._rng.choice(HOSTILE)
        if kind == 1:
            return self._integer() * self._rng.choice([1, 1, 1, -1])
        if kind == 2:
            return self._bytes(30)
        if kind == 3:
            return self._bytes(8).decode("latin-1")
        return [self._value() for _ in range(self._rng.randint(0, 3))]

    def _frame(self) -> Any:
        return self._rng.choice(HOSTILE) if self._rng.random() < 0.05 else self._bytes(self._rng.choice([1, 8, 30]))

    def _entry_frame(self) -> bytes:
        made = encode_entry(
            self._rng.randbytes(12), self._rng.randrange(3), self._integer() % 2**53, b"x" + self._bytes(5)
        )
        if self._rng.random() < 0.1:
            made = made[: self._rng.randint(0, len(made))]
        if self._rng.random() < 0.1:
            damaged = bytearray(made) or bytearray(1)
            damaged[self._rng.randrange(len(damaged))] = self._rng.randrange(256)
            made = bytes(damaged)
        return made

    def _scalar(self) -> Callable[[Any, Any], Any]:
        name = self._rng.choice(SCALARS)
        if self._rng.random() < 0.5:
            value = self._value()
            return lambda frames, _: getattr(frames, f"encode_{name}")(value)
        frame = self._frame()
        return lambda frames, _: getattr(frames, f"decode_{name}")(frame)

    def _entry(self) -> Callable[[Any, Any], Any]:
        if self._rng.random() < 0.5:
            frame = self._entry_frame()
            return lambda frames, _: frames.check_entry(frame)
        good = [self._rng.randbytes(12), self._rng.randrange(3), self._integer(), self._bytes(9)]
        if self._rng.random() < 0.7:
            good[self._rng.randrange(4)] = self._value()
        return lambda frames, _: frames.encode_entry(*good)

    def _entries(self) -> Callable[[Any, Any], Any]:
        parts = [self._entry_frame() for _ in range(self._rng.randint(0, 4))]
        data = b"".join(parts)
        ends: list[Any] = [sum(map(len, parts[: count + 1])) for count in range(len(parts))]
        if ends and self._rng.random() < 0.5:
            ends[self._rng.randrange(len(ends))] = self._rng.choice(
                [self._value(), self._rng.randint(-1, len(data) + 1)]
            )
        return lambda frames, _: frames.check_entries(data, ends)

    def _message(self) -> Callable[[Any, Any], Any]:
        """Values to encode: mostly those of a message."""
        case = self._rng.choice(GOLDEN)
        values = self._spoiled(golden_values(case), self._value)
        return lambda _, schema: _coder(schema, case, "encode")(*values)

    def _frames(self) -> Callable[[Any, Any], Any]:
        """Frames to decode: mostly those of a message. What could be decoded can be encoded."""
        case = self._rng.choice(GOLDEN)
        frames = self._spoiled(golden_frames(case), self._frame)

        def decode(_: Any, schema: Any) -> Any:
            values = _coder(schema, case, "decode")(frames)
            try:
                return values, _coder(schema, case, "encode")(*values)
            except LocalProtocolError as error:
                raise AssertionError(f"decoded but not encoded: {frames}") from error

        return decode

    def _spoiled(self, items: list[Any], draw: Callable[[], Any]) -> list[Any]:
        while self._rng.random() < 0.4:
            change = self._rng.randrange(4)
            if change == 0 and items:
                items[self._rng.randrange(len(items))] = draw()
            elif change == 1 and items:
                del items[self._rng.randrange(len(items))]
            elif change == 2:
                items.insert(self._rng.randint(0, len(items)), draw())
            else:
                items.append(self._entry_frame())
        return items


def _coder(schema: Any, case: dict[str, Any], direction: str) -> Any:
    return getattr(getattr(schema.Protocols, protocol_name(case["rpc"])), f"{direction}_{case['dir']}")


@pytest.mark.parametrize("build", [COMPILED])
def test_twins_do_the_same(build: str, seed: int) -> None:
    pure, compiled = ((twin("frames", b), module_over("zmqraft.protocol.schema", "frames", b)) for b in (PURE, build))
    operations = Operations(random.Random(seed))
    raised = 0
    for number in range(OPERATIONS):
        operation = operations.draw()
        expected = outcome(lambda: operation(*pure))  # noqa: B023
        got = outcome(lambda: operation(*compiled))  # noqa: B023
        # repr: NaN, which a hostile list may hold, is not equal to itself
        assert repr(got) == repr(expected), f"operation {number} of seed {seed}"
        raised += expected[0] in (LocalProtocolError, RemoteProtocolError)
    # Neither only errors nor none: the draw reaches both sides.
    assert OPERATIONS / 4 < raised < OPERATIONS * 3 / 4
