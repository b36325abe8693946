"""RequestEntries, its flow control and its snapshot chunks (SPEC section 2, "RequestEntries")."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.virtual_cluster import WALL_START, settings_of
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, Protocols, new_request_id
from zmqraft.server.entry_streams import STREAMS_PER_CONNECTION_MAX, EntryStreams
from zmqraft.storage import MemoryLog, MemorySnapshot

ROUTE = (b"client", b"\1")
LAST, MORE, SNAPSHOT = 1, 2, 3


def entries(first: int, sizes: list[int]) -> EntryBatch:
    return EntryBatch.from_entries(
        [
            LogEntry(first + position, 3, EntryType.STATE, new_request_id(WALL_START), bytes(size))
            for position, size in enumerate(sizes)
        ]
    )


class Server:
    """Streams over a log in memory. Replies are (status, last index, number of entries or (offset, chunk))."""

    def __init__(self, sizes: list[int], snapshot: MemorySnapshot | None = None, **settings: object) -> None:
        self.log = MemoryLog(snapshot=snapshot)
        self.log.append(entries(self.log.first_index, sizes))
        self.streams = EntryStreams(self.log, settings_of("1", "1", **settings))
        self.now = 0.0

    def request(
        self, previous: int, count: int | None = None, offset: int | None = None, route: tuple[bytes, bytes] = ROUTE
    ) -> list[tuple[object, ...]]:
        return [self.decode(reply) for reply in self.raw(previous, count, offset, route)]

    def raw(
        self, previous: int, count: int | None, offset: int | None, route: tuple[bytes, bytes]
    ) -> Iterator[list[bytes]]:
        for frames, batch in self.streams.request(route, previous, count, offset, self.log.last_index, self.now):
            yield frames if batch is None else [*frames, *batch.frames()]

    def decode(self, reply: list[bytes]) -> tuple[object, ...]:
        assert tuple(reply[:2]) == ROUTE
        status, json, last_index, rest = Protocols.REQUEST_ENTRIES.decode_response(reply[2:])
        if status == SNAPSHOT:
            return status, last_index, *json, b"".join(rest)
        return status, last_index, len(rest)


def test_everything_in_one_reply_when_it_fits() -> None:
    server = Server([10] * 7)
    assert server.request(0) == [(LAST, 7, 7)]
    assert len(server.streams) == 0


def test_at_most_count_entries() -> None:
    server = Server([10] * 7)
    assert server.request(3, 2) == [(LAST, 5, 2)]
    assert server.request(3, 99) == [(LAST, 7, 4)]


@pytest.mark.parametrize("previous", [7, 8, 700])
def test_nothing_to_send_gives_the_last_applied_index(previous: int) -> None:
    assert Server([10] * 7).request(previous) == [(LAST, 7, 0)]


def test_at_most_4096_entries_in_a_reply() -> None:
    server = Server([1] * 5000, peer_msg_data_size=10_000_000, request_entries_entry_size_limit_pipeline=10_000_000)
    assert server.request(0) == [(MORE, 4096, 4096), (LAST, 5000, 904)]


def test_five_replies_unasked_then_one_for_each_acknowledgement() -> None:
    server = Server([20_000] * 30)
    assert server.request(0) == [(MORE, index, 3) for index in (3, 6, 9, 12, 15)]
    assert server.request(3) == [(MORE, 18, 3)]
    assert server.request(6) == [(MORE, 21, 3)]
    for previous, last in ((9, 24), (12, 27)):
        assert server.request(previous) == [(MORE, last, 3)]
    assert server.request(15) == [(LAST, 30, 3)]
    # The rest of the acknowledgements: nothing more comes, and the stream is forgotten with the last one.
    for previous in (18, 21, 24, 27):
        assert len(server.streams) == 1
        assert server.request(previous) == []
    assert len(server.streams) == 0


def test_count_0_stops_a_stream() -> None:
    server = Server([20_000] * 30)
    server.request(0)
    assert server.request(3, 0) == []
    assert len(server.streams) == 0


def test_what_fits_no_acknowledgement_starts_anew() -> None:
    server = Server([20_000] * 30)
    first = server.request(0)
    assert server.request(0) == first
    assert server.request(6)[0] == (MORE, 9, 3)
    assert len(server.streams) == 1


def test_an_acknowledgement_of_another_route_is_a_stream_of_its_own() -> None:
    server = Server([20_000] * 30)
    server.request(0)
    assert len(list(server.raw(3, None, None, (b"another", b"\1")))) == 5
    assert len(server.streams) == 2


def test_what_is_applied_later_is_not_part_of_the_stream() -> None:
    server = Server([30_000] * 12)
    assert len(server.request(0)) == 5
    server.log.append(entries(13, [10] * 5))
    assert server.request(2) == [(LAST, 12, 2)]


def test_an_entry_above_the_limit_is_sent_alone_and_without_others_behind_it() -> None:
    server = Server([100_000] * 4)
    assert server.request(0) == [(MORE, 1, 1)]
    assert server.request(1) == [(MORE, 2, 1)]


def test_an_idle_stream_is_dropped_after_5_s() -> None:
    server = Server([20_000] * 30)
    server.request(0)
    server.now = 4.0
    server.request(3)
    server.streams.expire(8.9)
    assert len(server.streams) == 1
    assert server.streams.next_deadline() == 9.0
    server.streams.expire(9.0)
    assert len(server.streams) == 0


def test_more_streams_than_allowed_are_ignored() -> None:
    server = Server([20_000] * 30, request_entries_high_watermak=3)
    for number in range(3):
        assert len(list(server.raw(0, None, None, (b"%d" % number, b"\1")))) == 5
    assert server.request(0) == []
    server.streams.expire(10.0)
    assert len(server.request(0)) == 5


def test_everybody_is_told_when_leadership_is_lost() -> None:
    server = Server([20_000] * 30)
    server.request(0)
    (reply,) = server.streams.refuse_all("2")
    assert tuple(reply[:2]) == ROUTE
    assert Protocols.REQUEST_ENTRIES.decode_response(reply[2:])[:2] == (0, "2")
    assert len(server.streams) == 0


class TestSnapshot:
    """A request below the first index gets the snapshot first."""

    CHUNKS = (b"a" * 100, b"b" * 100, b"c" * 100, b"d" * 50)

    def server(self) -> Server:
        snapshot = MemorySnapshot(20, 3, b"".join(self.CHUNKS))
        return Server([10] * 2, snapshot, peer_msg_data_size=100)

    def chunk(self, number: int) -> tuple[object, ...]:
        return SNAPSHOT, 20, 100 * number, 350, 3, self.CHUNKS[number]

    def test_two_chunks_unasked_then_one_for_each_acknowledgement_then_the_entries(self) -> None:
        server = self.server()
        assert server.request(5) == [self.chunk(0), self.chunk(1)]
        assert server.request(5, None, 100) == [self.chunk(2)]
        assert server.request(5, None, 200) == [self.chunk(3)]
        assert server.request(5, None, 300) == []
        assert server.request(20) == [(LAST, 22, 2)]
        assert len(server.streams) == 0

    def test_the_count_is_for_entries(self) -> None:
        server = self.server()
        assert server.request(5, 1) == [self.chunk(0), self.chunk(1)]
        server.request(5, 1, 100)
        server.request(5, 1, 200)
        server.request(5, 1, 300)
        assert server.request(20, 1) == [(LAST, 21, 1)]

    def test_may_start_at_an_offset(self) -> None:
        assert self.server().request(5, None, 100) == [self.chunk(1), self.chunk(2)]

    def test_an_offset_beyond_the_end_gives_one_empty_chunk_at_the_end(self) -> None:
        server = self.server()
        assert server.request(5, None, 999) == [(SNAPSHOT, 20, 350, 350, 3, b"")]
        assert server.request(20) == [(LAST, 22, 2)]

    def test_an_empty_snapshot_is_one_empty_chunk(self) -> None:
        server = Server([10] * 2, MemorySnapshot(20, 3, b""))
        assert server.request(0) == [(SNAPSHOT, 20, 0, 0, 3, b"")]
        assert server.request(20) == [(LAST, 22, 2)]

    def test_just_above_the_snapshot_only_entries_come(self) -> None:
        assert self.server().request(20) == [(LAST, 22, 2)]


def test_a_connection_has_a_few_streams_and_others_have_theirs() -> None:
    """A client that asks under one id after the other, and never reads, must not fill the server's memory."""
    server = Server([20_000] * 30)
    routes = [(b"greedy", number.to_bytes(2, "big")) for number in range(1000)]
    replies = [list(server.raw(0, None, None, route)) for route in routes]
    assert [len(each) for each in replies] == [5] * STREAMS_PER_CONNECTION_MAX + [0] * (
        1000 - STREAMS_PER_CONNECTION_MAX
    )
    assert len(server.request(0)) == 5

    # Each stream that ends makes room: stopped, read to its end, expired or refused.
    for end in ("stop", "read", "expire", "refuse"):
        if end == "stop":
            assert list(server.raw(0, 0, None, routes[0])) == []
        elif end == "read":
            for previous in range(3, 30, 3):
                list(server.raw(previous, None, None, routes[1]))
        elif end == "expire":
            server.now += 5.0
            server.streams.expire(server.now)
        else:
            list(server.streams.refuse_all(None))
        assert len(list(server.raw(0, None, None, routes[100]))) == 5
        list(server.raw(0, 0, None, routes[100]))
    # An unknown stream that is stopped changes nothing.
    list(server.raw(0, 0, None, routes[500]))
    replies = [list(server.raw(0, None, None, route)) for route in routes]
    assert sum(len(each) > 0 for each in replies) == STREAMS_PER_CONNECTION_MAX
