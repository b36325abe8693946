"""The request-id index against a plain list that is searched from the start."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from support.logs import random_entry, request_id_at
from support.outcomes import outcome
from support.twins import COMPILED, PURE, twin
from zmqraft.protocol.entry import EntryType, LogEntry


class Twins:
    """The index of a build, and batches of the same build to feed it."""

    def __init__(self, build: str) -> None:
        self.RequestIndex = twin("request_index", build).RequestIndex
        self.EntryBatch = twin("log_index", build).EntryBatch

    def batch_of(self, *entries: LogEntry) -> Any:
        return self.EntryBatch.from_entries(entries)


@pytest.fixture
def twins(build: str) -> Twins:
    return Twins(build)


@pytest.mark.parametrize("seed", range(20))
def test_against_a_list(twins: Twins, seed: int) -> None:
    random = Random(seed)
    index = twins.RequestIndex()
    remembered: list[tuple[bytes, int]] = []
    last = 0
    for _ in range(300):
        action = random.random()
        if action < 0.5:
            after = random.choice([0, 0, 0, 1000 + last - 5])
            entries = [random_entry(random, last + 1 + offset, 1) for offset in range(random.randint(1, 8))]
            index.add(twins.EntryBatch.from_entries(entries), after)
            for entry in entries:
                known = {request_id for request_id, _ in remembered}
                wanted = int.from_bytes(entry.request_id[:4], "big") >= after and any(entry.request_id)
                if wanted and not entry.is_checkpoint and entry.request_id not in known:
                    remembered.append((entry.request_id, entry.index))
            last = entries[-1].index
        elif action < 0.7 and last:
            last = random.randint(max(last - 10, 0), last)
            index.truncate_after(last)
            remembered = [(request_id, at) for request_id, at in remembered if at <= last]
        elif action < 0.8:
            seconds = 1000 + random.randint(max(last - 40, 0), last + 2)
            index.forget_before(seconds)
            while remembered and int.from_bytes(remembered[0][0][:4], "big") < seconds:
                del remembered[0]
        assert len(index) == len(remembered)
        assert index.prune_index(last) == (remembered[0][1] - 1 if remembered else last)
        for number in random.sample(range(4 * last + 8), 8):
            request_id = request_id_at(1000 + number // 4, number)
            assert index.find(request_id) == dict(remembered).get(request_id)


def entry(index: int, request_id: bytes, entry_type: EntryType = EntryType.STATE) -> LogEntry:
    return LogEntry(index, 1, entry_type, request_id, b"x")


def test_the_first_index_of_an_id_counts(twins: Twins) -> None:
    index = twins.RequestIndex()
    request_id = request_id_at(5, 5)
    index.add(twins.batch_of(entry(1, request_id), entry(2, request_id)))
    index.add(twins.batch_of(entry(3, request_id)))
    assert index.find(request_id) == 1
    index.truncate_after(1)
    assert index.find(request_id) == 1
    index.truncate_after(0)
    assert index.find(request_id) is None


def test_what_is_not_indexed(twins: Twins) -> None:
    index = twins.RequestIndex()
    index.add(twins.batch_of(entry(1, bytes(12)), entry(2, request_id_at(1, 1), EntryType.CHECKPOINT)))
    assert len(index) == 0
    index.add(twins.batch_of(entry(3, request_id_at(1, 2), EntryType.CONFIG)))
    assert index.find(request_id_at(1, 2)) == 3


@pytest.mark.parametrize(("seconds", "found"), [(-1, 1), (0, 1), (2**32 - 1, 1), (2**32, None), (2**40, None)])
def test_times_out_of_range(twins: Twins, seconds: int, found: int | None) -> None:
    index = twins.RequestIndex()
    index.add(twins.batch_of(entry(1, b"\xff" * 12)))
    index.forget_before(seconds)
    assert index.find(b"\xff" * 12) == found


def test_beyond_the_bound_the_window_shrinks(twins: Twins) -> None:
    index = twins.RequestIndex(3)
    assert (index.bound, index.oldest_accepted_seconds) == (3, 0)
    # The times do not rise with the entries: clients' clocks differ.
    ids = [request_id_at(seconds, seconds) for seconds in (50, 70, 60, 80, 90)]
    index.add(twins.batch_of(*(entry(number, request_id) for number, request_id in enumerate(ids[:3], 1))))
    assert (len(index), index.oldest_accepted_seconds) == (3, 0)
    for number, oldest in ((4, 50), (5, 70)):
        index.add(twins.batch_of(entry(number, ids[number - 1])))
        assert (len(index), index.oldest_accepted_seconds) == (3, oldest)
    assert [index.find(request_id) for request_id in ids] == [None, None, 3, 4, 5]
    assert index.prune_index(5) == 2
    # What was let go of for another reason has nothing to do with it.
    index.forget_before(85)
    index.truncate_after(4)
    assert (len(index), index.oldest_accepted_seconds) == (0, 70)


@pytest.mark.parametrize("bound", [0, -1, True, 1.0, "3"])
def test_a_bad_bound(twins: Twins, bound: Any) -> None:
    with pytest.raises(ValueError, match="the largest number of request ids is 1 or more, or None"):
        twins.RequestIndex(bound)


def test_what_is_not_a_request_id_is_not_found(twins: Twins) -> None:
    index = twins.RequestIndex()
    for _ in range(2):
        assert index.find(b"") is index.find(bytes(11)) is index.find(bytes(12)) is index.find(bytes(13)) is None
        for bad in (None, 1, "0" * 12, bytearray(12)):
            with pytest.raises(TypeError):
                index.find(bad)
        index.add(twins.batch_of(entry(1, request_id_at(1, 1))))


@pytest.mark.parametrize("build", [COMPILED])
def test_at_most_64_bytes_for_each_id(twins: Twins, build: str) -> None:
    """While it grows, and when it shrinks from either end; and nothing is kept of what is gone."""
    index = twins.RequestIndex()
    empty = 20_000
    last = 0
    while last < 200_000:
        frames = [entry(1, request_id_at(last // 1000, last + number + 1)).to_bytes() for number in range(100)]
        index.add(twins.EntryBatch.from_frames(last + 1, frames))
        last += 100
        assert index.memory_size <= 64 * last + empty
    assert len(index) == last
    assert index.memory_size <= 64 * last
    for step in range(1, 90):
        index.forget_before(step)
        index.truncate_after(last - 1000 * step)
        assert len(index) == last - 2000 * step
        assert index.memory_size <= 64 * len(index) + empty
        assert index.find(request_id_at(step, 1000 * step + 1)) == 1000 * step + 1
    index.truncate_after(0)
    assert index.memory_size <= empty


OPERATIONS = 110_000
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**32 - 1, 2**32, 2**53, 2**63, 2**64, -(2**64), 1.0, 1.9, float("nan"), "", "1"),
    *(b"", bytes(11), bytes(12), b"\xff" * 12, bytes(13), bytearray(12), memoryview(bytes(12)), [], {}, object),
]


@pytest.mark.parametrize("build", [COMPILED])
def test_twins_do_the_same(build: str, seed: int) -> None:
    random = Random(seed)
    both = [Twins(PURE), Twins(build)]
    indexes = [twins.RequestIndex() for twins in both]
    last = added = 0
    now = 1000
    for operation in range(OPERATIONS):
        hostile = random.random() < 0.03
        kind = random.random()
        now += random.random() < 0.2
        if kind < 0.45:
            frames = [_random_entry(random, now) for _ in range(random.choice((0, 1, 1, 2, 20)))]
            after = random.choice(HOSTILE) if hostile else random.choice((0, 0, 0, now - 3))
            odd = random.random() < 0.01
            given = [twins.EntryBatch.from_frames(last + 1, frames) for twins in both]
            calls = [(index.add, (None if odd else batch, after)) for index, batch in zip(indexes, given, strict=True)]
            last += len(frames)
            added += len(frames)
        elif kind < 0.8:
            request_id = random.choice(HOSTILE) if hostile else _random_id(random, now)
            calls = [(index.find, (request_id,)) for index in indexes]
        elif kind < 0.83:
            cut = random.choice(HOSTILE) if hostile else max(last - random.choice((0, 1, 5, 100)), 0)
            calls = [(index.truncate_after, (cut,)) for index in indexes]
        elif kind < 0.87:
            before = random.choice(HOSTILE) if hostile else now - random.choice((10, 100, 1000))
            calls = [(index.forget_before, (before,)) for index in indexes]
        elif kind < 0.89:
            until = random.choice(HOSTILE) if hostile else max(last - random.choice((0, 1, 5, 100)), 0)
            calls = [(index.packed, (until,)) for index in indexes]
        elif kind < 0.91:
            first = random.choice((last, last, last, last - 3))
            ids = [(_random_id(random, now), first + 1 + number) for number in range(random.choice((0, 1, 3, 20)))]
            records = random.choice(HOSTILE) if hostile else _pack(ids)
            until, after = (random.choice(HOSTILE) if random.random() < 0.05 else v for v in (last + 10, now - 3))
            calls = [(index.add_packed, (records, until, after)) for index in indexes]
            last += 20
        elif kind < 0.911:
            until = random.choice(HOSTILE) if hostile else now - 500
            calls = [(index.refuse_until, (until,)) for index in indexes]
        elif kind < 0.999:
            calls = [(index.prune_index, (last,)) for index in indexes]
        else:
            bound = random.choice((None, None, 1, 2, 511, 512, 513, 3000, random.choice(HOSTILE)))
            calls = [(twins.RequestIndex, (bound,)) for twins in both]
            made = [outcome(lambda: call(*arguments)) for call, arguments in calls]  # noqa: B023
            if made[0][0] is not ValueError:
                indexes = [index for _, index in made]
                continue
        expected, got = (outcome(lambda: call(*arguments)) for call, arguments in calls)  # noqa: B023
        assert got == expected, f"operation {operation} of seed {seed}"
        states = [(len(index), index.oldest_accepted_seconds, index.prune_index(-1), index.bound) for index in indexes]
        assert states[0] == states[1], f"operation {operation} of seed {seed}"
    assert added > OPERATIONS


def _pack(ids: list[tuple[bytes, int]]) -> bytes:
    return b"".join(request_id + index.to_bytes(8, "little") for request_id, index in ids)


def test_packed_and_unpacked(twins: Twins) -> None:
    entries = [LogEntry(index, 1, EntryType.STATE, request_id_at(1000 + index, index), b"x") for index in range(1, 9)]
    index = twins.RequestIndex()
    index.add(twins.batch_of(*entries))
    records = index.packed(6)
    assert records == _pack([(entry.request_id, entry.index) for entry in entries[:6]])
    assert (index.packed(0), index.packed(100)) == (b"", records + index.packed(8)[len(records) :])
    other = twins.RequestIndex()
    other.add_packed(records, 5, 1003)
    assert [other.find(entry.request_id) for entry in entries] == [None, None, 3, 4, 5, None, None, None]
    other.refuse_until(1001)
    other.refuse_until(7)
    assert other.oldest_accepted_seconds == 1001
    for bad, part in ((records[:-1], "have 20 bytes each, not 119"), (records, "of entry 1 does not follow .* 5")):
        with pytest.raises(ValueError, match=part):
            other.add_packed(bad, 100)
    with pytest.raises(ValueError, match="entry 9007199254740992 does not follow"):
        other.add_packed(_pack([(b"x" * 12, 6), (b"y" * 12, 2**53)]), 100)
    assert (len(other), other.find(b"x" * 12)) == (3, None)
    bounded = twins.RequestIndex(2)
    bounded.add_packed(records, 100)
    assert (len(bounded), bounded.oldest_accepted_seconds) == (2, 1004)


def _random_id(random: Random, now: int) -> bytes:
    if random.random() < 0.02:
        return bytes(12)
    return request_id_at(max(now - random.choice((0, 0, 1, 5, 200)), 0), random.randrange(40))


def _random_entry(random: Random, now: int) -> bytes:
    return LogEntry(1, 1, EntryType(random.choice((0, 0, 0, 0, 1, 2))), _random_id(random, now), b"x").to_bytes()
