"""``zmqraft demo``: with a small input, and what is left of it however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from support.command import PATIENCE_S, assert_fails_in_one_line, run_command, started_command
from zmqraft.cli.demo.command import bundled_text
from zmqraft.cli.demo.report import PlainReporter
from zmqraft.cli.output import describe_version

EVENTS = ["starting three peers", " leads; replicating ", "killed the leader, ", " leads now", "started ", "identical"]


@pytest.fixture
def temporary(tmp_path: Path) -> dict[str, str]:
    """An environment in which temporary directories are made below ``tmp_path``."""
    (tmp_path / "tmp").mkdir()
    return {"TMPDIR": str(tmp_path / "tmp")}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_file_is_replicated_and_comes_back(tmp_path: Path, temporary: dict[str, str]) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"\n\nsome\r\n\xff\n" * 100 + b"the end, without a newline")
    result = run_command("demo", "--input", path, environment=temporary)
    assert (result.returncode, result.stderr) == (0, b"")
    text = result.stdout.decode()
    for event in EVENTS:
        assert event in text
    assert text.count("identical, each line exactly once") == 4
    assert os.listdir(tmp_path / "tmp") == []


def test_the_result_can_be_json_and_the_data_kept(tmp_path: Path, temporary: dict[str, str]) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"1\n2\n3\n4\n")
    result = run_command("demo", "--input", path, "--json", "--keep", environment=temporary)
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert found["holds"] is True
    assert (found["lines"], found["sizeBytes"]) == (4, 8)
    assert found["firstLeader"] != found["secondLeader"]
    assert found["updatesPerSecond"] > 0
    assert found["secondsWithoutLeader"] > 0
    assert found["identical"] == {"subscriber": True, "peer a": True, "peer b": True, "peer c": True}
    directory = Path(found["directory"])
    assert result.stderr.decode() == f"zmqraft: the data of the peers is in {directory}\n"
    assert directory.parent == tmp_path / "tmp"
    assert {"a", "b", "c", "zmqraft.json"} <= set(os.listdir(directory))


def test_a_terminal_gets_a_progress_bar(tmp_path: Path, temporary: dict[str, str]) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n" * 20)
    reading, terminal = os.openpty()
    with started_command(
        "demo", "--input", path, environment={**temporary, "TERM": "xterm"}, stdout=terminal
    ) as process:
        os.close(terminal)
        shown = b""
        # A terminal that its last process has closed ends with an error.
        with contextlib.suppress(OSError):
            while part := os.read(reading, 65536):
                shown += part
        os.close(reading)
        assert process.wait(PATIENCE_S) == 0
    for text in (b"20/20", b"leads now", b"peer c: identical, each line exactly once"):
        assert text in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_demo_that_is_interrupted(
    tmp_path: Path, temporary: dict[str, str], number: signal.Signals
) -> None:
    with started_command("demo", environment=temporary) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"{describe_version()}: starting three peers in ".encode())
        assert b" leads; replicating " in process.stdout.readline()
        peers = children(process.pid)
        assert len(peers) == 3
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130
        assert stderr.strip() == b""
    for pid in peers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert os.listdir(temporary["TMPDIR"]) == []


@pytest.mark.parametrize("content", [b"", b"one line\n"])
def test_a_file_that_is_too_short_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    assert_fails_in_one_line(run_command("demo", "--input", path), str(path), "at least 2 lines")


def test_the_text_that_ships_is_a_real_one() -> None:
    lines = bundled_text().splitlines(keepends=True)
    assert len(lines) > 5000
    assert b"\n" in lines
    assert len(set(lines)) > 3000
    assert len(bundled_text()) < 400_000


def test_progress_is_told_in_ten_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = PlainReporter()
    for done in range(1, 96):
        reporter.progress(done, 95)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "10 of 95 lines are committed"
    assert lines[-1] == "95 of 95 lines are committed"
