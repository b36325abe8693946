"""``python -m bench`` as a shell would run it, on real clusters, as short as can be. Nothing here judges a figure."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import python
from support.command import PATIENCE_S, command_lines
from support.local_cluster import wait_for


@contextlib.contextmanager
def started(bench_root: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    _, environment = python()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "bench", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=bench_root,
    )
    with process:
        try:
            yield process
        finally:
            # Asked, so that it ends what it has started.
            process.terminate()


def processes_about(directory: Path) -> list[str]:
    """The command lines of all processes that name a directory, but for the benchmark's own."""
    return [text for text in command_lines() if str(directory) in text and "-m bench" not in text]


def peers_of_the_limit(directory: Path) -> int:
    return sum("/limit leader " in text or "/limit follower " in text for text in processes_about(directory))


def test_ours_beside_the_limit(bench_root: Path, tmp_path: Path) -> None:
    data, figures = tmp_path / "data", tmp_path / "figures.json"
    options = (
        "--rounds",
        "1",
        "--seconds",
        "0.1",
        "--in-flight",
        "4",
        "--no-others",
        "--data",
        data,
        "--json",
        figures,
    )
    with started(bench_root, "cluster", *options) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    value = json.loads(figures.read_text())
    (row,) = value["rows"]
    limit, ours = row["systems"]
    assert (row["in_flight"], limit) == (4, "limit")
    assert ours in ("zmqraft", "zmqraft pure")
    assert all(system["per_s"] > 0 and system["p50_ms"] > 0 for system in row["systems"].values())
    assert (value["failures"], value["machine"]["file system"] != "") == ([], True)
    assert f"| in flight | limit | {ours}" in " ".join(output.split())
    assert list(data.iterdir()) == []
    assert processes_about(data) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_everything_ends_when_it_is_interrupted(
    bench_root: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    options = ("--rounds", "1", "--seconds", "60", "--in-flight", "4", "--no-others", "--data", tmp_path)
    with started(bench_root, "cluster", *options) as process:
        wait_for(lambda: process.poll() is not None or peers_of_the_limit(tmp_path) == 3, "three peers")
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == status, errors
    assert processes_about(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "Missing command."),
        (["cluster", "--in-flight", "0"], "--in-flight must be at least 1"),
        (["cluster", "--json", "/nowhere/figures.json"], "no such directory"),
        (["profile", "--who", "nobody"], "'nobody' is not one of"),
    ],
)
def test_a_mistake_is_one_line(bench_root: Path, arguments: list[str], line: str) -> None:
    with started(bench_root, *arguments) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode not in (0, None)
    assert (output, len(errors.splitlines())) == ("", 1)
    assert errors.startswith("bench: ")
    assert line in errors


def test_without_a_compiler_it_says_so(bench_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with started(bench_root, "cluster", "--data", tmp_path) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert (output, errors) == ("", "bench: no C++ compiler (/nowhere/g++): install g++, or name another in CXX\n")
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_measured(bench_root: Path, tmp_path: Path) -> None:
    with started(bench_root, "log", "--entries", "3000", "--size", "20", "--data", tmp_path) as process:
        stdout, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert stdout.startswith("A log of 3,000 entries of 20 bytes, ")
    names = [line.partition(":")[0] for line in stdout.splitlines()[1:]]
    assert names == [
        "open, s",
        "append 1000 at a time, entries/s",
        "append and sync one, us",
        "read and check, entries/s",
    ]
    assert list(tmp_path.iterdir()) == []
