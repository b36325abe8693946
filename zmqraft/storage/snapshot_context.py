"""What travels with a snapshot beside its data: segments of its file that zmq-raft passes over.

On disk, between CRCS and DATA (integers least significant byte first)::

    CONF  MessagePack map: index (of the CONFIG entry, 0 for none), peers (as in CONFIG entries)
    REQS  4 bytes version 1, 8 bytes: request ids of that time (seconds since the epoch) or older may be forgotten;
          then for each id that is remembered of entries up to the snapshot's index, oldest first, its 12 bytes and
          8 of the entry's index

Either may be missing. Knows nothing of the rest of the file. The rule: what is not understood is damage, since a peer
that starts without its configuration or its request ids may lose what was acknowledged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from zmqraft.api.snapshot import SnapshotBase, SnapshotContext
from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import CorruptionError, RemoteProtocolError, shown
from zmqraft.protocol import decode_json, encode_json
from zmqraft.storage.raft_persistence import check_peers
from zmqraft.storage.request_index import RequestIndex
from zmqraft.storage.token_file import REMEDY, Segment, encode_segment

__all__ = ["check_receivable", "decode_context", "encode_context", "parse_context"]

_CONF: Final = b"CONF"
_REQS: Final = b"REQS"
_VERSION: Final = 1
_SEGMENT_HEAD: Final = struct.Struct("<4sI")
#: Version, seconds.
_REQS_HEAD: Final = struct.Struct("<IQ")


def check_receivable(current: SnapshotBase, index: int, term: int, size: int, context: SnapshotContext) -> None:
    """Raise ValueError when a log above the snapshot ``current`` cannot receive this one: what would be damage once it
    is on the disk is not let in."""
    if not current.index < index <= INTEGER_MAX:
        raise ValueError(f"a snapshot of entry {index} is not above that of the log, of entry {current.index}")
    if not current.term <= term <= INTEGER_MAX:
        raise ValueError(f"a snapshot of term {term} above one of term {current.term}")
    if not 0 <= size <= INTEGER_MAX:
        raise ValueError(f"a snapshot of {size} bytes")
    if context.peers is not None:
        check_peers(context.peers)
    if not 0 <= context.peers_index <= index:
        raise ValueError(f"the configuration of entry {context.peers_index} in a snapshot of entry {index}")
    if not 0 <= context.requests_forgotten_until <= INTEGER_MAX:
        raise ValueError(f"request ids forgotten until {context.requests_forgotten_until}")
    RequestIndex().add_packed(context.request_ids, index)


def encode_context(context: SnapshotContext) -> bytes:
    """The segments, one after the other."""
    parts = []
    if context.peers is not None:
        peers = check_peers(context.peers)
        parts.append(encode_segment(_CONF, encode_json({"index": context.peers_index, "peers": peers})))
    if context.request_ids or context.requests_forgotten_until:
        head = _REQS_HEAD.pack(_VERSION, context.requests_forgotten_until)
        parts.append(encode_segment(_REQS, head + context.request_ids))
    return b"".join(parts)


def parse_context(data: bytes) -> SnapshotContext:
    """The context from what another peer's `encode_context` gave. Raises RemoteProtocolError."""
    segments: dict[bytes, Segment] = {}
    offset = 0
    while offset < len(data):
        token, length = _SEGMENT_HEAD.unpack(data[offset : offset + _SEGMENT_HEAD.size].ljust(_SEGMENT_HEAD.size))
        offset += _SEGMENT_HEAD.size
        if offset + length > len(data):
            raise RemoteProtocolError(f"a context of {len(data)} bytes with a segment up to {offset + length}")
        segments.setdefault(token, Segment(offset, length))
        offset += length + -length % 4
    try:
        return decode_context("the context", segments, lambda size, at: data[at : at + size])
    except CorruptionError as error:
        raise RemoteProtocolError(str(error).removesuffix(f"; {REMEDY}")) from None


def decode_context(path: str, segments: Mapping[bytes, Segment], read: Callable[[int, int], bytes]) -> SnapshotContext:
    """The context from the segments of the file ``path``; ``read`` takes a size and an offset.

    Raises CorruptionError, OSError.
    """
    peers, peers_index = None, 0
    if (segment := segments.get(_CONF)) is not None:
        try:
            value = decode_json(read(segment.length, segment.offset))
            if not isinstance(value, dict) or not isinstance(value.get("index"), int) or value["index"] < 0:
                raise ValueError(f"not a configuration with its index: {shown(value)}")
            peers, peers_index = check_peers(value.get("peers")), value["index"]
        except (ValueError, RemoteProtocolError) as error:
            raise CorruptionError(
                f"{path}: bad configuration at offset {segment.offset}: {error}; {REMEDY}",
                path=path,
                offset=segment.offset,
            ) from None
    request_ids, forgotten_until = b"", 0
    if (segment := segments.get(_REQS)) is not None:
        data = read(segment.length, segment.offset)
        if len(data) < _REQS_HEAD.size or _REQS_HEAD.unpack_from(data)[0] != _VERSION:
            raise CorruptionError(
                f"{path}: bad request ids at offset {segment.offset}; {REMEDY}", path=path, offset=segment.offset
            )
        forgotten_until = _REQS_HEAD.unpack_from(data)[1]
        request_ids = data[_REQS_HEAD.size :]
    return SnapshotContext(peers, peers_index, request_ids, forgotten_until)
