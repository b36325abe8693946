"""Both twins of the socket functions get the same random calls over real sockets, hostile values among them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random
from types import ModuleType
from typing import Any

import pytest
import zmq

from support.outcomes import typed
from support.twins import COMPILED, PURE, twin
from zmqraft.protocol.frames import encode_entry

OPERATIONS = 110_000
#: No messages, or messages with frames that are none. Nothing that iterates differently the second time.
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 2**53, 2**64, 1.9, float("nan"), object, "", "text", ["text"], [b"", "text"], [1], [None]),
    *([b"x", 2**64], [b"x", True], [[b"x"]], {}, (), [], ([],), [b"x", memoryview(bytes(4))[::2], b"y"]),
    *([bytearray(b"ab")], [memoryview(bytes(8)).cast("I"), b""], [b"x", memoryview(b"ab")]),
]
COUNTS: list[Any] = [0, 1, 2, 5, 100, -1, -(2**31), True, False]
HOSTILE_COUNTS: list[Any] = [None, 1.9, "1", b"1", [], object]


class Pair:
    """A build's functions, and two sockets that are connected: a DEALER sends, a ROUTER receives."""

    def __init__(self, build: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.zmq_io: ModuleType = twin("zmq_io", build)
        self.entry_batch = twin("log_index", build).EntryBatch
        #: How many messages came with entries in a batch.
        self.batches = 0
        self.router = context.socket(zmq.ROUTER)
        self.dealer = context.socket(zmq.DEALER)
        #: Connected to nobody, so that nothing can be sent. When a queue between two is full is up to libzmq's clock.
        self.alone = context.socket(zmq.DEALER)
        for socket in (self.router, self.dealer, self.alone):
            socket.linger = 0
            socket.sndhwm = socket.rcvhwm = 0
        self.dealer.setsockopt(zmq.ROUTING_ID, b"12345")
        self.router.bind(f"inproc://{build}")
        self.dealer.connect(f"inproc://{build}")

    def with_frames(self, messages: list[tuple[list[bytes], Any]]) -> list[Any]:
        """The entries of each message in a form that can be compared with the other build's."""
        self.batches += sum(entries is not None for _, entries in messages)
        return [(frames, None if entries is None else _shown(entries)) for frames, entries in messages]

    def close(self) -> None:
        self.router.close()
        self.dealer.close()
        self.alone.close()


def _shown(batch: Any) -> tuple[int, list[bytes]]:
    return batch.first_index, batch.frames()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    with zmq.Context() as context:
        both = [Pair(PURE, context), Pair(COMPILED, context)]
        yield both
        for pair in both:
            pair.close()


def outcome(call: Any) -> tuple[Any, ...]:
    try:
        return typed(call())
    except (zmq.ZMQError, TypeError, ValueError, OverflowError, AttributeError, BufferError) as error:
        return type(error), error.errno if isinstance(error, zmq.ZMQError) else None


class Operations:
    """The same calls for the same seed: each a function of a pair."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def draw(self) -> Any:
        return self._receive() if self._random.random() < 0.4 else self._send()

    def _receive(self) -> Any:
        random = self._random
        count, head = (random.choice(HOSTILE_COUNTS if random.random() < 0.05 else COUNTS) for _ in range(2))
        if random.random() < 0.3:
            return lambda pair: pair.zmq_io.receive_messages(pair.router, count)
        if random.random() < 0.8:
            head = random.randint(2, 4)
        return lambda pair: pair.with_frames(pair.zmq_io.receive_with_entries(pair.router, head, count))

    def _send(self) -> Any:
        random = self._random
        if random.random() < 0.1:
            hostile = random.choice(HOSTILE)
            return lambda pair: pair.zmq_io.send_message(pair.dealer, hostile)
        frames = [random.randbytes(random.choice((0, 1, 5, 33, 300))) for _ in range(random.randint(1, 5))]
        entries = [self._entry() for _ in range(random.randint(0, 4))]
        low, high = random.randint(1, 3), random.randint(1, 4)
        name = "alone" if random.random() < 0.1 else "dealer"
        if random.random() < 0.5:
            return lambda pair: pair.zmq_io.send_message(getattr(pair, name), frames)

        def send(pair: Pair) -> Any:
            batch = pair.entry_batch.from_frames(1, entries).slice(low, high)
            return pair.zmq_io.send_message(getattr(pair, name), frames, batch)

        return send

    def _entry(self) -> bytes:
        data = self._random.randbytes(self._random.choice((1, 12, 100)))
        return encode_entry(self._random.randbytes(12), self._random.randrange(3), 5, data)


@pytest.mark.parametrize("build", [COMPILED])
def test_both_twins_do_the_same(build: str, seed: int, pairs: list[Pair]) -> None:
    operations = Operations(Random(seed))
    raised = refused = received = 0
    for number in range(OPERATIONS):
        operation = operations.draw()
        expected, got = (outcome(lambda: operation(pair)) for pair in pairs)  # noqa: B023
        assert got == expected, f"operation {number} of seed {seed}"
        raised += isinstance(expected[0], type) and issubclass(expected[0], Exception)
        refused += expected == (bool, False)
        received += expected[0] is list and bool(expected[1])
    assert min(raised, refused, received, *(pair.batches for pair in pairs)) > OPERATIONS / 100


@pytest.fixture
def pair(build: str) -> Iterator[Pair]:
    with zmq.Context() as context:
        one = Pair(build, context)
        yield one
        one.close()


ENTRIES = [encode_entry(bytes(12), 0, term, b"data") for term in (4, 4, 5)]


@pytest.mark.parametrize(
    ("behind", "is_batch"),
    [
        (ENTRIES, True),
        (ENTRIES[:1], True),
        ([], False),
        ([*ENTRIES, b""], False),
        ([b"no entry", *ENTRIES], False),
        (ENTRIES[::-1], False),
    ],
    ids=["entries", "one", "none", "an empty frame behind them", "no entry before them", "terms that go back"],
)
def test_entries_behind_the_first_frames(pair: Pair, behind: list[bytes], is_batch: bool) -> None:
    pair.zmq_io.send_message(pair.dealer, [b"a", b"", *behind])
    pair.zmq_io.send_message(pair.dealer, [b"next"])
    ((frames, entries),) = pair.zmq_io.receive_with_entries(pair.router, 3, 1)
    if is_batch:
        assert (frames, _shown(entries)) == ([b"12345", b"a", b""], (0, behind))
    else:
        assert (frames, entries) == ([b"12345", b"a", b"", *behind], None)
    assert pair.zmq_io.receive_with_entries(pair.router, 3, 9) == [([b"12345", b"next"], None)]
    assert pair.zmq_io.receive_with_entries(pair.router, 3, 9) == []


def test_a_poller_says_what_is_ready(pair: Pair) -> None:
    poller = pair.zmq_io.Poller()
    reader, writer = os.pipe()
    try:
        poller.register(pair.router, zmq.POLLIN)
        poller.register(reader, zmq.POLLIN)
        assert poller.poll(0) == []
        pair.zmq_io.send_message(pair.dealer, [b"a"])
        assert poller.poll(-1) == [pair.router]
        os.write(writer, b"x")
        assert poller.poll(1000) == [pair.router, reader]
        poller.unregister(pair.router)
        assert poller.poll(1000) == [reader]
        poller.unregister(reader)
        assert poller.poll(0) == []
    finally:
        os.close(reader)
        os.close(writer)


def test_a_poller_waits_for_room(pair: Pair) -> None:
    poller = pair.zmq_io.Poller()
    poller.register(pair.dealer, zmq.POLLIN)
    poller.register(pair.alone, zmq.POLLIN | zmq.POLLOUT)
    assert poller.poll(0) == []
    poller.register(pair.dealer, zmq.POLLIN | zmq.POLLOUT)
    assert poller.poll(1000) == [pair.dealer]
    poller.register(pair.dealer, zmq.POLLOUT)
    assert poller.poll(1000) == [pair.dealer]


def test_a_poller_refuses_what_it_cannot_wait_for(pair: Pair) -> None:
    poller = pair.zmq_io.Poller()
    for events in (0, 4, 8, -1, 2**40):
        with pytest.raises(ValueError, match="POLLIN, POLLOUT or both"):
            poller.register(pair.router, events)
    for events in ("1", None, 1.0):
        with pytest.raises(TypeError):
            poller.register(pair.router, events)
    with pytest.raises(AttributeError):
        poller.register("socket", zmq.POLLIN)
    for descriptor in (-1, 2**31, 2**40, 2**64):
        with pytest.raises(ValueError, match="is no file descriptor"):
            poller.register(descriptor, zmq.POLLIN)
    assert poller.poll(0) == []
    with pytest.raises(KeyError):
        poller.unregister(pair.router)
    with pytest.raises(TypeError):
        poller.poll(1.5)
    poller.register(pair.alone, zmq.POLLIN)
    poller.register(pair.router, zmq.POLLIN)
    pair.alone.close()
    poller.unregister(pair.router)
    for refused in (lambda: poller.poll(0), lambda: poller.register(pair.alone, zmq.POLLIN)):
        with pytest.raises(zmq.ZMQError) as raised:
            refused()
        assert raised.value.errno == zmq.ENOTSOCK
    poller.unregister(pair.alone)
    assert poller.poll(0) == []
