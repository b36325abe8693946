"""Everything durable: the log, its snapshots, and the state of a peer. Knows nothing of sockets or of Raft's rules.

Reading order: `fs` (the seam), `token_file`, `checksum_segment`, `index_file`, `torn_tail`,
`log_opening`, `log_snapshots`, `file_log`, `mending`; then `file_persistence`.
"""

from __future__ import annotations

from zmqraft.storage.data_directory import DirectoryLock, lock_directory
from zmqraft.storage.file_log import FileLog
from zmqraft.storage.file_persistence import Field, FilePersistence
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem, OsFileSystem
from zmqraft.storage.index_file import IndexFile
from zmqraft.storage.memory import MemoryLog, MemoryPersistence, MemorySnapshot
from zmqraft.storage.raft_persistence import RaftPersistence, StatePersistence
from zmqraft.storage.snapshot_file import SnapshotFile, SnapshotWriter

__all__ = [
    "OS_FILE_SYSTEM",
    "DirectoryLock",
    "Field",
    "FileLog",
    "FilePersistence",
    "FileSystem",
    "IndexFile",
    "MemoryLog",
    "MemoryPersistence",
    "MemorySnapshot",
    "OsFileSystem",
    "RaftPersistence",
    "SnapshotFile",
    "SnapshotWriter",
    "StatePersistence",
    "lock_directory",
]
