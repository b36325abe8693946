"""Whatever happens to who makes runs, nothing that they have started is left."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from chaos.cluster import program_environment
from chaos.network import missing_for_namespaces
from chaos.run import VIOLATION, Report
from support.command import PATIENCE_S, command_lines, started_program
from support.local_cluster import wait_for

CODE = "import sys; from chaos.command import main; sys.exit(main())"
#: A run that is asked to end when its second client is there, but before it knows of it; and again while it cleans up.
INTERRUPTED = """
import os, signal, subprocess
from chaos.run import main

execute, wait = subprocess.Popen._execute_child, subprocess.Popen.wait

def execute_and_interrupt(self, args, *rest):
    execute(self, args, *rest)
    if "asyncio log" in args:
        subprocess.Popen.wait = interrupt_and_wait
        os.kill(os.getpid(), signal.SIGTERM)

def interrupt_and_wait(self, timeout=None):
    os.kill(os.getpid(), signal.SIGTERM)
    return wait(self, timeout)

subprocess.Popen._execute_child = execute_and_interrupt
main()
"""


def processes_of(directory: Path) -> list[str]:
    """Those that have a directory in their command."""
    return [command for command in command_lines() if str(directory) in command and CODE not in command]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("form", [[], ["--proxies"]], ids=["namespaces", "proxies"])
def test_no_process_and_no_mount_is_left(tmp_path: Path, form: list[str], number: signal.Signals) -> None:
    command = [sys.executable, "-c", CODE, "--runs", "3", "--seconds", "30", "--directory", str(tmp_path), *form]
    with started_program(command, environment=program_environment()) as process:
        # The peers of two runs, and their clients.
        wait_for(lambda: sum("chaos.client" in each for each in processes_of(tmp_path)) >= 8, "clients")
        assert sum("kv run" in each for each in processes_of(tmp_path)) >= 6
        process.send_signal(number)
        process.wait(PATIENCE_S)
    wait_for(lambda: not processes_of(tmp_path), "the end of all")
    if form == [] and missing_for_namespaces() is None:
        wait_for(lambda: str(tmp_path) not in Path("/proc/mounts").read_text(), "the end of the mounts")


def test_a_run_that_is_asked_to_end_while_it_starts_a_process(tmp_path: Path) -> None:
    arguments = ["--seed", "1", "--seconds", "30", "--directory", str(tmp_path), "--proxies"]
    with started_program([sys.executable, "-c", INTERRUPTED, *arguments], environment=program_environment()) as process:
        assert process.wait(PATIENCE_S) != 0
    wait_for(lambda: not processes_of(tmp_path), "the end of all")
    assert Report.read(tmp_path).outcome == VIOLATION
