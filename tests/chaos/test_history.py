"""Histories on their way through files, and what a log says against them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.history import Recorder, check_all, read_history
from zmqraft import EntryType, LogEntry
from zmqraft.testing.histories import HistoryError, Operation


def an_id(number: int) -> bytes:
    return number.to_bytes(12, "big")


def log_of(*numbers: int) -> list[LogEntry]:
    return [LogEntry(index, 1, EntryType.STATE, an_id(number), b"") for index, number in enumerate(numbers, 1)]


def put(number: int, value: str, called_at: float, returned_at: float | None = None, index: int = 0) -> Operation:
    operation = Operation("writer", an_id(number), ("put", "key", value), called_at)
    if returned_at is not None:
        operation.finish(returned_at, index)
    return operation


def get(value: str | None, called_at: float, returned_at: float) -> Operation:
    return Operation("reader", b"", ("get", "key"), called_at, returned_at, None, value)


def test_what_was_recorded_is_read(tmp_path: Path) -> None:
    operations = [put(1, "a", 1.0, 2.0, 1), put(2, "b", 3.0), get("a", 4.0, 5.5)]
    recorder = Recorder(tmp_path / "history")
    for operation in operations:
        recorder.write(operation)
    with (tmp_path / "history").open("a") as file:
        file.write('{"client": "one that is being wri')
    assert read_history(tmp_path / "history") == operations
    recorder.close()


def test_what_one_log_explains() -> None:
    check_all([put(1, "a", 1, 2, 1), put(2, "b", 3), get("a", 4, 5), get("b", 6, 7), put(3, "c", 8)], log_of(1, 2))


@pytest.mark.parametrize(
    ("history", "log", "message"),
    [
        ([put(1, "a", 1, 2, 1), put(2, "b", 3, 4, 2), get("a", 5, 6)], log_of(1, 2), "no order"),
        ([put(1, "a", 1, 2, 1), put(2, "b", 3), get("b", 5, 6)], log_of(1), "no order"),
        ([put(1, "a", 1, 2, 1)], log_of(), "in the log it is at None"),
        ([put(1, "a", 1)], log_of(1, 1), "twice"),
        ([put(1, "a", 1, 2, 2), put(2, "b", 3, 4, 1)], log_of(2, 1), "called later"),
        (
            [Operation("swapper", an_id(1), ("cas", "key", None, "a"), 1, 2, None, True)],
            log_of(),
            "was acknowledged and is not there",
        ),
    ],
    ids=["stale", "never written", "lost", "twice", "out of order", "lost swap"],
)
def test_what_it_does_not(history: list[Operation], log: list[LogEntry], message: str) -> None:
    with pytest.raises(HistoryError, match=message):
        check_all(history, log)
