"""Where committed entries meet the user's state machine: in the peer's thread or in one of their own.

Knows nothing of Raft. The rule: batches are applied in order, each once, and when one fails none comes after it. A slow
state machine never holds up the peer: it only fills a bounded queue.
"""

from __future__ import annotations

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from zmqraft.api import SnapshotBase, StateMachineBase
from zmqraft.protocol import EntryBatch
from zmqraft.server.local_updates import LocalUpdates

__all__ = ["APPLY_SIZE_MAX", "Applier", "InlineApplier", "ThreadApplier", "View", "ViewHandler", "restore_state"]

#: What `StateMachineBase.snapshot` returns.
View = bytes | Iterable[bytes] | None
#: Gets the index of the entry applied last, and the state machine's view of its state there, or the exception that it
#: raised.
ViewHandler = Callable[[int, View | BaseException], None]

#: Batches that wait for a slow state machine, and about how many bytes each may have.
_QUEUE_MAX = 16
APPLY_SIZE_MAX = 1024 * 1024
#: How long the end of a peer waits for a state machine that is still applying, in seconds.
_CLOSE_TIMEOUT = 30.0

logger = logging.getLogger(__name__)


def restore_state(machine: StateMachineBase, snapshot: SnapshotBase) -> None:
    """Let a state machine become what the snapshot says, if it has applied less. Raises what `restore` does."""
    if machine.last_applied < snapshot.index:
        machine.restore(snapshot)


class Applier(ABC):
    """Hands batches to a state machine. ``on_applied`` gets the index up to which entries are applied."""

    def __init__(
        self,
        state_machine: StateMachineBase,
        on_applied: Callable[[int], None],
        last_index: int,
        local_updates: LocalUpdates,
    ) -> None:
        """``last_index`` is that of the last entry that is applied already. ``local_updates`` hears what the state
        machine returned, in the thread that applies."""
        self._state_machine = state_machine
        self._on_applied = on_applied
        self._last_index = last_index
        self._local_updates = local_updates

    @property
    def has_room(self) -> bool:
        """Whether `submit` may be called."""
        return True

    @abstractmethod
    def submit(self, batch: EntryBatch, term: int) -> None:
        """Apply a batch, at once or soon."""

    def _apply(self, batch: EntryBatch, term: int) -> None:
        results = self._state_machine.apply_entries(batch, term)
        if results is not None and len(results) != len(batch):
            raise ValueError(f"the state machine returned {len(results)} results for {len(batch)} entries")
        self._last_index = batch.last_index
        self._local_updates.applied(batch, results)
        self._on_applied(batch.last_index)

    @abstractmethod
    def restore(self, snapshot: SnapshotBase) -> None:
        """Let the state machine become what a snapshot says, behind the batches submitted so far."""

    def _restore(self, snapshot: SnapshotBase) -> None:
        restore_state(self._state_machine, snapshot)
        self._last_index = snapshot.index
        self._local_updates.restored(snapshot.index)
        self._on_applied(snapshot.index)

    @abstractmethod
    def take_view(self, on_view: ViewHandler) -> None:
        """Ask the state machine for a snapshot between two batches, at once or soon. ``on_view`` is called in the
        thread that applies."""

    def _take_view(self, on_view: ViewHandler) -> None:
        view: View | BaseException
        try:
            view = self._state_machine.snapshot()
        except Exception as error:
            view = error
        on_view(self._last_index, view)

    @abstractmethod
    def close(self) -> None:
        """Apply what was submitted, then end. May be called twice."""


class InlineApplier(Applier):
    """Applies in the caller's thread; an exception of the state machine comes out of `submit`."""

    def submit(self, batch: EntryBatch, term: int) -> None:
        self._apply(batch, term)

    def restore(self, snapshot: SnapshotBase) -> None:
        self._restore(snapshot)

    def take_view(self, on_view: ViewHandler) -> None:
        self._take_view(on_view)

    def close(self) -> None:
        """Nothing is left to do."""


class ThreadApplier(Applier):
    """Applies in a thread of its own, which calls ``on_applied``, or once ``on_error`` with an exception."""

    def __init__(
        self,
        state_machine: StateMachineBase,
        on_applied: Callable[[int], None],
        on_error: Callable[[BaseException], None],
        name: str,
        last_index: int,
        local_updates: LocalUpdates,
    ) -> None:
        super().__init__(state_machine, on_applied, last_index, local_updates)
        self._on_error = on_error
        self._queue: queue.Queue[tuple[EntryBatch, int] | SnapshotBase | ViewHandler | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def has_room(self) -> bool:
        return self._queue.qsize() < _QUEUE_MAX

    def submit(self, batch: EntryBatch, term: int) -> None:
        self._queue.put((batch, term))

    def restore(self, snapshot: SnapshotBase) -> None:
        self._queue.put(snapshot)

    def take_view(self, on_view: ViewHandler) -> None:
        self._queue.put(on_view)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if isinstance(item, tuple):
                    self._apply(*item)
                elif isinstance(item, SnapshotBase):
                    self._restore(item)
                else:
                    self._take_view(item)
            except BaseException as error:
                self._on_error(error)
                return

    def close(self) -> None:
        self._queue.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_TIMEOUT)
            if self._thread.is_alive():
                logger.error("the state machine is still applying after %g s; it is left behind", _CLOSE_TIMEOUT)
