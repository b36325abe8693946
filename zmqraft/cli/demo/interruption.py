"""How a signal ends the demo: at the places where it asks, so that nothing is cut off in its middle.

Knows nothing of the demo. The rule: nothing waits for longer than `POLL_S` without asking.

Considered and rejected: KeyboardInterrupt, which the signal would raise wherever the demo is, also while a process is
being started or a lock of the standard library is being taken; the process, or the lock, is then left behind.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

import click

__all__ = ["POLL_S", "Interruption"]

#: How long the demo takes to notice a signal while it waits, in seconds.
POLL_S = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Takes SIGINT and SIGTERM while it lasts (``with``, in the main thread)."""

    def __init__(self) -> None:
        self._requested = False
        self._before: list[tuple[signal.Signals, object]] = []

    def check(self) -> None:
        """Raise click.Abort when the demo was asked to end."""
        if self._requested:
            raise click.Abort

    def wait_for(self, is_done: Callable[[float], bool], deadline_s: float) -> bool:
        """Wait until ``is_done``, at most ``deadline_s`` seconds; returns whether it is.

        ``is_done`` is called again and again with the time, in seconds, that it may wait itself. Raises click.Abort.
        """
        deadline = time.monotonic() + deadline_s
        while not is_done(POLL_S):
            self.check()
            if time.monotonic() > deadline:
                return False
        return True

    def sleep(self, duration_s: float) -> None:
        """Wait, in seconds. Raises click.Abort."""
        end = time.monotonic() + duration_s
        while (rest := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(rest, POLL_S))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def __enter__(self) -> Interruption:
        self._before = [(number, signal.signal(number, self._request)) for number in _SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, before in self._before:
            signal.signal(number, before)  # type: ignore[arg-type]
