"""A replicated key-value store: keys and values are bytes, each change has the index of its entry as its revision.

The rule: a watch tells of every change once and in order, or that it can no longer do so; never of some of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, Final

from zmqraft.errors import CompactedError, RequestTimeoutError
from zmqraft.machines.client import AsyncMachineClient, MachineClient
from zmqraft.machines.machine import NOT_YET, CommandError, ReplicatedMachine
from zmqraft.machines.wire import WaitedError
from zmqraft.protocol.log_entry import LogEntry

__all__ = ["AsyncKeyValueClient", "Change", "KeyValueClient", "KeyValueMachine", "Stored"]

_MESSAGE: Final = b"zmqraft.kv"
#: Changes that a watch can go back by, and about how many bytes of them.
_HISTORY_MAX: Final = 65_536
_HISTORY_SIZE_MAX: Final = 64 * 1024 * 1024
#: What one answer has at most, in items and about in bytes.
_ANSWER_MAX: Final = 1000
_ANSWER_SIZE_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """A value, and the index of the entry that stored it."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """What the entry at ``revision`` did to a key: another value, or None for none any more."""

    key: bytes
    value: bytes | None
    revision: int


class KeyValueMachine(ReplicatedMachine):
    """The state machine, for `zmqraft.build_peer`."""

    MESSAGE = _MESSAGE

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[bytes, tuple[bytes, int]] = {}
        self._keys: list[bytes] = []
        self._history: list[tuple[int, bytes, bytes | None]] = []
        self._history_size = 0
        #: Changes up to this index are no longer in the history.
        self._forgotten_index = 0

    def get(self, key: bytes) -> Stored | None:
        """What is stored here, at this peer, now. For a program that embeds the peer."""
        found = self._values.get(key)
        return None if found is None else Stored(*found)

    def apply_command(self, command: list[Any], entry: LogEntry) -> Any:
        """Put, delete or swap."""
        name, *arguments = command or [None]
        if name == "put":
            key, value = arguments
            self._check(key, value)
            self._change(key, value, entry.index)
            return entry.index
        if name == "delete":
            (key,) = arguments
            self._check(key)
            existed = key in self._values
            if existed:
                self._change(key, None, entry.index)
            return existed
        if name == "swap":
            key, expected, value = arguments
            self._check(key, *(each for each in (expected, value) if each is not None))
            swapped = self._values.get(key, (None, 0))[0] == expected
            if swapped and expected != value:
                self._change(key, value, entry.index)
            return swapped
        raise CommandError(f"unknown command {name!r:.100}")

    @staticmethod
    def _check(*values: object) -> None:
        for value in values:
            if not isinstance(value, bytes):
                raise CommandError(f"keys and values are bytes, not {type(value).__name__}")

    def _change(self, key: bytes, value: bytes | None, index: int) -> None:
        if value is None:
            del self._values[key]
            del self._keys[bisect_left(self._keys, key)]
        else:
            if key not in self._values:
                insort(self._keys, key)
            self._values[key] = (value, index)
        self._history.append((index, key, value))
        self._history_size += _size(self._history[-1])
        if len(self._history) > 2 * _HISTORY_MAX or self._history_size > 2 * _HISTORY_SIZE_MAX:
            self._trim_history()

    def _trim_history(self) -> None:
        kept, size = len(self._history), 0
        while kept and len(self._history) - kept < _HISTORY_MAX and size <= _HISTORY_SIZE_MAX:
            kept -= 1
            size += _size(self._history[kept])
        self._forgotten_index = self._history[kept - 1][0] if kept else self._forgotten_index
        self._history = self._history[kept:]
        self._history_size = size

    def answer(self, question: list[Any]) -> Any:
        """Get, scan or watch."""
        name, *arguments = question
        if name == "get":
            (key,) = arguments
            self._check(key)
            return self._values.get(key)
        if name == "scan":
            prefix, after, count = arguments
            self._check(prefix, after)
            return self._scan(prefix, after, min(int(count), _ANSWER_MAX))
        if name == "watch":
            prefix, index = arguments
            self._check(prefix)
            changes = self._watch(prefix, int(index))
            if changes is NOT_YET:
                # What was looked at once need not be kept for this watch.
                question[2] = max(int(index), self.applied_index)
            return changes
        raise CommandError(f"unknown question {name!r:.100}")

    def _scan(self, prefix: bytes, after: bytes, count: int) -> list[Any]:
        """[whether there are more, [key, value, revision] of each]."""
        position = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after) if after else 0)
        found: list[Any] = []
        size = 0
        for key in self._keys[position : position + count + 1]:
            if not key.startswith(prefix):
                break
            if len(found) == count or size > _ANSWER_SIZE_MAX:
                return [True, found]
            value, revision = self._values[key]
            found.append([key, value, revision])
            size += len(key) + len(value)
        return [False, found]

    def _watch(self, prefix: bytes, index: int) -> Any:
        """[index up to which these are all, [key, value, revision] of each change]; [first index that is still known,
        None] when some of them are not."""
        if index < self._forgotten_index:
            return [self._forgotten_index + 1, None]
        found: list[Any] = []
        size = 0
        for position in range(bisect_right(self._history, index, key=itemgetter(0)), len(self._history)):
            revision, key, value = self._history[position]
            if revision > index and key.startswith(prefix):
                found.append([key, value, revision])
                size += len(key) + len(value or b"")
                if len(found) == _ANSWER_MAX or size > _ANSWER_SIZE_MAX:
                    return [revision, found]
        return [self.applied_index, found] if found else NOT_YET

    def dump(self) -> Iterable[Any]:
        """[key, value, revision] of each value; then [index up to which changes are forgotten]; then [revision, key,
        value] of each change behind that."""
        # So that it is the same on every peer, however long they run.
        self._trim_history()
        values = ([key, value, revision] for key, (value, revision) in dict(self._values).items())
        return chain(values, [[self._forgotten_index]], list(self._history))

    def load(self, items: Iterable[Any]) -> None:
        """In a snapshot of a former version there are values only: the history begins behind it."""
        self._values, self._forgotten_index = {}, self.applied_index
        remaining = iter(items)
        for item in remaining:
            if len(item) == 1:
                (self._forgotten_index,) = item
                break
            key, value, revision = item
            self._values[key] = (value, revision)
        self._keys = sorted(self._values)
        self._history = [(revision, key, value) for revision, key, value in remaining]
        self._history_size = sum(map(_size, self._history))


# --- the clients ----------------------------------------------------------------------------------------------------


def _stored(found: Any) -> Stored | None:
    return None if found is None else Stored(*found)


def _size(change: tuple[int, bytes, bytes | None]) -> int:
    return len(change[1]) + len(change[2] or b"")


def _changes(answer: Any, index: int) -> tuple[int, list[Change]]:
    until, changes = answer
    if changes is None:
        raise CompactedError(
            f"the changes behind index {index} are known only from {until} on: scan what there is, and watch the rest",
            until,
        )
    return until, [Change(*change) for change in changes]


class KeyValueClient(MachineClient):
    """A blocking client of a cluster whose peers run a `KeyValueMachine`.

    Reads are linearizable: they see every change that was acknowledged, to anybody, before they were asked. Each call
    that changes something takes a ``request_id``: repeated with the same one it is carried out once, within hours. All
    raise RequestTimeoutError after the deadline (of a change: it may or may not have been made), ClosedError, and
    ResultForgottenError for a change that was made long ago.
    """

    _MESSAGE = _MESSAGE

    def get(self, key: bytes) -> Stored | None:
        """The value of a key; None when it has none."""
        return _stored(self._read(["get", key]))

    def put(self, key: bytes, value: bytes, *, request_id: bytes | None = None) -> int:
        """Store a value; its revision."""
        return int(self._write(["put", key, value], request_id))

    def delete(self, key: bytes, *, request_id: bytes | None = None) -> bool:
        """Remove a key; whether it had a value."""
        return bool(self._write(["delete", key], request_id))

    def compare_and_swap(
        self, key: bytes, expected: bytes | None, value: bytes | None, *, request_id: bytes | None = None
    ) -> bool:
        """Store ``value`` (None: none) if the key has the value ``expected`` (None: none). Whether it had."""
        return bool(self._write(["swap", key, expected, value], request_id))

    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, Stored]]:
        """The keys with a prefix, in their order. More than 1000 are read in several steps, between which others may
        change them."""
        after, more = b"", True
        while more:
            more, found = self._read(["scan", prefix, after, _ANSWER_MAX])
            for key, value, revision in found:
                yield key, Stored(value, revision)
                after = key

    def watch(self, prefix: bytes = b"", index: int | None = None) -> Iterator[Change]:
        """Every change of keys with a prefix whose revision is above ``index`` (by default the present), without end.

        Raises CompactedError where not all of them are known any longer: 65,536 changes are, and at most 64 MiB of
        them, also behind a snapshot. To go on, note ``client.read_index()``, read with `scan` what there is, and watch
        from that index; or, without the changes that are missing, from ``first_index`` - 1 of the error.
        """
        position = self.client.read_index() if index is None else index
        while True:
            try:
                position, changes = _changes(self._ask(["watch", prefix, position], position), position)
            except WaitedError as waited:
                position = max(position, waited.index)
                continue
            except RequestTimeoutError:
                continue
            yield from changes


class AsyncKeyValueClient(AsyncMachineClient):
    """`KeyValueClient` for asyncio."""

    _MESSAGE = _MESSAGE

    async def get(self, key: bytes) -> Stored | None:
        """The value of a key; None when it has none."""
        return _stored(await self._read(["get", key]))

    async def put(self, key: bytes, value: bytes, *, request_id: bytes | None = None) -> int:
        """Store a value; its revision."""
        return int(await self._write(["put", key, value], request_id))

    async def delete(self, key: bytes, *, request_id: bytes | None = None) -> bool:
        """Remove a key; whether it had a value."""
        return bool(await self._write(["delete", key], request_id))

    async def compare_and_swap(
        self, key: bytes, expected: bytes | None, value: bytes | None, *, request_id: bytes | None = None
    ) -> bool:
        """Store ``value`` (None: none) if the key has the value ``expected`` (None: none). Whether it had."""
        return bool(await self._write(["swap", key, expected, value], request_id))

    async def scan(self, prefix: bytes = b"") -> AsyncIterator[tuple[bytes, Stored]]:
        """As `KeyValueClient.scan`."""
        after, more = b"", True
        while more:
            more, found = await self._read(["scan", prefix, after, _ANSWER_MAX])
            for key, value, revision in found:
                yield key, Stored(value, revision)
                after = key

    async def watch(self, prefix: bytes = b"", index: int | None = None) -> AsyncIterator[Change]:
        """As `KeyValueClient.watch`."""
        position = await self.client.read_index() if index is None else index
        while True:
            try:
                position, changes = _changes(await self._ask(["watch", prefix, position], position), position)
            except WaitedError as waited:
                position = max(position, waited.index)
                continue
            except RequestTimeoutError:
                continue
            for change in changes:
                yield change
