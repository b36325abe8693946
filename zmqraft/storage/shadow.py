"""A file system of which only the reading is real: for tools that try what opening a log would do, and change nothing.

Knows nothing of logs. The rule: no call reaches the disk that could change it, or that could disturb who uses it:
what is written stays in memory, and locks and syncs do nothing.
"""

from __future__ import annotations

import errno
from typing import Final

from zmqraft.storage.fs import FileSystem

__all__ = ["ShadowFileSystem"]

_PAGE_SIZE: Final = 4096


class _Shadow:
    """What was written to a file: whole pages, by number, over the first ``kept`` bytes of the real one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept = size
        self.pages: dict[int, bytearray] = {}


class ShadowFileSystem(FileSystem):
    """Shows the files of another file system, with what was written here instead of what is there.

    It does as much as opening a log needs: nothing new can be made (OSError, EROFS), and what was renamed is gone.
    """

    def __init__(self, real: FileSystem) -> None:
        self._real = real
        self._paths: dict[int, str] = {}
        self._shadows: dict[str, _Shadow] = {}
        self._gone: set[str] = set()

    @property
    def changed(self) -> list[str]:
        """The paths of what would have been written to, renamed or removed."""
        return sorted({*self._shadows, *self._gone})

    def open(self, path: str, *, write: bool = False, create: bool = False, truncate: bool = False) -> int:
        if create or truncate:
            raise OSError(errno.EROFS, "nothing is made here", path)
        if path in self._gone:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        handle = self._real.open(path)
        self._paths[handle] = path
        return handle

    def close(self, handle: int) -> None:
        del self._paths[handle]
        self._real.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        shadow = self._shadows.get(self._paths[handle])
        if shadow is None:
            return self._real.pread(handle, size, offset)
        size = max(min(size, shadow.size - offset), 0)
        data = bytearray(self._real.pread(handle, max(min(size, shadow.kept - offset), 0), offset))
        data += bytes(size - len(data))
        for number in range(offset // _PAGE_SIZE, -(-(offset + size) // _PAGE_SIZE)):
            page = shadow.pages.get(number)
            if page is not None:
                start = max(number * _PAGE_SIZE, offset)
                stop = min((number + 1) * _PAGE_SIZE, offset + size)
                data[start - offset : stop - offset] = page[start - number * _PAGE_SIZE : stop - number * _PAGE_SIZE]
        return bytes(data)

    def pwrite(self, handle: int, data: bytes | memoryview, offset: int) -> None:
        shadow = self._shadow(handle)
        view = memoryview(data)
        stop = offset + len(view)
        at = offset
        while at < stop:
            number, within = divmod(at, _PAGE_SIZE)
            page = shadow.pages.get(number)
            if page is None:
                page = bytearray(self.pread(handle, _PAGE_SIZE, number * _PAGE_SIZE).ljust(_PAGE_SIZE, b"\0"))
                shadow.pages[number] = page
            count = min(_PAGE_SIZE - within, stop - at)
            page[within : within + count] = view[at - offset : at - offset + count]
            at += count
        shadow.size = max(shadow.size, stop)

    def truncate(self, handle: int, size: int) -> None:
        shadow = self._shadow(handle)
        shadow.size = size
        shadow.kept = min(shadow.kept, size)
        for number in [number for number in shadow.pages if number * _PAGE_SIZE + _PAGE_SIZE > size]:
            if number * _PAGE_SIZE >= size:
                del shadow.pages[number]
            else:
                within = size - number * _PAGE_SIZE
                shadow.pages[number][within:] = bytes(_PAGE_SIZE - within)

    def _shadow(self, handle: int) -> _Shadow:
        path = self._paths[handle]
        if path not in self._shadows:
            self._shadows[path] = _Shadow(self._real.size(handle))
        return self._shadows[path]

    def size(self, handle: int) -> int:
        shadow = self._shadows.get(self._paths[handle])
        return self._real.size(handle) if shadow is None else shadow.size

    def kind(self, path: str) -> str | None:
        return None if path in self._gone else self._real.kind(path)

    def listdir(self, path: str) -> list[str]:
        return [name for name in self._real.listdir(path) if f"{path}/{name}" not in self._gone]

    def unlink(self, path: str) -> None:
        self._gone.add(path)

    def rename(self, source: str, target: str) -> None:
        self._gone.add(source)

    def fdatasync(self, handle: int) -> None:
        pass

    def sync_directory(self, path: str) -> None:
        pass

    def allocate(self, handle: int, offset: int, size: int) -> None:
        raise OSError(errno.EROFS, "nothing is allocated here", self._paths[handle])

    def mkdir(self, path: str) -> None:
        raise OSError(errno.EROFS, "nothing is made here", path)

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EROFS, "nothing is made here", target)

    def lock(self, path: str) -> int:
        raise OSError(errno.EROFS, "nothing is locked here", path)

    def lock_holder(self, path: str) -> int | None:
        return self._real.lock_holder(path)

    def now_seconds(self) -> float:
        return self._real.now_seconds()

    def host_name(self) -> str:
        return self._real.host_name()
