"""The last resort when the majority of a cluster is gone for good: a survivor that is not running gets a new list of
members, without asking anybody.

Knows nothing of the command line. It is not Raft: what made entries safe was the majority that is gone. So

- entries of the survivor that were never committed count as committed afterwards, and what only the others had is lost;
- the others must never come back with their data. The new configuration stands in a term that none of them has seen,
  by a wide margin, so that no entry of theirs can be taken for one that follows it.

The rules: nothing is changed before it is known what would be, and somebody has agreed; of every file that changes
there is a copy before; and the log comes first, then the state file. A crash before the entry is durable leaves the
configuration as it was, and one behind it the new one, to which the next start adapts the state file (see `recovery`).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.errors import ConfigurationError, StorageError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, encode_json, new_request_id
from zmqraft.protocol.url import parse_url
from zmqraft.server.recovery import recover_configurations
from zmqraft.server.settings import Settings
from zmqraft.storage import OS_FILE_SYSTEM, FileLog, FileSystem, RaftPersistence, StatePersistence, lock_directory
from zmqraft.storage.failure import describe
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.storage.rotation import keep_copy
from zmqraft.storage.shadow import ShadowFileSystem

__all__ = ["Recovery", "RecoveryPlan", "recover_offline"]

#: The new term is so far above the last one that is known here: the others may have gone on without this peer.
_TERM_MARGIN = 1000


@dataclass(frozen=True)
class RecoveryPlan:
    """What would be done, and what there is to know before one agrees to it."""

    peer_id: str
    #: The configuration that counts, which may be a joint one, and the one that is to take its place.
    before: ClusterConfiguration
    after: ClusterConfiguration
    #: The entry of the former.
    before_index: int
    last_index: int
    last_term: int
    #: Entries up to here are known to be committed; above, nobody here can tell.
    committed: int
    #: Of the new configuration.
    term: int
    #: The paths of the files that change.
    files: tuple[str, ...]

    @property
    def is_new(self) -> bool:
        """Whether there is anything to do."""
        return self.before.is_joint or self.before.urls != self.after.urls


@dataclass(frozen=True)
class Recovery:
    """What was done: the entry of the configuration that counts, the last term of the log, whether the entry is a new
    one, and the copies that were kept, as (file, copy)."""

    index: int
    term: int
    is_new: bool
    copies: tuple[tuple[str, str], ...]


def recover_offline(
    settings: Settings,
    peers: Sequence[tuple[str, str]] | None,
    confirm: Callable[[RecoveryPlan], bool],
    *,
    fs: FileSystem = OS_FILE_SYSTEM,
) -> Recovery | None:
    """Make ``peers``, (id, url) each and by default this peer alone, the members in the log of the peer, if ``confirm``
    says so; None, and nothing has changed, when it does not. It is not asked when these are the members already.

    Raises ConfigurationError when the data directory is in use or has no log, or for a list that cannot be meant;
    CorruptionError or StorageError when the data cannot be used or written.
    """
    _check_data(settings, fs)
    with lock_directory(settings.data.directory, fs=fs):
        plan = _examine(settings, peers, fs)
        if not plan.is_new:
            return Recovery(plan.before_index, plan.last_term, False, ())
        return _carry_out(settings, plan, fs) if confirm(plan) else None


def _check_data(settings: Settings, fs: FileSystem) -> None:
    data = settings.data
    try:
        if fs.kind(str(data.raft_path)) != "file":
            raise ConfigurationError(f"there is no data of a peer in {data.directory}: {data.raft_path} is missing")
        if not LogDirectory(fs, str(data.log_path)).index_files():
            raise ConfigurationError(f"there is no log at {data.log_path}")
    except OSError as error:
        raise StorageError(f"cannot read {data.directory}: {describe(error)}") from error


def _examine(settings: Settings, peers: Sequence[tuple[str, str]] | None, fs: FileSystem) -> RecoveryPlan:
    """Open everything as a start would do, without changing it."""
    shadow = ShadowFileSystem(fs)
    try:
        with (
            contextlib.closing(_open_state(settings, shadow)) as state,
            contextlib.closing(_open_log(settings, shadow, allocation_size=0)) as log,
        ):
            plan = _plan(settings, peers, log, state, _last_applied(settings, shadow))
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EROFS:
            raise ConfigurationError(
                f"a crash has left {settings.data.log_path} half-way through a change that a start finishes: start the "
                "peer, which can do no harm without a majority, stop it, and repeat this"
            ) from error
        raise
    changed = [path for path in shadow.changed if fs.kind(path) == "file"]
    return replace(plan, files=tuple(dict.fromkeys([str(settings.data.raft_path), *changed])))


def _open_state(settings: Settings, fs: FileSystem) -> RaftPersistence:
    return RaftPersistence.open(settings.data.raft_path, peer_id=settings.id, cluster=settings.secret, fs=fs)


def _open_log(settings: Settings, fs: FileSystem, **how: int) -> FileLog:
    data = settings.data
    return FileLog.open(
        data.log_path,
        data.snapshot_path,
        capacity=settings.index_file_capacity,
        old_snapshots_max=data.compact.keep_snapshots,
        fs=fs,
        **how,
    )


def _last_applied(settings: Settings, fs: FileSystem) -> int:
    path = settings.data.state_path
    if fs.kind(str(path)) is None:
        return 0
    with contextlib.closing(StatePersistence.open(path, fs=fs)) as state:
        return state.last_applied


def _plan(
    settings: Settings,
    peers: Sequence[tuple[str, str]] | None,
    log: FileLog,
    state: RaftPersistence,
    last_applied: int,
) -> RecoveryPlan:
    if log.last_index == 0:
        raise ConfigurationError(f"the log at {log.path} is empty: there is nothing to recover; start a new cluster")
    history = recover_configurations(settings, log, state)
    return RecoveryPlan(
        peer_id=settings.id,
        before=history.current,
        after=_new_configuration(settings, history.current, peers),
        before_index=history.current_index,
        last_index=log.last_index,
        last_term=log.last_term,
        committed=min(max(last_applied, log.snapshot.index), log.last_index),
        term=max(state.current_term, log.last_term) + _TERM_MARGIN,
        files=(),
    )


def _new_configuration(
    settings: Settings, before: ClusterConfiguration, peers: Sequence[tuple[str, str]] | None
) -> ClusterConfiguration:
    configured = settings.own_address
    own_url = before.urls.get(settings.id) if configured is None else configured.url
    if peers is None:
        # The url to bind may be one that nobody can connect to.
        return ClusterConfiguration(((settings.id, own_url or parse_url(settings.bind_url)),))
    try:
        after = ClusterConfiguration.from_value(list(peers))
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if settings.id not in after:
        raise ConfigurationError(
            f"the new members ({', '.join(sorted(after.urls))}) are without {settings.id!r}, whose data this is"
        )
    if configured is not None and after.urls[settings.id] != configured.url:
        raise ConfigurationError(
            f"the new members have {settings.id!r} at {after.urls[settings.id]}, the settings at {configured.url}"
        )
    return after


def _carry_out(settings: Settings, plan: RecoveryPlan, fs: FileSystem) -> Recovery:
    copies = tuple((path, _keep_copy(settings, path, fs)) for path in plan.files)
    peers, request_id = plan.after.to_value(), new_request_id(fs.now_seconds())
    with (
        contextlib.closing(_open_state(settings, fs)) as state,
        contextlib.closing(_open_log(settings, fs)) as log,
    ):
        index = log.last_index + 1
        entry = LogEntry(index, plan.term, EntryType.CONFIG, request_id, encode_json(peers))
        log.append(EntryBatch.from_entries([entry]))
        log.sync()
        state.update_peers(peers, request_id, index)
        # Nobody else gets the vote of a term in which this peer has written by itself.
        state.update_vote(plan.term, settings.id)
    return Recovery(index, plan.term, True, copies)


def _keep_copy(settings: Settings, path: str, fs: FileSystem) -> str:
    """Copies of the log's files lie beside its directory, in which nothing else belongs."""
    data = settings.data
    folder = PurePath(path).parent
    if data.log_path in PurePath(path).parents:
        folder = data.log_path.parent
    try:
        return keep_copy(fs, path, str(folder))
    except OSError as error:
        raise StorageError(f"cannot keep a copy of {path}, so that nothing was changed: {describe(error)}") from error
