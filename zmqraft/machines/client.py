"""What the clients of the ready-made machines share, blocking and for asyncio.

Knows nothing of any machine. The rule: a command is written under a request id, and its result asked for under the
same; so a command that is repeated with its id is carried out once, and its result is that of the first time.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar, TypeVar

from zmqraft.asyncio.clients import ZmqRaftClient as AsyncZmqRaftClient
from zmqraft.client.arguments import Urls
from zmqraft.client.clients import ZmqRaftClient
from zmqraft.errors import RequestError
from zmqraft.machines.wire import pack, parse_answer
from zmqraft.protocol.request_id import new_request_id

__all__ = ["AsyncMachineClient", "MachineClient", "checked"]

_Blocking = TypeVar("_Blocking", bound="MachineClient")
_Async = TypeVar("_Async", bound="AsyncMachineClient")


def checked(result: list[Any]) -> Any:
    """The result of a command. Raises RequestError when the machine refused it."""
    done, value = result
    if not done:
        raise RequestError(f"the state machine refused a command: {value}")
    return value


class MachineClient:
    """A blocking client of a cluster whose peers run one machine. Thread-safe. To be closed, as by ``with``."""

    _MESSAGE: ClassVar[bytes]

    def __init__(
        self, urls: Urls, *, secret: bytes | str = b"", deadline_s: float | None = None, **settings: Any
    ) -> None:
        """``deadline_s`` is for each of the messages that a call needs, two at most, by default none. The rest is as
        for `zmqraft.ZmqRaftClient`."""
        self.client = ZmqRaftClient(urls, secret=secret, deadline_s=deadline_s, **settings)

    def close(self) -> None:
        """Close the client. May be called twice."""
        self.client.close()

    def _write(self, command: list[Any], request_id: bytes | None) -> Any:
        request_id = request_id or new_request_id()
        index = self.client.request_update(request_id, pack(command))
        return checked(self._ask(["result", request_id, index], index))

    def _read(self, question: list[Any]) -> Any:
        return self._ask(question, self.client.read_index())

    def _ask(self, question: list[Any], least_index: int, deadline_s: float | None = None) -> Any:
        frames = (pack([least_index]), pack(question))
        return parse_answer(self.client.request_message(self._MESSAGE, *frames, deadline_s=deadline_s))

    def __enter__(self: _Blocking) -> _Blocking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncMachineClient:
    """The same for asyncio, for ``async with``. A call that is cancelled may or may not be carried out."""

    _MESSAGE: ClassVar[bytes]

    def __init__(
        self, urls: Urls, *, secret: bytes | str = b"", deadline_s: float | None = None, **settings: Any
    ) -> None:
        """As `MachineClient`, with `zmqraft.asyncio.ZmqRaftClient`."""
        self.client = AsyncZmqRaftClient(urls, secret=secret, deadline_s=deadline_s, **settings)

    async def close(self) -> None:
        """Close the client. May be called twice."""
        await self.client.close()

    async def _write(self, command: list[Any], request_id: bytes | None) -> Any:
        request_id = request_id or new_request_id()
        index = await self.client.request_update(request_id, pack(command))
        return checked(await self._ask(["result", request_id, index], index))

    async def _read(self, question: list[Any]) -> Any:
        return await self._ask(question, await self.client.read_index())

    async def _ask(self, question: list[Any], least_index: int, deadline_s: float | None = None) -> Any:
        frames = (pack([least_index]), pack(question))
        return parse_answer(await self.client.request_message(self._MESSAGE, *frames, deadline_s=deadline_s))

    async def __aenter__(self: _Async) -> _Async:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
