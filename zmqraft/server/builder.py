"""Assembles a peer from its settings; every component can be replaced.

The rule: the data directory is locked before anything in it is opened, and whatever was opened is closed again when a
later step fails.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from zmqraft.api import LogBase, PersistenceBase, SnapshotBase, StateMachineBase
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.errors import ConfigurationError
from zmqraft.protocol import EntryBatch
from zmqraft.server.broadcast import BroadcastStateMachine
from zmqraft.server.peer import ZmqRaft
from zmqraft.server.repair import open_mended
from zmqraft.server.settings import Settings
from zmqraft.storage import FileLog, RaftPersistence, StatePersistence, lock_directory

__all__ = ["build_peer", "make_state_machine", "open_log", "open_persistence"]


logger = logging.getLogger(__name__)


class _NoStateMachine(StateMachineBase):
    """Applies nothing: for a peer whose clients read the log and nothing else."""

    inline = True

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        """Nothing is kept."""

    def restore(self, snapshot: SnapshotBase) -> None:
        """Nothing is there to come back."""


def open_persistence(settings: Settings) -> PersistenceBase:
    """Term, vote and configuration, in the state file of the data directory."""
    _check_exists(settings, settings.data.raft_path)
    return RaftPersistence.open(settings.data.raft_path, peer_id=settings.id, cluster=settings.secret)


def open_log(settings: Settings) -> FileLog:
    """The log and the snapshot in the data directory, with the request ids that are young enough to be repeated."""
    _check_exists(settings, settings.data.log_path)
    ttl_ms = settings.request_id_ttl
    return FileLog.open(
        settings.data.log_path,
        settings.data.snapshot_path,
        capacity=settings.index_file_capacity,
        old_snapshots_max=settings.data.compact.keep_snapshots,
        request_id_cache_max=settings.request_id_cache_max,
        remember_after_seconds=0 if ttl_ms is None else int(time.time() - ttl_ms / 1000),
    )


def _check_exists(settings: Settings, path: Path) -> None:
    if settings.data.must_exist and not path.exists():
        raise ConfigurationError(
            f"{path} is missing, but data.mustExist says that peer {settings.id!r} has data: perhaps a disk is not "
            "mounted. A peer that has lost its data must not start again under its id: remove it from the cluster and "
            "add a new one under a new id. To start a new peer: zmqraft run --new"
        )


def make_state_machine(settings: Settings) -> StateMachineBase:
    """A `BroadcastStateMachine` when the settings have a broadcast url, else one that does nothing."""
    broadcast = settings.broadcast
    if broadcast.url is None:
        return _NoStateMachine()
    return BroadcastStateMachine(
        broadcast.url,
        bind=broadcast.bind_url,
        heartbeat_interval_ms=broadcast.broadcast_heartbeat_interval,
        persistence=StatePersistence.open(settings.data.state_path),
    )


def build_peer(
    settings: Settings,
    *,
    state_machine: Callable[[Settings], StateMachineBase] = make_state_machine,
    persistence: Callable[[Settings], PersistenceBase] = open_persistence,
    log: Callable[[Settings], LogBase] = open_log,
    random: Random | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> ZmqRaft:
    """A peer that is ready to start. Each factory gets the settings; what it returns belongs to the peer.

    Where entries of the log are damaged this fetches them from the other peers first, and returns when that is done, or
    raises ClosedError when ``stopped`` says so meanwhile: it is called from time to time.

    Raises ConfigurationError when the data directory cannot be used or belongs to another peer or cluster,
    CorruptionError or StorageError when what is in it cannot be.
    """
    with contextlib.ExitStack() as stack:
        lock = lock_directory(settings.data.directory)
        stack.callback(lock.close)
        state = persistence(settings)
        stack.callback(state.close)
        _check_same_cluster(settings, state)
        entries = open_mended(settings, log, state, stopped)
        stack.callback(entries.close)
        machine = state_machine(settings)
        stack.callback(machine.close)
        resources = contextlib.ExitStack()
        resources.callback(lock.close)
        peer = ZmqRaft(settings, entries, state, machine, random=random, resources=resources)
        stack.pop_all()
        return peer


def _check_same_cluster(settings: Settings, state: PersistenceBase) -> None:
    """A configuration in the data of which no peer is configured, where the data does not say whose it is, or whose url
    of this peer is another one, is a sign of mixed-up directories. Going on could give votes and entries of one cluster
    to another."""
    if state.peers is None:
        return
    stored = ClusterConfiguration.from_value(state.peers).urls
    where = settings.data.raft_path
    # All that are configured may have been replaced.
    if not state.is_identified and not set(stored) & {settings.id, *(peer.id for peer in settings.peers)}:
        raise ConfigurationError(
            f"{where} holds data of another cluster: its peers are {', '.join(sorted(stored))}, configured are "
            f"{', '.join(peer.id for peer in settings.peers)}"
        )
    own = settings.own_address
    if stored != dict(settings.peer_urls):
        logger.warning("the peers are those in %s and the log, not those of the configuration: %s", where, stored)
    if own is not None and stored.get(settings.id, own.url) != own.url:
        raise ConfigurationError(
            f"{where} says that peer {settings.id!r} has the url {stored[settings.id]}, configured is {own.url}; "
            "an id keeps its url, so add a new peer under a new id and remove this one"
        )
