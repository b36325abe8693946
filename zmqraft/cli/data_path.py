"""What ``inspect``, ``list``, ``dump`` and ``verify`` have in common: their argument and its lock.

Knows nothing of formats. The rule: these commands only read, also where a peer is running.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, TypeVar

import click

from zmqraft.storage.fs import OS_FILE_SYSTEM

__all__ = ["STATUS_DAMAGED", "data_path", "json_option", "lock_holder", "place", "relative"]

#: Something is damaged, as for any other failure.
STATUS_DAMAGED = 1

_Function = TypeVar("_Function", bound=Callable[..., Any])


def data_path(command: _Function) -> _Function:
    """Give a command the argument PATH."""
    return click.argument("path", metavar="PATH", type=click.Path(exists=True), callback=_normal)(command)


def _normal(ctx: click.Context, param: click.Parameter, value: str) -> str:
    return str(PurePath(os.fsdecode(value)))


def json_option(what: str) -> Callable[[_Function], _Function]:
    """Give a command the option --json; ``what`` says what an object is for."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print a JSON object for {what}.")


def lock_holder(path: str) -> int | None:
    """The process of the peer that runs on the data directory at or above a path; None when none is known to."""
    whole = os.path.abspath(path)
    for directory in (whole, *map(str, PurePath(whole).parents)):
        with contextlib.suppress(OSError):
            holder = OS_FILE_SYSTEM.lock_holder(directory)
            if holder is not None:
                return holder
    return None


def relative(path: str, below: str) -> str:
    """A path as seen from the one that was asked for."""
    return path[len(below) + 1 :] if path.startswith(f"{below}/") else path


def place(text: str, offset: int | None, index: int | None) -> str:
    """Where something is, as far as ``text`` does not say it already, with a colon behind it."""
    parts = [f"offset {offset}"] if offset is not None else []
    parts += [f"entry {index}"] if index is not None else []
    missing = [part for part in parts if not re.search(rf"\b{part}\b", text)]
    return f"{', '.join(missing)}: " if missing else ""
