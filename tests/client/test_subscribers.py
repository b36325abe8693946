"""The blocking subscribers over real sockets, against peers that follow a script (see `support.fake_peers`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from support.fake_peers import SECRET, FakePeers, fake_peers
from support.local_cluster import wait_for
from zmqraft.client import Limits, SnapshotChunk, ZmqRaftPeerSub, ZmqRaftSubscriber
from zmqraft.errors import ClosedError, ConfigurationError, LocalProtocolError, RequestTimeoutError
from zmqraft.protocol.entry import EntryBatch, LogEntry

LONG_S = 60.0
SHORT_S = 0.1


@pytest.fixture
def peers() -> Iterator[FakePeers]:
    with fake_peers(3) as running:
        yield running


@pytest.fixture
def subscriber(peers: FakePeers) -> Iterator[ZmqRaftSubscriber]:
    with ZmqRaftSubscriber(peers.urls, secret=SECRET, deadline_s=LONG_S) as running:
        yield running


def read(subscriber: ZmqRaftSubscriber, count: int) -> list[LogEntry | SnapshotChunk]:
    return [subscriber.get(LONG_S) for _ in range(count)]


class TestSubscriber:
    def test_what_was_there_and_what_comes(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        peers.fill(500)
        assert read(subscriber, 500) == peers.log
        for n in range(500):
            peers.commit(b"%d" % n)
        assert read(subscriber, 500) == peers.log[500:]
        assert subscriber.last_index == 1000

    def test_from_an_index_on(self, peers: FakePeers) -> None:
        peers.fill(100)
        with ZmqRaftSubscriber(peers.urls, secret=SECRET, last_index=90) as subscriber:
            assert subscriber.last_index == 90
            assert read(subscriber, 10) == peers.log[90:]

    def test_it_writes_too(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        futures = [subscriber.submit_update(b"%d" % n) for n in range(300)]
        entries = read(subscriber, 300)
        assert [future.result() for future in futures] == [entry.index for entry in entries]
        assert subscriber.request_update(None, b"last") == 301
        assert read(subscriber, 1) == peers.log[300:]

    def test_what_is_not_published_is_fetched(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        for n in range(600):
            peers.commit(b"%d" % n, publish=n % 7 == 0)
        assert read(subscriber, 600) == peers.log

    def test_heartbeats_tell_of_what_was_not_published(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        peers.commit(b"first")
        assert read(subscriber, 1) == peers.log
        peers.fill(5)
        assert read(subscriber, 5) == peers.log[1:]

    def test_a_snapshot_first(self, peers: FakePeers) -> None:
        peers.fill(20)
        peers.first_index, peers.snapshot = 11, bytes(2500)
        with ZmqRaftSubscriber(peers.urls, secret=SECRET) as subscriber:
            chunks = [subscriber.get(LONG_S) for _ in range(3)]
            assert subscriber.last_index == 10
            assert read(subscriber, 10) == peers.log[10:]
        assert [(chunk.index, chunk.offset) for chunk in chunks if isinstance(chunk, SnapshotChunk)] == [
            (10, 0),
            (10, 1000),
            (10, 2000),
        ]

    def test_another_leader(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        peers.commit(b"first")
        assert read(subscriber, 1) == peers.log
        for leader in ("2", "3", "1"):
            peers[str(peers.leader)].stop()
            peers.leader = leader
            for n in range(50):
                peers.commit(b"%d" % n)
            assert read(subscriber, 50) == peers.log[-50:]
            for peer in peers.peers.values():
                peer.start()

    def test_a_silent_leader_is_left(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        peers.commit(b"first")
        assert read(subscriber, 1) == peers.log
        peers["1"].silent = True
        peers.leader = "2"
        peers.commit(b"second", publish=False)
        assert read(subscriber, 1) == peers.log[1:]

    def test_what_another_cluster_publishes_is_not_taken(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        """SUB sockets match by prefix, so a longer secret comes through."""
        peers.commit(b"first")
        assert read(subscriber, 1) == peers.log
        wrong = LogEntry(2, 1, peers.log[0].type, bytes(12), b"wrong")

        def dropped() -> bool:
            peers["1"].publish([wrong], secret=SECRET + b"s")
            peers["1"].publish_frames([SECRET, b"garbage"])
            return subscriber._feed.malformed_messages >= 2

        wait_for(dropped, "both")
        peers.commit(b"right")
        assert read(subscriber, 1) == peers.log[1:]

    def test_a_slow_consumer_holds_up_nobody_and_misses_nothing(self, peers: FakePeers) -> None:
        limits = Limits(buffer_size_max=20_000)
        with ZmqRaftSubscriber(peers.urls, secret=SECRET, limits=limits, deadline_s=LONG_S) as subscriber:
            first = subscriber.request_update(None, b"first")
            for n in range(2000):
                peers.commit(b"%d" % n)
            assert subscriber.request_update(None, b"last") == first + 2001
            assert subscriber._feed._unconsumed_size < 40_000
            assert read(subscriber, 2002) == peers.log

    def test_in_batches(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        peers.fill(300)
        entries = [subscriber.get(LONG_S)]
        batches = subscriber.batches()
        while len(entries) < 300:
            batch = next(batches)
            assert isinstance(batch, EntryBatch)
            entries += list(batch)
        assert entries == peers.log
        assert subscriber.last_index == 300

    def test_waiting_has_an_end(self, subscriber: ZmqRaftSubscriber, peers: FakePeers) -> None:
        with pytest.raises(RequestTimeoutError):
            subscriber.get(SHORT_S)
        with pytest.raises(TimeoutError):
            subscriber.get_batch(SHORT_S)
        peers.commit(b"first")
        assert read(subscriber, 1) == peers.log

    def test_a_cluster_that_is_not_there_yet(self) -> None:
        with fake_peers(1) as peers:
            peers["1"].stop()
            with ZmqRaftSubscriber(peers.urls, secret=SECRET, timeout_ms=50) as subscriber:
                with pytest.raises(RequestTimeoutError):
                    subscriber.get(SHORT_S)
                peers["1"].start()
                peers.commit(b"first")
                assert read(subscriber, 1) == peers.log

    def test_closing_it_in_another_thread_ends_the_iteration(self, peers: FakePeers) -> None:
        subscriber = ZmqRaftSubscriber(peers.urls, secret=SECRET)
        peers.fill(3)
        entries: list[LogEntry | SnapshotChunk] = []
        reading = threading.Thread(target=lambda: entries.extend(subscriber))
        reading.start()
        wait_for(lambda: subscriber.last_index == 3, "the entries")
        subscriber.close()
        reading.join()
        assert entries == peers.log
        assert list(subscriber) == []
        assert list(subscriber.batches()) == []
        with pytest.raises(ClosedError):
            subscriber.get()

    def test_wrong_settings(self) -> None:
        with pytest.raises(LocalProtocolError):
            ZmqRaftSubscriber("localhost", last_index=-1)
        with pytest.raises(ConfigurationError):
            ZmqRaftSubscriber("localhost", broadcast_timeout_ms=0)


class TestPeerSub:
    def test_what_one_peer_publishes(self, peers: FakePeers) -> None:
        with ZmqRaftPeerSub(peers["1"].url, secret=SECRET, deadline_s=LONG_S) as subscriber:
            term, last_applied, entries = subscriber.get(LONG_S)
            assert (term, last_applied, len(entries)) == (1, 0, 0)
            peers.fill(3)
            peers.commit(b"fourth")
            message = next(message for message in subscriber if len(message[2]))
            assert message[:2] == (1, 4)
            assert list(message[2]) == peers.log[3:]
            assert subscriber.request_update(None, b"fifth") == 5

    def test_one_that_does_not_lead_publishes_nothing(self, peers: FakePeers) -> None:
        with ZmqRaftPeerSub(peers["2"].url, secret=SECRET) as subscriber, pytest.raises(RequestTimeoutError):
            subscriber.get(SHORT_S)

    def test_closing_it_ends_the_iteration(self, peers: FakePeers) -> None:
        subscriber = ZmqRaftPeerSub(peers["2"].url, secret=SECRET)
        messages: list[object] = []
        reading = threading.Thread(target=lambda: messages.extend(subscriber))
        reading.start()
        wait_for(lambda: peers["2"].count(b"*") > 0, "the question for the url")
        subscriber.close()
        reading.join()
        assert messages == []

    def test_a_slow_consumer_pauses_the_socket(self, peers: FakePeers) -> None:
        limits = Limits(buffer_size_max=5000)
        with ZmqRaftPeerSub(peers["1"].url, secret=SECRET, limits=limits) as subscriber:
            subscriber.get(LONG_S)
            for n in range(100):
                peers.commit(b"%d" % n)
            wait_for(lambda: subscriber._feed.paused, "the pause")
            indexes = [entry.index for _ in range(100) for entry in subscriber.get(LONG_S)[2]]
            assert indexes == sorted(indexes)
