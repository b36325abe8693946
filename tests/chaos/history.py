"""What the clients did, on its way from their processes to the checks.

Times are those of CLOCK_MONOTONIC, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zmqraft.protocol import LogEntry
from zmqraft.testing.histories import HistoryError, Operation, check_key_values, check_log

__all__ = ["Recorder", "check_all", "read_history"]


class Recorder:
    """Writes an operation down once it has returned, or was given up. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._lock = threading.Lock()

    def write(self, operation: Operation) -> None:
        values: dict[str, Any] = dataclasses.asdict(operation)
        values["request_id"] = operation.request_id.hex()
        values["returned_at"] = operation.returned_at if operation.is_done else None
        with self._lock:
            self._file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        self._file.close()


def read_history(path: Path) -> list[Operation]:
    """What is there by now: a last line that is not whole is left out."""
    return [_operation(json.loads(line)) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _operation(values: dict[str, Any]) -> Operation:
    values["request_id"] = bytes.fromhex(values["request_id"])
    values["command"] = tuple(values["command"])
    if values["returned_at"] is None:
        values["returned_at"] = math.inf
    return Operation(**values)


def check_all(history: Iterable[Operation], entries: Sequence[LogEntry]) -> None:
    """Whether one log, and the store that it makes, can have given all this. Raises HistoryError."""
    operations = list(history)
    updates = [_as_update(operation) for operation in operations if operation.request_id]
    ids = [entry.request_id if entry.is_state else None for entry in entries]
    check_log(updates, ids)
    there = set(ids)
    for operation in operations:
        if operation.is_done and operation.request_id and operation.request_id not in there:
            raise HistoryError(f"{operation.request_id.hex()}, {operation.command}, was acknowledged and is not there")
    # What is not in the log has not happened and never will: who sees it nevertheless has no explanation left.
    check_key_values(
        operation
        for operation in operations
        if operation.command and (operation.is_done or operation.request_id in there)
    )


def _as_update(operation: Operation) -> Operation:
    """A swap says whether it was done, and not where its entry is."""
    if operation.index is not None:
        return operation
    return dataclasses.replace(operation, returned_at=math.inf)
