"""The checksums of an index file: a segment of it that zmq-raft passes over.

On disk, between META and ITMZ (integers least significant byte first)::

    CRCS  20 + 4 x capacity bytes:
          the record:  version 1, state, count, end, and the CRC32C of these 16 bytes; 4 bytes each
          then 4 bytes for each entry of the table: its checksum, or 0 where none was stored

A checksum (`zmqraft.storage.checksums`) covers the entry's bytes, with its term and request id, its index, the offset
of its end, and a mark for the first one of a unit, which is what was written from one sync to the next: ``DURABLE``
when everything before was durable then, ``SYNCING`` when the unit before was still being synced. (There is one sync at
a time, so that everything before that unit was durable.) The record says who wrote last:

- ``OPEN`` with a count and an end: we opened the file for writing, and these entries were durable then.
- ``CLOSED`` with a count and an end: we were done with the file, everything in it was durable, and it held that.
- ``CUTTING`` with a count and an end: we are removing the entries behind these; what was known before is void.
- A record that does not match its own CRC was being written when a crash came, and says as little as ``CUTTING``.

Each state is durable before anything is done that the one before does not allow: OPEN before the first entry, CUTTING
before the first offset is zeroed, CLOSED only when all that it vouches for is. zmq-raft leaves the segment as it is.
So what does not fit tells who wrote it:

- A checksum that matches proves the entry. With the mark ``DURABLE`` it proves that everything before was durable;
  with ``SYNCING``, that everything before the next mark below it was.
- 0 says nothing ("unknown"): written by zmq-raft, or the sector of the checksum was lost in a crash.
- CLOSED, but the table has another count or end: zmq-raft wrote last. What does not match at the end is its own.
- CLOSED and the same count and end, or OPEN: an entry that does not match is torn (see `torn_tail`) or damaged.

What cannot be told apart, and then counts as damage, so that the peer does not start: that we crashed, and zmq-raft
then removed entries of ours from that file and wrote others; or that it replaced the last entries of a file that we had
closed by as many, with the same bytes in all. And what is taken for zmq-raft's writing, and so is not found: damage
in the last entries of a file, before we see it again, behind which zmq-raft has written.

Knows nothing of entries. The rule: a record is written with whatever it must not come before already durable.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from zmqraft.storage.checksums import crc32c
from zmqraft.storage.token_file import Segment, encode_segment

__all__ = [
    "CRCS",
    "MARK_DURABLE",
    "MARK_NONE",
    "MARK_SYNCING",
    "RECORD_SIZE",
    "FileState",
    "Record",
    "decode_record",
    "encode_checksum_segment",
    "mark_of",
    "slots_offset",
]

CRCS: Final = b"CRCS"
MARK_NONE: Final = 0
MARK_DURABLE: Final = 1
MARK_SYNCING: Final = 2

_VERSION: Final = 1
#: The count of a record that says nothing.
_NOWHERE: Final = 2**32 - 1
#: Version, state, count, end.
_RECORD: Final = struct.Struct("<IIII")
_CRC: Final = struct.Struct("<I")
RECORD_SIZE: Final = _RECORD.size + _CRC.size


def mark_of(slot: int) -> int:
    """The mark in a checksum."""
    return slot & 3


class FileState(IntEnum):
    """Who may have written to an index file since we did."""

    OPEN = 1
    CLOSED = 2
    CUTTING = 3


class Record(NamedTuple):
    """``entry_count`` entries that end at ``end`` bytes, from the start of the data."""

    state: FileState
    entry_count: int = 0
    end: int = 0

    def encode(self) -> bytes:
        """The bytes of the record."""
        record = _RECORD.pack(_VERSION, self.state, self.entry_count, self.end)
        return record + _CRC.pack(crc32c(record))


def decode_record(data: bytes) -> Record:
    """The record; a CUTTING one of nothing where it was not written completely."""
    record = data[: _RECORD.size]
    if len(data) == RECORD_SIZE and _CRC.unpack_from(data, _RECORD.size)[0] == crc32c(record):
        version, state, count, end = _RECORD.unpack(record)
        if version == _VERSION and state in iter(FileState):
            return Record(FileState(state), count, end)
    return Record(FileState.CUTTING, _NOWHERE)


def encode_checksum_segment(capacity: int) -> bytes:
    """The segment of a new file, which is opened for writing."""
    return encode_segment(CRCS, Record(FileState.OPEN).encode() + bytes(4 * capacity))


def slots_offset(segment: Segment | None, capacity: int) -> int | None:
    """Where the checksums begin, in bytes from the start of the file; None for a segment of some other making."""
    if segment is None or segment.length != RECORD_SIZE + 4 * capacity:
        return None
    return segment.offset + RECORD_SIZE
