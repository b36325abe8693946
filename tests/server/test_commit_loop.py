"""The commit loop and the socket functions, pure and compiled: what each does, and that both do the same.

110,000 random operations go to both twins, over real sockets where sockets are involved (ROUTER and DEALER, inproc).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from types import ModuleType
from typing import Any

import pytest
import zmq

from support.hostile import hostile_messages
from support.outcomes import outcome
from support.twins import COMPILED, PURE, twin
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, encode_entry, new_request_id
from zmqraft.storage.request_index import RequestIndex

SECRET = b"secret"
NOW = 1_800_000_000
OPERATIONS = 110_000
HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**63, 2**64, -(2**63), -(2**64), 1.0, 1.9),
    *(float("nan"), "", "x" * 12, b"", bytes(11), bytes(12), b"x" * 5000, bytearray(12), memoryview(bytes(12))),
    *([], {}, (), object, [b""] * 5, [None] * 5),
]


@pytest.fixture(scope="session")
def loop(build: str) -> ModuleType:
    """A twin of `zmqraft.server.commit_loop`."""
    return twin("commit_loop", build)


@pytest.fixture(scope="session")
def zmq_io(build: str) -> ModuleType:
    """A twin of `zmqraft.protocol.zmq_io`."""
    return twin("zmq_io", build)


class Sockets:
    """A ROUTER and a DEALER that are connected."""

    def __init__(self, identity: bytes | None = None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.dealer = self.context.socket(zmq.DEALER)
        for socket in (self.router, self.dealer):
            socket.linger = 0
            socket.sndhwm = socket.rcvhwm = 0
            socket.rcvtimeo = 10_000
        if identity is not None:
            self.dealer.setsockopt(zmq.ROUTING_ID, identity)
        self.router.bind("inproc://router")
        self.dealer.connect("inproc://router")

    def close(self) -> None:
        self.dealer.close()
        self.router.close()
        self.context.term()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    pair = Sockets(b"12345")
    yield pair
    pair.close()


class Leader:
    """The three parts of the loop, as an engine has them."""

    def __init__(self, loop: ModuleType, index: RequestIndex | None = None) -> None:
        self.known: dict[bytes, int] = {}
        self.loop = loop
        self.replies = loop.ReplyQueue()
        self.waiting = loop.WaitingUpdates()
        self.intake = loop.Intake(SECRET, 1000, self.waiting, self.known.get if index is None else index.find)

    def open(self, term: int = 7, first_index: int = 1, **changes: Any) -> None:
        limits = {"after_seconds": NOW - 100.0, "before_seconds": NOW + 100.0, "room_count": 100, "room_size": 10_000}
        self.intake.open(term, first_index, **(limits | changes))

    def taken(self) -> list[LogEntry]:
        batch = self.intake.take()
        return list(batch) if batch is not None else []


def update(request_id: bytes | None = None, data: bytes = b"data", identity: bytes = b"12345") -> list[bytes]:
    return [identity, request_id or new_request_id(NOW), b"=", SECRET, data]


def test_a_new_update_becomes_the_next_entry(loop: ModuleType) -> None:
    leader = Leader(loop)
    leader.open(7, 11)
    first, second = update(), update(data=b"more")
    assert leader.intake.offer(first)
    assert leader.intake.offer([*second, b"a frame beyond the schema"])
    assert leader.intake.find(second[1]) == 12
    assert leader.taken() == [
        LogEntry(11, 7, EntryType.STATE, first[1], b"data"),
        LogEntry(12, 7, EntryType.STATE, second[1], b"more"),
    ]
    assert leader.intake.find(second[1]) is None
    assert leader.intake.take() is None
    assert (len(leader.waiting), leader.waiting.size) == (2, 8)
    leader.waiting.applied(1, 12, leader.replies)
    assert list(leader.replies) == [[b"12345", first[1], b"\1", b"\x0b"], [b"12345", second[1], b"\1", b"\x0c"]]
    assert (len(leader.waiting), leader.waiting.size) == (0, 0)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        update()[:4],
        [b"i", b"\1" * 11, b"=", SECRET, b"x"],
        [b"i", b"\1" * 13, b"=", SECRET, b"x"],
        [b"i", new_request_id(NOW), b"=", b"secreT", b"x"],
        [b"i", new_request_id(NOW), b"=", b"", b"x"],
        [b"i", new_request_id(NOW), b"=", SECRET + b"x", b"x"],
        [b"i", new_request_id(NOW), b"==", SECRET, b"x"],
        [b"i", new_request_id(NOW), b"", SECRET, b"x"],
        [b"i", new_request_id(NOW), b"+", SECRET, b"x"],
        update(data=b""),
        update(data=bytes(1001)),
        update(new_request_id(NOW - 100)),
        update(new_request_id(NOW + 100)),
    ],
)
def test_what_is_no_new_update_is_left(loop: ModuleType, frames: list[bytes]) -> None:
    leader = Leader(loop)
    leader.open()
    assert not leader.intake.offer(frames)
    assert leader.taken() == []
    assert len(leader.waiting) == 0


def test_nothing_is_taken_while_it_is_closed(loop: ModuleType) -> None:
    leader = Leader(loop)
    assert not leader.intake.offer(update())
    leader.open()
    assert leader.intake.offer(update())
    leader.intake.close()
    assert not leader.intake.offer(update())
    leader.open()
    assert leader.taken() == []


def test_what_was_taken_stays_only_for_the_same_term_and_index(loop: ModuleType) -> None:
    leader = Leader(loop)
    leader.open(7, 11)
    leader.intake.offer(update())
    leader.open(7, 11)
    leader.intake.offer(update())
    assert [entry.index for entry in leader.taken()] == [11, 12]
    leader.open(7, 13)
    leader.intake.offer(update())
    leader.open(8, 13)
    assert leader.taken() == []


def test_a_repeated_id_is_left(loop: ModuleType) -> None:
    leader = Leader(loop)
    leader.open()
    request_id = new_request_id(NOW)
    assert leader.intake.offer(update(request_id))
    assert not leader.intake.offer(update(request_id))
    leader.known[other := new_request_id(NOW)] = 5
    assert not leader.intake.offer(update(other))
    assert len(leader.taken()) == 1


def test_the_request_index_is_asked(loop: ModuleType) -> None:
    index = RequestIndex()
    request_id = new_request_id(NOW)
    index.add(EntryBatch.from_frames(1, [encode_entry(request_id, 0, 1, b"x")]))
    leader = Leader(loop, index)
    leader.open()
    assert not leader.intake.offer(update(request_id))
    assert leader.intake.offer(update())


def test_there_is_room_for_so_many_and_so_much(loop: ModuleType) -> None:
    leader = Leader(loop)
    leader.open(room_count=2)
    assert [leader.intake.offer(update()) for _ in range(3)] == [True, True, False]
    leader.open(room_size=1500)
    assert [leader.intake.offer(update(data=bytes(1000))) for _ in range(3)] == [True, True, False]


def test_many_ids_in_one_batch(loop: ModuleType) -> None:
    leader = Leader(loop)
    leader.open(room_count=10_000, room_size=10**9)
    ids = [new_request_id(NOW) for _ in range(5000)]
    assert all(leader.intake.offer(update(request_id)) for request_id in ids)
    assert [leader.intake.find(request_id) for request_id in ids] == list(range(1, 5001))
    assert [entry.request_id for entry in leader.taken()] == ids
    leader.waiting.applied(1, 5000, leader.replies)
    assert [reply[1] for reply in leader.replies] == ids


def test_who_asks_again_replaces_who_asked_before(loop: ModuleType) -> None:
    waiting, replies = loop.WaitingUpdates(), loop.ReplyQueue()
    request_id = new_request_id(NOW)
    waiting.add(5, b"old", request_id, 100)
    waiting.add(5, b"new", request_id, 7)
    assert (len(waiting), waiting.size) == (1, 100)
    waiting.applied(5, 5, replies)
    waiting.applied(5, 5, replies)
    assert list(replies) == [[b"new", request_id, b"\1", b"\5"]]


@pytest.mark.parametrize(
    ("index", "packed"),
    [
        (1, "01"), (127, "7f"), (128, "cc80"), (255, "ccff"), (256, "cd0100"), (65535, "cdffff"),
        (65536, "ce00010000"), (2**31 - 1, "ce7fffffff"), (2**31, "cb41e0000000000000"),
        (2**53 - 1, "cb433fffffffffffff"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("identity", [b"12345", b"an identity that is longer than what libzmq makes"])
def test_indexes_are_packed_as_node_does(loop: ModuleType, index: int, packed: str, identity: bytes) -> None:
    waiting, replies = loop.WaitingUpdates(), loop.ReplyQueue()
    request_id = new_request_id(NOW)
    waiting.add(index, identity, request_id, 1)
    waiting.applied(index, index, replies)
    assert list(replies) == [[identity, request_id, b"\1", bytes.fromhex(packed)]]


def test_everything_comes_out_of_the_sockets(loop: ModuleType, sockets: Sockets) -> None:
    leader = Leader(loop)
    leader.open()
    entries = [encode_entry(bytes(12), 2, 3, b"\xc0"), encode_entry(new_request_id(NOW), 0, 4, bytes(500))]
    append = [b"\1", b"+", SECRET, b"2", b"\4", b"\x09", b"\3", b"\x08"]
    new = update()
    messages = [
        new[1:],
        [*append, *entries],
        append,
        [*append, entries[0], b"no entry", entries[1]],
        [b"\2", b"^", SECRET],
        [*update()[1:], b"", b"surplus", b"", b"", b"", b""],
        [b"\3", b"mine", SECRET, *[b"%d" % number for number in range(20)]],
        [b""],
    ]
    for message in messages:
        sockets.dealer.send_multipart(message)
    others: list[Any] = []
    while len(others) < 6:
        others += leader.intake.drain(sockets.router, 3)
    assert leader.intake.drain(sockets.router, 3) == []
    assert [entry.request_id for entry in leader.taken()] == [new[1], messages[5][0]]
    assert others == [
        ([b"12345", *append], EntryBatch.from_frames(0, entries)),
        ([b"12345", *append], None),
        ([b"12345", *messages[3]], None),
        ([b"12345", *messages[4]], None),
        ([b"12345", *messages[6]], None),
        ([b"12345", b""], None),
    ]


def test_messages_that_are_not_taken_come_out_a_few_at_a_time(loop: ModuleType, sockets: Sockets) -> None:
    """However many wait, of any size and from anybody: they need not all fit into memory at once."""
    data = bytes(8 * 1024 * 1024)
    messages = [
        [b"\1", b"^", b"wrong", data],
        [new_request_id(NOW), b"=", b"wrong", data],
        [b"\2", b"mine", SECRET, *[data] * 5],
        [b"\3", b"+", SECRET, b"2", b"\4", b"\x09", b"\3", b"\x08", encode_entry(new_request_id(NOW), 0, 4, data)],
        [b"\4", b"^", SECRET],
        [b"\5", b"^", SECRET, data],
    ]
    leader = Leader(loop)
    leader.open()
    for message in messages:
        sockets.dealer.send_multipart(message)
    drained = [[frames[1] for frames, _ in leader.intake.drain(sockets.router, 100)] for _ in range(4)]
    assert drained == [[messages[0][0], messages[1][0]], [b"\2"], [b"\3", b"\4", b"\5"], []]


def test_replies_go_out_in_order(loop: ModuleType, sockets: Sockets) -> None:
    sockets.dealer.send(b"hello")
    sockets.router.recv_multipart()
    replies, waiting = loop.ReplyQueue(), loop.WaitingUpdates()
    ids = [new_request_id(NOW) for _ in range(4)]
    for index, request_id in enumerate(ids, 1):
        waiting.add(index, b"12345" if index != 3 else b"who is that", request_id, 1)
    waiting.accepted(1, 4, replies)
    replies.append([b"12345", b"\1", b"in between"])
    waiting.applied(1, 3, replies)
    entries = EntryBatch.from_frames(5, [encode_entry(request_id, 0, 1, b"data") for request_id in ids])
    replies.append([b"12345", b"\3", b"with entries"], entries)
    replies.extend([[b"12345", b"\2", b"at the end"]])
    expected = [[request_id, b"\1"] for request_id in (ids[0], ids[1], ids[3])]
    expected += [[b"\1", b"in between"], [ids[0], b"\1", b"\1"], [ids[1], b"\1", b"\2"]]
    expected += [[b"\3", b"with entries", *entries.frames()], [b"\2", b"at the end"]]
    assert len(replies) == 4 + 1 + 3 + 1 + 1
    assert [list(frames)[1:] for frames in replies if frames[0] == b"12345"] == expected
    replies.flush(sockets.router)
    assert len(replies) == 0
    assert [sockets.dealer.recv_multipart() for _ in expected] == expected


def test_messages_with_entries_are_sent_whole(zmq_io: ModuleType, sockets: Sockets) -> None:
    entries = EntryBatch.from_frames(5, [encode_entry(new_request_id(), 0, 1, bytes(size)) for size in (1, 33, 5000)])
    for batch in (entries, entries.slice(6, 7), EntryBatch.empty(1), None):
        assert zmq_io.send_message(sockets.dealer, [b"\1", b"", b"x" * 100], batch)
        expected = [b"\1", b"", b"x" * 100, *(batch.frames() if batch is not None else [])]
        assert sockets.router.recv_multipart()[1:] == expected


def test_a_message_without_room_is_not_sent_at_all(zmq_io: ModuleType) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer, context.socket(zmq.ROUTER) as router:
        dealer.sndhwm = 1
        router.rcvhwm = 1
        dealer.linger = router.linger = 0
        router.rcvtimeo = 10_000
        dealer.connect("inproc://room")
        sent = 0
        while zmq_io.send_message(dealer, [b"%d" % sent, b"second frame"]):
            sent += 1
            assert sent < 100
        router.bind("inproc://room")
        for number in range(sent):
            assert router.recv_multipart()[1:] == [b"%d" % number, b"second frame"]
        assert zmq_io.receive_messages(router, 10) == []


def test_at_most_so_many_messages_are_received(zmq_io: ModuleType, sockets: Sockets) -> None:
    for number in range(5):
        sockets.dealer.send_multipart([b"%d" % number, b""])
    received: list[list[bytes]] = []
    while len(received) < 5:
        more = zmq_io.receive_messages(sockets.router, 2)
        assert len(more) <= 2
        received += more
    assert received == [[b"12345", b"%d" % number, b""] for number in range(5)]
    assert zmq_io.receive_messages(sockets.router, 2) == []


def test_a_closed_socket_is_an_error(zmq_io: ModuleType, loop: ModuleType) -> None:
    pair = Sockets()
    pair.close()
    with pytest.raises(zmq.ZMQError):
        zmq_io.receive_messages(pair.router, 1)
    with pytest.raises(zmq.ZMQError):
        zmq_io.send_message(pair.dealer, [b"x"])
    with pytest.raises(zmq.ZMQError):
        Leader(loop).intake.drain(pair.router, 1)


def hostile_call(random: Random, term: int, first_index: int) -> Callable[[Leader], Any]:
    """A call with one argument, or one frame, that no caller should give. The intake stays at the term and index."""
    hostile = random.choice(HOSTILE)
    frames = update(random.randbytes(12))
    frames[random.randrange(5)] = hostile
    limits: dict[str, Any] = {"term": 7, "first_index": 1, "after_seconds": 0.0, "before_seconds": 2.0**32}
    limits |= {"room_count": 10, "room_size": 1000, random.choice([*limits, "room_count", "room_size"]): hostile}
    add: list[Any] = [5, b"identity", random.randbytes(12), 9]
    add[random.randrange(4)] = hostile
    entry: list[Any] = [b"identity", random.randbytes(12), b"data"]
    entry[random.randrange(3)] = hostile
    argument = random.randrange(3)
    between: list[Any] = [hostile, random.choice((0, 1, hostile))]
    random.shuffle(between)

    def open_and_close(leader: Leader) -> None:
        given = dict(limits)
        try:
            leader.intake.open(given.pop("term"), given.pop("first_index"), **given)
        finally:
            # Some are legal after all.
            leader.open(term, first_index)
            leader.intake.close()

    def make(leader: Leader) -> None:
        given: list[Any] = [SECRET, 1000, leader.waiting, leader.known.get]
        given[argument] = hostile
        leader.loop.Intake(*given)

    calls: list[Callable[[Leader], Any]] = [
        open_and_close,
        make,
        lambda leader: leader.intake.offer(frames),
        lambda leader: leader.intake.offer(hostile),
        lambda leader: leader.intake.find(hostile),
        lambda leader: leader.intake.add(*entry),
        lambda leader: leader.waiting.add(*add),
        lambda leader: leader.waiting.applied(*between, leader.replies),
        lambda leader: leader.waiting.accepted(*between, leader.replies),
        lambda leader: leader.waiting.applied(1, 2, hostile),
        lambda leader: leader.waiting.accepted(1, 2, hostile),
        lambda leader: leader.waiting.refuse_all([b""], hostile),
    ]
    return random.choice(calls)


@pytest.mark.parametrize("build", [COMPILED])
def test_both_twins_do_the_same(build: str, seed: int) -> None:
    """A stream of random operations, hostile messages among them, to both; after each the visible state is equal."""
    random = Random(seed)
    leaders = [Leader(twin("commit_loop", PURE)), Leader(twin("commit_loop", build))]
    messages = hostile_messages(seed + 1, OPERATIONS, SECRET)
    term, last_index, applied = 1, 0, 0
    seen: list[bytes] = [new_request_id(NOW)]
    raised = 0
    for number in range(OPERATIONS):
        action = random.choices(
            ("offer", "hostile", "take", "applied", "open", "close", "accepted", "refuse", "add", "known", "values"),
            (50, 20, 6, 10, 6, 1, 2, 0.3, 2, 2, 5),
        )[0]
        results: list[Any] = []
        frames: list[bytes] = []
        if action == "offer":
            request_id = random.choice(seen) if random.random() < 0.1 else random.randbytes(12)
            if random.random() < 0.9:
                request_id = (NOW + random.randint(-110, 110)).to_bytes(4, "big") + request_id[4:]
            seen[random.randrange(len(seen)) :] = [*seen[-200:], request_id]
            identity = random.randbytes(random.choice((5, 5, 5, 5, 1, 17, 18, 19, 255)))
            frames = update(request_id, random.randbytes(random.choice((1, 10, 100, 1000, 1001, 0))), identity)
        elif action == "hostile":
            frames = [random.randbytes(5), *next(messages)]
        elif action == "open":
            term += random.random() < 0.3
            seconds = random.choice((0.0, 0.5, 50.0))
            limits = {
                "after_seconds": NOW - 100.0 - seconds,
                "before_seconds": NOW + 100.0 + seconds,
                "room_count": random.choice((-1, 0, 1, 1000)),
                "room_size": random.choice((-1, 0, 500, 10**6)),
            }
        elif action == "values":
            call = hostile_call(random, term, last_index + 1)
        first = random.randint(max(1, applied - 3), last_index + 2)
        last = random.randint(first, last_index + 5)
        for leader in leaders:
            if frames:
                results.append(leader.intake.offer(frames))
            elif action == "values":
                results.append(outcome(lambda: call(leader)))  # noqa: B023
            elif action == "take":
                results.append(leader.taken())
            elif action == "applied":
                results.append(leader.waiting.applied(first, last, leader.replies))
            elif action == "accepted":
                results.append(leader.waiting.accepted(first, last, leader.replies))
            elif action == "refuse":
                results.append(leader.waiting.refuse_all([b"", b"\xc0"], leader.replies))
            elif action == "open":
                results.append(leader.intake.open(term, last_index + 1, **limits))
            elif action == "close":
                results.append(leader.intake.close())
            elif action == "add":
                results.append(leader.waiting.add(first, b"somebody", seen[-1], 9))
            else:
                leader.known[seen[0]] = 1
                results.append(leader.intake.find(seen[-1]))
        assert results[0] == results[1], f"operation {number} of seed {seed}: {action}"
        raised += action == "values" and isinstance(results[0][0], type) and issubclass(results[0][0], Exception)
        if action == "take" and results[0]:
            last_index = results[0][-1].index
        elif action == "applied":
            applied = max(applied, last)
        assert len({(len(leader.waiting), leader.waiting.size, len(leader.replies)) for leader in leaders}) == 1, action
        if random.random() < 0.05:
            assert list(leaders[0].replies) == list(leaders[1].replies)
            for leader in leaders:
                leader.replies = leader.loop.ReplyQueue()
    assert raised > OPERATIONS / 100
