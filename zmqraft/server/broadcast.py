"""The broadcasting state machine: the committed log, published to any number of subscribers.

SPEC section 2, "Broadcast". Knows nothing of what entries mean. The rule: only the leader publishes, and a subscriber
who misses something can always fetch it, so nothing here waits for anybody.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

import zmq

from zmqraft.api import PeerHandle, SnapshotBase, StateMachineBase
from zmqraft.constants import BROADCAST_HEARTBEAT_INTERVAL_MS, REQUEST_BROADCAST_URL
from zmqraft.errors import ConfigurationError
from zmqraft.protocol import EntryBatch, Protocols
from zmqraft.protocol.zmq_io import send_message
from zmqraft.storage import StatePersistence

__all__ = ["BroadcastStateMachine"]

logger = logging.getLogger(__name__)

#: How often the last applied index is written down, in seconds. A crash in between only means that entries which were
#: published before are published again, and subscribers know those.
_STORE_INTERVAL = 1.0
#: A heartbeat goes with what else the peer does, rather than alone, when it is due within this part of the interval.
_HEARTBEAT_EARLY = 0.2
_LINGER_MS = 200
#: What subscribers send is the secret, and at the start of a connection a few properties. A longer subscription matches
#: nothing, but costs about a hundred times its size.
_SUBSCRIBER_MESSAGE_SIZE_MAX = 1024


class BroadcastStateMachine(StateMachineBase):
    """Publishes every applied entry on a PUB socket while its peer leads, and heartbeats in between."""

    inline = True

    def __init__(
        self,
        url: str,
        *,
        bind: str | None = None,
        heartbeat_interval_ms: int = BROADCAST_HEARTBEAT_INTERVAL_MS,
        persistence: StatePersistence | None = None,
    ) -> None:
        """``url`` is what subscribers are told to connect to, ``bind`` (by default the same) what the socket binds.

        ``persistence`` remembers the last applied index over restarts; it is closed with the machine.
        """
        self.url = url
        self._bind = bind or url
        self._heartbeat_interval = heartbeat_interval_ms / 1000
        self._persistence = persistence
        self._last_applied = persistence.last_applied if persistence is not None else 0
        self._stored = self._last_applied
        self._store_at = 0.0
        self._term = 0
        self._leads = False
        self._heartbeat_at = 0.0
        self._resources = contextlib.ExitStack()
        if persistence is not None:
            self._resources.callback(persistence.close)
        self._peer: PeerHandle
        self._socket: zmq.Socket[bytes] | None = None

    @property
    def last_applied(self) -> int:
        return self._last_applied

    def restore(self, snapshot: SnapshotBase) -> None:
        """Nothing of what is below the snapshot is published again: subscribers fetch it."""
        self._last_applied = max(self._last_applied, snapshot.index)

    def start(self, peer: PeerHandle) -> None:
        """Bind the PUB socket. Raises ConfigurationError when it cannot be bound."""
        self._peer = peer
        context = self._resources.enter_context(zmq.Context())
        socket = context.socket(zmq.PUB)
        self._resources.callback(socket.close, _LINGER_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, len(peer.secret) + _SUBSCRIBER_MESSAGE_SIZE_MAX)
        if "[" in self._bind:
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.bind(self._bind)
        except zmq.ZMQError as error:
            raise ConfigurationError(f"cannot bind {self._bind}: {error.strerror}") from error
        self._socket = socket

    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        """Publish the entries, if the peer leads."""
        self._last_applied = entries.last_index
        if self._leads:
            self._publish(entries)

    def _publish(self, entries: EntryBatch | None) -> None:
        if self._socket is None:
            return
        head = Protocols.STATE_BROADCAST.encode_request(self._peer.secret, self._term, self._last_applied)
        # A PUB socket never waits: it drops what a slow subscriber has no room for.
        send_message(self._socket, head, entries)
        self._heartbeat_at = time.monotonic() + self._heartbeat_interval

    def role_changed(self, role: str, term: int) -> None:
        """Publish from now on, or no longer."""
        self._leads = role == "leader"
        self._term = term
        if self._leads:
            self._publish(None)

    def tick(self, now: float) -> float | None:
        """Publish a heartbeat and write down the last applied index, when it is time."""
        if self._last_applied != self._stored and now >= self._store_at:
            self._store()
            self._store_at = now + _STORE_INTERVAL
        if self._leads and now >= self._heartbeat_at - _HEARTBEAT_EARLY * self._heartbeat_interval:
            self._publish(None)
        deadlines = []
        if self._leads:
            deadlines.append(self._heartbeat_at)
        if self._last_applied != self._stored:
            deadlines.append(self._store_at)
        return min(deadlines, default=None)

    def _store(self) -> None:
        if self._persistence is not None:
            self._persistence.update(self._last_applied, durable=False)
        self._stored = self._last_applied

    def on_message(self, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]) -> None:
        """Tell who asks the url of the PUB socket."""
        if message_type == REQUEST_BROADCAST_URL:
            self._peer.send(route, Protocols.REQUEST_BROADCAST_URL.encode_response(self.url))

    def close(self) -> None:
        """Write down the last applied index and close the socket."""
        with self._resources:
            self._store()
