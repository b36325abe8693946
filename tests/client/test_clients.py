"""The blocking clients over real sockets, against peers that follow a script (see `support.fake_peers`)."""

from __future__ import annotations

import gc
import os
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path

import pytest
import zmq

from support.command import free_ports
from support.fake_peers import SECRET, FakePeers, Frames, fake_peers
from support.local_cluster import wait_for
from support.process import run_python
from zmqraft.client import (
    ClusterInfo,
    Limits,
    LogInfo,
    SnapshotChunk,
    ZmqProtocolSocket,
    ZmqRaftClient,
    ZmqRaftPeerClient,
    ZmqSocketBase,
)
from zmqraft.client.futures import RequestFuture
from zmqraft.client.requests import Request
from zmqraft.constants import ABSENT
from zmqraft.errors import (
    ClosedError,
    ConfigUpdateRefusedError,
    ConfigurationError,
    LocalProtocolError,
    NotLeaderError,
    OutOfOrderError,
    RequestExpiredError,
    RequestTimeoutError,
)
from zmqraft.protocol.entry import EntryBatch
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


def dead_url() -> str:
    return f"tcp://127.0.0.1:{free_ports(1)[0]}"


class TestUpdates:
    def test_the_index_comes_back(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        assert client.request_update(None, b"one") == 1
        assert client.request_update(None, bytearray(b"two")) == 2
        assert client.request_update(None, memoryview(b"three")) == 3
        assert [entry.data for entry in peers.log] == [b"one", b"two", b"three"]
        assert client.leader_url == peers["1"].url

    def test_the_same_id_gets_into_the_log_once(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        request_id = new_request_id()
        assert [client.request_update(request_id, b"data") for _ in range(3)] == [1, 1, 1]
        futures = [client.submit_update(b"data", request_id=request_id) for _ in range(3)]
        assert [future.result() for future in futures] == [1, 1, 1]
        assert len(peers.log) == 1

    @pytest.mark.parametrize("sndhwm", [1, 2, 1000])
    def test_thousands_in_flight_keep_their_order(self, peers: FakePeers, sndhwm: int) -> None:
        count = 3000
        with ZmqRaftClient(peers.urls, secret=SECRET, sndhwm=sndhwm, deadline_s=LONG_S) as client:
            futures = [client.submit_update(b"%d" % n) for n in range(count)]
            assert [future.result() for future in futures] == list(range(1, count + 1))
        assert [entry.data for entry in peers.log] == [b"%d" % n for n in range(count)]

    def test_a_leader_that_is_not_in_the_seeds_is_found(self, peers: FakePeers) -> None:
        peers.leader = "3"
        with ZmqRaftClient(peers["2"].url, secret=SECRET, deadline_s=LONG_S) as client:
            assert client.request_update(None, b"data") == 1
        assert peers["1"].received == []

    def test_it_survives_a_change_of_the_leader_with_updates_in_flight(self, peers: FakePeers) -> None:
        count = 2000
        moved = threading.Event()

        def answer(arguments: Frames) -> list[Frames]:
            if peers["1"].count(b"=") > 300:
                peers.leader = "2"
                moved.set()
                return [Protocols.REQUEST_UPDATE.encode_response(False, "2")]
            return []

        peers["1"].script[b"="] = answer
        with ZmqRaftClient(peers.urls, secret=SECRET, timeout_ms=60_000, deadline_s=LONG_S) as client:
            futures = [client.submit_update(b"%d" % n) for n in range(count)]
            assert [future.result() for future in futures] == list(range(1, count + 1))
            assert client.leader_url == peers["2"].url
        assert moved.is_set()
        assert [entry.data for entry in peers.log] == [b"%d" % n for n in range(count)]

    def test_it_survives_the_death_of_the_leader(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        assert client.request_update(None, b"before") == 1
        peers["1"].stop()
        futures = [client.submit_update(b"%d" % n) for n in range(100)]
        peers.leader = "2"
        assert [future.result() for future in futures] == list(range(2, 102))

    def test_it_survives_a_leader_that_falls_silent(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        assert client.request_update(None, b"before") == 1
        peers["1"].silent = True
        futures = [client.submit_update(b"%d" % n) for n in range(100)]
        wait_for(lambda: peers["1"].count(b"=") > 1, "an update at the silent leader")
        peers.leader = "3"
        assert [future.result() for future in futures] == list(range(2, 102))

    def test_it_survives_a_restart_of_the_only_peer(self) -> None:
        with fake_peers(1) as peers, ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S) as client:
            assert client.request_update(None, b"before") == 1
            peers["1"].stop()
            futures = [client.submit_update(b"%d" % n) for n in range(100)]
            peers["1"].start()
            assert [future.result() for future in futures] == list(range(2, 102))

    def test_dead_and_silent_seeds_are_passed_over(self, peers: FakePeers) -> None:
        peers.leader = "3"
        peers["2"].silent = True
        urls = [dead_url(), peers["2"].url, peers["3"].url]
        with ZmqRaftClient(urls, secret=SECRET, timeout_ms=100, deadline_s=LONG_S) as client:
            assert client.request_update(None, b"data") == 1

    def test_a_cluster_that_is_not_there_yet(self) -> None:
        with fake_peers(1) as peers:
            peers["1"].stop()
            with ZmqRaftClient(peers.urls, secret=SECRET, timeout_ms=50, deadline_s=LONG_S) as client:
                future = client.submit_update(b"data")
                wait_for(lambda: client.counters.leaders == 0 and client._session.link > 3, "some tries")
                peers["1"].start()
                assert future.result() == 1

    def test_final_refusals(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers["1"].script[b"="] = lambda arguments: [Protocols.REQUEST_UPDATE.encode_response(False, ABSENT)]
        with pytest.raises(RequestExpiredError, match="compare the clocks"):
            client.request_update(None, b"data")

    def test_malformed_replies_are_counted(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        good = Protocols.REQUEST_UPDATE.encode_response(True, 5)
        peers["1"].script[b"="] = lambda arguments: [[], [b"\x01", b"\xc1"], [b"\x01", b"\xa0"], good, good]
        assert client.request_update(None, b"data") == 5
        wait_for(lambda: client.counters.unknown_replies == 1, "the second good reply")
        assert client.counters.malformed_replies == 3

    @pytest.mark.parametrize(
        "data", [b"", "text", None, bytes(11 * 1024 * 1024)], ids=["empty", "str", "None", "large"]
    )
    def test_wrong_data_is_refused_at_once(self, client: ZmqRaftClient, data: bytes) -> None:
        with pytest.raises(LocalProtocolError):
            client.submit_update(data)
        with pytest.raises(LocalProtocolError):
            client.request_update(b"short", b"data")
        assert client.request_update(None, b"data") == 1


class TestDeadlines:
    def test_a_wrong_secret_gets_no_answer(self, peers: FakePeers) -> None:
        with (
            ZmqRaftClient(peers.urls, secret=b"secret-", deadline_s=SHORT_S) as client,
            pytest.raises(RequestTimeoutError, match="may or may not"),
        ):
            client.request_update(None, b"data")
        assert [peer.received for peer in peers.peers.values()] == [[], [], []]

    def test_each_request_has_one(self, peers: FakePeers) -> None:
        for peer in peers.peers.values():
            peer.silent = True
        with ZmqRaftClient(peers.urls, secret=SECRET) as client:
            requests: list[Callable[[], object]] = [
                lambda: client.request_config(deadline_s=SHORT_S),
                lambda: client.request_log_info(deadline_s=SHORT_S),
                lambda: client.request_broadcast_url(deadline_s=SHORT_S),
                lambda: client.request_config_update(None, [("1", "tcp://h:1")], deadline_s=SHORT_S),
                lambda: client.request_message(b"kv", deadline_s=SHORT_S),
                lambda: client.request(Protocols.REQUEST_WEB_MONITOR_URL, deadline_s=SHORT_S),
                lambda: list(client.request_entries(deadline_s=SHORT_S)),
                lambda: client.submit_update(b"data", deadline_s=SHORT_S).result(),
            ]
            for request in requests:
                with pytest.raises(TimeoutError):
                    request()

    @pytest.mark.parametrize("deadline_s", [0, -1, "1", float("nan")])
    def test_wrong_ones_are_refused(self, client: ZmqRaftClient, deadline_s: float) -> None:
        with pytest.raises(ConfigurationError):
            client.request_config(deadline_s=deadline_s)


class TestBackPressure:
    def test_who_submits_too_much_waits(self, peers: FakePeers) -> None:
        peers["1"].silent = True
        limits = Limits(in_flight_max=10)
        with ZmqRaftClient(peers["1"].url, secret=SECRET, limits=limits) as client:
            futures = [client.submit_update(b"%d" % n) for n in range(10)]
            with pytest.raises(RequestTimeoutError, match="10 requests"):
                client.submit_update(b"too much", deadline_s=SHORT_S)
            waiting = threading.Thread(target=lambda: futures.append(client.submit_update(b"waits")))
            waiting.start()
            peers["1"].silent = False
            waiting.join()
            assert sorted(future.result(LONG_S) for future in futures) == list(range(1, 12))

    def test_bytes_count_as_well_but_one_is_always_let_in(self, peers: FakePeers) -> None:
        peers["1"].silent = True
        limits = Limits(in_flight_size_max=1000)
        with ZmqRaftClient(peers["1"].url, secret=SECRET, limits=limits) as client:
            large = client.submit_update(bytes(5000))
            with pytest.raises(RequestTimeoutError):
                client.submit_update(b"x", deadline_s=SHORT_S)
            assert large.cancel()
            client.submit_update(b"x", deadline_s=LONG_S)

    def test_closing_wakes_up_who_waits(self, peers: FakePeers) -> None:
        peers["1"].silent = True
        errors: list[BaseException] = []
        client = ZmqRaftClient(peers["1"].url, secret=SECRET, limits=Limits(in_flight_max=1))
        future = client.submit_update(b"first")

        def submit() -> None:
            try:
                client.submit_update(b"second")
            except ClosedError as error:
                errors.append(error)

        waiting = threading.Thread(target=submit)
        waiting.start()
        client.close()
        waiting.join()
        assert len(errors) == 1
        assert isinstance(future.exception(), ClosedError)

    def test_places_come_back_however_a_request_ends(self, peers: FakePeers) -> None:
        with ZmqRaftClient(peers.urls, secret=SECRET, limits=Limits(in_flight_max=2), deadline_s=LONG_S) as client:
            for _ in range(10):
                client.request_update(None, b"data")
            peers["1"].silent = True
            for _ in range(10):
                client.submit_update(b"data").cancel()
            for _ in range(3):
                with pytest.raises(RequestTimeoutError):
                    client.request_update(None, b"data", deadline_s=0.05)
            peers["1"].silent = False
            peers["1"].script[b"="] = lambda arguments: [Protocols.REQUEST_UPDATE.encode_response(False, ABSENT)]
            for _ in range(3):
                with pytest.raises(RequestExpiredError):
                    client.request_update(None, b"data")
            wait_for(lambda: client._limit._count == 0, "all places free")


class TestFutures:
    def test_cancelling(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        client.request_update(None, b"first")
        peers["1"].script[b"="] = lambda arguments: []
        future = client.submit_update(b"data")
        wait_for(lambda: peers["1"].count(b"=") == 2, "the update at the peer")
        assert future.cancel()
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result()
        del peers["1"].script[b"="]
        assert client.request_update(None, b"next") == 2
        assert client._session.request_count == 0

    def test_one_that_is_done_cannot_be_cancelled(self, client: ZmqRaftClient) -> None:
        future = client.submit_update(b"data")
        assert future.result() == 1
        assert not future.cancel()

    def test_callbacks_may_submit_but_not_wait(self, client: ZmqRaftClient) -> None:
        outcomes: list[object] = []
        done = threading.Event()

        def callback(future: Future[int]) -> None:
            for wait in (
                lambda: client.request_update(None, b"no"),
                lambda: next(client.request_entries()),
                client.request_config,
            ):
                with pytest.raises(RuntimeError, match="callback"):
                    wait()
            outcomes.append(client.submit_update(b"yes"))
            done.set()

        client.submit_update(b"data").add_done_callback(callback)
        assert done.wait(LONG_S)
        (second,) = outcomes
        assert isinstance(second, Future)
        assert second.result(LONG_S) == 2

    def test_a_chain_of_callbacks_is_not_held_up_by_the_limit(self, peers: FakePeers) -> None:
        indexes: list[int] = []
        done = threading.Event()
        with ZmqRaftClient(peers.urls, secret=SECRET, limits=Limits(in_flight_max=1), deadline_s=LONG_S) as client:

            def go_on(future: Future[int]) -> None:
                indexes.append(future.result())
                if len(indexes) < 50:
                    client.submit_update(b"data").add_done_callback(go_on)
                else:
                    done.set()

            client.submit_update(b"data").add_done_callback(go_on)
            assert done.wait(LONG_S)
        assert indexes == list(range(1, 51))

    def test_an_outcome_that_comes_after_a_cancellation_is_swallowed(self) -> None:
        ended: list[int] = []

        class Owner:
            def request_cancelled(self, future: RequestFuture, request: Request) -> None:
                raise AssertionError("there is no request")

            def request_ended(self, size: int) -> None:
                ended.append(size)

        futures = [RequestFuture(Owner(), 5) for _ in range(2)]
        for future in futures:
            assert future.cancel()
        futures[0].set_result(1)
        futures[1].set_exception(ClosedError("closed"))
        assert [future.cancelled() for future in futures] == [True, True]
        assert ended == [5, 5]

    def test_from_many_threads(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        indexes: list[int] = []

        def work() -> None:
            for _ in range(50):
                indexes.append(client.request_update(None, b"data"))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(indexes) == list(range(1, 401))


class TestOtherRequests:
    def test_cluster_and_log_info(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers.fill(7)
        listed = tuple((peer_id, peer.url) for peer_id, peer in peers.peers.items())
        assert client.request_config() == ClusterInfo(True, "1", listed)
        assert client.request_log_info() == LogInfo(True, "1", 1, 1, 7, 7, 7, 0, 0)
        assert client.request_broadcast_url() == peers["1"].pub_url

    def test_config_update(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        error = {"name": "Error", "message": "no change in cluster membership"}
        replies = [Protocols.CONFIG_UPDATE.encode_response(1), Protocols.CONFIG_UPDATE.encode_response(1, 9)]
        peers["1"].script[b"&"] = lambda arguments: replies
        assert client.request_config_update(None, [("1", "tcp://h:1")]) == 9
        peers["1"].script[b"&"] = lambda arguments: [Protocols.CONFIG_UPDATE.encode_response(2, error)]
        with pytest.raises(ConfigUpdateRefusedError, match="no change"):
            client.request_config_update(None, [("1", "tcp://h:1")])

    def test_messages_to_the_state_machine(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers["1"].script[b"kv"] = lambda arguments: [[b"answer", *arguments]]
        assert client.request_message(b"kv", b"get", b"key") == [b"answer", b"get", b"key"]

    def test_any_row_of_the_table(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers["1"].script[b"W"] = lambda arguments: [[b"http://localhost:8050"]]
        assert client.request(Protocols.REQUEST_WEB_MONITOR_URL) == ("http://localhost:8050",)
        assert client.request(Protocols.REQUEST_UPDATE, b"data", request_id=new_request_id()) == (True, 1)
        with pytest.raises(LocalProtocolError):
            client.request(Protocols.REQUEST_UPDATE, request_id=new_request_id())
        with pytest.raises(LocalProtocolError):
            client.request(Protocols.STATE_BROADCAST, 1, 1)


class TestEntries:
    def test_the_whole_log(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers.fill(3000)
        with client.request_entries() as stream:
            assert list(stream) == peers.log
            assert stream.last_index == 3000
            with pytest.raises(StopIteration):
                next(stream)

    def test_in_batches(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers.fill(1000)
        with client.request_entries(10, count=500) as stream:
            first = [next(stream), next(stream)]
            batches = list(stream.batches())
        entries = [entry for batch in batches if isinstance(batch, EntryBatch) for entry in batch]
        assert first + entries == peers.log[10:510]
        assert len(batches) == 5

    def test_nothing_to_read(self, client: ZmqRaftClient) -> None:
        assert list(client.request_entries()) == []
        assert list(client.request_entries(700)) == []

    def test_a_snapshot_first(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers.fill(20)
        peers.first_index, peers.snapshot = 11, bytes(range(256)) * 20
        with client.request_entries(3) as stream:
            items = list(stream)
        chunks = [item for item in items if isinstance(item, SnapshotChunk)]
        assert b"".join(chunk.data for chunk in chunks) == peers.snapshot
        assert {(chunk.index, chunk.term, chunk.size) for chunk in chunks} == {(10, 1, 5120)}
        assert items[len(chunks) :] == peers.log[10:]
        with client.request_entries(3, snapshot_offset=5000) as stream:
            first = next(stream)
        assert isinstance(first, SnapshotChunk)
        assert (first.offset, first.data) == (5000, peers.snapshot[5000:])

    def test_another_leader_in_the_middle(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers.fill(3000)
        with client.request_entries() as stream:
            read = [next(stream) for _ in range(150)]
            peers.leader = "2"
            peers["1"].stop()
            read += list(stream)
        assert read == peers.log

    def test_a_gap_is_an_error(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers.fill(10)
        frames = [entry.to_bytes() for entry in peers.log]

        def answer(arguments: Frames) -> list[Frames]:
            encode = Protocols.REQUEST_ENTRIES.encode_response
            return [encode(2, None, 2, frames[:2]), encode(1, None, 10, frames[5:])]

        peers["1"].script[b"<"] = answer
        with client.request_entries() as stream:
            assert [next(stream), next(stream)] == peers.log[:2]
            with pytest.raises(OutOfOrderError):
                next(stream)

    def test_closing_stops_the_peer_and_a_consumer_that_waits(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers.fill(10)
        peers["1"].script[b"<"] = lambda arguments: []
        stream = client.request_entries()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                next(stream)
            except ClosedError as error:
                errors.append(error)

        reading = threading.Thread(target=read)
        reading.start()
        wait_for(lambda: peers["1"].count(b"<") == 1, "the request")
        stream.close()
        stream.close()
        reading.join()
        assert len(errors) == 1
        wait_for(lambda: peers["1"].count(b"<") == 2, "the stop")
        assert peers["1"].received[-1] == (b"<", [b"\x00", b"\x00"])
        with pytest.raises(ClosedError):
            next(stream)
        assert client._session.request_count == 0

    def test_one_that_is_dropped_is_stopped(self, client: ZmqRaftClient, peers: FakePeers) -> None:
        peers.fill(3000)
        stream = client.request_entries()
        next(stream)
        del stream
        gc.collect()
        wait_for(lambda: client._session.request_count == 0, "the end of the stream")

    def test_it_ends_with_the_client(self, peers: FakePeers) -> None:
        with ZmqRaftClient(peers.urls, secret=SECRET) as client:
            peers["1"].script[b"<"] = lambda arguments: []
            stream = client.request_entries()
        with pytest.raises(ClosedError):
            next(stream)
        stream.close()
        with pytest.raises(ClosedError):
            client.request_entries()

    @pytest.mark.parametrize(
        ("previous_index", "count", "offset"), [(-1, None, None), (0, 0, None), (0, None, -1), (2**53, None, None)]
    )
    def test_wrong_arguments(
        self, client: ZmqRaftClient, previous_index: int, count: int | None, offset: int | None
    ) -> None:
        with pytest.raises(LocalProtocolError):
            client.request_entries(previous_index, count=count, snapshot_offset=offset)


class TestOnePeer:
    def test_requests_to_the_leader(self, peers: FakePeers) -> None:
        with ZmqRaftPeerClient(peers["1"].url, secret=SECRET, deadline_s=LONG_S) as client:
            assert client.request_update(None, b"data") == 1
            assert [entry for entry in client.request_entries()] == peers.log  # noqa: C416
            assert client.request_config().is_leader

    def test_requests_to_a_follower(self, peers: FakePeers) -> None:
        with ZmqRaftPeerClient(peers["2"].url, secret=SECRET, deadline_s=LONG_S) as client:
            with pytest.raises(NotLeaderError) as caught:
                client.request_update(None, b"data")
            assert caught.value.leader_id == "1"
            with pytest.raises(NotLeaderError):
                next(client.request_entries())
            assert client.request_config().leader_id == "1"
            assert not client.request_log_info().is_leader
            assert client.request_broadcast_url() == peers["2"].pub_url
        assert peers["1"].received == []

    def test_it_survives_a_restart(self, peers: FakePeers) -> None:
        with ZmqRaftPeerClient(peers["1"].url, secret=SECRET, timeout_ms=100, deadline_s=LONG_S) as client:
            assert client.request_update(None, b"data") == 1
            peers["1"].stop()
            future = client.submit_update(b"data")
            peers["1"].start()
            assert future.result() == 2

    def test_the_protocol_socket(self, peers: FakePeers) -> None:
        with ZmqProtocolSocket(peers["2"].url, secret="secret", deadline_s=LONG_S) as one:
            assert one.request(Protocols.REQUEST_CONFIG)[:2] == (False, "1")
            assert repr(one) == f"<ZmqProtocolSocket of {peers['2'].url}>"
        assert repr(one) == "<ZmqProtocolSocket closed>"


class TestClosing:
    def test_nothing_is_left(self, peers: FakePeers) -> None:
        def descriptors() -> int:
            return len(os.listdir("/proc/self/fd"))

        def use() -> None:
            with ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=LONG_S) as client:
                client.request_update(None, b"data")
                client.submit_update(b"data")

        use()
        threads, before = threading.active_count(), descriptors()
        for _ in range(10):
            use()
        assert threading.active_count() == threads
        # The sockets of ZeroMQ are closed by its own thread, a moment later.
        wait_for(lambda: descriptors() <= before + 2, "closed sockets")

    def test_requests_under_way_fail(self, peers: FakePeers) -> None:
        peers["1"].silent = True
        client = ZmqRaftClient(peers["1"].url, secret=SECRET)
        futures = [client.submit_update(b"data") for _ in range(10)]
        client.close()
        client.close()
        assert client.closed
        assert [type(future.exception()) for future in futures] == [ClosedError] * 10
        for request in (client.request_config, lambda: client.submit_update(b"data")):
            with pytest.raises(ClosedError):
                request()

    def test_one_that_is_forgotten_warns(self, peers: FakePeers) -> None:
        clients = [ZmqRaftClient(peers.urls, secret=SECRET)]
        thread = clients[0]._io_thread._thread
        with pytest.warns(ResourceWarning, match="ZmqRaftClient"):
            clients.clear()
        assert not thread.is_alive()

    def test_a_program_ends_without_closing_it(self, tmp_path: Path) -> None:
        code = """
            from zmqraft.client import ZmqRaftClient
            client = ZmqRaftClient("127.0.0.1:1")
            future = client.submit_update(b"data")
            print("end")
        """
        done = run_python(textwrap.dedent(code), tmp_path)
        assert (done.returncode, done.stdout) == (0, "end\n")

    def test_a_context_that_is_terminated_ends_it(self, peers: FakePeers) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with ZmqRaftClient(peers.urls, secret=SECRET, context=context, deadline_s=LONG_S) as client:
            client.request_update(None, b"data")
            context.term()
            with pytest.raises(ClosedError):
                client.request_update(None, b"data")


class TestSettings:
    @pytest.mark.parametrize("urls", [[], "", "http://h:1", ["h:0"], [("1", "h:99999")], "tcp://*:8047"], ids=repr)
    def test_wrong_urls(self, urls: list[str]) -> None:
        with pytest.raises(ConfigurationError):
            ZmqRaftClient(urls)

    def test_urls_in_all_forms(self, peers: FakePeers) -> None:
        host_and_port = peers["1"].url.removeprefix("tcp://")
        name_and_port = host_and_port.replace("127.0.0.1", "localhost")
        for urls in (host_and_port, [host_and_port], [("a", host_and_port)], iter([peers["1"].url]), name_and_port):
            with ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client:
                assert client.request_config().is_leader

    @pytest.mark.parametrize("timeout_ms", [0, -1, float("inf"), "500"])
    def test_wrong_times(self, timeout_ms: float) -> None:
        with pytest.raises(ConfigurationError, match="timeout_ms"):
            ZmqRaftClient("localhost", timeout_ms=timeout_ms)
        with pytest.raises(ConfigurationError, match="grace"):
            ZmqRaftClient("localhost", server_election_grace_delay_ms=timeout_ms)

    def test_wrong_secrets_and_limits(self) -> None:
        with pytest.raises(ConfigurationError, match="secret"):
            ZmqRaftClient("localhost", secret=5)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="in_flight_max"):
            Limits(in_flight_max=0)


#: A server that goes away while a client reads what it has sent, again and again.
CONNECTIONS_THAT_END = """
import threading

import zmq

from zmqraft.client.sockets import ZmqSocketBase

with zmq.Context() as servers, zmq.Context() as clients:
    for _ in range(20):
        router = servers.socket(zmq.ROUTER)
        router.linger = 0
        router.sndhwm = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with ZmqSocketBase(zmq.DEALER, clients, reconnect=False) as client:
            client.connect(f"tcp://127.0.0.1:{port}")
            assert client.socket.poll(30_000, zmq.POLLOUT)
            assert client.try_send([b"hello"])
            identity = router.recv_multipart()[0]
            for _ in range(200):
                router.send_multipart([identity, *[b"frame"] * 200])
            closing = threading.Thread(target=router.close)
            closing.start()
            while client.socket.poll(50):
                client.receive()
            closing.join()
print("survived")
"""


class TestSocketBase:
    def test_a_connection_that_ends_within_a_message_does_not_end_the_process(self, tmp_path: Path) -> None:
        """libzmq aborted the process: "Assertion failed: !_more (src/fq.cpp:80)", in nearly every run of this."""
        result = run_python(CONNECTIONS_THAT_END, tmp_path)
        assert (result.returncode, result.stdout, result.stderr) == (0, "survived\n", "")

    def test_no_more_than_the_queue_is_taken_without_a_connection(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        with ZmqSocketBase(zmq.DEALER, context, reconnect=False, send_queue_max=2) as one:
            one.connect(dead_url())
            assert [one.try_send([b"message"]) for _ in range(3)] == [True, True, False]
            assert one.receive() is None
        assert one.closed
        for use in (one.receive, lambda: one.try_send([b"message"]), lambda: one.connect(dead_url())):
            with pytest.raises(ClosedError):
                use()

    def test_a_wrong_url(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        with ZmqSocketBase(zmq.DEALER, context, reconnect=False) as one, pytest.raises(LocalProtocolError):
            one.connect("nonsense")
