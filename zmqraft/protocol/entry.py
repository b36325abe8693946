"""A log entry and a batch of them: the bytes of SPEC "Log entry" and the way they travel through zmqraft.

An update's bytes are touched once: they come from a socket (or a file) into an `EntryBatch`, one contiguous buffer
with the end offset of every entry, and that buffer is written to the log, sent to the followers and handed to the
state machine. The names of `log_entry` and `log_index` that everybody needs, in one place.
"""

from __future__ import annotations

from zmqraft.protocol.frames import check_entry, encode_entry
from zmqraft.protocol.log_entry import EntryType, LogEntry
from zmqraft.protocol.log_index import EntryBatch

__all__ = ["EntryBatch", "EntryType", "LogEntry", "check_entry", "encode_entry"]
