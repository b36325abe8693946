"""The records of a state file: how one is encoded, and what is found in a file, record by record.

Each record ends with a key of its own, ``crc32c``, and the CRC32C of all bytes of the record before the 4 bytes of that
number. zmq-raft drops keys that it does not know; its own records, which have none, count as they are.

What is found behind the last good record after a crash: a part of a record (the file ends in it), zeros (the file
system had given the file its new size, not yet its data), a part and then zeros, or a record of which a sector (512
bytes) is zero, from its beginning or from that of the sector on. All that was never acknowledged: where each record is
durable before the next one is written, only the last one can be like this. Anything else that is not a record, or that
does not match its checksum, is damage, and stops. So does a record that is there to its end, but does not end where it
says: a byte of it is damaged, and it may hold a vote.

Knows nothing of files. The rule: who reads gets to know every record, in order, and each place that is none, with what
is wrong there: a peer stops at the first damage, a tool goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgpack

from zmqraft.errors import CorruptionError
from zmqraft.storage.checksums import crc32c
from zmqraft.storage.token_file import REMEDY

__all__ = ["STATE_READ_SIZE_MAX", "Field", "StateRecord", "TornRecord", "encode_record", "read_records"]

#: A file larger than this is not a state file.
STATE_READ_SIZE_MAX: Final = 64 * 1024 * 1024
#: Zeros at the end of a record that cannot be its own: the longest that a value ends with are the 6 of a float64.
_ZEROS_TORN: Final = bytes(8)
#: What each record of ours ends with, before the 4 bytes of the checksum: the key, and the type of the number.
_CHECKSUM_KEY: Final = "crc32c"
_TRAILER: Final = msgpack.packb(_CHECKSUM_KEY) + b"\xce"
_CRC_SIZE: Final = 4
#: What a disk writes whole or not at all.
_SECTOR_SIZE: Final = 512
#: Bounds for one record, so that a damaged length costs no memory.
_LIMITS: Final = {"max_array_len": 65536, "max_map_len": 1024, "max_str_len": 1 << 20, "max_bin_len": 1 << 20}


class Field(NamedTuple):
    """A value that a state file holds.

    ``decode`` makes the value in memory of that in the file, ``encode`` the other way; either raises ValueError.
    ``nullable``: None is stored as nil; else it is never stored, and only a missing value is None. ``rises``: a value
    that goes back is damage.
    """

    default: Any
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]
    nullable: bool = False
    rises: bool = False


def encode_record(record: Mapping[str, Any]) -> bytes:
    """The bytes of a record, with its checksum."""
    data = msgpack.packb({**record, _CHECKSUM_KEY: 0xFFFFFFFF})[:-_CRC_SIZE]
    return b"".join((data, crc32c(data).to_bytes(_CRC_SIZE, "big")))


def _checksum_problem(record: Mapping[Any, Any], data: bytes) -> str | None:
    """What is wrong with the checksum of a record with these bytes, if it has one and anything is."""
    if _CHECKSUM_KEY not in record:
        return None
    if not data[:-_CRC_SIZE].endswith(_TRAILER) or record[_CHECKSUM_KEY] != crc32c(data[:-_CRC_SIZE]):
        return "it does not match its checksum"
    return None


def _ends_with_checksum(tail: bytes) -> bool:
    """Whether a record of ours is there to its end; one byte of what it ends with may be damaged."""
    end = tail[-len(_TRAILER) - _CRC_SIZE : -_CRC_SIZE]
    return len(end) == len(_TRAILER) and sum(map(int.__ne__, end, _TRAILER)) <= 1


def _has_lost_sector(tail: bytes, offset: int) -> bool:
    """Whether a sector in the bytes from ``offset`` on, or the part of it that is there, was not written."""
    start = 0
    while start < len(tail):
        stop = start + _SECTOR_SIZE - (offset + start) % _SECTOR_SIZE
        if not any(tail[start:stop]):
            return True
        start = stop
    return False


class StateRecord(NamedTuple):
    """A good record: where it is, in bytes, what is in it, and the values of the fields that it has."""

    offset: int
    end: int
    content: dict[str, Any]
    values: dict[str, Any]

    @property
    def has_checksum(self) -> bool:
        """Whether it was compared with a checksum; else zmq-raft wrote it, or an early version."""
        return _CHECKSUM_KEY in self.content


class TornRecord(NamedTuple):
    """What a crash has left at the end of the file, where it begins, and how that is known."""

    offset: int
    reason: str


def read_records(
    path: str, content: bytes, fields: Mapping[str, Field], always_durable: bool
) -> Iterator[StateRecord | TornRecord | CorruptionError]:
    """All that is in a file with this content, in its order.

    Behind a torn record there is nothing more, nor behind damage that leaves the end of the record unknown.
    ``always_durable``: each record was durable before the next one was written.
    """
    return _Reader(path, content, fields, always_durable).records()


class _Reader:
    def __init__(self, path: str, content: bytes, fields: Mapping[str, Field], always_durable: bool) -> None:
        self._path = path
        self._content = content
        self._fields = fields
        self._always_durable = always_durable
        # The values of the good records so far, of fields that never go back.
        self._risen = {key: field.default for key, field in fields.items() if field.rises}

    def records(self) -> Iterator[StateRecord | TornRecord | CorruptionError]:
        content = self._content
        unpacker = msgpack.Unpacker(**_LIMITS)
        unpacker.feed(content)
        offset = 0
        while offset < len(content):
            try:
                record = unpacker.unpack()
            except msgpack.OutOfData:
                yield self._cut_off(offset)
                return
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                yield self._no_record(offset, f"not MessagePack ({error})")
                return
            end = unpacker.tell()
            found = self._record(offset, end, record)
            yield found
            if isinstance(found, TornRecord):
                return
            offset = end

    def _record(self, offset: int, end: int, record: object) -> StateRecord | TornRecord | CorruptionError:
        if not isinstance(record, dict):
            return self._no_record(offset, f"not a map but {record!r:.40}")
        problem = _checksum_problem(record, self._content[offset:end])
        if problem is not None:
            return self._no_record(offset, problem)
        values: dict[str, Any] = {}
        for key, stored in record.items():
            problem = self._take(values, key, stored)
            if problem is not None:
                return self._no_record(offset, problem)
        self._risen.update((key, value) for key, value in values.items() if key in self._risen)
        return StateRecord(offset, end, record, values)

    def _take(self, values: dict[str, Any], key: object, stored: object) -> str | None:
        """Decode a value of a record; what is wrong with it, if anything is."""
        if not isinstance(key, str) or "\0" in key:
            return f"the key {key!r:.40}"
        field = self._fields.get(key)
        if field is None:
            return None
        try:
            value = None if stored is None and field.nullable else field.decode(stored)
        except (ValueError, TypeError) as error:
            return f"{key}: {error}"
        if field.rises and value < self._risen[key]:
            return f"{key} goes back from {self._risen[key]} to {value}"
        values[key] = value
        return None

    def _cut_off(self, offset: int) -> TornRecord | CorruptionError:
        """The file ends within a record. With a second record behind that it is the length in it that is damaged."""
        tail = self._content[offset:]
        if _ends_with_checksum(tail) and not self._is_torn(tail, offset):
            return self._error(offset, "is complete, but does not end where it says")
        for key in self._fields:
            if tail.count(msgpack.packb(key)) > 1:
                return self._error(offset, "does not end before the file does, but others follow in it")
        return TornRecord(offset, "it was cut off")

    def _no_record(self, offset: int, problem: str) -> TornRecord | CorruptionError:
        """What begins at ``offset`` is no record: the end of the file where a crash can have left it, else damage."""
        if not self._is_torn(self._content[offset:], offset):
            return self._error(offset, f"is damaged: {problem}")
        return TornRecord(offset, "zeros are in it")

    def _error(self, offset: int, problem: str) -> CorruptionError:
        return CorruptionError(
            f"{self._path}: the record at offset {offset} {problem}; {REMEDY}", path=self._path, offset=offset
        )

    def _is_torn(self, tail: bytes, offset: int) -> bool:
        """Whether zeros show that what begins at ``offset`` was not written completely, and nothing is behind it."""
        if not any(tail) or tail.endswith(_ZEROS_TORN):
            return True
        return _has_lost_sector(tail, offset) and not (self._always_durable and tail.count(_TRAILER) > 1)
