"""What zmq-raft does to index files, byte for byte as SPEC section 3 says: it knows nothing of checksums."""

from __future__ import annotations

import struct
from pathlib import Path

from zmqraft.protocol.entry import LogEntry

__all__ = ["append_as_zmq_raft", "data_offset", "truncate_as_zmq_raft", "without_checksums", "without_segment"]

_TABLE = 24


def without_segment(content: bytes, token: bytes) -> bytes:
    """The bytes of a file without one segment of its header."""
    start = content.index(token)
    length = int.from_bytes(content[start + 4 : start + 8], "little")
    return content[:start] + content[start + 8 + length + -length % 4 :]


def without_checksums(directory: Path) -> None:
    """Make all index files below a directory, which are closed, such as zmq-raft makes."""
    for path in directory.rglob("*.rlog"):
        path.write_bytes(without_segment(path.read_bytes(), b"CRCS"))


def data_offset(content: bytes | bytearray) -> int:
    """Where the entries begin."""
    return content.index(b"ITMZ") + 8


def _table(content: bytes | bytearray) -> list[int]:
    (capacity,) = struct.unpack_from("<I", content, 12)
    return list(struct.unpack_from(f"<{capacity}I", content, _TABLE))


def append_as_zmq_raft(path: Path, *entries: LogEntry) -> None:
    """Write entries behind the last one: data, then offsets."""
    content = bytearray(path.read_bytes())
    table = _table(content)
    for entry in entries:
        position = table.index(0)
        end = table[position - 1] if position else 0
        start = data_offset(content) + end
        frame = entry.to_bytes()
        if len(content) < start:
            content += bytes(start - len(content))
        content[start : start + len(frame)] = frame
        table[position] = end + len(frame)
    struct.pack_into(f"<{len(table)}I", content, _TABLE, *table)
    path.write_bytes(content)


def truncate_as_zmq_raft(path: Path, count: int) -> None:
    """Keep the first ``count`` entries: the offsets of the others become 0."""
    content = bytearray(path.read_bytes())
    capacity = len(_table(content))
    content[_TABLE + 4 * count : _TABLE + 4 * capacity] = bytes(4 * (capacity - count))
    path.write_bytes(content)
