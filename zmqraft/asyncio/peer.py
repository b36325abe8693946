"""A peer for programs on asyncio: ZmqRaft, with a state machine that may apply entries in a coroutine.

The peer itself runs in its own thread as ever, since a disk that is slow must not hold up an event loop, nor a loop
that is busy the peer's heartbeats. The rule: what takes time happens in threads, and a coroutine that is cancelled
meanwhile is cancelled when that has come to its end, so that nothing is left half started.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import zmqraft.api
from zmqraft.api import LogBase, PeerHandle, PersistenceBase, SnapshotBase
from zmqraft.client.arguments import Bytes
from zmqraft.errors import ClosedError, ConfigurationError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.server.builder import build_peer as build_threaded_peer
from zmqraft.server.builder import make_state_machine, open_log, open_persistence
from zmqraft.server.peer import ZmqRaft as ThreadedPeer
from zmqraft.server.settings import Settings

__all__ = ["StateMachineBase", "ZmqRaft", "build_peer"]

_Result = TypeVar("_Result")


class StateMachineBase(ABC):
    """A state machine whose methods run in the event loop of its peer; implement `apply_entries`.

    As `zmqraft.StateMachineBase`, which says what each method must do. Its state may be read anywhere in the loop
    between two ``await``.
    """

    @property
    def last_applied(self) -> int:
        """The index of the last entry that a persistent state machine has stored; 0 for one that starts empty."""
        return 0

    @abstractmethod
    async def apply_entries(self, entries: EntryBatch, term: int) -> Sequence[Any] | None:
        """Apply committed entries, of all types; one result for each, or None.

        The next entries come when this has returned. An exception stops the peer, and so does its cancellation.
        """

    async def snapshot(self) -> bytes | Iterable[bytes] | None:
        """A view of the state after the entry applied last; it is consumed in another thread."""
        return None

    def restore(self, snapshot: SnapshotBase) -> None:
        """Become what the snapshot says. It is called in a thread, at the start or instead of `apply_entries`."""
        raise ConfigurationError(
            f"the log begins behind a snapshot of index {snapshot.index}, which {type(self).__name__} cannot restore: "
            "implement restore()"
        )

    async def on_message(
        self, peer: PeerHandle, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]
    ) -> None:
        """A message of a type that is not Raft's; answer with ``peer.send``. It is dropped when this raises."""

    async def role_changed(self, role: str, term: int) -> None:
        """The peer is now "follower", "candidate", "leader" or "client" in ``term``."""


class _InLoop(zmqraft.api.StateMachineBase):
    """Takes the calls of a peer's threads to a state machine in an event loop."""

    def __init__(self, machine: StateMachineBase, loop: asyncio.AbstractEventLoop) -> None:
        self._machine = machine
        self._loop = loop
        self._peer: PeerHandle
        # The loop knows its tasks by weak references only.
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def last_applied(self) -> int:
        return self._machine.last_applied

    def start(self, peer: PeerHandle) -> None:
        self._peer = peer

    def apply_entries(self, entries: EntryBatch, term: int) -> Sequence[Any] | None:
        applying = self._machine.apply_entries(entries, term)
        try:
            return asyncio.run_coroutine_threadsafe(applying, self._loop).result()
        except BaseException:
            applying.close()
            raise

    def snapshot(self) -> bytes | Iterable[bytes] | None:
        return asyncio.run_coroutine_threadsafe(self._machine.snapshot(), self._loop).result()

    def restore(self, snapshot: SnapshotBase) -> None:
        self._machine.restore(snapshot)

    def on_message(self, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]) -> None:
        self._loop.call_soon_threadsafe(self._begin, self._machine.on_message, self._peer, route, message_type, frames)

    def role_changed(self, role: str, term: int) -> None:
        self._loop.call_soon_threadsafe(self._begin, self._machine.role_changed, role, term)

    def _begin(self, method: Callable[..., Any], *arguments: Any) -> None:
        task = self._loop.create_task(method(*arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for what is still being handled."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class ZmqRaft:
    """One peer of a cluster, for ``async with``. `build_peer` makes one from settings."""

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], tuple[ThreadedPeer, _InLoop | None]]) -> None:
        """For `build_peer`: ``make`` opens the data and builds the peer, in a thread."""
        self._make = make
        self._peer: ThreadedPeer | None = None
        self._in_loop: _InLoop | None = None
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Event

    @property
    def peer(self) -> ThreadedPeer:
        """The peer itself, as `zmqraft.ZmqRaft`. Raises ClosedError before the start."""
        if self._peer is None:
            raise ClosedError("the peer is not started")
        return self._peer

    @property
    def id(self) -> str:
        """The id of the peer."""
        return self.peer.id

    @property
    def url(self) -> str:
        """The url under which clients and other peers reach it."""
        return self.peer.url

    @property
    def state(self) -> str:
        """ "follower", "candidate", "leader" or "client"; "closed" before and after, "failed" after an error."""
        return "closed" if self._peer is None else self._peer.state

    @property
    def leader_id(self) -> str | None:
        """The id of the leader, as far as the peer knows."""
        return self.peer.leader_id

    @property
    def error(self) -> BaseException | None:
        """Why the peer has failed; None when it has not."""
        return None if self._peer is None else self._peer.error

    async def start(self) -> None:
        """Open the data, bind and run. Raises what `zmqraft.build_peer` and `zmqraft.ZmqRaft.start` do.

        When it is cancelled, the peer is closed again.
        """
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        try:
            await _uninterrupted(self._start)
        except BaseException:
            await self.close()
            raise

    def _start(self) -> None:
        peer, self._in_loop = self._make(self._loop)
        self._peer = peer
        peer.on("close", self._tell_end)
        peer.start()

    def _tell_end(self) -> None:
        # A loop that is closed has nobody who waits.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended.set)

    async def close(self) -> None:
        """End the peer. May be called twice. When it is cancelled, that comes when the peer has ended."""
        if self._peer is not None:
            await _uninterrupted(self._peer.close)
        if self._in_loop is not None:
            await self._in_loop.finish()

    async def wait_closed(self) -> None:
        """Wait until the peer has ended, by itself or by `close`."""
        if self.peer.state not in ("closed", "failed"):
            await self._ended.wait()

    async def update(self, data: Bytes, *, request_id: bytes | None = None, deadline_s: float | None = None) -> Any:
        """Append ``data`` to the log, through whoever leads, and have it applied here; what this peer's state machine
        returned for the entry.

        As `zmqraft.ZmqRaft.update`, with the same errors. When it is cancelled the update may or may not get into the
        log; repeat it with the same ``request_id``.
        """
        # More than may be in flight wait, and so in a thread.
        future = await asyncio.to_thread(self.peer.update, data, request_id=request_id, deadline_s=deadline_s)
        return await asyncio.wrap_future(future)

    async def wait_applied(self, index: int) -> int:
        """Wait until this peer's state machine has applied the entry at ``index``; the index applied last.

        Raises ClosedError when the peer ends.
        """
        return await asyncio.wrap_future(self.peer.wait_applied(index))

    async def read_index(self, *, deadline_s: float | None = None) -> int:
        """Wait until this peer's state machine is fresh enough for a linearizable read; the index that it had to reach.

        As `zmqraft.ZmqRaft.read_index`, with the same errors.
        """
        return await asyncio.wrap_future(self.peer.read_index(deadline_s=deadline_s))

    async def compact(self, *, force: bool = False) -> int:
        """Take a snapshot of the state machine, and let it stand for the entries up to there; its index.

        As `zmqraft.ZmqRaft.compact`, with the same errors. Once begun it goes on when it is cancelled.
        """
        return await asyncio.wrap_future(self.peer.compact(force=force))

    async def __aenter__(self) -> ZmqRaft:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def build_peer(
    settings: Settings,
    *,
    state_machine: Callable[[Settings], StateMachineBase | zmqraft.api.StateMachineBase] = make_state_machine,
    persistence: Callable[[Settings], PersistenceBase] = open_persistence,
    log: Callable[[Settings], LogBase] = open_log,
) -> ZmqRaft:
    """A peer that is ready to start; nothing is opened before it does. As `zmqraft.build_peer`.

    The state machine may be one of either kind: with coroutines, or `zmqraft.StateMachineBase`, which runs in threads.
    """

    def make(loop: asyncio.AbstractEventLoop) -> tuple[ThreadedPeer, _InLoop | None]:
        in_loop: list[_InLoop] = []

        def make_machine(settings: Settings) -> zmqraft.api.StateMachineBase:
            machine = state_machine(settings)
            if not isinstance(machine, StateMachineBase):
                return machine
            in_loop.append(_InLoop(machine, loop))
            return in_loop[0]

        peer = build_threaded_peer(settings, state_machine=make_machine, persistence=persistence, log=log)
        return peer, in_loop[0] if in_loop else None

    return ZmqRaft(make)


async def _uninterrupted(function: Callable[[], _Result]) -> _Result:
    """Run a function in a thread, to its end also when this is cancelled; that comes afterwards."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()  # nobody asks for it any more
        raise cancelled
    return running.result()
