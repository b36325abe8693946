"""The compiled programs beside this file, and zmq-raft from the npm registry: how they come to be.

The rule: nothing is installed on the machine. Where a compiler or a header is missing, one line says what to install;
zmq-raft goes into a directory that is named for it, and only when asked.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, run

__all__ = ["ZMQ_RAFT_VERSION", "Programs", "build_programs", "install_zmq_raft", "missing_tools"]

_SOURCES = Path(__file__).resolve().parent
_COMPILE_TIMEOUT_S = 180.0
_INSTALL_TIMEOUT_S = 600.0
ZMQ_RAFT_VERSION = "0.5.0"
#: zmq-raft asks for a zeromq that does not build on Node 20; its command needs `debug`, which it does not bring.
_PACKAGE = {
    "private": True,
    "dependencies": {"zmq-raft": ZMQ_RAFT_VERSION, "debug": "^4"},
    "overrides": {"zeromq": "5.3.1"},
}


@dataclass(frozen=True)
class Programs:
    """Where the compiled programs are."""

    loadgen: Path
    limit: Path


def missing_tools() -> str | None:
    """What is missing to compile the programs, or None."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}): install g++, or name another in CXX"
    with tempfile.TemporaryDirectory(prefix="zmqraft-bench-") as name:
        source = Path(name, "check.cpp")
        source.write_text("#include <zmq.h>\nint main() { return zmq_errno(); }\n")
        try:
            _compile(source, source.with_suffix(""))
        except BenchError:
            return "zmq.h or libzmq is missing: install libzmq's headers (Debian: libzmq3-dev)"
    return None


def build_programs(directory: Path) -> Programs:
    """Compile the load generator and the limit program into a directory. BenchError when that does not work."""
    missing = missing_tools()
    if missing is not None:
        raise BenchError(missing)
    programs = Programs(directory / "loadgen", directory / "limit")
    for program in (programs.loadgen, programs.limit):
        _compile(_SOURCES / f"{program.name}.cpp", program)
    return programs


def _compile(source: Path, target: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    command: list[str | Path] = [compiler, "-O2", "-pthread", "-w", "-o", target, source, "-lzmq"]
    run(command, target.with_name(f"{target.name}.log"), _COMPILE_TIMEOUT_S)


def install_zmq_raft(directory: Path) -> Path:
    """Install zmq-raft from the npm registry below a directory; its command. BenchError when that does not work.

    Needs node, npm, pkg-config, a C++ compiler and libzmq's headers, since its binding is compiled.
    """
    for tool in ("node", "npm", "pkg-config"):
        if shutil.which(tool) is None:
            raise BenchError(f"{tool} is missing: zmq-raft needs it")
    missing = missing_tools()
    if missing is not None:
        raise BenchError(missing)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "package.json").write_text(json.dumps(_PACKAGE, indent=2) + "\n")
    run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", directory],
        directory / "install.log",
        _INSTALL_TIMEOUT_S,
        environment={**os.environ, "npm_config_zmq_external": "true"},
    )
    command = directory / "node_modules" / ".bin" / "zmq-raft"
    run([command, "--help"], directory / "check.log", _COMPILE_TIMEOUT_S)
    return command
