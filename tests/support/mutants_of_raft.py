"""Bugs of the core: elections, replication, commitment, membership."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from support.mutant import Mutant, both, changed, replaced, without
from zmqraft.core import progress, raft
from zmqraft.core.configuration import ConfigurationHistory
from zmqraft.core.progress import Progress
from zmqraft.core.raft import Raft
from zmqraft.server import config_updates
from zmqraft.server.engine import Engine
from zmqraft.server.peer_link import PeerLink

_ELECTIONS, _REPLICATION = "server/test_elections.py", "server/test_replication.py"
_MEMBERSHIP, _SCENARIOS = "server/test_membership.py", "testing/test_scenarios.py"
_TRANSCRIPT = "scenarios/test_transcripts.py::check_transcript"
_INSTALL, _OWN = "server/test_install_snapshot.py", "server/test_own_messages.py"


def _vote_is_forgotten() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def follow(self: Raft, *arguments: Any) -> None:
            original(self, *arguments)
            self.voted_for = None

        return follow

    return replaced(Raft, "_follow", make)


def _any_candidate_gets_the_vote() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def step(self: Raft, request: Any, now: float) -> Any:
            longest = type(request)(request.candidate_id, request.term, 1 << 40, request.term)
            return original(self, longest, now)

        return step

    return replaced(Raft, "step_request_vote", make)


def _older_terms_commit_by_counting() -> contextlib.AbstractContextManager[object]:
    def maybe_commit(self: Raft) -> bool:
        if not self.is_leader:
            return False
        match = {peer_id: each.match for peer_id, each in self.progress.items()}
        match[self.id] = self.synced_index
        return self._commit_to(raft.committed_index(match, self.configuration.voters))

    return mock.patch.object(Raft, "_maybe_commit", maybe_commit)


def _appends_cut_the_log() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def append(self: Raft, request: Any) -> None:
            if self.commit_index <= request.prev_index < self.log.last_index:
                self._truncate(request.prev_index)
            original(self, request)

        return append

    return replaced(Raft, "_append_missing", make)


def _unverified_entries_commit() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def step(self: Raft, request: Any, now: float) -> Any:
            reply = original(self, request, now)
            if reply is not None and reply.success:
                self._commit_to(min(request.commit_index, self.log.last_index))
            return reply

        return step

    return replaced(Raft, "step_append_entries", make)


def _match_survives_its_term() -> contextlib.AbstractContextManager[object]:
    def reset(self: Raft) -> None:
        kept = dict(self.__dict__.get("kept_matches", {}))
        kept.update({peer_id: each.match for peer_id, each in self.progress.items()})
        self.__dict__["kept_matches"] = kept
        self.leaving = {}
        self._leaving_until = float("inf")
        self.progress = {}

    def make(original: Any) -> Any:
        def add(self: Raft, now: float) -> None:
            original(self, now)
            for peer_id, each in self.progress.items():
                each.match = min(max(each.match, self.__dict__.get("kept_matches", {}).get(peer_id, 0)), each.next - 1)

        return add

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        with mock.patch.object(Raft, "_reset_progress", reset), replaced(Raft, "_add_progress", make):
            yield

    return patch()


def _match_goes_back() -> contextlib.AbstractContextManager[object]:
    def update(self: progress.Progress, count: int) -> bool:
        _, last_index, commit_index = self._answered(count)
        self.commit_told = max(self.commit_told, min(commit_index, last_index))
        self.state = progress.ProgressState.REPLICATE
        moved = last_index > self.match
        self.match = last_index - 1 if last_index % 5 == 0 else last_index
        self.next = max(self.next, self.match + 1)
        return moved

    return mock.patch.object(progress.Progress, "maybe_update", update)


def _configuration_outlives_its_entry() -> contextlib.AbstractContextManager[object]:
    return without(ConfigurationHistory, "truncate_after", False)


def _new_majority_is_enough() -> contextlib.AbstractContextManager[object]:
    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        def only_new(original: Any) -> Any:
            return lambda ids, voters: original(ids, voters[-1:])

        with replaced(raft, "is_quorum", only_new), replaced(raft, "committed_index", only_new):
            yield

    return patch()


RAFT = (
    # --- votes and terms ---
    Mutant.of(
        "vote is forgotten",
        "2",
        _vote_is_forgotten,
        f"{_ELECTIONS}::test_a_vote_outlives_an_append_in_the_same_term",
    ),
    Mutant.of(
        "candidates do not vote for themselves",
        "4",
        changed(Raft, "become_candidate", "self.voted_for = self.id", "self.voted_for = None"),
        f"{_ELECTIONS}::test_a_candidate_remembers_its_own_vote_over_a_restart",
    ),
    Mutant.of(
        "late replies are taken for answers",
        "5, 13, 16",
        both(
            changed(PeerLink, "answered_by", "if message[0][0] == message_id:", "if True:"),
            changed(Progress, "maybe_decrease", "max(wanted, self.match + 1)", "max(wanted, 1)"),
        ),
        f"{_ELECTIONS}::test_a_late_grant_of_an_older_election_does_not_count",
        f"{_REPLICATION}::TestLeader::test_a_reply_counts_once",
    ),
    Mutant.of(
        "a refusal leads below the match",
        "13, 16",
        changed(Progress, "maybe_decrease", "max(wanted, self.match + 1)", "max(prev_index - 1, 1)"),
        (f"{_OWN}::TestTwoAppendsUnderWay::test_what_is_lost_of_them_is_sent_again", {"lost": (0,)}),
    ),
    Mutant.of(
        "refusals state the term of before",
        "6",
        changed(
            Raft,
            "step_request_vote",
            "return VoteReply(self.current_term, granted)",
            "return VoteReply(self.current_term - (not granted and self.current_term == request.term), granted)",
        ),
        f"{_ELECTIONS}::test_a_refusal_states_the_new_term_and_does_not_restart_the_timer",
    ),
    Mutant.of(
        "a rejected candidate restarts the timer",
        "W12",
        changed(
            Raft,
            "step_request_vote",
            "    if granted:\n        self.voted_for = request.candidate_id\n",
            "    self._restart_election_timer(now)\n    if granted:\n        self.voted_for = request.candidate_id\n",
        ),
        f"{_ELECTIONS}::test_a_refusal_states_the_new_term_and_does_not_restart_the_timer",
    ),
    Mutant.of(
        "own vote does not count in a joint configuration",
        "7",
        changed(
            Raft,
            "_maybe_become_leader",
            "is_quorum(self._votes,",
            "is_quorum(self._votes - ({self.id} if self.configuration.is_joint else set()),",
        ),
        f"{_SCENARIOS}::test_a_peer_that_was_alone_counts_its_own_vote_in_a_joint_configuration",
    ),
    Mutant.of(
        "any candidate gets the vote",
        "section 5.4.1",
        _any_candidate_gets_the_vote,
        (
            f"{_ELECTIONS}::test_only_an_up_to_date_candidate_gets_the_vote",
            {"last_index": 2, "last_term": 2, "granted": False},
        ),
    ),
    Mutant.of(
        "a leader that is heard keeps nobody from voting",
        "43, W12",
        changed(Raft, "_hears_leader", "if self.is_leader:", "return False\n    if self.is_leader:"),
        (f"{_ELECTIONS}::test_a_partial_partition_leaves_a_stable_leader", {"hub": "3", "seed": 0}),
        f"{_ELECTIONS}::test_votes_are_refused_while_a_leader_is_heard",
    ),
    Mutant.of(
        "who was removed is listened to",
        "35",
        both(
            changed(
                Raft,
                "_may_vote_for",
                "return self._has_less_than(request) and not self._hears_leader(now)",
                "return True",
            ),
            changed(Raft, "_hears_leader", "if self.is_leader:", "return False\n    if self.is_leader:"),
        ),
        f"{_MEMBERSHIP}::test_a_removed_peer_that_never_heard_of_it_disturbs_nobody",
    ),
    Mutant.of(
        "a candidate waits for votes instead of answers",
        "44",
        changed(Raft, "_may_campaign_again", "is_quorum(self._heard,", "is_quorum(self._votes,"),
        (f"{_ELECTIONS}::test_the_rule_against_spirals_does_not_block_elections", {"seed": 1}),
    ),
    Mutant.of(
        "a candidate waits for the majority of a configuration that is over",
        "44",
        changed(Raft, "step_request_vote", "and not self._has_less_than(request)", ""),
        (_TRANSCRIPT, {"name": "44_candidate_in_the_middle_of_a_change"}),
    ),
    Mutant.of(
        "a leader without a majority leads on",
        "W11",
        changed(Raft, "tick", "if now >= self._quorum_until - 2 * self._timing.heartbeat and", "if False and"),
        f"{_ELECTIONS}::test_a_leader_without_a_majority_steps_down",
    ),
    # --- append and commit ---
    Mutant.of(
        "older terms commit by counting",
        "8",
        _older_terms_commit_by_counting,
        f"{_REPLICATION}::test_figure_8_by_hand",
    ),
    Mutant.of(
        "appends cut the log",
        "9, W2",
        _appends_cut_the_log,
        f"{_REPLICATION}::TestFollower::test_cuts_only_at_a_conflict",
    ),
    Mutant.of(
        "unverified entries commit",
        "10, W2",
        _unverified_entries_commit,
        f"{_REPLICATION}::TestFollower::test_commits_no_further_than_the_last_entry_it_compared",
    ),
    Mutant.of(
        "a notice commits unverified entries",
        "10, W2",
        changed(Raft, "step_commit_notice", "self._verified_index", "self.log.last_index"),
        f"{_OWN}::TestWhatAFollowerBelieves::test_only_what_the_leader_has_shown_is_committed",
    ),
    Mutant.of(
        "match survives its term",
        "12",
        _match_survives_its_term,
        f"{_REPLICATION}::TestLeader::test_nothing_is_known_of_followers_in_a_new_term",
    ),
    Mutant.of("match goes back", "11", _match_goes_back, f"{_SCENARIOS}::test_the_match_index_never_goes_back"),
    Mutant.of(
        "an append below the snapshot is refused",
        "17, 18",
        changed(Raft, "step_append_entries", "if request.prev_index >= self.log.snapshot_index:", "if True:"),
        "server/test_compaction_virtual.py::test_an_old_append_to_a_compacted_log_changes_nothing",
    ),
    Mutant.of(
        "an append below the commit index is refused",
        "W3",
        changed(
            Raft,
            "step_append_entries",
            "if request.prev_index > self.log.last_index:",
            "if request.prev_index < self.commit_index:\n"
            "        raise InvariantError('cowardly refusing')\n"
            "    if request.prev_index > self.log.last_index:",
        ),
        f"{_REPLICATION}::TestFollower::test_an_append_below_the_commit_index_is_answered",
    ),
    Mutant.of(
        "leader counts what it has not synced",
        "19",
        both(
            changed(Raft, "_maybe_commit", "= self.synced_index", "= self.log.last_index"),
            changed(
                Raft,
                "propose",
                "self._effects.append(AppendToLog(entries))",
                "self._effects.append(AppendToLog(entries))\n    self.synced_index = entries.last_index",
            ),
        ),
        f"{_SCENARIOS}::test_a_single_peer_acknowledges_after_its_sync",
        f"{_REPLICATION}::test_the_leaders_own_disk_counts_only_when_it_is_synced",
    ),
    Mutant.of(
        "a second leader of a term is followed",
        "W25",
        changed(Raft, "_follow", "if self.is_leader or self.leader_id not in (None, leader_id):", "if False:"),
        f"{_REPLICATION}::TestFollower::test_a_second_leader_in_a_term_stops_the_peer",
        f"{_OWN}::TestWhatAFollowerBelieves::test_a_second_leader_of_the_term_stops_the_peer",
    ),
    Mutant.of(
        "conflicts are found one by one",
        "W26",
        changed(
            Raft,
            "_refuse_append",
            "start = self.log.first_index_of_term_at(request.prev_index)",
            "start = request.prev_index",
        ),
        f"{_REPLICATION}::TestFollower::test_says_where_to_go_on_after_a_conflict",
    ),
    Mutant.of(
        "a follower that has lost its data is asked on and on",
        "28",
        changed(Raft, "_leave_alone", "progress.next = self.log.last_index + 1\n", "pass\n"),
        f"{_REPLICATION}::test_a_follower_that_has_lost_its_data_is_not_asked_in_a_loop",
    ),
    Mutant.of(
        "a follower that has lost its data is counted",
        "28",
        changed(Raft, "_maybe_commit", " if not each.has_lost_data", ""),
        (_TRANSCRIPT, {"name": "28_follower_that_lost_its_disk"}),
    ),
    Mutant.of(
        "a follower that has lost its data confirms reads",
        "28",
        changed(Raft, "step_append_reply", "    else:\n", "    else:\n        self.reads.answered(peer_id, count)\n"),
        "server/test_read_index.py::test_a_follower_that_has_lost_its_data_confirms_nothing",
    ),
    # --- snapshots ---
    Mutant.of(
        "a log that does not match stays behind a snapshot",
        "23",
        changed(
            Raft,
            "snapshot_installed",
            "if self.log.term_at(index) == term:",
            "if self.log.term_at(index) is not None:",
        ),
        (f"{_INSTALL}::test_a_log_that_does_not_match_gives_way", {"term": 1}),
    ),
    Mutant.of(
        "an older snapshot is taken",
        "W4",
        changed(
            Raft,
            "step_install_snapshot",
            "SnapshotReply.HAVE if index <= self.commit_index else SnapshotReply.WANTED",
            "SnapshotReply.WANTED",
        ),
        f"{_INSTALL}::test_an_older_snapshot_is_not_taken",
    ),
    Mutant.of(
        "a snapshot without a configuration leaves the old one",
        "W6",
        changed(
            Raft, "snapshot_installed", "self.is_configuration_known = False", "self.is_configuration_known = True"
        ),
        f"{_INSTALL}::test_without_a_configuration_a_peer_stands_for_election_only_when_the_leader_confirms_its_own",
    ),
    # --- membership ---
    Mutant.of(
        "members change without a joint configuration",
        "29",
        changed(
            config_updates,
            "change_to",
            "return current.joint_with(tuple(peers))",
            "return ClusterConfiguration(tuple(peers))",
        ),
        f"{_MEMBERSHIP}::test_two_changes_of_two_leaders_have_no_disjoint_majorities",
    ),
    Mutant.of(
        "new majority is enough",
        "section 6",
        _new_majority_is_enough,
        f"{_SCENARIOS}::test_a_joint_configuration_needs_both_majorities",
    ),
    Mutant.of(
        "configuration outlives its entry",
        "30, W7",
        _configuration_outlives_its_entry,
        f"{_REPLICATION}::TestFollower::test_a_configuration_counts_at_once_and_goes_with_its_entry",
        (f"{_MEMBERSHIP}::test_a_configuration_that_is_truncated_gives_way_to_the_one_before", {"restart": False}),
    ),
    Mutant.of(
        "only who began a change ends it",
        "31, W9",
        changed(
            Raft,
            "wants_final_configuration",
            "self.is_leader and",
            "self.is_leader and self.log.term_at(self.configurations.current_index) == self.current_term and",
        ),
        (f"{_MEMBERSHIP}::test_a_new_leader_leaves_a_joint_configuration_that_it_took_over", {"seed": 0}),
    ),
    Mutant.of(
        "a new leader appends nothing",
        "W9, 31",
        changed(
            Raft,
            "become_leader",
            "    self._effects.append(CheckpointToLog(index, self.current_term))\n"
            "    self.log.append(index, [(index, self.current_term)])\n",
            "",
        ),
        f"{_REPLICATION}::test_a_new_leader_appends_a_checkpoint_that_commits_what_was_there",
    ),
    Mutant.of(
        "the final configuration does not wait",
        "32",
        changed(
            Raft,
            "wants_final_configuration",
            "self.configurations.current_index <= self.commit_index",
            "True",
        ),
        f"{_MEMBERSHIP}::test_the_final_configuration_waits_for_the_joint_one_to_commit",
    ),
    Mutant.of(
        "strangers are not voted for",
        "33",
        changed(Raft, "_may_vote_for", "return self._has_less_than(request) and", "return False and"),
        f"{_MEMBERSHIP}::TestStrangers::test_they_elect_one_of_them",
    ),
    Mutant.of(
        "who is no member does not vote",
        "34",
        changed(Raft, "step_request_vote", "(Role.FOLLOWER, Role.CLIENT)", "(Role.FOLLOWER,)"),
        f"{_MEMBERSHIP}::test_a_member_votes_although_it_does_not_know_that_it_is_one",
    ),
    Mutant.of(
        "a removed leader leaves at once",
        "W10",
        both(
            changed(Raft, "is_removed", "and not self.is_changing", ""),
            changed(
                Engine, "_make_way", "if self.last_applied < self.raft.configurations.current_index and", "if False and"
            ),
        ),
        (_TRANSCRIPT, {"name": "w10_removed_leader_steps_down_last"}),
    ),
    Mutant.of(
        "an id that comes back is the peer that it was",
        "36",
        changed(Raft, "propose", "self._forget(peer_id)", "del self.leaving[peer_id]"),
        (_TRANSCRIPT, {"name": "36_removed_wiped_added_again"}),
    ),
)
