"""What all blocking clients share: the thread with the session, waiting for results, limits, the end.

They turn calls from any number of threads into requests of one session. The rule: no method touches the network in
the caller's thread; it waits for a future, and cancels that when it is interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, cast

import zmq

from zmqraft.client.arguments import Limits, MakeRequest, deadline_after
from zmqraft.client.futures import RequestFuture
from zmqraft.client.in_flight import InFlightLimit
from zmqraft.client.io_thread import IoThread
from zmqraft.client.requests import MessageRequest, ProtocolRequest, Request
from zmqraft.client.results import SessionCounters
from zmqraft.client.session import ClientSession
from zmqraft.client.session_sockets import Feed, options_for
from zmqraft.errors import ClosedError
from zmqraft.protocol.schema import FramesProtocol

__all__ = ["ClientBase"]

_Client = TypeVar("_Client", bound="ClientBase")
_Result = TypeVar("_Result")


class ClientBase:
    """A session in a thread. Thread-safe. To be closed, by ``with`` or by `close`."""

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
        self._thread: IoThread | None = None
        self._session = session
        self._secret = session.secret
        self._limits = limits or Limits()
        self._deadline_s = deadline_s
        self._limit = InFlightLimit(self._limits.in_flight_max, self._limits.in_flight_size_max)
        self._deadline(None)
        self._thread = IoThread(
            session,
            context=context or zmq.Context.instance(),
            options=options_for(sndhwm, self._limits.in_flight_max, self._limits.frame_size_max),
            name=type(self).__name__,
            feed=feed,
        )

    @property
    def counters(self) -> SessionCounters:
        """What happened so far: dropped replies, repetitions, searches for the leader."""
        return dataclasses.replace(self._session.counters)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._thread is None

    def close(self) -> None:
        """End the thread and close the sockets; what is under way fails with ClosedError. May be called twice."""
        self._limit.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()

    # --- any message ------------------------------------------------------------------------------------------------

    def request(
        self,
        protocol: FramesProtocol,
        *values: Any,
        request_id: bytes | None = None,
        deadline_s: float | None = None,
    ) -> tuple[Any, ...]:
        """Send one message of `Protocols`; the values of the first reply, as they are.

        ``values`` are those after the secret. ``request_id`` is for the messages that have one (RequestUpdate,
        ConfigUpdate). The message goes out again only over a new connection; it may then arrive more than once.
        Raises LocalProtocolError for values that the message does not have, RequestTimeoutError after ``deadline_s``
        and ClosedError.
        """
        make = partial(ProtocolRequest, protocol, self._secret, values, request_id or b"")
        return cast("tuple[Any, ...]", self._ask(make, deadline_s))

    def request_message(self, message_type: bytes, *frames: bytes, deadline_s: float | None = None) -> list[bytes]:
        """Send a message of its own type to the state machine; the frames of the first reply.

        Types of one byte are reserved for the protocol. A state machine need not answer, so a deadline is advisable.
        The message goes out again only over a new connection (after the loss of a leader); it may then arrive more
        than once. Raises LocalProtocolError, RequestTimeoutError and ClosedError.
        """
        make = partial(MessageRequest, self._secret, message_type, frames)
        return cast("list[bytes]", self._ask(make, deadline_s))

    # --- for the clients --------------------------------------------------------------------------------------------

    def _ask(self, make: MakeRequest, deadline_s: float | None) -> Any:
        return self._result(self._start(make, deadline_s))

    def _start(self, make: MakeRequest, deadline_s: float | None, size: int = 0) -> RequestFuture:
        """Hand a request to the session; one with a ``size``, in bytes, counts as in flight until it has ended."""
        thread = self._io_thread
        future = RequestFuture(self, size)
        request = make(future, self._deadline(deadline_s))
        future.request = request
        if size:
            self._limit.acquire(size, request.deadline, wait=not thread.is_current())
        try:
            thread.call(partial(self._session.start, request))
        except BaseException:
            self.request_ended(size)
            raise
        return future

    def request_cancelled(self, future: RequestFuture, request: Request) -> None:
        """For futures, as their `FutureOwner`."""
        session = self._session

        def cancel(_now: float) -> None:
            if session.cancel(request):
                future.ended()

        # A closed session has ended everything already.
        with contextlib.suppress(ClosedError):
            self._io_thread.call(cancel)

    def request_ended(self, size: int) -> None:
        """For futures, as their `FutureOwner`."""
        if size:
            self._limit.release(size)

    def _result(self, future: Future[_Result]) -> _Result:
        """Wait for a future that nobody else knows."""
        if self._io_thread.is_current():
            future.cancel()
            raise RuntimeError(
                "a callback of a future must not wait for a request: it runs in the thread that would answer it;"
                " use submit_update, or another thread"
            )
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _deadline(self, deadline_s: float | None) -> float:
        return deadline_after(self._deadline_s if deadline_s is None else deadline_s, time.monotonic())

    @property
    def _io_thread(self) -> IoThread:
        if self._thread is None:
            raise ClosedError("the client is closed")
        return self._thread

    def __enter__(self: _Client) -> _Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_thread", None) is not None:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._thread is None else f"of {self._session.url or 'no peer yet'}"
        return f"<{type(self).__name__} {state}>"
