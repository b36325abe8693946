"""A disk in memory behind `zmqraft.storage.fs`: dirty pages, sectors, unsynced names; slow, failing and full at will.

Knows nothing of logs. The rule: what was not synced may be gone after a power cut, each dirty sector of 512 bytes, each
file's size and each change in a directory by itself; what was synced never is. A sector is written whole or not at all.
When a process is killed nothing is lost: what it wrote is in the page cache.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from random import Random

from zmqraft.storage.fs import FileSystem

__all__ = ["SECTOR_SIZE", "PowerCut", "SimulatedDisk"]

#: What a disk writes whole or not at all.
SECTOR_SIZE = 512


class PowerCut(BaseException):
    """The machine stops in the middle of a call. No code under test may catch it and go on."""


class _File:
    """Content as processes see it, and for each sector that is not durable what is on the disk instead."""

    __slots__ = ("data", "dirty", "durable_size", "lost")

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable_size = 0
        #: Sectors written since the last sync, with their durable content.
        self.dirty: dict[int, bytes] = {}
        #: Sectors that a failed sync has dropped: the page cache shows them, the disk never gets them.
        self.lost: dict[int, bytes] = {}

    @property
    def is_durable(self) -> bool:
        return not self.dirty and not self.lost and self.durable_size == len(self.data)

    def range_is_durable(self, start: int, stop: int) -> bool:
        """Whether the disk has the same there: a sector may be dirty for what is beside it."""
        for sector in range(start // SECTOR_SIZE, -(-stop // SECTOR_SIZE)):
            durable = self.dirty.get(sector, self.lost.get(sector))
            if durable is not None:
                at = sector * SECTOR_SIZE
                low, high = max(start, at), min(stop, at + SECTOR_SIZE)
                if self.data[low:high] != durable.ljust(SECTOR_SIZE, b"\0")[low - at : high - at]:
                    return False
        return True

    def _touch(self, start: int, stop: int) -> None:
        for sector in range(start // SECTOR_SIZE, -(-stop // SECTOR_SIZE)):
            if sector not in self.dirty:
                durable = self.lost.pop(sector, None)
                at = sector * SECTOR_SIZE
                self.dirty[sector] = bytes(self.data[at : at + SECTOR_SIZE]) if durable is None else durable

    def write(self, piece: bytes, offset: int) -> None:
        stop = offset + len(piece)
        if len(self.data) < offset:
            self.resize(offset)
        self._touch(offset, stop)
        self.data[offset:stop] = piece

    def resize(self, size: int) -> None:
        if size < len(self.data):
            self._touch(size, len(self.data))
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def sync(self) -> None:
        self.dirty.clear()
        self.durable_size = len(self.data)

    def fail_sync(self) -> None:
        """The kernel drops the dirty pages, and says so once."""
        self.lost.update(self.dirty)
        self.dirty.clear()

    def after_power_cut(self, random: Random) -> _File:
        file = _File()
        size = random.choice((self.durable_size, len(self.data)))
        data = bytearray(self.data)
        for sector, durable in sorted([*self.dirty.items(), *self.lost.items()]):
            at = sector * SECTOR_SIZE
            is_kept = sector not in self.lost and at < len(self.data) and random.random() < 0.5
            if not is_kept:
                data.extend(bytes(max(at - len(data), 0)))
                data[at : at + SECTOR_SIZE] = durable.ljust(min(SECTOR_SIZE, max(len(data) - at, 0)), b"\0")
        file.data = data[:size].ljust(size, b"\0")
        file.durable_size = size
        return file


class _Directory:
    __slots__ = ("durable", "entries", "pending")

    def __init__(self) -> None:
        self.entries: dict[str, _File | _Directory] = {}
        self.durable: dict[str, _File | _Directory] = {}
        #: Changes since the last sync: a name and what it stands for, or None.
        self.pending: list[tuple[str, _File | _Directory | None]] = []

    def set(self, name: str, node: _File | _Directory | None) -> None:
        if node is None:
            del self.entries[name]
        else:
            self.entries[name] = node
        self.pending.append((name, node))

    def after_power_cut(self, random: Random, copies: dict[int, _File | _Directory]) -> _Directory:
        kept = dict(self.durable)
        for name, node in self.pending:
            if random.random() < 0.5:
                if node is None:
                    kept.pop(name, None)
                else:
                    kept[name] = node
        copy = _Directory()
        for name, node in kept.items():
            if id(node) not in copies:
                copies[id(node)] = (
                    node.after_power_cut(random) if isinstance(node, _File) else node.after_power_cut(random, copies)
                )
            copy.entries[name] = copies[id(node)]
        copy.durable = dict(copy.entries)
        return copy


class SimulatedDisk(FileSystem):
    """One machine's file system.

    Faults are attributes, to be set at any time: ``syncs_to_fail`` (that many syncs fail with EIO, of what has
    ``failing`` in its path), ``is_full`` (files do not grow), ``drops_pages`` (a sync that fails leaves its pages to be
    read, but clean, so that no later one writes them, as on Linux), ``sync_s`` (how long a sync takes, for those who
    schedule it), ``cut_after`` (the machine stops at that many changing calls from now).
    """

    def __init__(self, host: str = "simulated") -> None:
        self.root = _Directory()
        self._handles: dict[int, _File] = {}
        self._paths: dict[int, str] = {}
        self._next_handle = 3
        self._locks: set[str] = set()
        self._lock_handles: dict[int, str] = {}
        self._host = host
        self.wall_seconds = 0.0
        self.syncs_to_fail = 0
        self.failing = ""
        self.drops_pages = False
        self.is_full = False
        self.sync_s = 0.0
        self.cut_after: int | None = None
        #: What of the faults has really happened.
        self.failed_syncs = 0
        self.refused_writes = 0
        self.changes = 0

    # --- faults -------------------------------------------------------------------------------------------------------

    @property
    def is_faulty(self) -> bool:
        """Whether the next write or sync may fail."""
        return self.syncs_to_fail > 0 or self.is_full

    def _change(self) -> None:
        self.changes += 1
        if self.cut_after is not None:
            self.cut_after -= 1
            if self.cut_after < 0:
                self.cut_after = None
                raise PowerCut

    def _grow(self, path: str = "") -> None:
        if self.is_full:
            self.refused_writes += 1
            raise OSError(errno.ENOSPC, "No space left on device", path or None)

    def _sync(self, path: str) -> bool:
        """Whether a sync succeeds."""
        if self.syncs_to_fail > 0 and self.failing in path:
            self.syncs_to_fail -= 1
            self.failed_syncs += 1
            return False
        return True

    def power_cut(self, random: Random) -> None:
        """All processes are gone; of what was not synced some is there and some is not."""
        self.root = self.root.after_power_cut(random, {})
        self.kill()

    def kill(self) -> None:
        """All processes are gone; what they have written is still to be read."""
        self._handles.clear()
        self._paths.clear()
        self._locks.clear()
        self._lock_handles.clear()
        self.cut_after = None

    # --- looking at it ------------------------------------------------------------------------------------------------

    def is_durable(self, path: str, start: int = 0, stop: int | None = None) -> bool:
        """Whether a range of a file, or all of it, and its name are on the disk for certain."""
        node: _File | _Directory = self.root
        for part in _parts(path):
            if not isinstance(node, _Directory):
                return False
            below = node.entries.get(part)
            # Later changes of the same name may yet come true instead.
            if below is None or node.durable.get(part) is not below or any(name == part for name, _ in node.pending):
                return False
            node = below
        if not isinstance(node, _File):
            return False
        if stop is None:
            return node.is_durable
        return stop <= node.durable_size and node.range_is_durable(start, stop)

    def flip(self, path: str, offset: int, bit: int) -> None:
        """Let one bit of a file rot."""
        file = self._file(path)
        file.data[offset] ^= 1 << bit

    def put(self, path: str, offset: int, data: bytes) -> None:
        """Let another program have written a part of a file, durably."""
        file = self._file(path)
        stop = offset + len(data)
        file.write(data, offset)
        for sector in range(offset // SECTOR_SIZE, -(-stop // SECTOR_SIZE)):
            file.dirty.pop(sector, None)
        file.durable_size = max(file.durable_size, stop)

    def cut(self, path: str, size: int) -> None:
        """Let another program have left only so many bytes of a file."""
        file = self._file(path)
        file.resize(size)
        file.sync()

    def digest(self) -> bytes:
        """A hash of everything that processes see."""
        digest = hashlib.blake2b(digest_size=16)
        for path, file in _walk("", self.root):
            digest.update(path.encode() + b"\0" + len(file.data).to_bytes(8, "big") + file.data)
        return digest.digest()

    # --- finding ------------------------------------------------------------------------------------------------------

    def _find(self, path: str) -> _File | _Directory | None:
        node: _File | _Directory | None = self.root
        for part in _parts(path):
            if isinstance(node, _File):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
            node = node.entries.get(part) if node is not None else None
        return node

    def _file(self, path: str) -> _File:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if isinstance(node, _Directory):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if isinstance(node, _File):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
        return node

    def _place(self, path: str) -> tuple[_Directory, str]:
        parent, _, name = path.rstrip("/").rpartition("/")
        return self._directory(parent), name

    def kind(self, path: str) -> str | None:
        node = self._find(path)
        if node is None:
            return None
        return "file" if isinstance(node, _File) else "directory"

    def listdir(self, path: str) -> list[str]:
        return sorted(self._directory(path).entries)

    # --- files --------------------------------------------------------------------------------------------------------

    def open(self, path: str, *, write: bool = False, create: bool = False, truncate: bool = False) -> int:
        node = self._find(path)
        if isinstance(node, _Directory):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        if node is not None and create:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        if node is None:
            if not (create or truncate):
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            self._change()
            self._grow(path)
            node = _File()
            directory, name = self._place(path)
            directory.set(name, node)
        elif truncate:
            self._change()
            node.resize(0)
        self._next_handle += 1
        self._handles[self._next_handle] = node
        self._paths[self._next_handle] = path
        return self._next_handle

    def close(self, handle: int) -> None:
        # Objects of a process that was killed close what they had, late.
        self._handles.pop(handle, None)
        self._paths.pop(handle, None)
        path = self._lock_handles.pop(handle, None)
        if path is not None:
            self._locks.discard(path)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return bytes(self._handles[handle].data[offset : offset + size])

    def pwrite(self, handle: int, data: bytes | memoryview, offset: int) -> None:
        self._change()
        file = self._handles[handle]
        if offset + len(data) > len(file.data):
            self._grow()
        file.write(bytes(data), offset)

    def fdatasync(self, handle: int) -> None:
        self._change()
        file = self._handles[handle]
        if self._sync(self._paths[handle]):
            file.sync()
            return
        if self.drops_pages:
            file.fail_sync()
        raise OSError(errno.EIO, "Input/output error")

    def truncate(self, handle: int, size: int) -> None:
        self._change()
        self._handles[handle].resize(size)

    def allocate(self, handle: int, offset: int, size: int) -> None:
        self._change()
        file = self._handles[handle]
        if offset + size > len(file.data):
            self._grow()
            file.resize(offset + size)

    def size(self, handle: int) -> int:
        return len(self._handles[handle].data)

    # --- directories --------------------------------------------------------------------------------------------------

    def sync_directory(self, path: str) -> None:
        self._change()
        directory = self._directory(path)
        if not self._sync(path):
            raise OSError(errno.EIO, "Input/output error", path)
        directory.durable, directory.pending = dict(directory.entries), []

    def mkdir(self, path: str) -> None:
        self._change()
        directory, name = self._place(path)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self._grow(path)
        directory.set(name, _Directory())

    def rename(self, source: str, target: str) -> None:
        self._change()
        directory, name = self._place(source)
        node = directory.entries.get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", source)
        target_directory, target_name = self._place(target)
        target_directory.set(target_name, node)
        directory.set(name, None)

    def link(self, source: str, target: str) -> None:
        self._change()
        node = self._file(source)
        directory, name = self._place(target)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, "File exists", target)
        directory.set(name, node)

    def unlink(self, path: str) -> None:
        self._change()
        directory, name = self._place(path)
        if name not in directory.entries:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        directory.set(name, None)

    def lock(self, path: str) -> int:
        self._directory(path)
        if path in self._locks:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", path)
        self._locks.add(path)
        self._next_handle += 1
        self._lock_handles[self._next_handle] = path
        return self._next_handle

    def now_seconds(self) -> float:
        return self.wall_seconds

    def host_name(self) -> str:
        return self._host


_PARTS: dict[str, tuple[str, ...]] = {}


def _parts(path: str) -> tuple[str, ...]:
    parts = _PARTS.get(path)
    if parts is None:
        parts = tuple(part for part in PurePosixPath(path).parts if part != "/")
        if len(_PARTS) < 10_000:
            _PARTS[path] = parts
    return parts


def _walk(path: str, directory: _Directory) -> Iterator[tuple[str, _File]]:
    for name, node in sorted(directory.entries.items()):
        if isinstance(node, _File):
            yield f"{path}/{name}", node
        else:
            yield from _walk(f"{path}/{name}", node)
