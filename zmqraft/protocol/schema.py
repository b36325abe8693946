"""Every message of the protocol in one table (SPEC section 2), and `FramesProtocol`, which reads a row of it.

Knows nothing of sockets, message ids or what the messages are for. The rule: a message that decoded is well-formed in
every field; whether its values make sense is for the one who reads it.

A schema is one ``name:type`` for each frame. Types are those of SPEC section 1: bytes, string, uint, nuint, bool,
json, entry, reqid. ``?`` behind a type: the frame, and all after it, may be absent. ``*``: any number of frames, only
at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from zmqraft import constants
from zmqraft.protocol.frames import MessageCodec

__all__ = ["FramesProtocol", "Protocols"]

_KINDS: Final = {
    "bytes": "b",
    "string": "s",
    "uint": "u",
    "nuint": "n",
    "bool": "t",
    "json": "j",
    "entry": "e",
    "reqid": "r",
}
#: What every request with a type starts with.
_REQUEST_HEAD: Final = "type:bytes secret:bytes"


class FramesProtocol:
    """One kind of message: its request and its reply, as frames and as tuples of values.

    Frames are those after the message id: of a request from the type frame on, ``[type, secret, ...]``. Values are one
    for each field of the schema, in its order; a repeated field is one list, the last value.

    - Decoding gives a value for every field. A frame that is absent gives None; if it is json, `ABSENT`, since null
      is None. Frames beyond the schema are ignored, as zmq-raft ignores them: a later version may add some.
    - Encoding takes the same tuple. Values at the end may be left out, or be what decoding gives for an absent frame.

    Encoding raises LocalProtocolError, decoding RemoteProtocolError, and neither anything else.
    """

    __slots__ = ("_request", "_response", "message_type", "name", "request_fields", "response_fields")

    def __init__(self, name: str, message_type: bytes | None, request: str, response: str) -> None:
        """``request`` and ``response`` are schemas; a request with a message type has type and secret before them.

        Raises ValueError for a schema that cannot be read.
        """
        head = "" if message_type is None else _REQUEST_HEAD
        self.name = name
        self.message_type = message_type
        self._request, self.request_fields = _codec(f"{name} request", f"{head} {request}", message_type)
        self._response, self.response_fields = _codec(f"{name} reply", response, None)

    def encode_request(self, *values: Any) -> list[bytes]:
        """The frames of a request. Raises LocalProtocolError."""
        return self._request.encode(values)

    def decode_request(self, frames: Sequence[bytes]) -> tuple[Any, ...]:
        """The values of a request. Raises RemoteProtocolError."""
        return self._request.decode(frames)

    def encode_response(self, *values: Any) -> list[bytes]:
        """The frames of a reply. Raises LocalProtocolError."""
        return self._response.encode(values)

    def decode_response(self, frames: Sequence[bytes]) -> tuple[Any, ...]:
        """The values of a reply. Raises RemoteProtocolError."""
        return self._response.decode(frames)

    def __repr__(self) -> str:
        return f"<FramesProtocol {self.name}>"


def _codec(name: str, schema: str, first: bytes | None) -> tuple[MessageCodec, tuple[str, ...]]:
    fields: list[str] = []
    kinds = ""
    required: int | None = None
    repeated = False
    for item in schema.split():
        field, _, kind = item.partition(":")
        if repeated:
            raise ValueError(f"{name}: {field} comes after a field that is repeated")
        optional, repeated = kind.endswith("?"), kind.endswith("*")
        if optional or repeated:
            kind = kind[:-1]
            required = len(fields) if required is None else required
        elif required is not None:
            raise ValueError(f"{name}: {field} comes after one that may be absent, so it must be optional as well")
        if kind not in _KINDS:
            raise ValueError(f"{name}: unknown type {kind!r} of {field}; there are {', '.join(_KINDS)}")
        fields.append(field)
        kinds += _KINDS[kind]
    required = len(fields) if required is None else required
    return MessageCodec(name, tuple(fields), kinds, required, repeated, first), tuple(fields)


class Protocols:
    """Every message of the protocol, by name."""

    REQUEST_VOTE: Final = FramesProtocol(
        "RequestVote",
        constants.REQUEST_VOTE,
        "candidate_id:string term:uint last_index:uint last_term:uint",
        "term:uint granted:bool",
    )
    APPEND_ENTRIES: Final = FramesProtocol(
        "AppendEntries",
        constants.APPEND_ENTRIES,
        "leader_id:string term:uint previous_index:uint previous_term:uint commit_index:uint entries:entry*",
        "term:uint success:bool conflict_index:uint? conflict_term:uint?",
    )
    INSTALL_SNAPSHOT: Final = FramesProtocol(
        "InstallSnapshot",
        constants.INSTALL_SNAPSHOT,
        "leader_id:string term:uint last_included_index:uint last_included_term:uint byte_offset:uint total_size:uint"
        " chunk:bytes",
        "term:uint byte_offset:uint?",
    )
    REQUEST_UPDATE: Final = FramesProtocol(
        "RequestUpdate",
        constants.REQUEST_UPDATE,
        "data:bytes",
        # The index, once committed and applied, or the leader's id; ABSENT: accepted, or refused for ever.
        "ok:bool index_or_leader_id:json?",
    )
    CONFIG_UPDATE: Final = FramesProtocol(
        "ConfigUpdate",
        constants.CONFIG_UPDATE,
        "peers:json",
        "status:uint index_or_leader_id_or_error:json?",
    )
    REQUEST_ENTRIES: Final = FramesProtocol(
        "RequestEntries",
        constants.REQUEST_ENTRIES,
        "previous_index:uint count:nuint? snapshot_offset:uint?",
        # By the status the last frames are log entries, unchecked, or one chunk of the snapshot.
        "status:uint leader_id_or_snapshot:json last_index:uint? entries_or_chunk:bytes*",
    )
    REQUEST_CONFIG: Final = FramesProtocol(
        "RequestConfig",
        constants.REQUEST_CONFIG,
        "",
        "is_leader:bool leader_id:json peers:json",
    )
    REQUEST_LOG_INFO: Final = FramesProtocol(
        "RequestLogInfo",
        constants.REQUEST_LOG_INFO,
        "",
        "is_leader:bool leader_id:json term:uint first_index:uint last_applied:uint commit_index:uint last_index:uint"
        " snapshot_size:uint prune_index:uint",
    )
    REQUEST_BROADCAST_URL: Final = FramesProtocol(
        "RequestBroadcastUrl",
        constants.REQUEST_BROADCAST_URL,
        "",
        "url:string?",
    )
    REQUEST_WEB_MONITOR_URL: Final = FramesProtocol(
        "RequestWebMonitorUrl",
        constants.REQUEST_WEB_MONITOR_URL,
        "",
        "url:string",
    )
    #: Our own: what a peer of zmqraft can do beyond zmq-raft, which does not answer it.
    CAPABILITIES: Final = FramesProtocol(
        "Capabilities",
        constants.CAPABILITIES,
        "",
        # Whether it answers READ_INDEX as well.
        "append_size_max:uint read_index:bool?",
    )
    #: Our own: a client asks for an index; ABSENT leader: it is that; null index: the peer does not lead.
    READ_INDEX: Final = FramesProtocol(
        "ReadIndex",
        constants.READ_INDEX,
        "",
        "index:nuint leader_id:json?",
    )
    #: Our own: a leader tells a peer of zmqraft that has what it sent how far that is committed. It has no reply.
    COMMIT_NOTICE: Final = FramesProtocol(
        "CommitNotice",
        constants.COMMIT_NOTICE,
        "leader_id:string term:uint commit_index:uint",
        "",
    )
    #: Our own: InstallSnapshot whose bytes are ``context_size`` bytes of context, then the state machine's data.
    OWN_INSTALL_SNAPSHOT: Final = FramesProtocol(
        "OwnInstallSnapshot",
        constants.OWN_INSTALL_SNAPSHOT,
        "leader_id:string term:uint last_included_index:uint last_included_term:uint byte_offset:uint total_size:uint"
        " chunk:bytes context_size:uint",
        "term:uint byte_offset:uint?",
    )
    #: Our own: a leader or candidate belongs to the cluster of a peer that does not answer it. It has no reply.
    INTRODUCTION: Final = FramesProtocol(
        "Introduction",
        constants.INTRODUCTION,
        "peer_id:string",
        "",
    )
    #: Our own: a leader makes way for ``target_id``, which has all its entries, and which nobody need refuse because he
    #: still hears a leader. It has no reply.
    TRANSFER_NOTICE: Final = FramesProtocol(
        "TransferNotice",
        constants.TRANSFER_NOTICE,
        "leader_id:string term:uint target_id:string",
        "",
    )
    #: Published on the PUB socket; it has no type and no reply.
    STATE_BROADCAST: Final = FramesProtocol(
        "StateBroadcast",
        None,
        "secret:bytes term:uint last_applied:uint entries:entry*",
        "",
    )
