"""Entries for tests of the log, and what the caller of a log was told of it."""

from __future__ import annotations

from zmqraft.api import LogBase
from zmqraft.protocol.entry import EntryBatch, LogEntry
from zmqraft.testing.entries import batch_of, make_entry, random_entry, read_all, request_id_at

__all__ = ["ToldOfLog", "batch_of", "make_entry", "random_entry", "read_all", "request_id_at"]


class ToldOfLog:
    """What the caller of a log was told to be durable, and every entry that was ever written at an index."""

    def __init__(self) -> None:
        self.durable: list[LogEntry] = []
        self.written: dict[int, list[LogEntry]] = {}

    def append(self, log: LogBase, count: int, term: int, length: int = 4) -> None:
        first = log.last_index + 1
        entries = [make_entry(index, term, b"%04d" % index * length) for index in range(first, first + count)]
        for entry in entries:
            self.written.setdefault(entry.index, []).append(entry)
        log.append(EntryBatch.from_entries(entries))

    def truncate_after(self, log: LogBase, index: int) -> None:
        # From the moment that it is asked for, what is above may be gone.
        del self.durable[index:]
        log.truncate_after(index)

    def sync(self, log: LogBase) -> None:
        entries = read_all(log)
        log.sync()
        self.durable = entries

    def check(self, found: list[LogEntry]) -> None:
        assert found[: len(self.durable)] == self.durable
        for position, entry in enumerate(found):
            assert entry.index == position + 1
            assert entry in self.written[entry.index]
