"""The client against peers that fail at random, in virtual time: nothing lost, nothing doubled, nothing stuck."""

from __future__ import annotations

import random

import pytest

from support.session_driver import GRACE_S, SECRET, URLS, Sink
from support.virtual_peers import VirtualPeers
from zmqraft.client.entries_request import EntriesRequest, item_size
from zmqraft.client.requests import UpdateRequest
from zmqraft.client.subscription import Subscription
from zmqraft.errors import RequestTimeoutError
from zmqraft.protocol.entries_flow import EntriesFlow, EntriesItem
from zmqraft.protocol.entry import EntryBatch
from zmqraft.protocol.request_id import new_request_id
from zmqraft.protocol.schema import Protocols


def disturb(peers: VirtualPeers, rng: random.Random) -> None:
    """One thing that goes wrong, or right again."""
    match rng.randrange(7):
        case 0:
            peers.leader = rng.choice([*URLS, None])
        case 1:
            peers.dead = set(rng.sample(sorted(URLS), rng.randrange(3)))
        case 2:
            peers.isolated = rng.choice([*URLS, None])
        case 3:
            peers.loss = rng.choice((0.0, 0.0, 0.1, 0.5))
        case 4:
            peers.dead = set()
            peers.isolated = None
        case 5:
            peers.session.look_for_leader(peers.now)
        case 6:
            for _ in range(3):
                peers.session.receive([rng.randbytes(rng.choice((0, 1, 4, 12)))], peers.now)


def heal(peers: VirtualPeers, rng: random.Random) -> None:
    peers.leader = rng.choice(list(URLS))
    peers.dead, peers.isolated, peers.loss = set(), None, 0.0


@pytest.mark.parametrize("number", range(40))
def test_updates_get_into_the_log_once_and_all_of_them(number: int, seed: int) -> None:
    rng = random.Random(f"updates {seed} {number}")
    peers = VirtualPeers(rng.randrange(2**32))
    lasting: list[tuple[bytes, Sink]] = []
    others: list[tuple[UpdateRequest, Sink, bool]] = []
    for _ in range(120):
        for _ in range(rng.choice((0, 1, 5))):
            sink, request_id = Sink(), new_request_id()
            ends = rng.random() < 0.3
            deadline = peers.now + rng.uniform(0.01, 3) if ends else float("inf")
            request = UpdateRequest(SECRET, request_id, b"data of " + request_id, sink, deadline)
            peers.session.start(request, peers.now)
            if ends:
                others.append((request, sink, rng.random() < 0.5 and peers.session.cancel(request)))
            else:
                lasting.append((request_id, sink))
                if rng.random() < 0.1:
                    twin = Sink()
                    peers.session.start(UpdateRequest(SECRET, request_id, b"ignored", twin), peers.now)
                    lasting.append((request_id, twin))
        if rng.random() < 0.2:
            disturb(peers, rng)
        peers.run(rng.choice((0.0, 0.01, 0.1, 0.5)))
    heal(peers, rng)
    peers.run(10)
    assert peers.session.request_count == 0
    assert [sink.result for _, sink in lasting] == [peers.index_by_id[request_id] for request_id, _ in lasting]
    for request, sink, cancelled in others:
        if cancelled:
            assert sink.pending
        elif not isinstance(sink.result, RequestTimeoutError):
            assert sink.result == peers.index_by_id[request.id]
    ids = [entry.request_id for entry in peers.log]
    assert len(set(ids)) == len(ids)
    peers.run(10)
    assert peers.session.next_time() is None


@pytest.mark.parametrize("number", range(40))
def test_a_stream_brings_every_entry_once(number: int, seed: int) -> None:
    rng = random.Random(f"stream {seed} {number}")
    peers = VirtualPeers(rng.randrange(2**32))
    length = rng.randrange(300)
    for index in range(length):
        peers.commit(new_request_id(), b"entry %d" % index)
    sink = Sink()
    previous, count = rng.randrange(length + 1), rng.choice((None, rng.randrange(1, 400)))
    request = EntriesRequest(SECRET, EntriesFlow(previous, count), sink)
    peers.session.start(request, peers.now)
    taken = 0
    for step in range(10_000):
        if not sink.pending and taken == len(sink.items):
            break
        if step < 300 and rng.random() < 0.2:
            disturb(peers, rng)
        elif step == 300:
            heal(peers, rng)
        peers.run(rng.choice((0.0, 0.01, 0.1, 6.0)))
        while taken < len(sink.items) and rng.random() < 0.8:
            taken += 1
            request.consumed(peers.session, peers.now)
        assert len(sink.items) - taken <= 8
    assert sink.result is None
    entries = [entry for item in sink.items if isinstance(item, EntryBatch) for entry in item]
    last = length if count is None else min(length, previous + count)
    assert entries == peers.log[previous:last]
    assert peers.session.request_count == 0


class _Consumer:
    """Takes at random what a subscription brings."""

    def __init__(self, peers: VirtualPeers, rng: random.Random) -> None:
        self.peers = peers
        self.rng = rng
        self.items: list[EntriesItem] = []
        self.taken = 0

    def put(self, item: EntriesItem, /) -> None:
        self.items.append(item)

    def set_exception(self, exception: BaseException, /) -> None:
        raise AssertionError(exception)

    def take(self, eagerness: float) -> None:
        assert self.peers.subscription is not None
        while self.taken < len(self.items) and self.rng.random() < eagerness:
            self.peers.subscription.consumed(item_size(self.items[self.taken]), self.peers.now)
            self.taken += 1


@pytest.mark.parametrize("number", range(40))
def test_a_subscriber_gets_every_entry_once(number: int, seed: int) -> None:
    rng = random.Random(f"subscriber {seed} {number}")
    peers = VirtualPeers(rng.randrange(2**32))
    consumer = _Consumer(peers, rng)
    for index in range(rng.randrange(50)):
        peers.commit(new_request_id(), b"before %d" % index)
    last_index = rng.randrange(len(peers.log) + 1)
    size = rng.choice((500, 5000, 1 << 20))
    peers.subscription = Subscription(
        peers.session,
        consumer,
        last_index=last_index,
        silence_s=1.0,
        retry_delay_s=GRACE_S,
        buffer_size_max=size,
    )
    peers.heartbeat()
    for _ in range(150):
        for _ in range(rng.choice((0, 1, 5, 30))):
            if peers.leader is not None:
                peers.commit(new_request_id(), rng.randbytes(rng.randrange(1, 100)))
        if rng.random() < 0.2:
            disturb(peers, rng)
        peers.run(rng.choice((0.0, 0.01, 0.1, 1.0)))
        consumer.take(0.8)
        assert sum(item_size(item) for item in consumer.items[consumer.taken :]) <= size + 1000
    heal(peers, rng)
    for _ in range(2000):
        peers.run(0.1)
        consumer.take(1)
    entries = [entry for item in consumer.items if isinstance(item, EntryBatch) for entry in item]
    assert entries == peers.log[last_index:]


def test_the_disturbances_are_felt() -> None:
    """Guards the tests above against peers that never fail."""
    peers = VirtualPeers(1)
    sink = Sink()
    peers.dead = set(URLS)
    peers.session.start(UpdateRequest(SECRET, new_request_id(), b"data", sink), peers.now)
    peers.run(20)
    assert sink.pending
    peers.dead, peers.isolated = set(), "1"
    peers.leader = None
    peers.run(20)
    assert sink.pending
    assert peers.session.counters.searches > 5
    peers.isolated, peers.leader = None, "2"
    peers.run(2)
    assert sink.result == 1
    assert Protocols.REQUEST_UPDATE.name == "RequestUpdate"
