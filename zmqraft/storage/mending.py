"""Putting damaged entries of an index file back, from what other peers have at their indexes.

Knows nothing of where the entries come from. The rule: what is written proves itself. An entry is put back only when it
matches the checksum that was stored for it here, so that it is the very entry that was in this place; or when its bytes
are still here, and it is the checksum that is damaged. So no entry is ever replaced with another one, and a crash in
between leaves damage, to be found again.

Not put back is what has no checksum, as what zmq-raft wrote, nor the header of a file.
"""

from __future__ import annotations

import contextlib
from array import array
from pathlib import PurePath
from typing import Final, NamedTuple

from zmqraft.errors import CorruptionError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.storage.checksum_segment import MARK_NONE, mark_of
from zmqraft.storage.checksums import checksum_bytes
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.index_file import INDEX_FILE_SUFFIX, IndexFile
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.storage.token_file import REMEDY

__all__ = ["DamagedEntries", "find_damage", "mend", "term_on_disk"]

#: Of damaged entries that follow each other as many are put back at a time.
_RUN_MAX: Final = 1024
#: Not a mark: see `zmqraft.storage._checksums`.
_NO_MARK: Final = 3


class DamagedEntries(NamedTuple):
    """Entries of an index file that are damaged, from the first to the last."""

    path: str
    first: int
    last: int


def find_damage(error: CorruptionError, *, fs: FileSystem = OS_FILE_SYSTEM) -> DamagedEntries | None:
    """The entries for the sake of which a log does not open; None when the error is about something else. OSError."""
    path, index = error.path, error.index
    if path is None or index is None or not path.endswith(INDEX_FILE_SUFFIX):
        return None
    try:
        file = IndexFile.open(path, fs=fs, writable=False, tolerant=True)
    except CorruptionError:
        return None
    with contextlib.closing(file):
        if not file.has_checksums or not 0 <= index - file.first_index <= min(file.count, file.capacity - 1):
            return None
        first = stop = index
        # Where zmq-raft may have written, what does not match need not be damaged: so one at a time.
        run_max = 1 if file.changed_by_others else _RUN_MAX
        while stop - index < run_max and _is_damaged(file, stop):
            stop += 1
        # Where the offset of the one before is wrong, that may be noticed here.
        while first > file.first_index and stop - first < _RUN_MAX and _is_damaged(file, first - 1):
            first -= 1
        return DamagedEntries(path, first, stop - 1) if stop > first else None


def _is_damaged(file: IndexFile, index: int) -> bool:
    """Whether the entry does not match the checksum that it has, which it may have where the table ends, too."""
    position = index - file.first_index
    if position >= file.count:
        return position == file.count < file.capacity and file.checksums(position, position + 1)[0] != 0
    start, end = (file.file_offset(at) - file.data_offset for at in (index, index + 1))
    return any(slot for _, slot in file.unmatched(file.read_bytes(start, end), position, position + 1))


def term_on_disk(log_path: str | PurePath, index: int, *, fs: FileSystem = OS_FILE_SYSTEM) -> int | None:
    """The term of an entry in a log that does not open; None when the entry is not there, or is not good."""
    with contextlib.suppress(CorruptionError):
        files = LogDirectory(fs, str(PurePath(log_path))).index_files()
        for _, path in [file for file in files if file[0] <= index][-1:]:
            with contextlib.closing(IndexFile.open(path, fs=fs, writable=False, tolerant=True)) as file:
                if file.first_index <= index <= file.last_index:
                    return file.read(index, index, 0).term_runs()[0][1]
    return None


def mend(path: str, entries: EntryBatch, *, fs: FileSystem = OS_FILE_SYSTEM) -> None:
    """Put these entries back into an index file, durably; those before them are good.

    Raises CorruptionError for the first one that was not the one in this place, OSError.
    """
    file = IndexFile.open(path, fs=fs, tolerant=True)
    with contextlib.closing(file):
        table = file.read_table()
        try:
            for index in range(entries.first_index, entries.last_index + 1):
                if not _mend_entry(file, table, entries.slice(index, index)):
                    raise CorruptionError(
                        f"{path}: entry {index} is damaged, and the one that others have committed there does not "
                        f"match its checksum; {REMEDY}",
                        path=path,
                        index=index,
                    )
        finally:
            file.sync()


def _mend_entry(file: IndexFile, table: array[int], entry: EntryBatch) -> bool:
    position = entry.first_index - file.first_index
    if not 0 <= position < file.capacity:
        return False
    start = table[position - 1] if position else 0
    end = start + entry.size
    (slot,) = file.checksums(position, position + 1)
    if mark_of(slot) != _NO_MARK and _slot_of(entry, start, mark_of(slot)) == slot:
        file.restore(position, end, entry.data)
        table[position] = end
        return True
    if table[position] == end and file.read_bytes(start, end) == bytes(entry.data):
        file.store_checksums({position: _slot_of(entry, start, MARK_NONE)})
        return True
    return False


def _slot_of(entry: EntryBatch, start: int, mark: int) -> int:
    return int.from_bytes(checksum_bytes(entry, start, mark), "little")
