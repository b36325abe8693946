"""The whole server above the sockets: the Raft core, its storage, the requests of peers and clients.

Knows nothing of sockets, clocks or threads: frames and the time come in, frames go out, and given the same inputs,
times and seed it makes the same outputs. The simulator and the real peer run this same code.

A host runs it in turns. In each it

1. hands in what has arrived (`receive`, `receive_reply`) and what the state machine has applied (`applied`);
2. calls `begin_turn`, and sends what it returns: new entries of a leader, which travel while it writes them;
3. calls `finish_turn`, which writes and syncs. A host with threads may let a leader's sync be done in the background:
   it runs what `take_sync` returns, then calls `synced`;
4. gives what `take_committed` returns to the state machine, and calls `applied`;
5. sends what `take_replies` returns: everything that had to wait for the sync, or for the state machine;
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
from zmqraft.core.messages import (
    AppendReply,
    CheckpointToLog,
    CommitNotice,
    RequestVote,
    SendAppend,
    SendCommitNotice,
    SendVoteRequest,
    TruncateLog,
    VoteReply,
)
from zmqraft.core.raft import Role
from zmqraft.errors import InvariantError, RemoteProtocolError
from zmqraft.protocol import EntryBatch, LogEntry, Protocols
from zmqraft.server.client_requests import ClientRequests
from zmqraft.server.commit_loop import Intake, ReplyQueue
from zmqraft.server.peer_link import Message, PeerLink
from zmqraft.server.peer_requests import PeerRequests, reachable_term
from zmqraft.server.recovery import open_raft
from zmqraft.server.settings import Settings

__all__ = ["BackgroundSync", "Engine", "LinkAction"]

logger = logging.getLogger(__name__)

#: A leader that has written less, in bytes, syncs at once: to hand that to a thread and back takes longer.
_BACKGROUND_SIZE_MIN = 64 * 1024
#: How often expired request ids are looked for.
_FORGET_INTERVAL = 1.0
#: The id of the question for capabilities: longer than those of the requests that a link keeps.
_CAPABILITIES_ID = b"\xff\xff\xff\xff"
#: Requests that may be outstanding to a peer that is known to be ours: the second gets there while the first is synced.
_OWN_WINDOW = 2
#: The message id of a notice, which is not answered.
_NOTICE_ID = b"\0"
#: A peer that does not say that it is ours is asked again after this many seconds, then twice as many, and so on.
_CAPABILITIES_RETRY = 0.2
_CAPABILITIES_RETRY_MAX = 60.0
#: Identity, message id, type and secret.
_FRAMES_MIN = 4
#: The state machine's part: (identity, message id), type, frames behind the secret.
MessageHandler = Callable[[tuple[bytes, bytes], bytes, Sequence[bytes]], None]


@dataclass(frozen=True, slots=True)
class LinkAction:
    """Send a message to a peer; or, when it is None, drop what is queued for it: disconnect and connect anew.

    While the message before it has not left, a message waits when ``keep`` is set, and is dropped when it is not: it is
    a repetition, or something that is made up for later.
    """

    peer_id: str
    message: Message | None
    keep: bool = False


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
        last_applied = max(last_applied, log.snapshot.index)
        self._submitted = last_applied
        self._clients = ClientRequests(self.raft, log, settings, last_applied, self.dropped)
        self._peers = PeerRequests(self.raft)
        self._links: dict[str, PeerLink] = {}
        self._resets: list[str] = []
        # Of peers that are known to be ours: how many bytes of entries they take in one message. And when to ask the
        # others: (time, seconds until the next time).
        self._append_sizes: dict[str, int] = {}
        self._ask_at: dict[str, tuple[float, float]] = {}
        self._forget_at = now
        self._seen = (self.raft.role, self.raft.current_term)
        self._configuration: ClusterConfiguration | None = None
        # A leader's new entries until they are in the log, within a turn; and who was sent something in it.
        self._unwritten: EntryBatch | None = None
        self._sent_to: set[str] = set()
        # Replies may leave only when this is so.
        self._is_synced = False
        # The sync that goes on in the background, and whether the host has still to take it.
        self._sync: BackgroundSync | None = None
        self._sync_taken = False
        # The bytes of a leader's entries that no sync covers yet.
        self._unsynced_size = 0
        self._sync_patience = settings.election_timeout_max / 1000
        self._votes_resend = settings.rpc_timeout / 1000
        self._appends_resend = (
            settings.append_entries_rpc_timeout_min / 1000,
            settings.append_entries_rpc_timeout_max / 1000,
        )
        self._follow_configuration()

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def last_applied(self) -> int:
        """The index up to which the state machine has applied entries."""
        return self._clients.last_applied

    @property
    def link_urls(self) -> dict[str, str]:
        """The url of every other peer, by id: the DEALER sockets that the host must keep."""
        return {peer_id: url for peer_id, url in self.raft.configuration.urls.items() if peer_id != self.raft.id}

    def next_deadline(self, now: float) -> float:
        """The time of the next turn, if nothing arrives before."""
        return min(
            self.raft.next_deadline(now),
            self._clients.next_deadline(),
            self._forget_at,
            math.inf if self._sync is None else self._sync.began + self._sync_patience,
            min((link.deadline for link in self._links.values()), default=math.inf),
        )

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
            reply = self._peers.handle(identity, message_id, frames[2:], entries, now)
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

    def receive_reply(self, peer_id: str, frames: Sequence[bytes], now: float) -> None:
        """A message on the DEALER socket of a peer: the reply to the request to it, if it is the outstanding one."""
        self._is_synced = False
        if frames and frames[0] == _CAPABILITIES_ID:
            self._learn_capabilities(peer_id, frames[1:])
            return
        link = self._links.get(peer_id)
        count = 0 if link is None or not frames else link.answered_by(frames[0])
        if link is None or count == 0:
            self._drop("late reply", None)
            return
        try:
            reply = self._decode_reply(frames[1:])
        except RemoteProtocolError as error:
            self._drop("malformed reply", error)
            return
        link.close_requests(count, now)
        if isinstance(reply, VoteReply):
            self.raft.step_vote_reply(peer_id, reply, now)
        else:
            self.raft.step_append_reply(peer_id, reply, now, count=count)
            if not reply.success:
                link.give_up()
        self._after_step()

    def _learn_capabilities(self, peer_id: str, frames: Sequence[bytes]) -> None:
        try:
            (append_size_max,) = Protocols.CAPABILITIES.decode_response(frames)
        except RemoteProtocolError as error:
            self._drop("malformed reply", error)
            return
        size_max = max(constants.OWN_APPEND_SIZE_MAX, self.settings.peer_msg_data_size)
        self._append_sizes[peer_id] = max(self.settings.peer_msg_data_size, min(append_size_max, size_max))

    def _decode_reply(self, frames: Sequence[bytes]) -> VoteReply | AppendReply:
        # The links are reset with every change of role, so the role says what the outstanding request was.
        if self.raft.role is Role.CANDIDATE:
            term, granted = Protocols.REQUEST_VOTE.decode_response(frames)
            return VoteReply(reachable_term(term, self.raft.current_term), granted)
        term, success, *conflict = Protocols.APPEND_ENTRIES.decode_response(frames)
        return AppendReply(reachable_term(term, self.raft.current_term), success, *conflict)

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
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_INTERVAL
            self._clients.forget_old_requests(wall_seconds)
        self._check_sync(now)
        self.raft.tick(now)
        self._after_step()
        self._store_vote()
        self._write_log()
        if self.raft.is_leader and self._has_way_out(now):
            self._unwritten = self._clients.take_proposals(now)
            if self._unwritten is not None:
                self.raft.propose(self._unwritten, (), now)
        actions = [LinkAction(peer_id, None) for peer_id in self._resets]
        self._resets = []
        self._sent_to = set()
        if self.raft.is_leader:
            self._send_to_peers(actions, now, entries_only=True)
        return actions

    def _has_way_out(self, now: float) -> bool:
        """Whether new entries could travel now. While every link is busy they are better collected, for one sync.

        Until they are taken nothing else may be appended: their clients wait for the indexes that they will have.
        """
        return not self._links or any(
            len(link) < self._window(peer_id) or now >= link.deadline for peer_id, link in self._links.items()
        )

    def _window(self, peer_id: str) -> int:
        """How many requests may be outstanding to a peer."""
        return _OWN_WINDOW if peer_id in self._append_sizes else 1

    def finish_turn(self, now: float, *, in_background: bool = False) -> list[LinkAction]:
        """Write, and sync or let `take_sync` have that, for the host to do ``in_background``. Returns what peers are to
        be sent.

        Only what a leader appends is synced in the background, and no change of the configuration.
        """
        self._write_log()
        if self._unwritten is not None:
            self._unsynced_size += self._unwritten.size
            self._unwritten = None
        in_background = in_background and (self._sync is not None or self._unsynced_size >= _BACKGROUND_SIZE_MIN)
        if in_background and self.raft.is_leader and self.raft.configuration is self._configuration:
            self._begin_sync(now)
        else:
            self._sync = None
            self._unsynced_size = 0
            self._log.sync()
            self.raft.log_synced()
        self._is_synced = True
        self._follow_configuration()
        self._clients.tick(now)
        actions: list[LinkAction] = []
        self._send_to_peers(actions, now, entries_only=False)
        if self.raft.is_leader:
            self._ask_capabilities(actions, now)
        return actions

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
        if self._sync is not None and now >= self._sync.began + self._sync_patience:
            logger.warning("%s: a sync takes more than %g s; stepping down", self.settings.id, self._sync_patience)
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

    # --- inside a turn ----------------------------------------------------------------------------------------------

    def _after_step(self) -> None:
        """Notice a change of role or term at once, before the next input: requests and promises of the old one end."""
        role, term = self.raft.role, self.raft.current_term
        if (role, term) == self._seen:
            return
        was, _ = self._seen
        self._seen = (role, term)
        logger.info("%s: %s in term %d", self.settings.id, role.value, term)
        self._append_sizes.clear()
        self._ask_at.clear()
        # What it covers may be cut off; `finish_turn` syncs by itself, behind it.
        self._sync = None
        for peer_id, link in self._links.items():
            # A new leader need not reset: the votes that are still out no longer matter.
            if link.give_up() and role is not Role.LEADER:
                self._resets.append(peer_id)
        if was is Role.LEADER:
            self._clients.leadership_lost()

    def _store_vote(self) -> None:
        raft, stored = self.raft, self._persistence
        if (raft.current_term, raft.voted_for) != (stored.current_term, stored.voted_for):
            stored.update_vote(raft.current_term, raft.voted_for)

    def _write_log(self) -> None:
        for effect in self.raft.take_log_effects():
            if isinstance(effect, TruncateLog):
                logger.warning(
                    "%s: cutting the log back to %d, another leader's entries follow", self.settings.id, effect.index
                )
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
        configuration = self.raft.configuration
        if configuration is self._configuration:
            return
        self._store_configuration(configuration)
        self._configuration = configuration
        urls = self.link_urls
        for peer_id in list(self._links):
            if peer_id not in urls:
                del self._links[peer_id]
        for peer_id in urls:
            self._links.setdefault(peer_id, PeerLink())

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

    # --- sending to peers -------------------------------------------------------------------------------------------

    def _send_to_peers(self, actions: list[LinkAction], now: float, *, entries_only: bool) -> None:
        """Add what peers are to be sent now. Only leaders and candidates have something to say."""
        if self.raft.role not in (Role.LEADER, Role.CANDIDATE):
            return
        for peer_id, link in self._links.items():
            if now >= link.deadline:
                action = self._repeat(peer_id, link, now)
            elif len(link) < self._window(peer_id):
                action = self._message_to(peer_id, link, now, entries_only)
            else:
                action = None
            if action is not None:
                actions.append(action)
                self._sent_to.add(peer_id)

    def _repeat(self, peer_id: str, link: PeerLink, now: float) -> LinkAction | None:
        """The reply has not come in time. Whoever answers next may be another program under the same id."""
        self._append_sizes.pop(peer_id, None)
        if len(link) == 1:
            return LinkAction(peer_id, link.resend(now))
        # Which of them have arrived is not known.
        link.give_up()
        self.raft.appends_lost(peer_id)
        return self._message_to(peer_id, link, now, entries_only=False)

    def _ask_capabilities(self, actions: list[LinkAction], now: float) -> None:
        """Ask whether these peers are ours, where that is not known. They need not answer.

        Only peers to which nothing else has been sent in this turn: behind something that has not left yet, the
        question would be dropped.
        """
        for peer_id in self._links:
            if peer_id in self._append_sizes or peer_id in self._sent_to:
                continue
            ask_at, delay = self._ask_at.get(peer_id, (now, _CAPABILITIES_RETRY))
            if now >= ask_at:
                self._ask_at[peer_id] = (now + delay, min(2 * delay, _CAPABILITIES_RETRY_MAX))
                question = Protocols.CAPABILITIES.encode_request(constants.CAPABILITIES, self.settings.secret)
                actions.append(LinkAction(peer_id, ([_CAPABILITIES_ID, *question], None)))

    def _message_to(self, peer_id: str, link: PeerLink, now: float, entries_only: bool) -> LinkAction | None:
        append_size_max = self._append_sizes.get(peer_id)
        if entries_only and not self.raft.has_entries_for(peer_id):
            return None
        message = self.raft.message_to(peer_id, now, takes_notices=append_size_max is not None)
        if isinstance(message, SendVoteRequest):
            frames = self._encode_vote_request(message.request)
            return LinkAction(peer_id, link.request(frames, None, self._votes_resend, now), keep=True)
        if isinstance(message, SendAppend):
            batch = self._read_entries(message, append_size_max or self.settings.peer_msg_data_size)
            self.raft.append_sent(peer_id, message, batch.last_index)
            frames, resend_after = self._encode_append(message), self._appends_resend[len(batch) > 0]
            return LinkAction(peer_id, link.request(frames, batch, resend_after, now), keep=True)
        if isinstance(message, SendCommitNotice):
            return LinkAction(peer_id, ([_NOTICE_ID, *self._encode_notice(message.notice)], None))
        return None

    def _read_entries(self, message: SendAppend, size_max: int) -> EntryBatch:
        first, last = message.prev_index + 1, message.last_index
        if message.count_max is not None:
            last = min(last, message.prev_index + message.count_max)
        if last < first:
            return EntryBatch.empty(first)
        unwritten = self._unwritten
        if unwritten is None or last < unwritten.first_index:
            return self._log.read(first, last, size_max)
        if first < unwritten.first_index:
            return self._log.read(first, unwritten.first_index - 1, size_max)
        return unwritten.slice(first, last).prefix_of_size(size_max)

    def _encode_vote_request(self, request: RequestVote) -> list[bytes]:
        return Protocols.REQUEST_VOTE.encode_request(
            constants.REQUEST_VOTE,
            self.settings.secret,
            request.candidate_id,
            request.term,
            request.last_index,
            request.last_term,
        )

    def _encode_notice(self, notice: CommitNotice) -> list[bytes]:
        return Protocols.COMMIT_NOTICE.encode_request(
            constants.COMMIT_NOTICE, self.settings.secret, notice.leader_id, notice.term, notice.commit_index
        )

    def _encode_append(self, message: SendAppend) -> list[bytes]:
        return Protocols.APPEND_ENTRIES.encode_request(
            constants.APPEND_ENTRIES,
            self.settings.secret,
            self.raft.id,
            message.term,
            message.prev_index,
            message.prev_term,
            message.commit_index,
        )
