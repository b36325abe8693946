"""Whether a user's state machine is deterministic: replicas in processes of their own, compared after every entry.

Knows nothing of Raft. The rule: the replicas get the same entries, and differ in all that a state machine must not
depend on: the seed of Python's hashes (and so the order of sets), the clock, the time zone, the random sources. So the
first entry after which their states differ is where one of these came in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TextIO

from zmqraft.api import StateMachineBase
from zmqraft.protocol import EntryBatch, EntryType, LogEntry

__all__ = ["NotDeterministicError", "canonical", "check_determinism"]

#: The replicas' clocks are that far apart, in seconds; and where they are.
_CLOCK_STEP = 7919.0
_ZONES = ("UTC", "Pacific/Auckland", "America/St_Johns")


class NotDeterministicError(AssertionError):
    """Replicas have parted. ``index`` is that of the entry after which their states differ."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def canonical(value: object) -> object:
    """A state as plain lists and texts, in which what is equal looks the same: sets and dicts are sorted."""
    if isinstance(value, Mapping):
        return ["map", sorted([repr(canonical(key)), canonical(item)] for key, item in value.items())]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(map(repr, map(canonical, value)))]
    if isinstance(value, (list, tuple)) or hasattr(value, "popleft"):
        return ["list", [canonical(item) for item in value]]  # type: ignore[attr-defined]
    if value is None or isinstance(value, (str, bytes, bytearray, bool, int, float)):
        return repr(value)
    if hasattr(value, "__dict__"):
        return [type(value).__qualname__, canonical(vars(value))]
    if (slots := getattr(type(value), "__slots__", None)) is not None:
        names = [name for name in slots if hasattr(value, name)]
        return [type(value).__qualname__, canonical({name: getattr(value, name) for name in names})]
    return type(value).__qualname__


def check_determinism(
    machine: type[StateMachineBase], updates: Iterable[bytes], *, replicas: int = 3, timeout_s: float = 60.0
) -> int:
    """Apply the same updates on each replica, one at a time, and compare the states. Returns how many there were.

    ``machine`` is made without arguments in each process, from the file in which its class is, at the top level. Its
    state is all its attributes, sets without their order. Raises NotDeterministicError, with the index; RuntimeError
    when a replica fails.

    Not found is what shows only now and then, or only in more than a few hours.
    """
    path, name = inspect.getsourcefile(machine), machine.__qualname__
    if path is None or "." in name:
        raise ValueError(f"{name} must be a class at the top level of a file")
    lines = "".join(f"{update.hex()}\n" for update in updates)
    states = [_run_replica(number, path, name, lines, timeout_s) for number in range(replicas)]
    count = lines.count("\n")
    for index in range(1, count + 1):
        found = [state[index - 1] for state in states]
        for number, other in enumerate(found):
            if other[0] != found[0][0]:
                raise NotDeterministicError(
                    f"{name} is not deterministic: after entry {index} replica 1 has {found[0][1]}, replica "
                    f"{number + 1} has {other[1]}",
                    index,
                )
    return count


def _run_replica(number: int, path: str, name: str, lines: str, timeout_s: float) -> list[tuple[str, str]]:
    """The hash of the state after each entry, and its beginning to be read."""
    environment = {**os.environ, "PYTHONHASHSEED": str(number + 1), "TZ": _ZONES[number % len(_ZONES)]}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-m", "zmqraft.testing.determinism", str(number), path, name]
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
    )
    states = [(str(digest), str(text)) for digest, text in map(json.loads, done.stdout.splitlines())]
    if done.returncode != 0 or len(states) != lines.count("\n"):
        raise RuntimeError(f"replica {number + 1} failed after {len(states)} entries:\n{done.stderr}")
    return states


# --- in the process of a replica ------------------------------------------------------------------------------------


def _replica(number: int, path: str, name: str, lines: Iterable[str], output: TextIO) -> None:
    random.seed(number)
    _shift_clock(number * _CLOCK_STEP)
    machine = getattr(_load(path), name)()
    for index, line in enumerate(lines, 1):
        request_id = (1_800_000_000).to_bytes(4, "big") + index.to_bytes(8, "big")
        entry = LogEntry(index, 1, EntryType.STATE, request_id, bytes.fromhex(line))
        machine.apply_entries(EntryBatch.from_entries([entry]), 1)
        state = json.dumps(canonical(vars(machine)))
        json.dump([hashlib.sha256(state.encode()).hexdigest(), state[:200]], output)
        output.write("\n")


def _shift_clock(seconds: float) -> None:
    """`time.time` is the one that most programs ask; those of datetime differ by what the replicas start apart."""
    clock, clock_ns = time.time, time.time_ns
    time.time = lambda: clock() + seconds
    time.time_ns = lambda: clock_ns() + int(seconds * 1e9)
    time.tzset()


def _load(path: str) -> ModuleType:
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location("replicated", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["replicated"] = module
    spec.loader.exec_module(module)
    return module


def _main(arguments: Sequence[str]) -> None:
    number, path, name = arguments
    _replica(int(number), path, name, sys.stdin, sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1:])
