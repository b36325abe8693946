"""What is of asyncio alone: cancellation at every point, the edge-triggered descriptor, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine, Iterator
from random import Random
from typing import Any

import pytest
import zmq

from support.both_clients import Clients
from support.command import free_ports
from support.fake_peers import SECRET, FakePeers, Frames, fake_peers
from zmqraft.asyncio import ZmqRaftClient, ZmqRaftPeerClient, ZmqRaftSubscriber
from zmqraft.asyncio.in_flight import InFlightLimit
from zmqraft.asyncio.item_queue import ItemQueue
from zmqraft.client import Limits
from zmqraft.errors import ClosedError, RequestTimeoutError
from zmqraft.protocol import Protocols, new_request_id

LONG_S = 60.0


@pytest.fixture
def peers() -> Iterator[FakePeers]:
    with fake_peers(3) as running:
        yield running


def run(scenario: Coroutine[Any, Any, None]) -> None:
    Clients("asyncio").run(scenario)


async def until(condition: Any) -> None:
    """Until a condition holds; the test has a deadline."""
    while not condition():
        await asyncio.sleep(0.002)


class TestUpdates:
    def test_a_thousand_coroutines(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S) as client:
                indexes = await asyncio.gather(*(client.request_update(None, b"%d" % n) for n in range(1000)))
                assert indexes == list(range(1, 1001))

        run(scenario())

    def test_a_flood_that_is_more_than_one_turn_takes(self, peers: FakePeers) -> None:
        """More replies than a turn takes, with a send queue of one: each end of the descriptor is seen."""

        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S, sndhwm=1) as client:
                futures = [await client.submit_update(b"%d" % n) for n in range(8000)]
                assert [await future for future in futures] == list(range(1, 8001))

        run(scenario())

    def test_more_replies_than_a_turn_takes_are_taken_without_another_edge(
        self, peers: FakePeers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The descriptor tells once of what came together; no timeout of the session is there to help."""
        monkeypatch.setattr("zmqraft.client.session_sockets._TURN_MESSAGES_MAX", 1)

        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET, timeout_ms=10 * LONG_S * 1000) as client:
                for first in range(1, 1000, 100):
                    futures = [await client.submit_update(b"data") for _ in range(100)]
                    assert [await future for future in futures] == list(range(first, first + 100))
                assert client.counters.repeated_requests == 0

        run(scenario())

    def test_replies_that_come_while_the_loop_is_busy_are_not_missed(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S) as client:
                await client.request_config()
                for number in range(200):
                    future = await client.submit_update(b"%d" % number)
                    await asyncio.sleep(0)
                    if number % 10 == 0:  # the loop stands still; the reply is there when it goes on
                        while peers["1"].count(b"=") <= number:
                            pass
                    await future

        run(scenario())

    def test_random_cancellation(self, peers: FakePeers, seed: int) -> None:
        """Whatever is cancelled when, the client goes on and repeating leads to one entry for each id."""

        async def scenario() -> None:
            random = Random(seed)
            limits = Limits(in_flight_max=20)
            async with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S, limits=limits) as client:
                ids = [new_request_id() for _ in range(300)]
                tasks = [asyncio.ensure_future(client.request_update(each, b"data")) for each in ids]
                while not all(task.done() for task in tasks):
                    for task in random.sample(tasks, 10):
                        task.cancel()
                    await asyncio.sleep(random.choice((0, 0, 0.001)))
                await asyncio.gather(*tasks, return_exceptions=True)
                assert client._limit.count == 0
                indexes = await asyncio.gather(*(client.request_update(each, b"data") for each in ids))
                assert sorted(indexes) == list(range(1, 301))
                assert client._limit.count == 0
                assert client._session.request_count == 0

        run(scenario())

    def test_a_timeout_of_asyncio_is_a_cancellation(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            peers["1"].silent = True
            async with ZmqRaftPeerClient(peers["1"].url, secret=SECRET) as client:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.request_update(None, b"data"), 0.05)
                assert (client._session.request_count, client._limit.count) == (0, 0)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.request_log_info(), 0.05)
                assert client._session.request_count == 0

        run(scenario())

    def test_one_that_waits_for_room_has_a_deadline(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            peers["1"].silent = True
            limits = Limits(in_flight_max=1)
            async with ZmqRaftPeerClient(peers["1"].url, secret=SECRET, limits=limits) as client:
                first = await client.submit_update(b"first")
                with pytest.raises(RequestTimeoutError, match="was not sent"):
                    await client.request_update(None, b"second", deadline_s=0.05)
                waiting = asyncio.ensure_future(client.request_update(None, b"third"))
                await asyncio.sleep(0)
                first.cancel()
                peers["1"].silent = False
                assert await waiting == peers.index_by_id[next(iter(peers.index_by_id))]

        run(scenario())


class TestManyUpdates:
    def test_indexes_come_while_an_asynchronous_source_waits(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            go_on = asyncio.Event()

            async def source() -> AsyncIterator[bytes]:
                yield b"first"
                yield b"second"
                await go_on.wait()
                yield b"third"

            async with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S) as client:
                indexes = client.request_updates(source())
                assert [await indexes.__anext__(), await indexes.__anext__()] == [1, 2]
                reading = asyncio.ensure_future(indexes.__anext__())
                await asyncio.sleep(0)
                reading.cancel()  # the read, not the item that it waits for
                with pytest.raises(asyncio.CancelledError):
                    await reading
                go_on.set()
                assert [index async for index in indexes] == [3]

        run(scenario())

    def test_closing_ends_what_waits_for_the_source(self, peers: FakePeers) -> None:
        ended = []

        async def source() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S) as client:
                async with client.request_updates(source()) as indexes:
                    assert await indexes.__anext__() == 1
                    reading = asyncio.ensure_future(indexes.__anext__())
                    await asyncio.sleep(0.01)
                assert ended == [True]
                with pytest.raises(ClosedError):
                    await reading

        run(scenario())

    def test_what_an_asynchronous_source_raises(self, peers: FakePeers) -> None:
        async def source() -> AsyncIterator[bytes]:
            yield b"first"
            raise KeyError("broken")

        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S) as client:
                indexes = client.request_updates(source())
                assert await indexes.__anext__() == 1
                with pytest.raises(KeyError):
                    await indexes.__anext__()
                assert [index async for index in indexes] == []

        run(scenario())

    def test_a_read_that_is_cancelled_while_it_waits_for_room_loses_no_item(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            limits = Limits(in_flight_max=1)
            async with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S, limits=limits) as client:
                peers["1"].silent = True
                indexes = client.request_updates([b"0", b"1", b"2"])
                reading = asyncio.ensure_future(indexes.__anext__())
                await until(lambda: client._limit.count == 1)
                await asyncio.sleep(0.01)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
                peers["1"].silent = False
                assert [index async for index in indexes] == [1, 2, 3]
                assert [entry.data for entry in peers.log] == [b"0", b"1", b"2"]

        run(scenario())


class TestReading:
    def test_a_read_that_is_cancelled_loses_nothing(self, peers: FakePeers, seed: int) -> None:
        peers.fill(2000)

        async def scenario() -> None:
            random = Random(seed)
            async with ZmqRaftSubscriber(peers.urls, secret=SECRET) as subscriber:
                seen: list[int] = []
                while len(seen) < 2000:
                    reading = asyncio.ensure_future(subscriber.get())
                    if random.random() < 0.2:
                        await asyncio.sleep(random.choice((0, 0.001)))
                        reading.cancel()
                    try:
                        seen.append((await reading).index)
                    except asyncio.CancelledError:
                        continue
                assert seen == list(range(1, 2001))

        run(scenario())

    def test_two_readers_at_a_time_are_refused(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            async with ZmqRaftSubscriber(peers.urls, secret=SECRET) as subscriber:
                reading = asyncio.ensure_future(subscriber.get())
                await asyncio.sleep(0)
                with pytest.raises(RuntimeError, match="one reader"):
                    await subscriber.get()
                peers.commit(b"data")
                assert (await reading).index == 1

        run(scenario())

    def test_a_slow_reader_holds_up_the_peer(self, peers: FakePeers) -> None:
        peers.entries_per_reply = 1
        peers.fill(100)

        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET) as client, client.request_entries() as entries:
                first = await entries.__anext__()
                asked = peers["1"].count(b"<")
                for _ in range(10):
                    await client.request_config()
                assert peers["1"].count(b"<") <= asked + 1
                assert [first, *[entry async for entry in entries]] == peers.log

        run(scenario())

    def test_a_stream_that_is_dropped_is_stopped(self, peers: FakePeers) -> None:
        peers.entries_per_reply = 1
        peers.fill(100)

        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET) as client:
                entries = client.request_entries()
                await entries.__anext__()
                del entries
                gc.collect()
                await until(lambda: client._session.request_count == 0)

        run(scenario())


class TestClosing:
    def test_one_that_is_forgotten_warns(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            client = ZmqRaftClient(peers.urls, secret=SECRET)
            await client.request_config()
            with pytest.warns(ResourceWarning, match="was not closed"):
                del client
            await asyncio.sleep(0)

        run(scenario())

    def test_one_that_outlives_its_loop_warns(self, peers: FakePeers) -> None:
        async def make() -> ZmqRaftClient:
            client = ZmqRaftClient(peers.urls, secret=SECRET)
            await client.request_config()
            return client

        client = asyncio.run(make())
        with pytest.warns(ResourceWarning, match="was not closed"):
            del client

    def test_there_must_be_a_loop(self, peers: FakePeers) -> None:
        with pytest.raises(RuntimeError):
            ZmqRaftClient(peers.urls, secret=SECRET)

    def test_a_context_that_is_terminated_ends_it(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            async with ZmqRaftClient(peers.urls, secret=SECRET, context=context) as client:
                await client.request_config()
                waiting = asyncio.ensure_future(client.request_message(b"nobody answers"))
                await asyncio.sleep(0.01)
                await asyncio.to_thread(context.term)
                with pytest.raises(ClosedError):
                    await waiting

        run(scenario())

    def test_a_failure_within_it_ends_what_waits(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET) as client:
                await client.request_config()

                def broken(frames: Frames, now: float) -> None:
                    raise ZeroDivisionError

                client._session.receive = broken  # type: ignore[method-assign]
                with pytest.raises(ClosedError, match="ZeroDivisionError"):
                    await client.request_config()

        run(scenario())

    def test_a_leader_that_was_lost_while_nothing_was_asked(self, peers: FakePeers) -> None:
        async def scenario() -> None:
            async with ZmqRaftClient(peers.urls, secret=SECRET, heartbeat_ms=20) as client:
                await client.request_config()
                answer = Protocols.REQUEST_CONFIG.encode_response(False, "2", peers.peer_list)
                peers["1"].script[b"^"] = lambda _: [answer]
                peers.leader = "2"
                await until(lambda: client.leader_url == peers["2"].url)

        run(scenario())

    def test_a_cluster_that_is_not_there_yet(self) -> None:
        async def scenario() -> None:
            url = f"tcp://127.0.0.1:{free_ports(1)[0]}"
            async with ZmqRaftSubscriber(url, secret=SECRET) as subscriber:
                with pytest.raises(RequestTimeoutError):
                    await subscriber.get(0.05)

        run(scenario())


class TestTheLimit:
    def test_the_first_who_came_is_let_in_first(self) -> None:
        async def scenario() -> None:
            limit = InFlightLimit(2, 100, asyncio.get_running_loop())
            order: list[int] = []

            async def enter(number: int, size: int) -> None:
                await limit.acquire(size, float("inf"))
                order.append(number)

            assert limit.try_acquire(60)
            tasks = [asyncio.ensure_future(enter(number, size)) for number, size in enumerate((60, 10, 10))]
            await asyncio.sleep(0)
            assert not limit.try_acquire(1)
            tasks[0].cancel()
            await asyncio.sleep(0.01)
            assert order == [1]
            limit.release(60)
            await asyncio.sleep(0.01)
            assert order == [1, 2]
            limit.release(10)
            limit.release(10)
            assert limit.count == 0
            await asyncio.gather(*tasks, return_exceptions=True)

        run(scenario())

    def test_one_who_is_cancelled_when_he_was_let_in_takes_no_place(self) -> None:
        async def scenario() -> None:
            limit = InFlightLimit(1, 100, asyncio.get_running_loop())
            assert limit.try_acquire(1)
            waiting = asyncio.ensure_future(limit.acquire(1, float("inf")))
            await asyncio.sleep(0)
            limit.release(1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert limit.count == 0

        run(scenario())


def test_a_queue_gives_what_came_before_its_end() -> None:
    async def scenario() -> None:
        queue: ItemQueue[int] = ItemQueue()
        reading = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        queue.put(1)
        queue.put(2)
        queue.set_exception(ClosedError("over"))
        assert [await reading, await queue.get()] == [1, 2]
        for _ in range(2):
            with pytest.raises(ClosedError):
                await queue.get()

    run(scenario())
