"""One seed: a cluster, its clients and its faults are drawn, it runs, heals, and must then be well again.

The rule: a run ends with a result, whatever happens in it; a violation is one with a name, so that a shorter list of
faults can be tried for the same one.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from unittest import mock

from zmqraft import constants
from zmqraft.api import StateMachineBase
from zmqraft.core.raft import Raft, Role
from zmqraft.protocol import EntryType, Protocols
from zmqraft.testing.histories import HistoryError, check_key_values, check_log
from zmqraft.testing.simulator.clients import SimulatedClient
from zmqraft.testing.simulator.cluster import SimulatedCluster
from zmqraft.testing.simulator.fault_plan import Fault, draw_faults
from zmqraft.testing.simulator.faults import Faults
from zmqraft.testing.simulator.invariants import UNCOMMITTED_MAX
from zmqraft.testing.simulator.machine import KeyValueMachine
from zmqraft.testing.simulator.peer import SimulatedPeer
from zmqraft.testing.simulator.violation import Violation

__all__ = ["RunResult", "Workload", "run_seed", "shrink"]

#: How long faults happen, in virtual seconds, and how long the cluster then has: so many election timeouts, and what
#: the first one is longer after a start.
_FAULTS_S = 4.0
_FAULTS_LONGER_S = 10.0
_LIVENESS_TIMEOUTS = 20
_START_EXTRA_S = 0.6
#: Short ones for many leaders; those that differ much let an old leader lead on for a while beside the next one.
_ELECTION_TIMEOUTS_MS = ((100, 150), (200, 300), (200, 300), (200, 600), (200, 1000))
#: Of what is sent in one message, in bytes.
_MESSAGE_SIZES = (64, 512, 65536)


@dataclass
class RunResult:
    """What came of a seed. ``violation`` is the name of the broken invariant, None when all held."""

    seed: int
    faults: list[Fault]
    trace_hash: str
    violation: str | None = None
    message: str = ""
    lines: list[str] = field(default_factory=list)
    events: int = 0
    committed: int = 0
    acknowledged: int = 0
    leaders: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    #: It did not get well, for a reason that is known; see `_Run.has_reached_limit`.
    reached_limit: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """What is replicated: a state machine, the updates of clients, and what of its state is compared after each."""

    machine: Callable[[], StateMachineBase] = KeyValueMachine
    #: The data of the next update; None for commands of `KeyValueMachine`.
    command: Callable[[Random], bytes] | None = None
    state_of: Callable[[StateMachineBase], object] | None = None


_DEFAULT = Workload()


def run_seed(
    seed: int,
    faults: Sequence[Fault] | None = None,
    *,
    trace_kept: int | None = 300,
    workload: Workload = _DEFAULT,
) -> RunResult:
    """Run a seed, with its own faults or with these instead."""
    drawn = list(draw_faults(seed, _FAULTS_S)) if faults is None else list(faults)
    random = Random(f"{seed} run")
    size = random.choice((1, 3, 3, 3, 3, 5))
    timeouts = random.choice(_ELECTION_TIMEOUTS_MS)
    cluster = SimulatedCluster(
        size,
        seed,
        syncs_in_background=random.random() < 0.4,
        trace_kept=trace_kept,
        machine=workload.machine,
        state_of=workload.state_of,
        peer_msg_data_size=random.choice(_MESSAGE_SIZES),
        index_file_capacity=random.choice((4, 16, 16)),
        election_timeout_min=timeouts[0],
        election_timeout_max=timeouts[1],
        # Clocks are set by less than the second.
        request_id_ttl=random.choice((20 * 60_000, 24 * 3600_000)),
    )
    run = _Run(cluster, drawn, random, workload)
    violation = None
    message = ""
    reached_limit = False
    with _as_simulated(random.choice(_MESSAGE_SIZES)):
        try:
            run.go()
            if faults is None and run.faults.undelivered:
                raise Violation("undelivered", f"nothing has come of {', '.join(run.faults.undelivered)}")
        except HistoryError as error:
            violation, message = "history", str(error)
        except Violation as error:
            if error.name == "liveness" and run.has_reached_limit():
                reached_limit = True
            else:
                violation, message = error.name, str(error)
        except Exception as error:
            violation, message = f"exception {type(error).__name__}", repr(error)
    return RunResult(
        seed,
        drawn,
        cluster.trace.hexdigest(),
        violation,
        message,
        cluster.lines() if violation is not None else [],
        cluster.trace.count,
        len(cluster.invariants.committed),
        cluster.invariants.acknowledged,
        len(cluster.invariants.leaders),
        run.faults.delivered,
        reached_limit,
    )


@contextlib.contextmanager
def _as_simulated(message_size: int) -> Iterator[None]:
    """Peers say a lot about what goes wrong, which is the point here. And what real ones do with much data, they do
    with little: a leader syncs in the background, refuses updates, and sends a snapshot in several messages."""
    logger = logging.getLogger("zmqraft")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with (
            mock.patch("zmqraft.server.engine._BACKGROUND_SIZE_MIN", 0),
            mock.patch("zmqraft.server.compaction._PAUSE_MAX", 0.0),
            mock.patch("zmqraft.server.client_requests.UNCOMMITTED_COUNT_MAX", UNCOMMITTED_MAX),
            mock.patch("zmqraft.constants.OWN_APPEND_SIZE_MAX", message_size),
        ):
            yield
    finally:
        logger.setLevel(level)


class _Run:
    def __init__(self, cluster: SimulatedCluster, faults: list[Fault], random: Random, workload: Workload) -> None:
        self.cluster = cluster
        self.faults = Faults(cluster, faults)
        self._random = random
        self._workload = workload
        self._clients: list[SimulatedClient] = []

    def go(self) -> None:
        cluster, random = self.cluster, self._random
        cluster.start()
        self._clients = [
            SimulatedClient(
                cluster,
                f"c{number}",
                Random(f"{cluster.seed} client {number}"),
                in_flight=random.choice((1, 1, 4)),
                think_s=random.choice((0.02, 0.05, 0.1, 0.2)),
                keys=random.choice((1, 3)),
                timeout_s=random.choice((0.15, 0.5)),
                # The first one writes, so that something happens.
                reads=random.choice((0.05, 0.4, 0.95, 0.95) if number else (0.05, 0.05, 0.4)),
                command=self._workload.command,
            )
            for number in range(random.choice((1, 2, 2, 3)))
        ]
        self._intrude()
        cluster.run(_FAULTS_S)
        longest = cluster.now + _FAULTS_LONGER_S
        while not self.faults.all_have_come and cluster.now < longest:
            cluster.run(0.1)
        self.faults.heal()
        for client in self._clients:
            client.stop()
        self._check_liveness()
        self._check_histories()

    def _intrude(self) -> None:
        """Somebody who does not know the secret asks for updates: nobody may answer, and nothing may come of them."""
        cluster, random = self.cluster, self._random

        def is_answered(peer_id: str, frames: list[bytes]) -> None:
            raise Violation("secret", f"{peer_id} answers who does not know the secret")

        cluster.clients["intruder"] = is_answered
        frames = Protocols.REQUEST_UPDATE.encode_request(constants.REQUEST_UPDATE, b"guessed", b"[]")
        for number in range(2):
            request_id = (1_800_000_000 + number).to_bytes(4, "big") + b"intruder"
            cluster.at(
                random.uniform(0.0, _FAULTS_S),
                lambda message=[request_id, *frames]: cluster.network.send(  # type: ignore[misc]
                    "intruder", random.choice(cluster.ids), message
                ),
            )

    def _check_liveness(self) -> None:
        """Within 20 election timeouts a new entry commits, nobody waits any more, and all logs are equal."""
        cluster = self.cluster
        longest = max(peer.settings.election_timeout_max for peer in cluster.peers.values()) / 1000
        end = cluster.now + _LIVENESS_TIMEOUTS * longest + _START_EXTRA_S
        cluster.run_until(cluster.leader, end - cluster.now, "a leader whom a majority follows")
        before = len(cluster.invariants.committed)
        self._clients[0].update()
        refused = self._clients[0].refused
        cluster.run_until(
            lambda: len(cluster.invariants.committed) > before or self._clients[0].refused > refused,
            end - cluster.now,
            "a new entry",
        )
        cluster.run_until(lambda: all(client.is_idle for client in self._clients), 5.0, "the end of all requests")

        cluster.run_until(self._is_settled, max(end - cluster.now, 1.0), "equal logs, and the end of a change,")

    def _is_settled(self) -> bool:
        cluster = self.cluster
        leader = cluster.leader()
        if leader is None or leader.running.raft.is_changing:
            return False
        members = sorted(leader.running.raft.configuration.urls)
        peers = [cluster.peers[peer_id] for peer_id in members]
        return cluster.invariants.logs_are_equal(
            [peer.id for peer in peers if not (peer.is_lost or peer.is_gone or self._is_stranger(peer, leader.id))]
        )

    def has_reached_limit(self) -> bool:
        """Whether somebody counts on a peer who does not listen to it, or has left: known limits of what peers promise.

        Who has missed a change votes for those whom the change has brought in only if they have more in their logs
        (SPEC section 2, difference 1). If they need its vote, and nobody whom it may vote for can be elected, the
        cluster waits for an operator; or for luck, if they stand for election themselves, each time a little earlier
        than those who have more. It also waits when data of a peer is damaged that the others have left out of their
        logs, and when one that got a snapshot without a configuration has more than those who could lead, and nobody
        leads who could tell it the configuration.
        """
        if any(peer.is_lost or self._waits_for_a_leader(peer) for peer in self.cluster.peers.values()):
            return True
        raft_of = {peer.id: peer.running.raft for peer in self.cluster.alive}
        return any(
            raft.role in (Role.LEADER, Role.CANDIDATE)
            and any(
                other in raft_of
                and peer_id not in raft_of[other].configuration
                and (raft_of[other].role is Role.CANDIDATE or self._end_of(raft_of[other]) >= self._end_of(raft))
                for other in raft.configuration.urls
            )
            for peer_id, raft in raft_of.items()
        )

    def _waits_for_a_leader(self, peer: SimulatedPeer) -> bool:
        if peer.engine is None or peer.engine.raft.is_configuration_known or self.cluster.leader() is not None:
            return False
        ends = [self._end_of(each.running.raft) for each in self.cluster.alive if each is not peer]
        return self._end_of(peer.engine.raft) > max(ends, default=(0, 0))

    @staticmethod
    def _end_of(raft: Raft) -> tuple[int, int]:
        return raft.log.last_term, raft.log.last_index

    @staticmethod
    def _is_stranger(peer: SimulatedPeer, leader_id: str) -> bool:
        """Whether a peer has missed the change by which the leader became a member: then it does not listen to it
        (SPEC section 2, difference 1)."""
        return peer.engine is not None and leader_id not in peer.engine.raft.configuration

    def _check_histories(self) -> None:
        history = [operation for client in self._clients for operation in client.history]
        log = [
            entry.request_id if entry.kind is EntryType.STATE else None for entry in self.cluster.invariants.committed
        ]
        check_log(history, log)
        if self._workload.command is not None:
            return
        # What never returned and is not in the log has not happened.
        check_key_values(
            operation
            for operation in history
            if operation.is_done or operation.request_id in self.cluster.invariants.indexes
        )


def shrink(result: RunResult, *, runs_max: int = 120, workload: Workload = _DEFAULT) -> RunResult:
    """The same violation with fewer faults: leave out halves, quarters and so on as long as it stays (delta debugging
    of Zeller and Hildebrandt)."""
    best = result
    runs = 0
    size = max(len(best.faults) // 2, 1)
    while runs < runs_max:
        position = 0
        shrunk = False
        while position < len(best.faults) and runs < runs_max:
            shorter = best.faults[:position] + best.faults[position + size :]
            runs += 1
            found = run_seed(best.seed, shorter, workload=workload)
            if found.violation == best.violation:
                best, shrunk = found, True
            else:
                position += size
        if size == 1 and not shrunk:
            break
        size = max(size // 2, 1)
    return best
