"""Log entries and batches of them (SPEC section 1, "Log entry")."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.golden import load
from zmqraft.constants import CHECKPOINT_DATA, INTEGER_MAX, REQUEST_ID_NONE
from zmqraft.errors import LocalProtocolError, RemoteProtocolError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry

GOLDEN = load("frames.json")["entries"]
FRAMES = [bytes.fromhex(case["hex"]) for case in GOLDEN]
ID = bytes(range(12))
ENTRIES = st.builds(
    LogEntry,
    st.just(0),
    st.integers(0, INTEGER_MAX),
    st.sampled_from(EntryType),
    st.binary(min_size=12, max_size=12),
    st.binary(min_size=1, max_size=60),
)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"type {case['type']} term {case['term']}")
def test_golden(entry: ModuleType, case: dict[str, Any]) -> None:
    frame = bytes.fromhex(case["hex"])
    request_id, data = bytes.fromhex(case["request_id"]), bytes.fromhex(case["data"])
    assert entry.encode_entry(request_id, case["type"], case["term"], data) == frame
    decoded = entry.LogEntry.from_bytes(frame, 7)
    assert decoded == entry.LogEntry(7, case["term"], entry.EntryType(case["type"]), request_id, data)
    assert decoded.to_bytes() == frame
    assert (decoded.is_state, decoded.is_config, decoded.is_checkpoint) == tuple(case["type"] == t for t in range(3))


def test_checkpoint(entry: ModuleType) -> None:
    assert entry.LogEntry.checkpoint(9, 43).to_bytes().hex() == "000000000000000000000000022b000000000000c0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ID[:11], 0, 1, b"x"), "request id has 12 bytes, not 11"),
        ((ID + b"x", 0, 1, b"x"), "request id has 12 bytes, not 13"),
        (("0" * 12, 0, 1, b"x"), "are bytes"),
        ((None, 0, 1, b"x"), "are bytes"),
        ((ID, 0, 1, "x"), "are bytes"),
        ((ID, 0, 1, None), "are bytes"),
        ((ID, 0, 1, b""), "never empty"),
        ((ID, 3, 1, b"x"), "type is 0 to 2, not 3"),
        ((ID, -1, 1, b"x"), "type is 0 to 2, not -1"),
        ((ID, 2**64, 1, b"x"), "type is 0 to 2, not"),
        ((ID, True, 1, b"x"), "type is 0 to 2, not True"),
        ((ID, None, 1, b"x"), "type is 0 to 2, not None"),
        ((ID, 1.0, 1, b"x"), "type is 0 to 2, not 1.0"),
        ((ID, 0, -1, b"x"), "term is 0 to 9007199254740991, not -1"),
        ((ID, 0, 2**53, b"x"), "term is 0 to"),
        ((ID, 0, 2**64, b"x"), "term is 0 to"),
        ((ID, 0, 1.0, b"x"), "term is 0 to"),
        ((ID, 0, None, b"x"), "term is 0 to"),
        ((ID, 0, False, b"x"), "term is 0 to"),
    ],
)
def test_what_is_not_an_entry_is_not_written(entry: ModuleType, arguments: Any, message: str) -> None:
    with pytest.raises(LocalProtocolError, match=message):
        entry.encode_entry(*arguments)


def bad_frames() -> list[Any]:
    return [
        pytest.param(b"", id="empty"),
        pytest.param(FRAMES[0][:20], id="no data"),
        pytest.param(ID + b"\x03" + bytes(7) + b"x", id="type 3"),
        pytest.param(ID + b"\xff" + bytes(7) + b"x", id="type 255"),
        pytest.param(ID + b"\x00" + (2**53).to_bytes(7, "little") + b"x", id="term 2**53"),
        pytest.param(ID + b"\x00" + b"\xff" * 7 + b"x", id="term 2**56 - 1"),
        pytest.param("text" * 10, id="text"),
        pytest.param(None, id="None"),
        pytest.param(memoryview(bytes(80)).cast("I"), id="not a view of bytes"),
    ]


@pytest.mark.parametrize("frame", bad_frames())
def test_what_is_not_an_entry_is_not_read(entry: ModuleType, frame: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        entry.check_entry(frame)
    with pytest.raises(RemoteProtocolError):
        entry.LogEntry.from_bytes(frame)
    with pytest.raises(RemoteProtocolError):
        entry.EntryBatch.from_frames(1, [FRAMES[0], frame])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_an_entry_in_whatever_holds_bytes(entry: ModuleType, kind: Any) -> None:
    assert entry.LogEntry.from_bytes(kind(FRAMES[1]), 1) == entry.LogEntry.checkpoint(1, 43)
    assert entry.encode_entry(kind(ID), 0, 5, kind(b"data")) == ID + b"\x00\x05" + bytes(6) + b"data"
    assert entry.EntryBatch.from_frames(1, [kind(frame) for frame in FRAMES]).frames() == FRAMES


def test_a_part_of_a_buffer_is_an_entry(entry: ModuleType) -> None:
    assert entry.check_entry(memoryview(b"before" + FRAMES[0] + b"behind")[6:-6]) is None


def test_batch(entry: ModuleType) -> None:
    batch = entry.EntryBatch.from_frames(5, FRAMES)
    assert (batch.first_index, batch.last_index, len(batch)) == (5, 9, 5)
    assert batch.data == b"".join(FRAMES)
    assert batch.size == len(batch.data)
    assert batch.frames() == FRAMES
    assert [e.index for e in batch] == [5, 6, 7, 8, 9]
    assert [e.to_bytes() for e in batch] == FRAMES
    for position, case in enumerate(GOLDEN):
        assert batch.frame(position) == FRAMES[position]
        assert batch.term(position) == case["term"]
        assert batch.type(position) == case["type"]
        assert batch.request_id(position).hex() == case["request_id"]
        assert batch.payload(position).hex() == case["data"]
    assert batch.term_runs() == [(5, 42), (6, 43), (7, INTEGER_MAX), (8, 7)]
    assert batch.config_positions() == [3, 4]
    assert batch == entry.EntryBatch.from_entries(list(batch))
    assert batch != entry.EntryBatch.from_frames(6, FRAMES)
    assert batch != FRAMES
    assert repr(batch) == f"<EntryBatch of 5 entries from index 5, {batch.size} bytes>"


@pytest.mark.parametrize("position", [-1, 5, 100])
def test_a_position_outside_of_the_batch(entry: ModuleType, position: int) -> None:
    batch = entry.EntryBatch.from_frames(5, FRAMES)
    for method in (batch.frame, batch.entry, batch.term, batch.type, batch.request_id, batch.payload):
        with pytest.raises(IndexError):
            method(position)


def test_the_empty_batch(entry: ModuleType) -> None:
    batch = entry.EntryBatch.empty(5)
    assert (batch.first_index, batch.last_index, len(batch), batch.size) == (5, 4, 0, 0)
    assert batch.frames() == batch.term_runs() == batch.config_positions() == list(batch) == []
    assert batch == entry.EntryBatch.from_frames(5, [])
    assert batch.prefix_of_size(100) == batch
    with pytest.raises(LocalProtocolError, match=r"EntryBatch\.empty"):
        entry.EntryBatch.from_entries([])


def test_entries_of_a_batch_are_consecutive(entry: ModuleType) -> None:
    with pytest.raises(LocalProtocolError, match="entry 9 does not follow 7"):
        entry.EntryBatch.from_entries([entry.LogEntry.checkpoint(7, 1), entry.LogEntry.checkpoint(9, 1)])


def test_slices(entry: ModuleType) -> None:
    batch = entry.EntryBatch.from_frames(5, FRAMES)
    assert batch.slice(5, 9) is batch
    assert batch.slice(0, 100) is batch
    assert batch.slice(6, 7).frames() == FRAMES[1:3]
    assert batch.slice(6, 7).slice(7, 7).frames() == FRAMES[2:3]
    assert batch.slice(6, 7).first_index == 6
    assert batch.slice(8, 7) == entry.EntryBatch.empty(8)
    assert batch.slice(10, 12) == entry.EntryBatch.empty(10)
    assert batch.slice(1, 2) == entry.EntryBatch.empty(5)
    assert batch.prefix_of_size(0).frames() == FRAMES[:1]
    assert batch.prefix_of_size(len(FRAMES[0]) + len(FRAMES[1])).frames() == FRAMES[:2]
    assert batch.prefix_of_size(len(FRAMES[0]) + len(FRAMES[1]) - 1).frames() == FRAMES[:1]
    assert batch.prefix_of_size(10**6) is batch


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_batch_of_a_buffer(entry: ModuleType, kind: Any) -> None:
    batch = entry.EntryBatch.from_frames(5, FRAMES)
    assert entry.EntryBatch.from_buffer(5, kind(batch.data), batch.ends) == batch
    assert entry.EntryBatch.from_buffer(5, kind(b""), []) == entry.EntryBatch.empty(5)


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param([23], id="bytes behind the last"),
        pytest.param([], id="no end"),
        pytest.param([23, 23, 44], id="no rise"),
        pytest.param([44, 23], id="a fall"),
        pytest.param([23, 45], id="outside of the buffer"),
        pytest.param([20, 44], id="an entry without data"),
        pytest.param([-1, 44], id="negative"),
        pytest.param([0, 44], id="zero"),
        pytest.param([23, 2**70], id="huge"),
        pytest.param([23, None], id="None"),
        pytest.param([23.0, 44], id="float"),
        pytest.param([22, 44], id="the second starts one early"),
    ],
)
def test_a_buffer_whose_ends_do_not_fit(entry: ModuleType, ends: Any) -> None:
    data = FRAMES[0] + ID + b"\x02" + bytes(7) + b"\xc0"
    assert len(entry.EntryBatch.from_buffer(1, data, [23, 44])) == 2
    with pytest.raises(RemoteProtocolError):
        entry.EntryBatch.from_buffer(1, data, ends)


@given(st.lists(ENTRIES, min_size=1, max_size=10), st.integers(1, 1000))
def test_batch_and_entries_round_trip(entries: list[LogEntry], first: int) -> None:
    numbered = [LogEntry(first + position, e.term, e.type, e.request_id, e.data) for position, e in enumerate(entries)]
    batch = EntryBatch.from_entries(numbered)
    assert list(batch) == numbered
    assert EntryBatch.from_buffer(first, batch.data, batch.ends) == batch
    assert [e for part in (batch.slice(first, i) for i in [first]) for e in part] == numbered[:1]
    assert list(batch.slice(first, first + 2)) + list(batch.slice(first + 3, batch.last_index)) == numbered
    runs = dict(batch.term_runs())
    term = -1
    for e in numbered:
        term = runs.get(e.index, term)
        assert term == e.term


def test_the_checkpoint_has_no_request_id_and_nil() -> None:
    checkpoint = LogEntry.checkpoint(1, 1)
    assert (checkpoint.request_id, checkpoint.data) == (REQUEST_ID_NONE, CHECKPOINT_DATA)
