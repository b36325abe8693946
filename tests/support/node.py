"""zmq-raft for Node.js beside zmqraft: its installation from npm, and our scripts over it as processes.

Knows nothing of what the scripts do. The rule: every wait has a deadline, and what a script's process said on standard
error when it ended stands in the error of whoever waited for it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from support.command import PATIENCE_S

__all__ = ["SCRIPTS", "NodeCallError", "NodeProgram", "install_modules", "missing_for_node"]

INTEROP = Path(__file__).resolve().parents[1] / "interop"
SCRIPTS = INTEROP / "node"
_INSTALL_TIMEOUT_S = 600.0
#: zmq-raft's binding is compiled for the libzmq that is installed.
_INSTALL_VARIABLES = {"npm_config_zmq_external": "true"}
_TOOLS = ("node", "npm", "pkg-config", "c++")


class NodeCallError(Exception):
    """What a script answered with: zmq-raft raised this. ``name`` is the error's own."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


def missing_for_node() -> str | None:
    """What is not here of all that zmq-raft needs to be installed and to run; None when nothing is missing."""
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            return f"{tool} is missing"
    found = subprocess.run(["pkg-config", "--exists", "libzmq"], check=False, timeout=PATIENCE_S)
    return None if found.returncode == 0 else "libzmq's headers are missing (Debian: libzmq3-dev)"


def install_modules(directory: Path) -> Path:
    """The node_modules of tests/interop/package.json below a directory; installed from npm unless they are there."""
    manifest = directory / "package.json"
    wanted = (INTEROP / "package.json").read_bytes()
    modules = directory / "node_modules"
    done = directory / "installed"
    if not (done.exists() and manifest.read_bytes() == wanted):
        directory.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        shutil.rmtree(modules, ignore_errors=True)
        manifest.write_bytes(wanted)
        result = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"],
            cwd=directory,
            env={**os.environ, **_INSTALL_VARIABLES},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(f"npm install failed in {directory}:\n{result.stdout[-4000:]}")
        done.touch()
    return modules


class NodeProgram:
    """One of our scripts, running: calls and their answers, and what it tells unasked. Killed at the end of ``with``.

    May be used from several threads.
    """

    def __init__(self, modules: Path, script: str, *arguments: str | Path) -> None:
        self.name = " ".join([script, *(str(argument) for argument in arguments[-1:])])
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close` and `kill`)
        self._changed = threading.Condition()
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._ended = False
        #: Every event so far, oldest first.
        self.events: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            ["node", str(SCRIPTS / script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "NODE_PATH": str(modules)},
        )
        self._reader = threading.Thread(target=self._read, name=self.name, daemon=True)
        self._reader.start()

    def __enter__(self) -> NodeProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def start_call(self, op: str, **parameters: Any) -> Future[Any]:
        """Call a script's operation: a future of what it returns, or of a NodeCallError."""
        future: Future[Any] = Future()
        with self._changed:
            if self._ended:
                raise AssertionError(self._obituary())
            number = next(self._numbers)
            self._calls[number] = future
            assert self.process.stdin is not None
            line = json.dumps({"call": number, "op": op, **parameters})
            try:
                self.process.stdin.write(line.encode() + b"\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                raise AssertionError(self._obituary()) from None
        return future

    def call(self, op: str, **parameters: Any) -> Any:
        """Call a script's operation and wait for it. Raises NodeCallError where zmq-raft raised something."""
        return self.start_call(op, **parameters).result(2 * PATIENCE_S)

    def wait_events(self, enough: Callable[[list[dict[str, Any]]], object], what: str) -> list[dict[str, Any]]:
        """All events so far, once they are ``enough``. AssertionError when the process ends, or at the deadline."""
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while not enough(self.events):
                if self._ended:
                    raise AssertionError(f"waiting for {what}: {self._obituary()}")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"waited in vain for {what} from {self.name}: {self.events[-10:]}")
            return list(self.events)

    def wait_event(self, name: str) -> dict[str, Any]:
        """The first event of a kind."""
        events = self.wait_events(lambda events: any(each["event"] == name for each in events), f"event {name!r}")
        return next(each for each in events if each["event"] == name)

    def close(self) -> None:
        """Ask it to end, by the end of its standard input; its exit status has to be 0."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        if status != 0:
            raise AssertionError(self._obituary())
        self._close_files()

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self.running:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        self._close_files()

    def _close_files(self) -> None:
        for file in (self.process.stdin, self.process.stdout, self._stderr):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._take(json.loads(line))
        self.process.wait()
        with self._changed:
            self._ended = True
            calls, self._calls = self._calls, {}
            self._changed.notify_all()
        for future in calls.values():
            future.set_exception(AssertionError(self._obituary()))

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            with self._changed:
                self.events.append(message)
                self._changed.notify_all()
            return
        with self._changed:
            future = self._calls.pop(message["call"])
        if "error" in message:
            future.set_exception(NodeCallError(**message["error"]))
        else:
            future.set_result(message.get("value"))

    def _obituary(self) -> str:
        said = ""
        if not self._stderr.closed:
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace")
        return f"{self.name} ended with status {self.process.poll()}: {said[-2000:]} {self.events[-3:]}"
