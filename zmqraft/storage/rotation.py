"""Replacing a file or a directory and keeping the old one under a name with the date: ``snap-2026-11-23-025359-4920``.

Knows nothing of what is in them. The rule: at every moment, and after a crash at any moment, the plain name of a file
stands for the old content or for the new one, complete.
"""

from __future__ import annotations

import errno
import logging
import re
from datetime import datetime, timezone
from pathlib import PurePath
from typing import Final

from zmqraft.constants import ROTATED_FILES_MAX
from zmqraft.storage.failure import describe
from zmqraft.storage.fs import FileSystem

__all__ = ["TEMPORARY_SUFFIX", "keep_copy", "replace_file", "rotate_directory", "rotated_names"]

_log = logging.getLogger(__name__)

#: A file that is being written to take the place of another one is called that with this suffix.
TEMPORARY_SUFFIX: Final = ".tmp"

#: What `link` fails with where a file cannot have two names.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

_COPY_SIZE: Final = 1 << 20

_STAMP: Final = r"-\d{4}-\d{2}-\d{2}-\d{6}-\d{4}"


def _free_name(fs: FileSystem, path: str) -> str:
    """The path with the date (UTC), milliseconds and a digit that is free: of this millisecond, or of a later one."""
    now_ms = int(fs.now_seconds() * 1000)
    attempt = 0
    while True:
        seconds, milliseconds = divmod(now_ms + attempt // 10, 1000)
        date = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d-%H%M%S")
        name = f"{path}-{date}-{milliseconds:03d}{attempt % 10}"
        if fs.kind(name) is None:
            return name
        attempt += 1


def rotated_names(fs: FileSystem, path: str) -> list[str]:
    """The paths of the old ones that were kept of a file or directory, oldest first. Raises OSError."""
    folder, name = PurePath(path).parent, PurePath(path).name
    pattern = re.compile(re.escape(name) + _STAMP)
    return [str(folder / entry) for entry in fs.listdir(str(folder)) if pattern.fullmatch(entry)]


def replace_file(fs: FileSystem, source: str, path: str, *, kept_max: int = ROTATED_FILES_MAX) -> None:
    """Rename ``source``, which is durable, over ``path``, whose file is kept under a rotated name; ``kept_max`` of them
    are kept. Raises OSError.

    The old file gets its second name first, so that ``path`` is never missing. Where the file system has no hard links
    the old file is not kept.
    """
    if kept_max and fs.kind(path) is not None:
        try:
            fs.link(path, _free_name(fs, path))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _log.warning("%s: the old file is not kept, since it cannot be linked: %s", path, describe(error))
    fs.rename(source, path)
    fs.sync_directory(str(PurePath(path).parent))
    _remove_oldest(fs, path, kept_max)


def _remove_oldest(fs: FileSystem, path: str, kept_max: int) -> None:
    """Keep the newest ones. They only take up room: that one cannot be removed is no failure."""
    try:
        names = rotated_names(fs, path)
        for name in names[: max(len(names) - kept_max, 0)]:
            fs.unlink(name)
    except OSError as error:
        _log.warning("cannot remove old files of %s: %s", path, describe(error))


def rotate_directory(fs: FileSystem, path: str) -> str:
    """Give a directory a rotated name and return that; nothing stands under the old name then. Raises OSError."""
    name = _free_name(fs, path)
    fs.rename(path, name)
    fs.sync_directory(str(PurePath(path).parent))
    return name


def keep_copy(fs: FileSystem, path: str, folder: str) -> str:
    """Copy a file into ``folder`` under a rotated name, durably, and return that. Raises OSError."""
    name = _free_name(fs, str(PurePath(folder) / PurePath(path).name))
    temporary = name + TEMPORARY_SUFFIX
    source = fs.open(path)
    try:
        target = fs.open(temporary, write=True, truncate=True)
        try:
            offset = 0
            while piece := fs.pread(source, _COPY_SIZE, offset):
                fs.pwrite(target, piece, offset)
                offset += len(piece)
            fs.fdatasync(target)
        finally:
            fs.close(target)
    finally:
        fs.close(source)
    fs.rename(temporary, name)
    fs.sync_directory(folder)
    return name
