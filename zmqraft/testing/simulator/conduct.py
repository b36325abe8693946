"""What peers owe each other in elections: who hears a leader stays with it for a while, who hears none stands, and what
is stated of terms is not out of date.

Knows nothing of logs. The rule: whom a peer has heard is told by the messages that come and go, not by the peer; what
it may have heard counts for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from zmqraft import constants
from zmqraft.core.raft import Role
from zmqraft.protocol import Protocols, decode_uint
from zmqraft.testing.simulator.peer import SimulatedPeer
from zmqraft.testing.simulator.violation import Violation

__all__ = ["Conduct"]

_TINY_S = 1e-6


class Conduct:
    """What was heard and said. Times are by the clock of the peer."""

    def __init__(self) -> None:
        # When a peer heard its leader, in which process and in which term.
        self._heard: dict[str, tuple[float, int, int]] = {}
        # Since when a peer waits for a leader, and as what, in which process.
        self._waiting: dict[str, tuple[float, Role, int]] = {}
        # For how many turns more a peer may hear something of a leader that came beside its entries, and need not stay
        # with its leader: for two, since one may have been under way when it came.
        self._spoken_to: dict[str, int] = {}
        self._excused: dict[str, int] = {}

    def spoken_to(self, peer_id: str, message_type: bytes) -> None:
        """Something of a leader has come beside its entries: it is not known what the peer makes of that."""
        self._spoken_to[peer_id] = 2
        if message_type != constants.COMMIT_NOTICE:
            # It makes way, or another one leads.
            self._heard.pop(peer_id, None)
            self._excused[peer_id] = 2

    def turned(self, peer: SimulatedPeer) -> None:
        """Who follows, and neither hears a leader nor votes for one, stands for election in time (section 5.2)."""
        raft = peer.running.raft
        is_spoken_to = self._spoken_to.get(peer.id, 0) > 0
        if not peer.is_in_turn:
            for turns in (self._spoken_to, self._excused):
                turns[peer.id] = max(turns.get(peer.id, 0) - 1, 0)
        since, role, incarnation = self._waiting.get(peer.id, (0.0, Role.CLIENT, 0))
        is_waiting = raft.role is role is Role.FOLLOWER and incarnation == peer.incarnation
        if not (is_waiting and raft.is_configuration_known) or is_spoken_to:
            self._waits_anew(peer)
        elif not peer.is_in_turn and peer.turn_began - since > self._patience(peer):
            raise Violation("idle", f"{peer.id} has heard nobody since {since}, and does not stand for election")

    @staticmethod
    def _patience(peer: SimulatedPeer) -> float:
        longest = peer.settings.election_timeout_max + constants.ELECTION_TIMEOUT_START_EXTRA_MS
        return longest / 1000 + _TINY_S

    def _waits_anew(self, peer: SimulatedPeer) -> None:
        self._waiting[peer.id] = (peer.turn_began, peer.running.raft.role, peer.incarnation)

    def vote_replied(self, peer: SimulatedPeer, term: int, *, granted: bool) -> None:
        """A peer states its term (section 5.1), and goes into no other one for a candidate as long as it hears a leader
        (section 6, last part)."""
        if term < peer.turn_term:
            raise Violation("stated term", f"{peer.id} states term {term}, and was in {peer.turn_term}")
        heard_at, incarnation, heard_term = self._heard.get(peer.id, (0.0, 0, 0))
        since = peer.turn_began - heard_at
        is_recent = 0 < since < peer.settings.election_timeout_min / 1000 - _TINY_S
        has_gone = max(heard_term, peer.turn_term) < term
        if incarnation == peer.incarnation and has_gone and is_recent:
            raise Violation("disturbed", f"{peer.id} goes to term {term}, {since:.3f} s after it heard its leader")
        if granted:
            self._waits_anew(peer)

    def append_replied(
        self, peer: SimulatedPeer, request: Sequence[bytes], reply: Sequence[bytes], *, is_repeated: bool
    ) -> None:
        """An answer in the leader's own term: it was heard, unless that is what was said before."""
        term = Protocols.APPEND_ENTRIES.decode_response(reply)[0]
        if term == decode_uint(request[3]):
            self._waits_anew(peer)
            if not is_repeated and not self._excused.get(peer.id):
                self._heard[peer.id] = (peer.turn_began, peer.incarnation, term)
            elif term > self._heard.get(peer.id, (0.0, 0, term))[2]:
                del self._heard[peer.id]
