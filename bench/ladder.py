"""The ladder of loads, and how each measurement is made long enough to mean something.

Knows nothing of what it measures. The rule: within a round every load is given to all systems one after the other,
each on a fresh cluster, so that a slow minute of the machine hits all alike; the next round begins with another system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import BenchError
from bench.systems import Measure, Measurement, System

__all__ = ["LADDER", "Failure", "Load", "Results", "measure_for", "run_rounds"]

#: A measurement may end up this much shorter than asked for; one that is shorter still is made once more.
_SHORT = 2 / 3
#: What a first guess at the rate of updates must rest on.
_GUESS_S = 0.3
_GUESSES_MAX = 6
_GUESS_GROWTH = 8
_COUNT_MAX = 3_000_000
#: A run is given this many times as long as it should take, and the patience of the load generator (10 s).
_SLOWNESS = 10
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Load:
    """So many updates of so many bytes on the way at a time."""

    in_flight: int
    size_bytes: int

    def __str__(self) -> str:
        size = f", {self.size_bytes // 1024} KiB each" if self.size_bytes >= 1024 else ""
        return f"{self.in_flight}{size}"


LADDER = (Load(1, 128), Load(16, 128), Load(64, 128), Load(256, 128), Load(1024, 128), Load(64, 4096))


@dataclass(frozen=True)
class Failure:
    """A measurement that did not come about."""

    system: str
    load: Load
    reason: str


@dataclass
class Results:
    """All that was measured: for each load and each system (by name) one measurement a round."""

    measurements: dict[Load, dict[str, list[Measurement]]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, load: Load, system: str, measurement: Measurement) -> None:
        self.measurements.setdefault(load, {}).setdefault(system, []).append(measurement)

    def of(self, load: Load, system: str) -> list[Measurement]:
        return self.measurements.get(load, {}).get(system, [])


def measure_for(measure: Measure, load: Load, seconds: float) -> Measurement:
    """Measure with as many updates as take about ``seconds``. Finding out how many also warms the system up."""
    timeout_s = _SLOWNESS * seconds + _PATIENCE_S

    def run(count: int) -> Measurement:
        return measure(count, load.in_flight, load.size_bytes, timeout_s)

    guess = run(max(50, 4 * load.in_flight))
    for _ in range(_GUESSES_MAX):
        if guess.duration_s >= min(_GUESS_S, seconds):
            break
        guess = run(min(guess.count * _GUESS_GROWTH, _COUNT_MAX))
    result = run(_count_for(guess, load, seconds))
    # What warms up slowly (a compiler at run time) was guessed to be slower than it is.
    if result.duration_s < _SHORT * seconds and result.count < _COUNT_MAX:
        result = run(_count_for(result, load, seconds))
    return result


def _count_for(guess: Measurement, load: Load, seconds: float) -> int:
    return max(2 * load.in_flight, min(int(guess.per_s * seconds), _COUNT_MAX))


def run_rounds(
    systems: Sequence[System],
    loads: Sequence[Load],
    directory: Path,
    *,
    rounds: int,
    seconds: float,
    needed: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
    after_round: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Give every load to every system in every round.

    A system that fails is noted and left out for that load in that round; BenchError if its name is in ``needed``.
    """
    results = Results()
    for number in range(rounds):
        shift = number % len(systems)
        order = [*systems[shift:], *systems[:shift]]
        for load in loads:
            for system in order:
                try:
                    with system.running(directory) as running:
                        measurement = measure_for(running.measure, load, seconds)
                except BenchError as error:
                    if system.name in needed:
                        raise BenchError(f"{system.name} at {load} in flight: {error}") from None
                    results.failures.append(Failure(system.name, load, str(error)))
                    progress(f"round {number + 1}/{rounds}  {load!s:>15}  {system.name:16} failed: {error}")
                    continue
                results.add(load, system.name, measurement)
                progress(
                    f"round {number + 1}/{rounds}  {load!s:>15}  {system.name:16} {measurement.per_s:>9,.0f}/s"
                    f"  p50 {measurement.p50_ms:.3f} ms  in {measurement.duration_s:.1f} s"
                )
        after_round(results)
    return results
