"""A log with damaged entries is mended before its peer runs: the entries are fetched from the others.

Until every entry matches its checksum again there is no engine, so that such a peer neither votes, nor leads, nor
acknowledges, nor serves anything; it is only a client of the others (SPEC section 2, "RequestEntries", which zmq-raft's
leaders answer too). What a leader gives out is committed. So an entry that was not committed before the damage can be
put back as soon as the others have committed it, or never, when they have committed another one: then it stops. Where
the leader has a snapshot in the place of the entries, that takes their place here too.

Knows nothing of files' layout. The rule: an entry is written only where it is proved to be the one that was there
(`zmqraft.storage.mending`), so that the log afterwards is the log that its peer has acknowledged.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import zmq

from zmqraft import constants
from zmqraft.api import LogBase, PersistenceBase, SnapshotContext
from zmqraft.constants import ENTRY_HEADER_SIZE
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.errors import ClosedError, CorruptionError, OutOfOrderError, RemoteProtocolError, StorageError
from zmqraft.protocol import Protocols, encode_uint
from zmqraft.protocol.entries_flow import EntriesFlow, EntriesItem, Position, SnapshotChunk
from zmqraft.server.settings import Settings
from zmqraft.storage import SnapshotFile, SnapshotWriter
from zmqraft.storage.failure import describe
from zmqraft.storage.mending import DamagedEntries, find_damage, mend, term_on_disk

__all__ = ["EntriesFetch", "open_mended"]

logger = logging.getLogger(__name__)

#: With no answer for so many seconds the next peer is asked; when it cannot help, after so many.
_TIMEOUT: Final = 1.0
_PAUSE: Final = 0.2
#: How often it is said that the log is still damaged.
_REMIND: Final = 10.0
_POLL_MS_MAX: Final = 100
_MESSAGE_ID_MAX: Final = 0xFFFF


class EntriesFetch:
    """Asks the peers for committed entries, one peer after the other, until all have come, or a snapshot instead.

    Times are in seconds. Knows nothing of sockets: the caller sends what `next_message` gives, and hands in what
    arrives, one message at a time.
    """

    def __init__(self, secret: bytes, peer_ids: Sequence[str], first: int, last: int) -> None:
        self._secret = secret
        self._peer_ids = list(peer_ids)
        self._position = -1
        self._last = last
        self._flow = EntriesFlow(first - 1, last - first + 1)
        self._message_id = 0
        self._asked = ""
        # A peer that another one says leads; and what the one that was asked is to hear, now that its answer has come.
        self._hint: str | None = None
        self._acknowledgement: Position | None = None
        #: When `next_message` may have something to send.
        self.deadline = -math.inf
        #: Whether everything has come.
        self.is_done = False

    @property
    def next_index(self) -> int:
        """The index of the next entry that is to come."""
        return self._flow.previous_index + 1

    def next_message(self, now: float) -> tuple[str, list[bytes]] | None:
        """A message that is to be sent now, and the peer that it is for."""
        if now < self.deadline or self.is_done:
            return None
        self.deadline = now + _TIMEOUT
        position, self._acknowledgement = self._acknowledgement, None
        if position is None:
            self._begin()
            position = self._flow.position
        request = Protocols.REQUEST_ENTRIES.encode_request(constants.REQUEST_ENTRIES, self._secret, *position)
        return self._asked, [encode_uint(self._message_id), *request]

    def _begin(self) -> None:
        """Ask anew, from what has come: the next peer, or the one that is said to lead."""
        if self._hint is None:
            self._position = (self._position + 1) % len(self._peer_ids)
            self._hint = self._peer_ids[self._position]
        self._flow.restart(same_peer=self._asked == self._hint)
        self._asked, self._hint = self._hint, None
        self._message_id = self._message_id % _MESSAGE_ID_MAX + 1

    def receive(self, peer_id: str, frames: Sequence[bytes], now: float) -> EntriesItem | None:
        """A message of a peer. Returns the next entries, or the next chunk of a snapshot, if they are in it.

        Raises RemoteProtocolError for a message that is not understood; nothing has changed then.
        """
        if not frames or peer_id != self._asked or frames[0] != encode_uint(self._message_id):
            return None
        status, value, last_index, rest = Protocols.REQUEST_ENTRIES.decode_response(frames[1:])
        if status == constants.ENTRIES_NOT_LEADER:
            if isinstance(value, str) and value in self._peer_ids and value != peer_id:
                self._hint = value
            self.deadline = now + _PAUSE
            return None
        try:
            if status == constants.ENTRIES_SNAPSHOT:
                received = self._flow.receive_chunk(value, last_index, rest)
            else:
                received = self._flow.receive_entries(status, last_index, rest)
        except OutOfOrderError as error:
            raise RemoteProtocolError(str(error)) from error
        item = received.item
        self.is_done = item.is_last if isinstance(item, SnapshotChunk) else self.next_index > self._last
        # It leads, so it is asked for more; in a while, when there is no more now.
        self._hint = peer_id
        self._acknowledgement = received.acknowledgement
        self.deadline = now if received.acknowledgement is not None else now + _PAUSE
        return item


def open_mended(
    settings: Settings,
    open_log: Callable[[Settings], LogBase],
    state: PersistenceBase,
    stopped: Callable[[], bool],
) -> LogBase:
    """Open a log; where entries of it are damaged, fetch them from the other peers, which are those in ``state``, and
    put them back. That takes until they have a leader and have committed these entries, or ``stopped`` says so.

    Raises what ``open_log`` does, CorruptionError when there is no other peer, for damage of anything else than of
    entries with checksums, and for entries that cannot be fetched or are not those that were here; StorageError when
    the disk fails, ClosedError when stopped.
    """
    configuration = settings.peer_urls if state.peers is None else state.peers
    urls = ClusterConfiguration.from_value(configuration).urls
    others = {peer_id: url for peer_id, url in urls.items() if peer_id != settings.id}
    while True:
        try:
            return open_log(settings)
        except CorruptionError as error:
            try:
                damage = find_damage(error)
                if damage is None or not others:
                    raise
                logger.error("%s: %s", settings.id, error)
                _Repair(settings, state, others, damage, error).run(stopped)
            except OSError as problem:
                raise StorageError(f"cannot mend {error.path}: {describe(problem)}") from problem


class _Repair:
    """One run of damaged entries, for the sake of which the log does not open."""

    def __init__(
        self,
        settings: Settings,
        state: PersistenceBase,
        urls: Mapping[str, str],
        damage: DamagedEntries,
        error: CorruptionError,
    ) -> None:
        self._settings = settings
        self._state = state
        self._urls = urls
        self._damage = damage
        self._error = error
        # Of the snapshot that comes instead.
        self._writer: SnapshotWriter | None = None

    def run(self, stopped: Callable[[], bool]) -> None:
        """Fetch them, and put them back."""
        damage, peer_id = self._damage, self._settings.id
        fetch = EntriesFetch(self._settings.secret, list(self._urls), damage.first, damage.last)
        remind_at = -math.inf
        with contextlib.ExitStack() as stack:
            stack.callback(self._give_up_snapshot)
            sockets = stack.enter_context(_sockets(self._settings, self._urls))
            while not fetch.is_done:
                if stopped():
                    raise ClosedError(f"the peer {peer_id} was stopped before its log was mended")
                now = time.monotonic()
                if now >= remind_at:
                    remind_at = now + _REMIND
                    logger.error(
                        "%s: fetching entries %d to %d from the other peers; it neither votes nor leads until they are "
                        "put back",
                        peer_id,
                        fetch.next_index,
                        damage.last,
                    )
                self._exchange(fetch, sockets, now)
        if self._writer is None:
            logger.warning("%s: entries %d to %d of %s were put back", peer_id, damage.first, damage.last, damage.path)

    def _exchange(self, fetch: EntriesFetch, sockets: Mapping[str, zmq.Socket[bytes]], now: float) -> None:
        """Send what is to be sent, and take an answer, if one comes soon."""
        if (message := fetch.next_message(now)) is not None:
            with contextlib.suppress(zmq.Again):
                sockets[message[0]].send_multipart(message[1], zmq.NOBLOCK)
        for peer_id, frames in _receive(sockets, fetch.deadline):
            try:
                received = fetch.receive(peer_id, frames, time.monotonic())
            except RemoteProtocolError as problem:
                logger.warning("%s: peer %r: %s", self._settings.id, peer_id, problem)
                continue
            if isinstance(received, SnapshotChunk):
                self._take_chunk(received)
            elif received is not None:
                mend(self._damage.path, received)

    # --- a snapshot in the place of the entries -----------------------------------------------------------------------

    def _take_chunk(self, chunk: SnapshotChunk) -> None:
        """Write it down; with the last one the snapshot takes its place, and opening the log then does the rest."""
        # The chunks of one follow each other from offset 0 on.
        if chunk.offset == 0 or self._writer is None:
            self._writer = self._begin_snapshot(chunk)
        self._writer.write(chunk.data)
        if chunk.is_last:
            self._writer.finish().close()
            logger.warning("%s: the snapshot of index %d has taken their place", self._settings.id, chunk.index)

    def _begin_snapshot(self, chunk: SnapshotChunk) -> SnapshotWriter:
        self._give_up_snapshot()
        error, path = self._error, self._settings.data.snapshot_path
        own_index, _, _ = SnapshotFile.peek(path)
        if chunk.index <= own_index:
            raise CorruptionError(
                f"{error}; the leader has a snapshot of index {chunk.index} instead",
                path=error.path,
                offset=error.offset,
                index=error.index,
            )
        logger.warning("%s: receiving the leader's snapshot of index %d instead", self._settings.id, chunk.index)
        kept_max = self._settings.data.compact.keep_snapshots
        context = self._context_at(chunk)
        return SnapshotWriter(path, chunk.index, chunk.term, context=context, kept_max=kept_max)

    def _context_at(self, chunk: SnapshotChunk) -> SnapshotContext:
        """The configuration at the snapshot's index is known where the log has that entry, and none since."""
        context = SnapshotContext.unknown(int(time.time()))
        peers, peers_index = self._state.peers, self._state.peers_index or 0
        if peers is None or peers_index > chunk.index:
            return context
        if term_on_disk(self._settings.data.log_path, chunk.index) != chunk.term:
            return context
        return replace(context, peers=peers, peers_index=peers_index)

    def _give_up_snapshot(self) -> None:
        if self._writer is not None:
            self._writer.abort()


@contextlib.contextmanager
def _sockets(settings: Settings, urls: Mapping[str, str]) -> Iterator[dict[str, zmq.Socket[bytes]]]:
    """A DEALER to each of the peers."""
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        sockets = {}
        for peer_id, url in urls.items():
            socket = sockets[peer_id] = stack.enter_context(context.socket(zmq.DEALER))
            socket.linger = 0
            socket.sndhwm = 1
            socket.setsockopt(zmq.RECONNECT_IVL, settings.rpc_timeout)
            socket.setsockopt(zmq.MAXMSGSIZE, settings.max_log_entry_data_size + ENTRY_HEADER_SIZE)
            if "[" in url:
                socket.setsockopt(zmq.IPV6, 1)
            socket.connect(url)
        yield sockets


def _receive(sockets: Mapping[str, zmq.Socket[bytes]], deadline: float) -> Iterator[tuple[str, list[bytes]]]:
    """What has arrived by a time, which is not waited for if it is far."""
    poller = zmq.Poller()
    peers = {socket: peer_id for peer_id, socket in sockets.items()}
    for socket in peers:
        poller.register(socket, zmq.POLLIN)
    wait_ms = min(math.ceil(max(deadline - time.monotonic(), 0.0) * 1000), _POLL_MS_MAX)
    # One at a time: each is acknowledged before the next is taken.
    for socket, _ in poller.poll(wait_ms)[:1]:
        yield peers[socket], socket.recv_multipart()
