"""Where the time of an update goes: processor time by thread, and the functions of a peer's own thread.

Two runs, since a profiler slows down what it watches: the first, without one, says what each thread of each peer uses;
the second has the leader or a follower under cProfile (`profiled_peer`). Which one that is gets decided by the peers'
election timeouts: the peer that is to lead has a much shorter one than the others.
"""

from __future__ import annotations

import contextlib
import pstats
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from bench.ladder import Load, measure_for
from bench.processes import BenchError, ThreadTimes, thread_times
from bench.programs import Programs
from bench.report import markdown_table
from bench.systems import PEERS, Measurement, Peer, Running, ZmqRaft, write_config

__all__ = [
    "STATS_NAME",
    "FunctionTime",
    "Profile",
    "by_module",
    "function_rows",
    "function_times",
    "profile",
    "thread_rows",
]

#: Where the figures of the profiler are, below the directory of the run.
STATS_NAME = "peer.pstats"
#: The peer that is profiled, and the election timeouts in ms of who is to lead and of the others.
_PROFILED = "1"
_SOON = {"electionTimeoutMin": 200, "electionTimeoutMax": 300}
_LATE = {"electionTimeoutMin": 3000, "electionTimeoutMax": 4000}
_CLOSE_TIMEOUT_S = 30.0
#: Threads that use less than this of a run are left out.
_THREAD_S_MIN = 0.02


@dataclass(frozen=True)
class FunctionTime:
    """What a function took by itself, without those that it called."""

    name: str
    module: str
    calls: int
    own_s: float


@dataclass(frozen=True)
class Profile:
    """What the two runs came to."""

    plain: Measurement
    threads: dict[str, list[ThreadTimes]]
    profiled: Measurement
    functions: list[FunctionTime]


class _ProfiledZmqRaft(ZmqRaft):
    """Three peers of which the first leads, or follows, and may be profiled."""

    def __init__(self, programs: Programs, *, pure: bool, leads: bool) -> None:
        super().__init__(programs, pure=pure)
        self._leads = leads
        self.profile: Path | None = None

    def _peers(self, directory: Path) -> list[Peer]:
        peers = super()._peers(directory)
        urls = [peer.url for peer in peers]
        for peer in peers:
            # Of the two others the second has no reason to be early.
            leads = peer.id == (_PROFILED if self._leads else str(PEERS))
            config = write_config(directory, urls, f"{peer.id}.json", **(_SOON if leads else _LATE))
            command = [*self.python, "-m", "zmqraft", "run"]
            if self.profile is not None and peer.id == _PROFILED:
                command = [*self.python, "-m", "bench.profiled_peer", str(self.profile)]
            peer.process = self.process(command, config, peer.id)
        return peers

    @contextlib.contextmanager
    def checked(self, base: Path) -> Iterator[Running]:
        """A running cluster in which the peer has the part that it should."""
        with self.running(base) as running:
            leader = running.leader()
            if (leader.id == _PROFILED) != self._leads:
                raise BenchError(f"peer {leader.id} leads, against its election timeout: try again")
            yield running


def profile(programs: Programs, directory: Path, load: Load, *, seconds: float, leads: bool, pure: bool) -> Profile:
    """Run the load without and with the profiler. Raises BenchError when the cluster fails."""
    system = _ProfiledZmqRaft(programs, pure=pure, leads=leads)
    with system.checked(directory) as running:
        warm = measure_for(running.measure, load, seconds)
        before = {peer.id: thread_times(peer.process.pid) for peer in running.peers}
        plain = running.measure(warm.count, load.in_flight, load.size_bytes, 10 * seconds + 30)
        leader = running.leader()
        threads = {
            f"{'leader' if peer is leader else 'follower'} {peer.id}": _used(
                peer.process.pid, before[peer.id], thread_times(peer.process.pid)
            )
            for peer in running.peers
        }
    system.profile = directory / STATS_NAME
    with system.checked(directory) as running:
        profiled = running.measure(plain.count, load.in_flight, load.size_bytes, 30 * seconds + 60)
        peer = next(peer for peer in running.peers if peer.id == _PROFILED)
        peer.process.terminate()
        if peer.process.wait(_CLOSE_TIMEOUT_S) != 0:
            peer.process.check()
        stats = pstats.Stats(str(system.profile))
    return Profile(plain, threads, profiled, function_times(stats.stats))  # type: ignore[attr-defined]


def _used(pid: int, before: Mapping[int, ThreadTimes], after: Mapping[int, ThreadTimes]) -> list[ThreadTimes]:
    """What each thread used in between. The main thread, which only waits, has the id of the process."""
    used = []
    for task, times in after.items():
        start = before.get(task, ThreadTimes(times.name, 0, 0))
        name = "main" if task == pid else times.name
        used.append(ThreadTimes(name, times.user_s - start.user_s, times.system_s - start.system_s))
    return [times for times in used if times.user_s + times.system_s >= _THREAD_S_MIN]


def function_times(stats: Mapping[tuple[str, int, str], tuple[int, int, float, float, object]]) -> list[FunctionTime]:
    """From what `pstats` keeps; the longest first."""
    times = []
    for (file, line, name), (_, calls, own_s, _, _) in stats.items():
        module = _module(file)
        text = name if module == "built in" else f"{module}:{line} {name}"
        times.append(FunctionTime(text, module, calls, own_s))
    return sorted(times, key=lambda time: time.own_s, reverse=True)


def _module(file: str) -> str:
    """A file below the last directory that says whose it is: ``server/engine.py``, ``zmq/sugar/socket.py``."""
    if file == "~":
        return "built in"
    parts = PurePath(file).parts
    for package in ("zmqraft", "zmq"):
        if package in parts[:-1]:
            at = len(parts) - 1 - parts[::-1].index(package)
            return "/".join(parts[at + 1 if package == "zmqraft" else at :])
    return parts[-1]


def by_module(functions: list[FunctionTime]) -> list[FunctionTime]:
    """The same, added up by module."""
    sums: dict[str, FunctionTime] = {}
    for each in functions:
        old = sums.get(each.module, FunctionTime(each.module, each.module, 0, 0.0))
        sums[each.module] = FunctionTime(each.module, each.module, old.calls + each.calls, old.own_s + each.own_s)
    return sorted(sums.values(), key=lambda time: time.own_s, reverse=True)


def thread_rows(result: Profile) -> str:
    """Processor time by thread, in µs an update, as a table."""
    per_update = 1e6 / result.plain.count
    rows = [
        [f"{peer}: {times.name}", f"{times.user_s * per_update:.2f}", f"{times.system_s * per_update:.2f}"]
        for peer, threads in result.threads.items()
        for times in sorted(threads, key=lambda times: times.user_s + times.system_s, reverse=True)
    ]
    return markdown_table(["thread", "user, µs", "system, µs"], rows)


def function_rows(functions: list[FunctionTime], updates: int, count: int) -> str:
    """The first functions, in µs and calls an update, as a table."""
    rows = [
        [each.name, f"{each.own_s * 1e6 / updates:.2f}", f"{each.calls / updates:.3f}"] for each in functions[:count]
    ]
    return markdown_table(["where", "own time, µs", "calls"], rows)
