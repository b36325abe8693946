"""Replicated counters, by name.

The rule: a counter is an integer from -2^63 to 2^63 - 1; what would lead it out of that range is refused, and changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from zmqraft.machines.client import AsyncMachineClient, MachineClient
from zmqraft.machines.machine import CommandError, ReplicatedMachine
from zmqraft.protocol.log_entry import LogEntry

__all__ = ["AsyncCounterClient", "CounterClient", "CounterMachine"]

_MESSAGE: Final = b"zmqraft.counter"
_MAX: Final = 2**63 - 1


class CounterMachine(ReplicatedMachine):
    """The state machine, for `zmqraft.build_peer`."""

    MESSAGE = _MESSAGE

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, int] = {}

    def get(self, name: str = "") -> int:
        """The value here, at this peer, now. For a program that embeds the peer."""
        return self._values.get(name, 0)

    def apply_command(self, command: list[Any], entry: LogEntry) -> int:
        """Add to a counter, or set it; its new value."""
        operation, name, number = command
        if operation not in ("add", "set") or not isinstance(name, str) or type(number) is not int:
            raise CommandError(f"unknown command {command!r:.100}")
        value = number + (self.get(name) if operation == "add" else 0)
        if not -_MAX - 1 <= value <= _MAX:
            raise CommandError(f"{value} is out of range")
        self._values[name] = value
        return value

    def answer(self, question: list[Any]) -> int:
        """The value of a counter."""
        operation, name = question
        if operation != "get" or not isinstance(name, str):
            raise CommandError(f"unknown question {question!r:.100}")
        return self.get(name)

    def dump(self) -> Iterable[Any]:
        """[name, value] of each."""
        return list(map(list, self._values.items()))

    def load(self, items: Iterable[Any]) -> None:
        """What `dump` gave."""
        self._values = dict(items)


class CounterClient(MachineClient):
    """A blocking client of a cluster whose peers run a `CounterMachine`. As to errors see `KeyValueClient`."""

    _MESSAGE = _MESSAGE

    def get(self, name: str = "") -> int:
        """The value: linearizable."""
        return int(self._read(["get", name]))

    def add(self, number: int = 1, name: str = "", *, request_id: bytes | None = None) -> int:
        """Add to it; the new value. Repeated with the same ``request_id`` it is added once."""
        return int(self._write(["add", name, number], request_id))

    def set(self, number: int, name: str = "", *, request_id: bytes | None = None) -> int:
        """Set it; the new value."""
        return int(self._write(["set", name, number], request_id))


class AsyncCounterClient(AsyncMachineClient):
    """`CounterClient` for asyncio."""

    _MESSAGE = _MESSAGE

    async def get(self, name: str = "") -> int:
        """The value: linearizable."""
        return int(await self._read(["get", name]))

    async def add(self, number: int = 1, name: str = "", *, request_id: bytes | None = None) -> int:
        """Add to it; the new value. Repeated with the same ``request_id`` it is added once."""
        return int(await self._write(["add", name, number], request_id))

    async def set(self, number: int, name: str = "", *, request_id: bytes | None = None) -> int:
        """Set it; the new value."""
        return int(await self._write(["set", name, number], request_id))
