"""The one seam through which every file call of the storage goes.

Knows nothing of logs or formats. The rule: nothing else in `zmqraft.storage` imports os or opens a file (a test reads
the imports), so that a simulated or faulty disk is one object that takes the place of `OsFileSystem`.

Calls raise OSError as the operating system does. Reads and writes are complete: `pwrite` has written everything when it
returns, and `pread` returns less only at the end of the file. Interrupted calls are taken up again by Python itself
(PEP 475). Handles are integers; paths are strings.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from abc import ABC, abstractmethod
from typing import Final

__all__ = ["OS_FILE_SYSTEM", "FileSystem", "OsFileSystem"]

_FULL_SYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)


class FileSystem(ABC):
    """What the storage needs of a file system, and the two facts of the machine that files carry: time and name."""

    @abstractmethod
    def open(self, path: str, *, write: bool = False, create: bool = False, truncate: bool = False) -> int:
        """Open a file to read, or with ``write`` also to write.

        ``create`` makes a new file (FileExistsError if there is one), ``truncate`` makes one or empties what is there.
        """

    @abstractmethod
    def close(self, handle: int) -> None:
        """Close a file, or give up a lock."""

    @abstractmethod
    def pread(self, handle: int, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset``, less only where the file ends."""

    @abstractmethod
    def pwrite(self, handle: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""

    @abstractmethod
    def fdatasync(self, handle: int) -> None:
        """Make the data of the file durable, and what is needed to find it again (its size)."""

    @abstractmethod
    def sync_directory(self, path: str) -> None:
        """Make the entries of the directory durable: files created, renamed, linked and unlinked in it."""

    @abstractmethod
    def truncate(self, handle: int, size: int) -> None:
        """Cut or extend the file to ``size`` bytes."""

    @abstractmethod
    def allocate(self, handle: int, offset: int, size: int) -> None:
        """Reserve the range on the disk, extending the file; new bytes are zero (posix_fallocate)."""

    @abstractmethod
    def size(self, handle: int) -> int:
        """The size of the file in bytes."""

    @abstractmethod
    def kind(self, path: str) -> str | None:
        """``"file"``, ``"directory"`` or ``"other"``; None when there is nothing."""

    @abstractmethod
    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""

    @abstractmethod
    def mkdir(self, path: str) -> None:
        """Make one directory."""

    @abstractmethod
    def rename(self, source: str, target: str) -> None:
        """Rename a file or directory; a file at the target is replaced in one step."""

    @abstractmethod
    def link(self, source: str, target: str) -> None:
        """Give a file a second name."""

    @abstractmethod
    def unlink(self, path: str) -> None:
        """Remove a name of a file."""

    @abstractmethod
    def lock(self, path: str) -> int:
        """Lock a directory for this process until the handle is closed; BlockingIOError when another one holds it."""

    def lock_holder(self, path: str) -> int | None:
        """The id of the process that has locked the directory; None when none is known to. Does not lock it itself."""
        return None

    @abstractmethod
    def now_seconds(self) -> float:
        """The time since the epoch, for the names and the META of files."""

    @abstractmethod
    def host_name(self) -> str:
        """The name of the machine, for the META of files."""


class OsFileSystem(FileSystem):
    """The real one."""

    def open(self, path: str, *, write: bool = False, create: bool = False, truncate: bool = False) -> int:
        flags = os.O_RDWR if write else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        if truncate:
            flags |= os.O_CREAT | os.O_TRUNC
        return os.open(path, flags, 0o666)

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        data = os.pread(handle, size, offset)
        if len(data) in (0, size):
            return data
        parts = [data]
        while data:
            offset += len(data)
            size -= len(data)
            data = os.pread(handle, size, offset)
            parts.append(data)
        return b"".join(parts)

    def pwrite(self, handle: int, data: bytes | memoryview, offset: int) -> None:
        written = os.pwrite(handle, data, offset)
        if written == len(data):
            return
        view = memoryview(data)
        while written < len(view):
            count = os.pwrite(handle, view[written:], offset + written)
            if count == 0:
                raise OSError(errno.EIO, "a write did not get on", f"handle {handle}")
            written += count

    def fdatasync(self, handle: int) -> None:
        if _FULL_SYNC is not None:  # macOS, where fsync leaves the data in the cache of the drive
            fcntl.fcntl(handle, _FULL_SYNC)
        else:
            os.fdatasync(handle)

    def sync_directory(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def allocate(self, handle: int, offset: int, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, offset, size)
        else:
            os.ftruncate(handle, max(offset + size, self.size(handle)))

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def kind(self, path: str) -> str | None:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return None
        if stat.S_ISREG(mode):
            return "file"
        return "directory" if stat.S_ISDIR(mode) else "other"

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def lock(self, path: str) -> int:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stack.pop_all()
        return handle

    def lock_holder(self, path: str) -> int | None:
        # Taking the lock to see whether it is free would be in the way of a peer that starts in this moment.
        status = os.stat(path)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        try:
            with open("/proc/locks", encoding="ascii") as locks:
                lines = [line.split() for line in locks]
        except OSError:  # not on Linux
            return None
        # "1: FLOCK ADVISORY WRITE 4711 08:01:131074 0 EOF"; a line with "->" is of one who waits.
        found = [words for words in lines if words[1:2] == ["FLOCK"] and words[5:6] == [place]]
        return int(found[0][4]) if found else None

    def now_seconds(self) -> float:
        return time.time()

    def host_name(self) -> str:
        return socket.gethostname()


#: The file system of this machine, which is the default everywhere.
OS_FILE_SYSTEM: Final = OsFileSystem()
