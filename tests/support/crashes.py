"""The states of a disk that crashes in a workload may leave.

At each call that changes something the machine stops. A killed process leaves everything that it had written, and of
the write that it was in any number of bytes. A power cut keeps any subset of what was not synced: sectors of 512 bytes,
sizes of files, changes in directories; all subsets where they are few, else some, drawn from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from copy import deepcopy
from itertools import combinations
from random import Random
from typing import Any

from support.file_systems import Crash, MemoryDisk, ProbeFileSystem, Unsynced

__all__ = ["Crashes", "Disk", "Preparation", "Scenario", "Step"]

#: All subsets are laid out when there are as many items, in a run that is long enough.
EXHAUSTIVE_MAX = 12
#: As many states of one workload.
LONG = 5000
Disk = MemoryDisk | ProbeFileSystem
Step = Callable[[Disk, Any], None]
Preparation = Callable[[MemoryDisk, Any], MemoryDisk | None]
#: What is done before, what crashes, what the caller is told, and the check of what is found.
Scenario = tuple[Preparation, Step, Callable[[], Any], Step]


class Crashes:
    """The states that crashes in a workload leave, about as many as asked for. ``prepare`` comes before, unharmed."""

    def __init__(self, scenario: Scenario, states: int, seed: int) -> None:
        self.prepare, self.workload, self.told, _ = scenario
        self.random = Random(seed)
        self.states = states

    def run(self, number: int | None) -> tuple[MemoryDisk, ProbeFileSystem, Any]:
        """The disk, with what is not synced on it, when the machine stops at a call of the workload."""
        disk, told = MemoryDisk(), self.told()
        # Either what is durable, or a disk that a crash has left.
        disk = self.prepare(disk, told) or disk.crash()
        probe = ProbeFileSystem(disk)
        probe.fail_at, probe.error = number, Crash
        try:
            self.workload(probe, told)
        except Crash:
            pass
        else:
            assert number is None
        return disk, probe, told

    def __iter__(self) -> Iterator[tuple[MemoryDisk, Any]]:
        points: list[int | None] = [*range(len(self.run(None)[1].events)), None]
        share = max(self.states // len(points), 8)
        count = 0
        while points and count < self.states:
            drawn = []
            for number in points:
                disk, probe, told = self.run(number)
                event = ("",) if number is None else probe.events[number]
                items = disk.unsynced()
                for kept in self.subsets(items, share):
                    yield disk.crash_with(kept), deepcopy(told)
                    count += 1
                for torn in self.torn(disk, probe, event, share) if event[0] == "pwrite" else ():
                    yield torn, deepcopy(told)
                    count += 1
                if not self.are_few(items, share):
                    drawn.append(number)
            # Where not all subsets were laid out, there are others to draw.
            points = drawn

    def are_few(self, items: list[Unsynced], share: int) -> bool:
        return len(items) <= EXHAUSTIVE_MAX and (2 ** len(items) <= share or self.states >= LONG)

    def subsets(self, items: list[Unsynced], share: int) -> Iterator[Collection[Unsynced]]:
        if self.are_few(items, share):
            for count in range(len(items) + 1):
                yield from map(frozenset, combinations(items, count))
            return
        yield frozenset()
        yield frozenset(items)
        for _ in range(share - 2):
            # Few lost, few kept, or about as many of both.
            chance = self.random.choice((0.1, 0.5, 0.9, 0.98))
            yield frozenset(item for item in items if self.random.random() < chance)

    def torn(
        self, disk: MemoryDisk, probe: ProbeFileSystem, event: tuple[Any, ...], share: int
    ) -> Iterator[MemoryDisk]:
        """A killed process: of the write that it was in some first bytes."""
        _, _, data, offset = event
        sizes = range(1, len(data))
        if len(sizes) > share:
            edge = min(share // 4, 8)
            sizes = sorted({*sizes[:edge], *sizes[-edge:], *self.random.sample(sizes, share - 2 * edge)})
        done = 0
        for size in sizes:
            disk.write_late(probe.written_handle, data[done:size], offset + done)
            done = size
            yield disk.crash_with(frozenset(disk.unsynced()))
