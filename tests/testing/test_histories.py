"""Bad histories written by hand, each beside its good twin: the checkers refuse all of the first, none of the second.

A history is lines of ``client called-returned operation = result``; ``-`` for one that never returned. For a log the
operation is a request id and the result its index.
"""

from __future__ import annotations

import math
import random

import pytest

from zmqraft.testing.histories import HistoryError, Operation, check_key_values, check_log


def parse(text: str) -> list[Operation]:
    """``a 0-1 put x 1`` or ``b 2-3 get x = 1``; in a log ``a 0-1 r1 = 5``."""
    operations = []
    for line in text.strip().splitlines():
        client, times, *words = line.split()
        called, _, returned = times.partition("-")
        result: object = None
        if "=" in words:
            at = words.index("=")
            result = _value(words[at + 1])
            words = words[:at]
        if words[0] in ("get", "put", "cas"):
            command = (words[0], words[1], *map(_value, words[2:]))
            request_id, index = f"{client}{times}".encode(), None
        else:
            command, request_id, index = (), words[0].encode(), result
        operations.append(
            Operation(
                client,
                request_id,
                command,
                float(called),
                float(returned) if returned else math.inf,
                index,  # type: ignore[arg-type]
                result,
            )
        )
    return operations


def _value(word: str) -> object:
    return {"nil": None, "yes": True, "no": False}.get(word, int(word) if word.lstrip("-").isdigit() else word)


#: What is wrong: the bad history, the good twin.
KEY_VALUES = {
    "a read of nothing after a write": ("a 0-1 put x 1\nb 2-3 get x = nil", "a 0-1 put x 1\nb 2-3 get x = 1"),
    "a read of what nobody wrote": ("a 0-1 put x 1\nb 2-3 get x = 7", "a 0-1 put x 1\nc 1-2 put x 7\nb 3-4 get x = 7"),
    "a stale read": (
        "a 0-1 put x 1\na 2-3 put x 2\nb 4-5 get x = 1",
        "a 0-1 put x 1\na 2-5 put x 2\nb 4-5 get x = 1",
    ),
    "a read before the write was called": ("b 0-1 get x = 1\na 2-3 put x 1", "b 0-3 get x = 1\na 2-3 put x 1"),
    "new, then old": (
        "a 0-9 put x 1\nb 1-2 get x = 1\nb 3-4 get x = nil",
        "a 0-9 put x 1\nb 1-2 get x = nil\nb 3-4 get x = 1",
    ),
    "new, then old, by two readers": (
        "a 0-9 put x 1\nb 1-2 get x = 1\nc 3-4 get x = nil",
        "a 0-9 put x 1\nb 1-4 get x = 1\nc 3-4 get x = nil",
    ),
    "a lost write": (
        "a 0-1 put x 1\nb 2-3 put x 2\nc 4-5 get x = 2\nc 6-7 get x = 1",
        "a 0-1 put x 1\nb 2-3 put x 2\nc 4-5 get x = 2\na 5-6 put x 1\nc 6-7 get x = 1",
    ),
    "a write that comes back": (
        "a 0-1 put x 1\nb 2-3 put x 2\nc 4-5 get x = 1\nc 6-7 get x = 2",
        "a 0-3 put x 1\nb 2-7 put x 2\nc 4-5 get x = 1\nc 6-7 get x = 2",
    ),
    "concurrent writes seen in both orders": (
        "a 0-3 put x 1\nb 0-3 put x 2\nc 4-5 get x = 1\nd 4-5 get x = 2",
        "a 0-3 put x 1\nb 0-5 put x 2\nc 4-5 get x = 1\nd 4-5 get x = 2",
    ),
    "three reads around two writes": (
        "a 0-9 put x 1\nb 0-9 put x 2\nc 1-2 get x = 1\nc 3-4 get x = 2\nc 5-6 get x = 1",
        "a 0-9 put x 1\nb 0-9 put x 2\nc 1-2 get x = 1\nc 3-4 get x = 2\nc 5-6 get x = 2",
    ),
    "an unanswered write that is seen and gone": (
        "a 0- put x 1\nb 1-2 get x = 1\nb 3-4 get x = nil",
        "a 0- put x 1\nb 1-2 get x = nil\nb 3-4 get x = 1",
    ),
    "an unanswered write that is seen before it was called": (
        "b 0-1 get x = 1\na 2- put x 1",
        "b 0-3 get x = 1\na 2- put x 1",
    ),
    "an unanswered write that counts twice": (
        "a 0- put x 1\nb 1-2 get x = 1\nb 3-4 put x 2\nb 5-6 get x = 1",
        "a 0- put x 1\nb 1-2 get x = nil\nb 3-4 put x 2\nb 5-6 get x = 1",
    ),
    "a swap that succeeds against the value": (
        "a 0-1 put x 1\nb 2-3 cas x 2 3 = yes",
        "a 0-1 put x 1\nb 2-3 cas x 1 3 = yes",
    ),
    "a swap that fails against the value": (
        "a 0-1 put x 1\nb 2-3 cas x 1 3 = no",
        "a 0-1 put x 1\nb 2-3 cas x 2 3 = no",
    ),
    "a swap that failed and changed something": (
        "a 0-1 put x 1\nb 2-3 cas x 2 3 = no\nc 4-5 get x = 3",
        "a 0-1 put x 1\nb 2-3 cas x 2 3 = no\nc 4-5 get x = 1",
    ),
    "a swap that succeeded and changed nothing": (
        "a 0-1 put x 1\nb 2-3 cas x 1 3 = yes\nc 4-5 get x = 1",
        "a 0-1 put x 1\nb 2-3 cas x 1 3 = yes\nc 4-5 get x = 3",
    ),
    "two swaps of one value": (
        "a 0-1 put x 1\nb 2-5 cas x 1 2 = yes\nc 2-5 cas x 1 3 = yes",
        "a 0-1 put x 1\nb 2-5 cas x 1 2 = yes\nc 2-5 cas x 2 3 = yes",
    ),
    "two concurrent swaps that both fail": (
        "a 0-1 put x 1\nb 2-5 cas x 1 2 = no\nc 2-5 cas x 1 3 = no",
        "a 0-1 put x 1\nb 2-5 cas x 1 2 = yes\nc 2-5 cas x 1 3 = no",
    ),
    "a lock taken twice": (
        "a 0-1 cas x nil 1 = yes\nb 2-3 cas x nil 2 = yes",
        "a 0-1 cas x nil 1 = yes\nb 2-3 cas x nil 2 = no",
    ),
    "a swap that saw the future": (
        "b 0-1 cas x 1 2 = yes\na 2-3 put x 1",
        "b 0-3 cas x 1 2 = yes\na 2-3 put x 1",
    ),
    "an unanswered swap seen without its condition": (
        "a 0-1 put x 1\nb 2- cas x 2 3\nc 4-5 get x = 3",
        "a 0-1 put x 1\nb 2- cas x 1 3\nc 4-5 get x = 3",
    ),
    "one bad key among good ones": (
        "a 0-1 put y 1\nb 2-3 get y = 1\na 4-5 put x 1\nb 6-7 get x = nil",
        "a 0-1 put y 1\nb 2-3 get y = 1\na 4-5 put x 1\nb 6-7 get x = 1",
    ),
    "a read that is as old as two writes": (
        "a 0-1 put x 1\na 2-3 put x 2\na 4-5 put x 3\nb 4-6 get x = 1",
        "a 0-1 put x 1\na 2-3 put x 2\na 4-5 put x 3\nb 4-6 get x = 2",
    ),
}

LOGS = {
    "one index for two ids": ("a 0-1 r1 = 1\nb 0-1 r2 = 1", "a 0-1 r1 = 1\nb 0-1 r2 = 2"),
    "two indexes for one id": ("a 0-1 r1 = 1\na 2-3 r1 = 2", "a 0-1 r1 = 1\na 2-3 r1 = 1"),
    "two indexes for one id, by two clients": ("a 0-3 r1 = 1\nb 0-3 r1 = 2", "a 0-3 r1 = 2\nb 0-3 r1 = 2"),
    "no index": ("a 0-1 r1 = 0", "a 0-1 r1 = 1"),
    "later, with a lower index": ("a 0-1 r1 = 5\nb 2-3 r2 = 4", "a 0-2 r1 = 5\nb 2-3 r2 = 4"),
    "later, behind another": (
        "a 0-1 r1 = 3\nb 0-1 r2 = 9\nc 2-3 r3 = 5",
        "a 0-1 r1 = 3\nb 0-2 r2 = 9\nc 2-3 r3 = 5",
    ),
    "a repetition that got a later index than what followed": (
        "a 0-1 r1 = 9\nb 2-3 r2 = 4\na 4-5 r1 = 9",
        "a 0-1 r1 = 4\nb 2-3 r2 = 9\na 4-5 r1 = 4",
    ),
    "back after a long time": (
        "a 0-1 r1 = 1\na 2-3 r2 = 2\na 4-5 r3 = 3\nb 6-7 r4 = 2",
        "a 0-1 r1 = 1\na 2-3 r2 = 2\na 4-5 r3 = 3\nb 6-7 r4 = 4",
    ),
    "it returned before it was called": ("a 2-1 r1 = 1", "a 1-2 r1 = 1"),
}

#: What is wrong: the history, the bad log, the good one.
AGAINST_LOGS = {
    "what was acknowledged is gone": ("a 0-1 r1 = 1\na 2-3 r2 = 2", "r1", "r1 r2"),
    "something else is there": ("a 0-1 r1 = 1\nb 2- r2", "r2 r1", "r1 r2"),
    "it is there twice": ("a 0-1 r1 = 1", "r1 r1", "r1"),
    "nobody asked for it": ("a 0-1 r1 = 1", "r1 r2", "r1 -"),
    "it is elsewhere": ("a 0-1 r1 = 2", "r1 -", "- r1"),
    "one that never returned is there twice": ("a 0- r1", "r1 - r1", "- - r1"),
}


def log_of(text: str) -> list[bytes | None]:
    return [None if word == "-" else word.encode() for word in text.split()]


def test_there_are_enough_of_them() -> None:
    assert len(KEY_VALUES) + len(LOGS) + len(AGAINST_LOGS) >= 30


@pytest.mark.parametrize("name", KEY_VALUES)
def test_key_values(name: str) -> None:
    bad, good = map(parse, KEY_VALUES[name])
    check_key_values(good)
    with pytest.raises(HistoryError, match="no order"):
        check_key_values(bad)


@pytest.mark.parametrize("name", LOGS)
def test_logs(name: str) -> None:
    bad, good = map(parse, LOGS[name])
    check_log(good)
    with pytest.raises(HistoryError):
        check_log(bad)


@pytest.mark.parametrize("name", AGAINST_LOGS)
def test_against_a_log(name: str) -> None:
    history, bad, good = AGAINST_LOGS[name]
    check_log(parse(history), log_of(good))
    with pytest.raises(HistoryError):
        check_log(parse(history), log_of(bad))


def test_a_search_that_is_too_hard_says_so() -> None:
    """It is not taken for a good history, nor for a bad one without a word."""
    pending = [Operation("a", b"", ("put", "x", number), 0.0) for number in range(30)]
    impossible = Operation("b", b"", ("get", "x"), 1.0, 2.0, None, "never written")
    with pytest.raises(HistoryError, match="not decided within 1000 steps"):
        check_key_values([*pending, impossible], steps_max=1000)


class _Store:
    """A correct store, and one with a fault, whose operations take effect at a random time between call and return."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def history(self, *, count: int, stale: float = 0.0) -> list[Operation]:
        points = []
        for number in range(count):
            called = self.random.uniform(0, count)
            takes_effect = called + self.random.random()
            returned = takes_effect + self.random.random()
            kind = self.random.choice(("get", "put", "cas"))
            key = self.random.choice("xy")
            command: tuple[object, ...] = {
                "get": ("get", key),
                "put": ("put", key, number),
                "cas": ("cas", key, self.random.randrange(count), number),
            }[kind]
            points.append((takes_effect, Operation(str(number), b"", command, called, returned)))
        values: dict[object, list[object]] = {"x": [None], "y": [None]}
        for _, operation in sorted(points, key=lambda point: point[0]):
            kind, key, *rest = operation.command
            versions = values[key]
            value = versions[-1]
            if kind == "get":
                is_stale = self.random.random() < stale and len(versions) > 4
                operation.result = versions[-4] if is_stale else value
            elif kind == "put":
                versions.append(rest[0])
            else:
                operation.result = value == rest[0]
                if operation.result:
                    versions.append(rest[1])
        return [operation for _, operation in points]


@pytest.mark.parametrize("store_seed", range(20))
def test_what_a_correct_store_gives_is_accepted(store_seed: int) -> None:
    check_key_values(_Store(store_seed).history(count=120))


def test_what_a_stale_store_gives_is_refused() -> None:
    refused = 0
    for store_seed in range(20):
        try:
            check_key_values(_Store(store_seed).history(count=120, stale=0.3))
        except HistoryError:
            refused += 1
    assert refused >= 18
