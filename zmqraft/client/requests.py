"""The requests of clients: what goes out, and what a reply to each means (SPEC section 2).

Knows nothing of sockets, clocks or which peer leads; it tells the session, which carries it, what a reply means.
The rule: `Request.receive` raises RemoteProtocolError, and changes nothing, when a reply is malformed.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zmqraft.client.results import ClusterInfo, LogInfo
from zmqraft.constants import (
    ABSENT,
    CONFIG_ACCEPTED,
    CONFIG_BAD,
    CONFIG_EXPIRED,
    CONFIG_IN_PROGRESS,
    CONFIG_NOT_LEADER,
    CONFIG_UPDATE,
    REQUEST_BROADCAST_URL,
    REQUEST_CONFIG,
    REQUEST_LOG_INFO,
    REQUEST_UPDATE,
)
from zmqraft.errors import (
    ConfigUpdateInProgressError,
    ConfigUpdateRefusedError,
    LocalProtocolError,
    RemoteProtocolError,
    RequestExpiredError,
)
from zmqraft.protocol.frames import encode_request_id
from zmqraft.protocol.schema import FramesProtocol, Protocols

if TYPE_CHECKING:
    from zmqraft.client.session import ClientSession

__all__ = [
    "BroadcastUrlRequest",
    "ClusterInfoRequest",
    "ConfigUpdateRequest",
    "LogInfoRequest",
    "MessageRequest",
    "ProtocolRequest",
    "Request",
    "ResultSink",
    "Silence",
    "UpdateRequest",
    "decode_cluster_info",
    "decode_leader_id",
]


class ResultSink(Protocol):
    """Where the end of a request goes: one call of one of these, or none when the request was cancelled.

    A future is one. Must not raise.
    """

    def set_result(self, result: Any, /) -> None:
        """The request succeeded."""

    def set_exception(self, exception: BaseException, /) -> None:
        """The request failed."""


class Silence(enum.Enum):
    """What a session does when the reply to a request is overdue, by what proves that the leader is well."""

    #: Well is a leader that commits. One that is cut off from its followers still answers "accepted" to everything.
    COMMITS = enum.auto()
    #: Well is a leader that answers anything: the request is sent again.
    REPLIES = enum.auto()
    #: As REPLIES, but the request is not sent again to the same peer, which may have acted on it.
    REPLIES_ONCE = enum.auto()


class Request:
    """One message of a client, and who waits for its outcome.

    ``frames`` are the message from the id on; the session fills in an id where there is none yet. ``deadline`` is in
    seconds of the session's clock. The other fields are the session's: ``live`` from the start to the end of the
    request, ``touched`` when it was last sent or accepted, ``sequence`` its place among all that was sent over the
    present connection, ``twins`` further requests with the same id that wait for the same outcome.
    """

    __slots__ = ("deadline", "frames", "live", "sequence", "sink", "touched", "twins")

    silence: ClassVar[Silence] = Silence.REPLIES

    def __init__(self, frames: list[bytes], sink: ResultSink, deadline: float = math.inf) -> None:
        self.frames = frames
        self.sink = sink
        self.deadline = deadline
        self.live = False
        self.touched = 0.0
        self.sequence = 0
        self.twins: list[Request] | None = None

    @property
    def id(self) -> bytes:
        """The id of the message; empty while it has none."""
        return self.frames[0]

    def prepare(self, session: ClientSession, now: float) -> bool:
        """Called before the request is sent, each time. Returns False when it is not to be sent now."""
        return True

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        """Act on a reply, the frames after the id. Raises RemoteProtocolError when it is malformed."""
        raise NotImplementedError

    def ended(self, session: ClientSession) -> None:
        """The session has removed the request."""

    def timeout_message(self) -> str:
        """What to say when the deadline passes."""
        return f"no reply to {type(self).__name__} before its deadline; nothing was changed, it can be repeated"


class UpdateRequest(Request):
    """RequestUpdate: append data to the log. The result is the index of its entry."""

    __slots__ = ()

    silence = Silence.COMMITS

    def __init__(
        self, secret: bytes, request_id: bytes, data: bytes, sink: ResultSink, deadline: float = math.inf
    ) -> None:
        """Raises LocalProtocolError when the id is not 12 bytes, or the data not bytes or empty."""
        if not data:
            raise LocalProtocolError("an update is at least one byte; peers ignore an empty one")
        frames = Protocols.REQUEST_UPDATE.encode_request(REQUEST_UPDATE, secret, data)
        super().__init__([encode_request_id(request_id), *frames], sink, deadline)

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        ok, value = Protocols.REQUEST_UPDATE.decode_response(frames)
        if not ok:
            if value is ABSENT:
                session.fail(self, _expired(self))
            else:
                session.not_leader(self, decode_leader_id(value), now)
        elif value is ABSENT:
            session.accepted(self, now)
        else:
            session.committed(self, _decode_index(value), now)

    def timeout_message(self) -> str:
        return (
            f"the update with request id {self.id.hex()} was not confirmed before its deadline; it may or may not be"
            " in the log: repeat it with the same request id"
        )


class ConfigUpdateRequest(Request):
    """ConfigUpdate: change the members of the cluster. The result is the index of the entry that began the change."""

    __slots__ = ("peers",)

    silence = Silence.COMMITS

    def __init__(
        self,
        secret: bytes,
        request_id: bytes,
        peers: Sequence[tuple[str, str]],
        sink: ResultSink,
        deadline: float = math.inf,
    ) -> None:
        """Raises LocalProtocolError when the id is not 12 bytes or the peers are not pairs of strings."""
        frames = Protocols.CONFIG_UPDATE.encode_request(CONFIG_UPDATE, secret, [list(peer) for peer in peers])
        super().__init__([encode_request_id(request_id), *frames], sink, deadline)
        self.peers = peers

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        status, value = Protocols.CONFIG_UPDATE.decode_response(frames)
        if status == CONFIG_NOT_LEADER:
            session.not_leader(self, decode_leader_id(value), now)
        elif status == CONFIG_ACCEPTED and value is ABSENT:
            session.accepted(self, now)
        elif status == CONFIG_ACCEPTED:
            index = _decode_index(value)
            session.learn(self.peers)
            session.committed(self, index, now)
        elif status == CONFIG_BAD:
            session.fail(self, _refused(value))
        elif status == CONFIG_IN_PROGRESS:
            session.fail(self, ConfigUpdateInProgressError("another change is under way; repeat it when that is done"))
        elif status == CONFIG_EXPIRED:
            session.fail(self, _expired(self))
        else:
            raise RemoteProtocolError(f"ConfigUpdate reply: unknown status {status}")

    def timeout_message(self) -> str:
        return (
            f"the change of the cluster with request id {self.id.hex()} was not confirmed before its deadline; it may"
            " or may not be under way: repeat it with the same request id"
        )


class _Query(Request):
    """A request without arguments that changes nothing."""

    __slots__ = ()

    protocol: ClassVar[FramesProtocol]
    message_type: ClassVar[bytes]

    def __init__(self, secret: bytes, sink: ResultSink, deadline: float = math.inf) -> None:
        super().__init__([b"", *self.protocol.encode_request(self.message_type, secret)], sink, deadline)


class ClusterInfoRequest(_Query):
    """RequestConfig. The result is a `ClusterInfo`."""

    __slots__ = ()

    protocol = Protocols.REQUEST_CONFIG
    message_type = REQUEST_CONFIG

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        info = decode_cluster_info(frames)
        if session.follows_leader and not info.is_leader:
            session.not_leader(self, info.leader_id, now)
        else:
            session.learn(info.peers)
            session.finish(self, info)


class LogInfoRequest(_Query):
    """RequestLogInfo. The result is a `LogInfo`."""

    __slots__ = ()

    protocol = Protocols.REQUEST_LOG_INFO
    message_type = REQUEST_LOG_INFO

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        is_leader, leader_id, *numbers = Protocols.REQUEST_LOG_INFO.decode_response(frames)
        info = LogInfo(is_leader, decode_leader_id(leader_id), *numbers)
        if session.follows_leader and not info.is_leader:
            session.not_leader(self, info.leader_id, now)
        else:
            session.finish(self, info)


class BroadcastUrlRequest(_Query):
    """The url of the socket on which a peer publishes while it leads. The result is None when it does not publish."""

    __slots__ = ()

    protocol = Protocols.REQUEST_BROADCAST_URL
    message_type = REQUEST_BROADCAST_URL

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        (url,) = Protocols.REQUEST_BROADCAST_URL.decode_response(frames)
        session.finish(self, url or None)


class MessageRequest(Request):
    """A message of any type, usually one for the state machine. The result is the frames of the first reply."""

    __slots__ = ()

    silence = Silence.REPLIES_ONCE

    def __init__(
        self,
        secret: bytes,
        message_type: bytes,
        frames: Sequence[bytes],
        sink: ResultSink,
        deadline: float = math.inf,
    ) -> None:
        """Raises LocalProtocolError when the type is empty or something is not bytes."""
        parts = [message_type, *frames]
        if not message_type or not all(isinstance(part, bytes) for part in parts):
            raise LocalProtocolError("a message has a type of one byte or more, and every frame is bytes")
        super().__init__([b"", message_type, secret, *frames], sink, deadline)

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        session.finish(self, list(frames))

    def timeout_message(self) -> str:
        return f"no reply to the message of type {self.frames[1]!r} before its deadline; it may have been acted on"


class ProtocolRequest(Request):
    """A message of any row of the protocol's table. The result is the values of the first reply."""

    __slots__ = ("_protocol",)

    silence = Silence.REPLIES_ONCE

    def __init__(
        self,
        protocol: FramesProtocol,
        secret: bytes,
        values: Sequence[Any],
        request_id: bytes,
        sink: ResultSink,
        deadline: float = math.inf,
    ) -> None:
        """``values`` are those after the secret. Raises LocalProtocolError when they are not what the message has."""
        if protocol.message_type is None:
            raise LocalProtocolError(f"{protocol.name} is not a request")
        frames = protocol.encode_request(protocol.message_type, secret, *values)
        super().__init__([request_id, *frames], sink, deadline)
        self._protocol = protocol

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        session.finish(self, self._protocol.decode_response(frames))


def decode_cluster_info(frames: Sequence[bytes]) -> ClusterInfo:
    """The reply to RequestConfig. Raises RemoteProtocolError."""
    is_leader, leader_id, peers = Protocols.REQUEST_CONFIG.decode_response(frames)
    if not (isinstance(peers, list) and all(_is_peer(peer) for peer in peers)):
        raise RemoteProtocolError(f"RequestConfig reply: peers are a list of [id, url], not {peers!r:.100}")
    return ClusterInfo(is_leader, decode_leader_id(leader_id), tuple((peer[0], peer[1]) for peer in peers))


def decode_leader_id(value: object) -> str | None:
    """The leader id of a reply, None when it is not known. Raises RemoteProtocolError."""
    if value is None or value is ABSENT:
        return None
    if not isinstance(value, str):
        raise RemoteProtocolError(f"a leader id is a string or nil, not {value!r:.100}")
    return value or None


def _is_peer(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _decode_index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RemoteProtocolError(f"the index of an entry is an integer from 1 on, not {value!r:.100}")
    return value


def _expired(request: Request) -> RequestExpiredError:
    return RequestExpiredError(
        f"request id {request.id.hex()} is too old, or too far in the future: compare the clocks of this machine and"
        " of the peers; if it was sent before, look in the log whether it is there"
    )


def _refused(value: object) -> ConfigUpdateRefusedError:
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"ConfigUpdate reply: an error is a map with name and message, not {value!r:.100}")
    return ConfigUpdateRefusedError(str(value.get("name", "Error")), str(value.get("message", "no reason given")))
