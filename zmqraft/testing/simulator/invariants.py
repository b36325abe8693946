"""What must always hold, checked after every event, and only as far as the event may have changed it.

The invariants are those of the Raft paper (figure 3) and what a peer promises to others and to clients. Knows nothing
of faults. The rule: nothing is believed that a peer says of itself where the disk, or what all peers did before, can be
asked instead. A broken one raises `Violation`.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zmqraft import constants
from zmqraft.api import SnapshotBase
from zmqraft.core.configuration import ClusterConfiguration
from zmqraft.core.progress import Progress
from zmqraft.core.quorum import is_quorum
from zmqraft.core.raft import Role
from zmqraft.protocol import EntryBatch, EntryType, Protocols, decode_json, decode_uint
from zmqraft.testing.simulator.conduct import Conduct
from zmqraft.testing.simulator.peer import SimulatedPeer
from zmqraft.testing.simulator.violation import Violation

__all__ = ["UNCOMMITTED_MAX", "Fingerprint", "Invariants"]


#: So many updates that are not committed a leader takes in its term.
UNCOMMITTED_MAX = 8


class Fingerprint(NamedTuple):
    """What an entry is, without its data."""

    term: int
    request_id: bytes
    kind: EntryType
    crc: int


def fingerprints(batch: EntryBatch) -> list[Fingerprint]:
    """Those of the entries of a batch."""
    return [Fingerprint(entry.term, entry.request_id, entry.type, zlib.crc32(entry.to_bytes())) for entry in batch]


class Invariants:
    """What is known of all peers up to now."""

    def __init__(self, peers: Mapping[str, SimulatedPeer]) -> None:
        """``peers`` may grow."""
        self._peers = peers
        #: The leader of each term.
        self.leaders: dict[int, str] = {}
        #: Every entry that some peer has committed, by index - 1.
        self.committed: list[Fingerprint] = []
        # In which term each of them was committed, as far as is known: not before that.
        self._commit_terms: list[int] = []
        #: The index of each committed update, by its request id.
        self.indexes: dict[bytes, int] = {}
        #: Each log, as it was written: by peer, from index 1 on.
        self.logs: dict[str, list[Fingerprint]] = defaultdict(list)
        # Log matching: what is at (index, term), with what is before it.
        self._entries: dict[tuple[int, int], tuple[Fingerprint, Fingerprint | None]] = {}
        self._configs: dict[str, list[int]] = defaultdict(list)
        # The configurations that are joint ones.
        self._joint: set[Fingerprint] = set()
        #: Which one each peer has used last.
        self.configurations: dict[str, ClusterConfiguration] = {}
        # The last (term, commit index, incarnation) of each peer; and by leader its term and what it knew of followers.
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._matches: dict[str, tuple[int, dict[str, tuple[Progress, int]]]] = {}
        self._applied: dict[str, tuple[int, int]] = {}
        self._states: dict[int, tuple[str, object]] = {}
        self._votes: dict[tuple[str, int], str] = {}
        # By peer, the turn in which its log was written last.
        self._written: dict[str, float] = {}
        self.conduct = Conduct()
        # Of peers that are down: how many entries they had on disk for certain.
        self._held: dict[str, int] = {}
        # Of peers in the middle of an installation: how many entries are the same before and after it.
        self._replacing: dict[str, int] = {}
        #: How much was checked, so that a run that checked nothing shows.
        self.acknowledged = 0
        self.acknowledged_until = 0
        self.replies = 0

    # --- logs ---------------------------------------------------------------------------------------------------------

    def log_opened(self, peer: SimulatedPeer) -> None:
        """A peer has started: its log must be what it could have left, and hold all that was durable."""
        log = self.logs[peer.id]
        before, first = list(log), peer.log.first_index
        # A snapshot stands for those before the first.
        log[:] = self.committed[: first - 1]
        if len(log) < first - 1:
            raise Violation("snapshot", f"the log of {peer.id} begins with {first}, not so much is committed")
        self._configs[peer.id] = [at for at, found in enumerate(log, 1) if found.kind is EntryType.CONFIG]
        while len(log) < peer.log.last_index:
            self.log_appended(peer, peer.log.read(len(log) + 1, peer.log.last_index, 1 << 30))
        held = self._held.pop(peer.id, 0)
        if len(log) < held or log[:held] != before[:held]:
            raise Violation("durability", f"{peer.id} had {held} entries on disk and opens with {len(log)}, or others")
        self._seen.pop(peer.id, None)
        self.configurations[peer.id] = peer.running.raft.configuration
        self._applied[peer.id] = (peer.incarnation, peer.log.snapshot.index)

    def log_appended(self, peer: SimulatedPeer, batch: EntryBatch) -> None:
        """Log matching (section 5.3): an index and a term stand for one entry, and for one before it."""
        log = self.logs[peer.id]
        self._written[peer.id] = peer.turn_began
        if batch.first_index != len(log) + 1:
            raise Violation("gap", f"{peer.id} appends {batch.first_index} behind {len(log)}")
        previous = log[-1] if log else None
        index = batch.first_index
        first_new = batch.first_index
        for found in fingerprints(batch):
            if (index, found.term) in self._entries:
                first_new = index + 1
            known = self._entries.setdefault((index, found.term), (found, previous))
            if known[0] != found or (known[1] != previous and index > 1):
                raise Violation("log matching", f"{peer.id} has {found} at {index}, another peer had {known[0]}")
            if previous is not None and found.term < previous.term:
                raise Violation("terms", f"the terms of {peer.id} go back at {index}")
            log.append(found)
            previous = found
            index += 1
        for position in batch.config_positions():
            at = batch.first_index + position
            self._config_appended(peer, at, decode_json(batch.payload(position)), is_new=at >= first_new)

    def _config_appended(self, peer: SimulatedPeer, index: int, value: object, *, is_new: bool) -> None:
        """The configuration that ends a change is not appended before the joint one is committed (section 6)."""
        log, configs = self.logs[peer.id], self._configs[peer.id]
        if isinstance(value, dict):
            self._joint.add(log[index - 1])
        elif is_new and configs and log[configs[-1] - 1] in self._joint:
            committed = max(len(self.committed), peer.running.raft.commit_index)
            if configs[-1] > committed:
                raise Violation("joint", f"{peer.id} ends the change of {configs[-1]}, {committed} is committed")
        configs.append(index)

    def log_truncated(self, peer: SimulatedPeer, index: int) -> None:
        """A committed entry is never cut off (leader completeness, as a follower sees it)."""
        log, committed = self.logs[peer.id], self.committed
        self._written[peer.id] = peer.turn_began
        if index < min(len(log), len(committed)) and log[index] == committed[index]:
            raise Violation("truncation", f"{peer.id} cuts its log at {index}, and {index + 1} is committed")
        del log[index:]
        self._configs[peer.id] = [at for at in self._configs[peer.id] if at <= index]

    def log_replaced(self, peer: SimulatedPeer, snapshot: SnapshotBase) -> None:
        """A snapshot stands for committed entries; what is behind its last one stays if the log has that one."""
        log, index = self.logs[peer.id], snapshot.index
        self._written[peer.id] = peer.turn_began
        pairs = zip(log, self.committed, strict=False)
        self._replacing[peer.id] = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if index > len(self.committed) or self.committed[index - 1].term != snapshot.term:
            raise Violation("snapshot", f"{peer.id} installs a snapshot of {index}, term {snapshot.term}")
        if index > len(log) or log[index - 1].term != snapshot.term:
            if log[:index] == self.committed[: len(log)] and len(log) > index:
                raise Violation("snapshot", f"{peer.id} gives up committed entries behind {index}")
            log[:] = self.committed[:index]
        else:
            log[:index] = self.committed[:index]
        self._configs[peer.id] = [at for at, found in enumerate(log, 1) if found.kind is EntryType.CONFIG]

    # --- a peer -------------------------------------------------------------------------------------------------------

    def check(self, peer: SimulatedPeer) -> None:
        """After every turn of a peer."""
        raft = peer.running.raft
        self._replacing.pop(peer.id, None)
        seen = self._seen.get(peer.id)
        if seen is not None and (raft.current_term < seen[0] or raft.commit_index < seen[1]):
            raise Violation("monotony", f"term or commit index of {peer.id} went back from {seen[:2]}")
        self._seen[peer.id] = (raft.current_term, raft.commit_index, peer.incarnation)
        if raft.commit_index > raft.log.last_index or peer.running.last_applied > raft.commit_index:
            raise Violation("order", f"{peer.id}: applied <= committed <= last index does not hold")
        if seen is None or raft.commit_index > seen[1]:
            self._committed(peer, 0 if seen is None else seen[1], raft.commit_index)
            self._check_own_term(peer)
        self.configurations[peer.id] = raft.configuration
        configs = self._configs[peer.id]
        index = raft.configurations.current_index
        # Snapshots that were read as clients read them, and those of zmq-raft, come without one: who is no member reads
        # on, and who is goes by the leader's word.
        is_known = index > 0 and raft.is_configuration_known and raft.role is not Role.CLIENT
        if is_known and (configs[-1] if configs else 0) != index and raft.log.last_index == len(self.logs[peer.id]):
            raise Violation("configuration", f"{peer.id} uses that of {index}, the last in its log is {configs[-1]}")
        if raft.role is Role.LEADER:
            self._check_leader(peer)
        self.conduct.turned(peer)

    def _committed(self, peer: SimulatedPeer, before: int, until: int) -> None:
        """State machine safety: the entries up to a commit index are the same everywhere, and on a quorum's disks."""
        log, committed = self.logs[peer.id], self.committed
        for index in range(before + 1, until + 1):
            found = log[index - 1]
            if index > len(committed):
                self._check_once(index, found)
                self._check_quorum(peer, index, found)
                committed.append(found)
                self._commit_terms.append(peer.running.raft.current_term)
            elif committed[index - 1] != found:
                raise Violation("committed", f"{peer.id} commits {found} at {index}, it was {committed[index - 1]}")

    def _check_once(self, index: int, found: Fingerprint) -> None:
        if found.kind is EntryType.STATE:
            other = self.indexes.setdefault(found.request_id, index)
            if other != index:
                raise Violation("applied twice", f"update {found.request_id.hex()} is at {other} and at {index}")

    def _check_quorum(self, peer: SimulatedPeer, index: int, found: Fingerprint) -> None:
        """When it is committed, an entry is durable on a majority of each list of voters."""
        holders = {peer_id for peer_id in self._peers if self._holds(peer_id, index, found)}
        configuration = peer.running.raft.configuration
        # The next one may have been appended in the same turn, behind the commit.
        before = self.configurations.get(peer.id, configuration)
        if not is_quorum(holders, configuration.voters) and not is_quorum(holders, before.voters):
            raise Violation(
                "quorum", f"{peer.id} commits {index}, on the disks of {sorted(holders)} of {configuration.to_value()}"
            )

    def holds(self, peer_id: str, index: int) -> bool:
        """Whether a peer has all committed entries up to an index, the last one on its disk for certain."""
        if not 0 < index <= len(self.committed) or self.logs[peer_id][:index] != self.committed[:index]:
            return False
        return self._holds(peer_id, index, self.committed[index - 1])

    def _holds(self, peer_id: str, index: int, found: Fingerprint) -> bool:
        log = self.logs[peer_id]
        if len(log) < index or log[index - 1] != found:
            return False
        peer = self._peers[peer_id]
        if peer.engine is None:
            return index <= self._held.get(peer_id, 0)
        return index <= peer.log.snapshot.index or peer.log.entry_is_durable(peer.disk, index)

    def stopping(self, peer: SimulatedPeer) -> None:
        """A process is about to end: note what its disk holds for certain."""
        log = self.logs[peer.id]
        held = len(log)
        while held > peer.log.snapshot.index and not peer.log.entry_is_durable(peer.disk, held):
            held -= 1
        self._held[peer.id] = min(held, self._replacing.pop(peer.id, held))

    def _check_own_term(self, peer: SimulatedPeer) -> None:
        """Who has been leading counts replicas only of entries of its own term (section 5.4.2)."""
        raft = peer.running.raft
        is_leading = raft.role is Role.LEADER and self._matches.get(peer.id, (0,))[0] == raft.current_term
        if is_leading and self.logs[peer.id][raft.commit_index - 1].term != raft.current_term:
            raise Violation("own term", f"{peer.id} commits {raft.commit_index}, not of its term {raft.current_term}")

    def _check_leader(self, peer: SimulatedPeer) -> None:
        raft = peer.running.raft
        term = raft.current_term
        other = self.leaders.setdefault(term, peer.id)
        if other != peer.id:
            raise Violation("election safety", f"{other} and {peer.id} both lead in term {term}")
        since, sync_term = peer.sync_began
        if peer.log.is_syncing and sync_term == term and peer.turn_began >= since + self._election_max(peer):
            raise Violation("hanging disk", f"{peer.id} leads on, and waits for its disk since {since}")
        if len(self.logs[peer.id]) > raft.commit_index + UNCOMMITTED_MAX:
            self._check_bound(peer)
        known = self._matches.get(peer.id)
        if known is None or known[0] != term:
            self._check_completeness(peer)
            known = self._matches[peer.id] = (term, {})
        matches = known[1]
        for follower, progress in raft.progress.items():
            # One that was removed and comes back is another: nothing is known of it.
            before, match = matches.get(follower, (progress, 0))
            if before is progress and progress.match < match:
                raise Violation("match index", f"that of {follower} went back on {peer.id} in term {term}")
            if progress.match >= progress.next:
                raise Violation("match index", f"that of {follower} on {peer.id} is not below the next index")
            matches[follower] = (progress, progress.match)

    def _check_bound(self, peer: SimulatedPeer) -> None:
        """A leader takes only so many updates before they are committed, whoever it may have lost."""
        raft = peer.running.raft
        uncommitted = self.logs[peer.id][raft.commit_index :]
        count = sum(found.term == raft.current_term and found.kind is EntryType.STATE for found in uncommitted)
        if count > UNCOMMITTED_MAX:
            raise Violation("bound", f"{peer.id} has taken {count} updates that are not committed")

    def _check_completeness(self, peer: SimulatedPeer) -> None:
        """Leader completeness (section 5.4): who leads has every entry that was committed in an earlier term."""
        log, term = self.logs[peer.id], peer.running.raft.current_term
        count = len(self.committed)
        while count and self._commit_terms[count - 1] >= term:
            count -= 1
        if log[:count] != self.committed[:count]:
            raise Violation("leader completeness", f"{peer.id} leads in term {term} without all of {count} entries")

    def applied(self, peer: SimulatedPeer, batch: EntryBatch) -> None:
        """Entries are applied in their order, each once, and are those that were committed."""
        incarnation, last = self._applied[peer.id]
        if batch.first_index != last + 1:
            raise Violation("apply order", f"{peer.id} applies {batch.first_index} after {last}")
        # The commit index may have moved within this turn.
        raft = peer.running.raft
        seen = self._seen.get(peer.id)
        if raft.commit_index > (seen[1] if seen is not None else 0):
            self.check(peer)
        if fingerprints(batch) != self.committed[last : batch.last_index]:
            raise Violation("applied", f"{peer.id} applies other entries than were committed, from {last + 1} on")
        self._applied[peer.id] = (incarnation, batch.last_index)

    def restored(self, peer: SimulatedPeer, index: int) -> None:
        """The state machine goes on behind a snapshot."""
        if index < self._applied[peer.id][1]:
            raise Violation("apply order", f"{peer.id} goes back from {self._applied[peer.id][1]} to {index}")
        self._applied[peer.id] = (peer.incarnation, index)

    def state_is(self, peer: SimulatedPeer, index: int, state: object) -> None:
        """What a state machine is after an index is the same on every peer."""
        known = self._states.setdefault(index, (peer.id, state))
        if known[1] != state:
            raise Violation(
                "divergence", f"after entry {index} {peer.id} has {state!r:.200}, {known[0]} {known[1]!r:.200}"
            )

    # --- what leaves a peer -------------------------------------------------------------------------------------------

    def vote_requested(self, peer: SimulatedPeer, frames: Sequence[bytes]) -> None:
        """A vote request states a term and the candidate's own vote."""
        self._check_vote_durable(peer, decode_uint(frames[4]), peer.id)

    def append_sent(self, peer: SimulatedPeer, frames: Sequence[bytes]) -> None:
        """An append states the term of a leader."""
        self._check_vote_durable(peer, decode_uint(frames[4]), peer.id)

    @staticmethod
    def _election_max(peer: SimulatedPeer) -> float:
        return peer.settings.election_timeout_max / 1000

    def replied(
        self, peer: SimulatedPeer, request: Sequence[bytes], reply: Sequence[bytes], *, is_repeated: bool
    ) -> None:
        """No reply states a term, a vote or a match that is not durable. Frames are those from the type on."""
        self.replies += 1
        if request[0] == constants.REQUEST_VOTE:
            term, granted = Protocols.REQUEST_VOTE.decode_response(reply)
            self._check_vote_durable(peer, term, request[2].decode() if granted else None)
            self.conduct.vote_replied(peer, term, granted=granted)
        elif request[0] == constants.APPEND_ENTRIES:
            term, success, conflict, *_ = Protocols.APPEND_ENTRIES.decode_response(reply)
            self._check_vote_durable(peer, term, None)
            self.conduct.append_replied(peer, request, reply, is_repeated=is_repeated)
            if isinstance(conflict, int) and not is_repeated:
                self._check_hint(peer, decode_uint(request[4]), conflict)
            if success and term == peer.running.raft.current_term:
                self._check_match_durable(peer, decode_uint(request[4]) + len(request) - 7)

    def _check_match_durable(self, peer: SimulatedPeer, match: int) -> None:
        """What was acknowledged in an earlier term may have given way to another leader's entries since: the one of
        that term gets the same answer to the same request."""
        log = peer.log
        if log.first_index <= match <= log.last_index and not log.entry_is_durable(peer.disk, match):
            raise Violation("promise", f"{peer.id} acknowledges {match}, which is not durable")
        if match > len(self.logs[peer.id]):
            raise Violation("promise", f"{peer.id} acknowledges {match}, its log ends at {len(self.logs[peer.id])}")

    def _check_hint(self, peer: SimulatedPeer, previous: int, conflict: int) -> None:
        """One append for each term with conflicts is enough to find the first, not one for each entry (section 5.3).
        When the log was written in this turn it is another by now."""
        log, before = self.logs[peer.id], conflict - 1
        if self._written.get(peer.id) == peer.turn_began or not peer.running.raft.commit_index < before < previous:
            return
        if previous <= len(log) and log[before - 1].term == log[previous - 1].term:
            raise Violation("conflict", f"{peer.id} asks for {conflict}, {before} is of the same term as {previous}")

    def _check_vote_durable(self, peer: SimulatedPeer, term: int, vote: str | None) -> None:
        """A vote of a term that is over by now need not be stored: no other can follow."""
        stored = peer.persistence
        if not peer.disk.is_durable(str(stored.path)):
            raise Violation("promise", f"{peer.id} states term {term}, and its state file is not durable")
        if stored.current_term < term or (vote and stored.current_term == term and stored.voted_for != vote):
            raise Violation(
                "promise",
                f"{peer.id} states term {term}, vote {vote}; on its disk are {stored.current_term}, {stored.voted_for}",
            )
        if vote is not None:
            other = self._votes.setdefault((peer.id, term), vote)
            if other != vote:
                raise Violation("two votes", f"{peer.id} votes for {other} and for {vote} in term {term}")

    def update_acknowledged(self, request_id: bytes, index: int) -> None:
        """What a client is told is committed, at this index."""
        self.acknowledged += 1
        self.acknowledged_until = max(self.acknowledged_until, index)
        if self.indexes.get(request_id) != index:
            where = self.indexes.get(request_id)
            raise Violation("acknowledged", f"update {request_id.hex()} is told to be at {index}, committed at {where}")

    def change_acknowledged(self, index: int) -> None:
        """A change of the members is told to be done: it is committed, and so is the configuration that ends it."""
        since = self.committed[index - 1 :]
        if not any(found.kind is EntryType.CONFIG and found not in self._joint for found in since):
            raise Violation("change", f"that of {index} is told to be done, and is not")

    def read_until(self, peer_id: str, last: int, acknowledged_until: int) -> None:
        """What a read index covers: every write that was acknowledged before it was asked for."""
        if last < acknowledged_until:
            raise Violation("stale read", f"{peer_id} gives the read index {last}; {acknowledged_until} was known")

    def entries_read(self, peer_id: str, batch: EntryBatch) -> None:
        """Clients read only what is committed."""
        if len(batch) and fingerprints(batch) != self.committed[batch.first_index - 1 : batch.last_index]:
            raise Violation("read", f"{peer_id} gives out entries that are not the committed ones")

    def logs_are_equal(self, peer_ids: Sequence[str]) -> bool:
        """Whether these peers have the same log, all of it committed and applied by each."""
        if not peer_ids:
            return False
        first = self.logs[peer_ids[0]]
        return all(
            self._peers[peer_id].engine is not None
            and self.logs[peer_id] == first
            and self._peers[peer_id].running.last_applied == len(first)
            for peer_id in peer_ids
        )
