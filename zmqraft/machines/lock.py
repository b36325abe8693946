"""A lock service: locks by name, held for a lease, with fencing tokens.

Time is that of the entries: the seconds in their request ids, which peers take only within minutes of their own clock,
refined by the milliseconds that the client gives. It never goes back, and passes only with entries; no machine looks at
a clock. So a client whose clock is ahead may take a lock early. The rule: a lock is advice, as any with a lease is;
what protects a resource is that it refuses a fencing token below the highest that it has seen. Tokens only grow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from zmqraft.errors import RequestTimeoutError
from zmqraft.machines.client import AsyncMachineClient, MachineClient
from zmqraft.machines.machine import NOT_YET, CommandError, ReplicatedMachine
from zmqraft.protocol.log_entry import LogEntry
from zmqraft.protocol.request_id import new_request_id, request_id_seconds

__all__ = ["AsyncLockClient", "Lease", "LockClient", "LockMachine"]

_MESSAGE: Final = b"zmqraft.lock"
_LEASE_MS_MAX: Final = 24 * 3600 * 1000
_LEASE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A lock that was got. ``token`` is its fencing token; ``until`` is when the lease ends by this machine's monotonic
    clock, counted from before it was asked for: until then nobody whose clock goes right gets it."""

    name: str
    token: int
    until: float


class LockMachine(ReplicatedMachine):
    """The state machine, for `zmqraft.build_peer`."""

    MESSAGE = _MESSAGE

    def __init__(self) -> None:
        super().__init__()
        self._time_ms = 0
        #: (who holds it, fencing token, end of the lease), by name.
        self._locks: dict[str, tuple[bytes, int, int]] = {}

    def apply_command(self, command: list[Any], entry: LogEntry) -> Any:
        """Acquire, renew or release."""
        operation, name, key, lease_ms, now_ms = command
        if not isinstance(name, str) or type(lease_ms) is not int or not 0 < lease_ms <= _LEASE_MS_MAX:
            raise CommandError(f"unknown command {command!r:.100}")
        if operation == "acquire" and isinstance(key, bytes):
            self._pass_time(entry, now_ms)
            return self._acquire(name, key, lease_ms, entry.index)
        if operation in ("renew", "release") and type(key) is int:
            self._pass_time(entry, now_ms)
            return self._renew(name, key, lease_ms if operation == "renew" else 0)
        raise CommandError(f"unknown command {command!r:.100}")

    def _pass_time(self, entry: LogEntry, now_ms: object) -> None:
        second_ms = request_id_seconds(entry.request_id) * 1000
        told_ms = now_ms if isinstance(now_ms, int) else 0
        self._time_ms = max(self._time_ms, second_ms, min(told_ms, second_ms + 999))

    def _acquire(self, name: str, holder: bytes, lease_ms: int, index: int) -> list[Any]:
        """[whether it was got, its fencing token, milliseconds that its lease has left]."""
        held = self._locks.get(name)
        if held is not None and held[0] != holder and held[2] > self._time_ms:
            return [False, held[1], held[2] - self._time_ms]
        still_held = held is not None and held[0] == holder and held[2] > self._time_ms
        token = held[1] if held is not None and still_held else index
        self._locks[name] = (holder, token, self._time_ms + lease_ms)
        return [True, token, lease_ms]

    def _renew(self, name: str, token: int, lease_ms: int) -> bool:
        """Whether it was still held; a lease of 0 releases it."""
        held = self._locks.get(name)
        if held is None or held[1] != token or held[2] <= self._time_ms:
            return False
        if lease_ms:
            self._locks[name] = (held[0], token, self._time_ms + lease_ms)
        else:
            del self._locks[name]
        return True

    def answer(self, question: list[Any]) -> Any:
        """Who holds a lock; or wait until somebody with a certain token does not."""
        operation, name, *arguments = question
        held = self._locks.get(name)
        token = held[1] if held is not None and held[2] > self._time_ms else 0
        if operation == "holder":
            return token
        if operation == "changed":
            (known,) = arguments
            return NOT_YET if token == known else token
        raise CommandError(f"unknown question {question!r:.100}")

    def dump(self) -> Iterable[Any]:
        """The time, then [name, holder, token, end] of each."""
        return [self._time_ms, *([name, *held] for name, held in self._locks.items())]

    def load(self, items: Iterable[Any]) -> None:
        """What `dump` gave."""
        self._time_ms, *locks = items
        self._locks = {name: (holder, token, end) for name, holder, token, end in locks}


def _milliseconds(lease_s: float) -> int:
    return max(1, int(lease_s * 1000))


def _now_ms() -> int:
    return int(time.time() * 1000)


class LockClient(MachineClient):
    """A blocking client of a cluster whose peers run a `LockMachine`. As to errors see `KeyValueClient`."""

    _MESSAGE = _MESSAGE

    def try_acquire(self, name: str, lease_s: float = _LEASE_S, *, holder: bytes | None = None) -> Lease | None:
        """Get a lock for ``lease_s`` seconds, at most a day, if it is free; None if it is not.

        ``holder`` names who holds it, by default nobody else: one who asks again has it again, with the same token.
        After a RequestTimeoutError the lock may be held, until its lease ends: ask again as the same holder.
        """
        lease, _ = self._acquire(name, lease_s, holder or new_request_id())
        return lease

    def acquire(
        self, name: str, lease_s: float = _LEASE_S, *, holder: bytes | None = None, timeout_s: float | None = None
    ) -> Lease:
        """As `try_acquire`, but wait until it is free. Raises RequestTimeoutError after ``timeout_s``."""
        holder = holder or new_request_id()
        ends = _Waiting(timeout_s)
        while True:
            lease, other = self._acquire(name, lease_s, holder)
            if lease is not None:
                return lease
            token, left_s = other
            with ends.step():
                self._ask(["changed", name, token], 0, ends.patience(left_s))

    def renew(self, lease: Lease, lease_s: float = _LEASE_S) -> Lease | None:
        """Hold it for ``lease_s`` seconds from now; None when it is lost."""
        until = time.monotonic() + lease_s
        held = self._write(["renew", lease.name, lease.token, _milliseconds(lease_s), _now_ms()], None)
        return Lease(lease.name, lease.token, until) if held else None

    def release(self, lease: Lease) -> bool:
        """Let go of it. Whether it was still held."""
        return bool(self._write(["release", lease.name, lease.token, 1, _now_ms()], None))

    def holder(self, name: str) -> int:
        """The fencing token of who held it when the last command of anybody was carried out; 0: nobody."""
        return int(self._read(["holder", name]))

    def _acquire(self, name: str, lease_s: float, holder: bytes) -> tuple[Lease | None, tuple[int, float]]:
        until = time.monotonic() + lease_s
        got, token, left_ms = self._write(["acquire", name, holder, _milliseconds(lease_s), _now_ms()], None)
        return (Lease(name, token, until) if got else None), (token, left_ms / 1000)


class AsyncLockClient(AsyncMachineClient):
    """`LockClient` for asyncio. An `acquire` that is cancelled may leave the lock held until its lease ends."""

    _MESSAGE = _MESSAGE

    async def try_acquire(self, name: str, lease_s: float = _LEASE_S, *, holder: bytes | None = None) -> Lease | None:
        """As `LockClient.try_acquire`."""
        lease, _ = await self._acquire(name, lease_s, holder or new_request_id())
        return lease

    async def acquire(
        self, name: str, lease_s: float = _LEASE_S, *, holder: bytes | None = None, timeout_s: float | None = None
    ) -> Lease:
        """As `LockClient.acquire`."""
        holder = holder or new_request_id()
        ends = _Waiting(timeout_s)
        while True:
            lease, other = await self._acquire(name, lease_s, holder)
            if lease is not None:
                return lease
            token, left_s = other
            with ends.step():
                await self._ask(["changed", name, token], 0, ends.patience(left_s))
            await asyncio.sleep(0)

    async def renew(self, lease: Lease, lease_s: float = _LEASE_S) -> Lease | None:
        """As `LockClient.renew`."""
        until = time.monotonic() + lease_s
        held = await self._write(["renew", lease.name, lease.token, _milliseconds(lease_s), _now_ms()], None)
        return Lease(lease.name, lease.token, until) if held else None

    async def release(self, lease: Lease) -> bool:
        """As `LockClient.release`."""
        return bool(await self._write(["release", lease.name, lease.token, 1, _now_ms()], None))

    async def holder(self, name: str) -> int:
        """As `LockClient.holder`."""
        return int(await self._read(["holder", name]))

    async def _acquire(self, name: str, lease_s: float, holder: bytes) -> tuple[Lease | None, tuple[int, float]]:
        until = time.monotonic() + lease_s
        got, token, left_ms = await self._write(["acquire", name, holder, _milliseconds(lease_s), _now_ms()], None)
        return (Lease(name, token, until) if got else None), (token, left_ms / 1000)


class _Waiting:
    """How long somebody waits for a lock, in steps that end when it is released, or when its lease does."""

    def __init__(self, timeout_s: float | None) -> None:
        self._ends = None if timeout_s is None else time.monotonic() + timeout_s

    def patience(self, left_s: float) -> float:
        """How long the next step may take, in seconds. Raises RequestTimeoutError when there is no time left."""
        wait = max(left_s, 0.001)
        if self._ends is None:
            return wait
        remaining = self._ends - time.monotonic()
        if remaining <= 0:
            raise _GivenUpError("the lock was not free in time")
        return min(wait, remaining)

    def step(self) -> _Waiting:
        """For ``with``: a step that takes its time is no error."""
        return self

    def __enter__(self) -> None:
        """Nothing is to be done."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        return isinstance(error, RequestTimeoutError) and not isinstance(error, _GivenUpError)


class _GivenUpError(RequestTimeoutError):
    pass
