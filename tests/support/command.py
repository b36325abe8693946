"""The real ``zmqraft`` command as a process of its own, as a shell would run it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import SystemRandom
from typing import Any

import zmqraft

#: Far more than any command takes on a slow machine.
PATIENCE_S = 60.0
#: Below those that systems give to connections: from 32768 on (Linux), or 49152.
_PORT_MIN, _PORT_STOP = 10_000, 32_768
_PORTS = SystemRandom()
_given_ports: set[int] = set()
_ARGUMENTS = [sys.executable, "-W", "error", "-m", "zmqraft"]


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """This process's, with the package that is being tested on the path, whatever the working directory."""
    return {**os.environ, "PYTHONPATH": str(Path(zmqraft.__file__).parents[1]), **(more or {})}


def run_command(
    *arguments: str | Path, input: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``zmqraft`` to its end, with ``environment`` beside that of this process."""
    return subprocess.run(
        [*_ARGUMENTS, *map(str, arguments)],
        input=input,
        capture_output=True,
        timeout=PATIENCE_S,
        env=_environment(environment),
        check=False,
    )


def run_shell_line(line: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``zmqraft`` with the arguments and redirections of a shell's line, to its end."""
    with started_shell_line(line) as process:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(line, process.returncode, stdout, stderr)


@contextlib.contextmanager
def started_shell_line(line: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running ``zmqraft`` with what a shell's line has behind it; killed in the end if it still runs."""
    command = f"exec {shlex.join(_ARGUMENTS)} {line}"
    process = subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(None),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def started_command(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    stdout: int = subprocess.PIPE,
    prefix: Sequence[str] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A running ``zmqraft``, with pipes; killed in the end if it still runs. ``prefix`` is the command that runs it."""
    command = [*prefix, *_ARGUMENTS, *map(str, arguments)]
    with started_program(command, environment=environment, stdout=stdout) as process:
        yield process


@contextlib.contextmanager
def started_program(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, stdout: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A running program, with pipes; killed in the end if it still runs."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE, env=_environment(environment)
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def assert_fails_in_one_line(result: subprocess.CompletedProcess[bytes], *fragments: str) -> None:
    """The command failed, and its only output is one line on standard error that holds every fragment."""
    lines = result.stderr.decode().splitlines()
    assert result.returncode not in (0, -signal.SIGKILL), result
    assert result.stdout == b"", result
    assert len(lines) == 1, result.stderr.decode()
    for fragment in fragments:
        assert fragment in lines[0]


def free_ports(count: int) -> list[int]:
    """Ports on the loopback that nobody uses now, and that were not given before.

    They are below those of which the kernel takes one for a connection, which it might before a peer has bound it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = _PORTS.randrange(_PORT_MIN, _PORT_STOP)
        if port not in _given_ports and _is_free(port):
            _given_ports.add(port)
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def command_lines() -> Iterator[str]:
    """Those of all processes."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        # It may end in this moment.
        with contextlib.suppress(OSError):
            yield Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def write_config(directory: Path, peers: Sequence[Any], **settings: Any) -> Path:
    """A configuration file for peers with their data below ``directory``; None as a setting leaves it out."""
    section = {"peers": peers, "data": {"path": str(directory / "data"), "appendIdToPath": True}, **settings}
    path = directory / "zmqraft.json"
    path.write_text(json.dumps({"raft": {name: value for name, value in section.items() if value is not None}}))
    return path


@contextlib.contextmanager
def running_peer(config: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A ``zmqraft run`` that has said that it is ready."""
    with started_command("run", "-c", config, *arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the peer ended: {process.stderr.read().decode()}")
        assert line.startswith(b"tcp://")
        yield process


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> tuple[int, bytes]:
    """Send a signal; the exit status and what was still said on standard error."""
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stderr
