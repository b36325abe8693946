"""Configuration files in YAML, JSON, HJSON or TOML: from a path to a plain mapping, or to `Settings`.

Knows nothing of what the settings mean. The rule: every error is one ConfigurationError that names the file, and a key
that stands twice in one table is an error, since one of the two values would be ignored.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from zmqraft.errors import ConfigurationError
from zmqraft.server.settings import PeerAddress, Settings
from zmqraft.server.settings_mapping import peers_and_secret_from_mapping

__all__ = ["NAMESPACE_DEFAULT", "load_peers_and_secret", "load_settings", "read_config_file"]

#: The key under which all settings stand.
NAMESPACE_DEFAULT = "raft"


def load_settings(
    path: str | Path,
    *,
    namespace: str = NAMESPACE_DEFAULT,
    id: str | None = None,
    bind: str | None = None,
    pub: str | None = None,
    www: str | None = None,
) -> Settings:
    """The settings of one peer from a file; the other arguments as `Settings.from_mapping` has them.

    Raises ConfigurationError with the file, the key path and the value.
    """
    mapping = read_config_file(path, namespace)
    try:
        return Settings.from_mapping(mapping, id=id, bind=bind, pub=pub, www=www)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {namespace}.{error}") from None


def load_peers_and_secret(
    path: str | Path, *, namespace: str = NAMESPACE_DEFAULT
) -> tuple[tuple[PeerAddress, ...], bytes]:
    """What a client needs of a file that describes peers. Raises ConfigurationError as `load_settings` does."""
    mapping = read_config_file(path, namespace)
    try:
        return peers_and_secret_from_mapping(mapping)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {namespace}.{error}") from None


def read_config_file(path: str | Path, namespace: str = NAMESPACE_DEFAULT) -> Mapping[str, Any]:
    """What stands in a file under the key ``namespace``. The suffix of the file's name tells the format.

    Raises ConfigurationError when the file cannot be read or parsed, or has no such key, and when the library for its
    format is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _PARSERS:
        raise ConfigurationError(f"{path}: the name of a configuration file ends in {', '.join(_PARSERS)}")
    try:
        source = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start}"
        raise ConfigurationError(f"{path}: {reason}") from None
    try:
        document = _PARSERS[suffix](source)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise ConfigurationError(f"{path}: {error}") from None
        raise ConfigurationError(f"{path}: {_one_line(error)}") from None
    if not isinstance(document, Mapping) or namespace not in document:
        raise ConfigurationError(f"{path}: has no key {namespace!r} at its root, under which the settings stand")
    section = document[namespace]
    if not isinstance(section, Mapping):
        raise ConfigurationError(f"{path}: {namespace}: must be a table of settings, not {type(section).__name__}")
    return section


def _parse_json(source: str) -> object:
    return json.loads(source, object_pairs_hook=_table_of_unique_keys)


def _parse_hjson(source: str) -> object:
    hjson = _library("hjson", "HJSON")
    return hjson.loads(source, object_pairs_hook=_table_of_unique_keys)


def _parse_toml(source: str) -> object:
    toml = _library("tomllib" if sys.version_info >= (3, 11) else "tomli", "TOML")
    return toml.loads(source)


def _parse_yaml(source: str) -> object:
    yaml = _library("yaml", "YAML")

    class UniqueKeyLoader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """YAML's own loader lets the last of several equal keys win."""

    def construct_mapping(loader: Any, node: Any) -> dict[str, Any]:
        # Checked before merge keys (<<) are resolved: what they bring may be overridden.
        own_keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        _table_of_unique_keys([(loader.construct_object(key), None) for key in own_keys])
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", construct_mapping)
    try:
        return yaml.load(source, UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        # Its own text spans several lines, with an excerpt of the file.
        place = error.problem_mark
        where = f": line {place.line + 1}, column {place.column + 1}" if place is not None else ""
        raise ValueError(f"{error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(error) from None
    except (AttributeError, TypeError) as error:
        # How the library fails on a value that its own tag does not fit, such as !!timestamp.
        raise ValueError(f"a value does not fit its tag: {error}") from None


_PARSERS: dict[str, Callable[[str], object]] = {
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": _parse_json,
    ".hjson": _parse_hjson,
    ".toml": _parse_toml,
}


def _library(module: str, file_format: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"a library to read {file_format} is missing, install it with: pip install 'zmqraft[cli]'"
        ) from None


def _table_of_unique_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ConfigurationError(f"a key must be a text, not {key!r}")
        if key in table:
            raise ConfigurationError(f"the key {key!r} stands twice in one table")
        table[key] = value
    return table


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
