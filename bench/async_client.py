"""Concurrent updates through the asyncio client, beside the blocking one, in the same run.

    python bench/async_client.py --concurrent 1000 --seconds 2 --rounds 3

Three peers in processes of their own; in this process, in turns, coroutines that each call ``request_update`` in a
loop on one asyncio client, and futures of one blocking client of which as many are kept in flight. The issue's aim:
25,000 updates/s with 1,000 concurrent coroutines on two cores, peers included.
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
from collections.abc import Callable
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


async def asyncio_updates(urls: list[str], concurrent: int, seconds: float) -> float:
    """Updates/s of so many coroutines."""
    async with zmqraft.asyncio.ZmqRaftClient(urls, secret=SECRET, sndhwm=SNDHWM, deadline_s=60) as client:
        await client.request_update(None, DATA)
        began = time.perf_counter()

        async def update() -> int:
            count = 0
            while time.perf_counter() - began < seconds:
                await client.request_update(None, DATA)
                count += 1
            return count

        total = sum(await asyncio.gather(*(update() for _ in range(concurrent))))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrent", type=int, default=1000, metavar="N")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    arguments = parser.parse_args()
    concurrent, seconds = arguments.concurrent, arguments.seconds
    measure: dict[str, Callable[[list[str]], float]] = {
        "asyncio": lambda urls: asyncio.run(asyncio_updates(urls, concurrent, seconds)),
        "blocking": lambda urls: blocking_updates(urls, concurrent, seconds),
    }
    rates: dict[str, list[float]] = {name: [] for name in measure}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        peers = [[str(number), f"tcp://127.0.0.1:{port}"] for number, port in enumerate(free_ports(3), 1)]
        config = write_config(Path(directory), peers, secret=SECRET)
        for peer_id, _ in peers:
            stack.enter_context(running_peer(config, peer_id))
        for _ in range(arguments.rounds):
            for name, run in measure.items():
                rates[name].append(run([url for _, url in peers]))
    print(f"{concurrent} concurrent updates of {len(DATA)} bytes, median of {arguments.rounds} rounds:")
    for name, found in rates.items():
        print(f"  {name:8} {statistics.median(found):10,.0f} updates/s ({min(found):,.0f} to {max(found):,.0f})")
    ratios = [one / other for one, other in zip(rates["asyncio"], rates["blocking"], strict=True)]
    print(f"  asyncio / blocking: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
