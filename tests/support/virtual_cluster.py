"""A cluster of real engines in virtual time: fake clock, fake links, logs in memory with modelled durability.

One heap of events, one Random. Links deliver after a delay unless they are cut; a reset gives a new socket identity.
Nothing here sleeps or reads a clock, so a test does the same on any machine.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import ClassVar

import msgpack
import pytest

from zmqraft.api import SnapshotBase, SnapshotContext
from zmqraft.constants import CAPABILITIES, CONFIG_ACCEPTED, CONFIG_NOT_LEADER
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.quorum import is_quorum
from zmqraft.errors import ZmqRaftError
from zmqraft.protocol import ABSENT, EntryBatch, EntryType, LogEntry, Protocols, encode_uint, new_request_id
from zmqraft.server.compaction import configuration_at
from zmqraft.server.engine import BackgroundSync, Engine
from zmqraft.server.peer_calls import LinkAction
from zmqraft.server.settings import DataSettings, PeerAddress, Settings
from zmqraft.storage import MemoryLog, MemoryPersistence

SECRET = b"secret"
WALL_START = 1_800_000_000.0
#: What a snapshot of `Peer.compact` begins with.
_STATE = b"entries:"


def url_of(peer_id: str) -> str:
    return f"tcp://127.0.0.1:{7999 + int(peer_id)}"


def settings_of(peer_id: str, ids: Iterable[str], **changes: object) -> Settings:
    peers = tuple(PeerAddress(each, url_of(each)) for each in ids)
    changes.setdefault("router_bind", url_of(peer_id))
    return Settings(id=peer_id, peers=peers, data=DataSettings("unused"), secret=SECRET, **changes)  # type: ignore[arg-type]


def sync_in_background(patch: pytest.MonkeyPatch, duration_s: float | None) -> None:
    """Let every sync of a leader go on in the background for so long, in virtual seconds; None: none."""
    patch.setattr(VirtualCluster, "sync_s", duration_s)
    patch.setattr("zmqraft.server.engine._BACKGROUND_SIZE_MIN", 0)


class Peer:
    """One engine with its disk, which survives crashes."""

    def __init__(self, cluster: VirtualCluster, peer_id: str) -> None:
        self.cluster = cluster
        self.id = peer_id
        #: The members that its configuration file has.
        self.configured: list[str] | None = None
        self.log = MemoryLog()
        self.persistence = MemoryPersistence()
        self.engine: Engine | None = None
        self.applied: list[LogEntry] = []
        self.incarnation = 0
        self.failure: Exception | None = None
        self.turn_at = float("inf")

    @property
    def running(self) -> Engine:
        if self.engine is None:
            raise AssertionError(f"peer {self.id} is not running")
        return self.engine

    @property
    def role(self) -> str:
        return self.running.raft.role.value if self.engine else "down"

    @property
    def term(self) -> int:
        return self.running.raft.current_term

    def entries(self) -> list[LogEntry]:
        log = self.log
        return list(log.read(1, log.last_index, 1 << 30)) if log.last_index else []

    def set_log(self, *terms: int, term: int | None = None) -> None:
        """A log with these terms, before the start; the peer's term is the last one, or ``term``."""
        entries = [
            LogEntry(index, entry_term, EntryType.STATE, new_request_id(WALL_START), b"%d:%d" % (index, entry_term))
            for index, entry_term in enumerate(terms, 1)
        ]
        self.put_log(entries, term if term is not None else (terms[-1] if terms else 0))

    def put_log(self, entries: list[LogEntry], term: int) -> None:
        """A log with these entries, and this term, before the start."""
        if entries:
            self.log.append(EntryBatch.from_entries(entries))
            self.log.sync()
        self.persistence.update_vote(term, None)

    def terms(self) -> list[int]:
        return [entry.term for entry in self.entries()]

    @property
    def members(self) -> str:
        """The ids of its configuration; in a joint one, the old ones and the new ones."""
        configuration = self.running.raft.configuration
        lists = [configuration.old, configuration.peers] if configuration.old is not None else [configuration.peers]
        return " ".join("".join(sorted(peer_id for peer_id, _ in peers)) for peers in lists)

    def compact(self, index: int) -> None:
        """Take a snapshot of what was applied up to an index, and compact the log with it."""
        engine, log = self.running, self.log
        context = log.snapshot.context
        base = (ClusterConfiguration.from_value(settings_of(self.id, self.configured or self.cluster.ids).peer_urls), 0)
        if context.peers is not None:
            base = (ClusterConfiguration.from_value(context.peers), context.peers_index)
        configuration, at = configuration_at(index, log, base)
        context = SnapshotContext(
            configuration.to_value(), at, log.packed_requests(index), engine.requests_forgotten_until
        )
        frames = [entry.to_bytes() for entry in self.applied[:index]]
        snapshot = log.begin_snapshot(index, context)([_STATE, msgpack.packb(frames)])
        log.begin_compaction(snapshot)()
        engine.compact(snapshot)

    def restore(self, snapshot: SnapshotBase) -> None:
        data = snapshot.read(0, snapshot.size)
        if data.startswith(_STATE):
            frames = msgpack.unpackb(data[len(_STATE) :])
            self.applied = list(EntryBatch.from_frames(1, frames))


class VirtualCluster:
    """Peers, links and clients in virtual time."""

    #: How long the syncs of a leader go on in the background, in virtual seconds; None: they are done in its turn.
    sync_s: ClassVar[float | None] = None

    def __init__(self, size: int = 3, seed: int = 1, delay: float = 0.001, **settings: object) -> None:
        self.now = 100.0
        #: How far the wall clocks were set ahead, in seconds.
        self.wall_step = 0.0
        self.random = Random(seed)
        self.delay = delay
        self.settings = settings
        self.ids = [str(number) for number in range(1, size + 1)]
        self.peers = {peer_id: Peer(self, peer_id) for peer_id in self.ids}
        self.cut: set[tuple[str, str]] = set()
        #: Peers that know nothing of our own messages, as those of zmq-raft.
        self.foreign: set[str] = set()
        self.client_replies: dict[bytes, list[list[bytes]]] = {}
        self.sent: list[tuple[str, str, list[bytes]]] = []
        #: What a reply of a peer is replaced with, its message id first: (peer id, frames) to frames.
        self.change_reply: Callable[[str, list[bytes]], list[bytes]] | None = None
        #: Called after each event.
        self.on_event: Callable[[], None] = lambda: None
        self._identities: dict[tuple[str, str], int] = {}
        # When a link was last sent something.
        self._last_sent: dict[tuple[str, str], float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()

    # --- peers ------------------------------------------------------------------------------------------------------

    def start(self, *ids: str) -> None:
        for peer_id in ids or self.ids:
            peer = self.peers[peer_id]
            peer.incarnation += 1
            peer.failure = None
            if len(peer.applied) < peer.log.snapshot.index:
                peer.restore(peer.log.snapshot)
            peer.engine = Engine(
                settings_of(peer_id, peer.configured or self.ids, **self.settings),
                peer.log,
                peer.persistence,
                last_applied=len(peer.applied),
                now=self.now,
                random=Random(self.random.random()),
            )
            self._wake(peer, self.now)

    def add(self, peer_id: str, configured: Iterable[str]) -> Peer:
        """A new peer, with what its configuration file says of the members; still to be started."""
        for peer in self.peers.values():
            peer.configured = peer.configured or list(self.ids)
        self.ids.append(peer_id)
        peer = self.peers[peer_id] = Peer(self, peer_id)
        peer.configured = list(configured)
        return peer

    def crash(self, *ids: str) -> None:
        for peer_id in ids:
            peer = self.peers[peer_id]
            peer.engine = None
            peer.incarnation += 1
            peer.log, peer.persistence = peer.log.crash(), peer.persistence.crash()
            del peer.applied[:]

    def partition(self, *groups: Iterable[str]) -> None:
        """Only peers of the same group reach each other; ids that are in no group reach nobody."""
        group_of = {peer_id: position for position, group in enumerate(groups) for peer_id in group}
        self.cut = {
            (a, b)
            for a in self.ids
            for b in self.ids
            if a != b and (a not in group_of or group_of[a] != group_of.get(b))
        }

    def heal(self) -> None:
        self.cut = set()

    @property
    def leaders(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.role == "leader"]

    def leader(self) -> Peer:
        """Run until there is exactly one leader in the highest term, whom a majority follows."""
        self.run_until(lambda: self._followed_leader() is not None)
        leader = self._followed_leader()
        if leader is None:
            raise AssertionError("there is no leader")
        return leader

    def _followed_leader(self) -> Peer | None:
        running = [peer for peer in self.peers.values() if peer.engine is not None]
        for leader in self.leaders:
            followers = [
                peer.id for peer in running if peer.running.raft.leader_id == leader.id and peer.term == leader.term
            ]
            if is_quorum(followers, leader.running.raft.configuration.voters):
                return leader
        return None

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self._step()
        self.now = end

    def run_until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        end = self.now + seconds
        while not condition():
            if not self._events or self._events[0][0] > end:
                raise AssertionError(f"the condition did not come true within {seconds} virtual seconds")
            self._step()

    def _step(self) -> None:
        at, _, action = heapq.heappop(self._events)
        self.now = max(self.now, at)
        action()
        self.on_event()

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._sequence), action))

    # --- turns ------------------------------------------------------------------------------------------------------

    def _wake(self, peer: Peer, when: float) -> None:
        incarnation = peer.incarnation
        peer.turn_at = when

        def turn() -> None:
            if peer.incarnation == incarnation and peer.turn_at == when:
                self._turn(peer)

        self.at(when, turn)

    def _turn(self, peer: Peer) -> None:
        engine = peer.running
        try:
            self._send(peer, engine.begin_turn(self.now, self.wall))
            actions = engine.finish_turn(self.now, in_background=self.sync_s is not None)
            if (sync := engine.take_sync()) is not None:
                self._run_in_background(peer, sync)
            if (snapshot := engine.take_restore()) is not None:
                peer.restore(snapshot)
                engine.applied(snapshot.index)
            while (batch := engine.take_committed(1 << 20)) is not None:
                peer.applied.extend(batch)
                engine.applied(batch.last_index)
            self._reply(peer, engine.take_replies())
            self._send(peer, actions)
        except ZmqRaftError as failure:
            peer.failure = failure
            peer.engine = None
            peer.incarnation += 1
            return
        deadline = engine.next_deadline(self.now)
        if deadline <= self.now:
            raise AssertionError(
                f"peer {peer.id} asks for a turn at {deadline} in its turn at {self.now}: it would spin"
            )
        self._wake(peer, deadline)

    def _run_in_background(self, peer: Peer, sync: BackgroundSync) -> None:
        incarnation = peer.incarnation

        def done() -> None:
            if peer.incarnation == incarnation:
                sync.run()
                peer.running.synced(sync)
                self._soon(peer)

        self.at(self.now + (self.sync_s or 0.0), done)

    @property
    def wall(self) -> float:
        return WALL_START + self.now + self.wall_step

    def _soon(self, peer: Peer) -> None:
        if peer.turn_at > self.now:
            self._wake(peer, self.now)

    # --- links ------------------------------------------------------------------------------------------------------

    def _send(self, peer: Peer, actions: Iterable[LinkAction]) -> None:
        for action in actions:
            pair = (peer.id, action.peer_id)
            if action.message is None:
                self._identities[pair] = self._identities.get(pair, 0) + 1
                continue
            if self._last_sent.get(pair) == self.now and not action.keep:
                continue  # as ZMQ_SNDHWM 1 has it: the message before it has not left yet
            self._last_sent[pair] = self.now
            frames, entries = action.message
            message = frames + (entries.frames() if entries is not None else [])
            self.sent.append((*pair, message))
            self.deliver(*pair, message)

    def identity(self, source: str, target: str) -> bytes:
        return f"{source}>{target}#{self._identities.get((source, target), 0)}".encode()

    def deliver(self, source: str, target: str, frames: list[bytes]) -> None:
        """A message from the DEALER of one peer to the ROUTER of another."""
        identity = self.identity(source, target)

        def arrive() -> None:
            peer = self.peers[target]
            if (source, target) in self.cut or peer.engine is None:
                return
            if target in self.foreign and frames[1] == CAPABILITIES:
                return
            self.receive(peer, [identity, *frames])

        self.at(self.now + self.delay, arrive)

    def receive(self, peer: Peer, frames: list[bytes]) -> None:
        try:
            peer.running.receive(frames, self.now, self.wall)
        except ZmqRaftError as failure:
            peer.failure = failure
            peer.engine = None
            peer.incarnation += 1
            return
        self._soon(peer)

    def _reply(self, peer: Peer, replies: Iterable[Sequence[bytes]]) -> None:
        for frames in map(list, replies):
            identity = frames[0].decode()
            if ">" not in identity:
                self.client_replies.setdefault(frames[1], []).append(frames[2:])
                continue
            source, _, rest = identity.partition(">")
            self._deliver_reply(peer.id, source, int(rest.partition("#")[2]), frames[1:])

    def _deliver_reply(self, source: str, target: str, identity: int, frames: list[bytes]) -> None:
        if self.change_reply is not None:
            frames = self.change_reply(source, frames)

        def arrive() -> None:
            peer = self.peers[target]
            lost = (source, target) in self.cut or peer.engine is None
            if lost or self._identities.get((target, source), 0) != identity:
                return
            if peer.running.receive_reply(source, frames, self.now) or peer.turn_at <= self.now:
                self._soon(peer)
            else:
                # As the real one does: nothing but the next deadline may have changed.
                self._wake(peer, max(peer.running.next_deadline(self.now), self.now))

        self.at(self.now + self.delay, arrive)

    # --- clients ----------------------------------------------------------------------------------------------------

    def request(self, peer_id: str, message_id: bytes, frames: list[bytes]) -> None:
        self.receive(self.peers[peer_id], [b"client", message_id, *frames])

    def update(self, peer_id: str, data: bytes, request_id: bytes | None = None) -> bytes:
        """Send an update to a peer. Returns its request id; `result` has the reply."""
        request_id = request_id or new_request_id(self.wall)
        self.request(peer_id, request_id, Protocols.REQUEST_UPDATE.encode_request(b"=", SECRET, data))
        return request_id

    def result(self, request_id: bytes) -> tuple[bool, object] | None:
        """The last reply to an update, decoded."""
        replies = self.client_replies.get(request_id)
        return Protocols.REQUEST_UPDATE.decode_response(replies[-1]) if replies else None  # type: ignore[return-value]

    def committed(self, request_id: bytes) -> int | None:
        """The index that an update was acknowledged with."""
        result = self.result(request_id)
        return result[1] if result is not None and result[0] and isinstance(result[1], int) else None

    def commit(self, data: bytes) -> int:
        """An update, repeated with the same id through whoever leads, until it is committed. Returns its index."""
        request_id = new_request_id(self.wall)
        for _ in range(20):
            self.client_replies.pop(request_id, None)
            self.update(self.leader().id, data, request_id)
            self._run_until_answered(request_id)
            index = self.committed(request_id)
            if index is not None:
                return index
            if self.result(request_id) == (False, ABSENT):
                # Another life of it may be in a snapshot that came without request ids.
                self.run(1.0)
                request_id = new_request_id(self.wall)
        raise AssertionError("20 leaders in a row refused an update")

    def _run_until_answered(self, request_id: bytes) -> None:
        self.run_until(lambda: self.result(request_id) not in (None, (True, ABSENT)))

    def ask_change(self, peer_id: str, ids: Iterable[str], request_id: bytes | None = None) -> bytes:
        """Ask a peer to make these the members. Returns the request id; `change_result` has the reply."""
        request_id = request_id or new_request_id(self.wall)
        value = [[each, url_of(each)] for each in ids]
        self.request(peer_id, request_id, Protocols.CONFIG_UPDATE.encode_request(b"&", SECRET, value))
        return request_id

    def change_result(self, request_id: bytes) -> tuple[int, object] | None:
        """The last reply to a change, decoded: status and value."""
        replies = self.client_replies.get(request_id)
        return Protocols.CONFIG_UPDATE.decode_response(replies[-1]) if replies else None  # type: ignore[return-value]

    def changed(self, request_id: bytes) -> int | None:
        """The index that a change was acknowledged with."""
        status, value = self.change_result(request_id) or (None, None)
        return value if status == CONFIG_ACCEPTED and isinstance(value, int) else None

    def change(self, ids: Iterable[str]) -> int:
        """Make these the members, repeated through whoever leads until it is done. Returns the index of the change."""
        request_id = new_request_id(self.wall)
        for _ in range(20):
            self.client_replies.pop(request_id, None)
            self.ask_change(self.leader().id, ids, request_id)
            self.run_until(lambda: self.change_result(request_id) not in (None, (CONFIG_ACCEPTED, ABSENT)))
            if (index := self.changed(request_id)) is not None:
                return index
            assert (self.change_result(request_id) or (None,))[0] == CONFIG_NOT_LEADER, self.change_result(request_id)
        raise AssertionError("20 leaders in a row refused a change")

    def transfer(self, target_id: str | None, *, must: bool = False) -> None:
        """Let the leader make way."""
        leader = self.leader()
        leader.running.begin_transfer(target_id, self.now, must=must)
        self._soon(leader)

    def inject(self, target: str, message_id: int, frames: list[bytes], identity: bytes = b"x>1#9") -> None:
        """A raw message on a ROUTER socket, from nowhere in particular."""
        self.receive(self.peers[target], [identity, encode_uint(message_id), *frames])
