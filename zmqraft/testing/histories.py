"""What clients did and saw, and whether one log, or one key-value store, can have given it to them.

Knows nothing of peers. The rule: an operation takes effect at one moment between its call and its return; one that
never returned may have taken effect at any time after its call, or never (Herlihy and Wing, "Linearizability").
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["HistoryError", "Operation", "check_key_values", "check_log"]


class HistoryError(AssertionError):
    """A history that no correct system can have given."""


@dataclass(slots=True)
class Operation:
    """One operation of a client. Times are in seconds of one clock; ``index`` and ``result`` are what it got."""

    client: str
    request_id: bytes
    #: ``("get", key)``, ``("put", key, value)``, ``("cas", key, expected, value)``; empty for a bare update.
    command: tuple[Any, ...]
    called_at: float
    returned_at: float = math.inf
    index: int | None = None
    result: Any = None

    @property
    def is_done(self) -> bool:
        """Whether it returned."""
        return self.returned_at < math.inf

    def finish(self, returned_at: float, index: int | None, result: Any = None) -> None:
        """It has returned."""
        self.returned_at, self.index, self.result = returned_at, index, result


def check_log(history: Iterable[Operation], log: Sequence[bytes | None] | None = None) -> None:
    """Whether the updates of a history can have gone into one log. Raises HistoryError.

    Every id has one index, and every index one id; and if an update returned before another was called, its index is
    the lower one. ``log``, where it is given, has the request id of each entry (None for those that are no updates),
    the first at position 0: what returned must be in it at its index, and every id in it once, called by somebody.
    """
    operations = list(history)
    by_index: dict[int, bytes] = {}
    by_id: dict[bytes, int] = {}
    for operation in operations:
        if not operation.is_done:
            continue
        index = operation.index
        if index is None or index < 1:
            raise HistoryError(f"{operation.request_id.hex()} returned without an index: {index}")
        if operation.returned_at < operation.called_at:
            raise HistoryError(f"{operation.request_id.hex()} returned before it was called")
        if by_index.setdefault(index, operation.request_id) != operation.request_id:
            raise HistoryError(f"index {index} was given to {by_index[index].hex()} and {operation.request_id.hex()}")
        if by_id.setdefault(operation.request_id, index) != index:
            raise HistoryError(
                f"{operation.request_id.hex()} got the indexes {by_id[operation.request_id]} and {index}"
            )
    _check_real_time([operation for operation in operations if operation.is_done])
    if log is not None:
        _check_against_log(operations, by_id, log)


def _check_real_time(done: list[Operation]) -> None:
    """An id counts as called when it was called first: the index may be from any of its calls."""
    first_called: dict[bytes, float] = {}
    for operation in done:
        at = first_called.get(operation.request_id, math.inf)
        first_called[operation.request_id] = min(at, operation.called_at)
    returned = sorted(done, key=lambda operation: operation.returned_at)
    times = [operation.returned_at for operation in returned]
    highest: list[Operation] = []
    for operation in returned:
        best = highest[-1] if highest else operation
        highest.append(operation if (operation.index or 0) >= (best.index or 0) else best)
    for operation in done:
        before = bisect_left(times, first_called[operation.request_id])
        if before and (highest[before - 1].index or 0) > (operation.index or 0):
            earlier = highest[before - 1]
            raise HistoryError(
                f"{earlier.request_id.hex()} returned index {earlier.index} at {earlier.returned_at}, and "
                f"{operation.request_id.hex()}, called later, got {operation.index}"
            )


def _check_against_log(operations: list[Operation], by_id: dict[bytes, int], log: Sequence[bytes | None]) -> None:
    called = {operation.request_id: operation.called_at for operation in reversed(operations)}
    at: dict[bytes, int] = {}
    for index, request_id in enumerate(log, 1):
        if request_id is None:
            continue
        if request_id not in called:
            raise HistoryError(f"nobody asked for {request_id.hex()}, which is at index {index}")
        if at.setdefault(request_id, index) != index:
            raise HistoryError(f"{request_id.hex()} is in the log twice, at {at[request_id]} and {index}")
    for request_id, index in by_id.items():
        if at.get(request_id) != index:
            raise HistoryError(f"{request_id.hex()} returned index {index}, in the log it is at {at.get(request_id)}")


# --- a key-value store ----------------------------------------------------------------------------------------------


def check_key_values(history: Iterable[Operation], *, initial: object = None, steps_max: int = 2_000_000) -> None:
    """Whether one store can have given these results, starting with ``initial`` for every key. Raises HistoryError.

    Keys do not depend on one another, so each is searched by itself (Herlihy and Wing: linearizability is local). The
    search is that of Wing and Gong with Lowe's memory of what was tried: which operations are done, and the value then.
    HistoryError too when a search takes more than ``steps_max`` steps, which says that it is too hard, not that it is
    wrong.
    """
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        # One that never returned and changes nothing need not have happened.
        if operation.is_done or operation.command[0] != "get":
            by_key[operation.command[1]].append(operation)
    for key, operations in sorted(by_key.items()):
        _search(key, sorted(operations, key=lambda operation: operation.called_at), initial, steps_max)


def _outcome(operation: Operation, value: object) -> tuple[bool, object]:
    """Whether an operation can have returned what it did with this value before it, and the value after it."""
    kind, _, *arguments = operation.command
    if kind == "get":
        return operation.result == value, value
    if kind == "put":
        # What it returns is the value before it, or nothing.
        return True, arguments[0]
    if kind == "cas":
        matches = value == arguments[0]
        return not operation.is_done or operation.result is matches, arguments[1] if matches else value
    raise HistoryError(f"no operation of a key-value store: {operation.command!r}")


def _search(key: str, operations: list[Operation], initial: object, steps_max: int) -> None:
    required = sum(1 << position for position, operation in enumerate(operations) if operation.is_done)
    stack: list[tuple[int, object]] = [(0, initial)]
    tried: set[tuple[int, Hashable]] = set()
    steps = 0
    longest = 0
    while stack:
        done, value = stack.pop()
        if done & required == required:
            return
        longest = max(longest, (done & required).bit_count())
        # Whoever is next must have been called before everybody returned who is not done.
        limit = math.inf
        candidates: list[int] = []
        for position, operation in enumerate(operations):
            if done >> position & 1:
                continue
            if operation.called_at > limit:
                break
            candidates.append(position)
            limit = min(limit, operation.returned_at)
        for position in reversed(candidates):
            operation = operations[position]
            if operation.called_at > limit:
                continue
            steps += 1
            if steps > steps_max:
                raise HistoryError(f"key {key!r}: not decided within {steps_max} steps")
            fits, after = _outcome(operation, value)
            state = (done | 1 << position, _hashable(after))
            if fits and state not in tried:
                tried.add(state)
                stack.append((done | 1 << position, after))
    raise HistoryError(
        f"key {key!r}: no order of its {len(operations)} operations explains what they returned; at most {longest} of "
        f"{required.bit_count()} that returned fit together"
    )


def _hashable(value: object) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
