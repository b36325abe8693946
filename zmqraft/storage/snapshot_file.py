"""The snapshot file: what a state machine wrote down of all entries up to an index.

On disk (SPEC section 3, integers least significant byte first)::

    SNAP  28 bytes: version 1, index (8 bytes), term (8 bytes), size of the data (8 bytes)
    META  MessagePack map: created, hostname
    CRCS  8 bytes: version 1, and the CRC32C of all that is before the data, with zeros for this number, and then of
          the 4 bytes of the data's own CRC32C; not in a snapshot that zmq-raft or an early version wrote
    CONF, REQS  the configuration and the request ids at the index, see `snapshot_context`
    ...   segments that this version does not know
    DATA  length 0; the data follows, to the end of the file

All of it is read once when it is opened, and compared with the checksum where there is one. What is read later is
compared with what was read then, or with what was written, block by block, in any case.

Knows nothing of the log. The rule: a snapshot is written under a temporary name and takes its place complete and
durable, or not at all; who still reads the old one goes on reading the old one.
"""

from __future__ import annotations

import contextlib
import struct
import weakref
from array import array
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, Final

from zmqraft.api.snapshot import SnapshotBase, SnapshotContext
from zmqraft.constants import INTEGER_MAX, ROTATED_FILES_MAX
from zmqraft.errors import CorruptionError, StorageError
from zmqraft.storage.checksums import crc32c
from zmqraft.storage.failure import FailStop, describe
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.rotation import TEMPORARY_SUFFIX, replace_file
from zmqraft.storage.snapshot_context import decode_context, encode_context
from zmqraft.storage.token_file import REMEDY, Segment, encode_meta, encode_segment, read_meta, read_segments

__all__ = ["SnapshotFile", "SnapshotWriter"]

_SNAP: Final = b"SNAP"
_DATA: Final = b"DATA"
_CRCS: Final = b"CRCS"
_VERSION: Final = 1
#: Version, index, term, size.
_HEAD: Final = struct.Struct("<IQQQ")
#: Version, checksum.
_CHECKSUM: Final = struct.Struct("<II")
_CRC: Final = struct.Struct("<I")
#: As much is compared at once when a part of the data is read.
_BLOCK_SIZE: Final = 65536
#: As many blocks are read at once when a snapshot is opened.
_BLOCKS_READ: Final = 16
#: How many bytes are written before they are synced, by default.
_SYNC_SIZE: Final = 1 << 18


def _checksum(header: bytes, data_crc: int) -> int:
    """The checksum of a snapshot, from its header without it and the CRC32C of its data."""
    return crc32c(_CRC.pack(data_crc), crc32c(header))


class SnapshotFile(SnapshotBase):
    """A complete snapshot on disk, open for reading until it is closed, or nobody has it any more."""

    def __init__(
        self, fs: FileSystem, path: str, handle: int, index: int, term: int, size: int, data_offset: int
    ) -> None:
        """For `open` only."""
        self._fs = fs
        self.path = path
        self._handle: int | None = handle
        self._closer = weakref.finalize(self, fs.close, handle)
        self._closer.atexit = False
        self._index = index
        self._term = term
        self._size = size
        self.data_offset = data_offset
        self.meta: dict[str, Any] = {}
        self._segments: dict[bytes, Segment] = {}
        #: Whether a checksum was stored, with which all was compared when the snapshot was opened.
        self.has_checksum = False
        # The CRC32C of each block of data as it was when the snapshot was opened.
        self._blocks = array("I")

    @classmethod
    def open(cls, path: str | PurePath, *, fs: FileSystem = OS_FILE_SYSTEM) -> SnapshotFile:
        """Open a snapshot and check all of it. Raises CorruptionError, FileNotFoundError, StorageError."""
        return cls._open(str(path), fs, None)

    @classmethod
    def _open(cls, path: str, fs: FileSystem, written: tuple[array[int], int] | None) -> SnapshotFile:
        """With the checksums of blocks and data that were ``written``, if they are known."""
        try:
            handle = fs.open(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"cannot open the snapshot {path}: {describe(error)}") from error
        try:
            snapshot = cls._read_header(fs, path, handle)
        except BaseException as error:
            fs.close(handle)
            if isinstance(error, OSError):
                raise StorageError(f"cannot read the snapshot {path}: {describe(error)}") from error
            raise
        try:
            snapshot._check_all(written)
        except BaseException as error:
            snapshot.close()
            if isinstance(error, OSError):
                raise StorageError(f"cannot read the snapshot {path}: {describe(error)}") from error
            raise
        return snapshot

    @classmethod
    def peek(cls, path: str | PurePath, *, fs: FileSystem = OS_FILE_SYSTEM) -> tuple[int, int, int]:
        """Index, term and size of a snapshot, from its header alone. Raises as `open`, and OSError."""
        path = str(path)
        handle = fs.open(path)
        try:
            snapshot = cls._read_header(fs, path, handle)
        except BaseException:
            fs.close(handle)
            raise
        with contextlib.closing(snapshot):
            return snapshot.index, snapshot.term, snapshot.size

    @classmethod
    def _read_header(cls, fs: FileSystem, path: str, handle: int) -> SnapshotFile:
        segments = read_segments(fs, handle, path, _SNAP, _DATA)
        head = segments[_SNAP]
        if head.length < _HEAD.size:
            raise CorruptionError(
                f"{path}: the length {head.length} at offset 4 is below {_HEAD.size}; {REMEDY}", path=path, offset=4
            )
        version, index, term, size = _HEAD.unpack(fs.pread(handle, _HEAD.size, head.offset))
        if version != _VERSION:
            raise CorruptionError(
                f"{path}: version {version} at offset 8, where {_VERSION} is known; {REMEDY}", path=path, offset=8
            )
        if max(index, term, size) > INTEGER_MAX:
            raise CorruptionError(
                f"{path}: index {index}, term {term} or size {size} is out of range; {REMEDY}", path=path, offset=12
            )
        data_offset, file_size = segments[_DATA].offset, fs.size(handle)
        if file_size != data_offset + size:
            raise CorruptionError(
                f"{path}: the file has {file_size} bytes where {data_offset + size} are expected, "
                f"{size} of data from offset {data_offset}; {REMEDY}",
                path=path,
                offset=min(file_size, data_offset + size),
            )
        snapshot = cls(fs, path, handle, index, term, size, data_offset)
        snapshot._segments = segments
        return snapshot

    def _check_all(self, written: tuple[array[int], int] | None) -> None:
        self.meta = read_meta(self._fs, self._open_handle(), self._segments)
        if written is None:
            data_crc = self._read_blocks()
        else:
            self._blocks, data_crc = written
        segment = self._segments.get(_CRCS)
        if segment is not None and segment.length == _CHECKSUM.size:
            self._check(segment.offset, data_crc)
        # So that a damaged one is found now.
        decode_context(self.path, self._segments, self._read_segment)

    def _read_segment(self, size: int, offset: int) -> bytes:
        return self._fs.pread(self._open_handle(), size, offset)

    def _read_blocks(self) -> int:
        """Read all data, note the checksum of each block, and give that of all."""
        data_crc = offset = 0
        while offset < self._size:
            data = memoryview(self._read(offset, min(_BLOCKS_READ * _BLOCK_SIZE, self._size - offset)))
            data_crc = crc32c(data, data_crc)
            self._blocks.extend(crc32c(data[at : at + _BLOCK_SIZE]) for at in range(0, len(data), _BLOCK_SIZE))
            offset += len(data)
        return data_crc

    def _check(self, offset: int, data_crc: int) -> None:
        """Compare the snapshot with its checksum, the segment of which begins at an offset."""
        header = bytearray(self._fs.pread(self._open_handle(), self.data_offset, 0))
        version, stored = _CHECKSUM.unpack_from(header, offset)
        self.has_checksum = version == _VERSION
        _CHECKSUM.pack_into(header, offset, version, 0)
        if version == _VERSION and stored != _checksum(bytes(header), data_crc):
            raise CorruptionError(
                f"{self.path}: the snapshot of index {self._index} does not match its checksum, stored at "
                f"{offset + _CRC.size}; {REMEDY}",
                path=self.path,
                offset=offset + _CRC.size,
            )

    @classmethod
    def create(
        cls,
        path: str | PurePath,
        index: int,
        term: int,
        chunks: Iterable[bytes] = (),
        *,
        fs: FileSystem = OS_FILE_SYSTEM,
    ) -> SnapshotFile:
        """Write a snapshot from chunks of data, of any sizes, and put it in its place. As `SnapshotWriter`."""
        with SnapshotWriter(path, index, term, fs=fs) as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.finish()

    @property
    def context(self) -> SnapshotContext:
        try:
            return decode_context(self.path, self._segments, self._read_segment)
        except OSError as error:
            raise StorageError(f"cannot read the snapshot {self.path}: {describe(error)}") from error

    @property
    def index(self) -> int:
        return self._index

    @property
    def term(self) -> int:
        return self._term

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        wanted = min(size, self._size - offset)
        if wanted <= 0:
            return b""
        first = offset // _BLOCK_SIZE
        stop = -(-(offset + wanted) // _BLOCK_SIZE)
        start = first * _BLOCK_SIZE
        try:
            data = self._read(start, min(stop * _BLOCK_SIZE, self._size) - start)
        except OSError as error:
            raise StorageError(f"cannot read the snapshot {self.path}: {describe(error)}") from error
        view = memoryview(data)
        for block in range(first, stop):
            at = block * _BLOCK_SIZE - start
            if crc32c(view[at : at + _BLOCK_SIZE]) != self._blocks[block]:
                raise CorruptionError(
                    f"{self.path}: the data from offset {self.data_offset + start + at} on, of the snapshot of index "
                    f"{self._index}, has changed since it was opened; {REMEDY}",
                    path=self.path,
                    offset=self.data_offset + start + at,
                )
        return data if wanted == len(data) else data[offset - start : offset - start + wanted]

    def _read(self, offset: int, size: int) -> bytes:
        """Data that is there. CorruptionError when the file was cut since it was opened, OSError."""
        data = self._fs.pread(self._open_handle(), size, self.data_offset + offset)
        if len(data) != size:
            raise CorruptionError(
                f"{self.path}: the file ends at {self.data_offset + offset + len(data)}, before the end of its data at "
                f"{self.data_offset + self._size}; {REMEDY}",
                path=self.path,
                offset=self.data_offset + offset + len(data),
            )
        return data

    def _open_handle(self) -> int:
        if self._handle is None:
            raise StorageError(f"the snapshot {self.path} is closed")
        return self._handle

    def close(self) -> None:
        self._handle = None
        self._closer()

    def __repr__(self) -> str:
        return f"<SnapshotFile {self.path} of index {self._index}, term {self._term}, {self._size} bytes>"


class SnapshotWriter(FailStop):
    """Writes a snapshot piece by piece under a temporary name; `finish` puts it in its place.

    Leaving the ``with`` block without `finish` takes the temporary file away. What an earlier writer left there
    after a crash is overwritten. Every method raises StorageFailedError when a write or sync failed.
    """

    def __init__(
        self,
        path: str | PurePath,
        index: int,
        term: int,
        *,
        fs: FileSystem = OS_FILE_SYSTEM,
        context: SnapshotContext | None = None,
        extensions: bytes = b"",
        kept_max: int = ROTATED_FILES_MAX,
        sync_size: int = _SYNC_SIZE,
    ) -> None:
        """Begin a snapshot for ``path``, with what is to travel with it.

        ``extensions`` are further segments for its header, encoded. A snapshot that is there already is kept under a
        rotated name, and ``kept_max`` in all. ``sync_size`` bytes are written at once, and made durable before more
        are: so nobody who syncs another file meanwhile, the log that is, waits for more than that.
        """
        self._path = str(path)
        self._temporary_path = self._path + TEMPORARY_SUFFIX
        super().__init__(f"the snapshot {self._temporary_path}")
        if not (0 <= index <= INTEGER_MAX and 0 <= term <= INTEGER_MAX):
            raise ValueError(f"no snapshot has index {index} and term {term}")
        self._fs = fs
        self.index = index
        self.term = term
        self._kept_max = kept_max
        #: The number of bytes of data written so far.
        self.size = 0
        self._synced_size = 0
        self._sync_size = sync_size
        self._handle: int | None = None
        self._meta = encode_meta(fs)
        self._rest = b"".join((encode_context(context or SnapshotContext()), extensions, encode_segment(_DATA)))
        self._data_crc = 0
        self._blocks = array("I")
        header = self._front(0) + self._rest
        self._data_offset = len(header)
        with self.writing("create it"):
            self._handle = fs.open(self._temporary_path, write=True, truncate=True)
            try:
                fs.pwrite(self._handle, header, 0)
            except BaseException:
                self._close()
                raise

    def _front(self, checksum: int) -> bytes:
        """What is in front of the context: the part of the header that is only known in the end."""
        head = encode_segment(_SNAP, _HEAD.pack(_VERSION, self.index, self.term, self.size))
        return b"".join((head, self._meta, encode_segment(_CRCS, _CHECKSUM.pack(_VERSION, checksum))))

    def _open_handle(self) -> int:
        if self._handle is None:
            raise StorageError(f"the snapshot {self._path} is already finished or given up")
        return self._handle

    def write(self, chunk: bytes | memoryview) -> None:
        """Add data behind that written so far, of any size: it is written and synced in bounded pieces."""
        handle = self._open_handle()
        view = memoryview(chunk).cast("B")
        for start in range(0, len(view), self._sync_size):
            piece = view[start : start + self._sync_size]
            with self.writing("write"):
                self._fs.pwrite(handle, piece, self._data_offset + self.size)
                self.size += len(piece)
                if self.size - self._synced_size >= self._sync_size:
                    self._fs.fdatasync(handle)
                    self._synced_size = self.size
            self._note(piece)

    def _note(self, piece: memoryview) -> None:
        """Keep the checksums of what was written last."""
        self._data_crc = crc32c(piece, self._data_crc)
        at = self.size - len(piece)
        start = 0
        while start < len(piece):
            stop = min(start + _BLOCK_SIZE - (at + start) % _BLOCK_SIZE, len(piece))
            if (at + start) % _BLOCK_SIZE:
                self._blocks[-1] = crc32c(piece[start:stop], self._blocks[-1])
            else:
                self._blocks.append(crc32c(piece[start:stop]))
            start = stop

    def finish(self) -> SnapshotFile:
        """Make the snapshot durable and let it take its place.

        Returns it; what is read of it later is compared with what was written.
        """
        handle = self._open_handle()
        with self.writing("finish it"):
            self._fs.pwrite(handle, self._front(_checksum(self._front(0) + self._rest, self._data_crc)), 0)
            self._fs.fdatasync(handle)
            self._close()
            replace_file(self._fs, self._temporary_path, self._path, kept_max=self._kept_max)
        return SnapshotFile._open(self._path, self._fs, (self._blocks, self._data_crc))

    def abort(self) -> None:
        """Give up and take the temporary file away. Nothing happens when the snapshot is finished."""
        if self._handle is not None:
            self._close()
            try:
                self._fs.unlink(self._temporary_path)
            except OSError as error:
                self.fail(error)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._fs.close(handle)

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
