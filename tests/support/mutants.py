"""Known bugs of Raft implementations as switches: each patches the code under test while its context lasts.

``python tests/support/mutants.py`` looks for the first seed of the simulator that catches each, up to 2,000.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from zmqraft.core import progress, raft
from zmqraft.core.configuration import ConfigurationHistory
from zmqraft.core.raft import Raft
from zmqraft.errors import StorageError
from zmqraft.server.client_requests import ClientRequests
from zmqraft.server.engine import Engine
from zmqraft.storage import MemoryLog
from zmqraft.storage.index_file import IndexFile
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.testing.simulator import RunResult, run_seed

TESTS = Path(__file__).parent.parent
#: Those that 2,000 seeds did not find: they need more leaders in a row than faults bring about, and a power cut between
#: a truncation and the next sync, which brings back nothing that matters.
NOT_FOUND_BY_SEEDS = frozenset(
    {"match survives its term", "older terms commit by counting", "truncation is not synced"}
)


@dataclass(frozen=True)
class Mutant:
    """A bug, the rows of FAULTS that tell of it, and the test that is written for it."""

    name: str
    rows: str
    patch: Callable[[], contextlib.AbstractContextManager[object]]
    #: ``file::test``, or ``file::Class::test``; called without arguments, or with these.
    scenario: str
    arguments: tuple[Any, ...] = ()

    def run_scenario(self) -> None:
        """As pytest would; raises what the test does."""
        path, *names = self.scenario.split("::")
        found: Any = _module(path)
        for name in names:
            found = getattr(found, name)
            if isinstance(found, type):
                found = found()
        found(*(argument() if callable(argument) else argument for argument in self.arguments))


def _module(path: str) -> ModuleType:
    name = f"scenarios.{path.replace('/', '.').removesuffix('.py')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> contextlib.AbstractContextManager[object]:
    """``make`` gets the original and returns what takes its place."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


def _without(owner: Any, name: str, result: object = None) -> contextlib.AbstractContextManager[object]:
    """A method that does nothing."""
    return mock.patch.object(owner, name, return_value=result)


def _vote_is_not_stored() -> contextlib.AbstractContextManager[object]:
    return _without(Engine, "_store_vote")


def _vote_is_forgotten() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def follow(self: Raft, *arguments: Any) -> None:
            original(self, *arguments)
            self.voted_for = None

        return follow

    return _replaced(Raft, "_follow", make)


def _any_candidate_gets_the_vote() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def step(self: Raft, request: Any, now: float) -> Any:
            longest = type(request)(request.candidate_id, request.term, 1 << 40, request.term)
            return original(self, longest, now)

        return step

    return _replaced(Raft, "step_request_vote", make)


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

    return _replaced(Raft, "_append_missing", make)


def _unverified_entries_commit() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def step(self: Raft, request: Any, now: float) -> Any:
            reply = original(self, request, now)
            if reply is not None and reply.success:
                self._commit_to(min(request.commit_index, self.log.last_index))
            return reply

        return step

    return _replaced(Raft, "step_append_entries", make)


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
        with mock.patch.object(Raft, "_reset_progress", reset), _replaced(Raft, "_add_progress", make):
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


def _nothing_is_synced() -> contextlib.AbstractContextManager[object]:
    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        with (
            _without(IndexFile, "sync"),
            _without(MemoryLog, "sync"),
        ):
            yield

    return patch()


def _leader_counts_what_it_has_not_synced() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def propose(self: Raft, *arguments: Any) -> None:
            original(self, *arguments)
            self.synced_index = self.log.last_index

        return propose

    return _replaced(Raft, "propose", make)


def _failed_syncs_are_ignored() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def sync(self: Any) -> None:
            with contextlib.suppress(StorageError, OSError):
                original(self)

        return sync

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        with (
            _replaced(IndexFile, "sync", make),
            _replaced(MemoryLog, "sync", make),
            _without(MemoryLog, "check_writable"),
        ):
            yield

    return patch()


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


def _configuration_outlives_its_entry() -> contextlib.AbstractContextManager[object]:
    return _without(ConfigurationHistory, "truncate_after", False)


def _new_majority_is_enough() -> contextlib.AbstractContextManager[object]:
    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        def only_new(original: Any) -> Any:
            return lambda ids, voters: original(ids, voters[-1:])

        with _replaced(raft, "is_quorum", only_new), _replaced(raft, "committed_index", only_new):
            yield

    return patch()


def _new_names_are_not_synced() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def place(self: LogDirectory, spare: IndexFile) -> None:
            with _without(type(self.fs), "sync_directory"):
                original(self, spare)

        return place

    return _replaced(LogDirectory, "place_spare", make)


def _truncation_is_not_synced() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def truncate(self: IndexFile, count: int) -> None:
            with _without(type(self._fs), "fdatasync"):
                original(self, count)

        return truncate

    return _replaced(IndexFile, "truncate", make)


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

    return _replaced(Engine, "take_committed", make)


ELECTIONS, REPLICATION = "server/test_elections.py", "server/test_replication.py"


def _cluster() -> Any:
    """The fixture of server/test_updates.py."""
    cluster = _module("server/test_updates.py").VirtualCluster(3)
    cluster.start()
    cluster.leader()
    cluster.run(0.1)
    return cluster


MUTANTS = (
    Mutant(
        "vote is not stored",
        "1, 3, W1",
        _vote_is_not_stored,
        f"{ELECTIONS}::test_one_vote_in_a_term_also_over_a_restart",
    ),
    Mutant(
        "vote is forgotten", "2", _vote_is_forgotten, f"{ELECTIONS}::test_a_vote_outlives_an_append_in_the_same_term"
    ),
    Mutant(
        "any candidate gets the vote",
        "section 5.4.1",
        _any_candidate_gets_the_vote,
        f"{ELECTIONS}::test_only_an_up_to_date_candidate_gets_the_vote",
        (2, 1, False),
    ),
    Mutant(
        "older terms commit by counting", "8", _older_terms_commit_by_counting, f"{REPLICATION}::test_figure_8_by_hand"
    ),
    Mutant(
        "appends cut the log",
        "9, W2",
        _appends_cut_the_log,
        f"{REPLICATION}::TestFollower::test_cuts_only_at_a_conflict",
    ),
    Mutant(
        "unverified entries commit",
        "10, W2",
        _unverified_entries_commit,
        f"{REPLICATION}::TestFollower::test_commits_no_further_than_the_last_entry_it_compared",
    ),
    Mutant(
        "match survives its term",
        "12",
        _match_survives_its_term,
        f"{REPLICATION}::TestLeader::test_nothing_is_known_of_followers_in_a_new_term",
    ),
    Mutant(
        "match goes back",
        "11",
        _match_goes_back,
        "testing/test_scenarios.py::test_the_match_index_never_goes_back",
    ),
    Mutant(
        "nothing is synced",
        "19, 21",
        _nothing_is_synced,
        "testing/test_scenarios.py::test_what_is_acknowledged_outlives_a_power_cut_of_all",
        (3, False),
    ),
    Mutant(
        "leader counts what it has not synced",
        "19",
        _leader_counts_what_it_has_not_synced,
        "testing/test_scenarios.py::test_a_single_peer_acknowledges_after_its_sync",
    ),
    Mutant(
        "failed syncs are ignored",
        "45, W15",
        _failed_syncs_are_ignored,
        "testing/test_scenarios.py::test_a_failed_sync_stops_the_peer",
    ),
    Mutant(
        "request ids are not looked up",
        "42",
        _request_ids_are_not_looked_up,
        "server/test_updates.py::test_a_repeated_id_is_known_to_the_next_leader_and_after_restarts",
        (_cluster,),
    ),
    Mutant(
        "configuration outlives its entry",
        "30, W7",
        _configuration_outlives_its_entry,
        f"{REPLICATION}::TestFollower::test_a_configuration_counts_at_once_and_goes_with_its_entry",
    ),
    Mutant(
        "new majority is enough",
        "section 6",
        _new_majority_is_enough,
        "testing/test_scenarios.py::test_a_joint_configuration_needs_both_majorities",
    ),
    Mutant(
        "new names are not synced",
        "27, W20",
        _new_names_are_not_synced,
        "testing/test_scenarios.py::test_entries_in_a_new_file_outlive_a_power_cut",
        (0,),
    ),
    Mutant(
        "truncation is not synced",
        "23",
        _truncation_is_not_synced,
        "testing/test_scenarios.py::test_a_truncation_outlives_a_power_cut",
    ),
    Mutant(
        "applied before it is committed",
        "figure 3",
        _applied_before_it_is_committed,
        "testing/test_scenarios.py::test_an_isolated_leader_applies_nothing",
    ),
)


def first_seed(mutant: Mutant, seeds_max: int = 2000) -> RunResult | None:
    """The first seed of the simulator that catches it."""
    with mutant.patch():
        for seed in range(1, seeds_max + 1):
            result = run_seed(seed)
            if result.violation not in (None, "undelivered"):
                return result
    return None


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    for each in MUTANTS:
        if len(sys.argv) < 2 or any(word in each.name for word in sys.argv[1:]):
            began = time.process_time()
            found = first_seed(each)
            what = "not in 2,000 seeds" if found is None else f"seed {found.seed}, {found.message:.150}"
            print(f"{each.name}: {what} ({time.process_time() - began:.1f} s)", flush=True)
