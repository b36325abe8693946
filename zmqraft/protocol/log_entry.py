"""A log entry, one at a time: for state machines, clients and tests. What the server moves is `EntryBatch`.

Knows nothing of sockets, files or Raft.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields

from zmqraft.constants import CHECKPOINT_DATA, ENTRY_HEADER_SIZE, REQUEST_ID_NONE, REQUEST_ID_SIZE
from zmqraft.protocol.frames import check_entry, encode_entry

__all__ = ["EntryType", "LogEntry"]

_TYPE_OFFSET = REQUEST_ID_SIZE
_TERM_OFFSET = REQUEST_ID_SIZE + 1


class EntryType(enum.IntEnum):
    """What a log entry is for; the byte after its request id."""

    STATE = 0
    CONFIG = 1
    CHECKPOINT = 2


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of the replicated log.

    ``index`` is its position (the first is 1), ``term`` the Raft term in which a leader appended it, ``request_id``
    the 12 bytes by which its client named it (all zero where there was none), ``data`` its content, never empty.
    """

    index: int
    term: int
    type: EntryType
    request_id: bytes
    data: bytes

    @property
    def is_state(self) -> bool:
        """Whether the entry holds a client's update."""
        return self.type is EntryType.STATE

    @property
    def is_config(self) -> bool:
        """Whether the entry holds a cluster configuration, as MessagePack."""
        return self.type is EntryType.CONFIG

    @property
    def is_checkpoint(self) -> bool:
        """Whether the entry is the empty one that a new leader appends."""
        return self.type is EntryType.CHECKPOINT

    def to_bytes(self) -> bytes:
        """The entry as one frame, or as it stands in an index file. Raises LocalProtocolError on illegal values."""
        return encode_entry(self.request_id, self.type, self.term, self.data)

    @classmethod
    def from_bytes(cls, frame: bytes | memoryview, index: int = 0) -> LogEntry:
        """Decode one frame. Raises RemoteProtocolError when it is not a log entry."""
        check_entry(frame)
        return cls._from_checked(bytes(frame), index)

    @classmethod
    def _from_checked(cls, frame: bytes, index: int) -> LogEntry:
        """Decode a frame that is known to be a log entry: for `EntryBatch`."""
        # Not by __init__, which takes longer than all the rest where the fields are frozen.
        entry = cls.__new__(cls)
        _set_index(entry, index)
        _set_term(entry, int.from_bytes(frame[_TERM_OFFSET:ENTRY_HEADER_SIZE], "little"))
        _set_type(entry, _TYPES[frame[_TYPE_OFFSET]])
        _set_request_id(entry, frame[:REQUEST_ID_SIZE])
        _set_data(entry, frame[ENTRY_HEADER_SIZE:])
        return entry

    @classmethod
    def checkpoint(cls, index: int, term: int) -> LogEntry:
        """The entry that a leader appends when it is elected (SPEC section 2, difference 4)."""
        return cls(index, term, EntryType.CHECKPOINT, REQUEST_ID_NONE, CHECKPOINT_DATA)


_TYPES = tuple(EntryType)
_set_index, _set_term, _set_type, _set_request_id, _set_data = (
    vars(LogEntry)[field.name].__set__ for field in fields(LogEntry)
)
