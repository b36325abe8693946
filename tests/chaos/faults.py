"""How each kind of fault is brought about on real processes, and taken back.

Each fault runs in a thread of its own from its beginning to its end. The rule: it lasts until its time is over and it
has been seen to happen; one that could not happen, whatever was waited for, ends with ChaosError.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from chaos.cluster import ChaosError, Clients, Cluster, is_stopped, wait_until
from chaos.network import CLIENTS, Network, Way
from chaos.schedule import Fault
from support.command import started_program
from support.missing import missing_for_loop, missing_for_strace
from support.process_cluster import SECRET, PeerProcess
from zmqraft import (
    ConfigUpdateInProgressError,
    ConfigUpdateRefusedError,
    RequestExpiredError,
    RequestTimeoutError,
    ZmqRaftClient,
    new_request_id,
)

__all__ = ["DISK_MIB", "Clock", "Faults", "clock_environment", "missing_for", "partition"]

#: The size of a disk that gets full.
DISK_MIB = 64
#: So long after the last fault's time one that has not happened yet may take until it has: nothing else is in its way.
_PATIENCE_S = 60.0
_PAUSE_S = 0.02
#: How far a clock is set: anything from a second to beyond the time that request ids are remembered for.
_STEP_S = (1.0, 9 * 3600.0)
#: A member is away from a change for so long at most before it is asked for again.
_CHANGE_S = 3.0
_FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"


def missing_for(kind: str, *, namespaces: bool) -> str | None:
    """Why there are no faults of a kind here; None when there are."""
    if kind in ("slow disk", "failing sync"):
        return missing_for_strace() or _missing_for_attaching()
    if kind == "full disk":
        return missing_for_loop() if namespaces else "the disk is mounted in a namespace, and there is none"
    if kind == "clock step":
        return _missing_for_clock()
    if kind == "change of members" and not namespaces:
        return "members that are told to all have one url, and not one through a proxy of each way"
    return None


def _missing_for_attaching() -> str | None:
    with started_program(["sleep", "60"]) as process:
        try:
            with Tracer(process.pid, ["-e", "trace=fdatasync"], Path(os.devnull)):
                return None
        except ChaosError as error:
            return f"strace cannot attach to a process: {error}"


# --- clocks ---------------------------------------------------------------------------------------------------------


def _faketime_library() -> Path | None:
    return next(iter(sorted(Path("/").glob(_FAKETIME[1:]))), None)


def clock_environment(file: Path) -> dict[str, str]:
    """With which a program reads its wall clock, and no other, as a file says that it differs."""
    return {
        "LD_PRELOAD": str(_faketime_library()),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
    }


class Clock:
    """The file that says how far a clock is from the right time. The kernel says when somebody has read it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0)

    def set(self, seconds: float) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+.3f}\n")
        # As if nobody had read it for long: the next one leaves its mark, on file systems that keep it.
        os.utime(new, (0, time.time()))
        new.replace(self.file)

    def was_read(self) -> bool:
        return self.file.stat().st_atime > 0


def _missing_for_clock() -> str | None:
    if _faketime_library() is None:
        return "libfaketime is not installed (apt-get install faketime)"
    with tempfile.TemporaryDirectory() as directory:
        clock = Clock(Path(directory) / "clock")
        clock.set(5000)
        result = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"],
            env={**os.environ, **clock_environment(clock.file)},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0 or not 4000 < float(result.stdout) - time.time() < 6000:
            return f"libfaketime does not work here: {result.stderr.strip()[:200]}"
        return None if clock.was_read() else "the file system does not say when a file was read"


# --- system calls ---------------------------------------------------------------------------------------------------


class Tracer:
    """strace, attached to a process that runs; ``with`` lets go of it."""

    def __init__(self, pid: int, options: Sequence[str], output: Path) -> None:
        self._command = ["strace", "-f", "-p", str(pid), *options, "-e", "signal=none", "-o", str(output)]
        self._output = output
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Tracer:
        with contextlib.ExitStack() as stack:
            self._process = stack.enter_context(started_program(self._command))
            assert self._process.stderr is not None
            line = self._process.stderr.readline().decode()
            if "attached" not in line:
                raise ChaosError(line.strip())
            # It says when others come and go; nobody reads that.
            reader = threading.Thread(target=self._process.stderr.read, daemon=True)
            reader.start()
            stack.callback(reader.join)
            stack.callback(self._let_go)
            self._stack = stack.pop_all()
        return self

    def _let_go(self) -> None:
        self._process.terminate()
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_attached(self) -> bool:
        """Whether the process that it is attached to is there."""
        return self._process.poll() is None

    def injected(self) -> int:
        """How many calls were delayed, or made to fail."""
        text = self._output.read_text()
        return text.count("(DELAYED)") + text.count("(INJECTED)")


# --- partitions -----------------------------------------------------------------------------------------------------


def partition(random: Random, peers: Sequence[str], leader: str | None) -> tuple[str, set[Way]]:
    """A shape, in words, and the ways that it cuts. Clients may be on either side, or on both."""
    shuffled = random.sample(list(peers), len(peers))
    if leader in shuffled and random.random() < 0.7:
        shuffled.remove(leader)
        shuffled.insert(0, leader)
    first, *others = shuffled
    shape = random.choice(
        ["one away", "half", "bridge", "ring", "deaf", "mute", "one way", "all apart", "clients away"]
    )
    ways: set[Way] = set()
    if shape == "one away":
        ways = _between([first], others)
    elif shape == "half":
        ways = _between(shuffled[: len(peers) // 2], shuffled[len(peers) // 2 :])
    elif shape == "bridge" or (shape == "ring" and len(peers) < 4):
        # The last one hears both sides; the leader is on one of them.
        shape = "bridge"
        *apart, _ = shuffled
        ways = _between(apart[: len(apart) // 2], apart[len(apart) // 2 :])
    elif shape == "ring":
        count = len(shuffled)
        near = {(shuffled[place], shuffled[(place + step) % count]) for place in range(count) for step in (1, -1)}
        ways = set(itertools.permutations(shuffled, 2)) - near
    elif shape == "deaf":
        ways = {(other, first) for other in others}
    elif shape == "mute":
        ways = {(first, other) for other in others}
    elif shape == "one way":
        # Followers have nothing to say to one another.
        one = leader if leader is not None and leader in peers else first
        way = (one, next(peer for peer in shuffled if peer != one))
        ways = {random.choice((way, way[::-1]))}
    elif shape == "all apart":
        ways = set(itertools.permutations(shuffled, 2))
    else:
        away = random.choice((CLIENTS, CLIENTS[:1], CLIENTS[1:]))
        return f"clients away: {first}, {','.join(away)}", _between([first], away)
    words = f"{shape}: {','.join(shuffled)}"
    if shape in ("one away", "half"):
        count = 1 if shape == "one away" else len(peers) // 2
        for node in CLIENTS:
            # On one side, on the other, or on both.
            apart = random.choice((shuffled[:count], shuffled[count:], []))
            ways |= _between([node], apart)
            words += f"; {node} without {','.join(apart) or '-'}"
    return words, ways


def _between(some: Sequence[str], others: Sequence[str]) -> set[Way]:
    ways = set(itertools.product(some, others))
    return ways | {(target, source) for source, target in ways}


# --- all of them ----------------------------------------------------------------------------------------------------


class Faults:
    """Brings about the faults of one run. ``say`` hears what was done."""

    def __init__(
        self,
        cluster: Cluster,
        clients: Clients,
        network: Network,
        disks: dict[str, Path],
        clocks: dict[str, Clock],
        say: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._clients = clients
        self._network = network
        self._disks = disks
        self._clocks = clocks
        self._say = say
        #: When there is no more patience with faults that have not happened.
        self._patience_ends = math.inf
        self._changing = threading.Lock()
        #: The peer that is being removed.
        self._leaving: str | None = None
        #: What at most one fault at a time may be done to: (kind, whom).
        self._taken: set[tuple[str, str]] = set()
        self._taking = threading.Lock()
        self._traces = itertools.count()
        self._next_spare = iter(list(cluster.spares))
        self._brought_about = {
            "kill": self._kill,
            "kill of a minority": self._kill,
            "kill of all": self._kill,
            "pause": self._pause,
            "partition": self._partition,
            "slow disk": self._slow_disk,
            "failing sync": self._failing_sync,
            "full disk": self._full_disk,
            "clock step": self._clock_step,
            "change of members": self._change_members,
            "hanging client": self._hang_client,
        }

    def begin(self, seconds: float) -> None:
        """All faults begin and end within so many seconds from now, but for those that something is in the way of."""
        self._patience_ends = time.monotonic() + seconds + _PATIENCE_S

    def bring_about(self, fault: Fault) -> None:
        """From its beginning, which is now, to its end. Raises ChaosError when it does not happen."""
        self._brought_about[fault.kind](fault, Random(fault.number), time.monotonic() + fault.duration)

    # --- choices ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _one(self, kind: str, candidates: Callable[[], Sequence[str]], random: Random) -> Iterator[str]:
        """One that nothing of this kind is being done to, waited for."""
        while True:
            found = list(candidates())
            with self._taking:
                free = [each for each in found if (kind, each) not in self._taken]
                if free:
                    chosen = random.choice(free)
                    self._taken.add((kind, chosen))
                    break
            if time.monotonic() > self._patience_ends:
                raise ChaosError(f"nobody for a {kind}")
            time.sleep(_PAUSE_S)
        try:
            yield chosen
        finally:
            with self._taking:
                self._taken.remove((kind, chosen))

    def _leader_or_any(self, random: Random, *, members_only: bool = False) -> Callable[[], list[str]]:
        """Candidates: the leader, in half of all cases; else all that run."""
        wants_leader = random.random() < 0.5

        def candidates() -> list[str]:
            found = self._cluster.running()
            if members_only:
                # Who is not, or will not be, does not write.
                found = [each for each in found if each in self._cluster.members and each != self._leaving]
            leader = self._cluster.leader() if wants_leader else None
            return [leader] if leader in found else found

        return candidates

    # --- processes --------------------------------------------------------------------------------------------------

    def _kill(self, fault: Fault, random: Random, end: float) -> None:
        candidates = self._leader_or_any(random)
        killed: list[str] = []
        while not killed:
            running = self._cluster.running()
            count = {"kill": 1, "kill of a minority": (len(self._cluster.members) - 1) // 2}.get(
                fault.kind, len(running)
            )
            chosen = [random.choice(found)] if (found := candidates()) else []
            rest = [peer_id for peer_id in random.sample(running, len(running)) if peer_id not in chosen]
            killed = [peer_id for peer_id in (chosen + rest)[:count] if self._cluster.kill(peer_id)]
            if time.monotonic() > self._patience_ends:
                raise ChaosError("nobody to kill")
            time.sleep(_PAUSE_S)
        self._say(f"killed {', '.join(killed)}")
        _sleep_until(end)
        self._cluster.begin(*killed)
        self._say(f"started {', '.join(killed)}")

    def _pause(self, fault: Fault, random: Random, end: float) -> None:
        with self._one(fault.kind, self._leader_or_any(random), random) as peer_id:
            process = self._running_process(peer_id).process
            process.send_signal(signal.SIGSTOP)
            while not is_stopped(process.pid):
                self._check_patience(f"{peer_id} to be paused")
                if process.poll() is not None:
                    # Somebody has killed it at the same moment.
                    process = self._running_process(peer_id).process
                    process.send_signal(signal.SIGSTOP)
                time.sleep(_PAUSE_S)
            self._say(f"paused {peer_id}")
            _sleep_until(end)
            process.send_signal(signal.SIGCONT)
            self._say(f"{peer_id} goes on")

    def _hang_client(self, fault: Fault, random: Random, end: float) -> None:
        with self._one(fault.kind, lambda: self._clients.kinds, random) as kind:
            self._clients.signal(kind, signal.SIGSTOP)
            pid = self._clients.pid(kind)
            wait_until(lambda: is_stopped(pid), self._patience_ends, "a client that hangs")
            self._say(f"clients of {kind} hang")
            _sleep_until(end)
            self._clients.signal(kind, signal.SIGCONT)

    def _running_process(self, peer_id: str) -> PeerProcess:
        """The process of a peer, waited for while somebody else has ended it."""
        while (process := self._cluster.process(peer_id)) is None:
            if time.monotonic() > self._patience_ends:
                raise ChaosError(f"peer {peer_id} does not come back")
            time.sleep(_PAUSE_S)
        return process

    # --- the network ------------------------------------------------------------------------------------------------

    def _partition(self, fault: Fault, random: Random, end: float) -> None:
        peers = self._cluster.members
        leader = self._cluster.leader()
        words, ways = partition(random, peers, leader)
        cut = self._network.block(ways)
        try:
            self._say(f"partition, {words}")
            _sleep_until(end)
            # What is cut may be silent, as long as nobody leads.
            wait_until(cut.stopped, self._patience_ends, f"something to be stopped by a partition ({words})")
            self._say(f"partition ends, {words}: stopped {cut.stopped()}")
        finally:
            cut.lift()

    # --- disks ------------------------------------------------------------------------------------------------------

    def _slow_disk(self, fault: Fault, random: Random, end: float) -> None:
        delay_ms = int(10 * 100 ** random.random())
        options = ["-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_enter={delay_ms}ms"]
        with self._one("trace", self._leader_or_any(random, members_only=True), random) as peer_id:
            self._say(f"slow disk of {peer_id}: {delay_ms} ms")
            delayed = 0
            while time.monotonic() < end or not delayed:
                with self._traced(peer_id, options) as tracer:
                    while tracer.is_attached and (time.monotonic() < end or not tracer.injected()):
                        self._check_patience(f"a sync of {peer_id} to be slow")
                        time.sleep(_PAUSE_S)
                    delayed += tracer.injected()
            self._say(f"disk of {peer_id} is as before: {delayed} syncs were slow")

    def _failing_sync(self, fault: Fault, random: Random, end: float) -> None:
        options = [
            "-e",
            "trace=fdatasync,fsync",
            "-e",
            f"inject=fdatasync,fsync:error=EIO:when={random.randint(1, 5)}+",
        ]
        with self._one("trace", self._leader_or_any(random, members_only=True), random) as peer_id:
            # Not with a full disk of the same peer, which it would end of as well.
            with self._one("end", lambda: [peer_id], random), self._cluster.may_end(peer_id, "Input/output error"):
                while True:
                    self._running_process(peer_id)
                    with self._traced(peer_id, options) as tracer:
                        while tracer.is_attached and self._cluster.process(peer_id) is not None:
                            self._check_patience(f"a sync of {peer_id} to fail")
                            time.sleep(_PAUSE_S)
                        if tracer.injected():
                            break
                # If somebody has killed it at the same moment, that is as good.
                wait_until(lambda: self._has_ended(peer_id), self._patience_ends, f"the end of {peer_id}")
            self._say(f"a sync of {peer_id} has failed")
            _sleep_until(end)
            self._cluster.begin(peer_id)

    def _has_ended(self, peer_id: str) -> bool:
        return self._cluster.process(peer_id) is None

    @contextlib.contextmanager
    def _traced(self, peer_id: str, options: Sequence[str]) -> Iterator[Tracer]:
        while True:
            process = self._running_process(peer_id)
            output = self._cluster.directory / f"strace-{next(self._traces)}"
            tracer = Tracer(process.process.pid, options, output)
            try:
                tracer.__enter__()
                break
            except ChaosError:
                # It has just been killed.
                self._check_patience(f"{peer_id} to be traced")
                time.sleep(_PAUSE_S)
        try:
            yield tracer
        finally:
            tracer.__exit__()

    def _full_disk(self, fault: Fault, random: Random, end: float) -> None:
        peer_id = fault.victim or ""
        ballast = self._disks[peer_id] / "ballast"
        with (
            self._one("end", lambda: [peer_id], random),
            self._cluster.may_end(peer_id, "No space left on device"),
        ):
            running = self._running_process(peer_id)
            _fill(ballast)
            self._say(f"full disk of {peer_id}")
            try:
                while not running.has_said("No space left on device"):
                    running = self._cluster.process(peer_id) or running
                    self._check_patience(f"{peer_id} to meet its full disk")
                    time.sleep(_PAUSE_S)
                _sleep_until(end)
            finally:
                ballast.unlink()
            # It may have been started again, and be about to end.
            wait_until(lambda: self._has_ended(peer_id) or self._cluster.kill(peer_id), self._patience_ends, "its end")
        self._cluster.begin(peer_id)
        self._say(f"disk of {peer_id} has room again")

    # --- clocks -----------------------------------------------------------------------------------------------------

    def _clock_step(self, fault: Fault, random: Random, end: float) -> None:
        least, most = _STEP_S
        seconds = random.choice((1, -1)) * least * (most / least) ** random.random()
        with self._one(fault.kind, lambda: [fault.victim or ""], random) as peer_id:
            clock = self._clocks[peer_id]
            clock.set(seconds)
            self._say(f"clock of {peer_id}: {seconds:+.1f} s")
            try:
                _sleep_until(end)
                wait_until(clock.was_read, self._patience_ends, f"{peer_id} to look at its clock")
            finally:
                clock.set(0)
            self._say(f"clock of {peer_id} is right again")

    # --- members ----------------------------------------------------------------------------------------------------

    def _change_members(self, fault: Fault, random: Random, end: float) -> None:
        """Add, remove or replace one; for one operator at a time."""
        if not self._changing.acquire(timeout=self._patience_ends - time.monotonic()):
            raise ChaosError("another change of the members takes for ever")
        try:
            members = self._cluster.members
            what = random.choice(["add", "replace"] if len(members) <= 3 else ["remove", "remove", "replace"])
            removed = [] if what == "add" else self._take_to_remove(random, members)
            added = [] if what == "remove" and removed else [next(self._next_spare)]
            new = [peer_id for peer_id in members if peer_id not in removed] + added
            self._cluster.begin(*added)
            self._say(f"change of members: without {','.join(removed) or '-'}, with {','.join(added) or '-'}")
            self._update_members(new)
            self._cluster.members = new
            self._say(f"members are {','.join(new)}")
        finally:
            self._leaving = None
            self._changing.release()

    def _take_to_remove(self, random: Random, members: list[str]) -> list[str]:
        """One member, the leader perhaps; none when something is being done to the disks of all: a peer that does not
        write does not feel that."""
        leader = self._cluster.leader()
        with self._taking:
            busy = {peer_id for kind, peer_id in self._taken if kind in ("trace", "end")} | set(self._disks)
            free = [peer_id for peer_id in members if peer_id not in busy]
            if free:
                self._leaving = leader if leader in free and random.random() < 0.5 else random.choice(free)
        return [self._leaving] if self._leaving is not None else []

    def _update_members(self, members: list[str]) -> None:
        peers = [(peer_id, self._network.url(peer_id)) for peer_id in members]
        request_id = new_request_id()
        with ZmqRaftClient(self._cluster.urls, secret=SECRET) as client:
            while True:
                self._check_patience("a change of the members")
                try:
                    client.request_config_update(request_id, peers, deadline_s=_CHANGE_S)
                    return
                except RequestTimeoutError:
                    continue
                except ConfigUpdateInProgressError:
                    time.sleep(_PAUSE_S)
                except RequestExpiredError:
                    # The leader's clock is elsewhere. An earlier try may have got through, and be going on.
                    request_id = new_request_id()
                    time.sleep(_PAUSE_S)
                except ConfigUpdateRefusedError as error:
                    if "no change" in error.reason:
                        return
                    raise

    def _check_patience(self, what: str) -> None:
        if time.monotonic() > self._patience_ends:
            raise ChaosError(f"in vain: {what}")


def _fill(ballast: Path) -> None:
    """Take all the room that is left."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(ballast.parent).free)
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 10):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def _sleep_until(end: float) -> None:
    time.sleep(max(0.0, end - time.monotonic()))
