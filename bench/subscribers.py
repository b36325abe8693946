"""How fast a leader's subscribers see what is committed, beside the same frames between bare sockets.

    python -m bench.subscribers --subscribers 1 50 --rounds 3 --json FILE

In each round, in turns, with as many processes of subscribers as there are cores:

- updates: three peers commit updates of 128 bytes, 1,024 of them in flight, and asyncio subscribers follow;
- broadcast: the same subscribers of a peer whose `BroadcastStateMachine` gets such batches, with nothing to commit;
- bare: those frames out of a PUB into SUB sockets, libzmq called directly, and nothing done with them.

Who publishes without committing stays a few messages ahead of the slowest subscriber, so that none is dropped. The
rule: every subscriber checks that each entry follows on the one before it, to the last, and that the updates are those
that were made.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import zmq

import zmqraft.asyncio
from bench import machine, report
from bench.feeding import STEADY, Feed, update_at
from bench.processes import HOST, BenchError, cpu_s, exit_on_signals, free_ports
from bench.programs import Programs
from bench.systems import SECRET, ZmqRaft
from zmqraft import BroadcastStateMachine, DataSettings, EntryBatch, EntryType, PeerAddress, Settings, build_peer
from zmqraft.constants import REQUEST_ID_NONE
from zmqraft.protocol.frames import decode_uint, encode_entry
from zmqraft.protocol.schema import Protocols
from zmqraft.protocol.zmq_io import receive_messages, send_message

_SPAWN = multiprocessing.get_context("spawn")
_PATIENCE_S = 120.0
_PAUSE_S = 0.0005
_RECEIVE_MAX = 500
#: So many entries may be published that the slowest subscriber does not have.
_AHEAD_MAX = 20_000
#: The first entry is published again after this, until every subscriber is there and has it.
_AGAIN_S = 0.02


class Subscribers:
    """So many subscribers in processes of their own, and how far each of them is."""

    def __init__(self, follow: Callable[..., None], count: int, *arguments: Any) -> None:
        """``follow(numbers, positions, sizes, *arguments)`` runs in each process: it follows with the subscribers of
        these numbers, writes down their last index, and in the end puts into ``sizes`` how many entries came together.
        """
        self.positions = _SPAWN.Array("q", count, lock=False)
        #: Set when the processes may end.
        self.over = _SPAWN.Event()
        self._sizes: Any = _SPAWN.Queue()
        processes = min(count, len(os.sched_getaffinity(0)))
        shares = [range(number, count, processes) for number in range(processes)]
        self._processes: list[BaseProcess] = [
            _SPAWN.Process(target=_follow, args=(follow, self.over, share, self.positions, self._sizes, *arguments))
            for share in shares
        ]

    def __enter__(self) -> Subscribers:
        for process in self._processes:
            process.daemon = True
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.over.set()
        for process in self._processes:
            if error is not None:
                process.kill()
            process.join()

    def wait(self, index: int) -> None:
        """Until all have the entry. BenchError when one fails, or it takes too long."""
        deadline = time.monotonic() + _PATIENCE_S
        while min(self.positions) < index:
            if any(process.exitcode for process in self._processes):
                raise BenchError("a subscriber failed")
            if time.monotonic() > deadline:
                raise BenchError(f"entry {index} did not come; the subscribers are at {list(self.positions)}")
            time.sleep(_PAUSE_S)

    def cpu_s(self) -> float:
        """The processor time that they have used so far."""
        return sum(cpu_s(process.pid) for process in self._processes if process.pid is not None)

    def sizes(self) -> list[int]:
        """How many entries came together, at one of them."""
        found: list[int] = self._sizes.get(timeout=_PATIENCE_S)
        return found


def _follow(follow: Callable[..., None], over: Any, *arguments: Any) -> None:
    follow(*arguments)
    over.wait(_PATIENCE_S)


# --- who follows ----------------------------------------------------------------------------------------------------


def follow_log(numbers: range, positions: Any, sizes: Any, urls: list[str], first: int, last: int, check: bool) -> None:
    """Subscribers to the log, in one event loop."""

    async def follow(number: int, found: list[int]) -> None:
        position = first - 1
        async with zmqraft.asyncio.ZmqRaftSubscriber(urls, secret=SECRET, last_index=position) as subscriber:
            while position < last:
                batch = await subscriber.get_batch(_PATIENCE_S)
                assert isinstance(batch, EntryBatch)
                assert batch.first_index == position + 1, (batch.first_index, position)
                if check and batch.first_index > first:
                    for at in (0, len(batch) - 1):
                        assert batch.payload(at) == update_at(batch.first_index + at)
                positions[number] = position = batch.last_index
                found.append(len(batch))

    async def all_of_them() -> None:
        found: list[list[int]] = [[] for _ in numbers]
        await asyncio.gather(*map(follow, numbers, found))
        sizes.put(found[0])

    asyncio.run(all_of_them())


def receive_frames(numbers: range, positions: Any, sizes: Any, url: str, first: int, last: int) -> None:
    """SUB sockets, in one loop."""
    with zmq.Context() as context:
        sockets = {context.socket(zmq.SUB): number for number in numbers}
        poller = zmq.Poller()
        for socket in sockets:
            socket.connect(url)
            socket.subscribe(SECRET.encode())
            poller.register(socket, zmq.POLLIN)
        while min(positions[number] for number in numbers) < last:
            for socket, _ in poller.poll():
                for message in receive_messages(socket, _RECEIVE_MAX):
                    positions[sockets[socket]] = decode_uint(message[2])
        for socket in sockets:
            socket.close(0)
    sizes.put([])


# --- who publishes without committing -------------------------------------------------------------------------------


class Flood:
    """Which batches are to be published now: the first entry, again and again, until every subscriber has it, and then,
    as soon as that is wanted, all up to the last."""

    def __init__(self, sizes: Sequence[int], first: int, last: int, positions: Any, wanted: Any) -> None:
        entry = encode_entry(REQUEST_ID_NONE, EntryType.STATE, 1, update_at(first))
        self._batch = EntryBatch.from_frames(first, [entry] * max(sizes))
        self._sizes = cycle(sizes)
        self._next, self._last = first, last
        self._positions, self._wanted = positions, wanted
        self._again_at = 0.0

    def due(self) -> Iterator[EntryBatch]:
        """What is to be published now."""
        if not self._wanted.is_set():
            if min(self._positions) < self._next and time.monotonic() > self._again_at:
                self._again_at = time.monotonic() + _AGAIN_S
                yield self._batch.slice(self._next, self._next)
            return
        if self._next == self._batch.first_index:
            self._next += 1
        while self._next <= min(self._last, min(self._positions) + _AHEAD_MAX):
            batch = self._batch.with_first_index(self._next).slice(
                self._next, min(self._next + next(self._sizes) - 1, self._last)
            )
            self._next = batch.last_index + 1
            yield batch


class Publisher(BroadcastStateMachine):
    """Publishes, while its peer leads, what a flood says, in the peer's thread, as what is applied there."""

    def __init__(self, url: str, flood: Flood) -> None:
        super().__init__(url)
        self._flood = flood

    def tick(self, now: float) -> float | None:
        if self._leads:
            for batch in self._flood.due():
                self.apply_entries(batch, self._term)
        super().tick(now)
        return now + _PAUSE_S


def publish_as_peer(settings: Settings, over: Any, *arguments: Any) -> None:
    """A process: a peer alone in its cluster."""
    flood = Flood(*arguments)
    with build_peer(settings, state_machine=lambda own: Publisher(str(own.broadcast.url), flood)):
        over.wait(_PATIENCE_S)


def publish_bare(url: str, over: Any, *arguments: Any) -> None:
    """A process: a PUB socket."""
    flood = Flood(*arguments)
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.linger = 0
        socket.bind(url)
        while not over.is_set():
            for batch in flood.due():
                head = Protocols.STATE_BROADCAST.encode_request(SECRET.encode(), 1, batch.last_index)
                send_message(socket, head, batch)
            time.sleep(_PAUSE_S)


# --- measurements: entries/s, from the first update to the last subscriber --------------------------------------------


@dataclass(frozen=True)
class Rate:
    """Entries/s that every subscriber got, and the processor time that they and the publisher used for an entry."""

    per_s: float
    cpu_us: float


@dataclass(frozen=True)
class Round:
    """One of each, with messages of so many entries on the average."""

    updates: Rate
    broadcast: Rate
    bare: Rate
    entries_of_message: float


def measure_updates(directory: Path, subscribers: int, count: int) -> tuple[Rate, list[int]]:
    """With a whole cluster; and how many entries came in each message."""
    # The load comes from here.
    system = ZmqRaft(Programs(Path(), Path()), pure=not zmqraft.EXTENSIONS, **STEADY)
    with system.running(directory) as running, Feed(running.leader().url, SECRET) as feed:
        first = feed.last_index
        following = Subscribers(follow_log, subscribers, running.urls, first, first + count, True)
        with following:
            following.wait(first)
            pids = [peer.process.pid for peer in running.peers]
            rate = _measure(following, pids, partial(feed.update, count), first, first + count)
            return rate, following.sizes()


def measure_broadcast(directory: Path, subscribers: int, count: int, sizes: Sequence[int]) -> Rate:
    """With a peer that publishes without committing."""
    url, publisher_url = (f"tcp://{HOST}:{port}" for port in free_ports(2))
    # The entry behind those that a peer has when it leads.
    first = 2
    following = Subscribers(follow_log, subscribers, [url], first, first + count, False)
    with tempfile.TemporaryDirectory(dir=directory) as data:
        peers = (PeerAddress("1", url, pub=publisher_url),)
        settings = Settings(id="1", secret=SECRET.encode(), peers=peers, data=DataSettings(Path(data)))
        return _measure_flood(following, publish_as_peer, settings, sizes, first, first + count)


def measure_bare(subscribers: int, count: int, sizes: Sequence[int]) -> Rate:
    """With a PUB and SUB sockets."""
    (port,) = free_ports(1)
    url = f"tcp://{HOST}:{port}"
    following = Subscribers(receive_frames, subscribers, url, 1, 1 + count)
    return _measure_flood(following, publish_bare, url, sizes, 1, 1 + count)


def _measure_flood(
    following: Subscribers, publish: Callable[..., None], to: Any, sizes: Sequence[int], first: int, last: int
) -> Rate:
    wanted = _SPAWN.Event()
    arguments = (to, following.over, sizes, first, last, following.positions, wanted)
    publishing = _SPAWN.Process(target=publish, args=arguments, daemon=True)
    publishing.start()
    try:
        with following:
            following.wait(first)
            rate = _measure(following, [publishing.pid or 0], wanted.set, first, last)
        publishing.join(_PATIENCE_S)
        return rate
    finally:
        publishing.kill()
        publishing.join()


def _measure(following: Subscribers, pids: Sequence[int], begin: Callable[[], object], first: int, last: int) -> Rate:
    """From ``begin`` until all subscribers, which have the first entry, have the last."""

    def used_s() -> float:
        return following.cpu_s() + sum(map(cpu_s, pids))

    used, began = used_s(), time.perf_counter()
    begin()
    following.wait(last)
    elapsed_s = time.perf_counter() - began
    return Rate((last - first) / elapsed_s, (used_s() - used) / (last - first) * 1e6)


def measure_round(directory: Path, subscribers: int, count: int, deliveries: int) -> Round:
    """One of each, with the same messages."""
    updates, sizes = measure_updates(directory, subscribers, count)
    many = max(count, deliveries // subscribers)
    broadcast = measure_broadcast(directory, subscribers, many, sizes)
    return Round(updates, broadcast, measure_bare(subscribers, many, sizes), sum(sizes) / len(sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, nargs="+", default=[1, 50], metavar="N")
    parser.add_argument("--updates", type=int, default=40_000, metavar="N", help="in each round")
    parser.add_argument(
        "--deliveries", type=int, default=2_000_000, metavar="N", help="entries of a round without updates, at least"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--data", type=Path, metavar="DIRECTORY", help="where the data of the peers goes, on a disk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    arguments = parser.parse_args()
    exit_on_signals()
    rounds: dict[int, list[Round]] = {count: [] for count in arguments.subscribers}
    with tempfile.TemporaryDirectory(dir=arguments.data) as directory:
        about = machine.describe(Path(directory))
        for _ in range(arguments.rounds):
            for count, measured in rounds.items():
                try:
                    measured.append(measure_round(Path(directory), count, arguments.updates, arguments.deliveries))
                except BenchError as error:  # as when the leader does not keep its office on a busy machine
                    print(f"a round with {count} subscribers failed: {error}", file=sys.stderr)
    print("Entries/s that each subscriber got, and processor time for an entry: medians of the rounds.")
    print("In brackets: of what the bare sockets did, in each round.\n")
    header = ["subscribers", "bare", "broadcast", "updates", "entries a message"]
    print(report.markdown_table(header, [_row(count, measured) for count, measured in rounds.items() if measured]))
    for name, value in about.items():
        print(f"{name}: {value}")
    if arguments.json is not None:
        figures = [{"subscribers": count, "rounds": list(map(asdict, measured))} for count, measured in rounds.items()]
        report.write_json(arguments.json, {"machine": about, "rows": figures})


def _row(count: int, rounds: Sequence[Round]) -> list[str]:
    def cell(name: str) -> str:
        rates: list[Rate] = [getattr(each, name) for each in rounds]
        text = f"{median(rate.per_s for rate in rates):,.0f}, {median(rate.cpu_us for rate in rates):.1f} us"
        if name == "bare":
            return text
        shares = [rate.per_s / each.bare.per_s for rate, each in zip(rates, rounds, strict=True)]
        return f"{text} ({median(shares):.2f}, {min(shares):.2f} to {max(shares):.2f})"

    together = median(each.entries_of_message for each in rounds)
    return [str(count), cell("bare"), cell("broadcast"), cell("updates"), f"{together:,.0f}"]


if __name__ == "__main__":
    main()
