"""What clients ask of a peer: updates, entries, the configuration, the state of the log.

SPEC section 2, "Updates", "RequestEntries", "Clients". Knows nothing of sockets, files' layout or elections; it reads
the core and hands it batches. The rule: an update's bytes are put into one batch for all updates of a turn, and nobody
is told of an index before its entry is applied.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence

from zmqraft import constants
from zmqraft.api import LogBase
from zmqraft.core.raft import Raft
from zmqraft.errors import RemoteProtocolError
from zmqraft.protocol import EntryBatch, Protocols, request_id_seconds
from zmqraft.server.commit_loop import Intake, ReplyQueue, WaitingUpdates
from zmqraft.server.config_updates import ConfigUpdates
from zmqraft.server.entry_streams import EntryStreams
from zmqraft.server.read_requests import ReadRequests
from zmqraft.server.settings import Settings

__all__ = ["ClientRequests"]

#: An update that is not applied after this many seconds is answered "accepted", once, so that its client goes on
#: waiting. Well below the 500 ms after which clients turn to the next peer.
ACCEPT_AFTER = 0.2
#: Updates that are not committed yet are taken up to this many, and this many bytes; further ones are dropped, and
#: their clients repeat them. Bounds what a leader without a majority holds for its clients.
UNCOMMITTED_COUNT_MAX = 262_144
UNCOMMITTED_SIZE_MAX = 128 * 1024 * 1024


#: Requests that only a leader answers.
_FOR_LEADERS = (constants.REQUEST_UPDATE, constants.CONFIG_UPDATE, constants.REQUEST_ENTRIES)
#: As many of them are kept, and as many bytes, while leadership is given away; further ones are dropped, and repeated.
_HELD_COUNT_MAX = 65536
_HELD_SIZE_MAX = 64 * 1024 * 1024


class ClientRequests:
    """The requests of all clients of one peer. Replies go to ``replies``, which the engine sends when it may."""

    def __init__(self, raft: Raft, log: LogBase, settings: Settings, last_applied: int, dropped: Counter[str]) -> None:
        self._raft = raft
        self._log = log
        self._settings = settings
        self._dropped = dropped
        self.last_applied = last_applied
        self.replies = ReplyQueue()
        self._streams = EntryStreams(log, settings)
        self._waiting = WaitingUpdates()
        #: Takes new updates before anybody else sees them; see `open_intake`.
        self.intake = self._new_intake()
        self.config_updates = ConfigUpdates(
            raft, self._find_request, self._is_acceptable, self._reply, lambda: self.last_applied
        )
        self._reads = ReadRequests(raft, self._reply, dropped)
        # When to tell clients that their update is accepted: (time, first index, last index), rising.
        self._accept: deque[tuple[float, int, int]] = deque()
        self._forgotten_before = 0
        #: Whether requests to the leader are kept until it is known who leads next; see `hold`.
        self.is_holding = False
        self._held: list[tuple[bytes, bytes, Sequence[bytes]]] = []
        self._held_size = 0
        self._handlers: dict[bytes, Callable[[bytes, bytes, Sequence[bytes], float, float], None]] = {
            constants.REQUEST_UPDATE: self._request_update,
            constants.CONFIG_UPDATE: self.config_updates.request,
            constants.REQUEST_ENTRIES: self._request_entries,
            constants.REQUEST_CONFIG: self._request_config,
            constants.REQUEST_LOG_INFO: self._request_log_info,
            constants.REQUEST_WEB_MONITOR_URL: self._request_web_monitor_url,
            constants.CAPABILITIES: self._capabilities,
            constants.READ_INDEX: self._reads.request,
        }

    def _new_intake(self) -> Intake:
        index = self._log.request_index
        find_request = self._log.find_request if index is None else index.find
        return Intake(self._settings.secret, self._settings.max_log_entry_data_size, self._waiting, find_request)

    def snapshot_installed(self) -> None:
        """A leader's snapshot has taken the place of the log, and of the table of its request ids."""
        self.entries_replaced()
        self.intake = self._new_intake()

    def handle(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> bool:
        """Take one message, ``frames`` from its type on. Returns False when the type is not one of clients'.

        Raises RemoteProtocolError when it does not decode; then nothing has changed.
        """
        handler = self._handlers.get(frames[0])
        if handler is None:
            return False
        if self.is_holding and frames[0] in _FOR_LEADERS:
            self._keep(identity, message_id, frames)
            return True
        handler(identity, message_id, frames, now, wall_seconds)
        return True

    def _reply(self, identity: bytes, message_id: bytes, frames: Sequence[bytes]) -> None:
        self.replies.append([identity, message_id, *frames])

    # --- updates ----------------------------------------------------------------------------------------------------

    def _request_update(
        self, identity: bytes, request_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> None:
        data: bytes
        _, _, data = Protocols.REQUEST_UPDATE.decode_request(frames)
        if len(request_id) != constants.REQUEST_ID_SIZE:
            raise RemoteProtocolError(
                f"the id of an update has {constants.REQUEST_ID_SIZE} bytes, not {len(request_id)}"
            )
        if not 0 < len(data) <= self._settings.max_log_entry_data_size:
            raise RemoteProtocolError(f"the data of an update has {len(data)} bytes")
        encode = Protocols.REQUEST_UPDATE.encode_response
        if not self._raft.is_leader:
            self._reply(identity, request_id, encode(False, self._raft.known_leader_id))
            return
        index = self._find_request(request_id)
        if index is not None and index <= self.last_applied:
            self._reply(identity, request_id, encode(True, index))
        elif index is not None:
            self._waiting.add(index, identity, request_id, 0)
            self._reply(identity, request_id, encode(True))
        elif not self._is_acceptable(request_id, wall_seconds):
            self._reply(identity, request_id, encode(False))
        elif not self._has_room():
            self._dropped["too many uncommitted updates"] += 1
        else:
            self.open_intake(wall_seconds)
            self.intake.add(identity, request_id, data)

    def _has_room(self) -> bool:
        return len(self._waiting) < UNCOMMITTED_COUNT_MAX and self._waiting.size < UNCOMMITTED_SIZE_MAX

    def open_intake(self, wall_seconds: float) -> None:
        """Let the intake take new updates, if this peer leads; to be called before messages are offered to it."""
        raft = self._raft
        if not raft.is_leader or self.is_holding:
            self.intake.close()
            return
        after_seconds, before_seconds = self._acceptable_times(wall_seconds)
        self.intake.open(
            raft.current_term,
            raft.log.last_index + 1,
            after_seconds=after_seconds,
            before_seconds=before_seconds,
            room_count=UNCOMMITTED_COUNT_MAX - len(self._waiting),
            room_size=UNCOMMITTED_SIZE_MAX - self._waiting.size,
        )

    def _find_request(self, request_id: bytes) -> int | None:
        """The index of the entry with this id, or that an update of this turn is to get."""
        return self.intake.find(request_id) or self._log.find_request(request_id)

    def _is_acceptable(self, request_id: bytes, wall_seconds: float) -> bool:
        after_seconds, before_seconds = self._acceptable_times(wall_seconds)
        return after_seconds < request_id_seconds(request_id) < before_seconds

    def _acceptable_times(self, wall_seconds: float) -> tuple[float, float]:
        """The window of times in new request ids, both ends excluded: in it known ids are surely remembered."""
        ttl = self._settings.request_id_ttl
        forgotten_until = self.requests_forgotten_until
        if ttl is None:
            return float(forgotten_until or -1), math.inf
        margin = self._settings.request_id_ttl_accept_margin / 1000
        return max(wall_seconds - (ttl / 1000 - margin), forgotten_until), wall_seconds + margin

    @property
    def requests_forgotten_until(self) -> int:
        """Ids whose own time (seconds since the epoch) is at or before this stay refused, also after the clock was set
        back, since they may be forgotten."""
        return max(self._forgotten_before, self._log.requests_forgotten_until)

    def take_proposals(self, now: float) -> EntryBatch | None:
        """The updates since the last call as one batch, for the leader of the term in which they came."""
        batch = self.intake.take()
        if batch is not None:
            self._accept.append((now + ACCEPT_AFTER, batch.first_index, batch.last_index))
        return batch

    def applied(self, last_applied: int) -> None:
        """The state machine has applied all entries up to here: answer who waits for them."""
        first = self.last_applied + 1
        self.last_applied = last_applied
        self._waiting.applied(first, last_applied, self.replies)

    def leadership_lost(self) -> None:
        """Everybody who waits is told, at once or at the end of a `hold`, and updates that were not proposed yet are
        forgotten."""
        self.intake.close()
        self._accept.clear()
        self._reads.leadership_lost()
        if not self.is_holding:
            self._refuse_all()

    def hold(self) -> None:
        """Leadership is about to be given away: keep what clients ask until `release`. All updates must be proposed."""
        self.intake.close()
        self.is_holding = True

    def _keep(self, identity: bytes, message_id: bytes, frames: Sequence[bytes]) -> None:
        size = sum(map(len, frames))
        if len(self._held) >= _HELD_COUNT_MAX or self._held_size + size > _HELD_SIZE_MAX:
            self._dropped["too many requests during a transfer"] += 1
            return
        self._held.append((identity, message_id, frames))
        self._held_size += size

    def release(self, now: float, wall_seconds: float) -> None:
        """Answer who was kept waiting, as far as is known who leads."""
        self.is_holding = False
        held, self._held, self._held_size = self._held, [], 0
        if not self._raft.is_leader:
            self._refuse_all()
        for identity, message_id, frames in held:
            try:
                self.handle(identity, message_id, frames, now, wall_seconds)
            except RemoteProtocolError:
                self._dropped["malformed message"] += 1

    def entries_replaced(self) -> None:
        """Entries of a former leader give way to another's, so at the index that somebody waits for there may be
        anything: nobody waits on, whatever is held."""
        if len(self._waiting):
            self._refuse_updates()

    def _refuse_updates(self) -> None:
        refusal = Protocols.REQUEST_UPDATE.encode_response(False, self._raft.known_leader_id)
        self._waiting.refuse_all(refusal, self.replies)

    def _refuse_all(self) -> None:
        self.config_updates.leadership_lost()
        self._refuse_updates()
        self.replies.extend(self._streams.refuse_all(self._raft.known_leader_id))

    # --- reading ----------------------------------------------------------------------------------------------------

    def _request_entries(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> None:
        _, _, previous_index, count, offset = Protocols.REQUEST_ENTRIES.decode_request(frames)
        if not self._raft.is_leader:
            refusal = Protocols.REQUEST_ENTRIES.encode_response(
                constants.ENTRIES_NOT_LEADER, self._raft.known_leader_id
            )
            self._reply(identity, message_id, refusal)
            return
        route = (identity, message_id)
        for reply, entries in self._streams.request(route, previous_index, count, offset, self.last_applied, now):
            self.replies.append(reply, entries)

    def _request_config(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> None:
        Protocols.REQUEST_CONFIG.decode_request(frames)
        raft = self._raft
        peers = [list(peer) for peer in raft.configuration.urls.items()]
        self._reply(
            identity, message_id, Protocols.REQUEST_CONFIG.encode_response(raft.is_leader, raft.known_leader_id, peers)
        )

    def _request_log_info(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> None:
        Protocols.REQUEST_LOG_INFO.decode_request(frames)
        raft = self._raft
        reply = Protocols.REQUEST_LOG_INFO.encode_response(
            raft.is_leader,
            raft.known_leader_id,
            raft.current_term,
            raft.log.first_index,
            self.last_applied,
            raft.commit_index,
            raft.log.last_index,
            self._log.snapshot.size,
            self._log.prune_index,
        )
        self._reply(identity, message_id, reply)

    def _request_web_monitor_url(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> None:
        Protocols.REQUEST_WEB_MONITOR_URL.decode_request(frames)
        if self._settings.webmonitor.enable:
            reply = Protocols.REQUEST_WEB_MONITOR_URL.encode_response(self._settings.webmonitor.url)
            self._reply(identity, message_id, reply)

    def _capabilities(
        self, identity: bytes, message_id: bytes, frames: Sequence[bytes], now: float, wall_seconds: float
    ) -> None:
        Protocols.CAPABILITIES.decode_request(frames)
        reply = Protocols.CAPABILITIES.encode_response(constants.OWN_APPEND_SIZE_MAX, True)
        self._reply(identity, message_id, reply)

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def has_reads(self) -> bool:
        """Whether reads wait for a confirmation."""
        return len(self._reads) > 0

    def tick(self, now: float) -> None:
        """Do what is due: tell clients whose update takes long that it is accepted, drop idle streams."""
        while self._accept and self._accept[0][0] <= now:
            _, first, last = self._accept.popleft()
            self._waiting.accepted(max(first, self.last_applied + 1), last, self.replies)
        self.config_updates.tick(now)
        self._reads.tick()
        self._streams.expire(now)

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        while self._accept and self._accept[0][2] <= self.last_applied:
            self._accept.popleft()
        accept_at = self._accept[0][0] if self._accept else math.inf
        return min(accept_at, self.config_updates.deadline, self._streams.next_deadline())

    def forget_old_requests(self, wall_seconds: float) -> None:
        """Forget the request ids that are past their time to live."""
        ttl = self._settings.request_id_ttl
        if ttl is not None:
            before = math.floor(wall_seconds - ttl / 1000)
            if before > self._forgotten_before:
                self._forgotten_before = before
                self._log.forget_requests(before)
