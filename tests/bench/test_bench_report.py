"""Medians, ratios, tables and JSON of the benchmark, from figures that were made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.ladder import Failure, Load, Results
from bench.report import (
    as_json,
    latency_ratio,
    markdown_table,
    rates_table,
    ratio,
    round_ratios,
    spread_line,
    times_table,
    write_json,
)
from bench.systems import Measurement

ONE, MANY, LARGE = Load(1, 128), Load(64, 128), Load(64, 4096)


def measured(per_s: float, p50_ms: float = 1.0, p99_ms: float = 2.0) -> Measurement:
    return Measurement(1000, per_s, p50_ms, p99_ms, 9.0)


def results_of(**rates: list[float]) -> Results:
    results = Results()
    for system, rounds in rates.items():
        for per_s in rounds:
            results.add(MANY, system, measured(per_s))
    return results


def test_a_ratio_is_that_of_the_medians() -> None:
    results = results_of(limit=[1000, 2000, 9000], ours=[100, 1500, 1600])
    assert ratio(results.of(MANY, "ours"), results.of(MANY, "limit")) == 1500 / 2000


@pytest.mark.parametrize("rates", [{"limit": [1.0]}, {"ours": [1.0]}])
def test_there_is_no_ratio_of_what_was_not_measured(rates: dict[str, list[float]]) -> None:
    results = results_of(**rates)
    assert ratio(results.of(MANY, "ours"), results.of(MANY, "limit")) is None


def test_the_spread_is_that_of_the_rounds() -> None:
    results = results_of(limit=[1000, 2000, 4000], ours=[500, 500, 2800])
    assert round_ratios(results.of(MANY, "ours"), results.of(MANY, "limit")) == [0.5, 0.25, 0.7]
    assert spread_line(results, "ours", "limit") == "64: 0.25 to 0.70"


def test_there_is_no_spread_of_one_round_nor_of_rounds_that_do_not_match() -> None:
    assert spread_line(results_of(limit=[1.0], ours=[1.0]), "ours", "limit") == ""
    assert spread_line(results_of(limit=[1.0, 2.0, 3.0], ours=[1.0, 2.0]), "ours", "limit") == ""


def test_columns_have_one_width() -> None:
    assert markdown_table(["in flight", "x"], [["1", "12,345"], ["64, 4 KiB each", "-"]]).splitlines() == [
        "| in flight      |      x |",
        "| -------------- | -----: |",
        "| 1              | 12,345 |",
        "| 64, 4 KiB each |      - |",
    ]


def test_rates_stand_beside_their_ratio_to_the_limit() -> None:
    results = results_of(limit=[20000.0], ours=[12345.0])
    results.add(LARGE, "limit", measured(10.0))
    lines = rates_table(results, ["limit", "ours"], "limit").splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["64", "20,000", "12,345 (0.62)"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["64, 4 KiB each", "10", "-"]


def test_times_are_medians_of_the_rounds() -> None:
    results = Results()
    for p50_ms, p99_ms in ((1.0, 30.0), (5.0, 10.0), (3.0, 20.0)):
        results.add(ONE, "ours", measured(1.0, p50_ms, p99_ms))
    assert "3.00 / 20.00" in times_table(results, ["ours"])


def test_the_latency_ratio_is_that_of_one_in_flight() -> None:
    results = results_of(limit=[1.0], ours=[1.0])
    assert latency_ratio(results, "ours", "limit") is None
    results.add(ONE, "limit", measured(1.0, p50_ms=0.5))
    results.add(ONE, "ours", measured(1.0, p50_ms=0.75))
    assert latency_ratio(results, "ours", "limit") == 1.5


def test_json_holds_every_round_and_every_failure(tmp_path: Path) -> None:
    results = results_of(limit=[1000, 2000], ours=[300, 600])
    results.failures.append(Failure("etcd", ONE, "it went away"))
    path = tmp_path / "figures.json"
    write_json(path, as_json(results, "limit", {"cores": "2"}, seconds=3.0))
    value = json.loads(path.read_text())
    assert value["machine"] == {"cores": "2"}
    assert value["seconds"] == 3.0
    assert value["failures"] == [{"system": "etcd", "in_flight": 1, "size_bytes": 128, "reason": "it went away"}]
    (row,) = value["rows"]
    assert (row["in_flight"], row["size_bytes"]) == (64, 128)
    ours = row["systems"]["ours"]
    assert [each["per_s"] for each in ours["rounds"]] == [300, 600]
    assert (ours["per_s"], ours["ratio"], ours["p50_ratio"]) == (450, 0.3, 1.0)
    assert [each.name for each in tmp_path.iterdir()] == ["figures.json"]
