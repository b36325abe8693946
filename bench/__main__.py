"""``python -m bench``: its commands. Everything that they start is ended on errors, Ctrl-C, SIGTERM and SIGHUP.

A signal ends it all at once, in its handler: raised as an exception it would come out of any place, also out of one
where a process, or a socket, has been made and nobody knows of it yet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from bench import machine, peer_checks, profiling, report
from bench.foreign import Etcd, PySyncObj
from bench.ladder import LADDER, Load, Results, run_rounds
from bench.log_checks import log_check
from bench.processes import BenchError, end_all, uninterrupted
from bench.programs import Programs, build_programs, install_zmq_raft
from bench.systems import Limit, NodeZmqRaft, System, ZmqRaft
from zmqraft import EXTENSIONS

#: What is to be removed in the end.
_directories: list[str] = []
#: File systems in memory, which make every sync free.
_IN_MEMORY = ("tmpfs", "ramfs")

_data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where all data goes, on a real disk [default: the directory for temporary files].",
)
_pure_option = click.option("--pure", is_flag=True, help="The pure Python build.")


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def bench() -> None:
    """Measure clusters of three peers on this machine's loopback."""


@bench.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="For a measurement.")
@_data_option
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
@click.option("--in-flight", type=int, multiple=True, help="Only these loads of 128 bytes; may be repeated.")
@click.option("--pure", is_flag=True, help="The pure Python build too.")
@click.option(
    "--others/--no-others", default=True, show_default=True, help="PySyncObj, etcd and zmq-raft where installed."
)
@click.option("--zmq-raft", type=click.Path(path_type=Path), help="Where install-zmq-raft has put zmq-raft.")
@click.option("--memory", is_flag=True, help="Also a peer's memory after 1,000,000 updates.")
@click.option("--idle", is_flag=True, help="Also the processor time of an idle peer.")
@click.option("--kills", type=click.IntRange(0, 1000), default=0, help="Also kill the leader so many times.")
@click.option("--ladder/--no-ladder", default=True, help="The loads; without them only the other checks.")
def cluster(
    rounds: int,
    seconds: float,
    data: Path | None,
    json_path: Path | None,
    in_flight: Sequence[int],
    pure: bool,
    others: bool,
    zmq_raft: Path | None,
    memory: bool,
    idle: bool,
    kills: int,
    ladder: bool,
) -> None:
    """Updates per second and their latency, beside what the machine allows and what others do.

    All of it in one run, interleaved, with fsync on.
    """
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise BenchError(f"--json {json_path}: no such directory")
    loads = _chosen(in_flight) if ladder else ()
    with _working_directory(data) as directory:
        programs = build_programs(directory)
        ours, skipped = _available([ZmqRaft(programs), ZmqRaft(programs, pure=True)])
        if not ours:
            raise BenchError(f"zmqraft does not run: {skipped[ZmqRaft.name]}")
        if not pure:
            # What is not compiled is measured pure, rather than not at all.
            ours = ours[:1]
        systems: list[System] = [Limit(programs), *ours]
        needed = [system.name for system in systems]
        if others:
            available, missing = _available([NodeZmqRaft(programs, zmq_raft), PySyncObj(), Etcd()])
            systems += available
            skipped |= missing
        about = machine.describe(directory)
        _warn_in_memory(about["file system"])
        checks: dict[str, Any] = {}

        def save(results: Results) -> None:
            if json_path is not None:
                more = {"seconds": seconds, "skipped": skipped, **checks}
                report.write_json(json_path, report.as_json(results, Limit.name, about, **more))

        results = run_rounds(
            systems,
            loads,
            directory,
            rounds=rounds if loads else 0,
            seconds=seconds,
            needed=needed,
            progress=_progress,
            after_round=save,
        )
        for name, check in (("memory", memory), ("idle", idle), ("kills", kills)):
            if check:
                _progress(f"{name} ...")
                checks[name] = _check(name, ours[0], directory, kills)
                save(results)
        about["load average at the end"] = machine.load_average()
        save(results)
    _print_cluster(results, systems, about, checks, rounds)


def _chosen(in_flight: Sequence[int]) -> Sequence[Load]:
    if any(each < 1 for each in in_flight):
        raise BenchError("--in-flight must be at least 1")
    return tuple(Load(each, 128) for each in in_flight) or LADDER


def _available(systems: Sequence[System]) -> tuple[list[System], dict[str, str]]:
    """Those that can be measured, and why others cannot."""
    available: list[System] = []
    skipped: dict[str, str] = {}
    for system in systems:
        reason = system.unavailable()
        if reason is None:
            available.append(system)
        else:
            skipped[system.name] = reason
            _progress(f"without {system.name}: {reason}")
    return available, skipped


def _check(name: str, ours: System, directory: Path, kills: int) -> dict[str, float]:
    if name == "memory":
        return peer_checks.memory_check(ours, directory)
    if name == "idle":
        return peer_checks.idle_check(ours, directory)
    return peer_checks.kills_check(ours, directory, kills, _progress)


_UNITS = {
    "memory": "Memory in RAM after 1,000,000 updates of 128 bytes, MiB",
    "idle": "Idle for 10 s, per cent of a core",
    "kills": "From SIGKILL of the leader to the next commit",
}


def _print_cluster(
    results: Results, systems: Sequence[System], about: dict[str, str], checks: dict[str, Any], rounds: int
) -> None:
    names = [system.name for system in systems]
    if results.measurements:
        print(f"\nUpdates per second, medians of {rounds} rounds (in brackets: of the limit)\n")
        print(report.rates_table(results, names, Limit.name))
        spread = report.spread_line(results, names[1], Limit.name)
        if spread:
            print(f"\nRatio of {names[1]} to the limit, lowest to highest round: {spread}")
        else:
            print("\nA single round: a check that the tool works, not a figure to quote.")
        print("\nTime of an update in ms, p50 / p99\n")
        print(report.times_table(results, names))
        share = report.latency_ratio(results, names[1], Limit.name)
        if share is not None:
            print(f"\np50 of {names[1]} at 1 in flight: {share:.2f} times the limit's")
        print()
        for system in systems:
            if system.note:
                print(f"{system.name} {system.note}.")
    for name, values in checks.items():
        line = ", ".join(
            f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        print(f"{_UNITS[name]}: {line}")
    print()
    for name, value in about.items():
        print(f"{name}: {value}")


@bench.command()
@click.option("--who", type=click.Choice(["leader", "follower"]), default="leader", show_default=True)
@click.option("--in-flight", type=click.IntRange(1, 65536), default=64, show_default=True)
@click.option("--size", type=click.IntRange(1, 1 << 20), default=128, show_default=True, help="Bytes of an update.")
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True)
@click.option("--lines", type=click.IntRange(1, 1000), default=30, show_default=True, help="Functions to print.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Keep the figures for pstats.")
@_data_option
@_pure_option
def profile(
    who: str, in_flight: int, size: int, seconds: float, lines: int, save: Path | None, data: Path | None, pure: bool
) -> None:
    """Where the time of an update goes: by thread without a profiler, by function under cProfile."""
    with _working_directory(data) as directory:
        programs: Programs = build_programs(directory)
        load = Load(in_flight, size)
        result = profiling.profile(programs, directory, load, seconds=seconds, leads=who == "leader", pure=pure)
        if save is not None:
            shutil.copyfile(directory / profiling.STATS_NAME, save)
    print(f"{result.plain.per_s:,.0f} updates/s, {in_flight} in flight, {size} bytes; processor time of an update:\n")
    print(profiling.thread_rows(result))
    count = result.profiled.count
    print(f"\nThe {who}'s own thread under cProfile ({result.profiled.per_s:,.0f} updates/s), for an update:\n")
    print(profiling.function_rows(profiling.by_module(result.functions), count, lines))
    print()
    print(profiling.function_rows(result.functions, count, lines))
    print("\nTime in compiled functions is their callers'; poll and fdatasync wait.")


@bench.command()
@click.option("--entries", type=click.IntRange(1, 100_000_000), default=1_000_000, show_default=True)
@click.option("--size", type=click.IntRange(1, 1 << 20), default=128, show_default=True, help="Bytes of an update.")
@_data_option
def log(entries: int, size: int, data: Path | None) -> None:
    """One log without a cluster: opening it, appending to it, reading it back."""
    with _working_directory(data) as directory:
        _warn_in_memory(machine.describe(directory)["file system"])
        values = log_check(directory, entries, size)
    build = "compiled" if EXTENSIONS else "pure"
    print(f"A log of {entries:,} entries of {size} bytes, {build}")
    for name, value in values.items():
        print(f"{name}: {value:,.3g}" if value < 1000 else f"{name}: {value:,.0f}")


@bench.command("install-zmq-raft")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def install(directory: Path) -> None:
    """Install zmq-raft for Node.js from the npm registry into DIRECTORY, for: cluster --zmq-raft DIRECTORY."""
    print(install_zmq_raft(directory))


@contextlib.contextmanager
def _working_directory(base: Path | None) -> Iterator[Path]:
    """A new directory, which goes in the end."""
    try:
        if base is not None:
            base.mkdir(parents=True, exist_ok=True)
        with uninterrupted():
            name = tempfile.mkdtemp(prefix="zmqraft-bench-", dir=base)
            _directories.append(name)
    except OSError as error:
        raise BenchError(f"--data: {error}") from None
    try:
        yield Path(name).resolve()
    finally:
        shutil.rmtree(name, ignore_errors=True)
        _directories.remove(name)


def _warn_in_memory(file_system: str) -> None:
    if file_system in _IN_MEMORY:
        _progress(f"the data is on {file_system}, where a sync costs nothing: name a directory on a disk with --data")


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _terminate(number: int, frame: FrameType | None) -> None:
    end_all()
    for directory in _directories:
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. An error is one line on standard error."""
    # A terminal that goes away must not leave clusters behind either.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        bench.main(arguments, prog_name="python -m bench", standalone_mode=False)
    except click.ClickException as error:
        print(f"bench: {error.format_message()}", file=sys.stderr)
        return error.exit_code
    except (BenchError, OSError) as error:
        print(f"bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        end_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
