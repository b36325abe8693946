"""The machines alone: what entries do to them, whatever is in them, and what is left of that in a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import msgpack
import pytest

from zmqraft import CorruptionError, EntryBatch, EntryType, LogEntry, MemorySnapshot, RequestError, new_request_id
from zmqraft.errors import RemoteProtocolError, RequestTimeoutError, ResultForgottenError
from zmqraft.machines import CounterMachine, KeyValueMachine, LockMachine, ReplicatedMachine
from zmqraft.machines import key_value as key_value_module
from zmqraft.machines import machine as machine_module
from zmqraft.machines.wire import pack, parse_answer, unpack

MACHINES = [KeyValueMachine, LockMachine, CounterMachine]
START_S = 1_800_000_000


class Driven:
    """A machine, and the peer that it answers through."""

    def __init__(self, machine: ReplicatedMachine) -> None:
        self.machine = machine
        self.index = 0
        self.id = "1"
        self.secret = b""
        self.answers: dict[bytes, Any] = {}
        machine.start(self)

    def call_soon(self, callback: Any) -> None:
        callback()

    def send(self, route: tuple[bytes, bytes], frames: Sequence[bytes]) -> None:
        self.answers[route[1]] = frames

    def write(self, *command: Any, request_id: bytes | None = None) -> Any:
        """Apply a command. Its result, or the text of the refusal."""
        (done, result) = self.apply(pack(command), request_id)
        return result if done else str(result)

    def apply(self, data: bytes, request_id: bytes | None = None) -> Any:
        self.index += 1
        entry = LogEntry(self.index, 1, EntryType.STATE, request_id or new_request_id(), data)
        (result,) = self.machine.apply_entries(EntryBatch.from_entries([entry]), 1)
        return result

    def ask(self, *question: Any, least_index: int = 0, name: bytes = b"question") -> Any:
        """The answer; None when there is none yet. Raises as a client does."""
        self.answers.pop(name, None)
        self.machine.on_message((b"client", name), self.machine.MESSAGE, [pack([least_index]), pack(question)])
        return self.answer(name)

    def answer(self, name: bytes = b"question") -> Any:
        return parse_answer(self.answers[name]) if name in self.answers else None


def restored(driven: Driven) -> Driven:
    """Another machine from the snapshot of this one, in chunks that end anywhere."""
    data = b"".join(driven.machine.snapshot())
    other = Driven(type(driven.machine)())
    chunks = [data[start : start + 7] for start in range(0, len(data), 7)]

    class Chunked(MemorySnapshot):
        def chunks(self, size: int = 0) -> Iterator[bytes]:
            yield from chunks

    other.machine.restore(Chunked(driven.index, 1, data))
    other.index = driven.index
    return other


class TestKeyValue:
    @pytest.fixture
    def store(self) -> Driven:
        return Driven(KeyValueMachine())

    def test_put_get_delete(self, store: Driven) -> None:
        assert store.ask("get", b"key") is None
        assert store.write("put", b"key", b"value") == 1
        assert store.ask("get", b"key") == [b"value", 1]
        assert store.write("put", b"key", b"") == 2
        assert store.ask("get", b"key") == [b"", 2]
        assert store.write("delete", b"key") is True
        assert store.write("delete", b"key") is False
        assert "answer" not in store.answers
        assert store.machine.get(b"key") is None  # type: ignore[attr-defined]

    def test_compare_and_swap(self, store: Driven) -> None:
        assert store.write("swap", b"key", b"a", b"b") is False
        assert store.write("swap", b"key", None, b"a") is True
        assert store.write("swap", b"key", None, b"b") is False
        assert store.write("swap", b"key", b"a", b"a") is True
        assert store.write("swap", b"key", b"a", None) is True
        assert store.write("swap", b"key", None, None) is True
        assert store.machine.get(b"key") is None  # type: ignore[attr-defined]

    def test_scan(self, store: Driven) -> None:
        for key in (b"b1", b"a", b"b", b"c", b"b2", b"\xff"):
            store.write("put", key, key)
        store.write("delete", b"b1")
        assert [key for key, *_ in store.ask("scan", b"b", b"", 10)[1]] == [b"b", b"b2"]
        assert store.ask("scan", b"", b"", 2) == [True, [[b"a", b"a", 2], [b"b", b"b", 3]]]
        assert store.ask("scan", b"", b"b", 2) == [True, [[b"b2", b"b2", 5], [b"c", b"c", 4]]]
        assert store.ask("scan", b"", b"c", 2) == [False, [[b"\xff", b"\xff", 6]]]
        assert store.ask("scan", b"b", b"b", 1) == [False, [[b"b2", b"b2", 5]]]
        assert store.ask("scan", b"x", b"", 5) == [False, []]

    def test_against_a_dictionary(self, store: Driven, seed: int) -> None:
        random = Random(seed)
        expected: dict[bytes, bytes] = {}
        for _ in range(3000):
            key, value = b"%d" % random.randrange(50), b"%d" % random.randrange(10)
            choice = random.randrange(3)
            if choice == 0:
                store.write("put", key, value)
                expected[key] = value
            elif choice == 1:
                assert store.write("delete", key) is (expected.pop(key, None) is not None)
            else:
                old = random.choice((None, b"%d" % random.randrange(10)))
                if store.write("swap", key, old, value):
                    assert expected.get(key) == old
                    expected[key] = value
                else:
                    assert expected.get(key) != old
            if random.random() < 0.01:
                store = restored(store)
        found = {key: value for key, value, _ in store.ask("scan", b"", b"", 1000)[1]}
        assert found == expected
        assert list(found) == sorted(expected)

    def test_watch(self, store: Driven) -> None:
        store.write("put", b"a1", b"x")
        store.write("put", b"b1", b"y")
        store.write("delete", b"a1")
        assert store.ask("watch", b"a", 0) == [3, [[b"a1", b"x", 1], [b"a1", None, 3]]]
        assert store.ask("watch", b"", 1) == [3, [[b"b1", b"y", 2], [b"a1", None, 3]]]
        assert store.ask("watch", b"a", 3) is None
        store.write("put", b"b1", b"z")
        assert store.answer() is None
        store.write("put", b"a2", b"z")
        assert store.answer() == [5, [[b"a2", b"z", 5]]]

    def test_a_watch_that_goes_back_too_far_is_told(self, store: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(key_value_module, "_HISTORY_MAX", 10)
        for number in range(100):
            store.write("put", b"key", b"%d" % number)
        first, changes = store.ask("watch", b"", 5)
        assert (first > 6, changes) == (True, None)
        assert store.ask("watch", b"", first - 2) == [first, None]
        for index in (first - 1, 90):
            _, changes = store.ask("watch", b"", index)
            assert [revision for *_, revision in changes] == list(range(index + 1, 101))

    def test_a_watch_goes_on_behind_a_snapshot(self, store: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(key_value_module, "_HISTORY_MAX", 10)
        other = restored(store)
        assert other.ask("watch", b"", 0) is None
        for number in range(100):
            for each in (store, other):
                each.write("put", b"key", b"%d" % number) if number % 3 else each.write("delete", b"key")
            if number % 10 == 0:
                other = restored(other)
        assert restored(other).ask("watch", b"", 0) == restored(store).ask("watch", b"", 0)
        assert other.ask("watch", b"", 90) == store.ask("watch", b"", 90)
        assert len(other.ask("watch", b"", 90)[1]) == 10
        assert list(other.machine.dump()) == list(store.machine.dump())

    def test_a_snapshot_without_changes_has_forgotten_them(self, store: Driven) -> None:
        head = [store.machine.MESSAGE.decode(), 1, 5]
        data = b"".join(map(pack, (head, [], [[b"key", b"value", 3]])))
        store.machine.restore(MemorySnapshot(5, 1, data))
        store.index = 5
        assert store.ask("watch", b"", 4) == [6, None]
        store.write("put", b"key", b"new")
        assert store.ask("watch", b"", 5) == [6, [[b"key", b"new", 6]]]

    def test_a_watch_that_waits_for_long_is_not_forgotten(self, store: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(key_value_module, "_HISTORY_MAX", 10)
        assert store.ask("watch", b"quiet", 0) is None
        for number in range(100):
            store.write("put", b"key", b"%d" % number)
        assert store.answers == {}
        store.write("put", b"quiet", b"value")
        assert store.answer() == [101, [[b"quiet", b"value", 101]]]

    def test_answers_are_of_limited_size(self, store: Driven) -> None:
        for number in range(30):
            store.write("put", b"%02d" % number, bytes(100_000))
        more, found = store.ask("scan", b"", b"", 1000)
        assert more
        assert 0 < len(found) < 30
        until, changes = store.ask("watch", b"", 0)
        assert 0 < len(changes) < 30
        assert until == changes[-1][2]


class TestLock:
    @pytest.fixture
    def locks(self) -> Driven:
        return Driven(LockMachine())

    def at(self, seconds: float) -> tuple[int, bytes]:
        """Milliseconds, and a request id of that time."""
        return int((START_S + seconds) * 1000), new_request_id(START_S + seconds)

    def acquire(self, locks: Driven, holder: bytes, seconds: float, lease_ms: int = 5000) -> Any:
        now_ms, request_id = self.at(seconds)
        return locks.write("acquire", "lock", holder, lease_ms, now_ms, request_id=request_id)

    def test_one_holds_it_until_the_lease_ends(self, locks: Driven) -> None:
        assert self.acquire(locks, b"a", 0) == [True, 1, 5000]
        assert self.acquire(locks, b"b", 1.5) == [False, 1, 3500]
        assert locks.ask("holder", "lock") == 1
        assert self.acquire(locks, b"b", 4.999)[0] is False
        assert self.acquire(locks, b"b", 5) == [True, 4, 5000]
        assert locks.ask("holder", "lock") == 4

    def test_the_same_holder_gets_the_same_token(self, locks: Driven) -> None:
        assert self.acquire(locks, b"a", 0) == [True, 1, 5000]
        assert self.acquire(locks, b"a", 3) == [True, 1, 5000]
        assert self.acquire(locks, b"b", 7)[0] is False
        assert self.acquire(locks, b"a", 9) == [True, 4, 5000]

    def test_renew_and_release(self, locks: Driven) -> None:
        self.acquire(locks, b"a", 0)
        now_ms, request_id = self.at(4)
        assert locks.write("renew", "lock", 1, 5000, now_ms, request_id=request_id) is True
        assert self.acquire(locks, b"b", 8)[0] is False
        now_ms, request_id = self.at(8.5)
        assert locks.write("release", "lock", 7, 1, now_ms, request_id=request_id) is False
        assert locks.ask("changed", "lock", 1) is None
        request_id = new_request_id(START_S + 8.5)
        assert locks.write("release", "lock", 1, 1, now_ms, request_id=request_id) is True
        assert locks.answer() == 0
        assert self.acquire(locks, b"b", 8.6)[0] is True
        now_ms, request_id = self.at(20)
        assert locks.write("renew", "lock", 6, 5000, now_ms, request_id=request_id) is False

    def test_time_never_goes_back_and_stays_within_the_second_of_the_request_id(self, locks: Driven) -> None:
        self.acquire(locks, b"a", 0)
        _, request_id = self.at(1)
        # A clock that is years ahead does not end the lease.
        assert locks.write("acquire", "lock", b"b", 5000, 2**50, request_id=request_id) == [False, 1, 3001]
        assert self.acquire(locks, b"b", -100) == [False, 1, 3001]
        _, request_id = self.at(3)
        assert locks.write("acquire", "lock", b"b", 5000, None, request_id=request_id) == [False, 1, 2000]

    def test_a_snapshot_keeps_locks_and_time(self, locks: Driven) -> None:
        self.acquire(locks, b"a", 10)
        other = restored(locks)
        assert self.acquire(other, b"b", 0) == [False, 1, 5000]
        assert self.acquire(other, b"b", 15) == [True, 3, 5000]


def test_counters() -> None:
    counter = Driven(CounterMachine())
    assert counter.write("add", "", 5) == 5
    assert counter.write("add", "", -7) == -2
    assert counter.write("set", "other", 100) == 100
    assert "out of range" in counter.write("add", "other", 2**63 - 1)
    assert counter.ask("get", "other") == 100
    other = restored(counter)
    assert (other.ask("get", ""), other.ask("get", "other"), other.ask("get", "none")) == (-2, 100, 0)


class TestAnyMachine:
    def test_a_repeated_request_id_is_applied_once(self) -> None:
        counter = Driven(CounterMachine())
        request_id = new_request_id()
        assert [counter.write("add", "", 5, request_id=request_id) for _ in range(3)] == [5, 5, 5]
        other = restored(counter)
        assert other.write("add", "", 5, request_id=request_id) == 5
        assert other.ask("get", "") == 5

    def test_results_can_be_asked_for_until_they_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine_module, "RESULTS_MAX", 10)
        counter = Driven(CounterMachine())
        request_id = new_request_id()
        counter.write("add", "", 5, request_id=request_id)
        assert counter.ask("result", request_id, 1) == [True, 5]
        for _ in range(10):
            counter.write("add", "", 1)
        with pytest.raises(ResultForgottenError):
            counter.ask("result", request_id, 1)

    def test_a_question_waits_for_its_index(self) -> None:
        counter = Driven(CounterMachine())
        counter.write("add", "", 1)
        assert counter.ask("get", "", least_index=3) is None
        counter.write("add", "", 1)
        assert counter.answer() is None
        counter.write("add", "", 1)
        assert counter.answer() == 3

    def test_who_has_waited_for_long_is_told_how_far_it_is(self) -> None:
        counter = Driven(CounterMachine())
        counter.write("add", "", 1)
        assert counter.ask("get", "", least_index=9) is None
        at = counter.machine.tick(0.0)
        assert at is not None
        counter.machine.tick(at)
        with pytest.raises(RequestTimeoutError):
            counter.answer()
        assert counter.machine.tick(at) is None

    @pytest.mark.parametrize("make", MACHINES)
    def test_what_is_no_command_changes_nothing(self, make: type[ReplicatedMachine], seed: int) -> None:
        random = Random(seed)
        driven = Driven(make())
        values: list[Any] = [None, 1, -1, 2**63, 1.5, "", "name", b"", b"key", [], [1], {}, {1: 2}, True]
        names = ["put", "delete", "swap", "acquire", "renew", "release", "add", "set", "x", b"put", None, 5]
        for _ in range(3000):
            command = [random.choice(names), *random.choices(values, k=random.randrange(6))]
            driven.apply(pack(random.choice(([], command, command, [command]))))
            data = bytearray(pack(command))
            data[random.randrange(len(data))] = random.randrange(256)
            driven.apply(bytes(data))
            driven.apply(random.randbytes(random.randrange(1, 20)))
        assert restored(driven).index == driven.index

    @pytest.mark.parametrize("make", MACHINES)
    def test_what_is_no_question_is_refused_or_dropped(self, make: type[ReplicatedMachine], seed: int) -> None:
        random = Random(seed)
        driven = Driven(make())
        values: list[Any] = [None, 1, -1, 2**63, float("inf"), "", "name", b"", b"key", [], {}, True]
        for _ in range(2000):
            question = [random.choice(["get", "scan", "watch", "holder", "changed", "result", 1, None])]
            question += random.choices(values, k=random.randrange(4))
            frames = [pack([random.choice((0, 0, 5, "x", None))]), pack(question)]
            if random.random() < 0.2:
                frames[random.randrange(2)] = random.randbytes(random.randrange(10))
            try:
                driven.machine.on_message((b"client", b"1"), make.MESSAGE, frames[: random.choice((1, 2, 2, 2))])
            except RemoteProtocolError:
                continue
            try:
                driven.answer(b"1")
            except RequestError:
                continue

    def test_messages_to_others_are_left_alone(self) -> None:
        driven = Driven(CounterMachine())
        driven.machine.on_message((b"client", b"1"), b"zmqraft.other", [])
        assert driven.answers == {}

    @pytest.mark.parametrize("make", MACHINES)
    def test_the_snapshot_of_another_machine_is_refused(self, make: type[ReplicatedMachine]) -> None:
        other = next(each for each in MACHINES if each is not make)
        data = b"".join(other().snapshot())
        for wrong in (data, b"", b"\xc1", msgpack.packb(1)):
            with pytest.raises(CorruptionError):
                make().restore(MemorySnapshot(1, 1, wrong))

    def test_a_snapshot_does_not_see_what_is_applied_later(self) -> None:
        store = Driven(KeyValueMachine())
        for number in range(3000):
            store.write("put", b"%d" % number, b"old")
        view = store.machine.snapshot()
        for number in range(3000):
            store.write("put", b"%d" % number, b"new")
        other = Driven(KeyValueMachine())
        other.machine.restore(MemorySnapshot(3000, 1, b"".join(view)))
        assert other.ask("scan", b"", b"", 1)[1][0][1] == b"old"
        assert len(other.machine._values) == 3000  # type: ignore[attr-defined]


def test_answers() -> None:
    with pytest.raises(RemoteProtocolError):
        parse_answer([])
    for wrong in ([1], [], ["x", 1], [0, 1, 2]):
        with pytest.raises(RemoteProtocolError):
            parse_answer([pack(wrong)])
    with pytest.raises(RequestError):
        parse_answer([pack([1, "text"])])
    with pytest.raises(RemoteProtocolError):
        unpack(b"\x93\x01")
