"""A whole cluster in one thread and in virtual time: peers, disks, links and clients around one heap of events.

Knows nothing of which faults come when. The rule: everything that happens is an event on the heap and all chance comes
out of the seed, so a seed replays a run exactly; after each turn of a peer its invariants are checked.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from zmqraft import constants
from zmqraft.api import SnapshotBase, StateMachineBase
from zmqraft.core.quorum import is_quorum
from zmqraft.core.raft import Role
from zmqraft.errors import ZmqRaftError
from zmqraft.protocol import EntryBatch
from zmqraft.server.peer_calls import LinkAction
from zmqraft.server.settings import DataSettings, PeerAddress, Settings
from zmqraft.testing.simulator.disk import PowerCut
from zmqraft.testing.simulator.invariants import Invariants
from zmqraft.testing.simulator.machine import KeyValueMachine
from zmqraft.testing.simulator.network import Network
from zmqraft.testing.simulator.peer import SimulatedPeer
from zmqraft.testing.simulator.routes import Routes
from zmqraft.testing.simulator.trace import Trace
from zmqraft.testing.simulator.violation import Violation

__all__ = ["SECRET", "SimulatedCluster"]

SECRET = b"simulated"
#: A run with more events than that has gone wrong: something spins.
_EVENTS_MAX = 200_000
#: Requests of peers whose reply is still to be checked, for each peer.
_REQUESTS_KEPT = 512
#: What leaders say beside their entries.
_OTHER_WORDS = frozenset(
    {
        constants.COMMIT_NOTICE,
        constants.TRANSFER_NOTICE,
        constants.INSTALL_SNAPSHOT,
        constants.OWN_INSTALL_SNAPSHOT,
    }
)


class SimulatedCluster:
    """Peers ``1`` to ``size``. ``settings`` are those of `Settings`, for all peers.

    ``state_of`` gives what is compared of the state machines of all peers after each entry; by default nothing is.
    """

    def __init__(
        self,
        size: int = 3,
        seed: int = 1,
        *,
        machine: Callable[[], StateMachineBase] = KeyValueMachine,
        state_of: Callable[[StateMachineBase], object] | None = None,
        syncs_in_background: bool = False,
        trace_kept: int | None = 2000,
        **settings: Any,
    ) -> None:
        self.now = 0.0
        self.seed = seed
        self.trace = Trace(trace_kept)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._event_count = 0
        self.ids: list[str] = []
        self.peers: dict[str, SimulatedPeer] = {}
        self.state_of = state_of
        self._machine = machine
        self._syncs_in_background = syncs_in_background
        self._settings = {"index_file_capacity": 16, **settings}
        self.network = Network(Random(f"{seed} network"), self.at, self._request_arrives, self._reply_arrives)
        self.invariants = Invariants(self.peers)
        self.routes = Routes()
        #: Who gets replies to clients, by name: (peer id, frames).
        self.clients: dict[str, Callable[[str, list[bytes]], None]] = {}
        self._crash_random = Random(f"{seed} crash")
        # By identity and message id: the frames, and whether they came before.
        self._requests: dict[str, dict[tuple[bytes, bytes], tuple[Sequence[bytes], bool]]] = defaultdict(dict)
        #: Called when a peer has stopped by itself: (peer, why).
        self.on_end: Callable[[SimulatedPeer, BaseException], None] = self._fail
        #: Called when a peer is in the middle of something: (peer, of what).
        self.on_occasion: Callable[[SimulatedPeer, str], None] = lambda peer, what: None
        #: Called when a peer does not start: (peer, why).
        self.on_refusal: Callable[[SimulatedPeer, BaseException], None] = self._refuse
        members = [str(number) for number in range(1, size + 1)]
        for peer_id in members:
            self.add(peer_id, members)

    # --- time ---------------------------------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do it then."""
        heapq.heappush(self._events, (when, next(self._sequence), action))

    def step(self) -> bool:
        """The next event. Returns whether there was one."""
        if not self._events:
            return False
        when, _, action = heapq.heappop(self._events)
        self.now = self.network.now = max(self.now, when)
        self._event_count += 1
        if self._event_count > _EVENTS_MAX:
            raise Violation("spin", f"{_EVENTS_MAX} events, and still at {self.now}")
        action()
        return True

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.step()
        self.now = self.network.now = end

    def run_until(self, condition: Callable[[], object], seconds: float = 60.0, what: str = "the condition") -> None:
        """Let time pass until it holds; AssertionError if it does not within so many virtual seconds."""
        end = self.now + seconds
        while not condition():
            if not self._events or self._events[0][0] > end:
                raise Violation("liveness", f"{what} did not come true within {seconds} virtual seconds")
            self.step()

    # --- peers --------------------------------------------------------------------------------------------------------

    def add(self, peer_id: str, members: Iterable[str]) -> SimulatedPeer:
        """A new peer, with what its configuration file says of the members; still to be started."""
        addresses = tuple(PeerAddress(member, self.url_of(member)) for member in members)
        peer = SimulatedPeer(
            self,
            Settings(
                id=peer_id,
                peers=addresses,
                data=DataSettings("/data"),
                secret=SECRET,
                router_bind=self.url_of(peer_id),
                **self._settings,
            ),
            self._machine,
            Random(f"{self.seed} peer {peer_id}"),
            syncs_in_background=self._syncs_in_background,
        )
        peer.applies_singly = self.state_of is not None
        self.ids.append(peer_id)
        self.peers[peer_id] = peer
        return peer

    @staticmethod
    def url_of(peer_id: str) -> str:
        """The url of a peer."""
        return f"tcp://10.0.0.{peer_id}:8047"

    def start(self, *ids: str) -> None:
        """Start peers, all by default."""
        for peer_id in ids or self.ids:
            peer = self.peers[peer_id]
            self.trace.note(self.now, f"{peer_id} starts")
            try:
                peer.start()
            except PowerCut as cut:
                peer.stop()
                peer.disk.power_cut(self._crash_random)
                self.on_end(peer, cut)
            except ZmqRaftError as error:
                self.trace.note(self.now, f"{peer_id} does not start: {error}")
                peer.stop()
                peer.disk.kill()
                self.on_refusal(peer, error)
            else:
                self.invariants.log_opened(peer)

    def kill(self, peer_id: str) -> None:
        """SIGKILL: the process is gone, its page cache is not."""
        self._stop(peer_id, "is killed")
        self.peers[peer_id].disk.kill()

    def close(self, peer_id: str) -> None:
        """SIGTERM: the process ends, and closes its files before."""
        self._stop(peer_id, "is closed")
        peer = self.peers[peer_id]
        peer.disk.cut_after = None
        peer.log.close()
        peer.persistence.close()
        peer.disk.kill()

    def power_cut(self, peer_id: str) -> None:
        """The machine is gone; what was not synced may be."""
        self._stop(peer_id, "loses its power")
        self.peers[peer_id].disk.power_cut(self._crash_random)

    def _stop(self, peer_id: str, how: str) -> None:
        peer = self.peers[peer_id]
        if peer.engine is not None:
            self.invariants.stopping(peer)
            peer.stop()
        self.trace.note(self.now, f"{peer_id} {how}")
        self.network.reset_all(peer_id)

    def ended(self, peer: SimulatedPeer, failure: BaseException) -> None:
        """See `PeerHost`."""
        self.trace.note(self.now, f"{peer.id} ends: {failure!r}" if str(failure) else f"{peer.id} is cut off its power")
        self.invariants.stopping(peer)
        self.network.reset_all(peer.id)
        if isinstance(failure, PowerCut):
            peer.disk.power_cut(self._crash_random)
        else:
            peer.disk.kill()
        self.on_end(peer, failure)

    def _fail(self, peer: SimulatedPeer, failure: BaseException) -> None:
        if not isinstance(failure, PowerCut):
            raise Violation("failure", f"{peer.id} stopped: {failure}") from failure

    def _refuse(self, peer: SimulatedPeer, failure: BaseException) -> None:
        raise Violation("refusal", f"{peer.id} does not start: {failure}") from failure

    def turned(self, peer: SimulatedPeer) -> None:
        """See `PeerHost`."""
        if peer.engine is not None:
            self.invariants.check(peer)
            self.routes.turned(peer)

    def role_changed(self, peer: SimulatedPeer) -> None:
        """See `PeerHost`."""
        self.trace.note(self.now, f"{peer.id} is {peer.role} in term {peer.running.raft.current_term}")
        if peer.running.raft.role in (Role.CANDIDATE, Role.LEADER):
            self.on_occasion(peer, "election")

    def preparing(self, peer: SimulatedPeer) -> None:
        """See `PeerHost`."""
        self.on_occasion(peer, "file")

    def log_appended(self, peer: SimulatedPeer, batch: EntryBatch) -> None:
        """See `PeerHost`."""
        self.invariants.log_appended(peer, batch)
        if batch.config_positions():
            self.on_occasion(peer, "configuration")

    def log_truncated(self, peer: SimulatedPeer, index: int) -> None:
        """See `PeerHost`."""
        self.trace.note(self.now, f"{peer.id} cuts its log at {index}")
        self.invariants.log_truncated(peer, index)
        self.on_occasion(peer, "truncation")

    def log_replaced(self, peer: SimulatedPeer, snapshot: SnapshotBase) -> None:
        """See `PeerHost`."""
        self.trace.note(self.now, f"{peer.id} installs the snapshot of {snapshot.index}")
        self.invariants.log_replaced(peer, snapshot)
        self.on_occasion(peer, "installation")

    def applied(self, peer: SimulatedPeer, batch: EntryBatch) -> None:
        """See `PeerHost`."""
        self.invariants.applied(peer, batch)
        self.routes.applied(peer, (batch.request_id(position) for position in range(len(batch))))
        if self.state_of is not None:
            self.invariants.state_is(peer, batch.last_index, self.state_of(peer.machine))
        elif isinstance(peer.machine, KeyValueMachine):
            self.invariants.state_is(peer, peer.machine.index, peer.machine.chain)

    def restored(self, peer: SimulatedPeer, index: int) -> None:
        """See `PeerHost`."""
        self.invariants.restored(peer, index)
        if self.state_of is not None:
            self.invariants.state_is(peer, index, self.state_of(peer.machine))
        elif isinstance(peer.machine, KeyValueMachine):
            self.invariants.state_is(peer, peer.machine.index, peer.machine.chain)

    @property
    def alive(self) -> list[SimulatedPeer]:
        """The peers that run."""
        return [peer for peer in self.peers.values() if peer.engine is not None]

    def leader(self) -> SimulatedPeer | None:
        """Who leads in the highest term, followed by a majority."""
        leaders = [peer for peer in self.alive if peer.running.raft.is_leader]
        if not leaders:
            return None
        leader = max(leaders, key=lambda peer: peer.running.raft.current_term)
        term = leader.running.raft.current_term
        followers = [
            peer.id
            for peer in self.alive
            if (peer.running.raft.leader_id, peer.running.raft.current_term) == (leader.id, term)
        ]
        return leader if is_quorum(followers, leader.running.raft.configuration.voters) else None

    # --- links --------------------------------------------------------------------------------------------------------

    def send(self, peer: SimulatedPeer, actions: Sequence[LinkAction]) -> None:
        """See `PeerHost`."""
        for action in actions:
            if action.message is None:
                self.network.reset(peer.id, action.peer_id)
                continue
            frames, entries = action.message
            message = [*frames, *(entries.frames() if entries is not None else ())]
            if message[1] == constants.APPEND_ENTRIES:
                self.invariants.append_sent(peer, message)
            elif message[1] == constants.REQUEST_VOTE:
                self.invariants.vote_requested(peer, message)
            self.network.send(peer.id, action.peer_id, message, keep=action.keep)

    def links_changed(self, peer: SimulatedPeer, closed: Sequence[str]) -> None:
        """See `PeerHost`."""
        for peer_id in closed:
            self.network.reset(peer.id, peer_id)

    def reply(self, peer: SimulatedPeer, frames: Sequence[bytes]) -> None:
        """See `PeerHost`."""
        identity, message_id, *rest = frames
        request = self._requests[peer.id].get((identity, message_id))
        self.routes.replied(peer, identity, message_id, rest)
        if request is not None:
            self.invariants.replied(peer, request[0], rest, is_repeated=request[1])
        self.network.reply(identity, [message_id, *rest])

    def _request_arrives(self, target: str, frames: list[bytes]) -> None:
        peer = self.peers.get(target)
        if peer is None or peer.engine is None:
            return
        self.trace.note(self.now, target, frames)
        if frames[2] in _OTHER_WORDS:
            self.invariants.conduct.spoken_to(target, frames[2])
        elif frames[2] in (constants.APPEND_ENTRIES, constants.REQUEST_VOTE):
            requests = self._requests[target]
            key = frames[0], frames[1]
            requests[key] = (frames[2:], key in requests)
            if len(requests) > _REQUESTS_KEPT:
                del requests[next(iter(requests))]
        elif frames[2] == constants.REQUEST_UPDATE:
            self.routes.arrived(peer, frames)
        peer.receive("", frames)

    def _reply_arrives(self, source: str, target: str, frames: list[bytes]) -> None:
        """To the DEALER of ``source``."""
        self.trace.note(self.now, f"{source} < {target}", frames)
        client = self.clients.get(source)
        if client is not None:
            client(target, frames)
        else:
            self.peers[source].receive(target, frames)

    def partition(self, *groups: Iterable[str]) -> None:
        """Only peers of the same group reach each other; ids in no group reach nobody."""
        group_of = {peer_id: position for position, group in enumerate(groups) for peer_id in group}
        self.cut(
            (a, b)
            for a in self.ids
            for b in self.ids
            if a != b and (a not in group_of or group_of[a] != group_of.get(b))
        )

    def cut(self, ways: Iterable[tuple[str, str]]) -> None:
        """Nothing gets along these ways until `heal`."""
        self.network.cut.update(ways)

    def heal(self, *, breaking: float = 0.5) -> None:
        """Every cut ends; a part of the connections had broken meanwhile."""
        self.network.heal(breaking=breaking)

    def lines(self) -> list[str]:
        """The trace, and what each peer is at the end."""
        return [*self.trace.lines(), *(self.describe(peer) for peer in self.peers.values())]

    def describe(self, peer: SimulatedPeer) -> str:
        """A peer in a line."""
        if peer.engine is None:
            return f"{self.now:10.6f}  {peer.id}: down ({peer.failure or 'no process'})"
        raft = peer.engine.raft
        return (
            f"{self.now:10.6f}  {peer.id}: {raft.role.value} in term {raft.current_term}, leader {raft.leader_id}, log "
            f"{raft.log.first_index} to {raft.log.last_index}, committed {raft.commit_index}, applied "
            f"{peer.engine.last_applied}" + (", paused" if peer.paused_until > self.now else "")
        )

    @property
    def next_event_at(self) -> float:
        """When the next event is."""
        return self._events[0][0] if self._events else math.inf
