"""CRC32C and the checksums of entries: known values, and both twins on the same operations, hostile ones among them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import partial
from random import Random
from types import ModuleType
from typing import Any

import pytest

from support.logs import make_entry, random_entry
from support.outcomes import outcome
from support.twins import COMPILED, PURE, twin


@pytest.fixture(params=[True, False], ids=["hardware", "tables"])
def calculated(request: pytest.FixtureRequest, build: str) -> Iterator[ModuleType]:
    """A twin of the checksums; the compiled one by the processor's instructions, and by tables."""
    module = twin("checksums", build)
    if build == COMPILED:
        module._choose(request.param)
    yield module
    if build == COMPILED:
        module._choose(True)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        # RFC 3720, section B.4.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_known_values(calculated: ModuleType, data: bytes, value: int) -> None:
    assert calculated.crc32c(data) == value
    for cut in range(len(data) + 1):
        assert calculated.crc32c(memoryview(data)[cut:], calculated.crc32c(bytearray(data[:cut]))) == value


def test_an_entry_matches_in_its_place_only(calculated: ModuleType, build: str) -> None:
    entries = [make_entry(index, 3, b"x" * (index % 40 + 1)) for index in range(11, 31)]
    batch = twin("log_index", build).EntryBatch.from_entries(entries)
    slots = array("I", calculated.checksum_bytes(batch, 100, 2))
    ends = array("I", [50, 100, *[100 + end for end in batch.ends]])
    data = bytes(batch.data)

    def matching(**changes: Any) -> int:
        given = {"first_index": 9, "data": data, "ends": ends, "slots": slots, "low": 2, "high": 22, **changes}
        count: int = calculated.count_matching(*given.values())
        return count

    assert matching() == 20
    assert matching(first_index=8) == 0
    assert matching(data=data[:-1]) == 19
    for position in range(20):
        for bit in (0, 1, 17, 31):
            damaged = slots[:]
            damaged[position] ^= 1 << bit
            assert matching(slots=damaged) == position
        damaged = slots[:]
        damaged[position] = 0
        assert matching(slots=damaged) == position
        moved = ends[:]
        moved[position + 2] ^= 1
        assert matching(ends=moved) == position
        flipped = bytearray(data)
        flipped[batch.end(position) - 1] ^= 0x40
        assert matching(data=flipped) == position
    assert [slot & 3 for slot in slots] == [2] + [0] * 19
    assert array("I", calculated.checksum_bytes(batch, 100, 0))[1:] == slots[1:]


def test_the_end_of_an_entry_is_found_by_its_checksum(calculated: ModuleType, build: str) -> None:
    batch = twin("log_index", build).EntryBatch.from_entries([make_entry(7, 1, b"d" * 700), make_entry(8, 1, b"more")])
    slot = array("I", calculated.checksum_bytes(batch, 5000, 1))[0]
    end = 5000 + batch.end(0)
    data = bytes(batch.data)
    assert calculated.find_end(7, data, 5000, 5001, 6000, 1, slot) == end
    assert calculated.find_end(7, data, 5000, 5000 + (end - 5000) % 256, 6000, 256, slot) == end
    assert calculated.find_end(7, data, 5000, 5001, end, 1, slot) is None
    assert calculated.find_end(7, data, 5000, end + 1, 6000, 1, slot) is None
    assert calculated.find_end(7, data[: batch.end(0) - 1], 5000, 5001, 6000, 1, slot) is None
    assert calculated.find_end(8, data, 5000, 5001, 6000, 1, slot) is None
    assert calculated.find_end(7, data, 5000, 5001, 6000, 1, 0) is None


HOSTILE: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        5,
        2**31,
        2**32 - 1,
        2**32,
        2**62,
        2**63,
        2**64,
        10**30,
        1.0,
        "text",
        b"",
        b"bytes",
        object,
    ),
    *([], (), {}, array("I"), array("I", [1, 2, 2**32 - 1]), array("I", [9, 5]), array("B", b"123"), bytearray(30)),
    *(memoryview(bytes(12))[::2], memoryview(bytes(40))),
]


@pytest.mark.parametrize("build", [COMPILED])
@pytest.mark.parametrize("seed", range(4))
def test_both_twins_alike(build: str, seed: int) -> None:
    random = Random(seed)
    modules = [twin("checksums", which) for which in (PURE, build)]
    batches = [twin("log_index", which).EntryBatch for which in (PURE, build)]

    def or_hostile(value: Any, chance: float = 0.04) -> Any:
        return random.choice(HOSTILE) if random.random() < chance else value

    for _ in range(4000):
        kind = random.choice(["crc32c", "checksum_bytes", "count_matching", "find_end"])
        function = [getattr(module, kind) for module in modules]
        data = random.randbytes(random.choice((0, 1, 7, 8, 9, 30, 300)))
        arguments: list[list[Any]]
        if kind == "crc32c":
            arguments = [[or_hostile(data, 0.1), or_hostile(random.getrandbits(32))]] * 2
        else:
            first = random.choice((0, 1, 5, 2**33, 2**53 - 100))
            entries = [random_entry(random, 1 + number, 1, 300) for number in range(random.randint(1, 6))]
            made = [batch.from_entries(entries).with_first_index(first + 1) for batch in batches]
            base, mark = random.choice((0, 100, 2**30, 2**32 - 200)), random.choice((0, 1, 2))
            if kind == "checksum_bytes":
                given = [or_hostile(base), or_hostile(mark)]
                arguments = [[batch, *given] for batch in made]
            else:
                low = random.randint(0, 2)
                base = random.choice((0, 100, 2**30))
                slots = array("I", modules[0].checksum_bytes(made[0], base, mark))
                if random.random() < 0.3:
                    slots[random.randrange(len(slots))] ^= 1 << random.randrange(32)
                ends = array("I", [base] * low + [base + end for end in made[0].ends])
                if low == 0:
                    ends = array("I", made[0].ends)
                if random.random() < 0.2:
                    ends[random.randrange(len(ends))] = random.getrandbits(random.choice((6, 32)))
                content: Any = bytes(made[0].data)[: random.choice((None, None, -1, 3))]
                content = or_hostile(random.choice((bytes, bytearray, memoryview))(content))
                high = low + random.randint(0, len(slots))
                if kind == "count_matching":
                    given = [first + 1 - low if first else 0, content, ends, slots, low, high]
                else:
                    given = [
                        first + 1,
                        content,
                        base,
                        base + random.randint(0, 30),
                        base + 400,
                        random.choice((1, 3, 256)),
                    ]
                    given.append(slots[0])
                given = [or_hostile(value) for value in given]
                arguments = [given, given]
        results = [outcome(partial(call, *values)) for call, values in zip(function, arguments, strict=True)]
        assert results[0] == results[1], (kind, arguments)
