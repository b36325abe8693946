"""Processes of the benchmark end with it, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import processes
from bench.processes import BenchError, Process, run
from support import command
from support.command import PATIENCE_S

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("free_ports", [processes.free_ports, command.free_ports], ids=["bench", "tests"])
def test_no_port_is_given_twice(free_ports: Callable[[int], list[int]]) -> None:
    """The kernel, asked one by one, gives one twice before it has given 400."""
    assert len({port for _ in range(400) for port in free_ports(1)}) == 400


def test_output_of_a_program_that_ends_well(tmp_path: Path) -> None:
    assert run([sys.executable, "-c", "print('yes')"], tmp_path / "log", PATIENCE_S) == "yes\n"


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"ended with status 3: no, never$"):
        run([sys.executable, "-c", "import sys; print('no,\\nnever'); sys.exit(3)"], tmp_path / "log", PATIENCE_S)


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="/nowhere/program does not start"):
        run(["/nowhere/program"], tmp_path / "log", PATIENCE_S)


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    process = Process(SLEEP, tmp_path / "log")
    with pytest.raises(BenchError, match="did not end within"), process:
        process.wait(0.01)
    assert is_gone(process.pid)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BenchError])
def test_no_process_outlives_its_block(tmp_path: Path, error: type[BaseException]) -> None:
    process = Process(SLEEP, tmp_path / "log")
    with pytest.raises(error), process:
        raise error
    assert is_gone(process.pid)


def test_a_process_starts_again_under_another_id(tmp_path: Path) -> None:
    with Process(SLEEP, tmp_path / "log") as process:
        first = process.pid
        process.start()
        assert process.pid != first
        assert is_gone(first)
        assert process.running


def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    grandchild = f"import time; pipe = open({str(pipe)!r}, 'w'); print('here', file=pipe, flush=True); time.sleep(600)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with Process([sys.executable, "-c", child], tmp_path / "log"):
        reading = pipe.open()
        assert reading.readline() == "here\n"
    with reading:
        # It ends when nobody has it open for writing any more.
        assert reading.read() == ""


def test_an_interrupt_waits_until_a_process_is_known() -> None:
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with processes.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            seen.append("inside")
        seen.append("behind")
    assert seen == ["inside"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_kernel_says_what_a_process_uses() -> None:
    pid = os.getpid()
    used_s = processes.cpu_s(pid)
    assert processes.cpu_s(pid) >= used_s > 0
    assert processes.resident_bytes(pid) > 1 << 20
    assert processes.thread_times(pid)[pid].user_s > 0


def test_a_process_whose_start_was_interrupted_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt is raised within ``with``'s entry, so its exit is not called."""
    popen, started = subprocess.Popen, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        started.append(process)
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), Process(["sleep", "60"], tmp_path / "log"):
        raise AssertionError("it was not interrupted")
    assert started[0].returncode == -signal.SIGKILL


def test_what_nobody_has_seen_to_is_ended(tmp_path: Path) -> None:
    process = Process(SLEEP, tmp_path / "log")
    process.start()
    processes.end_all()
    processes.end_all()
    assert not process.running
    assert is_gone(process.pid)
    process.kill()
    assert process not in processes._running
