"""File systems for tests: one that watches and fails another, and a disk in memory that can crash.

`ProbeFileSystem` records the calls that change something and raises an error at one of them. `MemoryDisk` knows, for
each file and directory, what is durable and what a crash may take away.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from random import Random
from typing import Any

from zmqraft.storage import FileSystem

__all__ = ["MUTATING_CALLS", "SECTOR_SIZE", "Crash", "MemoryDisk", "ProbeFileSystem", "Unsynced"]

#: What a disk writes whole or not at all.
SECTOR_SIZE = 512

MUTATING_CALLS = frozenset(
    {"pwrite", "fdatasync", "sync_directory", "truncate", "allocate", "mkdir", "rename", "link", "unlink", "create"}
)


class Crash(BaseException):
    """The machine stops. No code under test may catch it and go on."""


class ProbeFileSystem(FileSystem):
    """Passes calls on to another file system.

    ``events`` holds ``(call, path)`` of each call that changes something, and ``(call, path, data, offset)`` of
    writes; ``fail_at`` is the number of the call (the first is 0) at which ``error`` is raised instead; ``fail_call``
    the name of calls at which it always is.
    """

    def __init__(self, inner: FileSystem) -> None:
        self.inner = inner
        self.events: list[tuple[Any, ...]] = []
        self.fail_at: int | None = None
        self.fail_call: str | None = None
        self.error: Callable[[], BaseException] = lambda: OSError(errno.EIO, "Input/output error")
        self.failed = 0
        self.open_paths: dict[int, str] = {}
        self.open_max = 0
        #: The handle of the last write.
        self.written_handle = -1

    def calls(self) -> list[tuple[Any, ...]]:
        """The events without the data of writes."""
        return [event[:2] for event in self.events]

    def _change(self, call: str, path: str, *details: Any) -> None:
        number = len(self.events)
        self.events.append((call, path, *details))
        # A machine that has stopped does nothing more, whatever is cleaned up behind the exception.
        has_stopped = self.failed and self.error is Crash
        if number == self.fail_at or call == self.fail_call or has_stopped:
            self.failed += 1
            raise self.error()

    def open(self, path: str, *, write: bool = False, create: bool = False, truncate: bool = False) -> int:
        if create or (truncate and self.inner.kind(path) is None):
            self._change("create", path)
        elif truncate:
            self._change("truncate", path)
        handle = self.inner.open(path, write=write, create=create, truncate=truncate)
        self.open_paths[handle] = path
        self.open_max = max(self.open_max, len(self.open_paths))
        return handle

    def close(self, handle: int) -> None:
        del self.open_paths[handle]
        self.inner.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return self.inner.pread(handle, size, offset)

    def pwrite(self, handle: int, data: bytes | memoryview, offset: int) -> None:
        self.written_handle = handle
        self._change("pwrite", self.open_paths[handle], bytes(data), offset)
        self.inner.pwrite(handle, data, offset)

    def fdatasync(self, handle: int) -> None:
        self._change("fdatasync", self.open_paths[handle])
        self.inner.fdatasync(handle)

    def sync_directory(self, path: str) -> None:
        self._change("sync_directory", path)
        self.inner.sync_directory(path)

    def truncate(self, handle: int, size: int) -> None:
        self._change("truncate", self.open_paths[handle], size)
        self.inner.truncate(handle, size)

    def allocate(self, handle: int, offset: int, size: int) -> None:
        self._change("allocate", self.open_paths[handle], offset, size)
        self.inner.allocate(handle, offset, size)

    def size(self, handle: int) -> int:
        return self.inner.size(handle)

    def kind(self, path: str) -> str | None:
        return self.inner.kind(path)

    def listdir(self, path: str) -> list[str]:
        return self.inner.listdir(path)

    def mkdir(self, path: str) -> None:
        self._change("mkdir", path)
        self.inner.mkdir(path)

    def rename(self, source: str, target: str) -> None:
        self._change("rename", source, target)
        self.inner.rename(source, target)

    def link(self, source: str, target: str) -> None:
        self._change("link", source, target)
        self.inner.link(source, target)

    def unlink(self, path: str) -> None:
        self._change("unlink", path)
        self.inner.unlink(path)

    def lock(self, path: str) -> int:
        handle = self.inner.lock(path)
        self.open_paths[handle] = path
        return handle

    def now_seconds(self) -> float:
        return self.inner.now_seconds()

    def host_name(self) -> str:
        return self.inner.host_name()


@dataclass
class _File:
    #: The content; behind it, up to the size, there are zeros.
    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    #: What is there after a crash for certain, and the changes since, in order: writes, and new sizes (None).
    durable: bytes = b""
    durable_size: int = 0
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, offset: int, piece: bytes | None) -> None:
        self.size = _change(self.data, self.size, offset, piece)

    def sync(self) -> None:
        self.durable, self.durable_size, self.pending = bytes(self.data), self.size, []


@dataclass
class _Directory:
    entries: dict[str, _File | _Directory] = field(default_factory=dict)
    #: What is there after a crash for certain, and the changes since: a name and what it stands for, or None.
    durable: dict[str, _File | _Directory] = field(default_factory=dict)
    pending: list[tuple[str, _File | _Directory | None]] = field(default_factory=list)

    def set(self, name: str, node: _File | _Directory | None) -> None:
        if node is None:
            del self.entries[name]
        else:
            self.entries[name] = node
        self.pending.append((name, node))


class MemoryDisk(FileSystem):
    """A disk in memory. `crash` gives the disk as it may be found afterwards. Time stands still."""

    def __init__(self) -> None:
        self.root = _Directory()
        self._handles: dict[int, _File] = {}
        self._closed: dict[int, _File] = {}
        self._next_handle = 3
        self.now = 1_700_000_000.0

    # --- finding ------------------------------------------------------------------------------------------------

    def _parts(self, path: str) -> tuple[str, ...]:
        parts = PurePath(path).parts
        return parts[1:] if parts[:1] == ("/",) else parts

    def _find(self, path: str) -> _File | _Directory | None:
        node: _File | _Directory | None = self.root
        for part in self._parts(path):
            if isinstance(node, _File):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
            node = node.entries.get(part) if node is not None else None
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if isinstance(node, _File):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
        return node

    def _place(self, path: str) -> tuple[_Directory, str]:
        return self._directory(str(PurePath(path).parent)), PurePath(path).name

    def kind(self, path: str) -> str | None:
        node = self._find(path)
        if node is None:
            return None
        return "file" if isinstance(node, _File) else "directory"

    def listdir(self, path: str) -> list[str]:
        return sorted(self._directory(path).entries)

    # --- files ----------------------------------------------------------------------------------------------------

    def open(self, path: str, *, write: bool = False, create: bool = False, truncate: bool = False) -> int:
        node = self._find(path)
        if isinstance(node, _Directory):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        if node is not None and create:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        if node is None and not (create or truncate):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        if node is None:
            node = _File()
            directory, name = self._place(path)
            directory.set(name, node)
        elif truncate:
            # As if emptied durably at once: harsher than a real disk, which may still have the old content.
            node.data, node.size = bytearray(), 0
            node.sync()
        self._next_handle += 1
        self._handles[self._next_handle] = node
        return self._next_handle

    def close(self, handle: int) -> None:
        self._closed[handle] = self._handles.pop(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        file = self._handles[handle]
        data = bytes(file.data[offset : offset + size])
        return data + bytes(max(min(size, file.size - offset) - len(data), 0))

    def pwrite(self, handle: int, data: bytes | memoryview, offset: int) -> None:
        self._change(handle, offset, bytes(data))

    def fdatasync(self, handle: int) -> None:
        self._handles[handle].sync()

    def truncate(self, handle: int, size: int) -> None:
        self._change(handle, size, None)

    def allocate(self, handle: int, offset: int, size: int) -> None:
        if offset + size > self.size(handle):
            self._change(handle, offset + size, None)

    def _change(self, handle: int, offset: int, piece: bytes | None) -> None:
        file = self._handles[handle]
        file.change(offset, piece)
        file.pending.append((offset, piece))

    def size(self, handle: int) -> int:
        return self._handles[handle].size

    # --- directories ----------------------------------------------------------------------------------------------

    def sync_directory(self, path: str) -> None:
        directory = self._directory(path)
        directory.durable, directory.pending = dict(directory.entries), []

    def mkdir(self, path: str) -> None:
        directory, name = self._place(path)
        if name in directory.entries:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        directory.set(name, _Directory())

    def rename(self, source: str, target: str) -> None:
        directory, name = self._place(source)
        node = directory.entries[name]
        target_directory, target_name = self._place(target)
        target_directory.set(target_name, node)
        directory.set(name, None)

    def link(self, source: str, target: str) -> None:
        directory, name = self._place(source)
        target_directory, target_name = self._place(target)
        target_directory.set(target_name, directory.entries[name])

    def unlink(self, path: str) -> None:
        directory, name = self._place(path)
        directory.set(name, None)

    def lock(self, path: str) -> int:
        self._directory(path)
        self._next_handle += 1
        self._handles[self._next_handle] = _File()
        return self._next_handle

    def now_seconds(self) -> float:
        return self.now

    def host_name(self) -> str:
        return "memory"

    # --- crashing -------------------------------------------------------------------------------------------------

    def write_late(self, handle: int, data: bytes, offset: int) -> None:
        """A part of a write that was cut off: its file may be closed by now."""
        file = self._handles.get(handle) or self._closed[handle]
        file.change(offset, data)
        file.pending.append((offset, data))

    def unsynced(self) -> list[Unsynced]:
        """All that a crash may keep or lose now."""
        return [item for node in _nodes(self.root, {}).values() for item in _unsynced(node)]

    def crash_with(self, kept: Collection[Unsynced]) -> MemoryDisk:
        """The disk after a crash that keeps, of what is not synced, exactly this."""
        disk = MemoryDisk()
        disk.now = self.now
        disk.root = _directory_with(self.root, kept, {})
        return disk

    def crash(self, random: Random | None = None) -> MemoryDisk:
        """The disk after a power cut: without ``random`` only what was synced is there.

        With it, of the writes to a file since its last sync some first ones are there as well, and of the changes in a
        directory since its last sync any.
        """
        disk = MemoryDisk()
        disk.now = self.now
        copies: dict[int, _File | _Directory] = {}
        disk.root = _survivor(self.root, random, copies)
        return disk


@dataclass(frozen=True)
class Unsynced:
    """Something that a crash may keep or lose by itself: a sector of a file, its size, or a change in a directory."""

    node: _File | _Directory
    #: The number of the sector or of the change; -1 for the size.
    number: int

    def __hash__(self) -> int:
        return hash((id(self.node), self.number))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unsynced) and other.node is self.node and other.number == self.number


def _nodes(directory: _Directory, found: dict[int, _File | _Directory]) -> dict[int, _File | _Directory]:
    """All that is, or after a crash may be, below a directory."""
    found[id(directory)] = directory
    below = [*directory.durable.values(), *directory.entries.values()]
    for node in [*below, *(node for _, node in directory.pending if node is not None)]:
        if id(node) not in found:
            if isinstance(node, _Directory):
                _nodes(node, found)
            else:
                found[id(node)] = node
    return found


def _unsynced(node: _File | _Directory) -> Iterator[Unsynced]:
    if isinstance(node, _Directory):
        yield from (Unsynced(node, number) for number in range(len(node.pending)))
        return
    if node.size != node.durable_size:
        yield Unsynced(node, -1)
    if node.pending:
        for number in range(-(-min(len(node.data), node.size) // SECTOR_SIZE)):
            now, before = (_sector(data, number) for data in (node.data, node.durable))
            if now != before:
                yield Unsynced(node, number)


def _sector(data: bytes | bytearray, number: int) -> bytes:
    return bytes(data[number * SECTOR_SIZE : (number + 1) * SECTOR_SIZE]).ljust(SECTOR_SIZE, b"\0")


def _file_with(file: _File, kept: Collection[Unsynced]) -> _File:
    data = bytearray(file.durable)
    size = file.size if Unsynced(file, -1) in kept else file.durable_size
    for item in kept:
        if item.node is file and item.number >= 0:
            _change(data, 0, item.number * SECTOR_SIZE, _sector(file.data, item.number))
    del data[size:]
    survivor = _File(data, size)
    survivor.sync()
    return survivor


def _directory_with(
    directory: _Directory, kept: Collection[Unsynced], copies: dict[int, _File | _Directory]
) -> _Directory:
    entries = dict(directory.durable)
    for number, (name, node) in enumerate(directory.pending):
        if Unsynced(directory, number) in kept:
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node
    copy = _Directory()
    for name, node in entries.items():
        if id(node) not in copies:
            is_file = isinstance(node, _File)
            copies[id(node)] = _file_with(node, kept) if is_file else _directory_with(node, kept, copies)
        copy.entries[name] = copies[id(node)]
    copy.durable = dict(copy.entries)
    return copy


def _change(data: bytearray, size: int, offset: int, piece: bytes | None) -> int:
    """Write a piece, or set the size where there is None; the size afterwards."""
    if piece is None:
        del data[offset:]
        return offset
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece
    return max(size, offset + len(piece))


def _survivor(directory: _Directory, random: Random | None, copies: dict[int, _File | _Directory]) -> _Directory:
    entries = dict(directory.durable)
    for name, node in directory.pending if random is not None else ():
        assert random is not None
        if random.random() < 0.5:
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node
    copy = _Directory()
    for name, node in entries.items():
        if id(node) not in copies:
            copies[id(node)] = (
                _survivor(node, random, copies) if isinstance(node, _Directory) else _file_survivor(node, random)
            )
        copy.entries[name] = copies[id(node)]
    copy.durable = dict(copy.entries)
    return copy


def _file_survivor(file: _File, random: Random | None) -> _File:
    survivor = _File(bytearray(file.durable), file.durable_size)
    kept = random.randint(0, len(file.pending)) if random is not None else 0
    for offset, piece in file.pending[:kept]:
        survivor.change(offset, piece)
    survivor.sync()
    return survivor
