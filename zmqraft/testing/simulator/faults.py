"""Lets the faults of a plan happen to a cluster, and heals everything in the end.

Knows nothing of invariants. The rule: on whom a fault falls is decided when it begins, so that it falls on somebody who
is there, and it counts as delivered only when something has come of it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from random import Random

from zmqraft.core.quorum import is_quorum
from zmqraft.errors import CorruptionError, StorageError
from zmqraft.storage.mending import find_damage, mend
from zmqraft.testing.simulator.clients import SimulatedClient
from zmqraft.testing.simulator.cluster import SimulatedCluster
from zmqraft.testing.simulator.disk import PowerCut
from zmqraft.testing.simulator.fault_plan import Fault
from zmqraft.testing.simulator.foreign_crash import leave_as_crash
from zmqraft.testing.simulator.peer import SimulatedPeer
from zmqraft.testing.simulator.violation import Violation

__all__ = ["Faults"]

#: New peers join until there are so many.
_PEERS_MAX = 7


class Faults:
    """Lets faults happen to a cluster. ``delivered`` counts, by kind, those that something has come of."""

    def __init__(self, cluster: SimulatedCluster, faults: list[Fault]) -> None:
        self.delivered: Counter[str] = Counter()
        self._begun: set[str] = set()
        self._cluster = cluster
        self._network = cluster.network
        self._over = False
        # What says, at the end, whether something has come of a fault.
        self._notes: list[tuple[str, Callable[[], bool]]] = []
        # When a peer that is down starts again.
        self._starts: dict[str, float] = {}
        # Kinds for which there was no occasion, for some time at least.
        self._impossible: set[str] = set()
        # The peers with a damaged entry, and its index.
        self._lost: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        # Power cuts that wait for an occasion: what it is, after how many changes of the disk, and how long.
        self._waiting: list[tuple[str, int, float]] = []
        #: Who asks for changes of the members, when somebody has.
        self.operator: SimulatedClient | None = None
        cluster.on_end = self._ended
        cluster.on_refusal = self._refused
        cluster.on_occasion = self._on_occasion
        for fault in faults:
            cluster.at(fault.at, lambda fault=fault: self._begin(fault))  # type: ignore[misc]

    # --- what is drawn ------------------------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> None:
        cluster = self._cluster
        if self._over:
            return
        if not cluster.alive:
            cluster.at(cluster.now + 0.1, lambda: self._begin(fault))
            return
        self._begun.add(fault.kind)
        cluster.trace.note(cluster.now, f"*** {fault}")
        getattr(self, "_" + fault.kind.replace(" ", "_"))(fault, Random(fault.number))

    def _last(
        self,
        fault: Fault,
        begin: Callable[[], None],
        end: Callable[[], None],
        has_come: Callable[[], bool] = lambda: True,
    ) -> None:
        """Let it begin now and end after its duration; or, when nothing has come of it yet, later."""
        begin()

        def over() -> None:
            if self._over:
                return
            if has_come():
                self._cluster.trace.note(self._cluster.now, f"*** end of {fault.kind} (#{fault.number})")
                end()
            else:
                # Another fault may have put an end to it.
                begin()
                self._cluster.at(self._cluster.now + 0.2, over)

        self._notes.append((fault.kind, has_come))
        self._cluster.at(self._cluster.now + fault.duration, over)

    def _retry(self, fault: Fault) -> None:
        """It cannot happen now; perhaps a little later. When it never can, nobody minds."""
        self._impossible.add(fault.kind)
        self._cluster.at(self._cluster.now + 0.15, lambda: self._begin(fault))

    def _counted(self, *counters: str) -> Callable[[], bool]:
        """Whether one of the network's counters has moved since."""
        counts = self._network.counts
        before = [counts[counter] for counter in counters]
        return lambda: any(counts[counter] > was for counter, was in zip(counters, before, strict=True))

    def _victim(self, random: Random) -> SimulatedPeer:
        """Somebody who runs, members more often than others, and the leader most often."""
        candidates, leader = self._cluster.alive, self._cluster.leader()
        if leader is not None:
            members = leader.running.raft.configuration
            candidates += [leader, *(peer for peer in candidates if peer.id in members)]
        return random.choice(candidates)

    # --- links --------------------------------------------------------------------------------------------------------

    def _partition(self, fault: Fault, random: Random) -> None:
        cluster, network = self._cluster, self._network

        attempts = 0

        def begin() -> None:
            nonlocal attempts
            attempts += 1
            ids = random.sample(cluster.ids, len(cluster.ids))
            if (leader := cluster.leader()) is not None and (attempts > 1 or random.random() < 0.75):
                ids.sort(key=lambda peer_id: peer_id != leader.id)
            network.cut |= self._ways(int(fault.value), ids)
            if leader is None or not leader.running.link_urls:
                # Who is alone in the cluster has nobody else to be cut off.
                network.cut |= {(name, ids[0]) for name in cluster.clients}

        self._last(
            fault,
            begin,
            lambda: network.heal(breaking=random.choice((0.0, 0.5, 1.0))),
            self._counted("stalled"),
        )

    @staticmethod
    def _ways(shape: int, ids: list[str]) -> set[tuple[str, str]]:
        """One alone (most often), two halves, a ring, one mute, two who do not hear each other, one deaf, all."""
        pairs = {(a, b) for a in ids for b in ids if a != b}
        if not pairs:
            return pairs
        first, half = ids[0], set(ids[: len(ids) // 2])
        if shape <= 0:
            return {(a, b) for a, b in pairs if first in (a, b)}
        if shape == 1:
            return {(a, b) for a, b in pairs if (a in half) != (b in half)}
        if shape == 2:
            near = {(ids[i], ids[(i + 1) % len(ids)]) for i in range(len(ids))}
            return {(a, b) for a, b in pairs if (a, b) not in near and (b, a) not in near} or {(first, ids[-1])}
        if shape == 3:
            return {(a, b) for a, b in pairs if a == first}
        if shape == 4:
            return {(first, ids[-1]), (ids[-1], first)}
        if shape == 5:
            return {(a, b) for a, b in pairs if b == first}
        return pairs

    def _rate_of(self, fault: Fault, attribute: str, counter: str) -> None:
        network = self._network
        values = itertools.chain((fault.value,), itertools.repeat(0.7))
        self._last(
            fault,
            lambda: setattr(network, attribute, next(values)),
            lambda: setattr(network, attribute, 0.0),
            self._counted(counter),
        )

    def _loss(self, fault: Fault, random: Random) -> None:
        self._rate_of(fault, "loss", "broken")

    def _reply_loss(self, fault: Fault, random: Random) -> None:
        self._rate_of(fault, "reply_loss", "dropped")

    def _duplicates(self, fault: Fault, random: Random) -> None:
        self._rate_of(fault, "duplicates", "duplicated")

    def _delay(self, fault: Fault, random: Random) -> None:
        network = self._network
        self._last(
            fault,
            lambda: setattr(network, "delay_max", max(fault.value, 0.02)),
            lambda: setattr(network, "delay_max", 0.001),
            self._counted("delayed"),
        )

    def _slow_link(self, fault: Fault, random: Random) -> None:
        """Between one and all others, or one other; both ways, or one."""
        network = self._network
        victim = self._victim(random).id
        others = [name for name in (*self._cluster.ids, *self._cluster.clients) if name != victim]
        if random.random() < 0.5:
            others = [random.choice(others)]
        ways = random.choice((1, 2, 3))
        slow = [(victim, other) for other in others if ways & 1] + [(other, victim) for other in others if ways & 2]

        def begin() -> None:
            network.slow.update(dict.fromkeys(slow, fault.value))

        def end() -> None:
            for way in slow:
                network.slow.pop(way, None)

        self._last(fault, begin, end)

    def _reconnect(self, fault: Fault, random: Random) -> None:
        for _ in range(int(fault.value)):
            source = random.choice([*self._cluster.ids, *self._cluster.clients])
            target = random.choice([peer_id for peer_id in self._cluster.ids if peer_id != source] or [source])
            self._network.reset(source, target)
            self.delivered["reconnect"] += 1

    # --- processes and machines ---------------------------------------------------------------------------------------

    def _kill(self, fault: Fault, random: Random) -> None:
        victim = self._victim(random)
        self._cluster.kill(victim.id)
        self.delivered["kill"] += 1
        self._start_later(victim.id, fault.duration)

    def _power_cut(self, fault: Fault, random: Random) -> None:
        victim = self._victim(random)
        if fault.value < 5:
            self._cut_power(victim.id, fault.duration)
            return
        # In the middle of something: at the n-th change of the disk from now on, or at the latest a little later.
        victim.disk.cut_after = int(fault.value) - 5
        incarnation = victim.incarnation

        def at_last() -> None:
            if victim.incarnation == incarnation and not self._over:
                self._cut_power(victim.id, fault.duration)
            elif not self.delivered["power cut"]:
                # Something else has ended it before.
                self._begin(fault)

        self._cluster.at(self._cluster.now + 0.3, at_last)

    def _power_cut_in_the_middle(self, fault: Fault, random: Random) -> None:
        """Of whoever is the next to do this, so many changes of its disk later."""
        what = random.choice(("election", "file", *2 * ("configuration", "truncation", "installation")))
        # An installation is the longest of them.
        changes = fault.value * 2 if what == "installation" else fault.value
        self._waiting.append((what, int(changes), fault.duration))
        # There may be no occasion.
        self._impossible.add(fault.kind)

    def _on_occasion(self, peer: SimulatedPeer, what: str) -> None:
        waiting = next((waiting for waiting in self._waiting if waiting[0] == what), None)
        if waiting is None or self._over:
            return
        self._waiting.remove(waiting)
        _, peer.disk.cut_after, seconds = waiting
        self._cluster.trace.note(self._cluster.now, f"*** {peer.id}: power cut in the middle of the {what}")
        self.delivered["power cut in the middle"] += 1
        incarnation = peer.incarnation

        def at_last() -> None:
            if peer.incarnation == incarnation and not self._over:
                self._cut_power(peer.id, seconds)

        self._cluster.at(self._cluster.now + 0.05, at_last)

    def _cut_power(self, peer_id: str, seconds: float) -> None:
        self._cluster.power_cut(peer_id)
        self.delivered["power cut"] += 1
        self._start_later(peer_id, seconds)

    def _power_cut_of_all(self, fault: Fault, random: Random) -> None:
        for peer in self._cluster.alive:
            self._cluster.power_cut(peer.id)
            self.delivered["power cut of all"] += 1
            self._start_later(peer.id, fault.duration * random.random())

    def _start_later(self, peer_id: str, seconds: float) -> None:
        cluster = self._cluster
        when = self._starts[peer_id] = cluster.now + max(seconds, 0.01)

        def start() -> None:
            peer = cluster.peers[peer_id]
            if self._starts.get(peer_id) == when and peer.engine is None and not peer.is_gone:
                del self._starts[peer_id]
                cluster.start(peer_id)
                self._started(peer)

        cluster.at(when, start)

    def _started(self, peer: SimulatedPeer) -> None:
        index = self._lost.get(peer.id)
        if peer.engine is not None and index is not None and index < peer.log.first_index:
            # A snapshot that was in its place already stands for the damaged entry now.
            del self._lost[peer.id]
            self._impossible.add("flipped bit")

    def _ended(self, peer: SimulatedPeer, failure: BaseException) -> None:
        if isinstance(failure, PowerCut):
            self.delivered["power cut"] += 1
            self._start_later(peer.id, 0.2)
        elif self._is_excused(peer, failure):
            self._start_later(peer.id, 0.3)
        else:
            raise Violation("failure", f"{peer.id} stopped: {failure}") from failure

    def _is_excused(self, peer: SimulatedPeer, failure: BaseException) -> bool:
        """Whether a peer has stopped, as it must, since its disk refused something since it was asked the last time."""
        failures = peer.disk.failed_syncs + peer.disk.refused_writes
        is_new = failures > self._failures.get(peer.id, 0)
        self._failures[peer.id] = failures
        return is_new and isinstance(failure, StorageError)

    def _refused(self, peer: SimulatedPeer, failure: BaseException) -> None:
        if peer.id in self._lost and isinstance(failure, CorruptionError):
            # As it should: nothing is made of a damaged entry.
            self.delivered["flipped bit"] += 1
            self._mend(peer, failure)
        elif self._is_excused(peer, failure):
            self._start_later(peer.id, 0.3)
        else:
            raise Violation("refusal", f"{peer.id} does not start: {failure}") from failure

    def _mend(self, peer: SimulatedPeer, failure: CorruptionError) -> None:
        """What `open_mended` does, with the entries of another peer."""
        damage = find_damage(failure, fs=peer.disk)
        if damage is None:
            raise Violation("refusal", f"{peer.id} cannot be mended: {failure}") from failure
        for other in self._cluster.alive:
            if self._cluster.invariants.holds(other.id, damage.last) and other.log.first_index <= damage.first:
                mend(damage.path, other.log.read(damage.first, damage.last, 1 << 20), fs=peer.disk)
                del self._lost[peer.id]
                break
        else:
            # The others may have left these entries out: then it stays down.
            peer.is_lost = self._over or any(each.log.first_index > damage.first for each in self._cluster.alive)
        if not peer.is_lost:
            self._start_later(peer.id, 0.1)

    def _pause(self, fault: Fault, random: Random) -> None:
        victim = self._victim(random)
        victim.paused_until = self._cluster.now + fault.duration
        self.delivered["pause"] += 1

    # --- disks --------------------------------------------------------------------------------------------------------

    def _slow_disk(self, fault: Fault, random: Random) -> None:
        victim = self._victim(random)
        before = victim.slow_turns

        def begin() -> None:
            nonlocal victim, before
            if victim.engine is None and self._cluster.alive:
                # Another fault has taken it away, for long perhaps.
                end()
                victim = self._victim(random)
                before = victim.slow_turns
            victim.disk.sync_s = fault.value

        def end() -> None:
            victim.disk.sync_s = 0.0

        self._last(fault, begin, end, lambda: victim.slow_turns > before)

    _hanging_disk = _slow_disk

    def _failed_sync(self, fault: Fault, random: Random) -> None:
        """The next one, or the next one of the state file; if that does not come in time, any."""
        peers = self._cluster.peers.values()
        before = sum(peer.disk.failed_syncs for peer in peers)
        failing = itertools.chain((random.choice(("", "raft.pers")),), itertools.repeat(""))

        def begin() -> None:
            if self._cluster.alive:
                disk = self._victim(random).disk
                disk.syncs_to_fail, disk.failing = 1, next(failing)
                # As Linux does it: see `SimulatedDisk`.
                disk.drops_pages = fault.value < 0.5

        self._last(fault, begin, lambda: None, lambda: sum(peer.disk.failed_syncs for peer in peers) > before)

    def _full_disk(self, fault: Fault, random: Random) -> None:
        peers = self._cluster.peers.values()
        before = sum(peer.disk.refused_writes for peer in peers)

        def end() -> None:
            for peer in peers:
                peer.disk.is_full = False

        def begin() -> None:
            end()
            if self._cluster.alive:
                self._victim(random).disk.is_full = True

        self._last(fault, begin, end, lambda: sum(peer.disk.refused_writes for peer in peers) > before)

    def _foreign_crash(self, fault: Fault, random: Random) -> None:
        """zmq-raft ran on the data of a peer for a while, and has ended in the middle of an append."""
        victim = self._victim(random)
        if victim.is_in_turn or victim.log.is_syncing or victim.disk.is_faulty:
            self._retry(fault)
            return
        self._cluster.close(victim.id)
        data, capacity = victim.settings.data, victim.settings.index_file_capacity
        self.delivered["foreign crash"] += leave_as_crash(victim.disk, str(data.log_path), capacity, random)
        self._start_later(victim.id, fault.duration)

    def _flipped_bit(self, fault: Fault, random: Random) -> None:
        """A committed entry of a peer that is down rots, where all others have a good copy."""
        cluster = self._cluster
        committed = len(cluster.invariants.committed)
        victim = self._victim(random)
        # What is damaged below a snapshot is passed over.
        index = random.randint(min(victim.log.first_index, max(committed, 1)), max(committed, 1))
        others = [peer for peer in cluster.peers.values() if peer is not victim]
        spot = victim.log.spot_of(index)
        if (
            self._lost
            or spot is None
            or len(others) < 2
            or not all(cluster.invariants.holds(peer.id, index) for peer in cluster.peers.values())
        ):
            self._retry(fault)
            return
        path, start, stop = spot
        cluster.kill(victim.id)
        victim.disk.flip(path, random.randrange(start, stop), random.randrange(8))
        self._lost[victim.id] = index
        self._start_later(victim.id, fault.duration)

    # --- clocks -------------------------------------------------------------------------------------------------------

    def _clock_rate(self, fault: Fault, random: Random) -> None:
        cluster, clock = self._cluster, self._victim(random).clock
        self._last(fault, lambda: clock.set_rate(fault.value, cluster.now), lambda: clock.set_rate(1.0, cluster.now))

    def _clock_step(self, fault: Fault, random: Random) -> None:
        clock = self._victim(random).clock
        # A leader whose clock was ahead refuses updates for hours: nothing is written any more.
        self._impossible |= {"full disk", "failed sync", "slow disk", "hanging disk"}

        def begin() -> None:
            clock.wall_step += fault.value

        def end() -> None:
            clock.wall_step -= fault.value

        self._last(fault, begin, end)

    # --- what an operator does ----------------------------------------------------------------------------------------

    def _compaction(self, fault: Fault, random: Random) -> None:
        """Of one, or of all at once."""
        victims = [self._victim(random)] if fault.value < 0.6 else self._cluster.alive
        victims = [each for each in victims if each.running.last_applied > each.log.snapshot.index]
        if not victims:
            self._retry(fault)
            return
        requests = []
        for each in victims:
            requests.append(each.compactor.request(force=True, install=False))
            each.wake(self._cluster.now)

        self._notes.append(("compaction", lambda: any(each.done() and each.exception() is None for each in requests)))
        # The process may end before it is done.
        self._impossible.add(fault.kind)

    def _change_of_members(self, fault: Fault, random: Random) -> None:
        """To any other members, so many of them: some new ones, some that were removed before; all, at times."""
        cluster, leader = self._cluster, self._cluster.leader()
        if leader is None or leader.running.raft.is_changing or not self._operator().is_idle:
            self._retry(fault)
            return
        voters = set(leader.running.raft.configuration.urls)
        if random.random() < 0.7 and len(cluster.ids) < _PEERS_MAX:
            new = str(len(cluster.ids) + 1)
            cluster.add(new, sorted(voters))
            cluster.start(new)
        # Who does not know the members by name does not listen to them (SPEC section 2, difference 1).
        candidates = [peer.id for peer in cluster.alive if voters <= {peer.id, *peer.running.raft.configuration.urls}]
        ids = sorted(random.sample(candidates, min(int(fault.value), len(candidates))))
        self._operator().change_members(ids)
        self.delivered["change of members"] += 1

    def _operator(self) -> SimulatedClient:
        if self.operator is None:
            self.operator = SimulatedClient(self._cluster, "op", Random(0))
            self.operator.stop()
        return self.operator

    def _transfer(self, fault: Fault, random: Random) -> None:
        leader = self._cluster.leader()
        if leader is None or len(leader.running.link_urls) < 1:
            self._retry(fault)
            return
        target = random.choice([None, *sorted(leader.running.raft.configuration.urls)])

        def begin() -> None:
            local = leader.clock.local(self._cluster.now)
            with contextlib.suppress(ValueError):
                leader.running.begin_transfer(target, local, must=False)

        leader.call_soon(begin)
        self.delivered["transfer"] += 1

    # --- the end ------------------------------------------------------------------------------------------------------

    def _leave_one(self) -> None:
        """Sometimes one does not come back, if the others are a majority by all that anybody knows of the members."""
        cluster, random = self._cluster, Random(f"{self._cluster.seed} heal")
        if random.random() < 0.6:
            return
        victim = cluster.peers[random.choice(cluster.ids)]
        rest = [peer.id for peer in cluster.peers.values() if peer is not victim and not peer.is_lost]
        known = cluster.invariants.configurations.values()
        is_changing = self.operator is not None and not self.operator.is_idle
        if not is_changing and all(is_quorum(rest, configuration.voters) for configuration in known):
            victim.is_gone = True
            if victim.engine is not None:
                cluster.kill(victim.id)
            cluster.trace.note(cluster.now, f"*** {victim.id} does not come back")

    def heal(self) -> None:
        """Everything works again, and everybody who can starts, or all but one."""
        self._over = True
        for kind, has_come in self._notes:
            self.delivered[kind] += has_come()
        self._notes.clear()
        cluster, network = self._cluster, self._network
        cluster.trace.note(cluster.now, "*** everything heals")
        self._leave_one()
        network.loss = network.reply_loss = network.duplicates = 0.0
        network.delay_max = 0.001
        network.slow.clear()
        network.heal(breaking=0.5)
        for peer in cluster.peers.values():
            disk = peer.disk
            disk.syncs_to_fail, disk.is_full, disk.sync_s, disk.cut_after = 0, False, 0.0, None
            peer.paused_until = 0.0
            peer.clock.set_rate(1.0, cluster.now)
            peer.clock.wall_step = 0.0
            if peer.engine is None and not (peer.is_lost or peer.is_gone):
                self._start_later(peer.id, 0.01)
            elif peer.engine is not None:
                peer.wake(cluster.now)

    @property
    def all_have_come(self) -> bool:
        """Whether something has come of each kind that has begun."""
        come = {kind for kind, has_come in self._notes if has_come()}
        return self._begun - self._impossible <= come | {kind for kind, count in self.delivered.items() if count}

    @property
    def undelivered(self) -> list[str]:
        """The kinds that were on, and that nothing has come of."""
        return sorted(self._begun - self._impossible - {kind for kind, count in self.delivered.items() if count})
