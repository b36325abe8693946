"""What a crash of zmq-raft leaves at the end of a log on which it ran last: SPEC section 3.

It knows nothing of checksums, a new file has its name before it is complete, and a file its new size before its data.
"""

from __future__ import annotations

import struct
from random import Random

from zmqraft.constants import ENTRY_HEADER_SIZE
from zmqraft.storage.index_file import TABLE_OFFSET, IndexFile
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.testing.simulator.disk import SimulatedDisk

__all__ = ["leave_as_crash"]

_ENTRIES_MAX = 3
_DATA_SIZE_MAX = 600


def leave_as_crash(disk: SimulatedDisk, log_path: str, capacity: int, random: Random) -> bool:
    """Change the end of a closed log, if that can be done. Nothing of it was acknowledged.

    ``capacity`` is that of the log's files.
    """
    directory = LogDirectory(disk, log_path)
    files = directory.index_files()
    if not files:
        return False
    newest = IndexFile.open(files[-1][1], fs=disk)
    try:
        if newest.count == newest.capacity:
            _begin_a_file(disk, directory, newest.last_index + 1, capacity, random)
        else:
            _append_nothing(disk, newest, random)
    finally:
        newest.close()
    return True


def _begin_a_file(
    disk: SimulatedDisk, directory: LogDirectory, first_index: int, capacity: int, random: Random
) -> None:
    """The next file has its name, but not all of its header."""
    file = directory.create_file(first_index, capacity)
    file.close()
    disk.cut(file.path, random.randrange(file.data_offset))


def _append_nothing(disk: SimulatedDisk, file: IndexFile, random: Random) -> None:
    """Entries have offsets, and the file its new size, but not their data."""
    count = random.randint(1, min(_ENTRIES_MAX, file.capacity - file.count))
    ends = []
    end = file.data_size
    for _ in range(count):
        end += ENTRY_HEADER_SIZE + random.randint(1, _DATA_SIZE_MAX)
        ends.append(end)
    disk.put(file.path, file.data_offset + file.data_size, bytes(end - file.data_size))
    disk.put(file.path, TABLE_OFFSET + 4 * file.count, struct.pack(f"<{count}I", *ends))
