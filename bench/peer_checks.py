"""What a peer uses and how fast the cluster comes back: memory, idle processor time, commits after the leader's end.

Knows nothing of how peers are made; works on a `Running` cluster that speaks zmq-raft's protocol.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench import wire
from bench.processes import cpu_s, resident_bytes, wait_until
from bench.systems import START_TIMEOUT_S, Peer, Running, System

__all__ = ["idle_check", "kills_check", "memory_check", "summarize_kills"]

_MEMORY_UPDATES = 1_000_000
_MEMORY_IN_FLIGHT = 1024
_MEMORY_SIZE_BYTES = 128
#: At 2,000 updates a second.
_MEMORY_TIMEOUT_S = 500.0
_IDLE_S = 10.0
#: What the start of a cluster leaves to do must be over.
_IDLE_SETTLE_S = 3.0
_COMMIT_TIMEOUT_S = 30.0
_WANTED_MS = 1000.0


def memory_check(system: System, directory: Path) -> dict[str, float]:
    """MiB of each peer in RAM after 1,000,000 updates of 128 bytes; the names say who led."""
    with system.running(directory) as running:
        running.measure(_MEMORY_UPDATES, _MEMORY_IN_FLIGHT, _MEMORY_SIZE_BYTES, _MEMORY_TIMEOUT_S)
        return {name: resident_bytes(peer.process.pid) / 2**20 for name, peer in _named(running).items()}


def idle_check(system: System, directory: Path) -> dict[str, float]:
    """Per cent of a core that each peer uses while nobody asks for anything."""
    with system.running(directory) as running:
        time.sleep(_IDLE_SETTLE_S)
        peers = _named(running)
        start, used = time.monotonic(), {name: cpu_s(peer.process.pid) for name, peer in peers.items()}
        time.sleep(_IDLE_S)
        elapsed_s = time.monotonic() - start
        return {name: 100 * (cpu_s(peer.process.pid) - used[name]) / elapsed_s for name, peer in peers.items()}


def _named(running: Running) -> dict[str, Peer]:
    leader = running.leader()
    return {f"{'leader' if peer is leader else 'follower'} {peer.id}": peer for peer in running.peers}


def kills_check(system: System, directory: Path, kills: int, progress: Callable[[str], None]) -> dict[str, float]:
    """How long it takes from SIGKILL of the leader to the next commit, so many times, and what that comes to."""
    times_ms: list[float] = []
    with system.running(directory) as running:
        for number in range(kills):
            times_ms.append(_kill_leader(running))
            progress(f"kill {number + 1}/{kills}: next commit after {times_ms[-1]:.0f} ms")
    return summarize_kills(times_ms)


def _kill_leader(running: Running) -> float:
    """Kill the leader, wait for a commit, bring the peer back; the ms without a commit."""
    with wire.CommitProbe(running.urls, running.secret) as probe:
        probe.wait_commit(_COMMIT_TIMEOUT_S)
    leader = running.leader()
    survivors = [url for url in running.urls if url != leader.url]
    with wire.CommitProbe(survivors, running.secret) as probe:
        start = time.monotonic()
        os.kill(leader.process.pid, signal.SIGKILL)
        probe.wait_commit(_COMMIT_TIMEOUT_S)
        elapsed_ms = (time.monotonic() - start) * 1000
    leader.process.start()
    _wait_caught_up(running, leader)
    return elapsed_ms


def _wait_caught_up(running: Running, peer: Peer) -> None:
    """Wait until a peer has every entry that was committed when this began."""
    info = wire.log_info(running.leader().url, running.secret)
    wanted = info.commit_index if info is not None else 0
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        peer.process.check()
        info = wire.log_info(peer.url, running.secret)
        if info is not None and info.commit_index >= wanted:
            return
        wait_until(deadline, f"peer {peer.id} to catch up")


def summarize_kills(times_ms: list[float]) -> dict[str, float]:
    """How many there were, how many of them were over within 1 s, and how the times are distributed, in ms."""
    ordered = sorted(times_ms)
    return {
        "kills": len(ordered),
        "within 1 s": sum(time_ms < _WANTED_MS for time_ms in ordered),
        "shortest ms": ordered[0],
        "median ms": median(ordered),
        **{f"p{share} ms": ordered[-(-len(ordered) * share // 100) - 1] for share in (90, 99)},
        "longest ms": ordered[-1],
    }
