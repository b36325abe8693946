"""Work on the disk in a thread of its own, a leader's syncs and compactions, while the sockets go on.

Knows nothing of logs. The rule: whatever happens in the thread is told to the peer's own, which alone acts on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["SyncThread"]


class SyncThread:
    """Runs functions, one after the other, until `close`."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, sync: Callable[[], None], on_done: Callable[[], None], on_error: Callable[[BaseException], None]
    ) -> None:
        """Run ``sync`` soon; then, in the thread, one of the two others."""

        def run() -> None:
            try:
                sync()
            except BaseException as error:
                on_error(error)
            else:
                on_done()

        self._queue.put(run)

    def _run(self) -> None:
        while (run := self._queue.get()) is not None:
            run()

    def close(self, timeout_s: float | None = None) -> bool:
        """Run what was submitted, then end. May be called twice.

        With a timeout, in seconds, the thread may be left behind; returns whether it has ended.
        """
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()
