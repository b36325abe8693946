"""Checks of single settings, each with an error that names the setting's key path and its value.

Knows nothing of which settings there are. The rule: every message is one line that starts with the key path, so that
whoever knows the file can put it in front.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from zmqraft.errors import ConfigurationError

__all__ = [
    "boolean",
    "camel_case",
    "choice",
    "failure",
    "integer",
    "keywords",
    "table",
    "text",
    "url",
]

_VALUE_LENGTH_MAX = 60


def camel_case(name: str) -> str:
    """The name in configuration files of a setting that is called ``name`` in Python."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def failure(path: str, reason: str) -> ConfigurationError:
    """The error that says that the setting at ``path`` is wrong."""
    return ConfigurationError(f"{path}: {reason}")


def text(path: str, value: object, *, empty: bool = False) -> None:
    """Raise ConfigurationError unless ``value`` is a string, and not an empty one unless ``empty``."""
    if not isinstance(value, str):
        hint = "; put quotes around it" if isinstance(value, (int, float)) else ""
        raise failure(path, f"must be a text, not {_shown(value)}{hint}")
    if not value and not empty:
        raise failure(path, "must not be empty")
    if "\0" in value:
        raise failure(path, f"must not contain a zero character: {_shown(value)}")


def boolean(path: str, value: object) -> None:
    """Raise ConfigurationError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise failure(path, f"must be true or false, not {_shown(value)}")


def integer(path: str, value: object, low: int, high: int) -> None:
    """Raise ConfigurationError unless ``value`` is an integer from ``low`` to ``high``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise failure(path, f"must be an integer, not {_shown(value)}")
    if not low <= value <= high:
        raise failure(path, f"must be {low} to {high}, not {_shown(value)}")


def choice(path: str, value: object, choices: Sequence[str]) -> None:
    """Raise ConfigurationError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise failure(path, f"must be one of {', '.join(choices)}, not {_shown(value)}")


def url(path: str, value: object, parse: Callable[[str], str]) -> str:
    """The canonical spelling of a url, as ``parse`` gives it. Raises ConfigurationError that names ``path``."""
    text(path, value)
    try:
        return parse(str(value))
    except ConfigurationError as error:
        raise failure(path, str(error)) from None


def table(path: str, value: object) -> Mapping[str, Any]:
    """``value``, a mapping with strings as its keys. Raises ConfigurationError otherwise."""
    if not isinstance(value, Mapping):
        raise failure(path, f"must be a table of settings, not {_shown(value)}")
    return value


def keywords(path: str, mapping: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The settings of ``mapping`` under their Python names, which are ``names``. Raises on any other key."""
    name_of = {camel_case(name): name for name in names}
    for key in mapping:
        if key not in name_of:
            raise failure(f"{path}.{key}" if path else str(key), f"unknown setting{_suggestion(str(key), name_of)}")
    return {name_of[key]: value for key, value in mapping.items()}


def _suggestion(key: str, known: Iterable[str]) -> str:
    """What may have been meant, whatever the case and with or without underscores."""
    spellings = {_folded(name): name for name in known}
    close = difflib.get_close_matches(_folded(key), spellings, n=1)
    return f", did you mean {spellings[close[0]]}?" if close else f" (known are {', '.join(sorted(known))})"


def _folded(key: str) -> str:
    return re.sub(r"[-_\s]", "", key).lower()


def _shown(value: object) -> str:
    shown = repr(value)
    if len(shown) > _VALUE_LENGTH_MAX:
        shown = shown[: _VALUE_LENGTH_MAX - 3] + "..."
    return f"{shown} ({type(value).__name__})"
