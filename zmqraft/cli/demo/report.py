"""What the demo shows while it runs: a progress bar on a terminal, plain lines otherwise, nothing for ``--json``.

Knows nothing of the demo's steps.
"""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["PlainReporter", "Reporter", "choose_reporter"]

#: Plain lines tell the progress this many times.
_PLAIN_STEPS = 10


class Reporter:
    """Shows nothing; the base of those that do."""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def say(self, text: str) -> None:
        """Tell an event."""

    def progress(self, done: int, total: int) -> None:
        """Tell how many lines are committed; for each of them if need be."""


class PlainReporter(Reporter):
    """Lines on standard output."""

    def __init__(self) -> None:
        self._steps_shown = 0

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def progress(self, done: int, total: int) -> None:
        """Print a line at every tenth of the way."""
        steps = done * _PLAIN_STEPS // total
        if steps > self._steps_shown:
            self._steps_shown = steps
            self.say(f"{done} of {total} lines are committed")


def choose_reporter(quiet: bool) -> Reporter:
    """What fits standard output. Plain lines, too, where the library for terminals is missing."""
    if quiet:
        return Reporter()
    if not sys.stdout.isatty():
        return PlainReporter()
    try:
        return _bar()
    except ModuleNotFoundError:
        return PlainReporter()


def _bar() -> Reporter:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("replicating"), BarColumn(), MofNCompleteColumn(), TextColumn("lines"), TimeElapsedColumn()
    )

    class BarReporter(Reporter):
        """A progress bar with events above it."""

        def __init__(self) -> None:
            self._task = progress.add_task("replicating", total=None)

        def __enter__(self) -> Reporter:
            progress.start()
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None:
            progress.stop()

        def say(self, text: str) -> None:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

        def progress(self, done: int, total: int) -> None:
            progress.update(self._task, completed=done, total=total)

    return BarReporter()
