"""``python -m zmqraft.testing``: run seeds of the simulator, and say what broke.

The last line on standard output is a summary; the exit status is 0 only when every seed held. How far a long run is
gets said on standard error.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from zmqraft._accel import EXTENSIONS
from zmqraft.testing.simulator.run import RunResult, run_seed, shrink

#: Lines of the trace that are shown of a seed that failed.
_LINES_MAX = 120
#: Seconds between two lines about how far it is.
_PROGRESS_INTERVAL_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments say. Returns the exit status."""
    options = _parser().parse_args(arguments)
    began = time.monotonic()
    totals: Counter[str] = Counter()
    failed: list[int] = []
    hashes: dict[int, str] = {}
    slowest = (0.0, 0)
    progress_at = began + _PROGRESS_INTERVAL_S
    for result, seconds in _results(options):
        if time.monotonic() >= progress_at:
            progress_at = time.monotonic() + _PROGRESS_INTERVAL_S
            print(f"{len(hashes)} of {options.seeds} seeds, {len(failed)} violations", file=sys.stderr, flush=True)
        slowest = max(slowest, (seconds, result.seed))
        hashes[result.seed] = result.trace_hash
        totals.update(
            events=result.events, committed=result.committed, leaders=result.leaders, limits=int(result.reached_limit)
        )
        totals.update(result.counts)
        if result.violation is not None:
            failed.append(result.seed)
            _report(result, options)
    if options.hashes is not None:
        Path(options.hashes).write_text(
            "".join(f"{seed} {hashes[seed]}\n" for seed in sorted(hashes)), encoding="utf-8"
        )
    last = options.first_seed + options.seeds - 1
    elapsed = time.monotonic() - began
    print(
        f"seeds {options.first_seed} to {last} ({'compiled' if EXTENSIONS else 'pure'}): "
        f"{len(failed)} violations{_list(failed)}, {totals['limits']} at known limits; "
        f"{totals['events']} events, {totals['committed']} entries, {totals['leaders']} terms with a leader; "
        f"{elapsed:.1f} s, of the processor {slowest[0]:.2f} s at most (seed {slowest[1]})"
    )
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m zmqraft.testing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many seeds (default: 100)")
    parser.add_argument("--first-seed", type=int, default=1, metavar="S", help="the first one (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="in so many processes (default: 1)")
    parser.add_argument(
        "--twice", action="store_true", help="run each seed twice, and compare the hashes of the traces"
    )
    parser.add_argument("--hashes", metavar="FILE", help="write the hash of each seed's trace")
    parser.add_argument("--trace", metavar="FILE", help="write the whole trace of a seed that failed (the last one)")
    parser.add_argument("--no-shrink", action="store_true", help="show all faults of a seed that failed")
    return parser


def _results(options: argparse.Namespace) -> Iterator[tuple[RunResult, float]]:
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    run = _run_twice if options.twice else _run_once
    if options.jobs <= 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as executor:
        yield from executor.map(run, seeds, chunksize=8)


def _run_once(seed: int) -> tuple[RunResult, float]:
    began = time.process_time()
    return run_seed(seed), time.process_time() - began


def _run_twice(seed: int) -> tuple[RunResult, float]:
    result, seconds = _run_once(seed)
    again = run_seed(seed)
    if result.violation is None and again.trace_hash != result.trace_hash:
        result.violation = "replay"
        result.message = f"the second run has the hash {again.trace_hash}, the first one {result.trace_hash}"
    return result, seconds


def _report(result: RunResult, options: argparse.Namespace) -> None:
    print(f"--- seed {result.seed}: {result.message}")
    if not options.no_shrink and result.violation not in ("undelivered", "replay"):
        shrunk = shrink(result)
        print(f"{len(result.faults)} faults, of which these are enough:")
        result = shrunk
    for fault in result.faults:
        print(f"  {fault}")
    if options.trace is not None:
        whole = run_seed(result.seed, result.faults, trace_kept=None)
        Path(options.trace).write_text("\n".join(whole.lines) + "\n", encoding="utf-8")
        print(f"the whole trace is in {options.trace}")
    else:
        print("the end of its trace:")
        for line in result.lines[-_LINES_MAX:]:
            print(f"  {line}")
    print(f"again: python -m zmqraft.testing --first-seed {result.seed} --seeds 1 --trace trace.txt", flush=True)


def _list(seeds: list[int]) -> str:
    return f" (seeds {', '.join(map(str, sorted(seeds)))})" if seeds else ""
