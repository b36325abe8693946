"""Processes of the benchmarks: their start, their end, and what the kernel says they used.

Knows nothing of clusters. The rule: whatever is started here is ended by `Process`, on errors and on Ctrl-C too. It
runs in a session of its own, so that an interrupt from the keyboard reaches only the benchmark, which then ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType

__all__ = [
    "HOST",
    "BenchError",
    "Process",
    "ThreadTimes",
    "cpu_s",
    "end_all",
    "exit_on_signals",
    "free_ports",
    "python",
    "resident_bytes",
    "run",
    "thread_times",
    "uninterrupted",
    "wait_until",
]

HOST = "127.0.0.1"
#: How long a killed process may take to be gone.
_END_PATIENCE_S = 20.0
_SAID_CHARACTERS_MAX = 600
#: Ports that `free_ports` has given, which the kernel may take for free until they are bound.
_given_ports: set[int] = set()

#: What was started and has not been waited for.
_running: set[Process] = set()


class BenchError(Exception):
    """Something could not be measured; the text is one line for the person who asked for it."""


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off SIGINT, SIGTERM and SIGHUP to the end of the block: while a process starts whose id is not known yet."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(pending):
            signal.raise_signal(number)


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP leave the program as Ctrl-C does, by an exception, so that all that was started ends."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def end_all() -> None:
    """End what still runs, with SIGKILL, and wait for that. May be called from a signal handler."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.killpg(process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


class Process:
    """A program with its output in a file; ``with`` starts it and, in the end, kills it with what it started."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self._environment = dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Process:
        try:
            self.start()
        except BaseException:
            # A signal that came while it was being started is raised when it has been.
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the program, again if it has ended; its output goes on in the same file."""
        self.kill()
        with self.log.open("ab") as log, uninterrupted():
            try:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
                _running.add(self)
            except OSError as error:
                raise BenchError(f"{self.command[0]} does not start: {error}") from None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise BenchError(f"{self.command[0]} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise BenchError, with what the program said, if it has ended."""
        if not self.running:
            status = "was not started" if self._process is None else f"ended with status {self._process.returncode}"
            raise BenchError(f"{self._name} {status}{self.said()}")

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; its status. BenchError when it does not end in time."""
        if self._process is None:
            raise BenchError(f"{self._name} was not started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self._name} did not end within {timeout_s:.0f} s{self.said()}") from None

    def terminate(self) -> None:
        """Ask it to end."""
        if self.running:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, if it runs, and everything in its session's process group."""
        process = self._process
        if process is None:
            return
        with uninterrupted():
            # Until it is waited for, the id cannot be anybody else's; afterwards it could, so that a group whose
            # leader has been waited for is left alone.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(_END_PATIENCE_S)
            _running.discard(self)

    def said(self) -> str:
        """The end of its output, in one line, to stand behind a message."""
        try:
            text = " ".join(self.log.read_text(errors="replace").split())
        except OSError:
            return ""
        return f": {text[-_SAID_CHARACTERS_MAX:]}" if text else ""

    @property
    def _name(self) -> str:
        return " ".join(Path(part).name if "/" in part else part for part in self.command[:4])


def run(
    command: Sequence[str | Path], log: Path, timeout_s: float, *, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program to its end; its output. BenchError when it fails or takes longer."""
    log.unlink(missing_ok=True)
    with Process(command, log, environment=environment) as process:
        if process.wait(timeout_s) != 0:
            process.check()
    return log.read_text(errors="replace")


def python(**variables: str) -> tuple[list[str], dict[str, str]]:
    """How to run Python with this zmqraft and this package: the command, and the environment.

    Without ZMQRAFT_* variables but for those given.
    """
    package = find_spec("zmqraft")
    if package is None or package.origin is None:
        raise BenchError("zmqraft is not here: run this in its checkout, or install it")
    roots = dict.fromkeys((Path(package.origin).resolve().parents[1], Path(__file__).resolve().parents[1]))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZMQRAFT_")}
    path = [*map(str, roots), *filter(None, [inherited.get("PYTHONPATH")])]
    return [sys.executable], {**inherited, "PYTHONPATH": os.pathsep.join(path), **variables}


def free_ports(count: int) -> list[int]:
    """Ports on the loopback that nobody uses now, and that were not given before."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
            if port not in _given_ports:
                _given_ports.add(port)
                ports.append(port)
    return ports


def wait_until(deadline: float, what: str, pause_s: float = 0.01) -> None:
    """One turn of a loop that waits: a pause, or BenchError past the deadline (of time.monotonic)."""
    if time.monotonic() > deadline:
        raise BenchError(f"waited in vain for {what}")
    time.sleep(pause_s)


@dataclass(frozen=True)
class ThreadTimes:
    """What a thread has used of the processors, in seconds."""

    name: str
    user_s: float
    system_s: float


def thread_times(pid: int) -> dict[int, ThreadTimes]:
    """The threads of a process by their ids, at the resolution of the kernel's ticks (10 ms)."""
    ticks_s = 1 / os.sysconf("SC_CLK_TCK")
    times = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, fields = _parse_stat((task / "stat").read_text())
            times[int(task.name)] = ThreadTimes(name, int(fields[11]) * ticks_s, int(fields[12]) * ticks_s)
    return times


def _parse_stat(text: str) -> tuple[str, list[str]]:
    """The name and the fields from the third on of /proc/PID/stat; the name may hold blanks and brackets."""
    before, _, after = text.rpartition(")")
    return before.partition("(")[2], after.split()


def cpu_s(pid: int) -> float:
    """The processor time of a process, in seconds, to the nanosecond where the kernel keeps it so."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except FileNotFoundError:
        return sum(times.user_s + times.system_s for times in thread_times(pid).values())


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM now (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} has ended")
