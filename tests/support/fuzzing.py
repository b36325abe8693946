"""A small fuzzer: inputs are mutations of good ones, drawn from a seed, for as long as an option says.

The rule: what is found is a file in tests/fuzz/corpus from then on, so that it is tried in every run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from zmqraft.protocol import encode_uint

__all__ = ["CORPUS", "corpus_of", "fuzz", "mutated", "mutated_frames"]

CORPUS = Path(__file__).parent.parent / "fuzz" / "corpus"
#: Without an option so many inputs are tried of each target.
_COUNT = 1500
_INTERESTING = (
    b"",
    b"\0",
    b"\xff",
    b"\xc1",
    b"\xff" * 8,
    b"\0" * 7 + b"\x20",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xa4\xff\xfe\xfd\xfc",
    b"\x91" * 2000,
    encode_uint(2**53 - 1),
)
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(random: Random, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A few changes: bits, bytes, integers, pieces that are cut out, doubled, or come from another input."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        kind, at = random.randrange(8), random.randrange(len(data) + 1)
        stop = min(at + random.choice((1, 2, 4, 8, 20, 64, 512)), len(data))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == 2:
            size = random.choice((2, 4, 8))
            data[at : at + size] = (random.choice(_INTEGERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
        elif kind == 3:
            del data[at:stop]
        elif kind == 4:
            data[at:at] = data[at:stop]
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data[at:stop] = bytes(stop - at)
        elif others:
            other = random.choice(others)
            start = random.randrange(len(other) + 1)
            data[at:stop] = other[start : start + stop - at]
    return bytes(data)


def mutated_frames(random: Random, messages: Sequence[Sequence[bytes]]) -> list[bytes]:
    """A message with changed, missing, doubled or foreign frames."""
    frames = list(random.choice(messages))
    for _ in range(random.choice((1, 1, 2, 4))):
        kind, at = random.randrange(6), random.randrange(len(frames) + 1)
        if kind <= 1 and at < len(frames):
            frames[at] = mutated(random, frames[at])
        elif kind == 2 and at < len(frames):
            frames[at] = random.choice(_INTERESTING)
        elif kind == 3:
            del frames[at : at + 1]
        elif kind == 4:
            frames.insert(at, random.choice(random.choice(messages) or [b""]))
        else:
            del frames[at:]
    return frames


def fuzz(seed: int, seconds: float | None, draw: Callable[[Random], object], check: Callable[[object], None]) -> int:
    """Draw and check, for so many seconds, or a fixed number of times. Returns how often."""
    count = 0
    end = None if seconds is None else time.monotonic() + seconds
    while count < _COUNT if end is None else time.monotonic() < end:
        random = Random(f"{seed} {count}")
        value = draw(random)
        try:
            check(value)
        except BaseException as error:
            raise AssertionError(f"input {count} of seed {seed}, {value!r:.2000}: {error!r}") from error
        count += 1
    return count


def corpus_of(target: str) -> Iterator[bytes]:
    """What was found for a target: files of hexadecimal digits, one input each, in frames separated by spaces."""
    for path in sorted(CORPUS.glob(f"{target}-*.hex")):
        yield bytes.fromhex(path.read_text(encoding="ascii").replace("\n", ""))
