"""The asyncio client against zmq-raft's peers, and what only ours can do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.mixed_cluster import NODE, PYTHON, MixedCluster
from zmqraft import LogEntry, NotSupportedError, RequestExpiredError, new_request_id
from zmqraft.asyncio import ZmqRaftClient, ZmqRaftSubscriber

LONG_S = 60.0


def test_updates_reading_and_following(modules: Path, tmp_path: Path) -> None:
    async def scenario(urls: list[str], secret: str) -> None:
        async with (
            ZmqRaftClient(urls, secret=secret, deadline_s=LONG_S) as client,
            ZmqRaftSubscriber(urls, secret=secret) as subscriber,
        ):
            request_id = new_request_id()
            first = await client.request_update(request_id, b"first")
            assert await client.request_update(request_id, b"first") == first
            indexes = await asyncio.gather(*(client.request_update(None, b"%d" % number) for number in range(300)))
            assert indexes == list(range(first + 1, first + 301))
            with pytest.raises(RequestExpiredError):
                await client.request_update(new_request_id(1_000_000_000), b"old")
            async with client.request_entries() as entries:
                read = [entry async for entry in entries if isinstance(entry, LogEntry)]
            followed: list[LogEntry] = []
            while subscriber.last_index < indexes[-1]:
                entry = await subscriber.get(LONG_S)
                assert isinstance(entry, LogEntry)
                followed.append(entry)
            assert followed[: len(read)] == read

    with MixedCluster(tmp_path, modules, 3 * NODE) as cluster:
        asyncio.run(scenario(list(cluster.urls), cluster.secret))
        cluster.stop()


@pytest.mark.parametrize("kinds", [NODE, PYTHON])
def test_linearizable_reads_are_never_had_in_another_way(modules: Path, tmp_path: Path, kinds: str) -> None:
    """A leader of zmq-raft's cannot confirm; ours can."""

    async def scenario(urls: list[str], secret: str) -> None:
        async with ZmqRaftClient(urls, secret=secret, deadline_s=LONG_S) as client:
            index = await client.request_update(None, b"data")
            for _ in range(2):
                if kinds == PYTHON:
                    assert await client.read_index() == index
                else:
                    with pytest.raises(NotSupportedError):
                        await client.read_index()
                    with pytest.raises(NotSupportedError):
                        await client.request_entries(linearizable=True).__anext__()
            assert await client.request_update(None, b"more") == index + 1

    with MixedCluster(tmp_path, modules, kinds) as cluster:
        asyncio.run(scenario(list(cluster.urls), cluster.secret))
        cluster.stop()
