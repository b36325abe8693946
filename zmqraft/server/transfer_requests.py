"""Who asked a peer to give its leadership away, and how that ended.

Knows nothing of how it is done (leadership_transfer.py). The rule: every future ends, at the latest with the peer.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from zmqraft.errors import ClosedError, NotLeaderError, RequestTimeoutError
from zmqraft.server.engine import Engine

__all__ = ["TransferRequests"]


class TransferRequests:
    """All methods but `request` and `close` are for the peer's thread."""

    def __init__(self, peer_id: str, engine: Engine) -> None:
        self._id = peer_id
        self._engine = engine
        self._lock = threading.Lock()
        self._is_closed = False
        self._new: list[tuple[str | None, Future[None]]] = []
        self._under_way: list[Future[None]] = []

    def request(self, target_id: str | None) -> Future[None]:
        """See `ZmqRaft.transfer_leadership`. From any thread; the peer is to be woken."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._is_closed:
                future.set_exception(ClosedError(f"the peer {self._id} has ended"))
            else:
                self._new.append((target_id, future))
        return future

    def tick(self, now: float) -> None:
        """Begin what was asked for, and tell those whose transfer has ended."""
        if not self._new and not self._under_way:
            return
        engine = self._engine
        if self._under_way and not engine.is_making_way:
            for future in self._under_way:
                if engine.raft.is_leader:
                    future.set_exception(RequestTimeoutError("nobody could take over within an election timeout"))
                else:
                    future.set_result(None)
            self._under_way = []
        with self._lock:
            new, self._new = self._new, []
        for target_id, future in new:
            self._begin(target_id, future, now)

    def _begin(self, target_id: str | None, future: Future[None], now: float) -> None:
        engine = self._engine
        try:
            if not engine.raft.is_leader:
                raise NotLeaderError(engine.raft.leader_id)
            engine.begin_transfer(target_id, now, must=False)
        except (NotLeaderError, ValueError) as error:
            future.set_exception(error)
        else:
            self._under_way.append(future)

    def close(self) -> None:
        """The peer has ended. May be called twice."""
        with self._lock:
            self._is_closed = True
            futures = [future for _, future in self._new] + self._under_way
            self._new, self._under_way = [], []
        for future in futures:
            future.set_exception(ClosedError(f"the peer {self._id} has ended"))
