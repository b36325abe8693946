"""How many times faster the compiled modules are than their pure twins: ``python bench/compare_twins.py``.

Prints a table of what they do for each entry, and ends with status 1 when something is less than `RATIO_MIN` times as
fast, 2 when there is nothing compiled to compare. Knows nothing of sockets and disks, which cost the same whoever calls
them. The rule: only ratios count, each of two times that were taken one right after the other, so that a
slow or busy machine changes little; the median of several rounds decides.

What `NOT_JUDGED` names is shown all the same: there it says why.

In a checkout run it with ``PYTHONPATH=.``, since it measures the zmqraft that it finds.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.twins import BUILDS, COMPILED, PURE, build_name, module_over, twin

RATIO_MIN: Final = 5.0
ROUNDS: Final = 9
#: A round of the faster twin repeats its operation until it takes about this long.
ROUND_SECONDS: Final = 0.01
#: What one turn of a busy leader takes.
ENTRY_COUNT: Final = 1024
DATA: Final = b"x" * 128
SECRET: Final = b"secret"
NOW: Final = 1_800_000_000
#: A dict, with which the pure twin does it, is compiled too; what is left is a call of Python's, which is the same for
#: both. The compiled loop does without that call: "refuse known updates" is the same look-up as the leader does it.
NOT_JUDGED: Final = frozenset({("request_index", "find")})
#: Ids as clients make them: the time, then what differs.
REQUEST_IDS: Final = [NOW.to_bytes(4, "big") + number.to_bytes(8, "big") for number in range(100 * ENTRY_COUNT)]

Operation = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """The times of one operation, for each entry, and how they compare."""

    module: str
    name: str
    pure_ns: float
    compiled_ns: float
    ratio: float

    @property
    def is_judged(self) -> bool:
        return (self.module, self.name) not in NOT_JUDGED


class Operations:
    """The operations of a build, by module and name. Each handles `ENTRY_COUNT` entries, and can be repeated."""

    def __init__(self, build: str) -> None:
        self._build = build
        encode_entry = twin("frames", build).encode_entry
        self._log_index = twin("log_index", build)
        self._frames = [encode_entry(request_id, 0, 5, DATA) for request_id in REQUEST_IDS[:ENTRY_COUNT]]
        self._batch = self._log_index.EntryBatch.from_frames(1, self._frames)

    def __iter__(self) -> Iterator[tuple[str, str, Operation]]:
        yield from self._of_frames()
        yield from self._of_log_index()
        yield from self._of_request_index()
        yield from self._of_checksums()
        yield from self._of_commit_loop()

    def _of_frames(self) -> Iterator[tuple[str, str, Operation]]:
        frames = twin("frames", self._build)
        append = module_over("zmqraft.protocol.schema", "frames", self._build).Protocols.APPEND_ENTRIES
        values = (b"+", SECRET, "01", 5, 1_000_000, 5, 999_000, self._frames)
        message = append.encode_request(*values)
        data, ends = b"".join(self._frames), list(accumulate(map(len, self._frames)))
        yield (
            "frames",
            "encode entries",
            lambda: [frames.encode_entry(request_id, 0, 5, DATA) for request_id in REQUEST_IDS[:ENTRY_COUNT]],
        )
        yield "frames", "encode AppendEntries", lambda: append.encode_request(*values)
        yield "frames", "decode AppendEntries", lambda: append.decode_request(message)
        yield "frames", "check entries in a buffer", lambda: frames.check_entries(data, ends)

    def _of_log_index(self) -> Iterator[tuple[str, str, Operation]]:
        log_index, batch, frames = self._log_index, self._batch, self._frames
        data, table = b"".join(frames), array("I", accumulate(map(len, frames)))

        def build() -> None:
            builder = log_index.BatchBuilder()
            append = builder.append_frame
            for frame in frames:
                append(frame)
            builder.finish(1)

        yield "log_index", "a batch of frames", lambda: log_index.EntryBatch.from_frames(1, frames)
        yield "log_index", "a batch, frame by frame", build
        yield "log_index", "a batch of a file", lambda: log_index.EntryBatch.from_table(1, data, table, 0, len(table))
        yield "log_index", "the table of a file", lambda: log_index.table_bytes(batch, 1_000_000)
        # Under another index, since a batch remembers its runs.
        yield "log_index", "term runs", lambda: batch.with_first_index(7).term_runs()

    def _of_request_index(self) -> Iterator[tuple[str, str, Operation]]:
        index = twin("request_index", self._build).RequestIndex()
        encode_entry = twin("frames", self._build).encode_entry
        others = [encode_entry(request_id, 0, 5, b"x") for request_id in REQUEST_IDS[ENTRY_COUNT:]]
        last = len(others)
        batch = self._batch.with_first_index(last + 1)
        index.add(self._log_index.EntryBatch.from_frames(1, others))

        def add() -> None:
            index.add(batch)
            index.truncate_after(last)

        find, ids = index.find, REQUEST_IDS[ENTRY_COUNT : 2 * ENTRY_COUNT]
        yield "request_index", "add a batch, and truncate", add
        yield "request_index", "find", lambda: [find(request_id) for request_id in ids]

    def _of_checksums(self) -> Iterator[tuple[str, str, Operation]]:
        checksums, data = twin("checksums", self._build), b"".join(self._frames)
        ends = array("I", accumulate(map(len, self._frames)))
        slots = array("I", checksums.checksum_bytes(self._batch, 0, 0))
        yield "checksums", "checksums of a batch", lambda: checksums.checksum_bytes(self._batch, 0, 0)
        yield (
            "checksums",
            "check a batch of a file",
            lambda: checksums.count_matching(1, data, ends, slots, 0, ENTRY_COUNT),
        )

    def _of_commit_loop(self) -> Iterator[tuple[str, str, Operation]]:
        loop = twin("commit_loop", self._build)
        answered, told, nobody = loop.WaitingUpdates(), loop.WaitingUpdates(), loop.WaitingUpdates()
        nothing, everything = (twin("request_index", self._build).RequestIndex() for _ in range(2))
        everything.add(self._batch)
        take, take_to_tell, refuse = (
            self._taking(loop.Intake(SECRET, 1000, waiting, known.find))
            for waiting, known in ((answered, nothing), (told, nothing), (nobody, everything))
        )

        def take_and_answer() -> None:
            take()
            answered.applied(1, ENTRY_COUNT, loop.ReplyQueue())

        take_to_tell()
        yield "commit_loop", "take updates and answer", take_and_answer
        yield "commit_loop", "tell that they are accepted", lambda: told.accepted(1, ENTRY_COUNT, loop.ReplyQueue())
        yield "commit_loop", "refuse known updates", refuse

    def _taking(self, intake: Any) -> Operation:
        """Offer the updates of a turn."""
        messages = [[b"12345", request_id, b"=", SECRET, DATA] for request_id in REQUEST_IDS[:ENTRY_COUNT]]
        room = {"room_count": ENTRY_COUNT, "room_size": 1 << 30}

        def take() -> None:
            intake.open(7, 1, after_seconds=0.0, before_seconds=2.0**32, **room)
            offer = intake.offer
            for message in messages:
                offer(message)
            intake.take()

        return take


def seconds_of(operation: Operation, count: int) -> float:
    """The time of one of ``count`` calls."""
    started = time.perf_counter()
    for _ in range(count):
        operation()
    return (time.perf_counter() - started) / count


def measured(module: str, name: str, pure: Operation, compiled: Operation) -> Row:
    """Both, in turn, several times."""
    pure(), compiled()
    count = max(round(ROUND_SECONDS / seconds_of(compiled, 3)), 1)
    times = [(seconds_of(pure, max(count // 5, 1)), seconds_of(compiled, count)) for _ in range(ROUNDS)]
    pure_ns, compiled_ns = (statistics.median(column) / ENTRY_COUNT * 1e9 for column in zip(*times, strict=True))
    return Row(module, name, pure_ns, compiled_ns, statistics.median(slow / fast for slow, fast in times))


def table(rows: list[Row]) -> str:
    """For people: nanoseconds for each entry."""
    heads = f"{'module':14} {'operation':28} {'pure':>9} {'compiled':>9} {'ratio':>7}"
    lines = [
        f"{row.module:14} {row.name:28} {row.pure_ns:6.0f} ns {row.compiled_ns:6.1f} ns {row.ratio:7.1f}"
        + ("" if row.ratio >= RATIO_MIN else f"  below {RATIO_MIN:g}" + ("" if row.is_judged else ", not judged"))
        for row in rows
    ]
    return "\n".join([f"Nanoseconds for each entry, medians of {ROUNDS} rounds", heads, *lines])


def main() -> int:
    """Measure, print the table, return the exit status."""
    if COMPILED not in BUILDS:
        print(f"nothing to compare: {build_name()}", file=sys.stderr)
        return 2
    pure, compiled = (
        {(module, name): operation for module, name, operation in Operations(build)} for build in (PURE, COMPILED)
    )
    gc.collect()
    gc.disable()
    rows = [measured(*key, operation, compiled[key]) for key, operation in pure.items()]
    print(table(rows))
    slow = [f"{row.module}: {row.name} ({row.ratio:.1f})" for row in rows if row.is_judged and row.ratio < RATIO_MIN]
    if slow:
        print(f"less than {RATIO_MIN:g} times as fast compiled: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
