"""A few named values in a file: MessagePack maps one after the other, each with what changed; the last value counts.

The format of ``raft.pers`` and ``state.pers`` (SPEC section 3). Knows nothing of what the values mean. The rules: a
record counts whole or not at all; a value is in memory only when it is in the file; and nothing is ever written behind
a record that a crash cut off, but into a new file, which takes the old one's place.

What a record looks like, and how a torn one is told from a damaged one, is in `state_records`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import ConfigurationError, CorruptionError, StorageError
from zmqraft.storage.failure import FailStop, describe
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.log_directory import ensure_directory
from zmqraft.storage.rotation import TEMPORARY_SUFFIX, replace_file
from zmqraft.storage.state_records import STATE_READ_SIZE_MAX, Field, TornRecord, encode_record, read_records
from zmqraft.storage.token_file import REMEDY

__all__ = ["Field", "FilePersistence", "decode_integer", "encode_integer"]

_log = logging.getLogger(__name__)

#: A file that would grow beyond this is replaced by a new one that starts with all values.
STATE_FILE_SIZE_MAX: Final = 512 * 1024


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
            content = self._fs.pread(self._handle, min(self._size, STATE_READ_SIZE_MAX + 1), 0)
            self._load(content)
            if content and self._always_durable:
                # A sync that failed in an earlier process may have left pages that are read, but never written any
                # more: as if they were clean. So they are written anew.
                self._fs.pwrite(self._handle, content, 0)
        # Also when the file was there: an earlier process may have been killed before it synced.
        self._fs.fdatasync(self._handle)
        self._fs.sync_directory(folder)

    def _load(self, content: bytes) -> None:
        if len(content) > STATE_READ_SIZE_MAX:
            raise CorruptionError(
                f"{self.path}: a file of {self._size} bytes is no state file; {REMEDY}", path=self.path
            )
        for found in read_records(self.path, content, self._fields, self._always_durable):
            if isinstance(found, CorruptionError):
                raise found
            if isinstance(found, TornRecord):
                self._ignore_tail(found)
            else:
                self._check_marks(found.content)
                self._values.update(found.values)

    @property
    def has_marks(self) -> bool:
        """Whether the file says whose it is."""
        return self._marks_stored

    def _check_marks(self, record: dict[Any, Any]) -> None:
        for key, text in self._marks.items():
            stored = record.get(key, text)
            if stored != text:
                raise ConfigurationError(
                    f"{self.path} holds the data of another cluster or peer: its {key} is {stored!r}, not {text!r}; "
                    "use another data directory, or the id and the secret that it was made with"
                )
        self._marks_stored = self._marks_stored or all(key in record for key in self._marks)

    def _ignore_tail(self, torn: TornRecord) -> None:
        _log.warning(
            "%s: ignoring the bytes from offset %d to %d, a record that was not written completely and never "
            "acknowledged (%s)",
            self.path,
            torn.offset,
            self._size,
            torn.reason,
            extra={"file": self.path, "offset": torn.offset},
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
        data = encode_record(record if self._marks_stored else {**self._marks, **record})
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
        data = encode_record(record)
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
