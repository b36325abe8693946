"""The lock on a data directory: two processes never write one peer's files.

The rule: the lock is taken before any file in the directory is opened, and belongs to the process: when that ends,
however it ends, the lock is free.
"""

from __future__ import annotations

from pathlib import PurePath

from zmqraft.errors import ConfigurationError
from zmqraft.storage.failure import describe
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.log_directory import ensure_directory

__all__ = ["DirectoryLock", "lock_directory"]


class DirectoryLock:
    """Holds a directory until `close`, or until the end of a ``with`` block."""

    def __init__(self, fs: FileSystem, path: str, handle: int) -> None:
        """For `lock_directory` only."""
        self._fs = fs
        self.path = path
        self._handle: int | None = handle

    def close(self) -> None:
        """Give up the lock. May be called twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._fs.close(handle)

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock_directory(path: str | PurePath, *, fs: FileSystem = OS_FILE_SYSTEM) -> DirectoryLock:
    """Lock a data directory for this process; it is made when it is missing.

    Raises ConfigurationError, with the path, when another process holds it, or it cannot be made or opened.
    """
    path = str(PurePath(path))
    try:
        ensure_directory(fs, path)
        return DirectoryLock(fs, path, fs.lock(path))
    except BlockingIOError as error:
        raise ConfigurationError(
            f"the data directory {path} is in use by another process; stop that one, or set another data.path"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"cannot use the data directory {path}: {describe(error)}") from error
