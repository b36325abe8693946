"""Updates made through a peer of this process, and what its own state machine returned for them.

Knows nothing of Raft: an update goes to whoever leads as any client's does, over the network also when that is this
very peer; its result is what this peer's state machine returns when it applies the entry. The rule: a machine that
returns nothing, and a peer that nobody asks, pay nothing for this.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from zmqraft.client.arguments import Bytes
from zmqraft.client.clients import ZmqRaftClient
from zmqraft.errors import ClosedError, ResultForgottenError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.protocol.request_id import new_request_id
from zmqraft.server.settings import Settings

__all__ = ["LocalUpdates"]


class _LocalUpdate:
    """One update that somebody of this process waits for."""

    __slots__ = ("future", "index", "is_applied", "request_id", "result")

    def __init__(self, request_id: bytes) -> None:
        self.request_id = request_id
        self.future: Future[Any] = Future()
        #: The index of its entry, once the leader has told it.
        self.index: int | None = None
        #: Whether it was applied here since it was made, and what the state machine returned.
        self.is_applied = False
        self.result: Any = None


class LocalUpdates:
    """Thread-safe. `applied` and `restored` are for the thread in which the state machine applies."""

    def __init__(self, settings: Settings, last_applied: int) -> None:
        self._settings = settings
        self._last_applied = last_applied
        self._client: ZmqRaftClient | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._updates: dict[bytes, list[_LocalUpdate]] = {}
        #: (index, tie breaker, who waits until entries are applied up to there).
        self._waiting: list[tuple[int, int, _LocalUpdate | Future[int]]] = []
        self._sequence = itertools.count()

    def update(self, data: Bytes, request_id: bytes | None, deadline_s: float | None) -> Future[Any]:
        """See `ZmqRaft.update`."""
        client = self._open_client()
        update = _LocalUpdate(request_id or new_request_id())
        with self._lock:
            self._updates.setdefault(update.request_id, []).append(update)
        try:
            committing = client.submit_update(data, request_id=update.request_id, deadline_s=deadline_s)
        except BaseException:
            self._forget(update)
            raise
        update.future.add_done_callback(lambda future: committing.cancel() if future.cancelled() else None)
        committing.add_done_callback(lambda future: self._committed(update, future))
        return update.future

    def wait_applied(self, index: int) -> Future[int]:
        """See `ZmqRaft.wait_applied`."""
        future: Future[int] = Future()
        self._when_applied(index, future)
        return future

    def read_index(self, deadline_s: float | None) -> Future[int]:
        """See `ZmqRaft.read_index`."""
        future: Future[int] = Future()
        reading = self._open_client().submit_read_index(deadline_s=deadline_s)
        future.add_done_callback(lambda ended: reading.cancel() if ended.cancelled() else None)
        reading.add_done_callback(lambda read: self._confirmed(future, read))
        return future

    def applied(self, batch: EntryBatch, results: Sequence[Any] | None) -> None:
        """The state machine has applied a batch, and returned ``results``: one for each entry, or None."""
        self._last_applied = batch.last_index
        # Whoever begins to wait registers first and looks at the index then; here it is the other way round.
        if self._updates:
            self._find_results(batch, results)
        if self._waiting:
            self._wake()

    def restored(self, index: int) -> None:
        """A snapshot has taken the place of entries that were not applied."""
        self._last_applied = index
        if self._waiting:
            self._wake()

    def close(self) -> None:
        """The peer has ended: whoever waits gets ClosedError."""
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
            updates = [update for same in self._updates.values() for update in same]
            self._updates.clear()
            waiting, self._waiting = self._waiting, []
        if client is not None:
            client.close()
        futures = [update.future for update in updates]
        futures += [waiter for _, _, waiter in waiting if not isinstance(waiter, _LocalUpdate)]
        for future in futures:
            _fail(future, ClosedError("the peer is closed"))

    def _open_client(self) -> ZmqRaftClient:
        with self._lock:
            self._check_open()
            if self._client is None:
                # Its own url first: it knows who leads.
                own = [(peer_id, url) for peer_id, url in self._settings.peer_urls if peer_id == self._settings.id]
                others = [(peer_id, url) for peer_id, url in self._settings.peer_urls if peer_id != self._settings.id]
                self._client = ZmqRaftClient([*own, *others], secret=self._settings.secret, sndhwm=1000)
            return self._client

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the peer is closed")

    def _forget(self, update: _LocalUpdate) -> None:
        with self._lock:
            same = self._updates.get(update.request_id, [])
            if update in same:
                same.remove(update)
            if not same:
                self._updates.pop(update.request_id, None)

    # --- in the client's thread -------------------------------------------------------------------------------------

    def _committed(self, update: _LocalUpdate, committing: Future[int]) -> None:
        if committing.cancelled() or (error := committing.exception()) is not None:
            self._forget(update)
            if not committing.cancelled() and error is not None:
                _fail(update.future, error)
            return
        update.index = committing.result()
        with contextlib.suppress(ClosedError):
            self._when_applied(update.index, update)

    def _confirmed(self, future: Future[int], reading: Future[int]) -> None:
        if reading.cancelled():
            return
        if (error := reading.exception()) is not None:
            _fail(future, error)
            return
        try:
            self._when_applied(reading.result(), future)
        except ClosedError as closed:
            _fail(future, closed)

    def _when_applied(self, index: int, waiter: _LocalUpdate | Future[int]) -> None:
        with self._lock:
            self._check_open()
            heapq.heappush(self._waiting, (index, next(self._sequence), waiter))
        self._wake()

    # --- when something was applied, in any thread ------------------------------------------------------------------

    def _find_results(self, batch: EntryBatch, results: Sequence[Any] | None) -> None:
        with self._lock:
            for position in range(len(batch)):
                for update in self._updates.get(batch.request_id(position), ()):
                    update.is_applied = True
                    update.result = None if results is None else results[position]

    def _wake(self) -> None:
        due = []
        with self._lock:
            while self._waiting and self._waiting[0][0] <= self._last_applied:
                due.append(heapq.heappop(self._waiting)[2])
        for waiter in due:
            if isinstance(waiter, _LocalUpdate):
                self._finish(waiter)
            else:
                _settle(waiter, self._last_applied)

    def _finish(self, update: _LocalUpdate) -> None:
        self._forget(update)
        if update.is_applied:
            _settle(update.future, update.result)
        else:
            _fail(update.future, ResultForgottenError(update.index or 0))


def _settle(future: Future[Any], result: Any) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_result(result)


def _fail(future: Future[Any], error: BaseException) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
