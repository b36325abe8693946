"""A virtual cluster in which nothing happens by itself: a message waits in its link until it is delivered or dropped,
and every peer has a clock of its own, which moves only when it is told to. So each schedule that Raft must survive can
be written down step by step.

Knows nothing of how a script looks; that is transcripts.py. The peers are whole engines, as in `VirtualCluster`, and
messages between them are those of zmq-raft, one at a time, unless ``own`` is set. What a peer that is no member reads
(RequestEntries) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from support.virtual_cluster import Peer, VirtualCluster
from zmqraft import constants
from zmqraft.errors import ZmqRaftError
from zmqraft.server import engine
from zmqraft.server.engine import BackgroundSync

_SHOWN = (
    constants.REQUEST_VOTE,
    constants.APPEND_ENTRIES,
    constants.INSTALL_SNAPSHOT,
    constants.OWN_INSTALL_SNAPSHOT,
    constants.COMMIT_NOTICE,
    constants.TRANSFER_NOTICE,
    constants.INTRODUCTION,
)


@dataclass(frozen=True)
class Held:
    """A message in a link. Of a reply ``message_type`` is that of the request, and the first frame is the message id
    in either."""

    source: str
    target: str
    is_reply: bool
    identity: bytes
    message_type: bytes
    frames: list[bytes]


class ScriptedCluster(VirtualCluster):
    """Peers that do something only when a message is delivered to them or their clock is moved."""

    def __init__(self, size: int, *, own: bool = False, **settings: object) -> None:
        # So that a peer which has not heard the leader for the minimum does not stand for election by itself.
        super().__init__(size, **{"election_timeout_max": 1000, **settings})
        self.own = own
        self.clocks = dict.fromkeys(self.ids, self.now)
        self.links: dict[tuple[str, str], list[Held]] = {}
        #: Who syncs in the background, and the syncs that are not done.
        self.slow: set[str] = set()
        self.syncs: dict[str, BackgroundSync] = {}
        #: Told of a message that was put into a link, or was lost since the link is cut; of a turn, around it.
        self.on_message: Callable[[Held, bool], None] = lambda held, is_lost: None
        self.around_turn: Callable[[Peer, Callable[[], None]], None] = lambda peer, turn: turn()
        self._due: list[Peer] = []
        # What a request was, by socket identity and message id.
        self._asked: dict[tuple[bytes, bytes], bytes] = {}

    # --- time -------------------------------------------------------------------------------------------------------

    @contextmanager
    def clock_of(self, peer: Peer) -> Iterator[None]:
        """What is done to a peer is done at its own time."""
        before, self.now = self.now, self.clocks[peer.id]
        try:
            yield
        finally:
            self.now = before

    def work(self) -> None:
        """Give a turn to those who have something to do."""
        with mock.patch.object(engine, "_BACKGROUND_SIZE_MIN", 0):
            while self._due:
                peer = self._due.pop(0)
                if peer.engine is not None:
                    with self.clock_of(peer):
                        self.sync_s = 0.0 if peer.id in self.slow else None  # type: ignore[misc]
                        if self.own and peer.role == "leader":
                            sizes = dict.fromkeys(peer.running.raft.progress, constants.OWN_APPEND_SIZE_MAX)
                            peer.running._calls._append_sizes.update(sizes)
                        self.around_turn(peer, lambda peer=peer: self._turn(peer))  # type: ignore[misc]

    def elapse(self, peer: Peer, until: float) -> None:
        """Let the clock of a peer come to a time."""
        self.clocks[peer.id] = max(until, self.clocks[peer.id])
        self._soon(peer)

    def _soon(self, peer: Peer) -> None:
        if peer not in self._due:
            self._due.append(peer)

    def _wake(self, peer: Peer, when: float) -> None:
        if when <= self.now:
            self._soon(peer)

    def start(self, *ids: str) -> None:
        for peer_id in ids or self.ids:
            self.clocks.setdefault(peer_id, self.now)
            with self.clock_of(self.peers[peer_id]):
                super().start(peer_id)

    def crash(self, *ids: str) -> None:
        super().crash(*ids)
        for peer_id in ids:
            self.syncs.pop(peer_id, None)
            for other in self.ids:
                pair = (peer_id, other)
                self._identities[pair] = self._identities.get(pair, 0) + 1

    def _run_in_background(self, peer: Peer, sync: BackgroundSync) -> None:
        self.syncs[peer.id] = sync

    def finish_sync(self, peer: Peer) -> None:
        """The disk is done with what a peer has begun in the background."""
        sync = self.syncs.pop(peer.id)
        sync.run()
        peer.running.synced(sync)
        self._soon(peer)

    # --- links ------------------------------------------------------------------------------------------------------

    def cut_off(self, *groups: Iterable[str]) -> None:
        """Those of different groups do not reach each other from now on; what is under way between them is lost."""
        parts = [set(group) for group in groups]
        self.cut = {
            (a, b) for part in parts for other in parts if part is not other for a in part for b in other if a != b
        }
        for pair in self.cut:
            self.links.pop(pair, None)

    def deliver(self, source: str, target: str, frames: list[bytes]) -> None:
        held = Held(source, target, False, self.identity(source, target), frames[1], frames)
        self._asked[held.identity, frames[0]] = held.message_type
        if held.message_type in _SHOWN:
            self._hold(held)

    def _deliver_reply(self, source: str, target: str, identity: int, frames: list[bytes]) -> None:
        name = f"{target}>{source}#{identity}".encode()
        self._hold(Held(source, target, True, name, self._asked[name, frames[0]], frames))

    def _hold(self, held: Held) -> None:
        is_lost = (held.source, held.target) in self.cut
        self.on_message(held, is_lost)
        if not is_lost:
            self.links.setdefault((held.source, held.target), []).append(held)

    def hand_over(self, held: Held, *, identity: bytes | None = None) -> None:
        """A message arrives, over the connection it was sent on or another one. Its receiver gets a turn."""
        peer = self.peers[held.target]
        if peer.engine is None:
            return
        with self.clock_of(peer):
            if not held.is_reply:
                self.receive(peer, [identity or held.identity, *held.frames])
            elif held.identity == self.identity(held.target, held.source):
                try:
                    peer.running.receive_reply(held.source, held.frames, self.now)
                except ZmqRaftError as failure:
                    peer.failure, peer.engine = failure, None
                self._soon(peer)

    def is_stale(self, held: Held) -> bool:
        """Whether the connection is gone on which a reply was to come."""
        return held.is_reply and held.identity != self.identity(held.target, held.source)
