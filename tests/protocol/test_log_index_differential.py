"""Both twins of the log index get the same random operations, hostile values among them (DESIGN, "Twins")."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from support.outcomes import outcome
from support.twins import COMPILED, PURE, twin
from zmqraft.protocol.frames import encode_entry

OPERATIONS = 110_000
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 20, 21, 255, 2**31, 2**32, 2**53 - 1, 2**53, 2**62, 2**63, 2**64, -(2**63), 10**30),
    *(1.0, 1.9, float("nan"), "", "text" * 10, b"", bytes(12), bytes(20), bytes(21), b"\xff" * 40, object),
    *(bytearray(30), memoryview(bytes(30))[::2], memoryview(bytes(80)).cast("I"), [], [1], (), (None,), {}, [[b""]]),
    *(array("I", [21, 42]), array("Q", [21]), array("I")),
]
#: Methods of a batch that take positions or indexes, and how many.
METHODS = [
    *(("frame", 1), ("entry", 1), ("term", 1), ("type", 1), ("request_id", 1), ("payload", 1), ("end", 1)),
    *(("slice", 2), ("count_within", 2), ("prefix_of_size", 1), ("with_first_index", 1)),
    *(("frames", 0), ("term_runs", 0), ("config_positions", 0), ("__len__", 0), ("__repr__", 0)),
]
ATTRIBUTES = ["data", "ends", "size", "first_index", "last_index"]
Operation = Callable[["Twin"], Any]


class Twin:
    """A build of the module, and what was made with it."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.batch_type = module.EntryBatch
        self.batches = [module.EntryBatch.empty(1)]
        self.builder = module.BatchBuilder()

    def keep(self, batch: Any, slot: int) -> Any:
        if slot < len(self.batches):
            self.batches[slot] = batch
        else:
            self.batches.append(batch)
        return batch


class Operations:
    """The same stream of operations for the same seed."""

    SLOTS = 8

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._term = 0

    def draw(self) -> Operation:
        make = [self._frames, self._buffer, self._table, self._constructor, self._join, self._finish, self._pass_on]
        ask = [self._method, self._method, self._attribute, self._equal, self._table_bytes, self._entries]
        build = [self._append_entry, self._append_frame]
        return self._rng.choice([*make, *ask, *ask, *build, *build, *build])()

    # --- values -----------------------------------------------------------------------------------------------------

    def _or_hostile(self, value: Any, chance: float = 0.06) -> Any:
        return self._rng.choice(HOSTILE) if self._rng.random() < chance else value

    def _entry_bytes(self, chance: float = 0.1) -> bytes:
        data = b"x" + self._rng.randbytes(self._rng.choice((0, 1, 5, 30)))
        made = encode_entry(self._rng.randbytes(12), self._rng.randrange(3), self._next_term(), data)
        if self._rng.random() < chance:
            made = made[: self._rng.randint(0, len(made))]
        if self._rng.random() < chance:
            damaged = bytearray(made) or bytearray(1)
            damaged[self._rng.randrange(len(damaged))] = self._rng.randrange(256)
            made = bytes(damaged)
        return made

    def _next_term(self) -> int:
        """Mostly the same, as in a log."""
        if self._rng.random() < 0.1:
            self._term = self._rng.choice((0, 1, 7, 2**31, 2**32 + 1, 2**53 - 1, self._term + 1)) % 2**53
        return self._term

    def _number(self) -> Any:
        return self._or_hostile(self._rng.choice((self._rng.randint(-2, 12), self._rng.randint(-2, 200))))

    def _slot(self) -> int:
        return self._rng.randrange(self.SLOTS)

    def _held(self, slot: int) -> Callable[[Twin], Any]:
        return lambda twin: twin.batches[slot % len(twin.batches)]

    # --- making batches ---------------------------------------------------------------------------------------------

    def _frames(self) -> Operation:
        parts: Any = [self._or_hostile(self._entry_bytes(0.02), 0.02) for _ in range(self._rng.randint(0, 6))]
        if self._rng.random() < 0.2:
            parts = [bytearray(part) if type(part) is bytes else part for part in parts]
        first, parts, slot = self._number(), self._or_hostile(parts, 0.02), self._slot()
        name = self._rng.choice(["from_frames", "from_checked_frames"])
        return lambda twin: twin.keep(getattr(twin.batch_type, name)(first, parts), slot)

    def _cut(self) -> tuple[Any, list[Any]]:
        """A buffer and the ends of entries in it, often not quite right."""
        parts = [self._entry_bytes(0.02) for _ in range(self._rng.randint(0, 5))]
        data: Any = b"".join(parts)
        ends: list[Any] = [sum(map(len, parts[: count + 1])) for count in range(len(parts))]
        if ends and self._rng.random() < 0.2:
            ends[self._rng.randrange(len(ends))] = self._or_hostile(self._rng.randint(-1, len(data) + 1), 0.5)
        kind = self._rng.choice((bytes, bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))))
        return self._or_hostile(kind(data), 0.03), ends

    def _buffer(self) -> Operation:
        (data, ends), first, slot = self._cut(), self._number(), self._slot()
        given = self._or_hostile(ends, 0.03)
        return lambda twin: twin.keep(twin.batch_type.from_buffer(first, data, given), slot)

    def _constructor(self) -> Operation:
        (data, ends), first = self._cut(), self._number()
        given = self._or_hostile(ends, 0.03)
        return lambda twin: twin.batch_type(first, data, given)

    def _table(self) -> Operation:
        (data, ends), first, slot = self._cut(), self._number(), self._slot()
        base = self._rng.choice((0, 0, 5, 2**31))
        numbers = [base + end for end in ends if type(end) is int and 0 <= base + end < 2**32]
        low, high = (1, len(numbers) + 1) if base else (0, len(numbers))
        table = self._or_hostile(array("I", [base, *numbers] if base else numbers), 0.03)
        if self._rng.random() < 0.1:
            low, high = self._number(), self._number()
        return lambda twin: twin.keep(twin.batch_type.from_table(first, data, table, low, high), slot)

    def _join(self) -> Operation:
        slots = [self._slot() for _ in range(self._rng.randint(0, 4))]
        follow, odd, slot = self._rng.random() < 0.8, self._rng.random() < 0.03, self._slot()

        def join(twin: Twin) -> Any:
            batches = [self._held(slot)(twin) for slot in slots]
            for position in range(1, len(batches) if follow else 0):
                batches[position] = batches[position].with_first_index(batches[position - 1].last_index + 1)
            joined = twin.batch_type.join([*batches, None] if odd else batches)
            return twin.keep(joined.slice(joined.first_index, joined.first_index + 20), slot)

        return join

    def _finish(self) -> Operation:
        first, slot = self._number(), self._slot()
        return lambda twin: twin.keep(twin.builder.finish(first), slot)

    def _pass_on(self) -> Operation:
        """Keep a part, so that later operations work on parts of parts."""
        batch, slot, low, count = (
            self._held(self._slot()),
            self._slot(),
            self._rng.randint(0, 3),
            self._rng.randint(0, 4),
        )
        return lambda twin: twin.keep(
            batch(twin).slice(batch(twin).first_index + low, batch(twin).first_index + low + count), slot
        )

    # --- asking them ------------------------------------------------------------------------------------------------

    def _method(self) -> Operation:
        batch, (name, count) = self._held(self._slot()), self._rng.choice(METHODS)
        given = [self._number() for _ in range(count)]
        return lambda twin: getattr(batch(twin), name)(*given)

    def _attribute(self) -> Operation:
        batch, name = self._held(self._slot()), self._rng.choice(ATTRIBUTES)
        return lambda twin: getattr(batch(twin), name)

    def _equal(self) -> Operation:
        one, two = self._held(self._slot()), self._held(self._slot())
        first = self._rng.randint(0, 5)
        if self._rng.random() < 0.5:
            return lambda twin: one(twin).with_first_index(first) == two(twin).with_first_index(first)
        other = self._or_hostile(None, 0.5)
        return lambda twin: (one(twin) == two(twin), one(twin) == one(twin).slice(0, 2**60), one(twin) == other)

    def _entries(self) -> Operation:
        batch = self._held(self._slot())
        return lambda twin: (list(batch(twin)), len(batch(twin)) and twin.batch_type.from_entries(list(batch(twin))))

    def _table_bytes(self) -> Operation:
        batch, base = self._held(self._slot()), self._or_hostile(self._rng.choice((0, 1, 7000, 2**32 - 100)))
        other = self._rng.choice(HOSTILE) if self._rng.random() < 0.05 else None
        return lambda twin: twin.module.table_bytes(batch(twin) if other is None else other, base)

    # --- building them ----------------------------------------------------------------------------------------------

    def _append_entry(self) -> Operation:
        given = [self._rng.randbytes(12), self._rng.randrange(3), self._next_term(), self._rng.randbytes(9)]
        if self._rng.random() < 0.3:
            given[self._rng.randrange(4)] = self._rng.choice(HOSTILE)

        def append(twin: Twin) -> Any:
            twin.builder.append_entry(*given)
            return len(twin.builder), twin.builder.size

        return append

    def _append_frame(self) -> Operation:
        frame = self._or_hostile(self._entry_bytes())

        def append(twin: Twin) -> Any:
            twin.builder.append_frame(frame)
            return len(twin.builder), twin.builder.size

        return append


@pytest.mark.parametrize("build", [COMPILED])
def test_twins_do_the_same(build: str, seed: int) -> None:
    pure, compiled = Twin(twin("log_index", PURE)), Twin(twin("log_index", build))
    operations = Operations(random.Random(seed))
    raised = entries = 0
    for number in range(OPERATIONS):
        operation = operations.draw()
        expected = outcome(lambda: operation(pure))  # noqa: B023
        got = outcome(lambda: operation(compiled))  # noqa: B023
        assert repr(got) == repr(expected), f"operation {number} of seed {seed}"
        assert len(compiled.builder) == len(pure.builder), f"operation {number} of seed {seed}"
        raised += isinstance(expected[0], type) and issubclass(expected[0], Exception)
        entries += sum(map(len, pure.batches))
    # Neither only errors nor none, and batches that hold something: the draw reaches all sides.
    assert OPERATIONS / 10 < raised < OPERATIONS * 2 / 3
    assert entries > OPERATIONS * Operations.SLOTS
