"""One simulated peer: the real engine, log and state file over a simulated disk, run as by the thread of a real one.

Knows nothing of faults' schedule or of what is checked. The rule: what arrives waits in the inbox until the peer is not
busy; everything that leaves goes through the host, and a power cut or a failure ends the peer in the middle of
whatever it does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from zmqraft.api import SnapshotBase, StateMachineBase
from zmqraft.core.raft import Role
from zmqraft.errors import StorageError, ZmqRaftError
from zmqraft.protocol import EntryBatch
from zmqraft.server.applier import InlineApplier, ViewHandler, restore_state
from zmqraft.server.compaction import Compactor
from zmqraft.server.engine import BackgroundSync, Engine
from zmqraft.server.local_updates import LocalUpdates
from zmqraft.server.peer_calls import LinkAction
from zmqraft.server.settings import Settings
from zmqraft.storage import FileLog, RaftPersistence
from zmqraft.storage.index_file import TABLE_OFFSET
from zmqraft.testing.simulator.disk import PowerCut, SimulatedDisk

__all__ = ["Clock", "PeerHost", "SimulatedLog", "SimulatedPeer"]

#: Files small enough that a run goes through several of them.
_ALLOCATION_SIZE = 8192
_APPLY_SIZE_MAX = 1 << 20
#: So many turns one after the other, with no time between them, are a spin.
_IDLE_TURNS_MAX = 100

#: ("peer", peer id, frames): a reply; ("message", "", frames): what arrived at the ROUTER.
_Inbox = list[tuple[str, list[bytes]]]


class PeerHost(Protocol):
    """What a peer needs of the simulation around it."""

    now: float

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Schedule."""

    def send(self, peer: SimulatedPeer, actions: Sequence[LinkAction]) -> None:
        """Messages to other peers, and resets of the links to them."""

    def links_changed(self, peer: SimulatedPeer, closed: Sequence[str]) -> None:
        """The DEALERs to these peers are closed."""

    def reply(self, peer: SimulatedPeer, frames: Sequence[bytes]) -> None:
        """A reply out of the ROUTER."""

    def log_appended(self, peer: SimulatedPeer, batch: EntryBatch) -> None:
        """The log has these entries more."""

    def log_truncated(self, peer: SimulatedPeer, index: int) -> None:
        """The log ends here now."""

    def log_replaced(self, peer: SimulatedPeer, snapshot: SnapshotBase) -> None:
        """A leader's snapshot takes the place of the log up to its index."""

    def applied(self, peer: SimulatedPeer, batch: EntryBatch) -> None:
        """The state machine has applied these."""

    def restored(self, peer: SimulatedPeer, index: int) -> None:
        """The state machine has become what a snapshot of this index says."""

    def turned(self, peer: SimulatedPeer) -> None:
        """The peer has done something: time to look at it."""

    def ended(self, peer: SimulatedPeer, failure: BaseException) -> None:
        """The peer has stopped by itself, or its power was cut in the middle of something."""

    def role_changed(self, peer: SimulatedPeer) -> None:
        """It has another role, or is in another term."""

    def preparing(self, peer: SimulatedPeer) -> None:
        """It is about to make the log's next file, or room in the newest one."""


class SimulatedLog(FileLog):
    """The log that ships, watched."""

    _on_append: Callable[[EntryBatch], None] | None = None
    _on_truncate: Callable[[int], None] | None = None
    _on_install: Callable[[SnapshotBase], None] | None = None
    _outstanding: Callable[[], None] | None = None

    @property
    def is_syncing(self) -> bool:
        """Whether a sync in the background is still to be done."""
        return self._outstanding is not None

    def watch(
        self,
        on_append: Callable[[EntryBatch], None],
        on_truncate: Callable[[int], None],
        on_install: Callable[[SnapshotBase], None],
    ) -> None:
        """Tell these from now on."""
        self._on_append, self._on_truncate, self._on_install = on_append, on_truncate, on_install

    def install(self, snapshot: SnapshotBase) -> None:
        """Replace the log, and say so before."""
        if self._on_install is not None:
            self._on_install(snapshot)
        super().install(snapshot)

    def append(self, batch: EntryBatch) -> None:
        """Add entries, and say so."""
        super().append(batch)
        if self._on_append is not None:
            self._on_append(batch)

    def truncate_after(self, index: int) -> None:
        """Cut, and say so."""
        super().truncate_after(index)
        if self._on_truncate is not None:
            self._on_truncate(index)

    def begin_sync(self) -> Callable[[], None] | None:
        """As of the log that ships; what it gives out may be run twice, and does nothing the second time."""
        sync = super().begin_sync()
        if sync is None:
            return None

        def run() -> None:
            if self._outstanding is run:
                self._outstanding = None
                sync()

        self._outstanding = run
        return run

    def _wait_for_sync(self) -> None:
        """There is no other thread to wait for: what it would do is done now."""
        if self._outstanding is not None:
            with contextlib.suppress(StorageError):
                self._outstanding()
        super()._wait_for_sync()

    def spot_of(self, index: int) -> tuple[str, int, int] | None:
        """The file that holds an entry, and where it begins and ends there; None when none does."""
        position = self._position_of(index)
        file = self._files[position]
        if position < 0 or not file.first_index <= index <= file.last_index:
            return None
        return file.path, file.file_offset(index), file.file_offset(index + 1)

    def entry_is_durable(self, disk: SimulatedDisk, index: int) -> bool:
        """Whether an entry above the snapshot, its checksum and its offset are on the disk for certain."""
        spot = self.spot_of(index)
        if spot is None:
            return False
        path, start, stop = spot
        first_index = self._files[self._position_of(index)].first_index
        slot = TABLE_OFFSET + 4 * (index - first_index)
        return disk.is_durable(path, start, stop) and disk.is_durable(path, slot, slot + 4)


@dataclass(slots=True)
class Clock:
    """A peer's own clocks: the monotonic one may run fast or slow, the wall clock may be set as well."""

    rate: float = 1.0
    since: float = 0.0
    base: float = 0.0
    wall_start: float = 1_800_000_000.0
    wall_step: float = 0.0

    def local(self, now: float) -> float:
        """The peer's monotonic time."""
        return self.base + (now - self.since) * self.rate

    def when(self, local: float) -> float:
        """The time at which the peer's clock will show this."""
        return self.since + (local - self.base) / self.rate

    def wall(self, now: float) -> float:
        """The peer's wall clock."""
        return self.wall_start + self.local(now) + self.wall_step

    def set_rate(self, rate: float, now: float) -> None:
        """Let it run at another rate from now on."""
        self.base, self.since, self.rate = self.local(now), now, rate


class SimulatedPeer:
    """A peer with its disk, which outlives its processes."""

    def __init__(
        self,
        host: PeerHost,
        settings: Settings,
        machine: Callable[[], StateMachineBase],
        random: Random,
        *,
        syncs_in_background: bool = False,
    ) -> None:
        self.id = settings.id
        self.settings = settings
        self.disk = SimulatedDisk(f"host-{settings.id}")
        self.clock = Clock()
        self.engine: Engine | None = None
        self.log: SimulatedLog
        self.persistence: RaftPersistence
        self.machine: StateMachineBase
        self.incarnation = 0
        #: Why it has stopped by itself.
        self.failure: BaseException | None = None
        #: It cannot be started any more: its data is damaged, as a fault has seen to.
        self.is_lost = False
        #: It does not come back, whatever is on its disk.
        self.is_gone = False
        self.applies_singly = False
        #: Until then it does nothing: it is stopped (SIGSTOP).
        self.paused_until = 0.0
        #: When its current turn, or its last one, began, by its own clock, and in which term.
        self.turn_began = 0.0
        self.turn_term = 0
        #: When its last sync in the background began, and in which term.
        self.sync_began = (0.0, 0)
        #: Turns in which it waited for its disk.
        self.slow_turns = 0
        self.inbox: _Inbox = []
        self.compactor: Compactor
        self._host = host
        self._make_machine = machine
        self._random = random
        self._syncs_in_background = syncs_in_background
        self._applier: InlineApplier
        self._turn_at = math.inf
        self._in_turn = False
        self._calls: list[Callable[[], None]] = []
        self._idle_turns = 0
        self._turned_at = -1.0
        self._seen_role: tuple[Role, int] | None = None
        self._seen_urls: dict[str, str] = {}

    @property
    def running(self) -> Engine:
        """The engine of a peer that runs."""
        if self.engine is None:
            raise AssertionError(f"peer {self.id} is not running")
        return self.engine

    @property
    def is_in_turn(self) -> bool:
        """Whether it waits for its disk in the middle of a turn."""
        return self._in_turn

    @property
    def role(self) -> str:
        """As `ZmqRaft.state`; "down" when there is no process."""
        return self.engine.raft.role.value if self.engine is not None else "down"

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the data and run. What is raised is what a peer says who refuses to start."""
        now = self._host.now
        self.incarnation += 1
        self.failure = None
        self.inbox = []
        self._calls = []
        self._in_turn = False
        self._seen_role = None
        self._seen_urls = {}
        self.disk.wall_seconds = self.clock.wall(now)
        self._open()
        machine = self.machine = self._make_machine()
        restore_state(machine, self.log.snapshot)
        self.engine = Engine(
            self.settings,
            self.log,
            self.persistence,
            last_applied=max(machine.last_applied, self.log.snapshot.index),
            now=self.clock.local(now),
            random=Random(self._random.random()),
            on_message=machine.on_message,
        )
        last_applied = self.engine.last_applied
        local_updates = LocalUpdates(self.settings, last_applied)
        self._applier = InlineApplier(machine, self.engine.applied, last_applied, local_updates)
        self.compactor = Compactor(self.settings, self.engine, self.log)
        self.compactor.attach(_CompactionHost(self, self._host, self._applier))
        self.wake(now)

    def _open(self) -> None:
        data, disk = self.settings.data, self.disk
        self.persistence = RaftPersistence.open(data.raft_path, peer_id=self.id, cluster=self.settings.secret, fs=disk)
        ttl_ms = self.settings.request_id_ttl
        log = SimulatedLog.open(
            data.log_path,
            data.snapshot_path,
            capacity=self.settings.index_file_capacity,
            old_snapshots_max=data.compact.keep_snapshots,
            request_id_cache_max=self.settings.request_id_cache_max,
            remember_after_seconds=0 if ttl_ms is None else max(int(disk.wall_seconds - ttl_ms / 1000), 0),
            allocation_size=_ALLOCATION_SIZE,
            fs=disk,
        )
        if not isinstance(log, SimulatedLog):
            raise TypeError(f"expected a SimulatedLog, not {type(log).__name__}")
        self.log, host = log, self._host
        log.watch(
            lambda batch: host.log_appended(self, batch),
            lambda index: host.log_truncated(self, index),
            lambda snapshot: host.log_replaced(self, snapshot),
        )

    def stop(self) -> None:
        """There is no process any more."""
        self.incarnation += 1
        self.engine = None
        self.inbox = []
        self._calls = []
        self._in_turn = False
        self._turn_at = math.inf

    # --- turns --------------------------------------------------------------------------------------------------------

    def wake(self, when: float) -> None:
        """Take a turn at this time, if there is none before."""
        when = max(when, self.paused_until)
        if self._in_turn or when >= self._turn_at:
            return
        self._turn_at = when
        incarnation = self.incarnation

        def turn() -> None:
            if self.incarnation != incarnation or self._turn_at != when:
                return
            self._turn_at = math.inf
            if self.paused_until > self._host.now:
                self.wake(self.paused_until)
            else:
                self._guard(self._begin_turn)

        self._host.at(when, turn)

    def _guard(self, step: Callable[[], None]) -> None:
        """A step of the peer's thread; whatever is raised in it is the end of the peer."""
        self.disk.wall_seconds = self.clock.wall(self._host.now)
        try:
            step()
        except PowerCut as cut:
            self.stop()
            self._host.ended(self, cut)
        except ZmqRaftError as failure:
            self.failure = failure
            self.stop()
            self._host.ended(self, failure)
        else:
            self._host.turned(self)

    def receive(self, peer_id: str, frames: list[bytes]) -> None:
        """A message has arrived: a reply of a peer, or (no peer) one on the ROUTER."""
        if self.engine is not None:
            self.inbox.append((peer_id, frames))
            self.wake(self._host.now)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run it in the peer's thread: at the start of its next turn."""
        self._calls.append(callback)
        self.wake(self._host.now)

    def _begin_turn(self) -> None:
        engine, now = self.running, self._host.now
        local, wall = self.clock.local(now), self.clock.wall(now)
        self.turn_began, self.turn_term = local, engine.raft.current_term
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        inbox, self.inbox = self.inbox, []
        for peer_id, frames in inbox:
            if peer_id:
                engine.receive_reply(peer_id, frames, local)
            else:
                engine.receive(frames, local, wall)
        self._host.send(self, engine.begin_turn(local, wall))
        self._in_turn = True
        if self.disk.sync_s and not (self._syncs_in_background and engine.raft.is_leader):
            self.slow_turns += 1
            # The thread waits for the disk; what arrives meanwhile waits for the thread. Not so a leader's, if others
            # sync: that takes its time in `_sync_in_background`.
            self.later(self.disk.sync_s, self._finish_turn)
        else:
            self._finish_turn()

    def _finish_turn(self) -> None:
        engine = self.running
        actions = engine.finish_turn(self.clock.local(self._host.now), in_background=self._syncs_in_background)
        if (sync := engine.take_sync()) is not None:
            self._sync_in_background(sync)
        # As a real peer does it: what waits for the disk only comes first.
        self._reply(engine)
        if (snapshot := engine.take_restore()) is not None:
            self._applier.restore(snapshot)
            self.compactor.snapshot_installed()
            self._host.restored(self, snapshot.index)
        # One entry in a batch lets the states of replicas be compared at each index.
        while (batch := engine.take_committed(0 if self.applies_singly else _APPLY_SIZE_MAX)) is not None:
            self._applier.submit(batch, engine.raft.current_term)
            self._host.applied(self, batch)
        self._reply(engine)
        self._host.send(self, actions)
        if self.log.wants_preparation:
            self._host.preparing(self)
            self.log.prepare()
        self._tell_role()
        if engine.link_urls is not self._seen_urls:
            self._host.links_changed(self, sorted(set(self._seen_urls) - set(engine.link_urls)))
            self._seen_urls = engine.link_urls
        self._in_turn = False
        local = self.clock.local(self._host.now)
        machine_deadline = self.machine.tick(local)
        deadline = min(engine.next_deadline(local), self.compactor.tick(local))
        if machine_deadline is not None:
            deadline = min(deadline, machine_deadline)
        if self.inbox or self._calls:
            deadline = local
        self._check_spin(deadline <= local)
        # Rounding must not bring it there just before the time.
        self.wake(max(self.clock.when(deadline), self._host.now) + (0.0 if deadline <= local else 1e-9))

    def _reply(self, engine: Engine) -> None:
        for frames in engine.take_replies():
            self._host.reply(self, frames)

    def _check_spin(self, is_due: bool) -> None:
        """A turn may be due at once, but not again and again."""
        self._idle_turns = self._idle_turns + 1 if is_due and self._host.now == self._turned_at else 0
        self._turned_at = self._host.now
        if self._idle_turns > _IDLE_TURNS_MAX:
            raise AssertionError(f"peer {self.id} asks for one turn after the other at {self._host.now}: it spins")

    def _tell_role(self) -> None:
        raft = self.running.raft
        if (raft.role, raft.current_term) != self._seen_role:
            self._seen_role = (raft.role, raft.current_term)
            self._host.role_changed(self)
            self.machine.role_changed(raft.role.value, raft.current_term)

    def later(self, delay: float, step: Callable[[], None]) -> None:
        """Take a step of this process after a delay; it does not come when the process has ended meanwhile."""
        incarnation = self.incarnation

        def run() -> None:
            if self.incarnation != incarnation:
                return
            if self.paused_until > self._host.now:
                self._host.at(self.paused_until, run)
            else:
                self._guard(step)

        self._host.at(self._host.now + delay, run)

    def _sync_in_background(self, sync: BackgroundSync) -> None:
        self.sync_began = (sync.began, self.running.raft.current_term)
        self.slow_turns += self.disk.sync_s > 0

        def done() -> None:
            sync.run()
            self.call_soon(lambda: self.running.synced(sync))

        self.later(max(self.disk.sync_s, self._random.uniform(0.0001, 0.004)), done)


class _CompactionHost:
    """The threads of a compaction, in virtual time."""

    def __init__(self, peer: SimulatedPeer, host: PeerHost, applier: InlineApplier) -> None:
        self._peer = peer
        self._host = host
        self._applier = applier

    def take_view(self, on_view: ViewHandler) -> None:
        """Between two batches is now."""
        self._applier.take_view(on_view)

    def in_background(
        self, work: Callable[[], Any], on_done: Callable[[Any], None], on_error: Callable[[Any], None]
    ) -> None:
        """The work is done all at once, a little later."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                failure = error
                self._peer.call_soon(lambda: on_error(failure))
            else:
                self._peer.call_soon(lambda: on_done(result))

        self._peer.later(0.002, run)

    def compacted(self, index: int) -> None:
        """Nobody is told."""
