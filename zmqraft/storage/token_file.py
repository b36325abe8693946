"""Token files: a sequence of segments, each a 4-byte ASCII token, a 4-byte length, the data, zeros to a multiple of 4.

The frame of index and snapshot files (SPEC section 3). The last segment is a marker without a length of its own; what
follows it is not made of segments any more. Knows nothing of what the segments hold. The rule: readers pass over
segments that they do not know; that is where extensions go.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

import msgpack

from zmqraft.errors import CorruptionError
from zmqraft.storage.fs import FileSystem

__all__ = [
    "META",
    "REMEDY",
    "IncompleteHeaderError",
    "Segment",
    "encode_meta",
    "encode_segment",
    "iso_date",
    "read_meta",
    "read_segments",
]

META: Final = b"META"

#: What to do about damaged files. Never: wipe the peer and let it come back under its id (it may have voted).
REMEDY: Final = (
    "restore the data directory from a backup, or remove this peer from the cluster and add a new one under another id"
)

_HEAD: Final = struct.Struct("<4sI")
#: Beyond this many segments a header is taken for damaged: it bounds the time that a file of rubbish can cost.
_SEGMENTS_MAX: Final = 64
#: A META segment longer than this is not read.
_META_SIZE_MAX: Final = 65536


class IncompleteHeaderError(CorruptionError):
    """The file ends, or turns to zeros, before the segment that ends the header."""


class Segment(NamedTuple):
    """Where the data of a segment stands in the file, in bytes."""

    offset: int
    length: int


def encode_segment(token: bytes, data: bytes | memoryview = b"") -> bytes:
    """The bytes of one segment."""
    return b"".join((_HEAD.pack(token, len(data)), data, bytes(-len(data) % 4)))


def read_segments(fs: FileSystem, handle: int, path: str, first: bytes, last: bytes) -> dict[bytes, Segment]:
    """The segments of a header by token: from the one called ``first``, which must open the file, to ``last``.

    Raises CorruptionError, and IncompleteHeaderError when the file ends before ``last`` is complete.
    """
    size = fs.size(handle)
    segments: dict[bytes, Segment] = {}
    offset = 0
    for _ in range(_SEGMENTS_MAX):
        head = fs.pread(handle, _HEAD.size, offset)
        if len(head) < _HEAD.size or not any(head):
            raise IncompleteHeaderError(
                f"{path}: the header breaks off at offset {offset} of {size} bytes, before its segment "
                f"{last.decode()}; {REMEDY}",
                path=path,
                offset=offset,
            )
        token, length = _HEAD.unpack(head)
        if not segments and token != first:
            raise CorruptionError(
                f"{path}: begins with {token!r} where {first!r} is expected; {REMEDY}", path=path, offset=0
            )
        data_offset = offset + _HEAD.size
        if token == last:
            segments[token] = Segment(data_offset, length)
            return segments
        if data_offset + length > size:
            raise IncompleteHeaderError(
                f"{path}: segment {token!r} at offset {offset} has {length} bytes; the file ends at {size}; {REMEDY}",
                path=path,
                offset=offset,
            )
        # Where a token occurs twice the first one counts.
        segments.setdefault(token, Segment(data_offset, length))
        offset = data_offset + length + -length % 4
    raise CorruptionError(
        f"{path}: no segment {last!r} among the first {_SEGMENTS_MAX}; {REMEDY}", path=path, offset=offset
    )


def iso_date(seconds: float) -> str:
    """A time since the epoch as JavaScript writes it: UTC, with milliseconds and Z."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode_meta(fs: FileSystem, own: Iterable[tuple[str, object]] = ()) -> bytes:
    """A META segment: when and where the file was made, and keys of our own."""
    meta = {"created": iso_date(fs.now_seconds()), "hostname": fs.host_name(), **dict(own)}
    return encode_segment(META, msgpack.packb(meta))


def read_meta(fs: FileSystem, handle: int, segments: dict[bytes, Segment]) -> dict[str, Any]:
    """The META map; empty when there is none or it cannot be read, since nothing depends on it."""
    segment = segments.get(META)
    if segment is None or segment.length > _META_SIZE_MAX:
        return {}
    try:
        meta = msgpack.unpackb(fs.pread(handle, segment.length, segment.offset))
    except (ValueError, msgpack.UnpackException):
        return {}
    return {key: value for key, value in meta.items() if isinstance(key, str)} if isinstance(meta, dict) else {}
