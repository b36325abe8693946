"""The ``zmqraft`` command, for people and for pipes.

Its libraries come with the extra ``cli``. The rule: what goes wrong is one line on standard error and an exit status
that is not 0; a traceback is a bug.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

#: As a shell reports a process that SIGINT ended.
STATUS_INTERRUPTED = 130
STATUS_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process, and return its exit status."""
    _occupy_standard_streams()
    try:
        try:
            from zmqraft.cli.main import run_command
        except ModuleNotFoundError as error:
            if error.name != "click":
                raise
            print("zmqraft: this command needs more libraries: pip install 'zmqraft[cli]'", file=sys.stderr)
            return STATUS_USAGE
        return run_command(arguments)
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED


def _occupy_standard_streams() -> None:
    """Let no file that is opened later, a log say, get the number of a standard stream that is closed: a library that
    complains there would write into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, thus this one.
            os.open(os.devnull, os.O_RDWR)
