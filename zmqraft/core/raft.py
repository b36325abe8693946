"""Raft: elections, replication and commitment, as a state machine without sockets, files, clock or threads.

The paper is "In Search of an Understandable Consensus Algorithm (extended version)", Ongaro and Ousterhout; sections
and figures below are its. Time comes in as ``now`` (seconds, monotonic, never going back) and chance as a Random, so
the same inputs give the same outputs.

The host's duties, in this order, after any number of inputs (`step_*`, `propose`, `tick`):

1. Store `current_term` and `voted_for`, durably, if they changed.
2. Apply `take_log_effects` to the log, in order.
3. A leader may send what `message_to` gives for it once its term is durable, also before 2: its entries travel while it
   writes them.
4. Sync the log, then call `log_synced`.
5. Only now may replies leave, and vote requests: each states a term, a vote or a match that must be durable.
6. Apply entries up to `commit_index` to the state machine.

Steps 1, 2 and 4 may be skipped when there is nothing to store. A crash between any two of them is safe: nothing has
left that states more than what is on disk. A failure in 1, 2 or 4 is the end: the host stops, without sending.

`become_*` changes the role, `step_*` takes a message and returns the reply to it, `maybe_*` returns whether it did
anything.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from zmqraft.core.configuration import ClusterConfiguration, ConfigurationHistory
from zmqraft.core.log_terms import LogTerms
from zmqraft.core.messages import (
    AppendEntries,
    AppendReply,
    AppendToLog,
    CheckpointToLog,
    CommitNotice,
    Entries,
    LogEffect,
    RequestVote,
    SendAppend,
    SendCommitNotice,
    SendSnapshot,
    SendVoteRequest,
    SnapshotReply,
    ToPeer,
    TransferNotice,
    TruncateLog,
    VoteReply,
)
from zmqraft.core.progress import Progress, ProgressState
from zmqraft.core.quorum import committed_index, is_quorum
from zmqraft.core.read_index import ReadIndex
from zmqraft.errors import InvariantError

__all__ = ["Raft", "Role", "Timing"]

logger = logging.getLogger(__name__)

#: A peer that was removed is sent the log for so many maximum election timeouts more, or until it knows.
_LEAVING_TIMEOUTS = 10

#: A peer whose removal may not be committed reads the log for so many maximum election timeouts before it stands.
_OUTSIDER_TIMEOUTS = 5

#: Heartbeats go out at multiples of their interval divided by this, so that one wake-up serves all peers.
_HEARTBEAT_GRID = 8


class Role(enum.Enum):
    """What a peer is at the moment (section 5.1). CLIENT: not a member of its configuration, so it never campaigns."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    CLIENT = "client"


#: It is asked for all the time, and Python 3.11 is slow to find a member of an enumeration.
_LEADER: Final = Role.LEADER


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times, in seconds. The election timeout is drawn anew each time from ``election_min ... election_max``."""

    election_min: float = 0.2
    election_max: float = 0.3
    election_start_extra: float = 0.3
    heartbeat: float = 0.07
    commit_notice: float = 0.002
    vote_retry: float = 0.05


class Raft:
    """One peer's view of the cluster.

    Relations that always hold: ``synced_index <= log.last_index``; ``commit_index <= log.last_index``; the term, the
    commit index and, within a term, every match index never go back; there is a leader_id only of the current term.
    """

    def __init__(
        self,
        peer_id: str,
        *,
        configurations: ConfigurationHistory,
        log: LogTerms,
        current_term: int,
        voted_for: str | None,
        commit_index: int,
        now: float,
        random: Random,
        timing: Timing | None = None,
        prevent_spiral_elections: bool = True,
        is_configuration_known: bool = True,
    ) -> None:
        if not log.snapshot_index <= commit_index <= log.last_index:
            raise InvariantError(f"commit index {commit_index} outside of {log.snapshot_index} to {log.last_index}")
        if current_term < log.last_term:
            raise InvariantError(f"current term {current_term} is below the log's last term {log.last_term}")
        self.id = peer_id
        self.log = log
        self.configurations = configurations
        self.current_term = current_term
        self.voted_for = voted_for
        self.commit_index = commit_index
        #: Entries up to here are on disk.
        self.synced_index = log.last_index
        self.role = Role.FOLLOWER
        self.leader_id: str | None = None
        #: Who leads, by hearsay: of a peer that is no member, so that nobody tells it. For clients only.
        self.leader_hint: str | None = None
        #: Whether the configuration is that of the log: not after a snapshot that came without one (see
        #: `snapshot_installed`). A peer that does not know does not stand for election.
        self.is_configuration_known = is_configuration_known
        self.progress: dict[str, Progress] = {}
        #: The reads of a leader that wait for its leadership to be confirmed.
        self.reads = ReadIndex()
        #: The urls of peers that this leader has removed, by id, until they know it. Their progress is in `progress`.
        self.leaving: dict[str, str] = {}
        self._leaving_until = math.inf
        self._timing = timing or Timing()
        self._random = random
        self._prevent_spiral_elections = prevent_spiral_elections
        self._effects: list[LogEffect] = []
        # The log is the current leader's up to here, as far as it has shown: never beyond the last entry.
        self._verified_index = 0
        #: When a leader was last heard.
        self.leader_heard_at = -math.inf
        # A leader need not look for its majority before this time.
        self._quorum_until = now
        # Of the election under way, while a candidate:
        self._votes: set[str] = set()
        self._heard: set[str] = set()
        self._ask_at: dict[str, float] = {}
        self._ignored_term = 0
        self._election_at = now + self._draw_timeout() + self._timing.election_start_extra
        if peer_id not in self.configuration:
            self.role = Role.CLIENT
        elif self._is_alone() and is_configuration_known:
            self.become_candidate(now)

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> ClusterConfiguration:
        """The configuration that counts: the last one in the log, committed or not (section 6)."""
        return self.configurations.current

    @property
    def is_leader(self) -> bool:
        """Whether this peer leads in the current term."""
        return self.role is _LEADER

    @property
    def commits_in_term(self) -> bool:
        """Whether an entry of the current term is committed: only then does a leader know of all that is (5.4.2, 8)."""
        return self.log.term_at(self.commit_index) == self.current_term

    @property
    def known_leader_id(self) -> str | None:
        """What clients are told of who leads."""
        return self.leader_hint if self.leader_id is None and self.role is Role.CLIENT else self.leader_id

    @property
    def peer_urls(self) -> dict[str, str]:
        """The url of every other peer that this one may have something to say to, by id."""
        return {
            peer_id: url for peer_id, url in {**self.leaving, **self.configuration.urls}.items() if peer_id != self.id
        }

    @property
    def is_changing(self) -> bool:
        """Whether a change of the configuration is under way, which the next one has to wait for (section 6)."""
        return self.configuration.is_joint or self.configurations.current_index > self.commit_index

    @property
    def wants_final_configuration(self) -> bool:
        """Whether a leader's joint configuration is committed, so that it must propose the final one: also one that it
        has taken over."""
        return self.is_leader and self.configuration.is_joint and self.configurations.current_index <= self.commit_index

    @property
    def is_removed(self) -> bool:
        """Whether a leader must step down, since a committed configuration is without it (section 6)."""
        return self.is_leader and self.id not in self.configuration and not self.is_changing

    @property
    def _may_stand(self) -> bool:
        """Whether this peer may stand for election: a member, and one whose removal is perhaps not committed, since it
        may hold the only copy of that, and cannot vote for those who have less (thesis 4.2.2)."""
        if self.id in self.configuration:
            return True
        previous = self.configurations.previous
        return previous is not None and self.id in previous and self.configurations.current_index > self.commit_index

    @property
    def _outsider_election_at(self) -> float:
        """When a peer that is no member any more stands for election, if it may: first it looks for a leader."""
        if not self._may_stand or not self.is_configuration_known:
            return math.inf
        return self._election_at + _OUTSIDER_TIMEOUTS * self._timing.election_max

    def _is_alone(self) -> bool:
        return set(self.configuration.urls) == {self.id}

    def _draw_timeout(self) -> float:
        return self._random.uniform(self._timing.election_min, self._timing.election_max)

    def _restart_election_timer(self, now: float) -> None:
        self._election_at = now + self._draw_timeout()

    def _hears_leader(self, now: float) -> bool:
        """Whether a leader was heard within the minimum election timeout (section 6, last part; thesis 4.2.3)."""
        if self.is_leader:
            return is_quorum(self._contacts_since(now - self._timing.election_min), self.configuration.voters)
        return self.leader_id is not None and now - self.leader_heard_at < self._timing.election_min

    def _contacts_since(self, since: float) -> set[str]:
        return {self.id} | {peer for peer, progress in self.progress.items() if progress.last_contact >= since}

    # --- roles ------------------------------------------------------------------------------------------------------

    def become_follower(self, term: int, leader_id: str | None, now: float) -> None:
        """Follow in ``term``, which is not below the current one. A new term has no vote yet, the same keeps it."""
        if term < self.current_term:
            raise InvariantError(f"term {term} is below the current term {self.current_term}")
        if term > self.current_term:
            self.current_term = term
            self.voted_for = None
            self._verified_index = 0
        if self.role in (Role.LEADER, Role.CANDIDATE):
            self._restart_election_timer(now)
        self.role = Role.FOLLOWER if self.id in self.configuration else Role.CLIENT
        self.leader_id = leader_id
        self._reset_progress()

    def _reset_progress(self) -> None:
        self.progress = {}
        self.reads = ReadIndex()
        self.leaving = {}
        self._leaving_until = math.inf

    def become_candidate(self, now: float) -> None:
        """Start an election in the next term: vote for itself and ask the others (section 5.2)."""
        if not self._may_stand:
            raise InvariantError(f"{self.id!r} is not a member of the configuration, so it cannot stand for election")
        self.role = Role.CANDIDATE
        self.current_term += 1
        self.voted_for = self.id
        self._verified_index = 0
        self.leader_id = None
        self._reset_progress()
        self._votes = {self.id}
        self._heard = {self.id}
        self._ask_at = {}
        self._ignored_term = 0
        self._restart_election_timer(now)
        self._maybe_become_leader(now)

    def _maybe_become_leader(self, now: float) -> bool:
        if not is_quorum(self._votes, self.configuration.voters):
            return False
        self.become_leader(now)
        return True

    def become_leader(self, now: float) -> None:
        """Lead in the current term, and append the CHECKPOINT that lets entries of older terms commit (section 5.4.2,
        and section 8 for reads)."""
        if self.role is not Role.CANDIDATE:
            raise InvariantError(f"a {self.role.value} cannot become leader")
        self.role = Role.LEADER
        self.leader_id = self.id
        self._reset_progress()
        self._add_progress(now)
        index = self.log.last_index + 1
        self._effects.append(CheckpointToLog(index, self.current_term))
        self.log.append(index, [(index, self.current_term)])

    def _add_progress(self, now: float) -> None:
        """Begin to send to every member that is not being sent to."""
        for peer_id in self.configuration.urls:
            if peer_id != self.id and peer_id not in self.progress:
                self.progress[peer_id] = Progress(self.log.last_index + 1, now)
        self._quorum_until = max(self._renew_quorum(now), now + self._timing.vote_retry)

    def _let_go(self, before: dict[str, str], now: float) -> None:
        """Those who are no members any more still get the log up to that news, so that they stop standing for election.
        They count for nothing."""
        for peer_id in self.progress:
            if peer_id not in self.configuration and peer_id not in self.leaving:
                self.leaving[peer_id] = before[peer_id]
        self._leaving_until = now + _LEAVING_TIMEOUTS * self._timing.election_max if self.leaving else math.inf

    def _forget(self, peer_id: str) -> None:
        """A peer that was removed knows it, or is not there."""
        del self.leaving[peer_id], self.progress[peer_id]
        self.reads.lost(peer_id)
        if not self.leaving:
            self._leaving_until = math.inf

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due: start an election, or step down as a leader whom no majority answers (check-quorum)."""
        if self.is_leader:
            # Looked at a little early, with a heartbeat, so that it need not be looked at between two of them.
            if now >= self._quorum_until - 2 * self._timing.heartbeat and now >= self._renew_quorum(now):
                logger.warning("%s: no majority answers; stepping down in term %d", self.id, self.current_term)
                self.become_follower(self.current_term, None, now)
            elif now >= self._leaving_until:
                for peer_id in list(self.leaving):
                    self._forget(peer_id)
        elif self.role is Role.CLIENT:
            if now >= self._outsider_election_at:
                self.become_candidate(now)
        elif now >= self._election_at:
            if self.id not in self.configuration:
                # Nobody has elected it; perhaps there is a leader by now, to read from.
                self.become_follower(self.current_term, None, now)
            elif not self.is_configuration_known:
                self._restart_election_timer(now)
            elif self.role is Role.CANDIDATE and not self._may_campaign_again():
                # Term after term on the wrong side of a partition would only disturb the others at its end.
                self._restart_election_timer(now)
            else:
                self.become_candidate(now)

    def _may_campaign_again(self) -> bool:
        return not self._prevent_spiral_elections or is_quorum(self._heard, self.configuration.voters)

    def _renew_quorum(self, now: float) -> float:
        """Until when a leader may lead if it hears nothing more: the maximum election timeout after the last moment at
        which it had heard a majority. Later contacts only move that moment on, so it is looked for when it has come."""
        contacts = {peer_id: progress.last_contact for peer_id, progress in self.progress.items()}
        contacts[self.id] = now
        heard_at = min(
            sorted((contacts.get(voter, -math.inf) for voter in group), reverse=True)[len(group) // 2]
            for group in self.configuration.voters
        )
        self._quorum_until = heard_at + self._timing.election_max
        return self._quorum_until

    def next_deadline(self, now: float) -> float:
        """The time at which `tick` or `message_to` may have something new to do, if nothing else happens before."""
        if self.is_leader:
            deadline = min(self._quorum_until, self._leaving_until)
            for progress in self.progress.values():
                # The host repeats what is under way by itself.
                if not progress.pending and progress.state is not ProgressState.SNAPSHOT:
                    deadline = min(deadline, progress.heartbeat_at, progress.notice_at)
            return deadline
        if self.role is Role.CLIENT:
            return self._outsider_election_at
        retries = list(self._ask_at.values()) if self.role is Role.CANDIDATE else []
        return min([self._election_at, *retries])

    # --- elections --------------------------------------------------------------------------------------------------

    def step_request_vote(self, request: RequestVote, now: float) -> VoteReply | None:
        """A candidate asks for this peer's vote (figure 2, RequestVote). None: not a member, no reply."""
        if request.candidate_id == self.id or not self._may_vote_for(request, now):
            return None
        # Who knows another configuration, or has more and so may know one, need not wait for the majority of this one.
        is_bound = (
            self.role is Role.CANDIDATE
            and request.candidate_id in self.configuration
            and not self._has_less_than(request)
        )
        if is_bound:
            self._maybe_give_way(request.candidate_id, 0, now)
        if request.term > self.current_term:
            if self._hears_leader(now) or (is_bound and not self._may_campaign_again()):
                return VoteReply(self.current_term, False)
            self.become_follower(request.term, None, now)
        up_to_date = (request.last_term, request.last_index) >= (self.log.last_term, self.log.last_index)
        granted = (
            request.term == self.current_term
            and self.voted_for in (None, request.candidate_id)
            and self.role in (Role.FOLLOWER, Role.CLIENT)
            and up_to_date
        )
        if granted:
            self.voted_for = request.candidate_id
            self._restart_election_timer(now)
        return VoteReply(self.current_term, granted)

    def _may_vote_for(self, request: RequestVote, now: float) -> bool:
        """A candidate that is no member here may be one by a configuration which did not get here, if it has more than
        this peer, and nobody else is there."""
        if request.candidate_id in self.configuration:
            return True
        return self._has_less_than(request) and not self._hears_leader(now)

    def _has_less_than(self, request: RequestVote) -> bool:
        return (request.last_term, request.last_index) > (self.log.last_term, self.log.last_index)

    def step_vote_reply(self, peer_id: str, reply: VoteReply, now: float) -> None:
        """The answer to the vote request that was last sent to this peer, in the current term."""
        if self.role is not Role.CANDIDATE or peer_id not in self.configuration:
            return
        if self._maybe_give_way(peer_id, reply.term, now):
            return
        if reply.granted and reply.term == self.current_term:
            self._votes.add(peer_id)
            self._maybe_become_leader(now)
        elif reply.term < self.current_term:
            # It still hears a leader (see _hears_leader) and may change its mind soon.
            self._ask_at[peer_id] = now + self._timing.vote_retry

    def _maybe_give_way(self, peer_id: str, term: int, now: float) -> bool:
        """A candidate heard of a peer: higher terms count from the moment at which a majority was heard."""
        self._heard.add(peer_id)
        self._ignored_term = max(self._ignored_term, term)
        if self._ignored_term <= self.current_term or not self._may_campaign_again():
            return False
        self.become_follower(self._ignored_term, None, now)
        return True

    # --- replication, the follower's side ---------------------------------------------------------------------------

    def step_append_entries(self, request: AppendEntries, now: float) -> AppendReply | None:
        """Entries or a heartbeat (figure 2, AppendEntries). None: not from a member, no reply.

        Raises InvariantError when the message proves that there are two leaders in a term, or that committed entries
        differ: the host must stop.
        """
        if not self._listens_to(request.leader_id, request.term, now):
            return None
        if request.term < self.current_term:
            return AppendReply(self.current_term, False)
        if request.leader_id not in self.configuration and self._contradicts_commit(request):
            return None
        self._follow(request.term, request.leader_id, now)
        if request.prev_index > self.log.last_index:
            return AppendReply(self.current_term, False, self.log.last_index + 1)
        if request.prev_index >= self.log.snapshot_index:
            if self.log.term_at(request.prev_index) != request.prev_term:
                return self._refuse_append(request)
        elif request.prev_index + len(request.entries) < self.log.snapshot_index:
            # All of it is below the snapshot, thus committed and the same.
            return AppendReply(self.current_term, True)
        self._append_missing(request)
        verified = request.prev_index + len(request.entries)
        self._verified_index = max(self._verified_index, verified)
        self._commit_to(min(request.commit_index, verified))
        return AppendReply(self.current_term, True)

    def _listens_to(self, leader_id: str, term: int, now: float) -> bool:
        """Whether this peer takes a leader's word. A leader that is no member here may be one by a configuration which
        did not get here: it is listened to when nobody else is there, and never against what is committed."""
        if leader_id == self.id or leader_id in self.configuration:
            return leader_id != self.id
        if self.is_leader or (term == self.current_term and self.leader_id not in (None, leader_id)):
            return False
        return leader_id == self.leader_id or not self._hears_leader(now)

    def _contradicts_commit(self, request: AppendEntries) -> bool:
        """Whether a leader's log is another one where entries are committed here."""
        log = self.log
        before = log.snapshot_index <= request.prev_index <= self.commit_index
        conflict = log.find_conflict(request.entries.term_runs(), request.entries.last_index)
        return (before and log.term_at(request.prev_index) != request.prev_term) or (
            conflict is not None and conflict <= self.commit_index
        )

    def step_install_snapshot(self, leader_id: str, term: int, index: int, now: float) -> SnapshotReply | None:
        """The chunk of a snapshot of ``index`` (figure 13, InstallSnapshot). None: not from a member, no reply.

        When all chunks of one that is WANTED have come, and it is in its place on disk, `snapshot_installed` follows.
        Raises InvariantError when the message proves that there are two leaders in a term: the host must stop.
        """
        if not self._listens_to(leader_id, term, now):
            return None
        if term < self.current_term:
            return SnapshotReply.STALE
        self._follow(term, leader_id, now)
        return SnapshotReply.HAVE if index <= self.commit_index else SnapshotReply.WANTED

    def snapshot_installed(self, index: int, term: int, configuration: tuple[int, ClusterConfiguration] | None) -> None:
        """A snapshot that a leader sent, of a committed entry, has taken the place of the log up to ``index``: of all
        of it, unless it had that very entry.

        ``configuration`` is the last one up to there, and its index; None when the leader has not told. Then this peer
        does not stand for election before it knows (section 7).
        """
        if self._effects or index <= self.commit_index:
            raise InvariantError(
                f"a snapshot of index {index} was installed over a commit index of {self.commit_index}"
                + (" and entries that are not in the log" if self._effects else "")
            )
        if self.log.term_at(index) == term:
            self.log.compact(index)
            self.commit_index = index
            self.configurations.compact(index)
        else:
            self.log.reset(index, term)
            self.commit_index = index
            if configuration is None:
                self.is_configuration_known = False
                configuration = (min(self.configurations.current_index, index), self.configuration)
            else:
                self.is_configuration_known = True
            self.configurations = ConfigurationHistory(configuration[1], configuration[0])
            self.synced_index = index
        self.synced_index = max(self.synced_index, index)
        self._verified_index = max(self._verified_index, index)
        self._follow_configuration()

    def step_committed_entries(
        self, entries: Entries, configurations: Sequence[tuple[int, ClusterConfiguration]], now: float
    ) -> None:
        """Entries that a peer which is no member has read from a leader, so they are committed. Nothing happens to
        others, or when they do not follow on what is committed here."""
        first, last = entries.first_index, entries.last_index
        if self.role is not Role.CLIENT or first > self.commit_index + 1 or last <= self.commit_index:
            return
        self.step_committed_snapshot(entries.term_runs()[-1][1], now)
        prev_index = first - 1
        if first <= self.log.snapshot_index:
            entries, prev_index = entries.slice(self.log.first_index, last), self.log.snapshot_index
        self._append_missing(AppendEntries("", self.current_term, prev_index, 0, last, entries, configurations))
        self._commit_to(last)

    def step_committed_snapshot(self, term: int, now: float) -> None:
        """A peer that is no member has read something of this term that is committed: it is in that term at least."""
        if self.role is Role.CLIENT and term > self.current_term:
            self.become_follower(term, None, now)

    def configuration_confirmed(self, leader_id: str, peer_urls: dict[str, str]) -> None:
        """The leader says which peers there are: one that did not know may stand for election, if it takes just these
        for the members, and knows of no change."""
        if leader_id == self.leader_id and not self.configuration.is_joint and peer_urls == self.configuration.urls:
            self.is_configuration_known = True

    def step_transfer_notice(self, notice: TransferNotice, now: float) -> None:
        """The leader makes way (thesis 3.10): its last word no longer keeps this peer from voting, and the one that it
        names stands for election at once. From anybody else it is ignored."""
        if self.role is not Role.FOLLOWER or (notice.leader_id, notice.term) != (self.leader_id, self.current_term):
            return
        self.leader_heard_at = -math.inf
        if notice.target_id == self.id and self.is_configuration_known:
            self.become_candidate(now)

    def step_higher_term(self, term: int, now: float, *, leads: bool) -> None:
        """A peer's own term is too far away to follow; ``term`` is as near to it as one may go at once. As with any
        term, one who does not say that he ``leads`` does not matter to a peer that hears a leader."""
        if term > self.current_term and (leads or not self._hears_leader(now)):
            self.become_follower(term, None, now)

    def step_commit_notice(self, notice: CommitNotice, now: float) -> None:
        """The leader's commit index by itself. It counts for what the leader's appends of this term have shown to be
        its log; from anybody else, or of another term, it is ignored.

        Raises InvariantError when the message proves that there are two leaders in a term: the host must stop.
        """
        if notice.term == self.current_term and self._listens_to(notice.leader_id, notice.term, now):
            self._follow(notice.term, notice.leader_id, now)
            self._commit_to(min(notice.commit_index, self._verified_index))

    def _follow(self, term: int, leader_id: str, now: float) -> None:
        if term == self.current_term:
            if self.is_leader or self.leader_id not in (None, leader_id):
                raise InvariantError(f"two leaders in term {term}: {self.leader_id!r} and {leader_id!r}")
            if self.role is Role.CANDIDATE:
                self.become_follower(term, leader_id, now)
        else:
            self.become_follower(term, leader_id, now)
        self.leader_id = leader_id
        self.leader_heard_at = now
        self._restart_election_timer(now)

    def _refuse_append(self, request: AppendEntries) -> AppendReply:
        if request.prev_index <= self.commit_index:
            raise InvariantError(
                f"leader {request.leader_id!r} has term {request.prev_term} at index {request.prev_index}, here it is "
                f"{self.log.term_at(request.prev_index)} and committed (commit index {self.commit_index})"
            )
        # The whole run of that term may be wrong, but nothing that is committed is.
        start = self.log.first_index_of_term_at(request.prev_index)
        return AppendReply(self.current_term, False, max(start, self.commit_index + 1))

    def _append_missing(self, request: AppendEntries) -> None:
        """Skip what is here, cut at the first conflict, append the rest (figure 2, AppendEntries 3 and 4)."""
        entries = request.entries
        if not len(entries):
            return
        if entries.first_index != request.prev_index + 1:
            raise InvariantError(f"entries start at {entries.first_index}, not at {request.prev_index + 1}")
        conflict = self.log.find_conflict(entries.term_runs(), entries.last_index)
        if conflict is not None:
            if conflict <= self.commit_index:
                raise InvariantError(
                    f"leader {request.leader_id!r} sends another entry at index {conflict}, which is committed here "
                    f"(commit index {self.commit_index})"
                )
            self._truncate(conflict - 1)
        if entries.last_index <= self.log.last_index:
            return
        missing = entries.slice(self.log.last_index + 1, entries.last_index)
        self.log.append(missing.last_index, missing.term_runs())
        self._effects.append(AppendToLog(missing))
        later = [
            (index, configuration) for index, configuration in request.configurations if index >= missing.first_index
        ]
        if self.configurations.append(later):
            self.is_configuration_known = True
            self._follow_configuration()

    def _truncate(self, index: int) -> None:
        self.log.truncate_after(index)
        self.synced_index = min(self.synced_index, index)
        self._verified_index = min(self._verified_index, index)
        self._effects.append(TruncateLog(index))
        if self.configurations.truncate_after(index):
            self._follow_configuration()

    def _follow_configuration(self) -> None:
        """Another configuration counts here, at somebody else's bidding."""
        if self.role in (Role.FOLLOWER, Role.CLIENT):
            self.role = Role.FOLLOWER if self.id in self.configuration else Role.CLIENT

    # --- replication, the leader's side -----------------------------------------------------------------------------

    def propose(self, entries: Entries, configurations: Sequence[tuple[int, ClusterConfiguration]], now: float) -> None:
        """Append a leader's own entries, all of the current term, behind the last one."""
        if not self.is_leader:
            raise InvariantError(f"a {self.role.value} cannot propose entries")
        if entries.first_index != self.log.last_index + 1:
            raise InvariantError(f"entries from {entries.first_index} cannot follow the last, {self.log.last_index}")
        runs = entries.term_runs()
        if [term for _, term in runs] != [self.current_term]:
            raise InvariantError(f"proposed entries have terms {runs}, the current term is {self.current_term}")
        before = self.configuration.urls
        self.log.append(entries.last_index, runs)
        self._effects.append(AppendToLog(entries))
        if self.configurations.append(configurations):
            for peer_id in [peer_id for peer_id in self.leaving if peer_id in self.configuration]:
                # It comes back, perhaps with an empty disk.
                self._forget(peer_id)
            self._add_progress(now)
            self._let_go(before, now)

    def message_to(self, peer_id: str, now: float, *, takes_notices: bool = False) -> ToPeer | None:
        """What this peer should be sent now, if anything. The host calls it when there is room for more on the way to
        that peer: for zmq-raft's, when nothing is under way.

        A vote request and a notice count as sent at once, an append when the host has called `append_sent`. Notices
        are for peers that understand them.
        """
        if self.role is Role.CANDIDATE:
            if peer_id in self.configuration and peer_id != self.id and self._ask_at.get(peer_id, now) <= now:
                self._ask_at[peer_id] = math.inf
                return SendVoteRequest(RequestVote(self.id, self.current_term, self.log.last_index, self.log.last_term))
            return None
        progress = self.progress.get(peer_id)
        if progress is None:
            return None
        reads_wait = self.reads.wants(peer_id)
        if progress.pending and (
            progress.state is ProgressState.PROBE or (progress.next > self.log.last_index and not reads_wait)
        ):
            return None
        if self._has_news_only(progress) and now < progress.heartbeat_at and not reads_wait:
            if takes_notices:
                commit_index = progress.maybe_tell_commit(self.commit_index, now, self._timing.commit_notice)
                if commit_index is None:
                    return None
                return SendCommitNotice(CommitNotice(self.id, self.current_term, commit_index))
            if progress.commit_told >= self.commit_index:
                return None
        prev_term = self.log.term_at(progress.next - 1)
        if progress.state is ProgressState.SNAPSHOT or prev_term is None:
            if progress.pending:
                return None
            progress.state = ProgressState.SNAPSHOT
            return SendSnapshot(self.current_term)
        return SendAppend(
            term=self.current_term,
            prev_index=progress.next - 1,
            prev_term=prev_term,
            # One of zmq-raft's that has lost the connection gets this again as if it were new, and stops when what it
            # knows to be committed reaches beyond the previous index: so it is told that by the next message.
            commit_index=self.commit_index if takes_notices else min(self.commit_index, progress.next - 1),
            last_index=self.log.last_index,
            count_max=1 if progress.state is ProgressState.PROBE else None,
        )

    def _has_news_only(self, progress: Progress) -> bool:
        return progress.next > self.log.last_index and progress.state is not ProgressState.SNAPSHOT

    def _next_heartbeat(self, now: float) -> float:
        """When a peer that has answered now is to hear again, if there is no news: those of all peers fall together."""
        grid = self._timing.heartbeat / _HEARTBEAT_GRID
        return math.ceil((now + self._timing.heartbeat) / grid) * grid

    def has_entries_for(self, peer_id: str) -> bool:
        """Whether a leader has entries that this peer was not sent."""
        progress = self.progress.get(peer_id)
        return progress is not None and progress.next <= self.log.last_index

    def has_news_for(self, peer_id: str, now: float, *, takes_notices: bool) -> bool:
        """Whether `message_to` may have something for this peer, which has just answered, before `next_deadline`."""
        progress = self.progress.get(peer_id)
        if (
            progress is None
            or progress.state is not ProgressState.REPLICATE
            or progress.next <= self.log.last_index
            or self.reads.wants(peer_id)
        ):
            return True
        if progress.pending or progress.commit_told >= self.commit_index:
            return False
        return not takes_notices or progress.wants_notice(self.commit_index, now, self._timing.commit_notice)

    def append_sent(self, peer_id: str, message: SendAppend, last_index: int) -> None:
        """The host has sent the entries of ``message`` up to ``last_index`` (``prev_index`` when there were none)."""
        self.progress[peer_id].sent(message.prev_index, last_index, message.commit_index)
        self.reads.sent(peer_id)

    def appends_lost(self, peer_id: str) -> None:
        """The host has given up what is under way to this peer, so begin anew behind what the peer has acknowledged."""
        progress = self.progress.get(peer_id)
        if progress is not None:
            progress.lost()
            self.reads.lost(peer_id)

    def step_append_reply(self, peer_id: str, reply: AppendReply, now: float, *, count: int = 1) -> None:
        """The answer to an append that is under way to this peer, in the current term (section 5.3): to the last of the
        ``count`` oldest, and so to them all."""
        if reply.term > self.current_term:
            self.become_follower(reply.term, None, now)
            return
        progress = self.progress.get(peer_id)
        if not self.is_leader or progress is None or len(progress.pending) < count:
            return
        if reply.term < self.current_term:
            # Who got the request has been in its term since: this answers another one.
            self.appends_lost(peer_id)
            return
        progress.last_contact = now
        progress.heartbeat_at = self._next_heartbeat(now)
        if reply.success:
            self.reads.answered(peer_id, count)
            if progress.maybe_update(count) and progress.match > self.commit_index:
                self._maybe_commit()
            if peer_id in self.leaving and progress.commit_told >= self.configurations.current_index:
                self._forget(peer_id)
            return
        if progress.maybe_decrease(reply.conflict_index, count):
            self.reads.answered(peer_id, count)
        else:
            self._leave_alone(peer_id, progress)
        self.reads.lost(peer_id)

    def step_snapshot_reply(self, peer_id: str, term: int, index: int | None, now: float) -> None:
        """The answer to the chunk of a snapshot, in the current term; ``index`` is the snapshot's when the peer has it
        all, and so every entry up to there."""
        if term > self.current_term:
            self.become_follower(term, None, now)
            return
        progress = self.progress.get(peer_id)
        if not self.is_leader or progress is None or term < self.current_term:
            return
        progress.last_contact = now
        progress.heartbeat_at = self._next_heartbeat(now)
        if index is not None and progress.installed(index):
            self._maybe_commit()

    def _leave_alone(self, peer_id: str, progress: Progress) -> None:
        """A follower has lost its data: nothing can be sent to it but heartbeats, which it would answer for ever.

        What it has acknowledged counts no more, and what it answers confirms no read.
        """
        progress.next = self.log.last_index + 1
        progress.commit_told = self.commit_index
        if not progress.has_lost_data:
            progress.has_lost_data = True
            logger.critical(
                "%s: peer %r denies entries up to %d that it had acknowledged: it has lost its data. Remove it from "
                "the cluster and add a new one under a new id",
                self.id,
                peer_id,
                progress.match,
            )

    # --- commitment -------------------------------------------------------------------------------------------------

    def log_synced(self, index: int | None = None) -> None:
        """The log is on disk, up to its last entry after all effects so far; or, of a leader, up to ``index``: what was
        its last entry when a sync began in this term."""
        if index is None:
            if self._effects:
                raise InvariantError("the log cannot be synced before its effects were taken")
            index = self.log.last_index
        elif not self.is_leader or index > self.log.last_index:
            raise InvariantError(f"a {self.role.value} with entries up to {self.log.last_index} has synced {index}")
        if index > self.synced_index:
            self.synced_index = index
            self._maybe_commit()

    def step_down(self, now: float) -> None:
        """Stop leading, in the same term, since this peer cannot do what a leader must."""
        if self.is_leader:
            self.become_follower(self.current_term, None, now)

    def _maybe_commit(self) -> bool:
        """Advance a leader's commit index to what a majority has on disk, if that is of its own term (5.3, 5.4.2)."""
        if not self.is_leader:
            return False
        match = {peer_id: each.match for peer_id, each in self.progress.items() if not each.has_lost_data}
        match[self.id] = self.synced_index
        index = committed_index(match, self.configuration.voters)
        if self.log.term_at(index) != self.current_term:
            return False
        return self._commit_to(index)

    def _commit_to(self, index: int) -> bool:
        if index <= self.commit_index:
            return False
        if index > self.log.last_index:
            raise InvariantError(f"commit index {index} above the last index {self.log.last_index}")
        self.commit_index = index
        self.configurations.compact(index)
        return True

    def take_log_effects(self) -> list[LogEffect]:
        """What to do to the log, in this order; each is given once."""
        effects, self._effects = self._effects, []
        return effects
