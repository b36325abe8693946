"""One run: a cluster, its clients, the faults of a seed, the healing, and the verdict.

    python -m chaos.run --seed N --seconds S --directory DIRECTORY [--proxies]

is how `chaos.command` starts it, in namespaces of its own where there are any. What came of it is in ``report.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from chaos.cluster import ChaosError, Clients, Cluster, wait_until
from chaos.faults import DISK_MIB, Clock, Faults, clock_environment, missing_for
from chaos.history import check_all
from chaos.network import CLIENTS, NamespaceNetwork, Network, ProxyNetwork
from chaos.schedule import KINDS, Fault, draw_faults, draw_size
from support.loop_file_system import mounted
from support.process_cluster import SECRET
from zmqraft import LogEntry, ZmqRaftClient, new_request_id
from zmqraft.testing.histories import HistoryError, Operation

__all__ = ["INVALID", "OK", "RATE_MIN", "VIOLATION", "Report", "kinds_of"]

OK, VIOLATION, INVALID = "ok", "violation", "invalid"
#: A run with fewer updates in a second before its first fault does not count.
RATE_MIN = 50.0
_WARM_S = 3.0
_START_S = 60.0
#: Within so many seconds after the last fault all is well again, or something is wrong.
_HEAL_S = 60.0
#: The last part of the load goes on without faults.
_TAIL_S = 1.0


@dataclass
class Report:
    """What came of a run."""

    seed: int
    size: int
    form: str
    seconds: float
    outcome: str = VIOLATION
    message: str = "it did not end"
    rate: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    unknown: int = 0
    store_operations: int = 0
    reads: int = 0
    entries: int = 0
    terms: int = 0
    healed_s: float = 0.0
    checked_s: float = 0.0

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"seed {self.seed}: {self.outcome}; {self.size} peers, {self.form}, {self.seconds:g} s; "
            f"{self.rate:.0f} updates/s before the first fault; {sum(self.faults.values())} faults: {faults}; "
            f"{self.acknowledged} updates acknowledged, {self.unknown} operations unknown, {self.store_operations} of "
            f"the store, {self.reads} reads; {self.entries} entries, {self.terms} terms; healed in {self.healed_s:.1f}"
            f" s, checked in {self.checked_s:.1f} s{'; ' + self.message if self.message else ''}"
        )

    @classmethod
    def read(cls, directory: Path) -> Report:
        return cls(**json.loads((directory / "report.json").read_text()))

    def write(self, directory: Path) -> None:
        (directory / "report.json").write_text(json.dumps(asdict(self)))


class _InvalidError(Exception):
    """The run does not count."""


def kinds_of(*, namespaces: bool) -> tuple[list[str], dict[str, str]]:
    """The kinds of faults that there are here, and why there are not the others."""
    missing = {kind: why for kind in KINDS if (why := missing_for(kind, namespaces=namespaces)) is not None}
    return [kind for kind in KINDS if kind not in missing], missing


class Run:
    """One run, with all that it starts."""

    def __init__(
        self, seed: int, seconds: float, directory: Path, stack: contextlib.ExitStack, *, proxies: bool
    ) -> None:
        self.report = Report(seed, draw_size(seed), "proxies" if proxies else "namespaces", seconds)
        kinds, _ = kinds_of(namespaces=not proxies)
        self._faults = draw_faults(seed, seconds - _WARM_S - _TAIL_S, kinds)
        self._directory = directory
        self._stack = stack
        self._began = time.monotonic()
        self._timeline = stack.enter_context((directory / "timeline").open("w", buffering=1))
        self._failed = threading.Event()
        self._errors: list[BaseException] = []
        self._own: list[Operation] = []

        members = [str(number) for number in range(1, self.report.size + 1)]
        changes = sum(fault.kind == "change of members" for fault in self._faults)
        spares = [str(self.report.size + number) for number in range(1, changes + 1)]
        nodes = [*members, *spares, *CLIENTS]
        self._network: Network = ProxyNetwork(nodes, stack) if proxies else NamespaceNetwork(nodes)
        disks = {victim: self._mount(victim) for victim in self._victims("full disk")}
        clocks = {victim: Clock(directory / f"clock-{victim}") for victim in self._victims("clock step")}
        self._cluster = Cluster(
            directory,
            self._network,
            members,
            spares,
            {victim: clock_environment(clock.file) for victim, clock in clocks.items()},
            stack,
            index_file_capacity=Random(f"{seed} files").choice((64, 256) if disks else (64, 256, 1024)),
        )
        stack.callback(self._cluster.close)
        self._cluster.begin(*members)
        try:
            wait_until(self._cluster.leader, time.monotonic() + _START_S, "a leader")
        except ChaosError as error:
            raise _InvalidError(f"0 updates/s before the first fault: {error}") from None
        self._clients = Clients(directory, self._network, self._cluster, seed, stack)
        self._all = Faults(self._cluster, self._clients, self._network, disks, clocks, self._say)
        self._say(f"{self.report.size} peers, {len(self._faults)} faults")
        for fault in self._faults:
            self._say(f"drawn: {fault}")

    def _mount(self, victim: str) -> Path:
        """The data directory of a peer, as a disk of its own; what is on it is kept when the run goes wrong."""
        path = self._directory / f"peer-{victim}" / "data" / victim
        disk = self._stack.enter_context(mounted(path, size_mib=DISK_MIB))

        def keep() -> None:
            if self.report.outcome != OK:
                shutil.copytree(disk, self._directory / f"disk-{victim}")

        self._stack.callback(keep)
        return disk

    def _victims(self, kind: str) -> set[str]:
        return {fault.victim for fault in self._faults if fault.kind == kind and fault.victim is not None}

    def _say(self, text: str) -> None:
        self._timeline.write(f"{time.monotonic() - self._began:8.3f} {text}\n")

    def run(self) -> None:
        """From the first update to the verdict. Raises ChaosError, HistoryError, or _InvalidError."""
        self._warm_up()
        self._bring_about()
        entries = self._heal()
        self._judge(entries)

    def _warm_up(self) -> None:
        wait_until(self._clients.history, time.monotonic() + _START_S, "a first update")
        began, before = time.monotonic(), len(_updates(self._clients.history()))
        time.sleep(_WARM_S)
        self._clients.check()
        done = len(_updates(self._clients.history())) - before
        self.report.rate = done / (time.monotonic() - began)
        self._say(f"{self.report.rate:.0f} updates/s")
        if self.report.rate < RATE_MIN:
            raise _InvalidError(f"{self.report.rate:.0f} updates/s before the first fault, not {RATE_MIN:.0f}")

    def _bring_about(self) -> None:
        began = time.monotonic()
        self._all.begin(max(fault.at + fault.duration for fault in self._faults))
        threads = [
            threading.Thread(target=self._one_fault, args=(fault, began), name=str(fault), daemon=True)
            for fault in self._faults
        ]
        for thread in threads:
            thread.start()
        while not self._failed.is_set() and any(thread.is_alive() for thread in threads):
            self._cluster.running()
            self._clients.check()
            time.sleep(0.05)
        if self._errors:
            raise self._errors[0]

    def _one_fault(self, fault: Fault, began: float) -> None:
        if self._failed.wait(max(0.0, began + fault.at - time.monotonic())):
            return
        try:
            self._all.bring_about(fault)
            self.report.faults[fault.kind] = self.report.faults.get(fault.kind, 0) + 1
        except BaseException as error:
            self._say(f"{fault}: {error!r}")
            self._errors.append(ChaosError(f"{fault}: {error}"))
            self._failed.set()

    def _heal(self) -> dict[str, list[LogEntry]]:
        """All faults are over: soon there is a commit, and then all members have the same. The logs of all peers."""
        began = time.monotonic()
        self._say("all faults are over")
        self._cluster.begin(*self._cluster.members)
        with ZmqRaftClient(self._cluster.urls, secret=SECRET) as client:
            operation = Operation("operator", new_request_id(), (), time.monotonic())
            self._own.append(operation)
            index = client.request_update(
                operation.request_id, b"healed", deadline_s=began + _HEAL_S - time.monotonic()
            )
            operation.finish(time.monotonic(), index)
            self._say(f"commit {index}")
        time.sleep(_TAIL_S)
        self._clients.stop()
        last = self._cluster.wait_equal(index, began + _HEAL_S)
        self.report.healed_s = time.monotonic() - began - _TAIL_S
        self._say(f"all have {last}")
        self._cluster.stop_all()
        logs = {peer_id: self._cluster.entries(peer_id) for peer_id in self._cluster.with_data()}
        first, *others = self._cluster.members
        for peer_id in self._cluster.members:
            if len(logs[peer_id]) < last:
                raise ChaosError(f"peer {peer_id} has {len(logs[peer_id])} entries, after it had {last}")
        for other in others:
            for mine, its in zip(logs[first][:last], logs[other][:last], strict=True):
                if mine != its:
                    raise ChaosError(f"peers {first} and {other} differ at index {mine.index}: {mine!r}, {its!r}")
        for peer_id, log in logs.items():
            _check_matching(first, logs[first], peer_id, log)
        return {peer_id: log[:last] for peer_id, log in logs.items() if peer_id in self._cluster.members}

    def _judge(self, logs: dict[str, list[LogEntry]]) -> None:
        began = time.monotonic()
        entries = logs[self._cluster.members[0]]
        history = self._clients.history() + self._own
        report = self.report
        report.acknowledged = len(_updates(history))
        report.unknown = sum(not operation.is_done for operation in history)
        report.store_operations = sum(bool(operation.command) for operation in history)
        report.reads = sum(operation.command[:1] == ("get",) and operation.is_done for operation in history)
        report.entries = len(entries)
        report.terms = len({entry.term for entry in entries})
        check_all(history, entries)
        counts = Counter(fault.kind for fault in self._faults)
        if counts != Counter(report.faults):
            raise ChaosError(f"not all faults were brought about: {report.faults}, not {dict(counts)}")
        report.checked_s = time.monotonic() - began


def _updates(history: Sequence[Operation]) -> list[Operation]:
    return [operation for operation in history if operation.request_id and operation.is_done]


def _check_matching(first: str, log: list[LogEntry], second: str, other: list[LogEntry]) -> None:
    """Log Matching (section 5.3): two logs that have an entry of the same index and term are the same up to there."""
    for place in range(min(len(log), len(other)) - 1, -1, -1):
        if log[place].term == other[place].term:
            if log[: place + 1] != other[: place + 1]:
                raise ChaosError(
                    f"peers {first} and {second} have the same term at index {place + 1}, but differ below"
                )
            return


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM ends what is done within, once, however often it comes, and then all processes that are left of it.

    It may come when a process has begun that nobody knows of yet. The signal that says that the parent has ended comes
    for each thread that the parent had.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            sys.exit(1)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if interrupted:
            os.killpg(0, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--proxies", action="store_true")
    arguments = parser.parse_args()
    report = Report(arguments.seed, draw_size(arguments.seed), "", arguments.seconds)
    with _ended_by_signal(), contextlib.ExitStack() as stack:
        try:
            run = Run(arguments.seed, arguments.seconds, arguments.directory, stack, proxies=arguments.proxies)
            report = run.report
            run.run()
            report.outcome, report.message = OK, ""
        except _InvalidError as error:
            report.outcome, report.message = INVALID, str(error)
        except (ChaosError, HistoryError) as error:
            report.outcome, report.message = VIOLATION, str(error)
        except Exception as error:
            report.outcome, report.message = VIOLATION, repr(error)
            raise
        finally:
            report.write(arguments.directory)


if __name__ == "__main__":
    main()
