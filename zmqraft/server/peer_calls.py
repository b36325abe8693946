"""What this peer asks of the others: votes of a candidate, entries and snapshots of a leader.

SPEC section 2, "Between peers"; the answering side is peer_requests.py. Knows nothing of sockets: what is to be sent
comes out as `LinkAction`. The rule: what a peer is sent is decided when there is room on the way to it, so it is always
the newest; and what goes beyond zmq-raft's messages only goes to peers that said that they are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zmqraft import constants
from zmqraft.api import LogBase
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.messages import (
    AppendReply,
    CommitNotice,
    RequestVote,
    SendAppend,
    SendCommitNotice,
    SendSnapshot,
    SendVoteRequest,
    VoteReply,
)
from zmqraft.core.raft import Raft, Role
from zmqraft.errors import RemoteProtocolError
from zmqraft.protocol import EntryBatch, Protocols
from zmqraft.server.peer_link import Message, PeerLink
from zmqraft.server.peer_requests import reachable_term
from zmqraft.server.settings import Settings
from zmqraft.server.snapshot_transfer import OutgoingSnapshot

__all__ = ["LinkAction", "PeerCalls"]

#: The id of the question for capabilities: longer than those of the requests that a link keeps.
_CAPABILITIES_ID = b"\xff\xff\xff\xff"
#: The id of the question for the configuration, and how often the leader is asked, in seconds.
_CONFIG_ID = b"\xff\xff\xff\xfe"
_CONFIG_RETRY = 1.0
#: Requests that may be outstanding to a peer that is known to be ours: the second gets there while the first is synced.
_OWN_WINDOW = 2
#: The message id of a notice, which is not answered.
_NOTICE_ID = b"\0"
#: A peer that does not say that it is ours is asked again after this many seconds, then twice as many, and so on.
_CAPABILITIES_RETRY = 0.2
_CAPABILITIES_RETRY_MAX = 60.0
#: Before a snapshot is sent to a peer that is not known to be ours, it is asked, and may take so many seconds to
#: answer.
_CAPABILITIES_PATIENCE = 0.15
#: A peer that does not answer is told so often, in seconds, who it is that asks it.
_INTRODUCTION_INTERVAL = 0.5
#: Who does not answer a chunk that is sent so often may be another program by now: the snapshot starts anew.
_CHUNK_REPEATS_MAX = 20


@dataclass(frozen=True, slots=True)
class LinkAction:
    """Send a message to a peer; or, when it is None, drop what is queued for it: disconnect and connect anew.

    While the message before it has not left, a message waits when ``keep`` is set, and is dropped when it is not: it is
    a repetition, or something that is made up for later.
    """

    peer_id: str
    message: Message | None
    keep: bool = False


class PeerCalls:
    """The asking side towards all other peers. Times are in seconds."""

    def __init__(
        self, raft: Raft, log: LogBase, settings: Settings, drop: Callable[[str, Exception | None], None]
    ) -> None:
        """``drop`` is told of every reply that counts for nothing, by reason."""
        self._raft = raft
        self._log = log
        self._settings = settings
        self._drop = drop
        self._links: dict[str, PeerLink] = {}
        self._resets: list[str] = []
        # Of peers that are known to be ours: how many bytes of entries they take in one message. And when to ask the
        # others: (time, seconds until the next time).
        self._append_sizes: dict[str, int] = {}
        self._ask_at: dict[str, tuple[float, float]] = {}
        # When to introduce oneself to a peer again.
        self._introduce_at: dict[str, float] = {}
        # When to ask the leader for the configuration.
        self._ask_config_at = -math.inf
        # The snapshots under way, by peer; while there is one, what is outstanding to that peer are chunks of it.
        self._snapshots: dict[str, OutgoingSnapshot] = {}
        # Until when snapshots wait for the answer to the question whether a peer is ours.
        self._snapshot_at: dict[str, float] = {}
        # Who was sent something in this turn.
        self._sent_to: set[str] = set()
        self._votes_resend = settings.rpc_timeout / 1000
        self._appends_resend = (
            settings.append_entries_rpc_timeout_min / 1000,
            settings.append_entries_rpc_timeout_max / 1000,
        )

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When a request is to be repeated, or a snapshot waits no longer."""
        deadline = min([link.deadline for link in self._links.values()], default=math.inf)
        return min(deadline, *self._snapshot_at.values()) if self._snapshot_at else deadline

    def has_way_out(self, now: float) -> bool:
        """Whether new entries could travel now: there is room on the way to somebody, or nobody to send to."""
        if not self._links:
            return True
        for peer_id, link in self._links.items():
            if not link.outstanding or len(link.outstanding) < self._window(peer_id) or now >= link.deadline:
                return True
        return False

    def is_ours(self, peer_id: str) -> bool:
        """Whether a peer is known to understand our own messages."""
        return peer_id in self._append_sizes

    def has_outstanding(self, peer_id: str) -> bool:
        """Whether a peer owes a reply."""
        link = self._links.get(peer_id)
        return link is not None and bool(link.outstanding)

    def _window(self, peer_id: str) -> int:
        """How many requests may be outstanding to a peer."""
        snapshot = self._snapshots.get(peer_id)
        is_ours = peer_id in self._append_sizes and (snapshot is None or snapshot.is_own)
        return _OWN_WINDOW if is_ours else 1

    # --- changes ----------------------------------------------------------------------------------------------------

    def follow(self, peer_ids: Sequence[str]) -> None:
        """These are the other peers now."""
        for peer_id in list(self._links):
            if peer_id not in peer_ids:
                del self._links[peer_id]
                self._snapshots.pop(peer_id, None)
                self._snapshot_at.pop(peer_id, None)
        for peer_id in peer_ids:
            self._links.setdefault(peer_id, PeerLink())

    def role_changed(self) -> None:
        """Requests of the role or the term before count no more."""
        self._append_sizes.clear()
        self._ask_at.clear()
        self._snapshots.clear()
        self._snapshot_at.clear()
        for peer_id, link in self._links.items():
            # A new leader need not reset: the votes that are still out no longer matter.
            if link.give_up() and self._raft.role is not Role.LEADER:
                self._resets.append(peer_id)

    def forget(self, peer_id: str) -> None:
        """A peer is added, which may have been a member before, and may be another one under its id now: no answer to
        what is under way to it counts any more."""
        self._append_sizes.pop(peer_id, None)
        self._snapshots.pop(peer_id, None)
        self._snapshot_at.pop(peer_id, None)
        link = self._links.get(peer_id)
        if link is not None and link.give_up():
            self._resets.append(peer_id)

    # --- replies ----------------------------------------------------------------------------------------------------

    def receive_reply(self, peer_id: str, frames: Sequence[bytes], now: float) -> bool:
        """A message from a peer: the reply to a request to it, if it is an outstanding one.

        Returns whether anything may follow from it: not from a reply to a heartbeat that says nothing new.
        """
        if frames and frames[0] in (_CAPABILITIES_ID, _CONFIG_ID):
            self._receive_answer(peer_id, frames)
            return True
        link = self._links.get(peer_id)
        count = 0 if link is None or not frames else link.answered_by(frames[0])
        if link is None or count == 0:
            self._drop("late reply", None)
            return False
        try:
            if peer_id in self._snapshots:
                self._receive_snapshot_reply(peer_id, link, count, frames[1:], now)
                return True
            return self._receive_reply(peer_id, link, count, frames[1:], now)
        except RemoteProtocolError as error:
            self._drop("malformed reply", error)
            return False

    def _receive_reply(self, peer_id: str, link: PeerLink, count: int, frames: Sequence[bytes], now: float) -> bool:
        raft = self._raft
        reply = self._decode_reply(frames)
        link.close_requests(count, now)
        if isinstance(reply, VoteReply):
            raft.step_vote_reply(peer_id, reply, now)
            return True
        commit_index = raft.commit_index
        raft.step_append_reply(peer_id, reply, now, count=count)
        if not reply.success or reply.term < raft.current_term:
            link.give_up()
            return True
        return raft.commit_index != commit_index or raft.has_news_for(peer_id, now, takes_notices=self.is_ours(peer_id))

    def _decode_reply(self, frames: Sequence[bytes]) -> VoteReply | AppendReply:
        # The links are reset with every change of role, so the role says what the outstanding request was.
        if self._raft.role is Role.CANDIDATE:
            term, granted = Protocols.REQUEST_VOTE.decode_response(frames)
            return VoteReply(reachable_term(term, self._raft.current_term), granted)
        term, success, *conflict = Protocols.APPEND_ENTRIES.decode_response(frames)
        return AppendReply(reachable_term(term, self._raft.current_term), success, *conflict)

    def _receive_snapshot_reply(
        self, peer_id: str, link: PeerLink, count: int, frames: Sequence[bytes], now: float
    ) -> None:
        term, offset = Protocols.INSTALL_SNAPSHOT.decode_response(frames)
        term = reachable_term(term, self._raft.current_term)
        link.close_requests(count, now)
        snapshot = self._snapshots[peer_id]
        is_complete = snapshot.answered(count, offset)
        if not snapshot.is_under_way:
            link.give_up()
        if is_complete:
            del self._snapshots[peer_id]
        self._raft.step_snapshot_reply(peer_id, term, snapshot.index if is_complete else None, now)

    def _receive_answer(self, peer_id: str, frames: Sequence[bytes]) -> None:
        """The answer to a question that does not count as outstanding."""
        try:
            if frames[0] == _CAPABILITIES_ID:
                self._learn_capabilities(peer_id, frames[1:])
            else:
                self._learn_configuration(peer_id, frames[1:])
        except RemoteProtocolError as error:
            self._drop("malformed reply", error)

    def _learn_capabilities(self, peer_id: str, frames: Sequence[bytes]) -> None:
        append_size_max, _ = Protocols.CAPABILITIES.decode_response(frames)
        size_max = max(constants.OWN_APPEND_SIZE_MAX, self._settings.peer_msg_data_size)
        self._append_sizes[peer_id] = max(self._settings.peer_msg_data_size, min(append_size_max, size_max))

    def _learn_configuration(self, peer_id: str, frames: Sequence[bytes]) -> None:
        is_leader, _, value = Protocols.REQUEST_CONFIG.decode_response(frames)
        try:
            configuration = ClusterConfiguration.from_value(value)
        except ValueError as error:
            raise RemoteProtocolError(f"the configuration of {peer_id!r}: {error}") from None
        if is_leader:
            self._raft.configuration_confirmed(peer_id, configuration.urls)

    # --- sending ----------------------------------------------------------------------------------------------------

    def begin_turn(self) -> list[LinkAction]:
        """The first actions of a turn."""
        actions = [LinkAction(peer_id, None) for peer_id in self._resets]
        self._resets = []
        self._sent_to = set()
        return actions

    def send(
        self, actions: list[LinkAction], now: float, *, entries_only: bool, unwritten: EntryBatch | None = None
    ) -> None:
        """Add what peers are to be sent now. Only leaders and candidates have something to say.

        ``unwritten`` are the last entries of a leader's log, while they are not yet in it.
        """
        if self._raft.role not in (Role.LEADER, Role.CANDIDATE):
            return
        for peer_id, link in self._links.items():
            is_late, was_idle = now >= link.deadline, not link.outstanding
            if is_late:
                action = self._repeat(peer_id, link, now, unwritten)
            elif was_idle or len(link.outstanding) < self._window(peer_id):
                action = self._message_to(peer_id, link, now, entries_only, unwritten)
            else:
                action = None
            if action is not None:
                if was_idle and self._may_ask(peer_id, now):
                    # In front of it: to a peer that catches up there is always something under way in the end.
                    actions.append(self._ask(peer_id, now))
                actions.append(action)
                self._sent_to.add(peer_id)
            if is_late:
                self._introduce(actions, peer_id, now)

    def notify(self, actions: list[LinkAction], peer_id: str, frames: list[bytes]) -> None:
        """Add an own message that is not answered."""
        actions.append(LinkAction(peer_id, ([_NOTICE_ID, *frames], None), keep=True))
        self._sent_to.add(peer_id)

    def _repeat(self, peer_id: str, link: PeerLink, now: float, unwritten: EntryBatch | None) -> LinkAction | None:
        """The reply has not come in time. Whoever answers next may be another program under the same id."""
        self._append_sizes.pop(peer_id, None)
        self._ask_at.pop(peer_id, None)
        snapshot = self._snapshots.get(peer_id)
        if snapshot is not None:
            snapshot.repeats += 1
            if snapshot.repeats > _CHUNK_REPEATS_MAX:
                del self._snapshots[peer_id]
                snapshot = None
                link.give_up()
        if len(link.outstanding) == 1:
            return LinkAction(peer_id, link.resend(now))
        # Which of them have arrived is not known.
        link.give_up()
        if snapshot is not None:
            snapshot.lost()
        else:
            self._raft.appends_lost(peer_id)
        return self._message_to(peer_id, link, now, False, unwritten)

    def _introduce(self, actions: list[LinkAction], peer_id: str, now: float) -> None:
        """Who does not answer may not know that this peer is a member by now."""
        if now >= self._introduce_at.get(peer_id, -math.inf):
            self._introduce_at[peer_id] = now + _INTRODUCTION_INTERVAL
            self.notify(
                actions,
                peer_id,
                Protocols.INTRODUCTION.encode_request(constants.INTRODUCTION, self._settings.secret, self._raft.id),
            )

    def ask_capabilities(self, actions: list[LinkAction], now: float) -> None:
        """Ask whether these peers are ours, where that is not known. They need not answer.

        Only peers to which nothing else has been sent in this turn: behind something that has not left yet, the
        question would be dropped.
        """
        actions.extend(
            self._ask(peer_id, now)
            for peer_id in self._links
            if peer_id not in self._sent_to and self._may_ask(peer_id, now)
        )

    def _may_ask(self, peer_id: str, now: float) -> bool:
        """Whether it is time for a leader to ask a peer that is not known to be ours."""
        if peer_id in self._append_sizes or not self._raft.is_leader:
            return False
        return now >= self._ask_at.get(peer_id, (now, 0.0))[0]

    def _ask(self, peer_id: str, now: float) -> LinkAction:
        delay = self._ask_at.get(peer_id, (now, _CAPABILITIES_RETRY))[1]
        self._ask_at[peer_id] = (now + delay, min(2 * delay, _CAPABILITIES_RETRY_MAX))
        question = Protocols.CAPABILITIES.encode_request(constants.CAPABILITIES, self._settings.secret)
        return LinkAction(peer_id, ([_CAPABILITIES_ID, *question], None))

    def ask_configuration(self, actions: list[LinkAction], now: float) -> None:
        """Ask the leader which peers there are, while this one does not know; see `Raft.is_configuration_known`."""
        leader_id = self._raft.leader_id
        if self._raft.is_configuration_known or leader_id not in self._links or now < self._ask_config_at:
            return
        self._ask_config_at = now + _CONFIG_RETRY
        question = Protocols.REQUEST_CONFIG.encode_request(constants.REQUEST_CONFIG, self._settings.secret)
        actions.append(LinkAction(leader_id, ([_CONFIG_ID, *question], None)))

    def _message_to(
        self, peer_id: str, link: PeerLink, now: float, entries_only: bool, unwritten: EntryBatch | None
    ) -> LinkAction | None:
        append_size_max = self._append_sizes.get(peer_id)
        if entries_only and not self._raft.has_entries_for(peer_id):
            return None
        message = self._raft.message_to(peer_id, now, takes_notices=append_size_max is not None)
        if isinstance(message, SendVoteRequest):
            frames = self._encode_vote_request(message.request)
            return LinkAction(peer_id, link.request(frames, None, self._votes_resend, now), keep=True)
        if isinstance(message, SendAppend):
            batch = self._read_entries(message, append_size_max or self._settings.peer_msg_data_size, unwritten)
            self._raft.append_sent(peer_id, message, batch.last_index)
            frames, resend_after = self._encode_append(message), self._appends_resend[len(batch) > 0]
            return LinkAction(peer_id, link.request(frames, batch, resend_after, now), keep=True)
        if isinstance(message, SendCommitNotice):
            return LinkAction(peer_id, ([_NOTICE_ID, *self._encode_notice(message.notice)], None))
        if isinstance(message, SendSnapshot):
            if not self._may_begin_snapshot(peer_id, now):
                if peer_id in self._snapshot_at:
                    return None
                self._snapshot_at[peer_id] = now + _CAPABILITIES_PATIENCE
                return self._ask(peer_id, now)
            snapshot = self._outgoing(peer_id, append_size_max)
            if not snapshot.has_more:
                return None
            frames = snapshot.next_chunk(self._settings.secret, self._raft.id, message.term)
            return LinkAction(peer_id, link.request(frames, None, self._appends_resend[True], now), keep=True)
        return None

    def _read_entries(self, message: SendAppend, size_max: int, unwritten: EntryBatch | None) -> EntryBatch:
        first, last = message.prev_index + 1, message.last_index
        if message.count_max is not None:
            last = min(last, message.prev_index + message.count_max)
        if last < first:
            return EntryBatch.empty(first)
        if unwritten is None or last < unwritten.first_index:
            return self._log.read(first, last, size_max)
        if first < unwritten.first_index:
            return self._log.read(first, unwritten.first_index - 1, size_max)
        return unwritten.slice(first, last).prefix_of_size(size_max)

    def _may_begin_snapshot(self, peer_id: str, now: float) -> bool:
        """A snapshot goes on, or begins when it is known whether the peer is ours, or was asked long enough ago."""
        if (
            peer_id in self._snapshots
            or peer_id in self._append_sizes
            or self._snapshot_at.get(peer_id, math.inf) <= now
        ):
            self._snapshot_at.pop(peer_id, None)
            return True
        return False

    def _outgoing(self, peer_id: str, own_size_max: int | None) -> OutgoingSnapshot:
        """The snapshot that is under way to a peer, or begins now."""
        snapshot = self._snapshots.get(peer_id)
        if snapshot is None:
            snapshot = OutgoingSnapshot(
                self._log.snapshot, own_size_max or self._settings.peer_msg_data_size, is_own=own_size_max is not None
            )
            self._snapshots[peer_id] = snapshot
        return snapshot

    def _encode_vote_request(self, request: RequestVote) -> list[bytes]:
        return Protocols.REQUEST_VOTE.encode_request(
            constants.REQUEST_VOTE,
            self._settings.secret,
            request.candidate_id,
            request.term,
            request.last_index,
            request.last_term,
        )

    def _encode_notice(self, notice: CommitNotice) -> list[bytes]:
        return Protocols.COMMIT_NOTICE.encode_request(
            constants.COMMIT_NOTICE, self._settings.secret, notice.leader_id, notice.term, notice.commit_index
        )

    def _encode_append(self, message: SendAppend) -> list[bytes]:
        return Protocols.APPEND_ENTRIES.encode_request(
            constants.APPEND_ENTRIES,
            self._settings.secret,
            self._raft.id,
            message.term,
            message.prev_index,
            message.prev_term,
            message.commit_index,
        )
