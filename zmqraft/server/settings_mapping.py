"""From the mapping of a configuration file to `Settings`: names, nesting, and which of several sources wins.

Knows nothing of file formats. The rule: nothing that a file says is ignored; a key that is not known is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from zmqraft.errors import ConfigurationError
from zmqraft.server import checks
from zmqraft.server.settings import (
    BroadcastSettings,
    CompactSettings,
    CompactStateSettings,
    DataSettings,
    PeerAddress,
    Settings,
    WebMonitorBindSettings,
    WebMonitorSettings,
    field_names,
)

__all__ = ["peers_and_secret_from_mapping", "settings_from_mapping"]

_Section = TypeVar("_Section")


def settings_from_mapping(
    mapping: Mapping[str, Any], *, id: str | None, bind: str | None, pub: str | None, www: str | None
) -> Settings:
    """See `Settings.from_mapping`."""
    given = checks.keywords("", mapping, [*field_names(Settings), "router"])
    if id is not None:
        given["id"] = id
    if "id" not in given:
        raise checks.failure("id", "is missing; name the peer there or on the command line")
    for name in ("peers", "data"):
        if name not in given:
            raise checks.failure(name, "is missing")
    given["secret"] = _secret(given.get("secret", ""))
    given["data"] = _data(given["data"])
    given["peers"] = _peers(given["peers"])
    router_bind = _router_bind(given.pop("router", {}))
    given["router_bind"] = router_bind if bind is None else bind
    own = next((peer for peer in given["peers"] if peer.id == given["id"]), None)
    given["broadcast"] = _broadcast(given.get("broadcast", {}), pub if pub is not None else own and own.pub)
    given["webmonitor"] = _web_monitor(given.get("webmonitor", {}), www if www is not None else own and own.www)
    return Settings(**given)


def peers_and_secret_from_mapping(mapping: Mapping[str, Any]) -> tuple[tuple[PeerAddress, ...], bytes]:
    """The peers and the secret that a configuration file names; the rest of it is not looked at.

    Raises ConfigurationError as `settings_from_mapping` does.
    """
    if "peers" not in mapping:
        raise checks.failure("peers", "is missing")
    return _peers(mapping["peers"]), _secret(mapping.get("secret", ""))


def _secret(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    checks.text("secret", value, empty=True)
    return str(value).encode()


def _section(path: str, value: object, section: Callable[..., _Section], names: list[str], **parts: Any) -> _Section:
    """An instance of a settings class from the table at ``path``; ``parts`` reads what is nested in it, by name."""
    given = checks.keywords(path, checks.table(path, value), names)
    for name, read in parts.items():
        if name in given:
            given[name] = read(f"{path}.{checks.camel_case(name)}", given[name])
    return section(**given)


def _data(value: object) -> DataSettings:
    if "path" not in checks.table("data", value):
        raise checks.failure("data.path", "is missing")
    return _section("data", value, DataSettings, field_names(DataSettings), compact=_compact)


def _compact(path: str, value: object) -> CompactSettings:
    return _section(path, value, CompactSettings, field_names(CompactSettings), state=_compact_state)


def _compact_state(path: str, value: object) -> CompactStateSettings:
    return _section(path, value, CompactStateSettings, field_names(CompactStateSettings))


def _peers(value: object) -> tuple[PeerAddress, ...]:
    if not isinstance(value, list | tuple):
        raise checks.failure("peers", f"must be a list of peers, not {value!r}")
    peers = []
    for position, item in enumerate(value):
        place = f"peers[{position}]"
        try:
            peers.append(PeerAddress.from_value(item))
        except ConfigurationError as error:
            # The peer names its own field in front, except where the item as a whole is no peer.
            separator = "." if isinstance(item, Mapping) else ": "
            raise ConfigurationError(f"{place}{separator}{error}") from None
    return tuple(peers)


def _router_bind(value: object) -> str | None:
    given = checks.keywords("router", checks.table("router", value), ("bind",))
    bind: str | None = given.get("bind")
    return bind


def _broadcast(value: object, url: str | None) -> BroadcastSettings:
    broadcast = _section("broadcast", value, BroadcastSettings, field_names(BroadcastSettings))
    return replace(broadcast, url=url) if url is not None else broadcast


def _web_monitor(value: object, url: str | None) -> WebMonitorSettings:
    monitor = _section("webmonitor", value, WebMonitorSettings, field_names(WebMonitorSettings), bind=_web_monitor_bind)
    return monitor.at(url) if url is not None else monitor


def _web_monitor_bind(path: str, value: object) -> WebMonitorBindSettings:
    return _section(path, value, WebMonitorBindSettings, field_names(WebMonitorBindSettings))
