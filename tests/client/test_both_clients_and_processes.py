"""The blocking and the asyncio client through SIGKILL, restarts, SIGSTOP and partitions of peers that are processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.both_clients import Clients
from support.command import PATIENCE_S, free_ports, running_peer, write_config
from support.tcp_proxy import Link, Links
from zmqraft.protocol import new_request_id

SECRET = "both clients"
IN_FLIGHT = 100
END = b"end"
SUBSCRIBERS = 50


class Cluster:
    """Three processes, by peer id."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        ports = free_ports(6)
        self.ports = dict(zip("123", ports[:3], strict=True))
        self._publisher_ports = dict(zip("123", ports[3:], strict=True))
        self.urls = [f"tcp://127.0.0.1:{port}" for port in self.ports.values()]
        self._configs: dict[str, Path] = {}
        for peer_id in "123":
            (directory / peer_id).mkdir()
            peers = [
                {
                    "id": other,
                    "url": f"tcp://127.0.0.1:{self.port_seen(peer_id, other)}",
                    "pub": f"tcp://127.0.0.1:{self._publisher_ports[other]}",
                }
                for other in "123"
            ]
            self._configs[peer_id] = write_config(directory / peer_id, peers, secret=SECRET)
        self._stack = stack
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for peer_id in "123":
            self.start(peer_id)

    def port_seen(self, peer_id: str, other: str) -> int:
        """The port at which a peer finds another one, or itself."""
        return self.ports[other]

    def start(self, peer_id: str) -> None:
        config = self._configs[peer_id]
        self.processes[peer_id] = self._stack.enter_context(running_peer(config, peer_id, "--log-level=error"))

    def kill(self, peer_id: str) -> None:
        self.processes[peer_id].send_signal(signal.SIGKILL)
        self.processes[peer_id].wait()

    def signal(self, peer_id: str, number: signal.Signals) -> None:
        self.processes[peer_id].send_signal(number)


class LinkedCluster(Cluster):
    """One whose peers talk over links that can be cut; clients reach them all directly."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._links = stack.enter_context(Links())
        self._ways: dict[frozenset[str], list[Link]] = defaultdict(list)
        super().__init__(directory, stack)

    def port_seen(self, peer_id: str, other: str) -> int:
        if peer_id == other:
            return self.ports[peer_id]
        link = self._links.open(self.ports[other])
        while link.port in {*self.ports.values(), *self._publisher_ports.values()}:
            link = self._links.open(self.ports[other])  # nobody has these yet, so a link may get one
        self._ways[frozenset((peer_id, other))].append(link)
        return link.port

    def cut_off(self, peer_id: str) -> None:
        """Let no peer reach this one, or it others."""
        for pair, links in self._ways.items():
            if peer_id in pair:
                for link in links:
                    self._links.cut(link)

    def restore(self) -> None:
        for link in self._links.links:
            self._links.restore(link)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("cluster"), stack)


@pytest.fixture(params=["blocking", "asyncio"])
def clients(request: pytest.FixtureRequest) -> Clients:
    return Clients(request.param)


async def write(client: Any, name: bytes, written: dict[bytes, int], disturbed: asyncio.Event) -> None:
    """Updates, each with an id of its own and many under way, until everything has happened, and once more."""
    for number in itertools.count():
        last = disturbed.is_set()
        batch = [b"%s %d" % (name, number * IN_FLIGHT + position) for position in range(IN_FLIGHT)]
        futures = [await client.submit_update(data, request_id=new_request_id()) for data in batch]
        for data, future in zip(batch, futures, strict=True):
            written[data] = await future
        if last:
            return


async def follow(subscriber: Any) -> list[bytes]:
    """The data of the entries that clients wrote, in the order of the log, until the last one."""
    received: list[bytes] = []
    previous = subscriber.last_index
    while not received or received[-1] != END:
        entry = await subscriber.get(PATIENCE_S)
        assert entry.index == previous + 1
        previous = entry.index
        received += [entry.data] * entry.is_state
    return received[:-1]


async def leader_id(client: Any) -> str:
    info = await client.request_config()
    assert info.leader_id is not None
    return str(info.leader_id)


async def kill_and_restart(client: Any, cluster: Cluster) -> None:
    killed = await leader_id(client)
    await asyncio.to_thread(cluster.kill, killed)
    await client.request_config()
    await asyncio.to_thread(cluster.start, killed)


async def pause_and_resume(client: Any, cluster: Cluster) -> None:
    """As a partition: the leader stands still until there is another one, then goes on and believes it still leads."""
    paused = await leader_id(client)
    cluster.signal(paused, signal.SIGSTOP)
    try:
        while await leader_id(client) == paused:
            await asyncio.sleep(0.01)
    finally:
        cluster.signal(paused, signal.SIGCONT)


async def cut_off_and_restore(client: Any, cluster: LinkedCluster) -> None:
    """A partition: the leader is alone until there is another one. Whoever asks it waits in vain meanwhile."""
    alone = await leader_id(client)
    cluster.cut_off(alone)
    try:
        while await leader_id(client) == alone:
            await asyncio.sleep(0.01)
    finally:
        cluster.restore()


@pytest.mark.parametrize("disturb", [kill_and_restart, pause_and_resume])
def test_no_update_is_lost_or_doubled_and_subscribers_see_them_all(
    clients: Clients, cluster: Cluster, disturb: Any
) -> None:
    clients.run(go_through(clients, cluster, disturb))


def test_no_update_is_lost_or_doubled_in_a_partition(clients: Clients, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        cluster = LinkedCluster(tmp_path, stack)
        # The links have descriptors here, more and less of them.
        clients.run(go_through(clients, cluster, cut_off_and_restore), count_descriptors=False)


async def go_through(clients: Clients, cluster: Cluster, disturb: Any) -> None:
    """Two write, one follows, and what comes out is compared."""
    written: dict[bytes, int] = {}
    async with (
        clients.ZmqRaftClient(cluster.urls, secret=SECRET, deadline_s=PATIENCE_S) as client,
        clients.ZmqRaftClient(cluster.urls[::-1], secret=SECRET, deadline_s=PATIENCE_S, sndhwm=100) as other,
    ):
        before = await client.request_update(None, b"before")
        async with clients.ZmqRaftSubscriber(cluster.urls, secret=SECRET, last_index=before) as subscriber:
            disturbed = asyncio.Event()
            following = asyncio.ensure_future(follow(subscriber))
            writing = asyncio.gather(
                *(write(each, name, written, disturbed) for each, name in ((client, b"a"), (other, b"b")))
            )
            await disturb(other, cluster)
            disturbed.set()
            await writing
            await client.request_update(None, END)
            received = await following
            searches = client.counters.searches + client.counters.leaders
        assert searches > 1, "it went on as if nothing had happened"
        async with client.request_entries(before) as entries:
            log = {entry.index: entry.data async for entry in entries if entry.is_state and entry.data != END}
    assert sorted(received) == sorted(written)
    assert {index: data for data, index in written.items()} == log
    assert list(log.values()) == received


def test_many_subscribers_see_every_entry_through_the_loss_of_the_leader(cluster: Cluster) -> None:
    clients = Clients("asyncio")

    async def scenario() -> None:
        written: dict[bytes, int] = {}
        disturbed = asyncio.Event()
        async with (
            clients.ZmqRaftClient(cluster.urls, secret=SECRET, deadline_s=PATIENCE_S) as client,
            contextlib.AsyncExitStack() as stack,
        ):
            before = await client.request_update(None, b"before")
            subscribers = [
                await stack.enter_async_context(
                    clients.ZmqRaftSubscriber(cluster.urls, secret=SECRET, last_index=before)
                )
                for _ in range(SUBSCRIBERS)
            ]
            following = [asyncio.ensure_future(follow(subscriber)) for subscriber in subscribers]
            writing = asyncio.ensure_future(write(client, b"a", written, disturbed))
            while any(subscriber.last_index == before for subscriber in subscribers):
                await asyncio.sleep(0.01)
            await kill_and_restart(client, cluster)
            disturbed.set()
            await writing
            await client.request_update(None, END)
            received = await asyncio.gather(*following)
            for subscriber in subscribers:
                assert subscriber.counters.searches + subscriber.counters.leaders > 1, (
                    "it went on as if nothing had happened"
                )
        in_order = sorted(written, key=lambda data: written[data])
        assert received == [in_order] * SUBSCRIBERS

    clients.run(scenario())
