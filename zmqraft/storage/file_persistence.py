"""A few named values in a file: MessagePack maps one after the other, each with what changed; the last value counts.

The format of ``raft.pers`` and ``state.pers`` (SPEC section 3). Knows nothing of what the values mean. The rules: a
record counts whole or not at all; a value is in memory only when it is in the file; and nothing is ever written behind
a record that a crash cut off, but into a new file, which takes the old one's place.

Each record ends with a key of its own, ``crc32c``, and the CRC32C of all bytes of the record before the 4 bytes of that
number. zmq-raft drops keys that it does not know; its own records, which have none, count as they are.

What is found behind the last good record after a crash: a part of a record (the file ends in it), zeros (the file
system had given the file its new size, not yet its data), a part and then zeros, or a record of which a sector (512
bytes) is zero, from its beginning or from that of the sector on. All that was never acknowledged: where each record is
durable before the next one is written, only the last one can be like this. Anything else that is not a record, or that
does not match its checksum, is damage, and stops. So does a record that is there to its end, but does not end where it
says: a byte of it is damaged, and it may hold a vote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import msgpack

from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import ConfigurationError, CorruptionError, StorageError
from zmqraft.storage.checksums import crc32c
from zmqraft.storage.failure import FailStop, describe
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.log_directory import ensure_directory
from zmqraft.storage.rotation import TEMPORARY_SUFFIX, replace_file
from zmqraft.storage.token_file import REMEDY

__all__ = ["Field", "FilePersistence", "decode_integer", "encode_integer"]

_log = logging.getLogger(__name__)

#: A file that would grow beyond this is replaced by a new one that starts with all values.
STATE_FILE_SIZE_MAX: Final = 512 * 1024
#: A file larger than this is not a state file.
_READ_SIZE_MAX: Final = 64 * 1024 * 1024
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


def decode_integer(value: object) -> int:
    """An integer from 0 to 2^53 - 1; an integral float is one too, since zmq-raft writes those from 2^31 on."""
    # The comparison comes first: it is false for nan and infinity, which no integer is made from.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= INTEGER_MAX or value % 1:
        raise ValueError(f"{value!r} is not an integer from 0 to {INTEGER_MAX}")
    return int(value)


def encode_integer(value: int) -> int | float:
    """The value to store: from 2^31 on a float64, as zmq-raft does."""
    number = decode_integer(value)
    return float(number) if number >= 2**31 else number


def _encode_record(record: Mapping[str, Any]) -> bytes:
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


class FilePersistence(FailStop):
    """Values by name, in memory and in a file. `FilePersistence.open` makes one."""

    def __init__(
        self,
        fs: FileSystem,
        path: str,
        fields: Mapping[str, Field],
        marks: Mapping[str, str],
        size_max: int,
        always_durable: bool,
    ) -> None:
        """For `open` only."""
        super().__init__(f"the state file {path}")
        self.path = path
        self._fs = fs
        self._fields = fields
        self._values: dict[str, Any] = {key: field.default for key, field in fields.items()}
        self._marks = marks
        self._marks_stored = False
        self._size_max = size_max
        self._always_durable = always_durable
        self._handle: int | None = None
        self._size = 0
        # Whether something that is not a record stands at the end of the file.
        self._torn = False
        # Whether something was written that is not synced.
        self._dirty = False

    @classmethod
    def open(
        cls,
        path: str | PurePath,
        fields: Mapping[str, Field],
        *,
        marks: Mapping[str, str] | None = None,
        size_max: int = STATE_FILE_SIZE_MAX,
        always_durable: bool = True,
        fs: FileSystem = OS_FILE_SYSTEM,
    ) -> FilePersistence:
        """Open a state file, or make an empty one; what is in it is then durable. Keys not in ``fields`` are ignored.

        ``marks`` are texts by key that say whose file it is: they go with the first record that is written to a file.
        ``always_durable``: no record is written before the one before it is durable, so that a crash tears one only.
        Raises ConfigurationError when the file holds another text for one of them, CorruptionError when the file is
        damaged, StorageError when it cannot be opened, read or made.
        """
        file = cls(fs, str(PurePath(path)), fields, marks or {}, size_max, always_durable)
        try:
            file._open()
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):
                raise StorageError(f"cannot open the state file {file.path}: {describe(error)}") from error
            raise
        return file

    # --- reading --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        folder = str(PurePath(self.path).parent)
        if self._fs.kind(self.path) is None:
            ensure_directory(self._fs, folder)
            self._handle = self._fs.open(self.path, write=True, create=True)
        else:
            self._handle = self._fs.open(self.path, write=True)
            self._size = self._fs.size(self._handle)
            self._load(self._fs.pread(self._handle, min(self._size, _READ_SIZE_MAX + 1), 0))
        # Also when the file was there: an earlier process may have been killed before it synced.
        self._fs.fdatasync(self._handle)
        self._fs.sync_directory(folder)

    def _load(self, content: bytes) -> None:
        if len(content) > _READ_SIZE_MAX:
            raise CorruptionError(f"{self.path}: a file of {self._size} bytes is no state file; {REMEDY}")
        offset = 0
        for record, end in self._records(content):
            problem = _checksum_problem(record, content[offset:end]) or self._apply(record)
            if problem is not None:
                self._end_at(content, offset, problem)
                return
            offset = end

    def _records(self, content: bytes) -> Iterator[tuple[dict[str, Any], int]]:
        """Each record, with the offset of its end."""
        unpacker = msgpack.Unpacker(**_LIMITS)
        unpacker.feed(content)
        offset = 0
        while offset < len(content):
            try:
                record = unpacker.unpack()
            except msgpack.OutOfData:
                self._cut_off(content, offset)
                return
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                self._end_at(content, offset, f"not MessagePack ({error})")
                return
            if not isinstance(record, dict):
                self._end_at(content, offset, f"not a map but {record!r:.40}")
                return
            offset = unpacker.tell()
            yield record, offset

    def _apply(self, record: dict[Any, Any]) -> str | None:
        """Take over the values of a record, all or none; what is wrong with it, if anything is."""
        values: dict[str, Any] = {}
        for key, stored in record.items():
            if not isinstance(key, str) or "\0" in key:
                return f"the key {key!r:.40}"
            field = self._fields.get(key)
            if field is not None:
                try:
                    value = None if stored is None and field.nullable else field.decode(stored)
                except (ValueError, TypeError) as error:
                    return f"{key}: {error}"
                if field.rises and value < self._values[key]:
                    return f"{key} goes back from {self._values[key]} to {value}"
                values[key] = value
        self._check_marks(record)
        self._values.update(values)
        return None

    def _check_marks(self, record: dict[Any, Any]) -> None:
        for key, text in self._marks.items():
            stored = record.get(key, text)
            if stored != text:
                raise ConfigurationError(
                    f"{self.path} holds the data of another cluster or peer: its {key} is {stored!r}, not {text!r}; "
                    "use another data directory, or the id and the secret that it was made with"
                )
        self._marks_stored = self._marks_stored or all(key in record for key in self._marks)

    def _cut_off(self, content: bytes, offset: int) -> None:
        """The file ends within a record. With a second record behind that it is the length in it that is damaged."""
        tail = content[offset:]
        if _ends_with_checksum(tail) and not self._is_torn(tail, offset):
            raise CorruptionError(
                f"{self.path}: the record at offset {offset} is complete, but does not end where it says; {REMEDY}"
            )
        for key in self._fields:
            if tail.count(msgpack.packb(key)) > 1:
                raise CorruptionError(
                    f"{self.path}: the record at offset {offset} does not end before the file does, but others follow "
                    f"in it; {REMEDY}"
                )
        self._ignore_tail(offset, "it was cut off")

    def _end_at(self, content: bytes, offset: int, problem: str) -> None:
        """What begins at ``offset`` is no record: the end of the file where a crash can have left it, else damage."""
        tail = content[offset:]
        if not self._is_torn(tail, offset):
            raise CorruptionError(f"{self.path}: the record at offset {offset} is damaged: {problem}; {REMEDY}")
        self._ignore_tail(offset, "zeros are in it")

    def _is_torn(self, tail: bytes, offset: int) -> bool:
        """Whether zeros show that what begins at ``offset`` was not written completely, and nothing is behind it."""
        if not any(tail) or tail.endswith(_ZEROS_TORN):
            return True
        return _has_lost_sector(tail, offset) and not (self._always_durable and tail.count(_TRAILER) > 1)

    def _ignore_tail(self, offset: int, reason: str) -> None:
        _log.warning(
            "%s: ignoring the bytes from offset %d to %d, a record that was not written completely and never "
            "acknowledged (%s)",
            self.path,
            offset,
            self._size,
            reason,
        )
        self._torn = True

    def __getitem__(self, key: str) -> Any:
        """The value of a key."""
        return self._values[key]

    # --- writing --------------------------------------------------------------------------------------------------

    def update(self, changes: Mapping[str, Any], *, durable: bool = True) -> None:
        """Store the values that differ from those held, in one record, and with ``durable`` make all of them durable.

        ValueError, and nothing is stored, for a value that its field does not take. StorageFailedError when this or
        an earlier write failed.
        """
        self.check_writable()
        changed: dict[str, Any] = {}
        record: dict[str, Any] = {}
        for key, value in changes.items():
            if value != self._values[key]:
                record[key] = self._encode(key, value)
                changed[key] = value
        with self.writing(f"store {', '.join(changed)}" if changed else "sync"):
            if changed:
                self._store(record, {**self._values, **changed})
            if durable and self._dirty:
                self._fs.fdatasync(self._open_handle())
                self._dirty = False
        self._values.update(changed)

    def _encode(self, key: str, value: Any) -> Any:
        field = self._fields[key]
        if value is None:
            if not field.nullable:
                raise ValueError(f"{key} cannot be None")
            return None
        return field.encode(value)

    def _store(self, record: dict[str, Any], values: dict[str, Any]) -> None:
        data = _encode_record(record if self._marks_stored else {**self._marks, **record})
        if self._torn or self._size + len(data) > self._size_max:
            self._start_file(values)
            return
        self._dirty = True
        self._fs.pwrite(self._open_handle(), data, self._size)
        self._size += len(data)
        self._marks_stored = True

    def _start_file(self, values: dict[str, Any]) -> None:
        """Put a file with one record of all values in the place of this one. It is durable."""
        record: dict[str, Any] = dict(self._marks)
        for key, value in values.items():
            if value is not None or self._fields[key].nullable:
                record[key] = self._encode(key, value)
        data = _encode_record(record)
        temporary_path = self.path + TEMPORARY_SUFFIX
        handle = self._fs.open(temporary_path, write=True, truncate=True)
        try:
            self._fs.pwrite(handle, data, 0)
            self._fs.fdatasync(handle)
            replace_file(self._fs, temporary_path, self.path)
        except BaseException:
            self._fs.close(handle)
            raise
        self._fs.close(self._open_handle())
        self._handle, self._size = handle, len(data)
        self._torn = self._dirty = False
        self._marks_stored = True

    def _open_handle(self) -> int:
        if self._handle is None:
            raise StorageError(f"the state file {self.path} is closed")
        return self._handle

    def close(self) -> None:
        """Close the file. Does not sync. May be called twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.fail(StorageError("it is closed"))
            self._fs.close(handle)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} {self._values}>"
