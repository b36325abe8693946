"""Compacting the log of a peer that is not running, with a state machine that is loaded by its name.

Knows nothing of the command line. The rule: only what is known to be committed goes into a snapshot. A peer's files
do not say what is: a state machine says what it has applied, a peer that is alone in its cluster has committed all of
its log, and else it is for the operator, who can ask the cluster, to name an index.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from zmqraft.api import SnapshotContext, StateMachineBase
from zmqraft.errors import ConfigurationError
from zmqraft.server.applier import APPLY_SIZE_MAX, restore_state
from zmqraft.server.builder import open_log, open_persistence
from zmqraft.server.compaction import configuration_at, pieces_of
from zmqraft.server.recovery import recover_configurations
from zmqraft.server.settings import Settings
from zmqraft.storage import FileLog, StatePersistence, lock_directory

__all__ = ["Compaction", "compact_offline", "load_state_machine"]


@dataclass(frozen=True)
class Compaction:
    """What was done: the snapshot that counts now, whether it is a new one, and the files that nobody needs."""

    index: int
    term: int
    size: int
    is_new: bool
    removable_files: list[str]


def load_state_machine(name: str, options: Mapping[str, Any]) -> StateMachineBase:
    """An instance of ``module:Class`` or ``path/to/file.py:Class``, made with ``options`` as keywords.

    Raises ConfigurationError when there is no such thing, or it is no state machine.
    """
    module_name, separator, class_name = name.rpartition(":")
    if not separator or not module_name or not class_name:
        raise ConfigurationError(f"a state machine is named as module:Class or file.py:Class, not {name!r}")
    try:
        module = _load_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (ImportError, OSError) as error:
        raise ConfigurationError(f"cannot load the state machine {name!r}: {error}") from error
    made = getattr(module, class_name, None)
    if not isinstance(made, type) or not issubclass(made, StateMachineBase):
        raise ConfigurationError(f"{name!r} is no class derived from StateMachineBase")
    try:
        return made(**options)
    except TypeError as error:
        raise ConfigurationError(f"{name!r} does not take the options {sorted(options)}: {error}") from error


def _load_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Before it is run, as import does: dataclasses in it look themselves up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def compact_offline(
    settings: Settings,
    make_machine: Callable[[], StateMachineBase],
    *,
    index: int | None = None,
    force: bool = False,
    prune: bool = False,
) -> Compaction:
    """Compact the log up to the last entry that is known to be committed, or up to ``index``, which the caller knows to
    be; but not above the prune index, unless ``force``. ``prune`` deletes the files that nobody needs then.

    Raises ConfigurationError when the data directory is in use, or there is no log in it, or nothing is known to be
    committed, or the state machine cannot do it; CorruptionError or StorageError when the data cannot be used.
    """
    if not settings.data.log_path.is_dir():
        raise ConfigurationError(f"there is no log at {settings.data.log_path}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_directory(settings.data.directory))
        log = open_log(settings)
        stack.callback(log.close)
        machine = make_machine()
        stack.callback(machine.close)
        committed = _last_committed(settings, log, machine) if index is None else index
        if not log.snapshot.index <= committed <= log.last_index:
            raise ConfigurationError(
                f"index {committed} is not within the log, which has entries {log.first_index} to {log.last_index}"
            )
        target = committed if force else min(committed, log.prune_index)
        is_new = target > log.snapshot.index
        if is_new:
            _compact(settings, log, machine, target)
        files = log.removable_files()
        if prune and (remove := log.begin_prune()) is not None:
            remove()
        return Compaction(log.snapshot.index, log.snapshot.term, log.snapshot.size, is_new, files)


def _last_committed(settings: Settings, log: FileLog, machine: StateMachineBase) -> int:
    known = max(log.snapshot.index, machine.last_applied)
    if settings.data.state_path.exists():
        with contextlib.closing(StatePersistence.open(settings.data.state_path)) as state:
            known = max(known, min(state.last_applied, log.last_index))
    with contextlib.closing(open_persistence(settings)) as persistence:
        members = recover_configurations(settings, log, persistence).current.urls
    if set(members) == {settings.id}:
        return log.last_index
    if known == log.snapshot.index and log.last_index > known:
        raise ConfigurationError(
            f"nothing says how many of the entries {log.first_index} to {log.last_index} are committed; name an index "
            "that the cluster has applied (zmqraft info)"
        )
    return known


def _compact(settings: Settings, log: FileLog, machine: StateMachineBase, index: int) -> None:
    if machine.last_applied > index:
        raise ConfigurationError(
            f"the state machine has applied entries up to {machine.last_applied}, and cannot go back to {index}"
        )
    with contextlib.closing(open_persistence(settings)) as persistence:
        term = persistence.current_term
        at, configuration = recover_configurations(settings, log, persistence).base
    restore_state(machine, log.snapshot)
    applied = max(machine.last_applied, log.snapshot.index)
    while applied < index:
        batch = log.read(applied + 1, index, APPLY_SIZE_MAX)
        machine.apply_entries(batch, term)
        applied = batch.last_index
    view = machine.snapshot()
    if view is None:
        raise ConfigurationError(f"{type(machine).__name__} offers no snapshots: implement snapshot()")
    members, members_index = configuration_at(index, log, (configuration, at))
    ttl_ms = settings.request_id_ttl
    forgotten_until = 0 if ttl_ms is None else math.floor(time.time() - ttl_ms / 1000)
    context = SnapshotContext(
        members.to_value(),
        members_index,
        log.packed_requests(index),
        max(log.requests_forgotten_until, forgotten_until),
    )
    snapshot = log.begin_snapshot(index, context)(pieces_of(view))
    log.sync()
    log.begin_compaction(snapshot)()
    log.compact(snapshot)
