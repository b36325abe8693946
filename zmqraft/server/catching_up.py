"""A peer that is no member yet reads the log as a client does, until a leader sends it entries by itself.

SPEC section 2, difference 8: joining. It asks the peers that it knows for what is committed (RequestEntries, so that
peers of zmq-raft can be asked as well), the snapshot first where there is one, and goes on where it was after any
interruption: the log is what it has. Knows nothing of sockets. The rule: what a leader gives out is committed, and goes
into the log through the core like the entries of an append; so it does not matter if an append of a leader comes in
between.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zmqraft import constants
from zmqraft.api import SnapshotBase
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.raft import Raft, Role
from zmqraft.errors import OutOfOrderError, RemoteProtocolError
from zmqraft.protocol import EntryBatch, Protocols
from zmqraft.protocol.entries_flow import EntriesFlow, SnapshotChunk
from zmqraft.server.peer_requests import configurations_of, reachable_term
from zmqraft.server.settings import Settings
from zmqraft.server.snapshot_transfer import Chunk, IncomingSnapshot

__all__ = ["CatchUpProgress", "CatchingUp"]

logger = logging.getLogger(__name__)

#: With no reply for so many seconds the next peer is asked, and when it does not lead, after so many; when there is
#: nothing new, the same after so many.
_TIMEOUT = 1.0
_SEARCH_PAUSE = 0.05
_PAUSE = 0.5
#: How often it is logged how far it has come, in seconds.
_REPORT_INTERVAL = 5.0
#: The ids of these requests are longer than those that a link keeps: a counter, and one of these as the last byte.
_ENTRIES_MARK = 0xF0
_LOG_INFO_MARK = 0xF1
_CONFIG_MARK = 0xF2
_ID_SIZE = 4


@dataclass(frozen=True, slots=True)
class CatchUpProgress:
    """How far a peer has come that reads the log of a cluster which it does not belong to."""

    #: The index up to which it has the log.
    index: int
    #: The commit index of the peer that it reads from, as far as is known.
    target_index: int | None
    #: The bytes of the snapshot under way that have come, and all of them; None when there is none.
    snapshot: tuple[int, int] | None

    @property
    def percent(self) -> int | None:
        """Of the snapshot, while there is one under way; else of the entries. None when it is not known."""
        have, all_of_it = self.snapshot or (self.index, self.target_index)
        return None if all_of_it is None else 100 * min(have, all_of_it) // max(all_of_it, 1)

    def __str__(self) -> str:
        what = f"entry {self.index}" if self.snapshot is None else "a snapshot, {} of {} bytes".format(*self.snapshot)
        return what if self.percent is None else f"{what} ({self.percent} %)"


class CatchingUp:
    """The reading of one peer. Times are in seconds."""

    def __init__(
        self, raft: Raft, incoming: IncomingSnapshot, settings: Settings, install: Callable[[SnapshotBase], None]
    ) -> None:
        """``incoming`` and ``install`` as in `PeerRequests`."""
        self._raft = raft
        self._settings = settings
        self._install = install
        self._incoming = incoming
        self._flow = EntriesFlow(0)
        self._position = -1
        self._asked = ""
        # A peer that another one says leads.
        self._hint: str | None = None
        self._counter = 0
        self._message_id = b""
        self._acknowledgements: list[list[bytes]] = []
        self._ask_at = -math.inf
        self._report_at = -math.inf
        #: The peers that the one which was asked knows of, url by id. Another object when they have changed.
        self.learned_urls: dict[str, str] = {}
        self._target_index: int | None = None
        self._snapshot_progress: tuple[int, int] | None = None

    def is_needed(self, now: float) -> bool:
        """Whether there is nobody else from whom this peer could get the log."""
        return now >= self._needed_at()

    def _needed_at(self) -> float:
        raft = self._raft
        if raft.role is not Role.CLIENT:
            return math.inf
        return -math.inf if raft.leader_id is None else raft.leader_heard_at + _TIMEOUT

    @property
    def deadline(self) -> float:
        """When `next_messages` has something to send."""
        return max(self._ask_at, self._needed_at())

    @property
    def progress(self) -> CatchUpProgress:
        """How far it has come."""
        return CatchUpProgress(self._raft.commit_index, self._target_index, self._snapshot_progress)

    @staticmethod
    def is_answer(frames: Sequence[bytes]) -> bool:
        """Whether this is the reply to a request of a peer that reads."""
        return len(frames[0]) == _ID_SIZE and frames[0][-1] in (_ENTRIES_MARK, _LOG_INFO_MARK, _CONFIG_MARK)

    def next_messages(self, peer_ids: Sequence[str], now: float) -> list[tuple[str, list[bytes]]]:
        """What is to be sent now, and to whom; ``peer_ids`` are those that may be asked."""
        messages, self._acknowledgements = self._acknowledgements, []
        if now >= self._ask_at and peer_ids:
            self._begin(peer_ids)
            self._ask_at = now + _TIMEOUT
            messages = [self._request(*self._flow.position), *self._questions()]
        return [(self._asked, frames) for frames in messages]

    def _begin(self, peer_ids: Sequence[str]) -> None:
        """Ask anew, from what is committed here: the next peer, or the one that is said to lead."""
        asked = self._asked
        if self._hint in peer_ids:
            self._asked = self._hint or ""
        else:
            self._position = (self._position + 1) % len(peer_ids)
            self._asked = peer_ids[self._position]
        self._hint = None
        self._counter = (self._counter + 1) % 256
        self._message_id = self._id(_ENTRIES_MARK)
        offset = self._incoming.offset if asked == self._asked else 0
        self._flow = EntriesFlow(self._raft.commit_index, snapshot_offset=offset or None)

    def _request(self, previous_index: int, count: int | None, offset: int | None) -> list[bytes]:
        request = Protocols.REQUEST_ENTRIES.encode_request(
            constants.REQUEST_ENTRIES, self._settings.secret, previous_index, count, offset
        )
        return [self._message_id, *request]

    def _questions(self) -> list[list[bytes]]:
        """Where the log ends, and which peers there are by now."""
        secret = self._settings.secret
        return [
            [self._id(_LOG_INFO_MARK), *Protocols.REQUEST_LOG_INFO.encode_request(constants.REQUEST_LOG_INFO, secret)],
            [self._id(_CONFIG_MARK), *Protocols.REQUEST_CONFIG.encode_request(constants.REQUEST_CONFIG, secret)],
        ]

    def _id(self, mark: int) -> bytes:
        return bytes((self._counter, 0, 0, mark))

    def receive(self, peer_id: str, frames: Sequence[bytes], now: float, wall_seconds: float) -> None:
        """A reply. Raises RemoteProtocolError when it does not decode, or does not follow on what has come."""
        if peer_id != self._asked or frames[0][:1] != self._message_id[:1]:
            return
        if frames[0][-1] == _LOG_INFO_MARK:
            self._target_index = Protocols.REQUEST_LOG_INFO.decode_response(frames[1:])[5]
        elif frames[0][-1] == _CONFIG_MARK:
            self._learn_peers(frames[1:])
        else:
            self._receive_entries(peer_id, frames, now, wall_seconds)

    def _learn_peers(self, frames: Sequence[bytes]) -> None:
        _, _, value = Protocols.REQUEST_CONFIG.decode_response(frames)
        try:
            urls = ClusterConfiguration.from_value(value).urls
        except ValueError as error:
            raise RemoteProtocolError(f"a configuration that is none: {error}") from error
        if urls != self.learned_urls:
            self.learned_urls = urls

    def _receive_entries(self, peer_id: str, frames: Sequence[bytes], now: float, wall_seconds: float) -> None:
        status, value, last_index, rest = Protocols.REQUEST_ENTRIES.decode_response(frames[1:])
        if status == constants.ENTRIES_NOT_LEADER:
            self._hint = value if isinstance(value, str) and value != peer_id else None
            self._raft.leader_hint = self._hint
            self._ask_at = now + _SEARCH_PAUSE
            return
        self._raft.leader_hint = peer_id
        try:
            if status == constants.ENTRIES_SNAPSHOT:
                received = self._flow.receive_chunk(value, last_index, rest)
            else:
                received = self._flow.receive_entries(status, last_index, rest)
        except OutOfOrderError as error:
            raise RemoteProtocolError(str(error)) from error
        follows = True
        if isinstance(received.item, SnapshotChunk):
            follows = self._take_chunk(received.item, now, wall_seconds)
        elif received.item is not None:
            self._take_entries(received.item, now)
        self._ask_at = now + _TIMEOUT
        if received.restart or not follows:
            self._hint, self._ask_at = peer_id, now
        elif received.finished:
            # What is applied there by now has come; it leads, so it is asked again.
            self._hint, self._ask_at = peer_id, now + _PAUSE
        elif received.acknowledgement is not None:
            self._acknowledgements.append(self._request(*received.acknowledgement))
        self._report(now)

    def _take_entries(self, batch: EntryBatch, now: float) -> None:
        self._check_term(batch.term_runs()[-1][1])
        self._raft.step_committed_entries(batch, configurations_of(batch), now)

    def _check_term(self, term: int) -> None:
        if reachable_term(term, self._raft.current_term) != term:
            raise RemoteProtocolError(f"something committed of term {term} in term {self._raft.current_term}")

    def _take_chunk(self, chunk: SnapshotChunk, now: float, wall_seconds: float) -> bool:
        """Returns whether it follows on what has come: else this is another snapshot, which is to be read anew."""
        self._check_term(chunk.term)
        self._snapshot_progress = (chunk.offset + len(chunk.data), chunk.size)
        # It belongs to no term of a leader: the one of its entry stands for it.
        part = Chunk(self._asked, chunk.term, chunk.index, chunk.term, chunk.offset, chunk.size, chunk.data)
        taken = self._incoming.take(part, int(wall_seconds))
        if isinstance(taken, SnapshotBase):
            self._snapshot_progress = None
            self._raft.step_committed_snapshot(taken.term, now)
            if taken.index > self._raft.commit_index:
                self._install(taken)
            return True
        return taken == chunk.offset + len(chunk.data)

    def _report(self, now: float) -> None:
        if now >= self._report_at:
            self._report_at = now + _REPORT_INTERVAL
            logger.info("%s: catching up with %s: %s", self._settings.id, self._asked, self.progress)
