"""Urls of sockets: ``tcp://host:port`` in one canonical spelling, so that equal addresses compare equal.

Knows nothing of sockets, settings or peers. The rule: a url that came through here needs no further check; one to
connect to never has a placeholder host (``*``, ``0.0.0.0``, ``[::]``), one to bind may.
"""

from __future__ import annotations

import ipaddress
import re

from zmqraft.constants import PORT_DEFAULT
from zmqraft.errors import ConfigurationError

__all__ = ["parse_bind_url", "parse_host_port", "parse_url"]

_SCHEME = "tcp://"
_WILDCARD = "*"
_PORT_MAX = 65535
#: RFC 1123 names, and underscores, which container networks use.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\Z")
_LOOKS_LIKE_IPV4 = re.compile(r"[0-9.]+\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")


def parse_url(text: str) -> str:
    """The canonical ``tcp://host:port`` to connect to.

    ``tcp://`` may be left out, and so may the port (8047 then). The host is an IPv4 address, an IPv6 address in
    brackets or a host name. Raises ConfigurationError with the text and what is wrong with it.
    """
    host, port = _parse_tcp(text)
    if _is_placeholder(host):
        raise _error(text, f"{host} stands for every address of a machine; others cannot connect to it")
    return f"{_SCHEME}{host}:{port}"


def parse_bind_url(text: str) -> str:
    """As `parse_url`, but to bind: the host may also be ``*``, ``0.0.0.0`` or ``[::]``."""
    host, port = _parse_tcp(text)
    return f"{_SCHEME}{host}:{port}"


def parse_host_port(text: str, rest: str, port_default: int) -> tuple[str, int]:
    """Host and port of ``rest``, the part of the url ``text`` behind its scheme. Raises ConfigurationError."""
    host, separator, port = _split(text, rest)
    if separator and not (_PORT.match(port) and 1 <= int(port) <= _PORT_MAX):
        raise _error(text, f"a port is 1 to {_PORT_MAX}, not {port!r}")
    return _canonical_host(text, host), int(port) if separator else port_default


def _parse_tcp(text: str) -> tuple[str, int]:
    if not isinstance(text, str):
        raise ConfigurationError(f"a url is a text like tcp://host:port, not {text!r}")
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() != "tcp":
        raise _error(text, "only tcp:// is supported")
    return parse_host_port(text, rest, PORT_DEFAULT)


def _split(text: str, rest: str) -> tuple[str, str, str]:
    """Host (with its brackets), separator and port."""
    if rest.startswith("["):
        host, bracket, behind = rest.partition("]")
        if not bracket or (behind and not behind.startswith(":")):
            raise _error(text, "an IPv6 address is written as [address] or [address]:port")
        return host + bracket, behind[:1], behind[1:]
    if rest.count(":") > 1:
        raise _error(text, "an IPv6 address is written in brackets")
    return rest.partition(":")


def _canonical_host(text: str, host: str) -> str:
    try:
        if host.startswith("["):
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        if _LOOKS_LIKE_IPV4.match(host):
            return str(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise _error(text, str(error)) from None
    host = host.lower()
    if host != _WILDCARD and not _HOST_NAME.match(host):
        raise _error(text, f"{host!r} is neither an address nor a host name" if host else "the host is missing")
    return host


def _is_placeholder(host: str) -> bool:
    return host in (_WILDCARD, "0.0.0.0", "[::]")


def _error(text: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"not a url like tcp://host:port: {text!r} ({reason})")
