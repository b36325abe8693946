"""Batches of entries and how they are made, by example; `test_entry` has what they share with single entries."""

from __future__ import annotations

import gc
from array import array
from types import ModuleType

import pytest

from zmqraft.errors import LocalProtocolError, RemoteProtocolError
from zmqraft.protocol.frames import encode_entry

ID = bytes(range(12))
FRAMES = [encode_entry(ID, 0, term, b"x" * size) for term, size in ((1, 1), (1, 9), (2, 3), (5, 4), (5, 100))]


def test_a_builder_makes_a_batch_and_is_empty_again(log_index: ModuleType) -> None:
    builder = log_index.BatchBuilder()
    for _ in range(2):
        assert (len(builder), builder.size) == (0, 0)
        assert builder.finish(3) == log_index.EntryBatch.empty(3)
        builder.append_entry(ID, 0, 1, b"x")
        for frame in FRAMES[1:]:
            builder.append_frame(frame)
        assert (len(builder), builder.size) == (5, len(b"".join(FRAMES)))
        batch = builder.finish(7)
        assert batch == log_index.EntryBatch.from_frames(7, FRAMES)
    builder.append_frame(FRAMES[0])
    assert batch.frames() == FRAMES


def test_what_is_no_entry_changes_nothing_in_a_builder(log_index: ModuleType) -> None:
    builder = log_index.BatchBuilder()
    builder.append_frame(FRAMES[3])
    for bad in (FRAMES[0], b"", ID + bytes(8), ID + b"\x03" + bytes(7) + b"x", ID + b"\0" + b"\xff" * 7 + b"x", None):
        with pytest.raises(RemoteProtocolError):
            builder.append_frame(bad)
    for arguments in ((ID, 0, 4, b"x"), (ID, 3, 5, b"x"), (ID, 0, 5, b""), (ID[1:], 0, 5, b"x"), (ID, 0, 2**53, b"x")):
        with pytest.raises(LocalProtocolError):
            builder.append_entry(*arguments)
    with pytest.raises(LocalProtocolError, match="first index of a batch"):
        builder.finish(-1)
    assert (len(builder), builder.size) == (1, len(FRAMES[3]))
    assert builder.finish(1).frames() == [FRAMES[3]]


def test_the_term_goes_back(log_index: ModuleType) -> None:
    builder = log_index.BatchBuilder()
    builder.append_frame(FRAMES[3])
    with pytest.raises(RemoteProtocolError, match="the term goes back from 5 to 1 at position 1"):
        builder.append_frame(FRAMES[0])
    builder.finish(1)
    builder.append_frame(FRAMES[0])


def test_the_same_entries_under_other_indexes(log_index: ModuleType) -> None:
    batch = log_index.EntryBatch.from_frames(0, FRAMES)
    assert batch.term_runs() == [(0, 1), (2, 2), (3, 5)]
    moved = batch.slice(1, 3).with_first_index(10)
    assert (moved.first_index, moved.last_index, moved.frames()) == (10, 12, FRAMES[1:4])
    assert moved.term_runs() == [(10, 1), (11, 2), (12, 5)]
    assert batch.first_index == 0


def test_joining(log_index: ModuleType) -> None:
    batch = log_index.EntryBatch.from_frames(4, FRAMES)
    join = log_index.EntryBatch.join
    assert join([batch.slice(4, 5), batch.slice(6, 6), batch.slice(7, 8)]) == batch
    assert join([batch]) is batch
    with pytest.raises(LocalProtocolError, match="entry 7 does not follow 5"):
        join([batch.slice(4, 5), batch.slice(7, 8)])
    with pytest.raises(LocalProtocolError, match="no batches"):
        join([])


def test_how_many_entries_fit(log_index: ModuleType) -> None:
    batch = log_index.EntryBatch.from_frames(1, FRAMES)
    sizes = [len(frame) for frame in FRAMES]
    assert [batch.end(position) for position in range(5)] == list(batch.ends)
    for first in range(6):
        for count in range(6 - first):
            size = sum(sizes[first : first + count])
            assert batch.count_within(size, first) == count
            assert batch.count_within(size - 1, first) == max(count - 1, 0)


def test_the_table_of_an_index_file(log_index: ModuleType) -> None:
    batch = log_index.EntryBatch.from_frames(1, FRAMES).slice(2, 4)
    table = log_index.table_bytes(batch, 1000)
    assert [int.from_bytes(table[at : at + 4], "little") for at in (0, 4, 8)] == [1000 + end for end in batch.ends]
    assert log_index.EntryBatch.from_table(
        2, batch.data, array("I", [1000, *(1000 + e for e in batch.ends)]), 1, 4
    ) == (batch)
    assert log_index.table_bytes(batch, 2**32 - 1 - batch.size)[-4:] == b"\xff" * 4
    with pytest.raises(LocalProtocolError, match="end beyond 4294967295"):
        log_index.table_bytes(batch, 2**32 - batch.size)


def test_a_batch_cannot_be_changed_from_outside(log_index: ModuleType) -> None:
    data = bytearray(b"".join(FRAMES))
    ends = list(log_index.EntryBatch.from_frames(1, FRAMES).ends)
    batch = log_index.EntryBatch.from_buffer(1, data, ends)
    through_a_view = log_index.EntryBatch.from_buffer(1, memoryview(data), ends)
    data[:] = bytes(len(data))
    ends[0] = 3
    assert batch.frames() == through_a_view.frames() == FRAMES
    assert batch.data.readonly
    runs, configs = batch.term_runs(), batch.config_positions()
    runs.clear()
    configs.append(1)
    assert (batch.term_runs(), batch.config_positions()) == ([(1, 1), (3, 2), (4, 5)], [])


def test_a_part_keeps_the_bytes(log_index: ModuleType) -> None:
    part = log_index.EntryBatch.from_frames(1, FRAMES).slice(2, 3)
    view = log_index.EntryBatch.from_frames(1, FRAMES).slice(4, 4).data
    gc.collect()
    assert part.frames() == FRAMES[1:3]
    assert bytes(view) == FRAMES[3]


def test_a_batch_is_not_a_key(log_index: ModuleType) -> None:
    with pytest.raises(TypeError):
        hash(log_index.EntryBatch.empty(1))
