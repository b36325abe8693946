"""What a table of figures must say about the machine on which they were measured."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path

import zmq

from bench.processes import BenchError, python, run

__all__ = ["describe", "file_system", "load_average"]

_VERSION_TIMEOUT_S = 60.0


def describe(directory: Path) -> dict[str, str]:
    """Names and values, for people and for JSON; ``directory`` is where the data goes."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": str(len(os.sched_getaffinity(0))),
        "CPU": _cpu_model(Path("/proc/cpuinfo").read_text()),
        "kernel": f"{platform.system()} {platform.release()}",
        "load average": load_average(),
        "file system": file_system(directory, Path("/proc/self/mountinfo").read_text()),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "pyzmq": f"{zmq.__version__} with libzmq {zmq.zmq_version()}",
        "zmqraft": _zmqraft_version(directory),
    }


def load_average() -> str:
    """Of the last 1, 5 and 15 minutes; the benchmark itself is in it, and so is whatever disturbed it."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _cpu_model(cpuinfo: str) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def file_system(directory: Path, mountinfo: str) -> str:
    """The type of the file system on which a directory is, from the text of /proc/self/mountinfo (proc(5))."""
    path = directory.resolve()
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        mount, separator, rest = line.partition(" - ")
        if not separator:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal.group(1), 8)), mount.split()[4]))
        # A later mount on the same point hides the earlier one.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), rest.split()[0]
    return kind


def _zmqraft_version(directory: Path) -> str:
    command, environment = python()
    try:
        output = run(
            [*command, "-m", "zmqraft", "--version"],
            directory / "version.out",
            _VERSION_TIMEOUT_S,
            environment=environment,
        )
    except BenchError:
        return "unknown"
    return output.strip().removeprefix("zmqraft ")
