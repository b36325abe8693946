"""The log by itself, without a cluster: appending, opening, reading, of one `FileLog` on a real disk.

The rule: what is read was written before in the same run, so it comes from the page cache, not from the disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from zmqraft.protocol import EntryBatch, EntryType
from zmqraft.protocol.log_index import BatchBuilder
from zmqraft.storage import FileLog

__all__ = ["log_check"]

#: One sync each: what a busy leader appends at once.
_BATCH_COUNT = 1000
_SINGLE_COUNT = 2000
#: What a reply of RequestEntries, or an append to another peer, carries.
_READ_SIZE = 65536
_OPENINGS = 5


def log_check(directory: Path, entries: int, size_bytes: int) -> dict[str, float]:
    """What it took, medians where it was done several times; the names have the units."""
    paths = directory / "log", directory / "snap"
    log = FileLog.open(*paths)
    began = time.perf_counter()
    for batch in _batches(entries, size_bytes):
        log.append(batch)
        log.sync()
        if log.wants_preparation:
            log.prepare()
    append_s = time.perf_counter() - began
    log.close()
    openings_s = []
    for _ in range(_OPENINGS):
        began = time.perf_counter()
        log = FileLog.open(*paths)
        openings_s.append(time.perf_counter() - began)
        if log.last_index != entries:
            raise AssertionError(f"the log has {log.last_index} entries, not {entries}")
        log.close()
    log = FileLog.open(*paths)
    began = time.perf_counter()
    index = 1
    while index <= entries:
        index = log.read(index, entries, _READ_SIZE).last_index + 1
    read_s = time.perf_counter() - began
    singles_s = []
    for batch in _batches(_SINGLE_COUNT, size_bytes, first_index=entries + 1, batch_count=1):
        began = time.perf_counter()
        log.append(batch)
        log.sync()
        singles_s.append(time.perf_counter() - began)
    log.close()
    return {
        "open, s": median(openings_s),
        f"append {_BATCH_COUNT} at a time, entries/s": entries / append_s,
        "append and sync one, us": median(singles_s) * 1e6,
        "read and check, entries/s": entries / read_s,
    }


def _batches(
    count: int, size_bytes: int, *, first_index: int = 1, batch_count: int = _BATCH_COUNT
) -> Iterator[EntryBatch]:
    """Entries with data and request ids of their own, of the present."""
    builder, now = BatchBuilder(), int(time.time()).to_bytes(4, "big")
    for index in range(first_index, first_index + count):
        data = index.to_bytes(8, "big") * (size_bytes // 8 + 1)
        builder.append_entry(now + index.to_bytes(8, "big"), EntryType.STATE, 1, data[:size_bytes])
        if len(builder) == batch_count or index == first_index + count - 1:
            yield builder.finish(index - len(builder) + 1)
