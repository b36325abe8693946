"""The directory of a log: which index files are there, and how files come into and go out of it durably.

Knows nothing of entries. The rule: a name is synced in its directory, and every new directory in its parent, before
anything counts on it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Final

from zmqraft.errors import CorruptionError
from zmqraft.storage.fs import FileSystem
from zmqraft.storage.index_file import INDEX_FILE_SUFFIX, IndexFile, index_file_name
from zmqraft.storage.token_file import REMEDY

__all__ = ["LogDirectory", "ensure_directory"]

_FOLDER_PATTERNS: Final = (re.compile(r"[0-9a-f]{5}", re.I), re.compile(r"[0-9a-f]{2}", re.I))
_FILE_PATTERN: Final = re.compile(r"[0-9a-f]{14}" + re.escape(INDEX_FILE_SUFFIX), re.I)

#: Beside the log's directory: the file made ahead, and one that is made when it is needed.
_SPARE_SUFFIX: Final = ".next"
_NEW_SUFFIX: Final = ".new"


def ensure_directory(fs: FileSystem, path: str) -> None:
    """Make a directory and those above it that are missing, each synced in its parent. Raises OSError."""
    kind = fs.kind(path)
    if kind == "directory":
        return
    if kind is not None:
        raise NotADirectoryError(errno.ENOTDIR, "is a file where a directory is expected", path)
    parent = str(PurePath(path).parent)
    ensure_directory(fs, parent)
    try:
        fs.mkdir(path)
    except FileExistsError:
        # Another peer that keeps its data there was quicker.
        if fs.kind(path) != "directory":
            raise
    fs.sync_directory(parent)


class LogDirectory:
    """The tree ``00000/00/00/00000000000001.rlog`` under one path. All calls raise OSError."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.fs = fs
        self.path = path

    def index_files(self) -> list[tuple[int, str]]:
        """``(first index, path)`` by the names of the files, rising. Other names are passed over."""
        if self.fs.kind(self.path) is None:
            return []
        files = []
        for a in self._folders(self.path, _FOLDER_PATTERNS[0]):
            for b in self._folders(f"{self.path}/{a}", _FOLDER_PATTERNS[1]):
                for c in self._folders(f"{self.path}/{a}/{b}", _FOLDER_PATTERNS[1]):
                    folder = f"{self.path}/{a}/{b}/{c}"
                    for name in self.fs.listdir(folder):
                        if _FILE_PATTERN.fullmatch(name):
                            files.append((self._index_of(f"{a}{b}{c}", folder, name), f"{folder}/{name}"))
        return sorted(files)

    def _folders(self, path: str, pattern: re.Pattern[str]) -> Iterator[str]:
        for name in self.fs.listdir(path):
            if pattern.fullmatch(name) and self.fs.kind(f"{path}/{name}") == "directory":
                yield name

    def _index_of(self, digits: str, folder: str, name: str) -> int:
        if not name.lower().startswith(digits.lower()):
            raise CorruptionError(
                f"{folder}/{name}: the file does not belong in this folder; move it back. {REMEDY}",
                path=f"{folder}/{name}",
            )
        return int(name[: -len(INDEX_FILE_SUFFIX)], 16)

    def create_file(self, first_index: int, capacity: int) -> IndexFile:
        """Make an empty index file; when this returns the file and its name are durable.

        It gets its name when its content is durable: so no crash leaves a half-made one in its place.
        """
        ensure_directory(self.fs, self.path)
        self._remove(self._new_path)
        file = IndexFile.create(self._new_path, first_index, capacity, fs=self.fs)
        try:
            self.place_spare(file)
        except BaseException:
            file.close()
            raise
        return file

    def create_spare(self, first_index: int, capacity: int) -> IndexFile:
        """Make an empty index file, durably, under a name beside the log's directory; `place_spare` puts it in place.

        Not in its place at once: zmq-raft refuses a log with an empty file behind one that is not full.
        """
        self.remove_spare()
        return IndexFile.create(self._spare_path, first_index, capacity, fs=self.fs)

    def place_spare(self, spare: IndexFile) -> None:
        """Put what `create_spare` made in its place; when this returns its name is durable."""
        path = f"{self.path}/{index_file_name(spare.first_index)}"
        folder = str(PurePath(path).parent)
        ensure_directory(self.fs, folder)
        self.fs.rename(spare.path, path)
        spare.path = path
        self.fs.sync_directory(folder)

    def remove_spare(self) -> None:
        """Remove what `create_spare` made, now or in an earlier process. After a crash it may be a second name of a
        file in its place; so it is never written to."""
        self._remove(self._spare_path)

    def _remove(self, path: str) -> None:
        if self.fs.kind(path) is not None:
            self.fs.unlink(path)

    @property
    def _spare_path(self) -> str:
        return f"{self.path}{_SPARE_SUFFIX}"

    @property
    def _new_path(self) -> str:
        return f"{self.path}{_NEW_SUFFIX}"

    def remove_files(self, paths: list[str]) -> None:
        """Unlink files in this order, each durably before the next.

        One directory sync for each: with a single one at the end, a crash could keep a later unlink and lose an
        earlier one, and leave a gap between files that are not empty to a reader who looks at names only.
        """
        for path in paths:
            self.fs.unlink(path)
            self.fs.sync_directory(str(PurePath(path).parent))

    def sync_path_of(self, path: str) -> None:
        """Sync every directory from that of an index file up to the one that the log directory lies in.

        For names that an earlier process made and may not have synced before it was killed.
        """
        folder = PurePath(path).parent
        top = PurePath(self.path).parent
        while True:
            self.fs.sync_directory(str(folder))
            if folder == top:
                return
            folder = folder.parent
