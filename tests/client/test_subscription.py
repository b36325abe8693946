"""Following the log in virtual time: the publisher, gaps, slow consumers (SPEC section 2 "Broadcast")."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.session_driver import GRACE_S, SECRET, URLS, Driver, Sent, entry_frames
from zmqraft.client.entries_request import item_size
from zmqraft.client.peer_broadcast import Broadcast, PeerBroadcast
from zmqraft.client.results import SnapshotChunk
from zmqraft.client.splicer import Splicer
from zmqraft.client.subscription import Subscription
from zmqraft.errors import ClosedError
from zmqraft.protocol.entries_flow import EntriesItem
from zmqraft.protocol.entry import EntryBatch
from zmqraft.protocol.schema import Protocols

SILENCE_S = 1.0
PUB_URL = "tcp://10.0.0.1:9047"
LAST, MORE, SNAPSHOT = 1, 2, 3


def batch(first: int, last: int) -> EntryBatch:
    return EntryBatch.from_frames(first, entry_frames(first, last))


class Follower:
    """A subscription over a driven session; its consumer takes everything at once unless it is ``slow``."""

    def __init__(self, last_index: int = 0, *, slow: bool = False, buffer_size_max: int = 1 << 20) -> None:
        self.driver = Driver.following()
        self.slow = slow
        self.items: list[EntriesItem] = []
        self.error: BaseException | None = None
        self.subscription = Subscription(
            self.driver.session,
            self,
            last_index=last_index,
            silence_s=SILENCE_S,
            retry_delay_s=GRACE_S,
            buffer_size_max=buffer_size_max,
        )
        self.tick()

    def put(self, item: EntriesItem, /) -> None:
        self.items.append(item)
        if not self.slow:
            self.take(item)

    def set_exception(self, exception: BaseException, /) -> None:
        self.error = exception

    @property
    def indexes(self) -> list[int]:
        return [entry.index for item in self.items if isinstance(item, EntryBatch) for entry in item]

    def take(self, item: EntriesItem) -> None:
        self.subscription.consumed(item_size(item), self.driver.now)

    def tick(self) -> None:
        self.subscription.tick(self.driver.now)
        self.driver.flush()

    def advance(self, seconds: float) -> None:
        """Let time pass for the session and the subscription, in steps that both want."""
        end = self.driver.now + seconds
        while (at := self.subscription.next_time()) is not None and at <= end:
            self.driver.advance(max(at - self.driver.now, 0))
            self.tick()
        self.driver.advance(end - self.driver.now)
        self.tick()

    def read(self) -> list[Sent]:
        self.tick()
        return self.driver.read()

    def read_one(self, message_type: bytes) -> Sent:
        """The one message of this type among those that were sent; the others are not wanted."""
        (message,) = [message for message in self.read() if message.type == message_type]
        return message

    def publish(self, last_applied: int, first: int | None = None, *, secret: bytes = SECRET) -> None:
        """A message of the publisher: entries from ``first`` to ``last_applied``, or a heartbeat."""
        frames = entry_frames(first, last_applied) if first is not None else []
        message = Protocols.STATE_BROADCAST.encode_request(secret, 1, last_applied, frames)
        self.subscription.receive(message, self.driver.now)
        self.tick()

    def entries(self, message: Sent, status: int, first: int, last: int) -> None:
        self.driver.reply(message, Protocols.REQUEST_ENTRIES, status, None, last, entry_frames(first, last))
        self.tick()

    def nothing(self, message: Sent, last_applied: int) -> None:
        self.driver.reply(message, Protocols.REQUEST_ENTRIES, LAST, None, last_applied)
        self.tick()

    def find_leader(self, peer_id: str = "1", url: str | None = PUB_URL) -> Sent:
        """Answer what it asks until it is subscribed; its request for entries."""
        self.driver.find_leader(peer_id)
        fetch = None
        for message in self.read():
            if message.type == b"*":
                self.driver.reply(message, Protocols.REQUEST_BROADCAST_URL, url or "")
            else:
                fetch = message
        self.tick()
        assert fetch is not None
        assert fetch.type == b"<"
        return fetch


def following(last_index: int = 0, *, applied: int | None = None, slow: bool = False, size: int = 1 << 20) -> Follower:
    """A follower that is subscribed and has all that there is."""
    follower = Follower(last_index, slow=slow, buffer_size_max=size)
    fetch = follower.find_leader()
    follower.nothing(fetch, last_index if applied is None else applied)
    rest = follower.read()
    for message in rest:
        follower.nothing(message, last_index)
    return follower


class TestPublisher:
    def test_the_leader_is_asked_where_it_publishes(self) -> None:
        follower = Follower()
        assert follower.subscription.url is None
        follower.find_leader()
        assert (follower.subscription.generation, follower.subscription.url) == (1, PUB_URL)
        assert follower.subscription.topic == SECRET

    @pytest.mark.parametrize("url", [None, "nonsense://", "tcp://*:9047"])
    def test_without_a_url_the_log_is_fetched_from_time_to_time(self, url: str | None) -> None:
        follower = Follower()
        fetch = follower.find_leader(url=url)
        follower.entries(fetch, LAST, 1, 3)
        assert follower.subscription.url is None
        indexes = [1, 2, 3]
        for _ in range(3):
            for message in follower.read():
                follower.nothing(message, indexes[-1])
            follower.advance(SILENCE_S)
            fetches = []
            for _ in range(4):
                for message in follower.read():
                    if message.type == b"^":
                        follower.driver.cluster_info(message, "1", leads=message.url == URLS["1"])
                    elif message.type == b"*":
                        follower.driver.reply(message, Protocols.REQUEST_BROADCAST_URL, url or "")
                    else:
                        fetches.append(message)
            follower.entries(fetches[-1], LAST, indexes[-1] + 1, indexes[-1] + 2)
            indexes += [indexes[-1] + 1, indexes[-1] + 2]
        assert follower.indexes == indexes

    def test_after_silence_the_leader_is_looked_for_and_a_new_socket_made(self) -> None:
        follower = following()
        follower.advance(SILENCE_S / 2)
        follower.publish(0)
        follower.advance(SILENCE_S - 0.001)
        assert follower.driver.session.ready
        follower.advance(0.001)
        assert not follower.driver.session.ready
        leader = next(peer for peer, url in URLS.items() if url == follower.driver.session.url)
        follower.find_leader(leader, PUB_URL)
        assert (follower.subscription.generation, follower.subscription.url) == (2, PUB_URL)

    def test_heartbeats_keep_it(self) -> None:
        follower = following()
        for _ in range(10):
            follower.advance(0.5)
            follower.publish(0)
        assert follower.read() == []
        assert follower.subscription.generation == 1

    def test_another_leader_is_asked_for_its_url(self) -> None:
        follower = following()
        follower.driver.update()
        follower.driver.not_leader(follower.driver.read_one(b"="), "3")
        follower.driver.find_leader("3")
        messages = {message.type: message for message in follower.read()}
        assert set(messages) == {b"=", b"*"}
        follower.driver.reply(messages[b"*"], Protocols.REQUEST_BROADCAST_URL, "tcp://10.0.0.3:9047")
        follower.tick()
        assert (follower.subscription.generation, follower.subscription.url) == (2, "tcp://10.0.0.3:9047")
        follower.read_one(b"<")

    def test_a_leader_that_does_not_say_is_given_up_for_a_while(self) -> None:
        follower = Follower()
        follower.driver.find_leader("1")
        asked = 0
        for _ in range(100):
            for message in follower.read():
                if message.type == b"^":
                    follower.driver.cluster_info(message, "1", leads=message.url == URLS["1"])
                elif message.type == b"<":
                    follower.nothing(message, 0)
                asked += message.type == b"*"
            follower.advance(0.1)
        assert asked < 40
        assert follower.error is None

    def test_closing(self) -> None:
        follower = following()
        error = ClosedError("closed")
        follower.driver.session.close(error)
        follower.subscription.close(error)
        assert follower.error is error
        follower.tick()
        assert follower.driver.read() == []


class TestOrder:
    def test_what_was_there_before_is_fetched_first(self) -> None:
        follower = Follower(2)
        fetch = follower.find_leader()
        follower.publish(9, 8)
        assert follower.indexes == []
        follower.entries(fetch, MORE, 3, 5)
        follower.entries(fetch, LAST, 6, 8)
        assert follower.indexes == [3, 4, 5, 6, 7, 8, 9]

    def test_a_fetch_that_meets_what_was_published_is_stopped(self) -> None:
        follower = Follower()
        fetch = follower.find_leader()
        follower.publish(9, 5)
        follower.entries(fetch, MORE, 1, 4)
        assert follower.indexes == list(range(1, 10))
        stop = follower.read()[-1]
        assert stop.id == fetch.id
        assert stop.arguments[-1] == b"\x00"
        assert follower.driver.session.request_count == 0

    def test_what_follows_is_given_out_at_once(self) -> None:
        follower = following()
        follower.publish(1, 1)
        follower.publish(4, 2)
        assert follower.indexes == [1, 2, 3, 4]
        assert follower.read() == []

    def test_repeated_and_overlapping_messages_are_cut(self) -> None:
        follower = following(applied=0)
        for first, last in ((1, 3), (1, 3), (2, 4), (1, 2), (5, 6), (1, 8)):
            follower.publish(last, first)
        assert follower.indexes == list(range(1, 9))

    def test_a_lost_message_is_fetched(self) -> None:
        follower = following()
        follower.publish(2, 1)
        follower.publish(6, 5)
        assert follower.indexes == [1, 2]
        fetch = follower.read_one(b"<")
        assert fetch.arguments == (b"\x02",)
        follower.publish(7, 7)
        follower.entries(fetch, LAST, 3, 7)
        assert follower.indexes == list(range(1, 8))

    def test_a_heartbeat_tells_of_a_lost_message(self) -> None:
        follower = following()
        follower.publish(3)
        follower.entries(follower.read_one(b"<"), LAST, 1, 3)
        assert follower.indexes == [1, 2, 3]

    def test_several_gaps(self) -> None:
        follower = following()
        for first, last in ((3, 4), (7, 8), (11, 12)):
            follower.publish(last, first)
        while len(follower.indexes) < 12:
            message = follower.read_one(b"<")
            after = follower.subscription.position
            follower.entries(message, LAST, after + 1, min(after + 3, 12))
        assert follower.indexes == list(range(1, 13))

    def test_what_is_news_is_fetched_at_once(self) -> None:
        follower = following()
        follower.publish(5)
        follower.nothing(follower.read_one(b"<"), 0)
        assert follower.read() == []
        follower.publish(6)
        follower.entries(follower.read_one(b"<"), LAST, 1, 6)
        assert follower.indexes == list(range(1, 7))

    def test_a_fetch_that_brings_nothing_is_not_repeated_busily(self) -> None:
        follower = following()
        follower.publish(5)
        fetches = 0
        for _ in range(100):
            for message in follower.read():
                if message.type == b"<":
                    fetches += 1
                    follower.nothing(message, 0)
            follower.publish(5)
            follower.advance(0.01)
        assert 2 <= fetches <= 1.0 / GRACE_S + 2

    def test_a_fetch_out_of_order_starts_again(self) -> None:
        follower = following()
        follower.publish(5)
        follower.entries(follower.read_one(b"<"), LAST, 3, 5)
        assert follower.indexes == []
        stop = follower.read_one(b"<")
        assert stop.arguments[-1] == b"\x00"
        follower.advance(GRACE_S)
        follower.entries(follower.read_one(b"<"), LAST, 1, 5)
        assert follower.indexes == [1, 2, 3, 4, 5]

    def test_a_snapshot_comes_first_where_the_log_begins_later(self) -> None:
        follower = Follower()
        fetch = follower.find_leader()
        follower.publish(102, 102)
        reply = Protocols.REQUEST_ENTRIES
        follower.driver.reply(fetch, reply, SNAPSHOT, [0, 8, 1], 100, [b"abcd"])
        follower.tick()
        follower.driver.reply(fetch, reply, SNAPSHOT, [4, 8, 1], 100, [b"efgh"])
        follower.entries(fetch, LAST, 101, 101)
        first, second, *_ = follower.items
        assert first == SnapshotChunk(100, 1, 0, 8, b"abcd")
        assert second == SnapshotChunk(100, 1, 4, 8, b"efgh")
        assert follower.indexes == [101, 102]

    @pytest.mark.parametrize(
        "message",
        [
            [],
            [SECRET],
            [SECRET, b"\x01"],
            [SECRET, b"", b"\x01"],
            [SECRET, b"\x01", b"\x00", *entry_frames(1, 1)],
            [SECRET, b"\x01", b"\x01", b"no entry"],
            [SECRET + b"-longer", b"\x01", b"\x01", *entry_frames(1, 1)],
        ],
        ids=repr,
    )
    def test_malformed_and_foreign_messages_are_dropped_and_counted(self, message: list[bytes]) -> None:
        """A SUB socket also takes what a cluster publishes whose secret begins with ours."""
        follower = following()
        follower.subscription.receive(message, follower.driver.now)
        follower.tick()
        assert follower.subscription.malformed_messages == 1
        assert follower.items == []
        follower.publish(1, 1)
        assert follower.indexes == [1]


class TestSlowConsumer:
    def test_what_is_given_out_is_bounded_and_what_was_dropped_is_fetched(self) -> None:
        follower = following(slow=True, size=4 * item_size(batch(1, 1)))
        for index in range(1, 21):
            follower.publish(index, index)
        given = len(follower.items)
        assert given == 4
        waiting = list(follower.items)
        for _ in range(200):
            if len(follower.indexes) == 20 and not waiting:
                break
            if waiting:
                follower.take(waiting.pop(0))
            before = len(follower.items)
            for message in follower.read():
                assert message.type == b"<"
                if message.arguments[-1] != b"\x00" and follower.subscription.position < 20:
                    first = int.from_bytes(message.arguments[0], "little") + 1
                    follower.entries(message, MORE if first < 20 else LAST, first, first)
            waiting += follower.items[before:]
            assert len(waiting) <= 6
        assert follower.indexes == list(range(1, 21))

    def test_a_stream_waits_for_the_consumer(self) -> None:
        follower = Follower(slow=True, buffer_size_max=2 * item_size(batch(1, 1)))
        fetch = follower.find_leader()
        for index in range(1, 6):
            follower.entries(fetch, MORE, index, index)
        assert len(follower.items) == 2
        assert sum(message.type == b"<" for message in follower.read()) == 2
        follower.take(follower.items[0])
        follower.tick()
        assert follower.indexes == [1, 2, 3]
        follower.read_one(b"<")


class TestSplicer:
    @given(seed=st.integers(0, 2**32), size_max=st.sampled_from([1, 200, 10_000]))
    def test_whatever_comes_in_the_log_comes_out(self, seed: int, size_max: int) -> None:
        """Published messages are lost, repeated and cut anyhow; fetches start at the position and end anywhere."""
        rng = random.Random(seed)
        splicer = Splicer(0, size_max)
        out: list[int] = []
        last = 30
        for _ in range(60):
            first = rng.randint(1, last)
            splicer.published(batch(first, rng.randint(first, min(first + 5, last))))
            if rng.random() < 0.5:
                first = splicer.position + 1 - rng.randint(0, min(splicer.position, 2))
                fetched = splicer.fetched(batch(first, min(first + rng.randint(0, 4), last))) if first <= last else None
                out += [entry.index for entry in fetched] if isinstance(fetched, EntryBatch) else []
            while rng.random() < 0.8 and (taken := splicer.take()) is not None:
                out += [entry.index for entry in taken]
            assert splicer._aside_size == sum(kept.size for kept in splicer._aside)
            assert len(splicer._aside) <= 1 or splicer._aside_size <= size_max
        assert out == list(range(1, len(out) + 1))
        assert splicer.position == len(out)

    def test_a_gap_in_what_is_fetched_is_not_taken(self) -> None:
        splicer = Splicer(0, 1000)
        assert splicer.fetched(batch(2, 3)) is None
        assert splicer.position == 0


class TestPeerBroadcast:
    def make(self, size: int = 1 << 20) -> tuple[Driver, PeerBroadcast, list[Broadcast]]:
        driver = Driver.for_peer()
        items: list[Broadcast] = []

        class Sink:
            def put(self, item: Broadcast, /) -> None:
                items.append(item)

            def set_exception(self, exception: BaseException, /) -> None:
                raise AssertionError(exception)

        broadcast = PeerBroadcast(driver.session, Sink(), silence_s=5.0, buffer_size_max=size)
        broadcast.tick(driver.now)
        driver.reply(driver.read_one(b"*"), Protocols.REQUEST_BROADCAST_URL, PUB_URL)
        broadcast.tick(driver.now)
        return driver, broadcast, items

    def message(self, last_applied: int, *frames: bytes) -> list[bytes]:
        return Protocols.STATE_BROADCAST.encode_request(SECRET, 7, last_applied, list(frames))

    def test_messages_come_as_they_are(self) -> None:
        driver, broadcast, items = self.make()
        assert (broadcast.generation, broadcast.url) == (1, PUB_URL)
        broadcast.receive(self.message(3, *entry_frames(2, 3)), driver.now)
        broadcast.receive(self.message(9), driver.now)
        broadcast.receive(self.message(8, *entry_frames(8, 8)), driver.now)
        broadcast.receive([b"x"], driver.now)
        assert [(term, last, len(entries)) for term, last, entries in items] == [(7, 3, 2), (7, 9, 0), (7, 8, 1)]
        assert items[0][2] == batch(2, 3)
        assert broadcast.malformed_messages == 1

    def test_a_slow_consumer_pauses_it(self) -> None:
        driver, broadcast, items = self.make(size=500)
        while not broadcast.paused:
            broadcast.receive(self.message(1, *entry_frames(1, 1)), driver.now)
        assert len(items) == 2
        broadcast.consumed(400, driver.now)
        assert not broadcast.paused

    @pytest.mark.parametrize(("url", "generation"), [(PUB_URL, 1), ("tcp://10.0.0.1:9999", 2), ("", 1)])
    def test_after_silence_it_is_asked_for_its_url_again(self, url: str, generation: int) -> None:
        driver, broadcast, _ = self.make()
        driver.advance(4.9)
        broadcast.tick(driver.now)
        assert driver.read() == []
        driver.advance(0.1)
        broadcast.tick(driver.now)
        driver.reply(driver.read_one(b"*"), Protocols.REQUEST_BROADCAST_URL, url)
        broadcast.tick(driver.now)
        assert broadcast.generation == generation
