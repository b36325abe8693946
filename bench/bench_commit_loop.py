"""The commit loop and the socket functions, pure against compiled: ``pytest bench/bench_commit_loop.py``.

Each group is one operation, with its two twins side by side. Needs a compiled build; without one, only pure is there.
Where sockets take part they are inproc, in one thread, so that nothing is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import zmq
from pytest_benchmark.fixture import BenchmarkFixture

from support.twins import BUILDS, twin

SECRET = b"secret"
DATA = b"x" * 128
NOW = 1_800_000_000
#: What one turn of a busy leader takes.
UPDATE_COUNT = 1024
REQUEST_IDS = [NOW.to_bytes(4, "big") + number.to_bytes(8, "big") for number in range(UPDATE_COUNT)]
#: As a DEALER sends them.
UPDATES = [[request_id, b"=", SECRET, DATA] for request_id in REQUEST_IDS]
IDENTITY = b"12345"


@pytest.fixture(params=BUILDS, scope="module")
def build(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loop(build: str) -> ModuleType:
    return twin("commit_loop", build)


@pytest.fixture
def sockets() -> Iterator[tuple[Any, Any]]:
    """A ROUTER and a DEALER that are connected, and queue whatever comes."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        for socket in (router, dealer):
            socket.linger = 0
            socket.sndhwm = socket.rcvhwm = 0
        dealer.setsockopt(zmq.ROUTING_ID, IDENTITY)
        router.bind("inproc://router")
        dealer.connect("inproc://router")
        dealer.send(b"hello")
        router.recv_multipart()
        yield router, dealer


def leader(loop: ModuleType, build: str, waiting: Any) -> Callable[[], Any]:
    """Opens the intake for the next turn."""
    intake = loop.Intake(SECRET, 1000, waiting, twin("request_index", build).RequestIndex().find)
    room = {"room_count": UPDATE_COUNT, "room_size": 1 << 30}

    def opened() -> Any:
        intake.open(7, 1, after_seconds=0.0, before_seconds=2.0**32, **room)
        return intake

    return opened


def batch_of_updates(build: str) -> Any:
    encode_entry = twin("frames", build).encode_entry
    frames = [encode_entry(request_id, 0, 7, DATA) for request_id in REQUEST_IDS]
    return twin("log_index", build).EntryBatch.from_frames(1, frames)


@pytest.mark.benchmark(group="take 1024 updates")
def test_offer(benchmark: BenchmarkFixture, loop: ModuleType, build: str) -> None:
    waiting = loop.WaitingUpdates()
    opened = leader(loop, build, waiting)
    messages = [[IDENTITY, *update] for update in UPDATES]

    def take() -> None:
        intake = opened()
        for message in messages:
            intake.offer(message)
        intake.take()

    benchmark(take)
    assert len(waiting) == UPDATE_COUNT


@pytest.mark.benchmark(group="wait for 1024 updates, and answer them")
def test_add_and_applied(benchmark: BenchmarkFixture, loop: ModuleType) -> None:
    waiting = loop.WaitingUpdates()

    def answer() -> int:
        replies = loop.ReplyQueue()
        for index, request_id in enumerate(REQUEST_IDS, 1):
            waiting.add(index, IDENTITY, request_id, len(DATA))
        waiting.applied(1, UPDATE_COUNT, replies)
        return len(replies)

    assert benchmark(answer) == UPDATE_COUNT


@pytest.mark.benchmark(group="tell 1024 clients that their updates are accepted")
def test_accepted(benchmark: BenchmarkFixture, loop: ModuleType) -> None:
    waiting = loop.WaitingUpdates()
    for index, request_id in enumerate(REQUEST_IDS, 1):
        waiting.add(index, IDENTITY, request_id, len(DATA))
    benchmark(lambda: waiting.accepted(1, UPDATE_COUNT, loop.ReplyQueue()))


@pytest.mark.benchmark(group="1024 updates out of a socket")
def test_drain(benchmark: BenchmarkFixture, loop: ModuleType, build: str, sockets: tuple[Any, Any]) -> None:
    router, dealer = sockets
    opened = leader(loop, build, loop.WaitingUpdates())

    def arrive() -> tuple[tuple[Any], dict[str, Any]]:
        for update in UPDATES:
            dealer.send_multipart(update)
        return (opened(),), {}

    def drain(intake: Any) -> int:
        assert not intake.drain(router, UPDATE_COUNT)
        return len(intake.take())

    assert benchmark.pedantic(drain, setup=arrive, rounds=20) == UPDATE_COUNT


@pytest.mark.benchmark(group="an AppendEntries message of 1024 entries out of a socket")
def test_drain_append(benchmark: BenchmarkFixture, loop: ModuleType, build: str, sockets: tuple[Any, Any]) -> None:
    router, dealer = sockets
    message = [b"\1", b"+", SECRET, b"01", b"\7", b"\0", b"\0", b"\0", *batch_of_updates(build).frames()]
    opened = leader(loop, build, loop.WaitingUpdates())

    def arrive() -> tuple[tuple[Any], dict[str, Any]]:
        dealer.send_multipart(message)
        return (opened(),), {}

    ((frames, entries),) = benchmark.pedantic(lambda intake: intake.drain(router, 1), setup=arrive, rounds=20)
    assert (len(frames), len(entries)) == (9, UPDATE_COUNT)


@pytest.mark.benchmark(group="1024 replies into a socket")
def test_flush(benchmark: BenchmarkFixture, loop: ModuleType, sockets: tuple[Any, Any]) -> None:
    router, dealer = sockets

    def answered() -> tuple[tuple[Any], dict[str, Any]]:
        while dealer.poll(0):
            dealer.recv_multipart()
        replies, waiting = loop.ReplyQueue(), loop.WaitingUpdates()
        for index, request_id in enumerate(REQUEST_IDS, 1):
            waiting.add(index, IDENTITY, request_id, len(DATA))
        waiting.applied(1, UPDATE_COUNT, replies)
        return (replies,), {}

    benchmark.pedantic(lambda replies: replies.flush(router), setup=answered, rounds=20)


@pytest.mark.benchmark(group="an AppendEntries message of 1024 entries into a socket")
def test_send_message(benchmark: BenchmarkFixture, build: str, sockets: tuple[Any, Any]) -> None:
    router, dealer = sockets
    send_message = twin("zmq_io", build).send_message
    frames, batch = [b"\1", b"+", SECRET, b"01", b"\7", b"\0", b"\0", b"\0"], batch_of_updates(build)

    def read() -> None:
        while router.poll(0):
            router.recv_multipart()

    assert benchmark.pedantic(lambda: send_message(dealer, frames, batch), setup=read, rounds=20) is True
