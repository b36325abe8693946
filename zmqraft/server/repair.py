"""A log with damaged entries is mended before its peer runs: the entries are fetched from the others.

Until every entry matches its checksum again there is no engine, so that such a peer neither votes, nor leads, nor
acknowledges, nor serves anything; it is only a client of the others (SPEC section 2, "RequestEntries", which zmq-raft's
leaders answer too). What a leader gives out is committed. So an entry that was not committed before the damage can be
put back as soon as the others have committed it, or never, when they have committed another one: then it stops.

Knows nothing of files' layout. The rule: an entry is written only where it is proved to be the one that was there
(`zmqraft.storage.mending`), so that the log afterwards is the log that its peer has acknowledged.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import zmq

from zmqraft import constants
from zmqraft.api import LogBase
from zmqraft.constants import ENTRY_HEADER_SIZE
from zmqraft.errors import ClosedError, CorruptionError, RemoteProtocolError
from zmqraft.protocol import EntryBatch, Protocols, encode_uint
from zmqraft.server.settings import Settings
from zmqraft.storage.mending import DamagedEntries, find_damage, mend

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
    """Asks the peers for committed entries, one peer after the other, until all have come. Times are in seconds.

    Knows nothing of sockets: the caller sends what `next_message` gives, and hands in what arrives.
    """

    def __init__(self, secret: bytes, peer_ids: Sequence[str], first: int, last: int) -> None:
        self._secret = secret
        self._peer_ids = list(peer_ids)
        self._position = -1
        self._last = last
        #: The index of the next entry that is to come.
        self.next_index = first
        self._message_id = 0
        self._asked = ""
        # A peer that another one says leads; and what is to be acknowledged to the one that was asked.
        self._hint: str | None = None
        self._acknowledges = False
        #: When `next_message` may have something to send.
        self.deadline = -math.inf

    @property
    def is_done(self) -> bool:
        """Whether every entry has come."""
        return self.next_index > self._last

    def next_message(self, now: float) -> tuple[str, list[bytes]] | None:
        """A message that is to be sent now, and the peer that it is for."""
        if now < self.deadline or self.is_done:
            return None
        self.deadline = now + _TIMEOUT
        if self._acknowledges:
            self._acknowledges = False
        else:
            self._choose_peer()
            self._message_id = self._message_id % _MESSAGE_ID_MAX + 1
        request = Protocols.REQUEST_ENTRIES.encode_request(
            constants.REQUEST_ENTRIES, self._secret, self.next_index - 1, self._last - self.next_index + 1
        )
        return self._asked, [encode_uint(self._message_id), *request]

    def _choose_peer(self) -> None:
        if self._hint is None:
            self._position = (self._position + 1) % len(self._peer_ids)
            self._hint = self._peer_ids[self._position]
        self._asked, self._hint = self._hint, None

    def receive(self, peer_id: str, frames: Sequence[bytes], now: float) -> EntryBatch | None:
        """A message of a peer. Returns the next entries, if they are in it.

        Raises RemoteProtocolError for a message that is not understood; nothing has changed then. CorruptionError when
        the peer that leads has the entries no more, but a snapshot in their place.
        """
        if not frames or peer_id != self._asked or frames[0] != encode_uint(self._message_id):
            return None
        status, leader_id, last_index, entries = Protocols.REQUEST_ENTRIES.decode_response(frames[1:])
        if status == constants.ENTRIES_SNAPSHOT:
            raise CorruptionError(f"peer {peer_id!r} has entry {self.next_index} no more, but a snapshot above it")
        if status not in (constants.ENTRIES_MORE, constants.ENTRIES_LAST):
            self._ask_leader(leader_id, now)
            return None
        batch = EntryBatch.from_frames(self.next_index, entries)
        if batch.last_index > self._last or (len(batch) and batch.last_index != last_index):
            raise RemoteProtocolError(f"entries up to {last_index} where {self.next_index} was asked for: {batch!r}")
        self.next_index = batch.last_index + 1
        self._acknowledges = status == constants.ENTRIES_MORE and len(batch) > 0
        self.deadline = now if self._acknowledges else now + _PAUSE
        if not self._acknowledges:
            # It leads, but has not committed so many.
            self._hint = peer_id
        return batch if len(batch) else None

    def _ask_leader(self, leader_id: object, now: float) -> None:
        if isinstance(leader_id, str) and leader_id in self._peer_ids and leader_id != self._asked:
            self._hint = leader_id
        self.deadline = now + _PAUSE


def open_mended(
    settings: Settings,
    open_log: Callable[[Settings], LogBase],
    urls: Mapping[str, str],
    stopped: Callable[[], bool],
) -> LogBase:
    """Open a log; where entries of it are damaged, fetch them from the other peers, whose ``urls`` these are, and put
    them back. That takes until they have a leader and have committed these entries, or ``stopped`` says so.

    Raises what ``open_log`` does, CorruptionError when there is no other peer, for damage of anything else than of
    entries with checksums, and for entries that cannot be fetched or are not those that were here; ClosedError when
    stopped.
    """
    others = {peer_id: url for peer_id, url in urls.items() if peer_id != settings.id}
    while True:
        try:
            return open_log(settings)
        except CorruptionError as error:
            damage = find_damage(error) if others else None
            if damage is None:
                raise
            logger.error("%s: %s", settings.id, error)
            _fetch(settings, others, damage, error, stopped)


def _fetch(
    settings: Settings,
    urls: Mapping[str, str],
    damage: DamagedEntries,
    error: CorruptionError,
    stopped: Callable[[], bool],
) -> None:
    fetch = EntriesFetch(settings.secret, list(urls), damage.first, damage.last)
    remind_at = -math.inf
    with _sockets(settings, urls) as sockets:
        while not fetch.is_done:
            if stopped():
                raise ClosedError(f"the peer {settings.id} was stopped before its log was mended")
            now = time.monotonic()
            if now >= remind_at:
                remind_at = now + _REMIND
                logger.error(
                    "%s: fetching entries %d to %d from the other peers; it neither votes nor leads until they are "
                    "put back",
                    settings.id,
                    fetch.next_index,
                    damage.last,
                )
            if (message := fetch.next_message(now)) is not None:
                peer_id, frames = message
                with contextlib.suppress(zmq.Again):
                    sockets[peer_id].send_multipart(frames, zmq.NOBLOCK)
            for peer_id, frames in _receive(sockets, fetch.deadline):
                try:
                    batch = fetch.receive(peer_id, frames, time.monotonic())
                except RemoteProtocolError as problem:
                    logger.warning("%s: peer %r: %s", settings.id, peer_id, problem)
                except CorruptionError as problem:
                    raise CorruptionError(
                        f"{error}; {problem}", path=error.path, offset=error.offset, index=error.index
                    ) from error
                else:
                    if batch is not None:
                        mend(damage.path, batch)
    logger.warning("%s: entries %d to %d of %s were put back", settings.id, *damage[1:], damage.path)


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
