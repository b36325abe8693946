"""Entries for tests of a log, made from a seed or told from their index, and a way to read a whole log."""

from __future__ import annotations

from random import Random

from zmqraft.api.log import LogBase
from zmqraft.protocol.entry import EntryBatch, EntryType, LogEntry
from zmqraft.testing.contract import check

__all__ = ["batch_of", "make_entry", "random_entry", "read_all", "request_id_at"]


def request_id_at(seconds: int, number: int) -> bytes:
    """A request id of this time."""
    return seconds.to_bytes(4, "big") + number.to_bytes(8, "big")


def make_entry(index: int, term: int = 1, data: bytes = b"data", type: EntryType = EntryType.STATE) -> LogEntry:
    """An entry whose request id is told from its index and term."""
    return LogEntry(index, term, type, request_id_at(1_700_000_000 + index, index * 1000 + term), data)


def random_entry(random: Random, index: int, term: int, size_max: int = 60) -> LogEntry:
    """An entry of any type, rarely with the id of an older one or none."""
    kind = random.random()
    if kind < 0.1:
        return LogEntry.checkpoint(index, term)
    number = random.randrange(index * 4) if kind < 0.2 else index * 4 + random.randrange(4)
    request_id = bytes(12) if kind > 0.95 else request_id_at(1000 + number // 4, number)
    entry_type = EntryType.CONFIG if kind < 0.3 else EntryType.STATE
    return LogEntry(index, term, entry_type, request_id, random.randbytes(random.randint(1, size_max)))


def batch_of(*entries: LogEntry) -> EntryBatch:
    """A batch of these entries."""
    return EntryBatch.from_entries(entries)


def read_all(log: LogBase, size_max: int = 1000) -> list[LogEntry]:
    """Every entry of a log, through as many reads as it takes."""
    entries: list[LogEntry] = []
    index = log.first_index
    while index <= log.last_index:
        batch = log.read(index, log.last_index, size_max)
        check(
            (batch.first_index, len(batch) >= 1),
            (index, True),
            "the first index of what was read, and whether it is any",
        )
        entries += batch
        index = batch.last_index + 1
    return entries
