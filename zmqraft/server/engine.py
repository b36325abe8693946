"""The whole server above the sockets: the Raft core, its storage, the requests of peers and clients.

Knows nothing of sockets, clocks or threads: frames and the time come in, frames go out, and given the same inputs,
times and seed it makes the same outputs. The simulator and the real peer run this same code.

A host runs it in turns. In each it

1. hands in what has arrived (`receive`, `receive_reply`) and what the state machine has applied (`applied`);
2. calls `begin_turn`, and sends what it returns: new entries of a leader, which travel while it writes them;
3. calls `finish_turn`, which writes and syncs. A host with threads may let a leader's sync be done in the background:
   it runs what `take_sync` returns, then calls `synced`;
4. gives what `take_committed` returns to the state machine, and calls `applied`;
5. sends what `take_replies` returns: everything that had to wait for the sync, or for the state machine; what waited
   for the sync only may be taken and sent before 4, too;
6. sends what `finish_turn` has returned: the rest of what is for peers. Clients come first, who wait for it.

An exception out of any of these is the end of the peer: nothing more may be sent. The rule:
whatever states a term, a vote or a match leaves the engine behind the sync in `finish_turn`. While a leader's sync goes
on in the background, nothing counts it as done: its own match, what is applied and what is acknowledged stay below.
"""

from __future__ import annotations

import hmac
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from zmqraft import constants
from zmqraft.api import LogBase, PersistenceBase, SnapshotBase
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.messages import CheckpointToLog, TruncateLog
from zmqraft.core.raft import Role
from zmqraft.errors import InvariantError, RemoteProtocolError
from zmqraft.protocol import EntryBatch, EntryType, LogEntry, Protocols, encode_json
from zmqraft.server.catching_up import CatchingUp, CatchUpProgress
from zmqraft.server.client_requests import ClientRequests
from zmqraft.server.commit_loop import Intake, ReplyQueue
from zmqraft.server.config_updates import ConfigChange
from zmqraft.server.leadership_transfer import LeadershipTransfer, TransferStep
from zmqraft.server.peer_calls import LinkAction, PeerCalls
from zmqraft.server.peer_requests import PeerRequests
from zmqraft.server.recovery import open_raft
from zmqraft.server.settings import Settings
from zmqraft.server.snapshot_transfer import IncomingSnapshot

__all__ = ["BackgroundSync", "Engine", "LinkAction"]

logger = logging.getLogger(__name__)

#: A leader that has written less, in bytes, syncs at once: to hand that to a thread and back takes longer.
_BACKGROUND_SIZE_MIN = 64 * 1024
#: The time of a next turn that is due at once, in seconds from this one.
_SOON = 0.0005
#: How often expired request ids are looked for, in seconds: in the next turn that there is anyway, or after this time
#: once more.
_FORGET_INTERVAL = 1.0
#: Identity, message id, type and secret.
_FRAMES_MIN = 4
#: The state machine's part: (identity, message id), type, frames behind the secret.
MessageHandler = Callable[[tuple[bytes, bytes], bytes, Sequence[bytes]], None]


@dataclass(frozen=True, slots=True)
class BackgroundSync:
    """A leader's sync: ``run`` may be called in any thread, and covers its entries up to ``last_index``."""

    run: Callable[[], None]
    last_index: int
    began: float


class Engine:
    """One peer, without its sockets. Times are in seconds: ``now`` monotonic, ``wall_seconds`` since the epoch."""

    def __init__(
        self,
        settings: Settings,
        log: LogBase,
        persistence: PersistenceBase,
        *,
        last_applied: int,
        now: float,
        random: Random,
        on_message: MessageHandler | None = None,
    ) -> None:
        """``last_applied`` is the state machine's. Raises ConfigurationError or CorruptionError on unfit data."""
        self.settings = settings
        #: What was dropped, by reason. For metrics and tests.
        self.dropped: Counter[str] = Counter()
        self._log = log
        self._persistence = persistence
        self._on_message = on_message
        self.raft = open_raft(settings, log, persistence, last_applied, now, random)
        self._stored_vote = (persistence.current_term, persistence.voted_for)
        last_applied = max(last_applied, log.snapshot.index)
        self._submitted = last_applied
        self._clients = ClientRequests(self.raft, log, settings, last_applied, self.dropped)
        incoming = IncomingSnapshot(log)
        self._peers = PeerRequests(self.raft, incoming, self._install)
        self._calls = PeerCalls(self.raft, log, settings, self._drop)
        self._catching_up = CatchingUp(self.raft, incoming, settings, self._install)
        self._random = random
        self._forget_at = now
        self._seen = (self.raft.role, self.raft.current_term)
        self._configuration: ClusterConfiguration | None = None
        self._seen_peers: tuple[ClusterConfiguration | None, int, dict[str, str] | None] = (None, 0, None)
        #: The url of every other peer, by id: the DEALER sockets that the host must keep. Another object when it
        #: changes.
        self.link_urls: dict[str, str] = {}
        # A leader's new entries until they are in the log, within a turn.
        self._unwritten: EntryBatch | None = None
        # Whether updates may have been left where they are, since no link had room for them.
        self._is_collecting = False
        # The snapshot that has taken the place of entries which the state machine has not applied.
        self._restore: SnapshotBase | None = None
        self._transfer: LeadershipTransfer | None = None
        # Whether this peer is in the configuration that links and the state file follow.
        self._is_member = False
        # Until when a leader that was removed waits for its state machine, before it makes way.
        self._leave_at = math.inf
        # When those who were kept waiting in a transfer are answered at the latest.
        self._release_at = -math.inf
        self._wall_seconds = 0.0
        # Replies may leave only when this is so.
        self._is_synced = False
        # The sync that goes on in the background, and whether the host has still to take it.
        self._sync: BackgroundSync | None = None
        self._sync_taken = False
        # The bytes of a leader's entries that no sync covers yet.
        self._unsynced_size = 0
        # How long a disk, a state machine or a peer may take before a leader acts without it.
        self._patience = settings.election_timeout_max / 1000
        self._follow_configuration()

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def last_applied(self) -> int:
        """The index up to which the state machine has applied entries."""
        return self._clients.last_applied

    @property
    def catch_up_progress(self) -> CatchUpProgress | None:
        """How far a peer that is no member has come with reading the log; None for a member."""
        return self._catching_up.progress if self.raft.role is Role.CLIENT else None

    def next_deadline(self, now: float) -> float:
        """The time of the next turn, if nothing arrives before."""
        if self._transfer is not None and self._transfer.is_silent:
            return self._transfer.deadline
        return min(
            self.raft.next_deadline(now),
            self._clients.next_deadline(),
            self._forget_at + _FORGET_INTERVAL,
            math.inf if self._sync is None else self._sync.began + self._patience,
            self._calls.deadline,
            self._catching_up.deadline if self.raft.role is Role.CLIENT else math.inf,
            self._change_deadline(now),
        )

    def _change_deadline(self, now: float) -> float:
        """When a transfer, or the end of a leader that was removed, goes on."""
        if self._transfer is not None:
            # Nothing is under way that would end the wait for a turn, when it has only begun.
            return self._transfer.deadline if self._clients.is_holding else now + _SOON
        if self._clients.is_holding:
            return self._release_at
        if self._is_removed:
            return now + _SOON if self.last_applied >= self.raft.configurations.current_index else self._leave_at
        return math.inf

    @property
    def _is_removed(self) -> bool:
        return not self._is_member and self.raft.is_removed

    # --- inputs -----------------------------------------------------------------------------------------------------

    def open_intake(self, wall_seconds: float) -> Intake:
        """What takes the messages on the ROUTER socket; those that it leaves go to `receive_other`."""
        self._is_synced = False
        self._clients.open_intake(wall_seconds)
        return self._clients.intake

    def receive(self, frames: Sequence[bytes], now: float, wall_seconds: float) -> None:
        """A message on the ROUTER socket, its identity first. Everything malformed is dropped and counted."""
        if not self.open_intake(wall_seconds).offer(frames):
            self.receive_other(frames, None, now, wall_seconds)

    def receive_other(
        self, frames: Sequence[bytes], entries: EntryBatch | None, now: float, wall_seconds: float
    ) -> None:
        """A message that the intake has not taken, as it came out of `Intake.drain`."""
        self._is_synced = False
        try:
            self._receive(frames, entries, now, wall_seconds)
        except RemoteProtocolError as error:
            self._drop("malformed message", error)

    def _receive(self, frames: Sequence[bytes], entries: EntryBatch | None, now: float, wall_seconds: float) -> None:
        if len(frames) < _FRAMES_MIN:
            raise RemoteProtocolError(f"a message of {len(frames)} frames")
        identity, message_id, message_type, secret = frames[:_FRAMES_MIN]
        if not hmac.compare_digest(secret, self.settings.secret):
            self._drop("wrong secret", None)
        elif not message_type or not message_id:
            raise RemoteProtocolError("a message without a type or an id")
        elif PeerRequests.is_peer_type(message_type):
            reply = self._peers.handle(identity, message_id, frames[2:], entries, now, wall_seconds)
            if reply is not None:
                self._clients.replies.append([identity, message_id, *reply])
            self._after_step()
        elif not self._clients.handle(identity, message_id, frames[2:], now, wall_seconds):
            if self._on_message is None:
                raise RemoteProtocolError(f"a message of unknown type {message_type!r:.100}")
            self._on_message((identity, message_id), message_type, frames[_FRAMES_MIN:])

    def _drop(self, reason: str, error: Exception | None) -> None:
        self.dropped[reason] += 1
        logger.debug("%s: dropped a message: %s", self.settings.id, error or reason)

    def receive_reply(self, peer_id: str, frames: Sequence[bytes], now: float) -> bool:
        """A message on the DEALER socket of a peer: the reply to a request to it, if it is an outstanding one.

        Returns whether a turn has something to do. When nothing else has happened, and `next_deadline` has not come, it
        may be left out: replies to heartbeats are most of what an idle leader hears.
        """
        self._is_synced = False
        if frames and self._catching_up.is_answer(frames):
            try:
                self._catching_up.receive(peer_id, frames, now, self._wall_seconds)
            except RemoteProtocolError as error:
                self._drop("malformed reply", error)
            has_work = True
        else:
            has_work = self._calls.receive_reply(peer_id, frames, now)
        self._after_step()
        return (
            has_work
            or self._is_collecting
            or self._transfer is not None
            or self._clients.has_reads
            or not self.raft.is_leader
        )

    def applied(self, index: int) -> None:
        """The state machine has applied every entry up to ``index``."""
        self._clients.applied(index)

    @property
    def requests_forgotten_until(self) -> int:
        """Request ids whose own time (seconds since the epoch) is at or before this are refused."""
        return self._clients.requests_forgotten_until

    def compact(self, snapshot: SnapshotBase) -> None:
        """Let a snapshot that `LogBase.begin_compaction` has put in its place stand for the entries up to its index."""
        if snapshot.index > self.last_applied:
            raise InvariantError(f"a snapshot of index {snapshot.index}, but {self.last_applied} is the last applied")
        self._log.compact(snapshot)
        self.raft.log.compact(snapshot.index)

    # --- a turn -----------------------------------------------------------------------------------------------------

    def begin_turn(self, now: float, wall_seconds: float) -> list[LinkAction]:
        """Do what is due, and return a leader's new entries, which may travel before they are written here."""
        self._is_synced = False
        self._wall_seconds = wall_seconds
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_INTERVAL
            self._clients.forget_old_requests(wall_seconds)
        self._check_sync(now)
        self.raft.tick(now)
        self._after_step()
        self._store_vote()
        self._write_log()
        if self.raft.is_leader:
            self._propose(now, wall_seconds)
        actions = self._calls.begin_turn()
        if self._transfer is not None or self._is_removed:
            self._make_way(actions, now)
        elif self.raft.is_leader:
            self._calls.send(actions, now, entries_only=True, unwritten=self._unwritten)
        return actions

    def _propose(self, now: float, wall_seconds: float) -> None:
        """Append what clients have sent, if it could travel now. While every link is busy it is better collected, for
        one sync.

        Until updates are taken nothing else may be appended: their clients wait for the indexes that they will have.
        """
        change = self._next_change(wall_seconds)
        self._is_collecting = change is None and self._transfer is None and not self._calls.has_way_out(now)
        if self._is_collecting:
            return
        self._unwritten = self._clients.take_proposals(now)
        if self._unwritten is not None:
            self.raft.propose(self._unwritten, (), now)
        if change is not None:
            self._append_change(change, now)
        if self._transfer is not None:
            self._clients.hold()

    def _next_change(self, wall_seconds: float) -> ConfigChange | None:
        """The configuration that a leader has to append: the end of a change, or the beginning of the next."""
        if self.raft.wants_final_configuration:
            request_id = int(wall_seconds).to_bytes(4, "big") + self._random.randbytes(constants.REQUEST_ID_SIZE - 4)
            return ConfigChange(self.raft.configuration.final, request_id)
        return self._clients.config_updates.take()

    def _append_change(self, change: ConfigChange, now: float) -> None:
        """It counts from here on (section 6); `finish_turn` syncs it."""
        self._write_unwritten()
        index = self.raft.log.last_index + 1
        entry = LogEntry(
            index,
            self.raft.current_term,
            EntryType.CONFIG,
            change.request_id,
            encode_json(change.configuration.to_value()),
        )
        logger.info("%s: the configuration at %d is %s", self.settings.id, index, change.configuration.to_value())
        for peer_id in change.configuration.urls:
            if peer_id in self.raft.leaving or peer_id not in self.raft.progress:
                self._calls.forget(peer_id)
        self.raft.propose(EntryBatch.from_entries([entry]), [(index, change.configuration)], now)
        self._write_log()

    def _write_unwritten(self) -> None:
        self._write_log()
        if self._unwritten is not None:
            self._unsynced_size += self._unwritten.size
            self._unwritten = None

    def finish_turn(self, now: float, *, in_background: bool = False) -> list[LinkAction]:
        """Write, and sync or let `take_sync` have that, for the host to do ``in_background``. Returns what peers are to
        be sent.

        Only what a leader appends is synced in the background, and no change of the configuration.
        """
        self._write_unwritten()
        in_background = in_background and (self._sync is not None or self._unsynced_size >= _BACKGROUND_SIZE_MIN)
        if in_background and self.raft.is_leader and self.raft.configuration is self._configuration:
            self._begin_sync(now)
        else:
            self._sync_log()
        self._is_synced = True
        self._follow_configuration()
        if self._clients.is_holding and self._transfer is None:
            self._release(now)
        self._clients.tick(now)
        actions: list[LinkAction] = []
        if self._transfer is None or not self._transfer.is_silent:
            self._calls.send(actions, now, entries_only=False)
            if self.raft.is_leader:
                self._calls.ask_capabilities(actions, now)
            elif not self.raft.is_configuration_known:
                self._calls.ask_configuration(actions, now)
            if self._catching_up.is_needed(now):
                for peer_id, frames in self._catching_up.next_messages(list(self.link_urls), now):
                    actions.append(LinkAction(peer_id, (frames, None), keep=True))
        return actions

    def _sync_log(self) -> None:
        self._sync = None
        self._unsynced_size = 0
        self._log.sync()
        self.raft.log_synced()

    def _begin_sync(self, now: float) -> None:
        """At most one at a time: what is appended meanwhile is for the next."""
        if self._sync is not None:
            return
        self._unsynced_size = 0
        run = self._log.begin_sync()
        if run is None:
            self.raft.log_synced()
        else:
            self._sync = BackgroundSync(run, self.raft.log.last_index, now)
            self._sync_taken = False

    def take_sync(self) -> BackgroundSync | None:
        """A sync that the host is to run in the background now, if there is one; then it calls `synced`."""
        if self._sync is None or self._sync_taken:
            return None
        self._sync_taken = True
        return self._sync

    def synced(self, sync: BackgroundSync) -> None:
        """A sync has been run. It counts if this peer has led all the time."""
        if sync is self._sync:
            self._sync = None
            self.raft.log_synced(sync.last_index)

    def _check_sync(self, now: float) -> None:
        """A leader whose disk hangs must not keep the others from electing one whose disk does not."""
        if self._sync is not None and now >= self._sync.began + self._patience:
            logger.warning("%s: a sync takes more than %g s; stepping down", self.settings.id, self._patience)
            self.raft.step_down(now)

    def take_replies(self) -> ReplyQueue:
        """The replies since the last call, to be sent at once. InvariantError when what they state is not synced."""
        if not self._is_synced:
            raise InvariantError("replies were asked for before what they state is synced")
        replies = self._clients.replies
        if len(replies):
            self._clients.replies = ReplyQueue()
        return replies

    def take_committed(self, size_max: int) -> EntryBatch | None:
        """The next entries that are committed and on this peer's disk, and were not given out yet; about ``size_max``
        bytes of them. None when there are none. The host calls `applied` for them, in the same order."""
        last = min(self.raft.commit_index, self.raft.synced_index)
        if self._submitted >= last:
            return None
        batch = self._log.read(self._submitted + 1, last, size_max)
        self._submitted = batch.last_index
        return batch

    # --- leadership that is given away ------------------------------------------------------------------------------

    def begin_transfer(self, target_id: str | None, now: float, *, must: bool) -> None:
        """Let another peer lead: ``target_id``, or by default the one of ours that has the most entries.

        When none can take over within the election timeout, a leader that ``must`` go steps down all the same; else it
        goes on leading. Nothing happens when this peer does not lead, or is about to make way already. ValueError when
        the target is not another member.
        """
        if self.raft.is_leader and self._transfer is None:
            self._transfer = LeadershipTransfer(
                self.raft, self._calls, target_id, must=must, patience=self._patience, now=now
            )

    @property
    def is_making_way(self) -> bool:
        """Whether a transfer is under way, up to the moment at which clients can be told who leads now."""
        return self._transfer is not None or self._clients.is_holding

    def _make_way(self, actions: list[LinkAction], now: float) -> None:
        """Go on with a transfer; or begin the one of a leader that was removed, once its clients know of the change."""
        if self._transfer is None:
            if self._leave_at == math.inf:
                self._leave_at = now + self._patience
            if self.last_applied < self.raft.configurations.current_index and now < self._leave_at:
                return
            logger.info("%s: removed from the cluster; making way", self.settings.id)
            self.begin_transfer(None, now, must=True)
            return
        step = TransferStep.GIVE_UP if self._transfer.is_over else self._transfer.step(now)
        if step is TransferStep.NOTIFY:
            self._tell_transfer(actions)
        elif step is not TransferStep.WAIT:
            self._transfer = None
            self._release_at = now + self._patience
            if step is TransferStep.STEP_DOWN:
                self.raft.step_down(now)
                self._after_step()

    def _tell_transfer(self, actions: list[LinkAction]) -> None:
        target_id = self._transfer.target_id if self._transfer is not None else None
        logger.info("%s: making way for %s in term %d", self.settings.id, target_id, self.raft.current_term)
        frames = Protocols.TRANSFER_NOTICE.encode_request(
            constants.TRANSFER_NOTICE, self.settings.secret, self.raft.id, self.raft.current_term, target_id
        )
        for peer_id in self.link_urls:
            if self._calls.is_ours(peer_id):
                self._calls.notify(actions, peer_id, frames)

    def _release(self, now: float) -> None:
        """Who was kept waiting is answered: by now it is known who leads, or it takes too long."""
        if self.raft.known_leader_id is not None or now >= self._release_at:
            self._clients.release(now, self._wall_seconds)

    # --- a leader's snapshot ------------------------------------------------------------------------------------------

    def _install(self, snapshot: SnapshotBase) -> None:
        """Let a snapshot that a leader has sent take the place of the log, durably (section 7). What the log has to be
        told before comes first."""
        self._store_vote()
        self._write_log()
        self._log.install(snapshot)
        context = snapshot.context
        configuration = None
        if context.peers is not None:
            configuration = (context.peers_index, ClusterConfiguration.from_value(context.peers))
        self.raft.snapshot_installed(snapshot.index, snapshot.term, configuration)
        logger.info("%s: the snapshot of index %d was installed", self.settings.id, snapshot.index)
        self._clients.snapshot_installed()
        self._submitted = snapshot.index
        self._restore = snapshot

    def take_restore(self) -> SnapshotBase | None:
        """The snapshot that the state machine is to become, behind everything that `take_committed` has given out, and
        before what it gives next; then the host calls `applied` with its index. None when there is none."""
        snapshot, self._restore = self._restore, None
        return snapshot

    # --- inside a turn ----------------------------------------------------------------------------------------------

    def _after_step(self) -> None:
        """Notice a change of role or term at once, before the next input: requests and promises of the old one end."""
        role, term = self.raft.role, self.raft.current_term
        if (role, term) == self._seen:
            return
        was, _ = self._seen
        self._seen = (role, term)
        logger.info("%s: %s in term %d", self.settings.id, role.value, term)
        # What it covers may be cut off; `finish_turn` syncs by itself, behind it.
        self._sync = None
        self._calls.role_changed()
        if was is Role.LEADER:
            self._leave_at = math.inf
            self._clients.leadership_lost()

    def _store_vote(self) -> None:
        vote = (self.raft.current_term, self.raft.voted_for)
        if vote != self._stored_vote:
            self._persistence.update_vote(*vote)
            self._stored_vote = vote

    def _write_log(self) -> None:
        for effect in self.raft.take_log_effects():
            if isinstance(effect, TruncateLog):
                logger.warning(
                    "%s: cutting the log back to %d, another leader's entries follow", self.settings.id, effect.index
                )
                self._clients.entries_replaced()
                self._log.truncate_after(effect.index)
            elif isinstance(effect, CheckpointToLog):
                self._log.append(EntryBatch.from_entries([LogEntry.checkpoint(effect.index, effect.term)]))
            else:
                entries = effect.entries
                if not isinstance(entries, EntryBatch):
                    raise TypeError(f"entries to append are an EntryBatch, not {type(entries).__name__}")
                self._log.append(entries)

    def _follow_configuration(self) -> None:
        """Keep links and the state file in step with the configuration in the (synced) log."""
        configuration, learned = self.raft.configuration, self._catching_up.learned_urls
        leaving = len(self.raft.leaving)
        seen_configuration, seen_leaving, seen_learned = self._seen_peers
        if configuration is seen_configuration and leaving == seen_leaving and learned is seen_learned:
            return
        if configuration is not self._configuration:
            self._store_configuration(configuration)
        self._configuration, self._seen_peers = configuration, (configuration, leaving, learned)
        self._is_member = self.raft.id in configuration
        self.link_urls = self.raft.peer_urls
        if self.raft.role is Role.CLIENT:
            # Those whom its own configuration does not have may be the only ones that are left.
            self.link_urls = {id: url for id, url in learned.items() if id != self.raft.id} | self.link_urls
        self._calls.follow(list(self.link_urls))

    def _store_configuration(self, configuration: ClusterConfiguration) -> None:
        """The log is what counts; the state file follows it, for zmq-raft and for when the log is compacted.

        The first one is stored as well: from then on only the log changes the members of a cluster, not an edited
        configuration file.
        """
        index = self.raft.configurations.current_index
        peers = configuration.to_value()
        stored = self._persistence
        if index < self._log.first_index:
            if stored.peers != peers:
                stored.update_peers(peers, None, None)
        elif stored.peers_index != index or stored.peers != peers:
            stored.update_peers(peers, self._log.read(index, index, 0).request_id(0), index)
