"""One suite for the blocking clients and those for asyncio, against real peers in this process.

The same behaviour through kills, restarts and pauses of processes is in `test_both_clients_and_processes.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.both_clients import Clients
from support.command import free_ports
from support.fake_peers import fake_peers
from support.local_cluster import SECRET, running_cluster, wait_for
from zmqraft import ZmqRaft
from zmqraft.client import Limits, SnapshotChunk
from zmqraft.constants import CAPABILITIES, READ_INDEX
from zmqraft.errors import (
    ClosedError,
    ConfigurationError,
    LocalProtocolError,
    NotLeaderError,
    NotSupportedError,
    RequestExpiredError,
    RequestTimeoutError,
)
from zmqraft.protocol import Protocols, new_request_id

LONG_S = 60.0
SHORT_S = 0.2


@pytest.fixture(params=["blocking", "asyncio"])
def clients(request: pytest.FixtureRequest) -> Clients:
    return Clients(request.param)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ZmqRaft]]:
    """Three, with election timeouts that leave the leader alone."""
    directory = tmp_path_factory.mktemp("peers")
    with running_cluster(directory, 3, election_timeout_min=3000, election_timeout_max=4000) as running:
        yield running


@pytest.fixture
def urls(peers: list[ZmqRaft]) -> list[str]:
    return [peer.url for peer in peers]


def leader_of(peers: list[ZmqRaft]) -> ZmqRaft:
    wait_for(lambda: [peer for peer in peers if peer.state == "leader"], "a leader")
    return next(peer for peer in peers if peer.state == "leader")


def follower_of(peers: list[ZmqRaft]) -> ZmqRaft:
    return next(peer for peer in peers if peer is not leader_of(peers))


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def drain(items: Any, into: list[Any]) -> None:
    async for item in items:
        into.append(item)


async def data_behind(client: Any, index: int) -> list[bytes]:
    async with client.request_entries(index) as entries:
        return [entry.data async for entry in entries if not isinstance(entry, SnapshotChunk) and entry.is_state]


class TestUpdates:
    def test_the_same_id_gets_into_the_log_once(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                request_id = new_request_id()
                first = await client.request_update(request_id, b"once")
                assert await client.request_update(request_id, bytearray(b"once")) == first
                futures = [await client.submit_update(b"once", request_id=request_id) for _ in range(5)]
                assert [await future for future in futures] == [first] * 5
                assert await client.request_update(None, memoryview(b"next")) == first + 1
                assert await data_behind(client, first - 1) == [b"once", b"next"]
                assert client.leader_url in urls

        clients.run(scenario())

    @pytest.mark.parametrize("sndhwm", [1, 2, 1000])
    def test_thousands_in_flight_keep_their_order(self, clients: Clients, urls: list[str], sndhwm: int) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S, sndhwm=sndhwm) as client:
                before = await client.request_update(None, b"before")
                futures = [await client.submit_update(data) for data in numbers(2000)]
                indexes = [await future for future in futures]
                assert indexes == list(range(before + 1, before + 2001))
                assert await data_behind(client, before) == numbers(2000)

        clients.run(scenario())

    def test_more_than_the_limit_wait_for_room(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            limits = Limits(in_flight_max=3, in_flight_size_max=10)
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S, limits=limits) as client:
                before = await client.request_update(None, b"longer than the limit")
                futures = [await client.submit_update(data) for data in numbers(200)]
                assert [await future for future in futures] == list(range(before + 1, before + 201))

        clients.run(scenario())

    @pytest.mark.parametrize("data", [b"", b"x" * 101, "text", None])
    def test_wrong_data_is_refused_at_once(self, clients: Clients, urls: list[str], data: Any) -> None:
        async def scenario() -> None:
            limits = Limits(data_size_max=100)
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S, limits=limits) as client:
                with pytest.raises(LocalProtocolError):
                    await client.request_update(None, data)

        clients.run(scenario())

    def test_an_id_that_is_too_old(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                with pytest.raises(RequestExpiredError):
                    await client.request_update(new_request_id(1_000_000_000), b"old")

        clients.run(scenario())

    def test_one_peer_that_does_not_lead(self, clients: Clients, peers: list[ZmqRaft]) -> None:
        async def scenario() -> None:
            leader = leader_of(peers)
            async with clients.ZmqRaftPeerClient(follower_of(peers).url, secret=SECRET, deadline_s=LONG_S) as client:
                with pytest.raises(NotLeaderError) as caught:
                    await client.request_update(None, b"data")
                assert caught.value.leader_id == leader.id
                assert (await client.request_config()).leader_id == leader.id
                assert not (await client.request_log_info()).is_leader

        clients.run(scenario())

    def test_a_deadline(self, clients: Clients) -> None:
        async def scenario() -> None:
            url = f"tcp://127.0.0.1:{free_ports(1)[0]}"
            async with clients.ZmqRaftClient(url, secret=SECRET, deadline_s=SHORT_S) as client:
                with pytest.raises(RequestTimeoutError):
                    await client.request_update(None, b"data")
                with pytest.raises(RequestTimeoutError):
                    await client.request_config(deadline_s=0.01)
                with pytest.raises(ConfigurationError):
                    await client.request_config(deadline_s=0)

        clients.run(scenario())

    def test_one_that_is_cancelled_can_be_repeated(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                before = await client.request_update(None, b"before")
                ids = [new_request_id() for _ in range(50)]
                futures = [await client.submit_update(b"data", request_id=request_id) for request_id in ids]
                for future in futures:
                    future.cancel()
                indexes = [await client.request_update(request_id, b"data") for request_id in ids]
                assert len(set(indexes)) == 50
                assert await data_behind(client, before) == [b"data"] * 50

        clients.run(scenario())

    def test_closing_ends_what_is_under_way(self, clients: Clients) -> None:
        async def scenario() -> None:
            url = f"tcp://127.0.0.1:{free_ports(1)[0]}"
            async with clients.ZmqRaftSubscriber(url, secret=SECRET) as client:
                updates = [await client.submit_update(b"data") for _ in range(10)]
                entries = client.request_entries()
                reading = asyncio.ensure_future(entries.__anext__())
                await asyncio.sleep(0)
            for update in [*updates, reading]:
                with pytest.raises(ClosedError):
                    await update
            assert client.closed
            with pytest.raises(ClosedError):
                await client.request_update(None, b"data")

        clients.run(scenario())


class TestManyUpdates:
    @pytest.mark.parametrize("in_flight", [1, 7, 1024])
    def test_indexes_come_in_the_order_of_the_updates(self, clients: Clients, urls: list[str], in_flight: int) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                before = await client.request_update(None, b"before")
                async with client.request_updates(iter(numbers(500)), in_flight) as indexes:
                    assert [index async for index in indexes] == list(range(before + 1, before + 501))
                assert await data_behind(client, before) == numbers(500)

        clients.run(scenario())

    def test_what_the_source_raises_comes_behind_the_indexes_before_it(self, clients: Clients, urls: list[str]) -> None:
        def source() -> Iterator[bytes]:
            yield from numbers(3)
            raise KeyError("the source is broken")

        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                indexes = client.request_updates(source())
                got: list[int] = []
                with pytest.raises(KeyError):
                    await drain(indexes, got)
                assert got == list(range(got[0], got[0] + 3))
                assert [index async for index in indexes] == []
                expired = (new_request_id(1_000_000_000), b"old")
                with pytest.raises(RequestExpiredError):
                    await drain(client.request_updates([expired, b"new"]), got)
                with pytest.raises(LocalProtocolError):
                    await drain(client.request_updates([b""]), got)
                with pytest.raises(ConfigurationError):
                    client.request_updates([], 0)
                # What had been sent behind a failure is in the log before this is.
                await client.request_update(None, b"last")

        clients.run(scenario())

    def test_one_that_is_closed_takes_no_more(self, clients: Clients, urls: list[str]) -> None:
        taken = []

        def source() -> Iterator[bytes]:
            while True:
                taken.append(1)
                yield b"data"

        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                async with client.request_updates(source(), 10) as indexes:
                    async for _ in indexes:
                        break
                assert len(taken) <= 11
                with pytest.raises(ClosedError):
                    await indexes.__anext__()
                # What was under way is in the log before this is, and not among the entries of the next test.
                await client.request_update(None, b"last")

        clients.run(scenario())


class TestReading:
    def test_entries(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                before = await client.request_update(None, b"before")
                async with client.request_updates(numbers(3000)) as indexes:
                    last = [index async for index in indexes][-1]
                async with client.request_entries(before) as entries:
                    found = [entry async for entry in entries]
                    assert entries.last_index == last
                assert [entry.index for entry in found] == list(range(before + 1, last + 1))
                async with client.request_entries(before, count=100) as entries:
                    assert [entry async for entry in entries] == found[:100]
                async with client.request_entries(before) as entries:
                    first = await entries.__anext__()
                    batches = [batch async for batch in entries.batches()]
                assert [first, *(entry for batch in batches for entry in batch)] == found
                async with client.request_entries(last) as entries:
                    assert [entry async for entry in entries] == []
                with pytest.raises(LocalProtocolError):
                    client.request_entries(-1)
                with pytest.raises(LocalProtocolError):
                    client.request_entries(count=0)

        clients.run(scenario())

    def test_a_stream_that_is_closed_or_dropped_holds_up_nothing(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                await client.request_update(None, b"data")
                for _ in range(3):
                    async with client.request_entries() as entries:
                        await entries.__anext__()
                    with pytest.raises(ClosedError):  # behind what had come in with the first
                        await drain(entries, [])
                dropped = client.request_entries()
                await dropped.__anext__()
                del dropped
                assert await client.request_update(None, b"more")

        clients.run(scenario())

    def test_a_subscriber(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                before = await client.request_update(None, b"before")
            async with clients.ZmqRaftSubscriber(
                urls, secret=SECRET, deadline_s=LONG_S, last_index=before
            ) as subscriber:
                futures = [await subscriber.submit_update(data) for data in numbers(500)]
                last = [await future for future in futures][-1]
                found = [await subscriber.get(LONG_S)]
                found += await subscriber.get_batch(LONG_S)
                while subscriber.last_index < last:
                    found.append(await subscriber.get(LONG_S))
                assert [entry.data for entry in found] == numbers(500)
                with pytest.raises(RequestTimeoutError):
                    await subscriber.get(0.01)
                reading = asyncio.ensure_future(subscriber.get())
                assert await subscriber.request_update(None, b"more") == last + 1
                assert (await reading).data == b"more"
                assert await subscriber.request_update(None, b"last") == last + 2
                async for batch in subscriber.batches():
                    assert [entry.data for entry in batch] == [b"last"]
                    break

        clients.run(scenario())

    def test_what_one_peer_publishes(self, clients: Clients, peers: list[ZmqRaft]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftPeerSub(leader_of(peers).url, secret=SECRET, deadline_s=LONG_S) as subscriber:
                _, last_applied, _ = await subscriber.get(LONG_S)
                index = await subscriber.request_update(None, b"data")
                assert index > last_applied
                async for term, last, batch in subscriber:
                    assert term >= 1
                    if last >= index:
                        assert batch.last_index == last or not len(batch)
                        break

        clients.run(scenario())


class TestLinearizableReads:
    def test_an_index_to_wait_for(self, clients: Clients, peers: list[ZmqRaft], urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                index = await client.request_update(None, b"data")
                assert await client.read_index() == index
                assert [await client.read_index() for _ in range(20)] == [index] * 20
                follower = follower_of(peers)
                await asyncio.wrap_future(follower.wait_applied(index))
                assert (await client.request_log_info()).commit_index == index
                assert client.counters.unknown_replies <= 1

        clients.run(scenario())

    def test_entries(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                before = await client.request_update(None, b"before")
                for number in range(20):
                    last = await client.request_update(None, b"%d" % number)
                    async with client.request_entries(before, linearizable=True) as entries:
                        assert [entry.data async for entry in entries] == numbers(number + 1)
                async with client.request_entries(last, linearizable=True) as entries:
                    assert [entry async for entry in entries] == []
                async with client.request_entries(before, count=3, linearizable=True) as entries:
                    assert [entry.data async for entry in entries] == numbers(3)

        clients.run(scenario())

    def test_one_peer_that_does_not_lead(self, clients: Clients, peers: list[ZmqRaft]) -> None:
        async def scenario() -> None:
            leader = leader_of(peers)
            async with clients.ZmqRaftPeerClient(follower_of(peers).url, secret=SECRET, deadline_s=LONG_S) as client:
                for _ in range(2):
                    with pytest.raises(NotLeaderError) as caught:
                        await client.read_index()
                    assert caught.value.leader_id == leader.id
                with pytest.raises(NotLeaderError):
                    await drain(client.request_entries(linearizable=True), [])

        clients.run(scenario())

    @pytest.mark.parametrize("answer", [None, Protocols.CAPABILITIES.encode_response(65536)])
    def test_other_peers_cannot(self, clients: Clients, answer: list[bytes] | None) -> None:
        """Those of zmq-raft do not answer, those of an earlier version do not say that they can."""

        async def scenario() -> None:
            with fake_peers(3, secret=SECRET) as others:
                others.leader = "2"
                if answer is not None:
                    others["2"].script[CAPABILITIES] = lambda _: [answer]
                async with clients.ZmqRaftClient(others["1"].url, secret=SECRET, deadline_s=LONG_S) as client:
                    with pytest.raises(NotSupportedError):
                        await client.read_index()
                    with pytest.raises(NotSupportedError):
                        await drain(client.request_entries(linearizable=True), [])
                    assert others["2"].count(READ_INDEX) == 0
                    assert await client.request_update(None, b"data") == 1

        clients.run(scenario())

    def test_a_peer_that_has_applied_less_is_asked_again(self, clients: Clients) -> None:
        async def scenario() -> None:
            with fake_peers(1, secret=SECRET) as others:
                others["1"].script[CAPABILITIES] = lambda _: [Protocols.CAPABILITIES.encode_response(65536, True)]
                others["1"].script[READ_INDEX] = lambda _: [Protocols.READ_INDEX.encode_response(30)]
                others.fill(10)
                async with clients.ZmqRaftClient(
                    others.urls, secret=SECRET, deadline_s=LONG_S, timeout_ms=50
                ) as client:
                    read: list[Any] = []
                    reading = asyncio.ensure_future(drain(client.request_entries(linearizable=True), read))
                    while others["1"].count(b"<") < 3:
                        await asyncio.sleep(0.002)
                    assert not reading.done()
                    others.fill(25)
                    await reading
                    assert read == others.log

        clients.run(scenario())


class TestOtherRequests:
    def test_they_tell_of_the_cluster(self, clients: Clients, peers: list[ZmqRaft], urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                index = await client.request_update(None, b"data")
                info = await client.request_config()
                assert (info.is_leader, [url for _, url in info.peers]) == (True, urls)
                assert (await client.request_log_info()).last_applied >= index
                assert (await client.request_broadcast_url()).startswith("tcp://")
                values = await client.request(Protocols.REQUEST_CONFIG)
                assert values[0] is True
                with pytest.raises(RequestTimeoutError):
                    await client.request_message(b"nobody answers", b"frame", deadline_s=SHORT_S)
                with pytest.raises(LocalProtocolError):
                    await client.request_message(b"", b"frame")
                assert client.counters.leaders == 1

        clients.run(scenario())

    def test_a_wrong_secret_gets_no_answer(self, clients: Clients, urls: list[str]) -> None:
        async def scenario() -> None:
            async with clients.ZmqRaftClient(urls, secret=b"wrong") as client:
                with pytest.raises(RequestTimeoutError):
                    await client.request_config(deadline_s=SHORT_S)

        clients.run(scenario())

    def test_wrong_settings(self, clients: Clients) -> None:
        async def scenario() -> None:
            for url in ([], "http://x", ["a:b"]):
                with pytest.raises(ConfigurationError):
                    clients.ZmqRaftClient(url)
            for setting in ({"timeout_ms": 0}, {"deadline_s": 0}, {"secret": 1}, {"heartbeat_ms": -1}):
                with pytest.raises(ConfigurationError):
                    clients.ZmqRaftClient("127.0.0.1", **setting)

        clients.run(scenario())


class TestRestarts:
    def test_the_loss_of_the_leader(self, clients: Clients, tmp_path: Path) -> None:
        async def scenario() -> None:
            with running_cluster(tmp_path, 3) as peers:
                urls = [peer.url for peer in peers]
                async with (
                    clients.ZmqRaftSubscriber(urls, secret=SECRET) as subscriber,
                    clients.ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client,
                ):
                    futures = [await client.submit_update(data) for data in numbers(500)]
                    await futures[100]
                    await asyncio.to_thread(leader_of(peers).close)
                    futures += [await client.submit_update(b"later %d" % number) for number in range(100)]
                    indexes = [await future for future in futures]
                    assert indexes == sorted(set(indexes))
                    received = []
                    while subscriber.last_index < indexes[-1]:
                        entry = await subscriber.get(LONG_S)
                        received += [entry.data] * entry.is_state
                    assert received == [*numbers(500), *(b"later %d" % number for number in range(100))]

        clients.run(scenario())
