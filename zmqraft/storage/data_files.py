"""What a path is: a data directory, a log, or one of the files in them; and what the files' headers say.

Knows nothing of entries. The rule: nothing is written, made or locked; and what a file is, its content says before its
name does, so that a file can be looked at wherever it was copied to.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, NamedTuple

from zmqraft.errors import CorruptionError, StorageError
from zmqraft.protocol.request_id import request_id_to_base64
from zmqraft.storage.failure import describe
from zmqraft.storage.fs import FileSystem
from zmqraft.storage.index_file import INDEX_FILE_SUFFIX, IndexFile
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.storage.raft_persistence import read_state_file
from zmqraft.storage.snapshot_file import SnapshotFile
from zmqraft.storage.state_records import STATE_READ_SIZE_MAX, TornRecord
from zmqraft.storage.token_file import REMEDY, read_segments

__all__ = ["DataFile", "Facts", "Kind", "data_files", "facts_of", "kind_of", "problem_of", "read_state"]

#: The names in a data directory.
_LOG: Final = "log"
_SNAPSHOT: Final = "snap"
_STATES: Final = ("raft.pers", "state.pers")

#: The first and the last token of a header.
_TOKENS: Final = {b"RLOG": b"ITMZ", b"SNAP": b"DATA"}


class Kind(Enum):
    """What a path is."""

    DATA = "data directory"
    LOG = "log"
    INDEX = "index file"
    SNAPSHOT = "snapshot"
    STATE = "state file"


class DataFile(NamedTuple):
    """A file of a peer. ``first_index`` is, for an index file that lies in a log, that of its name."""

    kind: Kind
    path: str
    first_index: int | None = None


class Facts(NamedTuple):
    """What the header of a file says, by names as in JSON, and what is wrong with it, if anything is."""

    values: dict[str, Any]
    error: CorruptionError | None = None


def kind_of(fs: FileSystem, path: str) -> Kind:
    """What there is at a path. Raises StorageError when it is nothing of a peer's, or cannot be read."""
    try:
        kind = fs.kind(path)
        if kind == "directory":
            return _kind_of_directory(fs, path)
        if kind is None:
            raise StorageError(f"{path}: no such file or directory")
        if kind != "file":
            raise StorageError(f"{path}: neither a file nor a directory")
        return _kind_of_file(fs, path)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {describe(error)}") from error


def _kind_of_directory(fs: FileSystem, path: str) -> Kind:
    if any(fs.kind(f"{path}/{name}") == "file" for name in (_SNAPSHOT, *_STATES)):
        return Kind.DATA
    if fs.kind(f"{path}/{_LOG}") == "directory":
        return Kind.DATA
    if LogDirectory(fs, path).index_files():
        return Kind.LOG
    raise StorageError(
        f"{path}: no data directory: none of {', '.join((*_STATES, _SNAPSHOT))} and {_LOG}/ is in it; "
        "name that of one peer (with data.appendIdToPath, the directory called as its id)"
    )


def _kind_of_file(fs: FileSystem, path: str) -> Kind:
    handle = fs.open(path)
    try:
        start = fs.pread(handle, 4, 0)
    finally:
        fs.close(handle)
    name = PurePath(path).name
    if start == b"RLOG":
        return Kind.INDEX
    if start == b"SNAP":
        return Kind.SNAPSHOT
    if name.endswith(INDEX_FILE_SUFFIX):
        return Kind.INDEX
    if ".pers" in name:
        return Kind.STATE
    if name.startswith(_SNAPSHOT):
        return Kind.SNAPSHOT
    # A map of MessagePack.
    if start and (start[0] & 0xF0 == 0x80 or start[0] in (0xDE, 0xDF)):
        return Kind.STATE
    raise StorageError(f"{path}: no index file, snapshot or state file: it begins with {start!r}")


def data_files(fs: FileSystem, path: str) -> Iterator[DataFile]:
    """The files at a path, of any kind, in the order: snapshot, log, state. Raises CorruptionError, StorageError."""
    kind = kind_of(fs, path)
    if kind is Kind.LOG:
        yield from _index_files(fs, path)
    elif kind is Kind.DATA:
        if fs.kind(f"{path}/{_SNAPSHOT}") == "file":
            yield DataFile(Kind.SNAPSHOT, f"{path}/{_SNAPSHOT}")
        yield from _index_files(fs, f"{path}/{_LOG}")
        for name in _STATES:
            if fs.kind(f"{path}/{name}") == "file":
                yield DataFile(Kind.STATE, f"{path}/{name}")
    else:
        yield DataFile(kind, path)


def _index_files(fs: FileSystem, path: str) -> Iterator[DataFile]:
    try:
        for first_index, file in LogDirectory(fs, path).index_files():
            yield DataFile(Kind.INDEX, file, first_index)
    except OSError as error:
        raise StorageError(f"cannot read the log {path}: {describe(error)}") from error


def problem_of(error: CorruptionError) -> str:
    """What is wrong, without the path and the remedy."""
    return str(error).removeprefix(f"{error.path}: ").removesuffix(f"; {REMEDY}")


def facts_of(fs: FileSystem, file: DataFile) -> Facts:
    """What the header of a file says; for a state file, the values in it. StorageError when it cannot be read."""
    try:
        if file.kind is Kind.INDEX:
            return _index_facts(fs, file.path)
        if file.kind is Kind.SNAPSHOT:
            return _snapshot_facts(fs, file.path)
        return _state_facts(fs, file.path)
    except OSError as error:
        raise StorageError(f"cannot read {file.path}: {describe(error)}") from error


def _index_facts(fs: FileSystem, path: str) -> Facts:
    try:
        file = IndexFile.open(path, fs=fs, writable=False, tolerant=True)
    except CorruptionError as error:
        return Facts(_size_and_segments(fs, path), error)
    try:
        record = file.record
        values = {
            "firstIndex": file.first_index,
            "lastIndex": file.last_index,
            "entries": file.count,
            "capacity": file.capacity,
            "dataOffset": file.data_offset,
            "dataSize": file.data_size,
            "checksums": file.has_checksums,
            "state": record.state.name.lower() if record is not None else None,
            "changedByOthers": file.changed_by_others,
            "leftovers": file.leftover_count,
            "meta": file.meta,
        }
        return Facts({**values, **_size_and_segments(fs, path)}, file.table_error)
    finally:
        file.close()


def _snapshot_facts(fs: FileSystem, path: str) -> Facts:
    try:
        snapshot = SnapshotFile.open(path, fs=fs)
    except CorruptionError as error:
        return Facts(_size_and_segments(fs, path), error)
    except FileNotFoundError:
        raise StorageError(f"{path}: no such file or directory") from None
    try:
        values = {
            "index": snapshot.index,
            "term": snapshot.term,
            "dataOffset": snapshot.data_offset,
            "dataSize": snapshot.size,
            "checksums": snapshot.has_checksum,
            "meta": snapshot.meta,
        }
        return Facts({**values, **_size_and_segments(fs, path)})
    finally:
        snapshot.close()


def _size_and_segments(fs: FileSystem, path: str) -> dict[str, Any]:
    """The size of a file, and where the segments of its header are, as far as it can be read."""
    handle = fs.open(path)
    try:
        values: dict[str, Any] = {"fileSize": fs.size(handle)}
        first = fs.pread(handle, 4, 0)
        if first in _TOKENS:
            segments = read_segments(fs, handle, path, first, _TOKENS[first])
            values["segments"] = [
                {"token": token.decode("latin-1"), "offset": segment.offset, "size": segment.length}
                for token, segment in segments.items()
            ]
    except CorruptionError:
        pass
    finally:
        fs.close(handle)
    return values


def read_state(fs: FileSystem, path: str) -> bytes:
    """The content of a state file. Raises CorruptionError for one that is too large to be one, OSError."""
    handle = fs.open(path)
    try:
        content = fs.pread(handle, STATE_READ_SIZE_MAX + 1, 0)
        if len(content) > STATE_READ_SIZE_MAX:
            raise CorruptionError(f"{path}: a file of {fs.size(handle)} bytes is no state file; {REMEDY}", path=path)
        return content
    finally:
        fs.close(handle)


def _state_facts(fs: FileSystem, path: str) -> Facts:
    values: dict[str, Any] = {}
    records = unproved = 0
    torn_at: int | None = None
    error: CorruptionError | None = None
    try:
        content = read_state(fs, path)
    except CorruptionError as too_large:
        return Facts({}, too_large)
    for found in read_state_file(path, content):
        if isinstance(found, CorruptionError):
            error = error or found
        elif isinstance(found, TornRecord):
            torn_at = found.offset
        else:
            records += 1
            unproved += not found.has_checksum
            # Those of other keys say whose file it is; `crc32c` says nothing here.
            texts = {key: value for key, value in found.content.items() if isinstance(value, str)}
            values.update({**texts, **found.values})
    request_id = values.get("peersUpdateRequest")
    if isinstance(request_id, bytes):
        values["peersUpdateRequest"] = request_id_to_base64(request_id)
    counts = {"records": records, "checksums": not unproved, "tornAt": torn_at, "fileSize": len(content)}
    return Facts({**values, **counts}, error)
