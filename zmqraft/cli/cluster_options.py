"""The options by which ``update``, ``read``, ``subscribe``, ``info`` and ``config`` find a cluster.

Knows nothing of sockets. The rule: urls and secret come from the command line, the environment or a configuration
file, in this order; the rest of the file is for its peers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from zmqraft.constants import PORT_DEFAULT
from zmqraft.errors import ConfigurationError, RequestTimeoutError
from zmqraft.protocol.url import parse_url
from zmqraft.server.config_file import NAMESPACE_DEFAULT, load_peers_and_secret

__all__ = ["ClusterAddress", "cluster_options"]

_URL_DEFAULT = f"tcp://127.0.0.1:{PORT_DEFAULT}"

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class ClusterAddress:
    """Where a cluster is: urls of some of its peers, its secret, and how long to wait for it, in seconds."""

    urls: tuple[str, ...]
    secret: bytes = field(repr=False)
    timeout_s: float


def cluster_options(command: _Function) -> Callable[..., Any]:
    """Give a command the options to find a cluster; it gets a `ClusterAddress` as its first argument.

    What the command takes as an argument ``hosts`` counts as --url does.
    """

    @click.option("-u", "--url", "urls", multiple=True, metavar="URL", envvar="ZMQRAFT_URL", help=_URL_HELP)
    @click.option("-k", "--secret", metavar="TEXT", envvar="ZMQRAFT_SECRET", help="The secret of the cluster.")
    @click.option("-c", "--config", metavar="FILE", help="Take urls and secret from a configuration file.")
    @click.option("--ns", "namespace", default=NAMESPACE_DEFAULT, show_default=True, help="The root key in that file.")
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0.001),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the cluster before giving up.",
    )
    @click.option("-t", "timeout_ms", type=click.FloatRange(min=1), metavar="MS", help="The same, in milliseconds.")
    @functools.wraps(command)
    def with_cluster(
        urls: tuple[str, ...],
        secret: str | None,
        config: str | None,
        namespace: str,
        timeout_s: float,
        timeout_ms: float | None,
        hosts: tuple[str, ...] = (),
        **arguments: Any,
    ) -> Any:
        if timeout_ms is not None:
            timeout_s = timeout_ms / 1000
        cluster = _address((*urls, *hosts), secret, config, namespace, timeout_s)
        try:
            return command(cluster, **arguments)
        except RequestTimeoutError as error:
            where = f"the peers {', '.join(cluster.urls)} within {timeout_s:g} s"
            raise RequestTimeoutError(f"no answer from {where}, or a wrong secret: {error}") from error

    return with_cluster


_URL_HELP = (
    f"A peer of the cluster, tcp://host:port or just the host; may be given several times [default: {_URL_DEFAULT}]."
)


def _address(
    urls: tuple[str, ...], secret: str | None, config: str | None, namespace: str, timeout_s: float
) -> ClusterAddress:
    known: list[str] = []
    known_secret = b""
    if config is not None:
        peers, known_secret = load_peers_and_secret(config, namespace=namespace)
        known = [peer.url for peer in peers]
    if urls:
        known = [_url(url) for url in urls]
    return ClusterAddress(
        tuple(known or [_URL_DEFAULT]), known_secret if secret is None else os.fsencode(secret), timeout_s
    )


def _url(text: str) -> str:
    try:
        return parse_url(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"--url: {error}") from None
