"""Where clients wait for what becomes of their updates: the route that an update was asked for on last is answered.

Knows nothing of logs. The rule: only what a leader has taken in, in the term in which it leads on, is owed an answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zmqraft.constants import ABSENT
from zmqraft.protocol import Protocols
from zmqraft.testing.simulator.peer import SimulatedPeer
from zmqraft.testing.simulator.violation import Violation

__all__ = ["Routes"]

#: Requests that are remembered, for each peer.
_REQUESTS_KEPT = 512


@dataclass(frozen=True, slots=True)
class _Request:
    frames: Sequence[bytes]
    incarnation: int
    term: int


class Routes:
    """The last request for each update that was not answered yet, by peer and request id."""

    def __init__(self) -> None:
        self._requests: dict[str, dict[bytes, _Request]] = defaultdict(dict)
        # Those whose updates were applied in this turn.
        self._due: dict[str, list[_Request]] = defaultdict(list)

    def arrived(self, peer: SimulatedPeer, frames: Sequence[bytes]) -> None:
        """A client asks for an update: identity, request id, and what follows."""
        requests, request_id = self._requests[peer.id], frames[1]
        requests.pop(request_id, None)
        if peer.running.raft.is_leader:
            requests[request_id] = _Request(frames, peer.incarnation, peer.running.raft.current_term)
            if len(requests) > _REQUESTS_KEPT:
                del requests[next(iter(requests))]

    def replied(self, peer: SimulatedPeer, identity: bytes, request_id: bytes, reply: Sequence[bytes]) -> None:
        """A reply leaves; one that says "accepted" is not the last."""
        request = self._requests[peer.id].get(request_id)
        if request is not None and request.frames[0] == identity:
            success, result = Protocols.REQUEST_UPDATE.decode_response(reply)
            if not success or result is not ABSENT:
                del self._requests[peer.id][request_id]

    def applied(self, peer: SimulatedPeer, request_ids: Iterable[bytes]) -> None:
        """A peer has applied updates."""
        requests = self._requests[peer.id]
        self._due[peer.id] += [requests[each] for each in request_ids if each in requests]

    def turned(self, peer: SimulatedPeer) -> None:
        """The turn is over: who was waited for in it has an answer."""
        engine = peer.running
        for request in self._due.pop(peer.id, ()):
            is_owed = (
                self._requests[peer.id].get(request.frames[1]) is request
                and (request.incarnation, request.term) == (peer.incarnation, engine.raft.current_term)
                and engine.raft.is_leader
                and not engine.is_making_way
                and not any(frames is request.frames for _, frames in peer.inbox)
            )
            if is_owed:
                raise Violation("route", f"{peer.id} has applied {request.frames[1].hex()}, and does not say so")
