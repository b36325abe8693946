"""The prompt of the console, with prompt_toolkit: history, completion, and lines that come while one is typed.

Knows nothing of what the commands do. The rule: Ctrl-C stops what goes on in the background, Ctrl-D ends the console.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import NestedCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.patch_stdout import patch_stdout

from zmqraft.cli.console.commands import Console

__all__ = ["prompted_lines"]


def prompted_lines(console: Console, **settings: Any) -> Iterator[str]:
    """The lines that somebody types, until the end; ``settings`` are more of PromptSession's."""
    completer = NestedCompleter.from_nested_dict(console.completions())
    session: PromptSession[str] = PromptSession(completer=completer, history=_history(), **settings)
    with patch_stdout():
        while True:
            try:
                yield session.prompt(lambda: f"{console.where}> ")
            except KeyboardInterrupt:
                yield "stop"
            except EOFError:
                return


def _history() -> FileHistory:
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    directory = base / "zmqraft"
    directory.mkdir(parents=True, exist_ok=True)
    return FileHistory(str(directory / "console_history"))
