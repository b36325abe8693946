"""How fast clients read the log with RequestEntries, beside the same frames between bare sockets.

    python -m bench.entries --entries 200000 --rounds 3 --json FILE

Three peers have the log; in each round, in turns, this process reads all of it from the leader, in batches:

- blocking and asyncio: the clients' ``request_entries``;
- bare: a ROUTER sends as many frames of the same sizes, in as many messages, to a DEALER that acknowledges each, of
  which five at most are under way, as in the protocol; libzmq called directly, and nothing done with the frames;
- bare, unasked: without acknowledgements, as fast as they fit into the sockets.

The rule: every entry of the log must come, each behind the one before it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import zmq

import zmqraft.asyncio
from bench import machine, report
from bench.feeding import STEADY, Feed, update_at
from bench.processes import HOST, BenchError, cpu_s, exit_on_signals, free_ports
from bench.programs import Programs
from bench.systems import SECRET, ZmqRaft
from zmqraft import EntryBatch, EntryType, SnapshotChunk
from zmqraft.constants import ENTRIES_MORE, PEER_MSG_DATA_SIZE, REQUEST_ENTRIES_PIPELINES, REQUEST_ID_NONE
from zmqraft.protocol.frames import encode_entry
from zmqraft.protocol.schema import Protocols
from zmqraft.protocol.zmq_io import receive_messages, send_message

_PATIENCE_S = 120.0
_RECEIVE_MAX = 500
_ENTRY = encode_entry(REQUEST_ID_NONE, EntryType.STATE, 1, update_at(1))
#: The entries of one reply: as many as fit.
_TOGETHER = PEER_MSG_DATA_SIZE // len(_ENTRY)
_HEAD = [REQUEST_ID_NONE, *Protocols.REQUEST_ENTRIES.encode_response(ENTRIES_MORE, None, 1 << 24)]
_ACKNOWLEDGEMENT = [REQUEST_ID_NONE, *Protocols.REQUEST_ENTRIES.encode_request(b"<", SECRET.encode(), 1 << 24, None)]


class _Reader:
    """Takes batches, and checks that they are the log from its beginning."""

    def __init__(self) -> None:
        self.last_index = 0

    def take(self, batch: EntryBatch | SnapshotChunk) -> None:
        if not isinstance(batch, EntryBatch) or batch.first_index != self.last_index + 1:
            raise BenchError(f"behind entry {self.last_index} came {batch!r:.200}")
        self.last_index = batch.last_index


#: Called when a reader is connected.
Begin = Callable[[], object]


def read_blocking(urls: list[str], begin: Begin) -> int:
    """All entries; how many."""
    reader = _Reader()
    with zmqraft.ZmqRaftClient(urls, secret=SECRET, deadline_s=_PATIENCE_S) as client:
        client.request_config()
        begin()
        with client.request_entries() as stream:
            for batch in stream.batches():
                reader.take(batch)
    return reader.last_index


def read_asyncio(urls: list[str], begin: Begin) -> int:
    """All entries; how many."""

    async def read() -> int:
        reader = _Reader()
        async with zmqraft.asyncio.ZmqRaftClient(urls, secret=SECRET, deadline_s=_PATIENCE_S) as client:
            await client.request_config()
            begin()
            async with client.request_entries() as stream:
                async for batch in stream.batches():
                    reader.take(batch)
        return reader.last_index

    return asyncio.run(read())


# --- bare sockets ---------------------------------------------------------------------------------------------------


def serve(url: str, messages: int) -> None:
    """A process: sends so many messages to whoever asks, a few at once and one for each further request."""
    batch = EntryBatch.from_frames(1, [_ENTRY] * _TOGETHER)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(url)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        left = 0
        while True:
            for identity, *request in receive_messages(router, _RECEIVE_MAX):
                head = [identity, *_HEAD]
                if request == [b"hello"]:
                    send_message(router, [identity, *request])
                elif len(request) == 1:
                    left = messages
                    for _ in range(REQUEST_ENTRIES_PIPELINES if request[0] == b"asked" else messages):
                        while not send_message(router, head, batch):
                            router.poll(flags=zmq.POLLOUT)
                        left -= 1
                elif left:
                    send_message(router, head, batch)
                    left -= 1
            router.poll()


def read_bare(url: str, messages: int, acknowledges: bool, begin: Begin) -> int:
    """So many messages; how many entries were in them."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(url)
        dealer.send(b"hello")
        dealer.recv_multipart()
        begin()
        dealer.send(b"asked" if acknowledges else b"unasked")
        came = 0
        while came < messages:
            if not dealer.poll(int(_PATIENCE_S * 1000)):
                raise BenchError("no entries came")
            for _ in receive_messages(dealer, _RECEIVE_MAX):
                came += 1
                if acknowledges:
                    send_message(dealer, _ACKNOWLEDGEMENT)
    return came * _TOGETHER


@contextlib.contextmanager
def bare_server(messages: int) -> Iterator[tuple[str, int]]:
    """Its url and process id."""
    (port,) = free_ports(1)
    url = f"tcp://{HOST}:{port}"
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(url, messages), daemon=True)
    process.start()
    try:
        yield url, process.pid or 0
    finally:
        process.kill()
        process.join()


# --- measurements ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """Entries/s, and the processor time of reader and server for an entry."""

    per_s: float
    cpu_us: float


def measure(read: Callable[[Begin], int], server_pid: int) -> Rate:
    """One reading of everything, over a connection that is there."""
    used_s = began = 0.0

    def begin() -> None:
        nonlocal used_s, began
        used_s, began = time.process_time() + cpu_s(server_pid), time.perf_counter()

    count = read(begin)
    elapsed_s = time.perf_counter() - began
    return Rate(count / elapsed_s, (time.process_time() + cpu_s(server_pid) - used_s) / count * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=200_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--data", type=Path, metavar="DIRECTORY", help="where the data of the peers goes, on a disk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    arguments = parser.parse_args()
    exit_on_signals()
    messages = arguments.entries // _TOGETHER + 1
    # The load comes from here.
    system = ZmqRaft(Programs(Path(), Path()), pure=not zmqraft.EXTENSIONS, **STEADY)
    rates: dict[str, list[Rate]] = {}
    with (
        tempfile.TemporaryDirectory(dir=arguments.data) as directory,
        system.running(Path(directory)) as running,
        bare_server(messages) as (bare_url, bare_pid),
    ):
        about = machine.describe(Path(directory))
        leader = running.leader()
        with Feed(leader.url, SECRET) as feed:
            feed.update(arguments.entries)
        ways: dict[str, tuple[Callable[[Begin], int], int]] = {
            "bare": (partial(read_bare, bare_url, messages, True), bare_pid),
            "bare, unasked": (partial(read_bare, bare_url, messages, False), bare_pid),
            "blocking": (partial(read_blocking, running.urls), leader.process.pid),
            "asyncio": (partial(read_asyncio, running.urls), leader.process.pid),
        }
        for _ in range(arguments.rounds):
            for name, (read, pid) in ways.items():
                rates.setdefault(name, []).append(measure(read, pid))
    print(f"Medians of {arguments.rounds} rounds, about {arguments.entries:,} entries of {len(_ENTRY)} bytes\n")
    header = ["", "entries/s", "processor time", "of bare", "of bare, unasked"]
    print(report.markdown_table(header, [_row(name, rates) for name in rates]))
    for name, value in about.items():
        print(f"{name}: {value}")
    if arguments.json is not None:
        figures = {name: list(map(asdict, each)) for name, each in rates.items()}
        report.write_json(arguments.json, {"machine": about, "rates": figures})


def _row(name: str, rates: dict[str, list[Rate]]) -> list[str]:
    def share(other: str) -> str:
        shares = [rate.per_s / base.per_s for rate, base in zip(rates[name], rates[other], strict=True)]
        return f"{median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"

    per_s, cpu_us = (median(getattr(each, field) for each in rates[name]) for field in ("per_s", "cpu_us"))
    return [name, f"{per_s:,.0f}", f"{cpu_us:.2f} us", share("bare"), share("bare, unasked")]


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
