"""The core in the state in which the peer was left, according to its disk.

SPEC section 3, "On start". Knows nothing of what comes after the start. The rule: the log is what counts; where the
state file says less or something else, the log is believed.
"""

from __future__ import annotations

from random import Random

from zmqraft import constants
from zmqraft.api import LogBase, PersistenceBase
from zmqraft.core.configuration import ClusterConfiguration, ConfigurationHistory
from zmqraft.core.log_terms import LogTerms
from zmqraft.core.raft import Raft, Timing
from zmqraft.errors import ConfigurationError, CorruptionError, RemoteProtocolError
from zmqraft.server.peer_requests import configurations_of
from zmqraft.server.settings import Settings

__all__ = ["open_raft", "recover_configurations"]


def open_raft(
    settings: Settings, log: LogBase, persistence: PersistenceBase, last_applied: int, now: float, random: Random
) -> Raft:
    """The core of a peer with this disk; ``last_applied`` is what its state machine says that it has applied.

    Raises ConfigurationError when that is not in the log, CorruptionError when a configuration in the log is damaged.
    """
    if last_applied > log.last_index:
        raise ConfigurationError(
            f"the state machine has applied entries up to {last_applied}, but the log ends at {log.last_index}: "
            "it belongs to other data"
        )
    current_term, voted_for = persistence.current_term, persistence.voted_for
    if current_term < log.last_term:
        # A vote belongs to its term.
        current_term, voted_for = log.last_term, None
    return Raft(
        settings.id,
        configurations=recover_configurations(settings, log, persistence),
        log=LogTerms(
            snapshot_index=log.snapshot.index,
            snapshot_term=log.snapshot.term,
            last_index=log.last_index,
            runs=log.term_runs(),
        ),
        current_term=current_term,
        voted_for=voted_for,
        commit_index=max(last_applied, log.snapshot.index),
        now=now,
        random=random,
        timing=Timing(
            election_min=settings.election_timeout_min / 1000,
            election_max=settings.election_timeout_max / 1000,
            election_start_extra=constants.ELECTION_TIMEOUT_START_EXTRA_MS / 1000,
            heartbeat=settings.append_entries_heartbeat_interval / 1000,
            vote_retry=settings.rpc_timeout / 1000,
        ),
        prevent_spiral_elections=settings.prevent_spiral_elections,
        is_configuration_known=_is_configuration_known(log),
    )


def _is_configuration_known(log: LogBase) -> bool:
    """False when the log begins behind a snapshot that came without a configuration (`SnapshotContext.unknown`), and
    has none since."""
    context = log.snapshot.context
    came_without = context.peers is None and context.requests_forgotten_until > 0
    return not came_without or any(index >= log.first_index for index in log.config_indexes())


def recover_configurations(settings: Settings, log: LogBase, persistence: PersistenceBase) -> ConfigurationHistory:
    """The configurations in the log, above that of the snapshot. Where the snapshot has none, as one of zmq-raft's,
    above the one in the state file when its entry is compacted away, else above the configured peers."""
    base, base_index = ClusterConfiguration.from_value(settings.peer_urls), 0
    stored_index = persistence.peers_index
    context = log.snapshot.context
    if context.peers is not None:
        base, base_index = ClusterConfiguration.from_value(context.peers), context.peers_index
    elif persistence.peers is not None and (stored_index is None or stored_index < log.first_index):
        base = ClusterConfiguration.from_value(persistence.peers)
    history = ConfigurationHistory(base, base_index)
    for index in log.config_indexes():
        if index >= log.first_index:
            try:
                history.append(configurations_of(log.read(index, index, 0)))
            except RemoteProtocolError as error:
                raise CorruptionError(f"the log holds a configuration that does not decode: {error}") from error
    return history
