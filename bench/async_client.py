"""Concurrent updates, and linearizable reads, through the asyncio client, beside the blocking one, in the same run.

    python bench/async_client.py --concurrent 1000 --seconds 2 --rounds 3

Three peers in processes of their own; in this process, in turns, coroutines that each call ``request_update`` in a
loop on one asyncio client, and futures of one blocking client of which as many are kept in flight. The issue's aim:
25,000 updates/s with 1,000 concurrent coroutines on two cores, peers included; and three times zmq-raft's own client
against its own peers, which ``--zmq-raft DIRECTORY`` measures too: its node_modules are there, or installed there. That
client gets its updates in one message from this process beforehand, and hands back all indexes in one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import zmqraft
import zmqraft.asyncio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.command import free_ports, running_peer, write_config

SECRET = "bench"
DATA = bytes(128)
#: Both get a send queue of this many messages: the blocking client's default of 2 costs it more than half.
SNDHWM = 1000
#: What zmq-raft's client is given for one measurement.
_ZMQ_RAFT_UPDATES = 10_000


async def asyncio_requests(urls: list[str], concurrent: int, seconds: float, *, reads: bool = False) -> float:
    """Updates/s, or ``read_index``/s, of so many coroutines."""
    async with zmqraft.asyncio.ZmqRaftClient(urls, secret=SECRET, sndhwm=SNDHWM, deadline_s=60) as client:
        await client.request_update(None, DATA)
        began = time.perf_counter()

        async def ask() -> int:
            count = 0
            while time.perf_counter() - began < seconds:
                await (client.read_index() if reads else client.request_update(None, DATA))
                count += 1
            return count

        total = sum(await asyncio.gather(*(ask() for _ in range(concurrent))))
        return total / (time.perf_counter() - began)


def blocking_updates(urls: list[str], concurrent: int, seconds: float) -> float:
    """Updates/s with so many futures in flight."""
    with zmqraft.ZmqRaftClient(urls, secret=SECRET, sndhwm=SNDHWM, deadline_s=60) as client:
        client.request_update(None, DATA)
        began = time.perf_counter()
        under_way: deque[Future[int]] = deque()
        total = 0
        while under_way or not total:
            going = time.perf_counter() - began < seconds
            while going and len(under_way) < concurrent:
                under_way.append(client.submit_update(DATA))
            under_way.popleft().result()
            total += 1
        return total / (time.perf_counter() - began)


@contextlib.contextmanager
def zmq_raft(directory: Path, modules: Path, concurrent: int) -> Iterator[Callable[[list[str]], float]]:
    """Measures updates/s of zmq-raft's own client, with so many in flight, at three peers of its own."""
    from support.mixed_cluster import NODE, MixedCluster
    from support.node import install_modules
    from support.node_clients import NodeClient

    installed = install_modules(modules)
    directory.mkdir()
    with MixedCluster(directory, installed, 3 * NODE) as cluster:

        def measure(_: list[str]) -> float:
            updates = [(zmqraft.new_request_id(), DATA) for _ in range(_ZMQ_RAFT_UPDATES)]
            with NodeClient(installed, cluster.urls, secret=cluster.secret) as client:
                client.request_updates(updates[:1], 1)
                began = time.perf_counter()
                client.request_updates(updates[1:], concurrent)
                return len(updates) / (time.perf_counter() - began)

        yield measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrent", type=int, default=1000, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--zmq-raft", type=Path, metavar="DIRECTORY", help="measure zmq-raft's client as well")
    arguments = parser.parse_args()
    concurrent, seconds = arguments.concurrent, arguments.seconds
    measure: dict[str, Callable[[list[str]], float]] = {
        "asyncio": lambda urls: asyncio.run(asyncio_requests(urls, concurrent, seconds)),
        "asyncio, reads": lambda urls: asyncio.run(asyncio_requests(urls, concurrent, seconds, reads=True)),
        "blocking": lambda urls: blocking_updates(urls, concurrent, seconds),
    }
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        if arguments.zmq_raft is not None:
            theirs = zmq_raft(Path(directory) / "zmq-raft", arguments.zmq_raft.resolve(), concurrent)
            measure["zmq-raft"] = stack.enter_context(theirs)
        rates: dict[str, list[float]] = {name: [] for name in measure}
        peers = [[str(number), f"tcp://127.0.0.1:{port}"] for number, port in enumerate(free_ports(3), 1)]
        config = write_config(Path(directory), peers, secret=SECRET)
        for peer_id, _ in peers:
            stack.enter_context(running_peer(config, peer_id))
        for _ in range(arguments.rounds):
            for name, run in measure.items():
                rates[name].append(run([url for _, url in peers]))
    print(f"{concurrent} concurrent updates of {len(DATA)} bytes, or reads, median of {arguments.rounds} rounds:")
    for name, found in rates.items():
        print(f"  {name:14} {statistics.median(found):10,.0f}/s ({min(found):,.0f} to {max(found):,.0f})")
    for name in list(rates)[2:]:
        ratios = [one / other for one, other in zip(rates["asyncio"], rates[name], strict=True)]
        print(f"  asyncio / {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
