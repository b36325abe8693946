"""The contract of `zmqraft.api.LogBase`, as tests: random operations against a plain list, and each promise by itself.

Knows nothing of how a log is stored. The rule: only what LogBase says is checked, so that any log that passes can take
the place of the one that ships.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import ClassVar

from zmqraft.api.log import LogBase
from zmqraft.api.snapshot import SnapshotContext
from zmqraft.protocol.entry import EntryBatch, EntryType, LogEntry
from zmqraft.testing.contract import check, check_refused
from zmqraft.testing.entries import batch_of, make_entry, random_entry, read_all
from zmqraft.testing.install_contract import PEERS, InstallContract, compact_log

__all__ = ["LogContract"]


class LogContract(InstallContract):
    """Derive from this, and implement `open_log`."""

    #: Each makes another run of the random tests.
    seeds: ClassVar[Sequence[int]] = range(12)

    @abstractmethod
    def open_log(self, name: str, snapshot: tuple[int, int, bytes] = (0, 0, b"")) -> LogBase:
        """The log called ``name`` as the first process that opens it finds it, or the next one.

        At first it is empty, above a snapshot of this index and term with this data. Each later call with the name
        closes what the one before returned, and returns what is found then: all that was synced, and maybe more.
        """

    # --- random operations ------------------------------------------------------------------------------------------

    def test_random_operations_against_a_list(self) -> None:
        """Appending, truncating, syncing and opening anew, in any order."""
        for seed in self.seeds:
            self._operate(Random(seed), f"random-{seed}")

    def _operate(self, random: Random, name: str) -> None:
        model = _Model()
        log = self.open_log(name)
        term = 1
        for _ in range(60):
            action = random.random()
            if action < 0.6:
                entries = []
                for index in range(log.last_index + 1, log.last_index + 1 + random.choice([1, 1, 2, 5, 12, 30])):
                    term += random.random() < 0.05
                    entries.append(random_entry(random, index, term))
                log.append(EntryBatch.from_entries(entries))
                model.entries += entries
            elif action < 0.75:
                index = random.randint(0, log.last_index) if random.random() < 0.3 else max(log.last_index - 3, 0)
                log.truncate_after(index)
                model.truncate_after(index)
            elif action < 0.85:
                log.sync()
            elif action < 0.95:
                log.sync()
                log = self.open_log(name)
                model.forgotten = 0
            model.check(log, random)
        check(read_all(log), model.entries, f"all entries ({name})")
        log.close()

    def test_forgetting_requests_from_the_oldest_on(self) -> None:
        """`forget_requests` forgets ids up to the first that is not old enough, and `prune_index` follows."""
        for seed in self.seeds:
            self._forget(Random(seed), f"forgetting-{seed}")

    def _forget(self, random: Random, name: str) -> None:
        log = self.open_log(name)
        entries = [random_entry(random, index, 1) for index in range(1, 40)]
        log.append(EntryBatch.from_entries(entries))
        model = _Model()
        model.entries += entries
        for seconds in sorted(random.sample(range(1000, 1045), 6)):
            log.forget_requests(seconds)
            model.forget(seconds)
            remembered = model.remembered()
            check(log.prune_index, remembered[0].index - 1 if remembered else log.last_index, "prune_index")
            for entry in entries:
                check(log.find_request(entry.request_id), model.find(entry.request_id), f"find_request of {entry}")
        log.close()

    # --- each promise -----------------------------------------------------------------------------------------------

    def test_an_empty_log(self) -> None:
        """It begins with entry 1, above the empty snapshot."""
        log = self.open_log("empty")
        check((log.first_index, log.last_index, log.last_term), (1, 0, 0), "first_index, last_index, last_term")
        check((log.snapshot.index, log.snapshot.term, log.snapshot.size), (0, 0, 0), "the snapshot")
        check(log.snapshot.read(0, 10), b"", "the data of the snapshot")
        check((log.term_runs(), log.config_indexes(), log.prune_index), ([], [], 0), "runs, configs, prune_index")
        check(log.find_request(bytes(12)), None, "find_request of no id")
        check_refused(ValueError, "reading what is not there", log.read, 1, 1, 100)
        log.sync()
        log = self.open_log("empty")
        check((log.first_index, log.last_index), (1, 0), "first_index and last_index after opening anew")
        log.close()

    def test_what_was_synced_is_found_by_the_next_process(self) -> None:
        """And of what was not synced nothing is changed, nor is there a gap."""
        log = self.open_log("synced")
        entries = [make_entry(index, 1 + index // 10, b"%d" % index) for index in range(1, 41)]
        log.append(batch_of(*entries[:25]))
        log.sync()
        log.append(batch_of(*entries[25:]))
        log = self.open_log("synced")
        found = read_all(log)
        check(found, entries[: max(len(found), 25)], "the entries after opening anew")
        log.close()

    def test_begin_sync(self) -> None:
        """What it returns makes durable what was there, in another thread; entries may be appended meanwhile."""
        log = self.open_log("begin-sync")
        entries = [make_entry(index) for index in range(1, 11)]
        log.append(batch_of(*entries[:5]))
        finish = log.begin_sync()
        if finish is not None:
            with ThreadPoolExecutor(1) as executor:
                synced = executor.submit(finish)
                log.append(batch_of(*entries[5:8]))
                synced.result()
        log.append(batch_of(*entries[log.last_index :]))
        log.sync()
        check(log.begin_sync(), None, "begin_sync when everything is durable")
        log = self.open_log("begin-sync")
        check(read_all(log), entries, "the entries after opening anew")
        log.close()

    def test_a_slice_of_a_batch_is_appended_from_its_own_bytes(self) -> None:
        """Batches share their bytes with others."""
        log = self.open_log("slice")
        whole = batch_of(*(make_entry(index, data=b"%d" % index) for index in range(1, 21)))
        log.append(whole.slice(1, 5))
        log.append(whole.slice(6, 17))
        check(read_all(log), list(whole)[:17], "the entries")
        log.close()

    def test_reading_within_a_size(self) -> None:
        """As many entries as fit, but at least one."""
        log = self.open_log("reading")
        entries = [make_entry(index, data=b"x" * index) for index in range(1, 11)]
        log.append(batch_of(*entries))
        sizes = [len(entry.to_bytes()) for entry in entries]
        for size_max, count in ((0, 1), (sizes[0], 1), (sum(sizes[:3]) - 1, 2), (sum(sizes[:3]), 3), (1 << 30, 10)):
            check(list(log.read(1, 10, size_max)), entries[:count], f"the entries that fit in {size_max} bytes")
        check(list(log.read(4, 6, 1 << 30)), entries[3:6], "entries 4 to 6")
        for first, last in ((0, 1), (1, 11), (11, 11), (5, 4)):
            check_refused(ValueError, f"reading {first} to {last}", log.read, first, last, 100)
        log.close()

    def test_what_does_not_follow_is_refused_and_changes_nothing(self) -> None:
        """By its index or by its term."""
        log = self.open_log("refused")
        log.append(batch_of(make_entry(1, 2), make_entry(2, 3)))
        for bad in (
            batch_of(make_entry(2, 3)),
            batch_of(make_entry(4, 3)),
            batch_of(make_entry(3, 2)),
            batch_of(make_entry(3, 5), make_entry(4, 4)),
        ):
            check_refused(ValueError, f"appending {bad}", log.append, bad)
            state = (log.last_index, log.last_term, log.term_runs())
            check(state, (2, 3, [(1, 2), (2, 3)]), "last_index, last_term, term_runs")
            expected = 2 if bad.first_index == 2 else None
            check(log.find_request(bad.request_id(0)), expected, "find_request of what was refused")
        log.append(EntryBatch.empty(3))
        log.append(batch_of(make_entry(3, 3)))
        check(read_all(log), [make_entry(1, 2), make_entry(2, 3), make_entry(3, 3)], "the entries")
        log.close()

    def test_truncating(self) -> None:
        """Down to nothing, but not below the first index; beyond the end nothing happens."""
        log = self.open_log("truncating")
        log.append(batch_of(make_entry(1), make_entry(2)))
        check_refused(ValueError, "truncating after -1", log.truncate_after, -1)
        log.truncate_after(2)
        log.truncate_after(5)
        check(log.last_index, 2, "last_index")
        log.truncate_after(1)
        check((log.last_index, log.find_request(make_entry(2).request_id)), (1, None), "what is left of entry 2")
        log.truncate_after(0)
        check((log.last_index, log.last_term), (0, 0), "last_index and last_term")
        log.close()

    def test_appending_after_truncating_before_syncing(self) -> None:
        """The next process finds the new entries, and none of the old ones."""
        log = self.open_log("replacing")
        log.append(batch_of(*(make_entry(index) for index in range(1, 31))))
        log.sync()
        log.truncate_after(5)
        new = [make_entry(6, 2, b"new"), make_entry(7, 2, b"x" * 100, EntryType.CONFIG)]
        log.append(batch_of(*new))
        log.sync()
        log = self.open_log("replacing")
        check(read_all(log), [*(make_entry(index) for index in range(1, 6)), *new], "the entries")
        check(log.config_indexes(), [7], "config_indexes")
        check(log.find_request(make_entry(20).request_id), None, "find_request of an entry that was removed")
        log.close()

    def test_a_log_above_a_snapshot(self) -> None:
        """It begins behind the snapshot, whose term counts as that of the entry before."""
        log = self.open_log("above", (50, 6, b"snapshot"))
        state = (log.first_index, log.last_index, log.last_term, log.prune_index)
        check(state, (51, 50, 6, 50), "first_index, last_index, last_term, prune_index")
        check([log.term_at(index) for index in (49, 50, 51)], [None, 6, None], "term_at 49 to 51")
        check((log.snapshot.index, log.snapshot.term, log.snapshot.size), (50, 6, 8), "the snapshot")
        check(log.snapshot.read(4, 100), b"shot", "the data of the snapshot")
        check_refused(ValueError, "a term below the snapshot's", log.append, batch_of(make_entry(51, 5)))
        log.append(batch_of(make_entry(51, 6), make_entry(52, 7)))
        check(log.term_runs(), [(51, 6), (52, 7)], "term_runs")
        check_refused(ValueError, "truncating below the snapshot", log.truncate_after, 49)
        log.sync()
        log = self.open_log("above", (50, 6, b"snapshot"))
        check(read_all(log), [make_entry(51, 6), make_entry(52, 7)], "the entries after opening anew")
        log.truncate_after(50)
        check((log.last_index, log.last_term), (50, 6), "last_index and last_term")
        log.close()

    def test_compacting(self) -> None:
        """The first index moves up behind the snapshot, ids stay, and who reads the snapshot before goes on."""
        log = self.open_log("compacting")
        entries = [make_entry(index, 1 + index // 15) for index in range(1, 31)]
        log.append(batch_of(*entries))
        log.sync()
        sizes = [len(entry.to_bytes()) for entry in entries]
        for index in (1, 14, 15, 30):
            before = log.snapshot
            compact_log(log, index, b"state at %d" % index)
            check((log.first_index, log.last_index), (index + 1, 30), "first_index and last_index")
            check((log.snapshot.index, log.snapshot.term), (index, entries[index - 1].term), "the snapshot")
            check(log.snapshot.read(0, 100), b"state at %d" % index, "the data of the snapshot")
            check(log.snapshot.context, SnapshotContext(PEERS, 1, log.packed_requests(index), 7), "its context")
            check(
                before.read(0, 100), b"state at %d" % before.index if before.index else b"", "the data of the old one"
            )
            check([log.term_at(at) for at in (index - 1, index)], [None, log.snapshot.term], "term_at the snapshot")
            check(log.size_between(index + 1, 30), sum(sizes[index:]), "size_between")
            check(log.find_request(entries[0].request_id), 1, "find_request of an entry below the snapshot")
            check_refused(ValueError, "reading below the first index", log.read, index, 30, 100)
        log = self.open_log("compacting")
        check((log.first_index, log.last_index, log.last_term), (31, 30, 3), "what the next process finds")
        check(log.find_request(entries[0].request_id), 1, "find_request after opening anew")
        log.close()

    def test_what_is_no_compaction_is_refused(self) -> None:
        """By its index or its term; and nothing has changed."""
        log = self.open_log("no compaction")
        log.append(batch_of(*(make_entry(index) for index in range(1, 11))))
        log.sync()
        for index in (-1, 0, 11):
            check_refused(ValueError, f"a snapshot at {index}", log.begin_snapshot, index, SnapshotContext())
        stale = log.begin_snapshot(8, SnapshotContext())([b"state"])
        log.truncate_after(6)
        for call in (log.begin_compaction, log.compact):
            check_refused(ValueError, "a snapshot above the last index", call, stale)
        log.append(batch_of(make_entry(7, 2), make_entry(8, 2)))
        log.sync()
        for call in (log.begin_compaction, log.compact):
            check_refused(ValueError, "a snapshot of another term", call, stale)
        check((log.first_index, log.snapshot.index, len(read_all(log))), (1, 0, 8), "the log")
        log.close()

    def test_pruning_keeps_what_is_remembered(self) -> None:
        """Of entries below the snapshot only those go whose ids are forgotten."""
        log = self.open_log("pruning")
        entries = [make_entry(index) for index in range(1, 61)]
        log.append(batch_of(*entries))
        log.sync()
        compact_log(log, 50, b"state")
        for forgotten in (20, 60):
            log.forget_requests(int.from_bytes(entries[forgotten - 1].request_id[:4], "big") + 1)
            remove = log.begin_prune()
            if remove is not None:
                remove()
            check(
                [log.find_request(entry.request_id) for entry in entries[forgotten:]],
                [*range(forgotten + 1, 61)],
                "ids",
            )
            log = self.open_log("pruning")
            check(
                [log.find_request(entry.request_id) for entry in entries[forgotten:]],
                [*range(forgotten + 1, 61)],
                "ids",
            )
            check(read_all(log), entries[50:], "the entries")
        log.close()

    def test_preparing_changes_nothing(self) -> None:
        """`prepare` does ahead of time what an append would do."""
        log = self.open_log("preparing")
        entries = [make_entry(index) for index in range(1, 61)]
        for entry in entries:
            if log.wants_preparation:
                log.prepare()
            log.append(batch_of(entry))
        check(read_all(log), entries, "the entries")
        log.close()

    def test_closing_twice(self) -> None:
        """Nothing happens the second time."""
        log = self.open_log("closing")
        log.close()
        log.close()


class _Model:
    """A log as a list of entries, with nothing clever in it."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.forgotten = 0

    def truncate_after(self, index: int) -> None:
        del self.entries[index:]
        self.forgotten = min(self.forgotten, index)

    def forget(self, before_seconds: int) -> None:
        for entry in self.remembered():
            if int.from_bytes(entry.request_id[:4], "big") >= before_seconds:
                break
            self.forgotten = entry.index

    def remembered(self) -> list[LogEntry]:
        """The entries whose ids are remembered: the first ones with their id, above those forgotten."""
        seen: set[bytes] = set()
        first = []
        for entry in self.entries:
            if any(entry.request_id) and not entry.is_checkpoint and entry.request_id not in seen:
                seen.add(entry.request_id)
                first.append(entry)
        return [entry for entry in first if entry.index > self.forgotten]

    def find(self, request_id: bytes) -> int | None:
        return next((entry.index for entry in self.remembered() if entry.request_id == request_id), None)

    def check(self, log: LogBase, random: Random) -> None:
        entries = self.entries
        check((log.first_index, log.last_index), (1, len(entries)), "first_index and last_index")
        check(log.last_term, entries[-1].term if entries else 0, "last_term")
        check(log.term_runs(), EntryBatch.from_entries(entries).term_runs() if entries else [], "term_runs")
        check(log.config_indexes(), [entry.index for entry in entries if entry.is_config], "config_indexes")
        check((log.term_at(0), log.term_at(len(entries) + 1)), (0, None), "term_at before and behind the entries")
        for _ in range(5 if entries else 0):
            first = random.randint(1, len(entries))
            last = random.randint(first, len(entries))
            size_max = random.choice([0, 1, 50, 200, 10_000])
            batch = log.read(first, last, size_max)
            check(list(batch), entries[first - 1 : batch.last_index], f"entries {first} to {batch.last_index}")
            check(first <= batch.last_index <= last, True, f"reading {first} to {last} ends within")
            check(len(batch) == 1 or batch.size <= size_max, True, f"{batch} is at most {size_max} bytes")
            entry = entries[first - 1]
            check(log.term_at(first), entry.term, f"term_at {first}")
            check(log.find_request(entry.request_id), self.find(entry.request_id), f"find_request of {entry}")
