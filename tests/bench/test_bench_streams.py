"""``python -m bench.subscribers`` and ``bench.entries``, as short as can be. Nothing here judges a figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.processes import python
from support.command import PATIENCE_S


def run(checkout: Path, module: str, *arguments: str | Path) -> str:
    _, environment = python()
    command = [sys.executable, "-W", "error", "-m", f"bench.{module}", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=checkout, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_subscribers(checkout: Path, tmp_path: Path) -> None:
    data, figures = tmp_path / "data", tmp_path / "figures.json"
    data.mkdir()
    options = ("--subscribers", "3", "--updates", "500", "--deliveries", "3000", "--rounds", "1")
    output = run(checkout, "subscribers", *options, "--data", data, "--json", figures)
    assert "| subscribers |" in output
    (row,) = json.loads(figures.read_text())["rows"]
    (measured,) = row["rounds"]
    assert row["subscribers"] == 3
    assert all(measured[way]["per_s"] > 0 for way in ("updates", "broadcast", "bare"))
    assert list(data.iterdir()) == []


def test_entries(checkout: Path, tmp_path: Path) -> None:
    data, figures = tmp_path / "data", tmp_path / "figures.json"
    data.mkdir()
    output = run(checkout, "entries", "--entries", "3000", "--rounds", "2", "--data", data, "--json", figures)
    assert "of bare, unasked" in output
    rates = json.loads(figures.read_text())["rates"]
    assert set(rates) == {"bare", "bare, unasked", "blocking", "asyncio"}
    assert all(rate["per_s"] > 0 for measured in rates.values() for rate in measured)
    assert list(data.iterdir()) == []
