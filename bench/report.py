"""From measurements to medians, ratios, a table and JSON. Knows nothing of how they were made.

The rule: a ratio is that of the medians that stand in the table, so that a reader can check it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.ladder import Load, Results
from bench.systems import Measurement

__all__ = [
    "as_json",
    "latency_ratio",
    "markdown_table",
    "rates_table",
    "ratio",
    "round_ratios",
    "spread_line",
    "times_table",
    "write_json",
]

_NOTHING = "-"


def ratio(measured: Sequence[Measurement], limit: Sequence[Measurement]) -> float | None:
    """How much of the limit's median rate was reached; None when one of them was not measured."""
    if not measured or not limit:
        return None
    return _median(measured, "per_s") / _median(limit, "per_s")


def round_ratios(measured: Sequence[Measurement], limit: Sequence[Measurement]) -> list[float]:
    """The ratio to the limit in each round: how far they are apart says how much the machine was disturbed."""
    # One of them may have failed in a round; then it is not known which rounds belong together.
    if len(measured) != len(limit):
        return []
    return [ours.per_s / base.per_s for ours, base in zip(measured, limit, strict=True)]


def spread_line(results: Results, system: str, limit: str) -> str:
    """The lowest and the highest ratio of the rounds for each load; empty with fewer than two rounds."""
    parts = []
    for load in results.measurements:
        ratios = round_ratios(results.of(load, system), results.of(load, limit))
        if len(ratios) > 1:
            parts.append(f"{load}: {min(ratios):.2f} to {max(ratios):.2f}")
    return "; ".join(parts)


def latency_ratio(results: Results, system: str, limit: str) -> float | None:
    """How many times the limit's p50 a system's is with one update in flight; None when that was not measured."""
    for load in results.measurements:
        measured, base = results.of(load, system), results.of(load, limit)
        if load.in_flight == 1 and measured and base:
            return _median(measured, "p50_ms") / _median(base, "p50_ms")
    return None


def _median(measurements: Sequence[Measurement], name: str) -> float:
    return float(median(getattr(each, name) for each in measurements))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as plain text too; all columns but the first are aligned to the right."""
    lines = [list(map(str, line)) for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = line(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])


def rates_table(results: Results, systems: Sequence[str], limit: str) -> str:
    """Updates per second, the median of the rounds, with the ratio to the limit."""

    def cell(load: Load, system: str) -> str:
        measured = results.of(load, system)
        if not measured:
            return _NOTHING
        share = ratio(measured, results.of(load, limit))
        rate = f"{_median(measured, 'per_s'):,.0f}"
        return rate if system == limit or share is None else f"{rate} ({share:.2f})"

    return _table(results, systems, cell)


def times_table(results: Results, systems: Sequence[str]) -> str:
    """How long an update takes, in ms: the medians of the rounds' medians and 99th percentiles."""

    def cell(load: Load, system: str) -> str:
        measured = results.of(load, system)
        if not measured:
            return _NOTHING
        return f"{_median(measured, 'p50_ms'):.2f} / {_median(measured, 'p99_ms'):.2f}"

    return _table(results, systems, cell)


def _table(results: Results, systems: Sequence[str], cell: Callable[[Load, str], str]) -> str:
    rows = [[str(load), *(cell(load, system) for system in systems)] for load in results.measurements]
    return markdown_table(["in flight", *systems], rows)


def as_json(results: Results, limit: str, machine: Mapping[str, str], **more: object) -> dict[str, Any]:
    """Everything, with each round's figures, as values for JSON."""
    rows = []
    for load, measured in results.measurements.items():
        base = measured.get(limit, [])
        systems = {
            name: {
                "per_s": _median(rounds, "per_s"),
                "p50_ms": _median(rounds, "p50_ms"),
                "p99_ms": _median(rounds, "p99_ms"),
                "ratio": ratio(rounds, base),
                "round_ratios": round_ratios(rounds, base),
                "p50_ratio": _median(rounds, "p50_ms") / _median(base, "p50_ms") if base else None,
                "rounds": [vars(each) for each in rounds],
            }
            for name, rounds in measured.items()
        }
        rows.append({"in_flight": load.in_flight, "size_bytes": load.size_bytes, "systems": systems})
    failures = [
        {
            "system": failure.system,
            "in_flight": failure.load.in_flight,
            "size_bytes": failure.load.size_bytes,
            "reason": failure.reason,
        }
        for failure in results.failures
    ]
    return {"machine": dict(machine), "limit": limit, "rows": rows, "failures": failures, **more}


def write_json(path: Path, value: object) -> None:
    """Replace a file by one that is whole, whatever happens on the way."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(new, path)
