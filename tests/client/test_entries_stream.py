"""RequestEntries in virtual time: order, flow control, snapshots, and going on elsewhere (SPEC section 2)."""

from __future__ import annotations

import pytest

from support.session_driver import GRACE_S, SECRET, TIMEOUT_S, URLS, Driver, Sent, Sink, entry_frames
from zmqraft.client.entries_request import EntriesRequest
from zmqraft.client.results import SnapshotChunk
from zmqraft.constants import REQUEST_ENTRIES
from zmqraft.errors import ClosedError, NotLeaderError, OutOfOrderError, RequestTimeoutError
from zmqraft.protocol.entries_flow import EntriesFlow
from zmqraft.protocol.entry import EntryBatch
from zmqraft.protocol.schema import Protocols

LAST, MORE, SNAPSHOT = 1, 2, 3


class Reader:
    """A stream over a session, whose consumer takes items when told to."""

    def __init__(
        self, driver: Driver, previous_index: int = 0, count: int | None = None, offset: int | None = None
    ) -> None:
        self.driver = driver
        self.sink = Sink()
        self.request = EntriesRequest(SECRET, EntriesFlow(previous_index, count, offset), self.sink)
        self.taken = 0
        driver.start(self.request)

    @property
    def indexes(self) -> list[int]:
        """The indexes of the entries that came, of snapshots (negative) the last one."""
        indexes: list[int] = []
        for item in self.sink.items:
            if isinstance(item, EntryBatch):
                indexes += [entry.index for entry in item]
            elif item.is_last:
                indexes.append(-item.index)
        return indexes

    @property
    def chunks(self) -> list[tuple[int, int, bytes]]:
        return [(item.index, item.offset, item.data) for item in self.sink.items if isinstance(item, SnapshotChunk)]

    def take(self, count: int = 1) -> None:
        """Consume the next items."""
        for _ in range(count):
            assert self.taken < len(self.sink.items), "nothing to take"
            self.taken += 1
            self.request.consumed(self.driver.session, self.driver.now)
        self.driver.flush()

    def entries(self, message: Sent, status: int, first: int, last: int) -> None:
        frames = entry_frames(first, last)
        self.driver.reply(message, Protocols.REQUEST_ENTRIES, status, None, last, frames)

    def chunk(
        self, message: Sent, offset: int, data: bytes, *, size: int = 10, index: int = 100, term: int = 3
    ) -> None:
        self.driver.reply(message, Protocols.REQUEST_ENTRIES, SNAPSHOT, [offset, size, term], index, [data])


def arguments(message: Sent) -> tuple[int, int | None, int | None]:
    """Previous index, count and snapshot offset of a message."""
    assert message.type == b"<"
    frames = [REQUEST_ENTRIES, SECRET, *message.arguments]
    previous, count, offset = Protocols.REQUEST_ENTRIES.decode_request(frames)[2:]
    return previous, count, offset


def ready() -> Driver:
    driver = Driver.following()
    driver.update()
    driver.find_leader("1")
    driver.committed(driver.read_one(b"="), 1)
    return driver


class TestEntries:
    def test_one_reply(self) -> None:
        driver = ready()
        reader = Reader(driver, 3)
        message = driver.read_one(b"<")
        assert arguments(message) == (3, None, None)
        reader.entries(message, LAST, 4, 9)
        assert reader.indexes == [4, 5, 6, 7, 8, 9]
        assert reader.sink.result is None
        reader.take()
        assert driver.read() == []
        assert driver.session.request_count == 0

    def test_nothing_to_read(self) -> None:
        driver = ready()
        reader = Reader(driver, 700)
        driver.reply(driver.read_one(b"<"), Protocols.REQUEST_ENTRIES, LAST, None, 7)
        assert reader.sink.result is None
        assert reader.sink.items == []

    def test_each_reply_is_acknowledged_when_it_was_consumed(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        for n in range(5):
            reader.entries(message, MORE, 10 * n + 1, 10 * n + 10)
        assert driver.read() == []
        reader.take(2)
        first, second = driver.read()
        assert (first.id, arguments(first)) == (message.id, (10, None, None))
        assert (second.id, arguments(second)) == (message.id, (20, None, None))
        reader.entries(message, LAST, 51, 51)
        assert reader.indexes == list(range(1, 52))
        assert reader.sink.result is None
        reader.take(4)
        assert driver.read() == []

    def test_the_count_goes_down_by_what_came(self) -> None:
        driver = ready()
        reader = Reader(driver, 0, 25)
        message = driver.read_one(b"<")
        assert arguments(message) == (0, 25, None)
        reader.entries(message, MORE, 1, 10)
        reader.entries(message, MORE, 11, 20)
        reader.take(2)
        assert [arguments(m) for m in driver.read()] == [(10, 15, None), (20, 5, None)]
        reader.entries(message, LAST, 21, 25)
        assert reader.sink.result is None

    def test_more_than_was_asked_for_is_cut_off_and_the_peer_stopped(self) -> None:
        driver = ready()
        reader = Reader(driver, 0, 5)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 10)
        assert reader.indexes == [1, 2, 3, 4, 5]
        assert reader.sink.result is None
        stop = driver.read_one(b"<")
        assert (stop.id, arguments(stop)) == (message.id, (5, 0, None))

    def test_cancelling_stops_the_peer(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 10)
        assert driver.session.cancel(reader.request)
        stop = driver.read_one(b"<")
        assert (stop.id, arguments(stop)) == (message.id, (10, 0, None))
        reader.take()
        reader.entries(message, MORE, 11, 20)
        assert driver.read() == []
        assert reader.indexes == list(range(1, 11))
        assert reader.sink.pending
        assert driver.session.counters.unknown_replies == 1

    def test_the_deadline_is_that_of_the_whole_stream(self) -> None:
        driver = ready()
        reader = Reader(driver)
        driver.session.cancel(reader.request)
        reader.request.deadline = driver.now + 1
        driver.start(reader.request)
        driver.advance(1)
        assert isinstance(reader.sink.result, RequestTimeoutError)

    def test_closing(self) -> None:
        driver = ready()
        reader = Reader(driver)
        reader.entries(driver.read_one(b"<"), MORE, 1, 2)
        driver.session.close()
        assert isinstance(reader.sink.result, ClosedError)
        reader.take()


class TestOrder:
    def test_a_gap_is_an_error(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 5)
        reader.entries(message, MORE, 7, 9)
        assert isinstance(reader.sink.result, OutOfOrderError)
        assert reader.indexes == [1, 2, 3, 4, 5]
        assert arguments(driver.read_one(b"<")) == (5, 0, None)

    def test_what_came_before_is_cut_off(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 5)
        reader.entries(message, MORE, 4, 8)
        reader.entries(message, LAST, 2, 9)
        assert reader.indexes == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert reader.sink.result is None

    @pytest.mark.parametrize("taken", [True, False])
    def test_a_reply_that_came_before_is_dropped_and_the_stream_begun_anew(self, taken: bool) -> None:
        """Acknowledging it would have the peer send everything once more, and that again."""
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 5)
        if taken:
            reader.take()
            driver.read()
        reader.entries(message, MORE, 1, 5)
        stop = driver.read_one(b"<")
        assert (stop.id, arguments(stop)) == (message.id, (5, 0, None))
        if taken:
            driver.session.receive([message.id, b""], driver.now + TIMEOUT_S / 2)
            driver.advance(TIMEOUT_S)
        else:
            reader.take()
        again = driver.read_one(b"<")
        assert again.id != message.id
        assert arguments(again) == (5, None, None)
        assert reader.indexes == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("status", "value", "last_index", "frames"),
        [
            (MORE, None, 5, []),
            (LAST, None, None, []),
            (LAST, None, 2, entry_frames(1, 3)),
            (LAST, None, 1, [b"short"]),
            (LAST, None, 1, [entry_frames(1, 1)[0][:12] + b"\x07" + entry_frames(1, 1)[0][13:]]),
            (4, None, 1, entry_frames(1, 1)),
            (0, 5, None, []),
            (SNAPSHOT, None, 100, [b"data"]),
            (SNAPSHOT, [0, 10], 100, [b"data"]),
            (SNAPSHOT, [0, 10, "3"], 100, [b"data"]),
            (SNAPSHOT, [-1, 10, 3], 100, [b"data"]),
            (SNAPSHOT, [True, 10, 3], 100, [b"data"]),
            (SNAPSHOT, [0, 10, 3], 100, []),
            (SNAPSHOT, [0, 10, 3], 100, [b"a", b"b"]),
            (SNAPSHOT, [0, 10, 3], 100, [b""]),
            (SNAPSHOT, [8, 10, 3], 100, [b"data"]),
            (SNAPSHOT, [0, 10, 3], None, []),
        ],
        ids=repr,
    )
    def test_malformed_replies_are_dropped_and_counted(
        self, status: int, value: object, last_index: int | None, frames: list[bytes]
    ) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        values = [status, value, last_index, frames] if last_index is not None else [status, value]
        driver.reply(message, Protocols.REQUEST_ENTRIES, *values)
        assert driver.session.counters.malformed_replies == 1
        assert reader.sink.items == []
        assert reader.sink.pending
        reader.entries(message, LAST, 1, 2)
        assert reader.indexes == [1, 2]
        assert reader.sink.result is None


class TestSnapshot:
    def test_chunks_then_entries(self) -> None:
        driver = ready()
        reader = Reader(driver, 50, 7)
        message = driver.read_one(b"<")
        reader.chunk(message, 0, b"0123")
        reader.chunk(message, 4, b"4567")
        reader.take(2)
        assert [arguments(m) for m in driver.read()] == [(50, 7, 4), (50, 7, 8)]
        reader.chunk(message, 8, b"89")
        reader.take()
        assert arguments(driver.read_one(b"<")) == (100, 7, None)
        reader.entries(message, LAST, 101, 107)
        assert reader.chunks == [(100, 0, b"0123"), (100, 4, b"4567"), (100, 8, b"89")]
        assert reader.indexes == [-100, *range(101, 108)]
        assert reader.sink.result is None

    def test_an_empty_snapshot(self) -> None:
        driver = ready()
        reader = Reader(driver)
        reader.chunk(driver.read_one(b"<"), 0, b"", size=0)
        reader.take()
        assert arguments(driver.read_one(b"<")) == (100, None, None)

    def test_from_an_offset(self) -> None:
        driver = ready()
        reader = Reader(driver, 0, None, 6)
        message = driver.read_one(b"<")
        assert arguments(message) == (0, None, 6)
        reader.chunk(message, 6, b"6789")
        assert reader.chunks == [(100, 6, b"6789")]

    def test_from_an_offset_beyond_the_end(self) -> None:
        driver = ready()
        reader = Reader(driver, 0, None, 99)
        message = driver.read_one(b"<")
        reader.chunk(message, 10, b"")
        reader.take()
        assert arguments(driver.read_one(b"<")) == (100, None, None)

    def test_an_offset_where_no_snapshot_is_needed(self) -> None:
        driver = ready()
        reader = Reader(driver, 0, None, 6)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 3)
        reader.take()
        assert arguments(driver.read_one(b"<")) == (3, None, None)

    @pytest.mark.parametrize("offset", [2, 5, 8])
    def test_a_gap_or_another_start_is_an_error(self, offset: int) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        if offset > 2:
            reader.chunk(message, 0, b"0123")
        reader.chunk(message, offset, b"x")
        assert isinstance(reader.sink.result, OutOfOrderError)

    def test_entries_before_its_end_are_an_error(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.chunk(message, 0, b"0123")
        reader.entries(message, LAST, 1, 3)
        assert isinstance(reader.sink.result, OutOfOrderError)

    def test_a_snapshot_of_what_came_before_is_an_error(self) -> None:
        driver = ready()
        reader = Reader(driver, 100)
        reader.chunk(driver.read_one(b"<"), 0, b"0123")
        assert isinstance(reader.sink.result, OutOfOrderError)

    def test_repeated_chunks_are_dropped_and_the_stream_begun_anew(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.chunk(message, 0, b"0123")
        reader.chunk(message, 0, b"0123")
        assert arguments(driver.read_one(b"<")) == (0, 0, None)
        reader.take()
        assert arguments(driver.read_one(b"<")) == (0, None, 4)
        assert len(reader.chunks) == 1

    def test_another_snapshot_from_the_middle_on_is_not_mixed_in(self) -> None:
        """The peer installed a newer snapshot between two chunks: it is asked for from its beginning."""
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.chunk(message, 0, b"0123")
        reader.take()
        driver.read()
        reader.chunk(message, 4, b"4567", index=200)
        stop, again = driver.read()
        assert (stop.id, arguments(stop)) == (message.id, (0, 0, None))
        assert again.id != message.id
        assert arguments(again) == (0, None, None)
        reader.chunk(again, 0, b"AAAAABBBBB", index=200)
        assert reader.chunks == [(100, 0, b"0123"), (200, 0, b"AAAAABBBBB")]

    def test_another_snapshot_from_its_beginning_on_is_taken(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.chunk(message, 0, b"0123")
        reader.chunk(message, 0, b"AAAA", index=200)
        reader.chunk(message, 4, b"BBBBBB", index=200)
        assert reader.indexes == [-200]

    def test_at_another_peer_it_starts_over(self) -> None:
        """Snapshots of equal index, term and size may differ between peers (FAULTS W5)."""
        driver = ready()
        reader = Reader(driver, 3)
        message = driver.read_one(b"<")
        reader.chunk(message, 0, b"AAAA")
        reader.take()
        driver.read()
        driver.reply(message, Protocols.REQUEST_ENTRIES, 0, "2")
        driver.find_leader("2")
        again = driver.read_one(b"<")
        assert arguments(again) == (3, None, None)
        reader.chunk(again, 0, b"BBBBBBBBBB")
        assert reader.chunks == [(100, 0, b"AAAA"), (100, 0, b"BBBBBBBBBB")]

    def test_at_the_same_peer_it_goes_on(self) -> None:
        driver = ready()
        reader = Reader(driver, 3, 7)
        reader.chunk(driver.read_one(b"<"), 0, b"AAAA")
        reader.take()
        driver.read()
        driver.advance(TIMEOUT_S)
        driver.cluster_info(driver.read_one(b"^"), "1")
        driver.find_leader("1")
        assert arguments(driver.read_one(b"<")) == (3, 7, 4)

    def test_an_unfinished_one_may_be_followed_by_entries_of_another_peer(self) -> None:
        driver = ready()
        reader = Reader(driver, 3)
        message = driver.read_one(b"<")
        reader.chunk(message, 0, b"AAAA")
        reader.take()
        driver.read()
        driver.reply(message, Protocols.REQUEST_ENTRIES, 0, "2")
        driver.find_leader("2")
        reader.entries(driver.read_one(b"<"), LAST, 4, 6)
        assert reader.indexes == [4, 5, 6]


class TestAnotherLeader:
    def test_it_goes_on_behind_the_last_entry(self) -> None:
        driver = ready()
        reader = Reader(driver, 0, 100)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 10)
        reader.take()
        driver.read()
        driver.reply(message, Protocols.REQUEST_ENTRIES, 0, "3")
        driver.find_leader("3")
        again = driver.read_one(b"<")
        assert again.id != message.id
        assert arguments(again) == (10, 90, None)
        reader.entries(message, LAST, 11, 20)
        assert reader.indexes == list(range(1, 11)), "a late reply of the stream before"
        reader.entries(again, LAST, 11, 12)
        assert reader.indexes == list(range(1, 13))
        assert reader.sink.result is None

    def test_one_peer_alone_is_an_error(self) -> None:
        driver = Driver.for_peer()
        reader = Reader(driver)
        driver.reply(driver.read_one(b"<"), Protocols.REQUEST_ENTRIES, 0, "3")
        assert isinstance(reader.sink.result, NotLeaderError)
        assert reader.sink.result.leader_id == "3"
        assert driver.read() == []

    def test_silence_leads_to_the_next_peer(self) -> None:
        driver = ready()
        reader = Reader(driver)
        reader.entries(driver.read_one(b"<"), MORE, 1, 10)
        reader.take()
        driver.read()
        driver.advance(TIMEOUT_S)
        question = driver.read_one(b"^")
        assert question.url != URLS["1"]
        driver.cluster_info(question, None, leads=True)
        assert arguments(driver.read_one(b"<")) == (10, None, None)

    def test_silence_is_not_noticed_while_the_consumer_has_something_to_take(self) -> None:
        driver = ready()
        reader = Reader(driver)
        reader.entries(driver.read_one(b"<"), MORE, 1, 10)
        driver.advance(60)
        assert driver.read() == []
        assert driver.session.next_time() is None

    def test_it_is_asked_for_again_only_when_everything_was_taken(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        for n in range(3):
            reader.entries(message, MORE, 10 * n + 1, 10 * n + 10)
        driver.reply(message, Protocols.REQUEST_ENTRIES, 0, "3")
        driver.find_leader("3")
        assert driver.read() == []
        reader.take(2)
        assert driver.read() == []
        reader.take()
        again = driver.read_one(b"<")
        assert (again.url, arguments(again)) == (URLS["3"], (30, None, None))

    def test_a_leader_that_has_applied_less_is_asked_until_it_has_applied_more(self) -> None:
        """The one before it had said that more follow: what was applied there is committed, and will come."""
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 10)
        reader.take()
        driver.read()
        driver.reply(message, Protocols.REQUEST_ENTRIES, 0, "3")
        driver.find_leader("3")
        driver.reply(driver.read_one(b"<"), Protocols.REQUEST_ENTRIES, LAST, None, 9)
        assert reader.sink.pending
        driver.advance(TIMEOUT_S + GRACE_S)
        while not (messages := driver.read()) or messages[-1].type != b"<":
            for message in messages:
                driver.cluster_info(message, "3", leads=message.url == URLS["3"])
        reader.entries(messages[-1], LAST, 11, 12)
        assert reader.indexes == list(range(1, 13))
        assert reader.sink.result is None


class TestIdleStreams:
    def test_one_that_the_peer_may_have_dropped_is_asked_for_again(self) -> None:
        """SPEC: an idle stream is dropped after 5 s, and a message that fits nothing starts anew."""
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        for n in range(5):
            reader.entries(message, MORE, 10 * n + 1, 10 * n + 10)
        driver.advance(4.5)
        reader.take()
        assert arguments(driver.read_one(b"<")) == (50, 0, None)
        reader.take(3)
        assert driver.read() == []
        reader.take()
        again = driver.read_one(b"<")
        assert again.id != message.id
        assert arguments(again) == (50, None, None)

    def test_one_that_is_read_slowly_goes_on(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        reader.entries(message, MORE, 1, 10)
        for n in range(1, 5):
            driver.advance(3.5)
            reader.entries(message, MORE, 10 * n + 1, 10 * n + 10)
            reader.take()
            assert driver.read_one(b"<").id == message.id

    def test_a_peer_that_floods_is_stopped(self) -> None:
        driver = ready()
        reader = Reader(driver)
        message = driver.read_one(b"<")
        frame = entry_frames(1, 1)[0] + bytes(1024 * 1024)
        index = 0
        while not driver.unread:
            index += 1
            assert index < 100
            driver.reply(message, Protocols.REQUEST_ENTRIES, MORE, None, index, [frame])
        assert arguments(driver.read_one(b"<")) == (index, 0, None)
        driver.reply(message, Protocols.REQUEST_ENTRIES, MORE, None, index + 1, [frame])
        assert len(reader.sink.items) == index
        reader.take(index)
        assert arguments(driver.read_one(b"<")) == (index, None, None)
