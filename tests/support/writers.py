"""Clients of both kinds that write at once, and what they were told.

The rule: an update is repeated, with its id, until it is acknowledged; so all that was begun is acknowledged in the
end, and has to be in the log once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from support.command import PATIENCE_S
from support.node_clients import NodeClient
from zmqraft import LogEntry, ZmqRaftClient, new_request_id

__all__ = ["Writers", "check_logs"]

_IN_FLIGHT = 8
_WAIT_S = 2 * PATIENCE_S


class Writers:
    """Two clients of ours and one of zmq-raft's."""

    def __init__(self, modules: Path, urls: Sequence[str], secret: str) -> None:
        self._python = [ZmqRaftClient(urls, secret=secret, deadline_s=_WAIT_S) for _ in range(2)]
        self._node = NodeClient(modules, urls, secret=secret)
        #: The index of every update that was acknowledged, by its request id.
        self.acknowledged: dict[bytes, int] = {}
        self._number = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._python:
            client.close()
        self._node.__exit__()

    def start(self, count: int) -> list[Future[None]]:
        """Begin so many updates of all three; a future of the end of each."""
        clients = [*self._python, self._node]
        share, rest = divmod(count, len(clients))
        return [self._start_one(client, share + (place < rest)) for place, client in enumerate(clients)]

    def write(self, count: int) -> None:
        """Make so many updates, and wait for all."""
        wait_all(self.start(count))

    def refresh(self) -> None:
        """Let all three learn who the members are now, as a client does that is to outlive all that it began with."""
        for client in (*self._python, self._node):
            client.request_config()

    def _start_one(self, client: ZmqRaftClient | NodeClient, count: int) -> Future[None]:
        updates = []
        for _ in range(count):
            self._number += 1
            updates.append((new_request_id(), b"update %d " % self._number + b"." * (self._number % 200)))
        future: Future[None] = Future()

        def run() -> None:
            try:
                indexes = list(client.request_updates(updates, _IN_FLIGHT))
                with self._lock:
                    self.acknowledged.update(zip((request_id for request_id, _ in updates), indexes, strict=True))
                future.set_result(None)
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="writer", daemon=True).start()
        return future


def wait_all(futures: Iterable[Future[None]]) -> None:
    for future in futures:
        future.result(_WAIT_S)


def check_logs(logs: dict[str, list[LogEntry]], last: int, acknowledged: dict[bytes, int]) -> None:
    """The logs are equal entry by entry up to ``last``, and every acknowledged update is there once, at its index.

    Behind it there may be what the leaders of a cluster that is being stopped have begun.
    """
    first = logs["1"][:last]
    for peer_id, log in logs.items():
        for mine, other in zip(log[:last], first, strict=True):
            assert mine == other, f"peers {peer_id} and 1 differ"
    assert [entry.index for entry in first] == list(range(1, last + 1))
    by_id = [(entry.request_id, entry.index) for entry in first if entry.is_state]
    found = dict(by_id)
    assert len(found) == len(by_id), "an update is in the log twice"
    lost = {request_id: index for request_id, index in acknowledged.items() if found.get(request_id) != index}
    assert lost == {}
