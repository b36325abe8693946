"""What other peers ask of this one: votes and entries.

SPEC section 2, "Between peers". Knows nothing of sockets. The rule: everything is checked here, before the core sees
it, so that whatever the core then refuses to believe is a broken invariant and not a broken message. The reply to the
last AppendEntries of each peer is kept: a repetition gets the same reply, and is not worked on again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from zmqraft import constants
from zmqraft.api import SnapshotBase
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.messages import AppendEntries, CommitNotice, RequestVote, SnapshotReply, TransferNotice
from zmqraft.core.raft import Raft
from zmqraft.errors import RemoteProtocolError
from zmqraft.protocol import EntryBatch, Protocols, decode_json
from zmqraft.server.snapshot_transfer import Chunk, IncomingSnapshot

__all__ = ["PeerRequests", "configurations_of", "reachable_term"]

_TYPES = (
    constants.REQUEST_VOTE,
    constants.APPEND_ENTRIES,
    constants.INSTALL_SNAPSHOT,
    constants.OWN_INSTALL_SNAPSHOT,
    constants.COMMIT_NOTICE,
    constants.TRANSFER_NOTICE,
    constants.INTRODUCTION,
)
_MESSAGE_ID_SIZE_MAX = 3
#: As many peers that are no members here may have introduced themselves; the oldest are forgotten.
_INTRODUCED_MAX = 64


def configurations_of(batch: EntryBatch) -> list[tuple[int, ClusterConfiguration]]:
    """The decoded CONFIG entries of a batch, by index. Raises RemoteProtocolError when one does not decode."""
    configurations = []
    for position in batch.config_positions():
        try:
            configuration = ClusterConfiguration.from_value(decode_json(batch.payload(position)))
        except ValueError as error:
            raise RemoteProtocolError(f"CONFIG entry at index {batch.first_index + position}: {error}") from None
        configurations.append((batch.first_index + position, configuration))
    return configurations


def reachable_term(term: int, current_term: int) -> int:
    """How much of the term that a peer states is believed: all of it, if that is not too far away; else a peer far
    below goes up to the highest term that one may jump to, from where it can follow others that were led there.

    Raises RemoteProtocolError when it is beyond that as well.
    """
    if term <= max(constants.TERM_JUMP_MAX, current_term + constants.TERM_STEP_MAX):
        return term
    if current_term < constants.TERM_JUMP_MAX:
        return constants.TERM_JUMP_MAX
    raise RemoteProtocolError(f"a peer cannot be in term {term} with this one in term {current_term}")


class PeerRequests:
    """The answering side towards all other peers."""

    def __init__(self, raft: Raft, incoming: IncomingSnapshot, install: Callable[[SnapshotBase], None]) -> None:
        """``incoming`` takes the chunks of a snapshot, from wherever they come; ``install`` lets one that is complete
        take the place of the log, durably, and tells the core."""
        self._raft = raft
        self._snapshot = incoming
        self._install = install
        # By peer: the socket identity, message id and term of the last request that changes the log, and its reply.
        self._last: dict[str, tuple[tuple[bytes, bytes, int], list[bytes]]] = {}
        # Those that are no members here, but say that they are by a later configuration.
        self._introduced: deque[str] = deque(maxlen=_INTRODUCED_MAX)

    def handle(
        self,
        identity: bytes,
        message_id: bytes,
        frames: Sequence[bytes],
        entries: EntryBatch | None,
        now: float,
        wall_seconds: float,
    ) -> list[bytes] | None:
        """Take one message, ``frames`` from its type on. Returns the reply's frames after the message id, if any.

        ``entries`` are those of an AppendEntries whose frames are not among the others.

        None when the type is not one of peers' (see `is_peer_type`) or the sender is not to be answered. Raises
        RemoteProtocolError when the message does not decode; then nothing has changed but, at most, the term.
        """
        if len(message_id) > _MESSAGE_ID_SIZE_MAX:
            raise RemoteProtocolError(f"the message id of a peer has 1 to 3 bytes, not {len(message_id)}")
        if frames[0] == constants.REQUEST_VOTE:
            return self._request_vote(frames, now)
        if frames[0] == constants.APPEND_ENTRIES:
            return self._append_entries(identity, message_id, frames, entries, now)
        if frames[0] in (constants.INSTALL_SNAPSHOT, constants.OWN_INSTALL_SNAPSHOT):
            return self._install_snapshot(identity, message_id, frames, now, wall_seconds)
        if frames[0] == constants.COMMIT_NOTICE:
            self._commit_notice(frames, now)
        elif frames[0] == constants.TRANSFER_NOTICE:
            self._transfer_notice(frames, now)
        else:
            self._introduction(frames)
        return None

    @staticmethod
    def is_peer_type(message_type: bytes) -> bool:
        """Whether messages of this type come from peers."""
        return message_type in _TYPES

    def _request_vote(self, frames: Sequence[bytes], now: float) -> list[bytes] | None:
        _, _, candidate_id, term, last_index, last_term = Protocols.REQUEST_VOTE.decode_request(frames)
        self._check_sender(candidate_id)
        self._check_term(term, now, leads=False)
        reply = self._raft.step_request_vote(RequestVote(candidate_id, term, last_index, last_term), now)
        return None if reply is None else Protocols.REQUEST_VOTE.encode_response(reply.term, reply.granted)

    def _append_entries(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], entries: EntryBatch | None, now: float
    ) -> list[bytes] | None:
        _, _, leader_id, term, prev_index, prev_term, commit_index, entry_frames = (
            Protocols.APPEND_ENTRIES.decode_request(frames)
        )
        self._check_sender(leader_id)
        self._check_term(term, now, leads=True)
        key = (identity, message_id, term)
        last = self._last.get(leader_id)
        if last is not None and last[0] == key:
            return last[1]
        if prev_index + (len(entry_frames) if entries is None else len(entries)) >= constants.INTEGER_MAX:
            raise RemoteProtocolError(f"entries from index {prev_index} on reach {constants.INTEGER_MAX}")
        if entries is None:
            entries = EntryBatch.from_checked_frames(prev_index + 1, entry_frames)
        else:
            entries = entries.with_first_index(prev_index + 1)
        self._check_terms(entries, term, prev_index, prev_term)
        request = AppendEntries(
            leader_id, term, prev_index, prev_term, commit_index, entries, configurations_of(entries)
        )
        reply = self._raft.step_append_entries(request, now)
        if reply is None:
            return None
        conflict = () if reply.conflict_index is None else (reply.conflict_index,)
        encoded = Protocols.APPEND_ENTRIES.encode_response(reply.term, reply.success, *conflict)
        self._last[leader_id] = (key, encoded)
        return encoded

    def _install_snapshot(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> list[bytes] | None:
        chunk = Chunk.decode(frames)
        self._check_sender(chunk.leader_id)
        self._check_term(chunk.term, now, leads=True)
        key = (identity, message_id, chunk.term)
        last = self._last.get(chunk.leader_id)
        if last is not None and last[0] == key:
            return last[1]
        verdict = self._raft.step_install_snapshot(chunk.leader_id, chunk.term, chunk.index, now)
        if verdict is None:
            return None
        offset: tuple[int, ...] = ()
        if verdict is SnapshotReply.WANTED:
            taken = self._snapshot.take(chunk, int(wall_seconds))
            if isinstance(taken, SnapshotBase):
                self._install(taken)
            elif taken != chunk.offset + len(chunk.data):
                offset = (taken,)
        elif verdict is SnapshotReply.HAVE and chunk.context_size is not None:
            # What is missing is not wanted: as if all of it had come.
            offset = (chunk.size,)
        encoded = Protocols.INSTALL_SNAPSHOT.encode_response(self._raft.current_term, *offset)
        self._last[chunk.leader_id] = (key, encoded)
        return encoded

    def _transfer_notice(self, frames: Sequence[bytes], now: float) -> None:
        _, _, leader_id, term, target_id = Protocols.TRANSFER_NOTICE.decode_request(frames)
        self._check_sender(leader_id)
        self._raft.step_transfer_notice(TransferNotice(leader_id, term, target_id), now)

    def _introduction(self, frames: Sequence[bytes]) -> None:
        _, _, peer_id = Protocols.INTRODUCTION.decode_request(frames)
        if peer_id not in self._introduced:
            self._introduced.append(peer_id)

    def _commit_notice(self, frames: Sequence[bytes], now: float) -> None:
        _, _, leader_id, term, commit_index = Protocols.COMMIT_NOTICE.decode_request(frames)
        self._check_sender(leader_id)
        self._raft.step_commit_notice(CommitNotice(leader_id, term, commit_index), now)

    def _check_sender(self, peer_id: str) -> None:
        if peer_id == self._raft.id or not (peer_id in self._raft.configuration or peer_id in self._introduced):
            raise RemoteProtocolError(f"a peer message from {peer_id!r:.100}, which is not a member")

    def _check_term(self, term: int, now: float, *, leads: bool) -> None:
        if (reachable := reachable_term(term, self._raft.current_term)) != term:
            self._raft.step_higher_term(reachable, now, leads=leads)
            raise RemoteProtocolError(f"a peer in term {term}, far above {self._raft.current_term}")

    @staticmethod
    def _check_terms(entries: EntryBatch, term: int, prev_index: int, prev_term: int) -> None:
        """Terms never go back along a log and end at the leader's; index 0 has term 0."""
        if prev_term > term or (prev_index == 0 and prev_term != 0):
            raise RemoteProtocolError(f"previous term {prev_term} at index {prev_index} in a message of term {term}")
        terms = [prev_term, *(entry_term for _, entry_term in entries.term_runs()), term]
        if terms != sorted(terms):
            raise RemoteProtocolError(f"the terms of the entries go back: {terms!r:.100}")
