"""Bugs of the engine: what is stored, applied and answered, and when."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from support.mutant import Mutant, both, changed, replaced, without
from zmqraft.core.raft import Raft
from zmqraft.core.read_index import ReadIndex
from zmqraft.server import compaction, recovery
from zmqraft.server.client_requests import ClientRequests
from zmqraft.server.config_updates import ConfigUpdates
from zmqraft.server.engine import Engine
from zmqraft.server.peer_requests import PeerRequests
from zmqraft.server.read_requests import ReadRequests
from zmqraft.server.snapshot_transfer import Chunk, IncomingSnapshot

_ELECTIONS, _READS = "server/test_elections.py", "server/test_read_index.py"
_UPDATES, _SCENARIOS = "server/test_updates.py", "testing/test_scenarios.py"
_INSTALL, _SYNC = "server/test_install_snapshot.py", "server/test_background_sync.py"


def _vote_is_not_stored() -> contextlib.AbstractContextManager[object]:
    return without(Engine, "_store_vote")


def _request_ids_are_not_looked_up() -> contextlib.AbstractContextManager[object]:
    def intake(self: ClientRequests) -> Any:
        original = self.__dict__["_log"]

        class Blind:
            request_index = None

            def find_request(self, request_id: bytes) -> None:
                return None

        self.__dict__["_log"] = Blind()
        try:
            return make_intake(self)
        finally:
            self.__dict__["_log"] = original

    make_intake = ClientRequests._new_intake

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        with (
            mock.patch.object(ClientRequests, "_new_intake", intake),
            mock.patch.object(ClientRequests, "_find_request", lambda self, request_id: self.intake.find(request_id)),
        ):
            yield

    return patch()


def _applied_before_it_is_committed() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def take(self: Engine, size_max: int) -> Any:
            committed = self.raft.commit_index
            self.raft.commit_index = self.raft.synced_index
            try:
                return original(self, size_max)
            finally:
                self.raft.commit_index = committed

        return take

    return replaced(Engine, "take_committed", make)


SERVER = (
    Mutant.of(
        "vote is not stored",
        "1, 3, W1",
        _vote_is_not_stored,
        f"{_ELECTIONS}::test_one_vote_in_a_term_also_over_a_restart",
        f"{_ELECTIONS}::test_a_vote_is_on_disk_before_it_is_told",
    ),
    Mutant.of(
        "a vote outlives its term on disk",
        "W27",
        changed(
            recovery,
            "open_raft",
            "current_term, voted_for = log.last_term, None",
            "current_term = log.last_term",
        ),
        f"{_ELECTIONS}::test_a_term_below_the_logs_is_raised_and_its_vote_forgotten",
    ),
    Mutant.of(
        "a term below the log's is taken as it is",
        "20",
        changed(recovery, "open_raft", "if current_term < log.last_term:", "if False:"),
        f"{_ELECTIONS}::test_a_term_below_the_logs_is_raised_and_its_vote_forgotten",
    ),
    Mutant.of(
        "applied before it is committed",
        "figure 3",
        _applied_before_it_is_committed,
        f"{_SCENARIOS}::test_an_isolated_leader_applies_nothing",
    ),
    Mutant.of(
        "what was applied before a restart is not applied again",
        "50",
        changed(Engine, "__init__", "self._submitted = last_applied", "self._submitted = log.last_index"),
        (f"{_SCENARIOS}::test_what_is_acknowledged_outlives_a_power_cut_of_all", {"size": 3, "background": False}),
    ),
    # --- syncs in the background ---
    Mutant.of(
        "a sync of before counts in a later term",
        "15",
        both(
            changed(Engine, "synced", "if sync is self._sync:", "if True:"),
            changed(Raft, "log_synced", "elif not self.is_leader or index > self.log.last_index:", "elif False:"),
        ),
        f"{_SYNC}::test_a_sync_that_ends_after_its_leader_was_deposed_counts_for_nothing",
    ),
    Mutant.of(
        "a leader whose disk hangs leads on",
        "46",
        changed(Engine, "_check_sync", "if self._sync is not None and", "if False and"),
        f"{_SYNC}::test_a_leader_whose_disk_hangs_steps_down",
    ),
    # --- updates ---
    Mutant.of(
        "updates outlive the term in which they came",
        "14",
        both(
            changed(ClientRequests, "leadership_lost", "self.intake.close()\n", "pass\n"),
            changed(
                Engine,
                "begin_turn",
                "if self.raft.is_leader:\n        self._propose",
                "if True:\n        self._propose",
            ),
        ),
        f"{_UPDATES}::test_an_update_that_came_with_the_end_of_leadership_is_not_stamped_with_a_later_term",
    ),
    Mutant.of(
        "request ids are not looked up",
        "42",
        _request_ids_are_not_looked_up,
        f"{_UPDATES}::test_a_repeated_id_is_known_to_the_next_leader_and_after_restarts",
    ),
    Mutant.of(
        "request ids do not travel with a snapshot",
        "42",
        changed(
            IncomingSnapshot,
            "_take",
            "context = parse_context(bytes(self._context))",
            "parsed = parse_context(bytes(self._context))\n"
            "            context = SnapshotContext(parsed.peers, parsed.peers_index)",
        ),
        f"{_INSTALL}::test_request_ids_travel_with_the_snapshot",
    ),
    Mutant.of(
        "ids that were forgotten are taken when the clock is set back",
        "W21",
        changed(
            ClientRequests,
            "requests_forgotten_until",
            "max(self._forgotten_before, self._log.requests_forgotten_until)",
            "0",
        ),
        f"{_UPDATES}::test_an_id_that_was_forgotten_stays_refused_when_the_clock_is_set_back",
    ),
    Mutant.of(
        "the last reply goes to the route of the first request",
        "W22",
        changed(ClientRequests, "_request_update", "self._waiting.add(index, identity, request_id, 0)", "pass"),
        f"{_UPDATES}::test_a_repetition_before_the_commit_is_accepted_and_answered_on_its_own_route",
    ),
    Mutant.of(
        "updates without bound are taken",
        "W23",
        both(
            changed(ClientRequests, "_has_room", "return len(self._waiting) <", "return True or len(self._waiting) <"),
            changed(
                ClientRequests,
                "open_intake",
                "room_count=UNCOMMITTED_COUNT_MAX - len(self._waiting)",
                "room_count=1 << 20",
            ),
        ),
        f"{_UPDATES}::test_what_a_leader_without_a_majority_holds_is_bounded",
    ),
    Mutant.of(
        "any secret is good",
        "W24",
        changed(Engine, "_receive", "if not hmac.compare_digest(secret, self.settings.secret):", "if False:"),
        ("server/test_hostile_messages.py::test_an_engine_takes_anything", {"seed": 0, "role": "leader"}),
    ),
    Mutant.of(
        "a message that does not decode stops the peer",
        "W24",
        changed(Engine, "receive_other", 'self._drop("malformed message", error)', "raise"),
        ("server/test_hostile_messages.py::test_an_engine_takes_anything", {"seed": 0, "role": "follower"}),
    ),
    # --- members ---
    Mutant.of(
        "a change is done when it is appended",
        "W10",
        changed(ConfigUpdates, "_done_index", "return index if index <= done_until else None", "return index"),
        "server/test_membership.py::test_a_leader_that_is_removed_leads_until_the_final_configuration_commits",
    ),
    Mutant.of(
        "a configuration is stored before its entry, and missed without it",
        "W8",
        both(
            changed(
                Engine,
                "finish_turn",
                "self._write_unwritten()\n",
                "self._write_unwritten()\n    self._follow_configuration()\n",
            ),
            changed(
                recovery,
                "recover_configurations",
                "history = ConfigurationHistory(base, base_index)\n",
                "history = ConfigurationHistory(base, base_index)\n"
                "    if (stored_index or 0) > log.last_index:\n"
                "        raise CorruptionError('config not appended to the log')\n",
            ),
        ),
        (f"{_SCENARIOS}::test_a_power_cut_at_each_step_of_a_change", {"who": "leader"}),
    ),
    # --- reads ---
    Mutant.of(
        "reads are answered by whoever believes that it leads",
        "38, W11",
        changed(ReadRequests, "tick", "while waiting and waiting[0][0] <= confirmed:", "while waiting:"),
        f"{_READS}::test_a_leader_that_is_cut_off_tells_nothing",
    ),
    Mutant.of(
        "a new leader answers reads before an entry of its term",
        "39",
        both(
            changed(
                ReadRequests, "request", "raft.commit_index if raft.commits_in_term else None", "raft.commit_index"
            ),
            changed(ReadRequests, "tick", " or not raft.commits_in_term", ""),
        ),
        f"{_READS}::test_a_new_leader_waits_for_an_entry_of_its_own_term",
    ),
    Mutant.of(
        "answers of before a read confirm it",
        "40",
        changed(
            ReadIndex, "answered", "number = under_way.popleft()", "number = under_way.popleft() * 0 + self._newest"
        ),
        f"{_READS}::test_answers_that_were_under_way_when_the_read_came_do_not_count",
    ),
    # --- snapshots ---
    Mutant.of(
        "entries are applied over an installed snapshot",
        "22",
        changed(Engine, "_install", "self._submitted = snapshot.index", "pass"),
        f"{_SCENARIOS}::test_a_snapshot_is_installed_in_the_middle_of_everything",
    ),
    Mutant.of(
        "a chunk that comes twice is written twice",
        "24",
        both(
            changed(IncomingSnapshot, "take", "if chunk.offset != self._offset:", "if False:"),
            changed(PeerRequests, "_install_snapshot", "if last is not None and last[0] == key:", "if False:"),
        ),
        f"{_INSTALL}::test_a_chunk_that_comes_twice_counts_once",
    ),
    Mutant.of(
        "another leader's chunks go on where the last one's ended",
        "W5",
        changed(Chunk, "key", "(self.leader_id, self.term, self.index,", "(self.index,"),
        f"{_INSTALL}::test_another_leader_begins_anew",
    ),
    Mutant.of(
        "the configuration of a snapshot is not taken",
        "25, W6",
        both(
            changed(Engine, "_install", "if context.peers is not None:", "if False:"),
            changed(Raft, "snapshot_installed", "self.is_configuration_known = False", "pass"),
        ),
        f"{_INSTALL}::test_the_configuration_travels_with_the_snapshot",
    ),
    Mutant.of(
        "a snapshot has the newest configuration",
        "25, 26",
        changed(compaction, "configuration_at", "if at <= index:", "if True:"),
        "server/test_compaction.py::test_the_configuration_at_an_index_is_what_was_committed_there",
    ),
    Mutant.of(
        "a peer does not look into its snapshot for the configuration",
        "W7",
        changed(recovery, "recover_configurations", "if context.peers is not None:", "if False:"),
        "server/test_compaction.py::test_a_peer_starts_with_the_configuration_of_its_snapshot",
    ),
)
