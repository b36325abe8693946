"""Streams of updates: `request_updates`, against peers that follow a script, in virtual time, and a real cluster."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest
import zmq

from support.fake_peers import SECRET, FakePeers, Frames, fake_peers
from support.local_cluster import running_cluster, wait_for
from support.session_driver import Driver
from zmqraft.client import Limits, ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.client.in_flight import InFlightLimit
from zmqraft.client.io_thread import IoThread
from zmqraft.client.requests import ResultSink, UpdateRequest
from zmqraft.client.updates_stream import UpdatesStream
from zmqraft.constants import ABSENT, CLIENT_SNDHWM
from zmqraft.errors import (
    ClosedError,
    ConfigurationError,
    LocalProtocolError,
    NotLeaderError,
    RequestExpiredError,
    RequestTimeoutError,
)
from zmqraft.protocol.entry import LogEntry
from zmqraft.protocol.request_id import new_request_id
from zmqraft.protocol.schema import Protocols

#: A deadline that only a failing test reaches.
LONG_S = 60.0
#: A deadline that is to pass.
SHORT_S = 0.2


@pytest.fixture
def peers() -> Iterator[FakePeers]:
    with fake_peers(3) as running:
        yield running


@pytest.fixture
def client(peers: FakePeers) -> Iterator[ZmqRaftClient]:
    with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S) as running:
        yield running


class Source:
    """An endless iterable of updates that counts what was taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        for number in itertools.count():
            self.taken += 1
            yield b"%d" % number


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def expired() -> Frames:
    return Protocols.REQUEST_UPDATE.encode_response(False, ABSENT)


def wait_until_nothing_is_left(client: ZmqRaftClient) -> None:
    """No request, and no place in the limit."""
    wait_for(lambda: client._session.request_count == 0, "no request in flight")
    wait_for(lambda: (client._limit._count, client._limit._size) == (0, 0), "all places free")


def send_queue_max(client: ZmqRaftClient) -> int:
    """ZMQ_SNDHWM of the present connection."""
    thread = client._io_thread
    found: Future[int] = Future()

    def read(_now: float) -> None:
        dealer = thread._sockets.dealer
        assert dealer is not None
        found.set_result(cast(int, dealer.socket.getsockopt(zmq.SNDHWM)))

    thread.call(read)
    return found.result(LONG_S)


class TestIndexes:
    @pytest.mark.parametrize("in_flight", [1, 2, 7, 1024, 100_000])
    def test_they_come_in_the_order_of_the_updates(
        self, client: ZmqRaftClient, peers: FakePeers, in_flight: int
    ) -> None:
        assert list(client.request_updates(numbers(3000), in_flight)) == list(range(1, 3001))
        assert [entry.data for entry in peers.log] == numbers(3000)
        wait_until_nothing_is_left(client)

    def test_no_updates(self, client: ZmqRaftClient) -> None:
        stream = client.request_updates([])
        assert list(stream) == []
        assert list(stream) == []

    def test_all_kinds_of_items(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        first, second = new_request_id(), new_request_id()
        items = [b"a", bytearray(b"b"), memoryview(b"c"), (first, b"d"), (None, b"e"), (second, b"f"), (first, b"d")]
        assert list(client.request_updates(items)) == [1, 2, 3, 4, 5, 6, 4]
        assert [entry.data for entry in peers.log] == [b"a", b"b", b"c", b"d", b"e", b"f"]
        assert (peers.index_by_id[first], peers.index_by_id[second]) == (4, 6)

    def test_two_streams_at_a_time(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        streams = [client.request_updates(numbers(100), 10) for _ in range(2)]
        pairs = list(zip(*streams, strict=True))
        assert sorted(itertools.chain(*pairs)) == list(range(1, 201))
        assert [list(column) for column in zip(*pairs, strict=True)] == [
            sorted(column) for column in zip(*pairs, strict=True)
        ]
        wait_until_nothing_is_left(client)

    def test_fewer_than_the_client_lets_in(self, peers: FakePeers) -> None:
        with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S, limits=Limits(in_flight_max=3)) as client:
            assert list(client.request_updates(numbers(50), 100)) == list(range(1, 51))


class TestBackPressure:
    def test_nothing_is_taken_before_the_first_index_is_asked_for(self, client: ZmqRaftClient) -> None:
        source = Source()
        with client.request_updates(source):
            assert source.taken == 0

    def test_an_endless_source(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        source = Source()
        with client.request_updates(source, 16) as stream:
            assert list(itertools.islice(stream, 100)) == list(range(1, 101))
            assert source.taken == 115
        wait_until_nothing_is_left(client)
        assert client.request_update(None, b"after") == len(peers.log)

    def test_no_more_than_asked_for_are_under_way(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers["1"].script[b"="] = lambda arguments: []
        source = Source()
        stream = client.request_updates(source, 8)
        errors: list[BaseException] = []

        def consume() -> None:
            try:
                next(stream)
            except ClosedError as error:
                errors.append(error)

        consumer = threading.Thread(target=consume)
        consumer.start()
        wait_for(lambda: peers["1"].count(b"=") == 8, "8 updates at the peer")
        assert source.taken == 8
        stream.close()
        consumer.join()
        assert "the stream is closed" in str(errors[0])
        wait_until_nothing_is_left(client)


class TestTheEnd:
    def test_closing_early(self, client: ZmqRaftClient) -> None:
        stream = client.request_updates(Source())
        assert next(stream) == 1
        stream.close()
        stream.close()
        with pytest.raises(ClosedError):
            next(stream)
        wait_until_nothing_is_left(client)

    def test_one_that_nobody_holds_is_closed(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        stream = client.request_updates(Source(), 10)
        next(stream)
        peers["1"].script[b"="] = lambda arguments: []
        del stream
        wait_until_nothing_is_left(client)

    def test_the_client_is_closed(self, peers: FakePeers) -> None:
        peers["1"].script[b"="] = lambda arguments: []
        client = ZmqRaftClient(peers.urls, secret=SECRET)
        stream = client.request_updates(Source(), 10)
        closing = threading.Thread(target=lambda: (wait_for_updates(peers, 10), client.close()))
        closing.start()
        with pytest.raises(ClosedError):
            next(stream)
        closing.join()
        assert list(stream) == []
        stream.close()
        with pytest.raises(ClosedError):
            client.request_updates([])

    def test_the_context_is_terminated(self, peers: FakePeers) -> None:
        context: zmq.Context[Any] = zmq.Context()

        def source() -> Iterator[bytes]:
            yield from numbers(20)
            terminating.start()
            yield from iter(lambda: b"without end", None)

        with ZmqRaftClient(peers.urls, secret=SECRET, context=context) as client:
            terminating = threading.Thread(target=context.term)
            stream = client.request_updates(source(), 10)
            with pytest.raises(ClosedError, match=r"terminated|closed"):
                list(stream)
            terminating.join()

    def test_an_interrupt_while_items_are_taken(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        def source() -> Iterator[bytes]:
            yield from numbers(5)
            raise KeyboardInterrupt

        stream = client.request_updates(source())
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        with pytest.raises(ClosedError):
            next(stream)
        wait_until_nothing_is_left(client)

    @pytest.mark.parametrize("in_flight", [0, -1, 1.5, True, None])
    def test_wrong_numbers_in_flight(self, client: ZmqRaftClient, in_flight: Any) -> None:
        with pytest.raises(ConfigurationError, match="in_flight"):
            client.request_updates([], in_flight)

    def test_a_wrong_deadline(self, client: ZmqRaftClient) -> None:
        with pytest.raises(ConfigurationError, match="deadline"):
            client.request_updates([], deadline_s=0)

    def test_not_in_a_callback(self, client: ZmqRaftClient) -> None:
        outcome: Future[object] = Future()

        def callback(_: Future[int]) -> None:
            with client.request_updates([b"data"]) as stream:
                try:
                    outcome.set_result(next(stream))
                except RuntimeError as error:
                    outcome.set_result(error)

        client.submit_update(b"data").add_done_callback(callback)
        assert isinstance(outcome.result(LONG_S), RuntimeError)
        wait_until_nothing_is_left(client)


def wait_for_updates(peers: FakePeers, count: int) -> None:
    wait_for(lambda: peers["1"].count(b"=") == count, f"{count} updates at the peer")


class TestErrors:
    @pytest.mark.parametrize(
        "item", [b"", "text", None, 5, (None, b"a", b"b"), (None, "text"), (b"short", b"a"), bytes(11 * 1024 * 1024)]
    )
    def test_a_wrong_item(self, client: ZmqRaftClient, peers: FakePeers, item: Any) -> None:
        source = iter([b"a", b"b", item, b"c"])
        stream = client.request_updates(source)
        assert [next(stream), next(stream)] == [1, 2]
        with pytest.raises(LocalProtocolError):
            next(stream)
        assert list(stream) == []
        assert list(source) == [b"c"]
        wait_until_nothing_is_left(client)
        assert len(peers.log) == 2

    def test_an_error_of_the_source(self, client: ZmqRaftClient) -> None:
        def source() -> Iterator[bytes]:
            yield from numbers(3)
            raise ValueError("the source is dry")

        stream = client.request_updates(source())
        assert [next(stream) for _ in range(3)] == [1, 2, 3]
        with pytest.raises(ValueError, match="dry"):
            next(stream)
        wait_until_nothing_is_left(client)

    def test_an_update_that_is_refused(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        indexes = itertools.count(1)

        def answer(arguments: Frames) -> list[Frames]:
            if arguments[0] == b"50":
                return [expired()]
            return [Protocols.REQUEST_UPDATE.encode_response(True, next(indexes))]

        peers["1"].script[b"="] = answer
        source = Source()
        stream = client.request_updates(source, 16)
        assert list(itertools.islice(stream, 50)) == list(range(1, 51))
        with pytest.raises(RequestExpiredError):
            next(stream)
        assert list(stream) == []
        assert source.taken <= 50 + 16
        wait_until_nothing_is_left(client)

    def test_a_peer_that_does_not_lead(self, peers: FakePeers) -> None:
        with (
            ZmqRaftPeerClient(peers["2"].url, secret=SECRET, deadline_s=LONG_S) as client,
            pytest.raises(NotLeaderError),
        ):
            next(client.request_updates(numbers(10)))

    def test_the_deadline_is_for_each_update(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers["1"].script[b"="] = lambda arguments: []
        with pytest.raises(RequestTimeoutError, match="may or may not"):
            next(client.request_updates(Source(), deadline_s=SHORT_S))
        wait_until_nothing_is_left(client)


class InlineThread:
    """Runs commands in virtual time: at once, or, while ``held`` is a list, later."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.held: list[Callable[[float], object]] | None = None

    def is_current(self) -> bool:
        return False

    def call(self, command: Callable[[float], object]) -> None:
        if self.held is None:
            command(self.driver.now)
        else:
            self.held.append(command)

    def let_go(self) -> None:
        held, self.held = self.held or [], None
        for command in held:
            command(self.driver.now)

    def widen_send_queue(self) -> None:
        """There is none."""


class Virtual:
    """A stream over a session in virtual time, with everything under way (``filled``) that it may have."""

    def __init__(self, in_flight: int, *, deadlines_s: tuple[float, ...] = (), filled: bool = True) -> None:
        self.driver = Driver.following()
        self.thread = InlineThread(self.driver)
        self.limit = InFlightLimit(1000, 1000_000)
        self.source = Source()
        deadlines = iter(deadlines_s)

        def make(item: object, sink: ResultSink) -> UpdateRequest:
            deadline = self.driver.now + next(deadlines, 1e9)
            return UpdateRequest(b"secret", new_request_id(), cast(bytes, item), sink, deadline)

        thread = cast(IoThread, self.thread)
        self.stream = UpdatesStream(thread, self.driver.session, self.limit, iter(self.source), make, in_flight)
        if filled:
            self.stream._fill()

    def check_nothing_is_left(self) -> None:
        assert self.driver.session.request_count == 0
        assert (self.limit._count, self.limit._size) == (0, 0)


class TestWhatIsSent:
    def test_updates_behind_a_failed_one_are_not_sent(self) -> None:
        virtual = Virtual(5, deadlines_s=(1000.0, 1000.0, 0.1))
        driver = virtual.driver
        driver.advance(0.2)
        virtual.stream._fill()
        assert virtual.source.taken == 5
        driver.find_leader()
        sent = driver.read()
        assert [message.arguments for message in sent] == [(b"0",), (b"1",)]
        for index, message in enumerate(sent, 1):
            driver.committed(message, index)
        assert [next(virtual.stream), next(virtual.stream)] == [1, 2]
        with pytest.raises(RequestTimeoutError):
            next(virtual.stream)
        assert driver.read() == []
        virtual.check_nothing_is_left()

    def test_what_was_not_sent_when_the_stream_ends_is_not_sent_later(self) -> None:
        virtual = Virtual(5)
        del virtual.stream
        virtual.check_nothing_is_left()
        virtual.driver.find_leader()
        assert virtual.driver.read() == []

    def test_updates_that_start_only_after_the_failure_are_not_sent(self) -> None:
        virtual = Virtual(3, filled=False)
        driver, thread, stream = virtual.driver, virtual.thread, virtual.stream
        thread.held = []
        stream._fill()
        first, *others = thread.held
        thread.held = others
        first(driver.now)
        driver.find_leader()
        (sent,) = driver.read()
        driver.reply_frames(sent, *expired())
        thread.let_go()
        driver.flush()
        assert driver.read() == []
        with pytest.raises(RequestExpiredError):
            next(stream)
        virtual.check_nothing_is_left()

    def test_those_before_it_come_first(self) -> None:
        virtual = Virtual(4)
        driver, stream = virtual.driver, virtual.stream
        driver.find_leader()
        sent = driver.read()
        assert [message.arguments for message in sent] == [(data,) for data in numbers(4)]
        driver.reply_frames(sent[2], *expired())
        assert driver.session.request_count == 2
        driver.committed(sent[3], 10)
        assert driver.session.counters.unknown_replies == 1
        driver.committed(sent[1], 8)
        driver.committed(sent[0], 7)
        assert [next(stream), next(stream)] == [7, 8]
        with pytest.raises(RequestExpiredError):
            next(stream)
        assert virtual.source.taken == 4
        virtual.check_nothing_is_left()

    def test_the_first_of_two_failures_counts(self) -> None:
        virtual = Virtual(3)
        driver = virtual.driver
        driver.find_leader()
        sent = driver.read()
        driver.reply_frames(sent[1], *expired())
        driver.reply_frames(sent[0], *expired())
        with pytest.raises(RequestExpiredError, match=sent[0].id.hex()):
            next(virtual.stream)
        virtual.check_nothing_is_left()

    def test_a_lost_leader_gets_the_same_ids_in_the_same_order(self) -> None:
        virtual = Virtual(4)
        driver = virtual.driver
        driver.find_leader("1")
        sent = driver.read()
        driver.committed(sent[0], 1)
        driver.not_leader(sent[1], "2")
        driver.find_leader("2")
        again = driver.read()
        assert [(message.id, message.arguments) for message in again] == [
            (message.id, message.arguments) for message in sent[1:]
        ]
        for index, message in enumerate(again, 2):
            driver.committed(message, index)
        assert [next(virtual.stream), next(virtual.stream)] == [1, 2]
        (one_more,) = driver.read()
        assert one_more.arguments == (b"4",)
        virtual.stream.close()
        virtual.check_nothing_is_left()

    def test_a_session_that_closes(self) -> None:
        virtual = Virtual(3)
        virtual.driver.session.close()
        with pytest.raises(ClosedError):
            next(virtual.stream)
        virtual.check_nothing_is_left()


class TestTheSendQueue:
    def test_it_is_wide_from_the_beginning(self, client: ZmqRaftClient) -> None:
        assert list(client.request_updates([b"data"])) == [1]
        assert send_queue_max(client) == 1000

    def test_a_connection_that_exists_stays_as_it_is(self, client: ZmqRaftClient) -> None:
        """libzmq 4.3.5 crashes when it is changed while the peer goes away."""
        assert client.request_update(None, b"first") == 1
        assert list(client.request_updates([b"data"])) == [2]
        assert send_queue_max(client) == CLIENT_SNDHWM

    @pytest.mark.parametrize("sndhwm", [0, 5000])
    def test_a_wider_one_stays(self, peers: FakePeers, sndhwm: int) -> None:
        with (
            ZmqRaftClient(peers.urls, secret=SECRET, sndhwm=sndhwm, deadline_s=LONG_S) as client,
            client.request_updates(Source()) as stream,
        ):
            next(stream)
            assert send_queue_max(client) == sndhwm

    def test_the_next_connection_has_it_too(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        assert client.request_update(None, b"first") == 1
        with client.request_updates(Source()) as stream:
            next(stream)
            peers.leader = "2"
            peers["1"].script[b"="] = lambda arguments: [Protocols.REQUEST_UPDATE.encode_response(False, "2")]
            wait_for(lambda: (next(stream), client.leader_url == peers["2"].url)[1], "the other leader")
            assert send_queue_max(client) == 1000


class TestLeaders:
    def test_a_change_with_updates_under_way(self, peers: FakePeers) -> None:
        def answer(arguments: Frames) -> list[Frames]:
            if peers["1"].count(b"=") > 300:
                peers.leader = "2"
                return [Protocols.REQUEST_UPDATE.encode_response(False, "2")]
            return []

        peers["1"].script[b"="] = answer
        with ZmqRaftClient(peers.urls, secret=SECRET, timeout_ms=60_000, deadline_s=LONG_S) as client:
            assert list(client.request_updates(numbers(2000), 500)) == list(range(1, 2001))
            assert client.leader_url == peers["2"].url
        assert [entry.data for entry in peers.log] == numbers(2000)

    def test_a_leader_that_dies(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        def source() -> Iterator[bytes]:
            for number, data in enumerate(numbers(1000)):
                if number == 500:
                    peers["1"].stop()
                    peers.leader = "3"
                yield data

        indexes = list(client.request_updates(source(), 100))
        assert indexes == list(range(1, 1001))
        assert [entry.data for entry in peers.log] == numbers(1000)


def test_a_real_cluster_that_loses_its_leader(tmp_path: Path) -> None:
    secret = b"sekret"
    with running_cluster(tmp_path, 3) as cluster:
        lost = threading.Event()

        def source() -> Iterator[bytes]:
            for number, data in enumerate(numbers(3000)):
                if number == 1500:
                    next(peer for peer in cluster if peer.id == peer.leader_id).close()
                    lost.set()
                yield data

        with ZmqRaftClient([peer.url for peer in cluster], secret=secret, deadline_s=LONG_S) as client:
            indexes = list(client.request_updates(source(), 256))
            assert lost.is_set()
            assert len(indexes) == 3000
            assert indexes == sorted(set(indexes))
            with client.request_entries() as stream:
                entries = [entry for entry in stream if isinstance(entry, LogEntry) and entry.is_state]
        assert [entry.data for entry in entries] == numbers(3000)
        assert [entry.index for entry in entries] == indexes
