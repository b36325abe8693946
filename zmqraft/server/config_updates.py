"""What clients ask of a leader about the members of its cluster: ConfigUpdate, one change at a time.

SPEC section 2, "Membership change"; section 6 of the paper. Knows nothing of how a configuration takes effect: that is
the core's, and the engine appends it. The rule: a client is told of success when the change is done, thus when the
final configuration is committed and applied, and not when it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zmqraft import constants
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.raft import Raft
from zmqraft.errors import ConfigurationError, RemoteProtocolError
from zmqraft.protocol import Protocols
from zmqraft.protocol.url import parse_url

__all__ = ["ConfigChange", "ConfigUpdates", "change_to"]

#: Who waits is told so often, in seconds, that it goes on, since clients turn to another peer after 500 ms.
_ACCEPT_INTERVAL = 0.2

_Route = tuple[bytes, bytes]


class _RefusedError(Exception):
    """A configuration that cannot follow the current one, under the name that zmq-raft gives such an error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A joint configuration that is to be appended, under the id of the request for it."""

    configuration: ClusterConfiguration
    request_id: bytes


def change_to(current: ClusterConfiguration, value: object) -> ClusterConfiguration:
    """The joint configuration that leads from ``current`` to the peer list ``value`` of a request.

    Raises _RefusedError when it must not: names and checks are those of SPEC section 2.
    """
    if not isinstance(value, (list, tuple)):
        raise _RefusedError("TypeError", "peers must be an array")
    if not value:
        raise _RefusedError("AssertionError", "at least one peer must be defined in a cluster")
    peers = [_peer_of(item) for item in value]
    for position, what in enumerate(("id", "url")):
        if len({peer[position] for peer in peers}) != len(peers):
            raise _RefusedError("AssertionError", f"peer {what} must be unique")
    ids = {url: peer_id for peer_id, url in current.peers}
    urls = dict(current.peers)
    for peer_id, url in peers:
        if urls.get(peer_id, url) != url or ids.get(url, peer_id) != peer_id:
            raise _RefusedError("AssertionError", "new peers must be consistent with current configuration")
    if urls == dict(peers):
        raise _RefusedError("Error", "no change in cluster membership")
    return current.joint_with(tuple(peers))


def _peer_of(item: object) -> tuple[str, str]:
    if not (isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(part, str) for part in item)):
        raise _RefusedError("TypeError", "a peer must be an array of its id and its url, two strings")
    peer_id, url = item
    if not peer_id:
        raise _RefusedError("AssertionError", "peer id must be a non-empty string")
    try:
        canonical = parse_url(url)
        if not url.lower().startswith("tcp://"):
            raise ConfigurationError(f"not a url like tcp://host:port: {url!r:.100}")
    except ConfigurationError as error:
        raise _RefusedError("AssertionError", f"peer url protocol must be tcp: {error}") from None
    if not url.endswith(canonical[canonical.rindex(":") :]):
        raise _RefusedError("AssertionError", f"peer url must be tcp://address:port, not {url!r:.100}")
    return peer_id, canonical


class ConfigUpdates:
    """The ConfigUpdate requests to one peer."""

    def __init__(
        self,
        raft: Raft,
        find_request: Callable[[bytes], int | None],
        is_acceptable: Callable[[bytes, float], bool],
        reply: Callable[[bytes, bytes, Sequence[bytes]], None],
        last_applied: Callable[[], int],
    ) -> None:
        """``find_request`` gives the index of a request id in the log, ``is_acceptable`` whether a new one is neither
        too old nor too far ahead."""
        self._raft = raft
        self._find_request = find_request
        self._is_acceptable = is_acceptable
        self._reply = reply
        self._last_applied = last_applied
        self._pending: ConfigChange | None = None
        # Who waits, by request id: that of the pending change, or of one that is in the log.
        self._waiting: dict[bytes, _Route] = {}
        #: When `tick` has something to do.
        self.deadline = math.inf

    def request(
        self, identity: bytes, request_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> None:
        """A ConfigUpdate message, ``frames`` from its type on. Raises RemoteProtocolError when it does not decode."""
        value: Any
        _, _, value = Protocols.CONFIG_UPDATE.decode_request(frames)
        if len(request_id) != constants.REQUEST_ID_SIZE:
            raise RemoteProtocolError(
                f"the id of an update has {constants.REQUEST_ID_SIZE} bytes, not {len(request_id)}"
            )
        raft = self._raft
        if not raft.is_leader:
            self._answer((identity, request_id), constants.CONFIG_NOT_LEADER, raft.known_leader_id)
        elif self._is_pending(request_id) or self._find_request(request_id) is not None:
            self._wait((identity, request_id), now)
        elif not self._is_acceptable(request_id, wall_seconds):
            self._answer((identity, request_id), constants.CONFIG_EXPIRED)
        else:
            try:
                change = change_to(raft.configuration, value)
            except _RefusedError as error:
                self._answer((identity, request_id), constants.CONFIG_BAD, {"name": error.name, "message": str(error)})
                return
            if self._pending is not None or raft.is_changing:
                self._answer((identity, request_id), constants.CONFIG_IN_PROGRESS)
                return
            self._pending = ConfigChange(change, request_id)
            self._wait((identity, request_id), now)

    def _is_pending(self, request_id: bytes) -> bool:
        return self._pending is not None and self._pending.request_id == request_id

    def _answer(self, route: _Route, status: int, *value: object) -> None:
        self._reply(*route, Protocols.CONFIG_UPDATE.encode_response(status, *value))

    def _wait(self, route: _Route, now: float) -> None:
        """It is answered now, if the change is done already, or by `tick`."""
        if (index := self._done_index(route[1])) is not None:
            self._answer(route, constants.CONFIG_ACCEPTED, index)
            return
        if route[1] not in self._waiting:
            self._answer(route, constants.CONFIG_ACCEPTED)
        self._waiting[route[1]] = route
        self.deadline = min(self.deadline, now + _ACCEPT_INTERVAL)

    def take(self) -> ConfigChange | None:
        """The change that a leader is to append now, behind everything that it has taken before."""
        pending, self._pending = self._pending, None
        return pending

    def _done_index(self, request_id: bytes) -> int | None:
        """The index of the entry with this id, if what it began is done: of an update, when it is applied; of a change,
        when its final configuration is committed and applied."""
        index = None if self._is_pending(request_id) else self._find_request(request_id)
        if index is None:
            return None
        configurations, done_until = self._raft.configurations, self._last_applied()
        if self._raft.is_changing or done_until < configurations.current_index:
            done_until = min(done_until, configurations.change_index - 1)
        return index if index <= done_until else None

    def tick(self, now: float) -> None:
        """Answer those whose change is done, and let the others know, now and then, that it goes on."""
        if not self._waiting:
            return
        for request_id, route in list(self._waiting.items()):
            if (index := self._done_index(request_id)) is not None:
                del self._waiting[request_id]
                self._answer(route, constants.CONFIG_ACCEPTED, index)
            elif now >= self.deadline:
                self._answer(route, constants.CONFIG_ACCEPTED)
        if not self._waiting:
            self.deadline = math.inf
        elif now >= self.deadline:
            self.deadline = now + _ACCEPT_INTERVAL

    def leadership_lost(self) -> None:
        """Who waits is told who leads, as far as is known, and asks there with the same id."""
        self._pending = None
        for route in self._waiting.values():
            self._answer(route, constants.CONFIG_NOT_LEADER, self._raft.known_leader_id)
        self._waiting.clear()
        self.deadline = math.inf
