"""What all asyncio clients share: the loop that drives the session, waiting for results, limits, the end.

Knows nothing of what is asked. The rule: nothing here waits but for a result or for room, so that a coroutine that is
cancelled is cancelled there, and leaves no request, task or socket behind.
"""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, cast

import zmq

from zmqraft.asyncio.futures import RequestFuture
from zmqraft.asyncio.in_flight import InFlightLimit
from zmqraft.asyncio.loop_driver import LoopDriver
from zmqraft.client.arguments import Limits, MakeRequest, deadline_after
from zmqraft.client.requests import MessageRequest, ProtocolRequest, Request
from zmqraft.client.results import SessionCounters
from zmqraft.client.session import ClientSession
from zmqraft.client.session_sockets import Feed, options_for
from zmqraft.protocol.schema import FramesProtocol

__all__ = ["SNDHWM", "ClientBase"]

#: ZMQ_SNDHWM of asyncio clients. A longer queue than that of the blocking ones, since a turn of the loop sends many
#: messages at once. It keeps nothing stale: a connection that is lost takes its queue along.
SNDHWM = 1000

_Client = TypeVar("_Client", bound="ClientBase")


class ClientBase:
    """A session in the running event loop, for the coroutines of that loop. To be closed, by ``async with``."""

    def __init__(
        self,
        session: ClientSession,
        *,
        deadline_s: float | None,
        sndhwm: int,
        limits: Limits | None,
        context: zmq.Context[Any] | None,
        feed: Feed | None = None,
    ) -> None:
        self._driver: LoopDriver | None = None
        self._session = session
        self._secret = session.secret
        self._limits = limits or Limits()
        self._deadline_s = deadline_s
        deadline_after(deadline_s, 0.0)
        driver = LoopDriver(
            session,
            context=context or zmq.Context.instance(),
            options=options_for(sndhwm, self._limits.in_flight_max, self._limits.frame_size_max),
            feed=feed,
        )
        self._limit = InFlightLimit(self._limits.in_flight_max, self._limits.in_flight_size_max, driver.loop)
        self._open_driver = self._driver = driver

    @property
    def counters(self) -> SessionCounters:
        """What happened so far: dropped replies, repetitions, searches for the leader."""
        return dataclasses.replace(self._session.counters)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._driver is None

    async def close(self) -> None:
        """Close the sockets; what is under way fails with ClosedError. May be called twice. It never waits."""
        self._close()

    def _close(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            self._limit.close()
            driver.close()

    # --- any message ------------------------------------------------------------------------------------------------

    async def request(
        self,
        protocol: FramesProtocol,
        *values: Any,
        request_id: bytes | None = None,
        deadline_s: float | None = None,
    ) -> tuple[Any, ...]:
        """Send one message of `Protocols`; the values of the first reply. As `zmqraft.ZmqRaftClient.request`.

        Cancelling it drops the reply; the message may or may not have been acted on.
        """
        make = partial(ProtocolRequest, protocol, self._secret, values, request_id or b"")
        return cast("tuple[Any, ...]", await self._ask(make, deadline_s))

    async def request_message(
        self, message_type: bytes, *frames: bytes, deadline_s: float | None = None
    ) -> list[bytes]:
        """Send a message of its own type to the state machine; the frames of the first reply.

        As `zmqraft.ZmqRaftClient.request_message`. Cancelling it drops the reply; the message may or may not have been
        acted on.
        """
        make = partial(MessageRequest, self._secret, message_type, frames)
        return cast("list[bytes]", await self._ask(make, deadline_s))

    # --- for the clients --------------------------------------------------------------------------------------------

    def _ask(self, make: MakeRequest, deadline_s: float | None) -> RequestFuture:
        return self._start(make, self._deadline(deadline_s))

    def _start(self, make: MakeRequest, deadline: float, size: int = 0) -> RequestFuture:
        """Hand a request to the session; one with a ``size``, in bytes, has been let in by the limit."""
        driver = self._open_driver
        future = RequestFuture(self, size, driver.loop)
        try:
            request = make(future, deadline)
            driver.check_open()
        except BaseException:
            future.abandon()
            raise
        future.request = request
        driver.start(request)
        return future

    def request_cancelled(self, request: Request) -> None:
        """For futures, as their `FutureOwner`."""
        self._open_driver.cancel(request)

    def request_ended(self, size: int) -> None:
        """For futures, as their `FutureOwner`."""
        if size:
            self._limit.release(size)

    def _deadline(self, deadline_s: float | None) -> float:
        return deadline_after(self._deadline_s if deadline_s is None else deadline_s, self._open_driver.now())

    async def __aenter__(self: _Client) -> _Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        driver = getattr(self, "_driver", None)
        if driver is None:
            return
        try:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
        finally:  # also where warnings are errors
            if driver.loop.is_closed():
                self._close()
            else:
                # The garbage collector may run in any thread.
                driver.loop.call_soon_threadsafe(driver.close)

    def __repr__(self) -> str:
        state = "closed" if self._driver is None else f"of {self._session.url or 'no peer yet'}"
        return f"<asyncio {type(self).__name__} {state}>"
