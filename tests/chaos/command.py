"""Many runs, side by side, each in a process of its own, and in namespaces of its own where there can be any.

The rule: a run is repeated only when it does not count, since the machine was too slow before its first fault. Whatever
happens to this process, what it has started ends with it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from chaos.cluster import program_environment
from chaos.network import ISOLATED, missing_for_namespaces
from chaos.run import INVALID, OK, VIOLATION, Report, kinds_of

__all__ = ["BESIDE_S", "Runs", "main"]

#: What a run takes beside its load, at most, in seconds: the start, faults that are late, healing and checks.
BESIDE_S = 240.0
_ATTEMPTS = 3
_END_S = 30.0


class Runs:
    """Makes runs, as the machine allows, so many at a time. ``directory`` gets one of its own for each.

    To be closed, as by ``with``: that ends those that are under way.
    """

    def __init__(self, directory: Path, seconds: float, *, jobs: int = 2, proxies: bool = False) -> None:
        self._directory = directory
        self._seconds = seconds
        why = "they are asked for" if proxies else missing_for_namespaces()
        self._proxies = why is not None
        #: What there is not here, a line for each.
        self.missing = [] if why is None else [f"the links are TCP proxies: {why}"]
        _, missing = kinds_of(namespaces=not self._proxies)
        self.missing += [f"no {kind}: {reason}" for kind, reason in missing.items()]
        self._pool = ThreadPoolExecutor(jobs)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(self, seeds: Iterable[int]) -> dict[int, Future[Report]]:
        """Begin runs, and more of them as others end; what comes of each."""
        return {seed: self._pool.submit(self._run, seed) for seed in seeds}

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                process.terminate() if self._proxies else process.kill()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, seed: int) -> Report:
        for attempt in range(1, _ATTEMPTS + 1):
            directory = self._directory / f"seed-{seed}-{attempt}"
            directory.mkdir(parents=True)
            report = self._run_once(seed, directory)
            if report.outcome == OK:
                shutil.rmtree(directory, ignore_errors=True)
            else:
                report.message += f"; see {directory}"
            if report.outcome != INVALID:
                break
        return report

    def _run_once(self, seed: int, directory: Path) -> Report:
        report = Report(seed, 0, "", self._seconds, VIOLATION)
        with (directory / "output").open("wb") as output:
            with self._lock:
                if self._closed:
                    report.message = "it was interrupted"
                    return report
                process = subprocess.Popen(
                    self._command(seed, directory),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **program_environment()},
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                process.wait(self._seconds + BESIDE_S)
            except subprocess.TimeoutExpired:
                report.message = "it did not end in time"
                return report
            finally:
                self._end(process)
        try:
            return Report.read(directory)
        except OSError:
            said = (directory / "output").read_text(errors="replace")
            report.message = f"it ended with {process.returncode}: {said[-2000:]}"
            return report

    def _command(self, seed: int, directory: Path) -> list[str]:
        """What ends by itself when this process is killed: by a signal that it obeys, or with the first process of its
        namespace."""
        program = [sys.executable, "-W", "error", "-m", "chaos.run", "--seed", str(seed)]
        program += ["--seconds", str(self._seconds), "--directory", str(directory)]
        if self._proxies:
            return [*_obeying_parent("TERM"), *program, "--proxies"]
        return [*_obeying_parent("KILL"), *ISOLATED, *program]

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None and self._proxies:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with self._lock:
            self._running.remove(process)


def _obeying_parent(number: str) -> list[str]:
    return ["setpriv", "--pdeathsig", number] if shutil.which("setpriv") else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="the load of each run")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--proxies", action="store_true", help="as where nobody may make network namespaces")
    parser.add_argument("--directory", type=Path, help="for what is left of runs that went wrong [default: a new one]")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="zmqraft-chaos-"))
    began = time.monotonic()
    reports = []
    with Runs(directory, arguments.seconds, jobs=arguments.jobs, proxies=arguments.proxies) as runs:
        for line in runs.missing:
            print(line)
        first = arguments.first_seed
        for future in runs.start(range(first, first + arguments.runs)).values():
            reports.append(future.result())
            print(reports[-1], flush=True)
    outcomes = {outcome: sum(report.outcome == outcome for report in reports) for outcome in (OK, VIOLATION, INVALID)}
    print(
        f"{', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}, in {time.monotonic() - began:.0f} s"
    )
    with contextlib.suppress(OSError):
        directory.rmdir()
    return 0 if outcomes[OK] == len(reports) else 1
