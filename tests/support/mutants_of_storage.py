"""Bugs of the storage: what is on the disk, and what is made of it at the start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from support.mutant import Mutant, changed, replaced, without
from zmqraft.errors import StorageError
from zmqraft.storage import MemoryLog, log_opening, torn_tail
from zmqraft.storage.failure import FailStop, _Writing
from zmqraft.storage.file_persistence import FilePersistence
from zmqraft.storage.index_file import IndexFile
from zmqraft.storage.log_directory import LogDirectory

_SCENARIOS, _OPENING = "testing/test_scenarios.py", "storage/test_log_opening.py"
_CHECKSUMS, _SYNC = "storage/test_checksum_opening.py", "server/test_background_sync.py"


def _nothing_is_synced() -> contextlib.AbstractContextManager[object]:
    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        with (
            without(IndexFile, "sync"),
            without(MemoryLog, "sync"),
        ):
            yield

    return patch()


def _failed_syncs_are_ignored() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def sync(self: Any) -> None:
            with contextlib.suppress(StorageError, OSError):
                original(self)

        return sync

    @contextlib.contextmanager
    def patch() -> Iterator[None]:
        with (
            replaced(IndexFile, "sync", make),
            replaced(MemoryLog, "sync", make),
            without(MemoryLog, "check_writable"),
        ):
            yield

    return patch()


def _new_names_are_not_synced() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def place(self: LogDirectory, spare: IndexFile) -> None:
            with without(type(self.fs), "sync_directory"):
                original(self, spare)

        return place

    return replaced(LogDirectory, "place_spare", make)


def _truncation_is_not_synced() -> contextlib.AbstractContextManager[object]:
    def make(original: Any) -> Any:
        def truncate(self: IndexFile, count: int) -> None:
            with without(type(self._fs), "fdatasync"):
                original(self, count)

        return truncate

    return replaced(IndexFile, "truncate", make)


STORAGE = (
    Mutant.of(
        "nothing is synced",
        "19, 21",
        _nothing_is_synced,
        (f"{_SCENARIOS}::test_what_is_acknowledged_outlives_a_power_cut_of_all", {"size": 3, "background": False}),
    ),
    Mutant.of(
        "failed syncs are ignored",
        "45, W15",
        _failed_syncs_are_ignored,
        f"{_SCENARIOS}::test_a_failed_sync_stops_the_peer",
    ),
    Mutant.of(
        "a failed write is forgotten",
        "45, 47, W13, W14, W15",
        changed(FailStop, "fail", "self.failure = cause", "pass"),
        f"{_SYNC}::TestFileLog::test_one_that_fails_is_the_end_of_the_log",
    ),
    Mutant.of(
        "a failed write is passed over",
        "47, 48",
        changed(_Writing, "__exit__", "owner.fail(error)\n", "return True\n"),
        (f"{_SCENARIOS}::test_a_full_disk_stops_a_peer_and_not_the_cluster", {"who": "follower"}),
    ),
    Mutant.of(
        "new names are not synced",
        "27, W20",
        _new_names_are_not_synced,
        (f"{_SCENARIOS}::test_entries_in_a_new_file_outlive_a_power_cut", {"seed": 0}),
    ),
    Mutant.of(
        "truncation is not synced",
        "23",
        _truncation_is_not_synced,
        f"{_SCENARIOS}::test_a_truncation_outlives_a_power_cut",
    ),
    Mutant.of(
        "a half-made newest file stops the start",
        "W17",
        changed(log_opening, "_open_files", "if position != len(names) - 1:", "if True:"),
        (f"{_OPENING}::test_a_newest_file_cut_off_in_its_header", {"last": 7}),
    ),
    Mutant.of(
        "an interrupted installation is not noticed",
        "W18",
        changed(
            log_opening,
            "_match_snapshot",
            "if last_index < snapshot.index or _conflicts(contents, snapshot):",
            "if False:",
        ),
        (f"{_OPENING}::test_an_interrupted_installation_is_finished", {"index": 20, "term": 2}),
    ),
    Mutant.of(
        "zeros at the end are taken for entries",
        "49",
        changed(torn_tail, "_count_before_zeros", "while count:", "while False:"),
        (f"{_OPENING}::test_entries_at_the_end_that_are_all_zero", {"zeroed": 3}),
    ),
    Mutant.of(
        "checksums are not compared",
        "W16, W19",
        changed(IndexFile, "read_unmatched", "self.unmatched(data, low, high) if self._slots_offset else []", "[]"),
        (f"{_CHECKSUMS}::test_a_damaged_entry", {"closed": True, "index": 3, "first": 1, "byte": 19}),
    ),
    Mutant.of(
        "what a failed sync has left in the cache is believed",
        "W15",
        changed(FilePersistence, "_open", "if content and self._always_durable:", "if False:"),
        f"{_SCENARIOS}::TestPagesThatAFailedSyncHasDropped::test_a_vote",
    ),
)
