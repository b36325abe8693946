"""The cache of the log's end against a plain list, and the log that reads from it instead of from files."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from support.file_systems import MemoryDisk
from support.logs import batch_of, make_entry, random_entry
from zmqraft.protocol.entry import EntryBatch, LogEntry
from zmqraft.storage import FileLog, OsFileSystem
from zmqraft.storage.tail_cache import TailCache


@pytest.mark.parametrize("seed", range(20))
def test_against_a_list(seed: int) -> None:
    random = Random(seed)
    cache = TailCache(random.choice([0, 1000, 5000, 100_000]))
    entries: list[LogEntry] = []
    hits = misses = 0
    for _ in range(300):
        if random.random() < 0.2 and entries:
            index = random.randint(max(len(entries) - 20, 0), len(entries))
            cache.truncate_after(index)
            del entries[index:]
        else:
            new = [random_entry(random, len(entries) + 1 + n, 1) for n in range(random.choice((1, 1, 1, 5, 40)))]
            cache.append(EntryBatch.from_entries(new))
            entries += new
        if not entries:
            continue
        first = random.randint(max(len(entries) - 60, 1), len(entries))
        last = random.randint(first, len(entries))
        size_max = random.choice([0, 60, 500, 10_000])
        batch = cache.read(first, last, size_max)
        hits, misses = hits + (batch is not None), misses + (batch is None)
        if batch is None:
            continue
        assert list(batch) == entries[first - 1 : batch.last_index]
        assert first <= batch.last_index <= last
        assert len(batch) == 1 or batch.size <= size_max
        # As many as fit, unless half of that is already there.
        following = len(entries[batch.last_index].to_bytes()) if batch.last_index < last else size_max
        assert batch.size + following > size_max or 2 * batch.size >= size_max or batch.last_index == last
    assert cache.size <= 100_000
    assert hits + misses > 100


def test_its_memory_is_bounded() -> None:
    cache = TailCache(10_000)
    for index in range(1, 1001):
        cache.append(batch_of(make_entry(index)))
        assert 0 < cache.size <= 10_000
    assert cache.read(1000, 1000, 10_000) is not None
    assert cache.read(900, 1000, 10_000) is None
    cache.truncate_after(10)
    assert cache.size == 0
    assert cache.read(1, 1, 10_000) is None
    # One batch that is too large by itself is not kept, nor anything before it.
    cache.append(batch_of(make_entry(11)))
    cache.append(batch_of(make_entry(12, data=bytes(10_000))))
    assert cache.size == 0


def test_small_batches_are_joined_and_large_ones_are_not_copied() -> None:
    cache = TailCache(100_000)
    for index in range(1, 11):
        cache.append(batch_of(make_entry(index)))
    large = batch_of(*(make_entry(index, data=bytes(1000)) for index in range(11, 21)))
    cache.append(large)
    joined = cache.read(1, 20, 3000)
    assert joined is not None
    assert (joined.first_index, joined.last_index) == (1, 12)
    assert cache.read(11, 20, 20_000) is large


class _Unreadable(OsFileSystem):
    """Reads nothing while `is_closed`."""

    is_closed = False

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        if self.is_closed:
            raise AssertionError("a file was read")
        return super().pread(handle, size, offset)


def test_what_was_just_appended_is_read_from_no_file(tmp_path: Path) -> None:
    fs = _Unreadable()
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=8, fs=fs)
    fs.is_closed = True
    for index in range(1, 31):
        log.append(batch_of(make_entry(index)))
    log.sync()
    assert [entry.index for entry in log.read(1, 30, 10_000)] == list(range(1, 31))
    log.truncate_after(20)
    log.append(batch_of(make_entry(21, term=2)))
    assert [entry.term for entry in log.read(18, 21, 10_000)] == [1, 1, 1, 2]
    fs.is_closed = False
    log.close()


def test_an_append_that_fails_is_not_read() -> None:
    """Neither is it read after the log is opened anew: what fails half-way is not there."""
    disk = MemoryDisk()
    log = FileLog.open("/data/log", "/data/snap", fs=disk)
    log.append(batch_of(make_entry(1)))
    with pytest.raises(ValueError, match="the term goes back"):
        log.append(batch_of(make_entry(2, term=0)))
    log.append(batch_of(make_entry(2)))
    assert list(log.read(1, 2, 1000)) == [make_entry(1), make_entry(2)]
    log.close()
