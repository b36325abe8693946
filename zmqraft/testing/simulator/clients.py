"""Clients of a simulated cluster: they update, repeat, read, follow the leader and give up on silent ones.

Knows nothing of Raft. The rule: an update is repeated with its id until it is acknowledged or refused for good, through
whoever may lead, and what the client saw goes into a history with the times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from zmqraft import constants
from zmqraft.constants import ABSENT
from zmqraft.protocol import EntryBatch, Protocols, decode_uint, encode_uint
from zmqraft.testing.histories import Operation
from zmqraft.testing.simulator.cluster import SECRET, SimulatedCluster
from zmqraft.testing.simulator.machine import KeyValueMachine, encode_command

__all__ = ["SimulatedClient"]

_GRACE = 0.1
_READ_MAX = 20


@dataclass(slots=True)
class _Pending:
    """A request under way."""

    message_id: bytes
    frames: list[bytes]
    operation: Operation | None
    #: The index that it was acknowledged with before, when it is repeated for no reason.
    known_index: int | None = None
    attempt: int = 0
    #: What was acknowledged to anybody when a read was called: it must show.
    acknowledged_until: int = 0


class SimulatedClient:
    """One client, with up to ``in_flight`` requests at a time over one connection to one peer."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        name: str,
        random: Random,
        *,
        in_flight: int = 1,
        think_s: float = 0.05,
        keys: int = 3,
        timeout_s: float = 0.5,
        reads: float = 0.08,
        command: Callable[[Random], bytes] | None = None,
    ) -> None:
        """``reads`` is the part of its requests that ask for a read index, ``timeout_s`` how long it waits for a reply
        before it turns to another peer. ``command`` gives the data of the next update; by default one for
        `KeyValueMachine` over ``keys`` keys."""
        self.name = name
        self.history: list[Operation] = []
        #: Requests that were acknowledged, and reads that were answered.
        self.acknowledged: list[tuple[bytes, list[bytes], int]] = []
        self.reads = 0
        self.refused = 0
        #: Changes of the members that are done.
        self.changes = 0
        self.stopped = False
        self._cluster = cluster
        self._random = random
        self._in_flight = in_flight
        self._think_s = think_s
        self._keys = keys
        self._timeout_s = timeout_s
        self._reads = reads
        self._command = command
        self._pending: dict[bytes, _Pending] = {}
        self._target = random.choice(cluster.ids)
        self._counter = 0
        self._value = 0
        cluster.clients[name] = self._receive
        cluster.at(cluster.now + random.random() * think_s, self._next)

    # --- what it wants ------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._pending

    def stop(self) -> None:
        """Begin nothing any more."""
        self.stopped = True

    def _next(self) -> None:
        if self.stopped:
            return
        if len(self._pending) < self._in_flight:
            kind = self._random.random()
            if self._random.random() < self._reads:
                self._read_index()
            elif kind < 0.08:
                self._read()
            elif kind < 0.18 and self.acknowledged:
                self._repeat_known()
            else:
                self.update()
        delay = self._random.expovariate(1 / self._think_s) if self._think_s else 0.0
        self._cluster.at(self._cluster.now + delay, self._next)

    def update(self) -> bytes:
        """A new update. Returns its request id."""
        cluster = self._cluster
        self._counter += 1
        request_id = self._new_request_id()
        command, data = self._next_command()
        frames = Protocols.REQUEST_UPDATE.encode_request(constants.REQUEST_UPDATE, SECRET, data)
        operation = Operation(self.name, request_id, command, cluster.now)
        self.history.append(operation)
        self._send_new(_Pending(request_id, frames, operation))
        return request_id

    def change_members(self, ids: Sequence[str]) -> None:
        """Ask for a change of the cluster's members."""
        self._counter += 1
        cluster = self._cluster
        members = [[peer_id, cluster.url_of(peer_id)] for peer_id in ids]
        frames = Protocols.CONFIG_UPDATE.encode_request(constants.CONFIG_UPDATE, SECRET, members)
        self._send_new(_Pending(self._new_request_id(), frames, None))

    def _new_request_id(self) -> bytes:
        seconds = int(1_800_000_000 + self._cluster.now)
        return seconds.to_bytes(4, "big") + self.name.encode().rjust(5, b"_")[:5] + self._counter.to_bytes(3, "big")

    def _next_command(self) -> tuple[tuple[Any, ...], bytes]:
        if self._command is not None:
            return (), self._command(self._random)
        key = f"k{self._random.randrange(self._keys)}"
        self._value += 1
        value = f"{self.name}.{self._value}"
        kind = self._random.random()
        if kind < 0.3:
            command: tuple[Any, ...] = ("get", key)
        elif kind < 0.7:
            command = ("put", key, value)
        else:
            command = ("cas", key, self._known_value(key), value)
        return command, encode_command(*command)

    def _known_value(self, key: str) -> object:
        """The value that it has seen last, which may be the right one."""
        for operation in reversed(self.history):
            if operation.is_done and operation.command[:2] == ("get", key):
                return operation.result
            if operation.is_done and operation.command[:2] == ("put", key):
                return operation.command[2]
        return None

    def _repeat_known(self) -> None:
        """As a client does that has missed the reply, much later."""
        request_id, frames, index = self._random.choice(self.acknowledged)
        if request_id not in self._pending:
            self._send_new(_Pending(request_id, frames, None, index))

    def _read(self) -> None:
        self._counter += 1
        last = len(self._cluster.invariants.committed)
        previous = self._random.randrange(last + 1)
        frames = Protocols.REQUEST_ENTRIES.encode_request(constants.REQUEST_ENTRIES, SECRET, previous, _READ_MAX)
        self._send_new(_Pending(encode_uint(self._counter), frames, None))

    def _read_index(self) -> None:
        """The index up to which a read must show everything (thesis 6.4)."""
        self._counter += 1
        frames = Protocols.READ_INDEX.encode_request(constants.READ_INDEX, SECRET)
        pending = _Pending(encode_uint(self._counter), frames, None)
        pending.acknowledged_until = self._cluster.invariants.acknowledged_until
        self._send_new(pending)

    # --- the link -----------------------------------------------------------------------------------------------------

    def _send_new(self, pending: _Pending) -> None:
        self._pending[pending.message_id] = pending
        self._send(pending)

    def _send(self, pending: _Pending) -> None:
        self._cluster.network.send(self.name, self._target, [pending.message_id, *pending.frames])
        self._wait_on(pending)

    def _wait_on(self, pending: _Pending) -> None:
        """The timer starts anew."""
        pending.attempt += 1
        attempt = pending.attempt

        def overdue() -> None:
            if self._pending.get(pending.message_id) is pending and pending.attempt == attempt:
                self._turn_to(None)
                self._send(pending)

        self._cluster.at(self._cluster.now + self._timeout_s, overdue)

    def _turn_to(self, leader_id: str | None) -> None:
        ids = self._cluster.ids
        if leader_id is None or leader_id not in self._cluster.peers:
            # By chance: with a fixed order, peers who name each other could be asked for ever.
            leader_id = self._random.choice(ids)
        self._target = leader_id

    def _receive(self, peer_id: str, frames: list[bytes]) -> None:
        pending = self._pending.get(frames[0])
        if pending is None:
            return
        if pending.frames[0] == constants.REQUEST_ENTRIES:
            self._read_reply(peer_id, pending, frames[1:])
        elif pending.frames[0] == constants.READ_INDEX:
            index, leader_id = Protocols.READ_INDEX.decode_response(frames[1:])
            if index is None:
                self._again(pending, leader_id)
            else:
                del self._pending[pending.message_id]
                self._cluster.invariants.read_until(peer_id, index, pending.acknowledged_until)
                self.reads += 1
        elif pending.frames[0] == constants.CONFIG_UPDATE:
            self._change_reply(pending, frames[1:])
        else:
            self._update_reply(peer_id, pending, frames[1:])

    def _again(self, pending: _Pending, leader_id: object) -> None:
        self._turn_to(leader_id if isinstance(leader_id, str) else None)
        pending.attempt += 1
        attempt = pending.attempt

        def again() -> None:
            if self._pending.get(pending.message_id) is pending and pending.attempt == attempt:
                self._send(pending)

        delay = 0.002 if isinstance(leader_id, str) else _GRACE
        self._cluster.at(self._cluster.now + delay, again)

    def _update_reply(self, peer_id: str, pending: _Pending, reply: list[bytes]) -> None:
        ok, result = Protocols.REQUEST_UPDATE.decode_response(reply)
        if not ok and result is ABSENT:
            # Too old or too far in the future for this leader's clock: final.
            del self._pending[pending.message_id]
            self.refused += 1
        elif not ok:
            self._again(pending, result)
        elif result is ABSENT:
            self._wait_on(pending)
        else:
            del self._pending[pending.message_id]
            self._acknowledged(peer_id, pending, int(result))

    def _change_reply(self, pending: _Pending, reply: list[bytes]) -> None:
        status, value = Protocols.CONFIG_UPDATE.decode_response(reply)
        if status == constants.CONFIG_NOT_LEADER:
            self._again(pending, value)
        elif status == constants.CONFIG_ACCEPTED and value is ABSENT:
            self._wait_on(pending)
        else:
            del self._pending[pending.message_id]
            if status == constants.CONFIG_ACCEPTED:
                self.changes += 1
                self._cluster.invariants.change_acknowledged(int(value))

    def _acknowledged(self, peer_id: str, pending: _Pending, index: int) -> None:
        cluster = self._cluster
        peer = cluster.peers[peer_id]
        if pending.known_index not in (None, index):
            raise AssertionError(f"{pending.message_id.hex()} was at {pending.known_index}, now it is told at {index}")
        cluster.invariants.update_acknowledged(pending.message_id, index)
        if pending.operation is not None:
            result = peer.machine.results.get(index) if isinstance(peer.machine, KeyValueMachine) else None
            pending.operation.finish(cluster.now, index, result)
            self.acknowledged.append((pending.message_id, pending.frames, index))

    def _read_reply(self, peer_id: str, pending: _Pending, reply: list[bytes]) -> None:
        status = decode_uint(reply[0])
        if status == constants.ENTRIES_NOT_LEADER:
            self._again(pending, Protocols.REQUEST_ENTRIES.decode_response(reply)[1])
            return
        del self._pending[pending.message_id]
        if status in (constants.ENTRIES_LAST, constants.ENTRIES_MORE):
            # Not always those that were asked for: a reply before this one may be lost, which real clients notice.
            last = decode_uint(reply[2])
            batch = EntryBatch.from_frames(last - len(reply[3:]) + 1, reply[3:])
            self._cluster.invariants.entries_read(peer_id, batch)
        self.reads += 1
