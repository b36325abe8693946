"""How long measurements get, and in which order systems are measured, with systems that were made up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.ladder import Load, Results, measure_for, run_rounds
from bench.processes import BenchError
from bench.systems import Measure, Measurement, Running, System

LOADS = (Load(1, 128), Load(64, 128))


class Fake(System):
    """Takes a constant number of updates per second, and remembers when it ran."""

    def __init__(self, name: str, history: list[str], failing: BenchError | None = None) -> None:
        self.name = name
        self._history = history
        self._failing = failing

    def unavailable(self) -> None:
        return None

    @contextlib.contextmanager
    def _cluster(self, directory: Path) -> Iterator[Running]:
        assert directory.is_dir()
        self._history.append(self.name)
        if self._failing is not None:
            raise self._failing
        yield Running([], constant(1000.0, []))


def constant(per_s: float, counts: list[int]) -> Measure:
    def measure(count: int, in_flight: int, size_bytes: int, timeout_s: float) -> Measurement:
        counts.append(count)
        return Measurement(count, per_s, 1.0, 1.0, 1.0)

    return measure


@pytest.mark.parametrize("per_s", [10.0, 400.0, 20_000.0, 500_000.0])
@pytest.mark.parametrize("load", LOADS)
def test_a_measurement_takes_as_long_as_asked_for(per_s: float, load: Load) -> None:
    result = measure_for(constant(per_s, []), load, 3.0)
    assert result.duration_s == pytest.approx(3.0, rel=0.01) or result.count == 2 * load.in_flight


def test_a_rate_without_bound_ends_in_a_bounded_number_of_updates() -> None:
    counts: list[int] = []
    measure_for(constant(1e9, counts), LOADS[1], 3.0)
    assert max(counts) == 3_000_000
    assert len(counts) < 10


def test_what_warms_up_slowly_is_measured_once_more() -> None:
    runs: list[int] = []

    def measure(count: int, in_flight: int, size_bytes: int, timeout_s: float) -> Measurement:
        runs.append(count)
        rate = 1000.0 if len(runs) < 3 else 4000.0
        return Measurement(count, rate, 1.0, 1.0, 1.0)

    assert measure_for(measure, LOADS[1], 3.0).duration_s == pytest.approx(3.0)


def test_systems_alternate_within_a_round_and_change_places_between_rounds(tmp_path: Path) -> None:
    history: list[str] = []
    saved: list[int] = []
    systems = [Fake("limit", history), Fake("ours", history)]
    results = run_rounds(
        systems,
        LOADS,
        tmp_path,
        rounds=2,
        seconds=0.1,
        after_round=lambda results: saved.append(len(results.of(LOADS[0], "ours"))),
    )
    assert history == ["limit", "ours"] * 2 + ["ours", "limit"] * 2
    assert saved == [1, 2]
    assert {name: len(rounds) for name, rounds in results.measurements[LOADS[1]].items()} == {"limit": 2, "ours": 2}
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_fails_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    lines: list[str] = []
    systems = [Fake("limit", []), Fake("etcd", [], BenchError("it went away"))]
    results = run_rounds(systems, LOADS[:1], tmp_path, rounds=2, seconds=0.1, needed=["limit"], progress=lines.append)
    assert [(failure.system, failure.reason) for failure in results.failures] == [("etcd", "it went away")] * 2
    assert len(results.of(LOADS[0], "limit")) == 2
    assert sum("etcd" in line and "it went away" in line for line in lines) == 2


def test_a_system_that_is_needed_ends_the_run(tmp_path: Path) -> None:
    systems = [Fake("ours", [], BenchError("it went away"))]
    with pytest.raises(BenchError, match="ours at 1 in flight: it went away"):
        run_rounds(systems, LOADS, tmp_path, rounds=1, seconds=0.1, needed=["ours"])


def test_a_port_that_somebody_took_is_tried_again_but_not_for_ever(tmp_path: Path) -> None:
    history: list[str] = []
    systems = [Fake("ours", history, BenchError("Address already in use (addr='tcp://127.0.0.1:1')"))]
    results = run_rounds(systems, LOADS[:1], tmp_path, rounds=1, seconds=0.1)
    assert history == ["ours"] * 3
    assert len(results.failures) == 1
    assert results == Results(failures=results.failures)
