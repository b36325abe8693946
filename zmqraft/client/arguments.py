"""What callers give to clients: urls, secrets, limits, times; and the sessions that are made of them.

Knows nothing of sockets or threads. The rule: what is wrong is refused here, with ConfigurationError or
LocalProtocolError, before anything is sent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from functools import partial
from typing import Protocol, TypeAlias

from zmqraft.client.requests import ConfigUpdateRequest, Request, ResultSink, UpdateRequest
from zmqraft.client.session import ClientSession
from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import ConfigurationError, LocalProtocolError
from zmqraft.protocol.entries_flow import EntriesFlow
from zmqraft.protocol.request_id import new_request_id
from zmqraft.protocol.url import parse_url

__all__ = [
    "IN_FLIGHT",
    "Bytes",
    "Limits",
    "MakeRequest",
    "Urls",
    "check_in_flight",
    "check_integer",
    "cluster_session",
    "deadline_after",
    "make_config_update",
    "make_entries_flow",
    "make_update",
    "parse_urls",
    "peer_session",
    "split_update",
    "to_bytes",
    "to_seconds",
]

#: One url, or several; with the ids of the peers or without. ``host``, ``host:port`` and ``tcp://host:port``.
Urls: TypeAlias = "str | Iterable[str | tuple[str, str]]"
Bytes: TypeAlias = "bytes | bytearray | memoryview"

#: How many updates of `request_updates` are under way unless the caller says otherwise.
IN_FLIGHT = 1024


class MakeRequest(Protocol):
    """Makes a request of what is not the caller's: where its outcome goes, and its deadline."""

    def __call__(self, sink: ResultSink, deadline: float, /) -> Request:
        """Raises LocalProtocolError when the request cannot be put on the wire."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may take of this machine.

    ``in_flight_max`` and ``in_flight_size_max`` (bytes): updates in flight; whoever submits more waits. Thousands
    are needed to keep a leader busy; a few of the largest must fit. ``frame_size_max`` (bytes): a peer that sends a
    larger frame is disconnected; several times what a log entry may have. ``data_size_max`` (bytes): the largest
    update; peers ignore what is larger than their setting max_log_entry_data_size, of which this is the default.
    ``buffer_size_max`` (bytes): what a subscriber keeps for a slow consumer, and once more beyond a gap.
    """

    in_flight_max: int = 8192
    in_flight_size_max: int = 64 * 1024 * 1024
    frame_size_max: int = 256 * 1024 * 1024
    data_size_max: int = 10 * 1024 * 1024
    buffer_size_max: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{field.name} is an integer from 1 on, not {value!r}")


# --- values ---------------------------------------------------------------------------------------------------------


def parse_urls(urls: Urls) -> list[tuple[str | None, str]]:
    """(id or None, canonical url) of each. Raises ConfigurationError when there is none, or one is wrong."""
    items = [urls] if isinstance(urls, str) else list(urls)
    peers: list[tuple[str | None, str]] = []
    for item in items:
        peer_id, url = (None, item) if isinstance(item, str) else item
        peers.append((peer_id, parse_url(url)))
    if not peers:
        raise ConfigurationError("a client needs the url of a peer, at least")
    return peers


def to_bytes(value: Bytes | str, what: str) -> bytes:
    """Bytes as they are, text as UTF-8. Raises ConfigurationError for anything else."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise ConfigurationError(f"{what} is bytes or text, not {type(value).__name__}")


def to_seconds(value_ms: float, what: str, *, zero: bool = False) -> float:
    """Milliseconds as seconds. Raises ConfigurationError unless they are finite and above (``zero``: not below) 0."""
    number: object = value_ms
    if not isinstance(number, (int, float)) or not (0 < number < math.inf or (zero and number == 0)):
        raise ConfigurationError(f"{what} is in milliseconds, {'from' if zero else 'above'} 0, not {value_ms!r}")
    return value_ms / 1000


def deadline_after(seconds: float | None, now: float) -> float:
    """The time at which so many seconds have passed; None: never. Raises ConfigurationError unless they are above 0."""
    number: object = math.inf if seconds is None else seconds
    if not isinstance(number, (int, float)) or not number > 0:
        raise ConfigurationError(f"a deadline is in seconds, above 0, not {seconds!r}")
    return now + number


def check_integer(name: str, value: object, lowest: int) -> None:
    """Raise LocalProtocolError unless the value is an integer that may go on the wire, and not below ``lowest``."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= INTEGER_MAX:
        raise LocalProtocolError(f"{name} is an integer from {lowest} to {INTEGER_MAX}, not {value!r}")


def check_in_flight(value: object) -> None:
    """Raise ConfigurationError unless the value says how many updates may be in flight."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"in_flight is an integer from 1 on, not {value!r}")


# --- sessions -------------------------------------------------------------------------------------------------------


def peer_session(url: str, secret: Bytes | str, timeout_ms: float) -> ClientSession:
    """The session of a client of one peer. Raises ConfigurationError."""
    return ClientSession(
        parse_urls(url),
        secret=to_bytes(secret, "the secret"),
        timeout_s=to_seconds(timeout_ms, "timeout_ms"),
        grace_delay_s=0.0,
        follows_leader=False,
    )


def cluster_session(
    urls: Urls, secret: Bytes | str, timeout_ms: float, server_election_grace_delay_ms: float, heartbeat_ms: float
) -> ClientSession:
    """The session of a client that follows the leader. Raises ConfigurationError."""
    return ClientSession(
        parse_urls(urls),
        secret=to_bytes(secret, "the secret"),
        timeout_s=to_seconds(timeout_ms, "timeout_ms"),
        grace_delay_s=to_seconds(server_election_grace_delay_ms, "server_election_grace_delay_ms"),
        heartbeat_s=to_seconds(heartbeat_ms, "heartbeat_ms", zero=True),
    )


# --- requests -------------------------------------------------------------------------------------------------------


def make_update(secret: bytes, request_id: bytes | None, data: object, size_max: int) -> tuple[MakeRequest, int]:
    """An update, and its size in bytes. Raises LocalProtocolError when the data is none, or too large."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise LocalProtocolError(f"the data of an update is bytes, not {type(data).__name__}")
    content = bytes(data)
    if len(content) > size_max:
        raise LocalProtocolError(f"an update has at most {size_max} bytes, not {len(content)}")
    return partial(UpdateRequest, secret, request_id or new_request_id(), content), len(content)


def split_update(item: object) -> tuple[bytes | None, object]:
    """Request id and data of an item of `request_updates`: data alone, or both."""
    return item if isinstance(item, tuple) and len(item) == 2 else (None, item)


def make_config_update(secret: bytes, request_id: bytes | None, peers: Iterable[tuple[str, str]]) -> MakeRequest:
    """A change of the cluster's members."""
    return partial(ConfigUpdateRequest, secret, request_id or new_request_id(), list(peers))


def make_entries_flow(previous_index: int, count: int | None, snapshot_offset: int | None) -> EntriesFlow:
    """Where a stream of entries is to begin and to end. Raises LocalProtocolError."""
    check_integer("previous_index", previous_index, 0)
    if count is not None:
        check_integer("count", count, 1)
    if snapshot_offset is not None:
        check_integer("snapshot_offset", snapshot_offset, 0)
    return EntriesFlow(previous_index, count, snapshot_offset)
