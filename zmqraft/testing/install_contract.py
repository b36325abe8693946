"""The part of the contract of `zmqraft.api.LogBase` that is about a snapshot which a leader sends.

Knows nothing of how a log is stored. The rule: as `log_contract`, which this is a part of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from zmqraft.api.log import LogBase
from zmqraft.api.snapshot import SnapshotBase, SnapshotContext
from zmqraft.errors import StorageError
from zmqraft.testing.contract import check, check_refused
from zmqraft.testing.entries import batch_of, make_entry, read_all, request_id_at

__all__ = ["PEERS", "InstallContract", "compact_log"]

PEERS = [("1", "tcp://127.0.0.1:8047"), ("2", "tcp://127.0.0.1:8147")]


def compact_log(log: LogBase, index: int, data: bytes) -> None:
    """Take a snapshot and compact the log with it, at once."""
    context = SnapshotContext(PEERS, 1, log.packed_requests(index), 7)
    snapshot = log.begin_snapshot(index, context)([data])
    log.begin_compaction(snapshot)()
    log.compact(snapshot)


def receive_snapshot(log: LogBase, index: int, term: int, data: bytes, context: SnapshotContext) -> SnapshotBase:
    """Receive a snapshot in pieces of a few bytes, as if a leader had sent it."""
    receiver = log.begin_receive(index, term, len(data), context)
    for start in range(0, len(data), 5):
        check(receiver.offset, start, "the offset of the next piece")
        receiver.write(data[start : start + 5])
    return receiver.finish()


class InstallContract(ABC):
    """The tests of `LogBase.begin_receive` and `LogBase.install`."""

    @abstractmethod
    def open_log(self, name: str, snapshot: tuple[int, int, bytes] = (0, 0, b"")) -> LogBase:
        """As `LogContract.open_log`."""

    def test_receiving_a_snapshot_changes_nothing(self) -> None:
        """Before it is installed; and the next process knows nothing of what was received but not installed."""
        log = self.open_log("receiving")
        entries = [make_entry(index) for index in range(1, 11)]
        log.append(batch_of(*entries))
        log.sync()
        receiver = log.begin_receive(20, 2, 8, SnapshotContext(PEERS, 15))
        state = (receiver.index, receiver.term, receiver.size, receiver.offset)
        check(state, (20, 2, 8, 0), "index, term, size, offset of what is received")
        receiver.write(b"snap")
        check_refused(ValueError, "finishing before the end", receiver.finish)
        check_refused(ValueError, "a piece beyond the end", receiver.write, b"shot!")
        check(receiver.offset, 4, "the offset after what was refused")
        receiver.write(memoryview(b"shot"))
        received = receiver.finish()
        check((received.index, received.term, received.size), (20, 2, 8), "index, term and size of the snapshot")
        check(received.read(0, 100), b"snapshot", "its data")
        check(received.context.peers, PEERS, "its configuration")
        receiver.abort()
        check_refused(StorageError, "a piece after the end", receiver.write, b"")
        check((log.snapshot.index, read_all(log)), (0, entries), "the log")
        other = log.begin_receive(21, 2, 1, SnapshotContext())
        check_refused(ValueError, "one that was received before the last", log.install, received)
        other.abort()
        check_refused(StorageError, "a piece of what was given up", other.write, b"x")
        again = log.begin_receive(22, 2, 3, SnapshotContext())
        last = log.begin_receive(22, 2, 3, SnapshotContext())
        check_refused(StorageError, "a piece of what was begun before the last", again.write, b"x")
        last.write(b"x")
        log = self.open_log("receiving")
        check((log.snapshot.index, read_all(log)), (0, entries), "what the next process finds")
        log.close()

    def test_what_cannot_be_received_is_refused(self) -> None:
        """What is not above the log's snapshot, and what would be damage once it is stored."""
        log = self.open_log("not received", (50, 6, b"state"))
        ids = request_id_at(1_700_000_001, 1) + (7).to_bytes(8, "little")
        for what, arguments in {
            "an index that is not above": (50, 6, 1, SnapshotContext()),
            "a term that goes back": (51, 5, 1, SnapshotContext()),
            "a negative size": (51, 6, -1, SnapshotContext()),
            "a configuration above it": (51, 6, 1, SnapshotContext(PEERS, 52)),
            "a part of a request id": (51, 6, 1, SnapshotContext(request_ids=ids[:-1])),
            "request ids that go back": (51, 6, 1, SnapshotContext(request_ids=ids + ids)),
        }.items():
            check_refused(ValueError, what, log.begin_receive, *arguments)
        log.close()

    def test_installing_a_snapshot_in_the_place_of_the_log(self) -> None:
        """Where the log ends below it, or has another term there: nothing is left but what is in the snapshot."""
        for name, index, term in (("above", 50, 7), ("next", 31, 3), ("conflict", 12, 2), ("last", 30, 4)):
            log = self.open_log(f"installing {name}")
            entries = [make_entry(at, 1 + at // 15) for at in range(1, 31)]
            log.append(batch_of(*entries))
            log.sync()
            known = request_id_at(1_700_000_005, 5)
            context = SnapshotContext(PEERS, 9, known + (11).to_bytes(8, "little"), 1_600_000_000)
            log.install(receive_snapshot(log, index, term, b"state of the leader", context))
            for found in ("", "by the next process"):
                what = f"({name}) {found}"
                state = (log.first_index, log.last_index, log.last_term, log.snapshot.index, log.snapshot.term)
                check(state, (index + 1, index, term, index, term), f"the indexes and terms {what}")
                check(log.snapshot.read(0, 100), b"state of the leader", f"the snapshot's data {what}")
                check(log.snapshot.context, context, f"its context {what}")
                check((log.term_runs(), log.config_indexes()), ([], []), f"term_runs and config_indexes {what}")
                check((log.term_at(index), log.term_at(index + 1)), (term, None), f"term_at {what}")
                check(log.find_request(known), 11, f"an id of the snapshot's {what}")
                check(log.find_request(entries[3].request_id), None, f"an id of the log before {what}")
                check((log.prune_index, log.requests_forgotten_until), (10, 1_600_000_000), f"what is known {what}")
                log = self.open_log(f"installing {name}")
            new = [make_entry(at, term + 1) for at in range(index + 1, index + 30)]
            for entry in new:
                log.append(batch_of(entry))
            log.sync()
            log = self.open_log(f"installing {name}")
            check(read_all(log), new, "the entries behind it")
            log.close()

    def test_installing_a_snapshot_without_context(self) -> None:
        """No id that it may stand for is taken for a new one, not by the next process either."""
        log = self.open_log("without context")
        log.append(batch_of(make_entry(1)))
        log.sync()
        log.install(receive_snapshot(log, 9, 2, b"", SnapshotContext.unknown(1_700_000_100)))
        for _ in range(2):
            check((log.last_index, log.snapshot.context.peers), (9, None), "last_index, the configuration")
            check(log.requests_forgotten_until, 1_700_000_100, "requests_forgotten_until")
            check(log.find_request(make_entry(1).request_id), None, "an id of the log before")
            log = self.open_log("without context")
        log.close()

    def test_installing_a_snapshot_that_is_a_compaction(self) -> None:
        """Where the log has its last entry: the entries behind it stay, and all request ids."""
        log = self.open_log("installing a compaction")
        entries = [make_entry(index, 1 + index // 15) for index in range(1, 31)]
        log.append(batch_of(*entries[:20]))
        log.sync()
        log.append(batch_of(*entries[20:]))
        for index in (7, 25, 30):
            context = SnapshotContext(PEERS, 3, b"", 1_600_000_000)
            before = log.snapshot
            log.install(receive_snapshot(log, index, entries[index - 1].term, b"state at %d" % index, context))
            check(before.read(0, 100), b"state at %d" % before.index if before.index else b"", "the one before")
            for _ in range(2):
                check((log.snapshot.index, log.snapshot.read(0, 100)), (index, b"state at %d" % index), "the snapshot")
                check(read_all(log), entries[index:], "the entries behind it")
                check([log.find_request(entry.request_id) for entry in entries], [*range(1, 31)], "the ids")
                log = self.open_log("installing a compaction")
        log.close()

    def test_what_was_begun_before_a_snapshot_was_installed_does_no_harm(self) -> None:
        """A compaction, a removal of files, and a file made ahead, all for a log that is not there any more."""
        log = self.open_log("overtaken")
        entries = [make_entry(index) for index in range(1, 61)]
        log.append(batch_of(*entries))
        log.sync()
        compact_log(log, 40, b"state")
        log.forget_requests(1_700_000_000 + 61)
        remove = log.begin_prune()
        stale = log.begin_snapshot(50, SnapshotContext())([b"state at 50"])
        place = log.begin_compaction(stale)
        late = log.begin_snapshot(55, SnapshotContext())
        log.install(receive_snapshot(log, 100, 2, b"state at 100", SnapshotContext()))
        place()
        check_refused(ValueError, "a compaction that was overtaken", log.compact, stale)
        if remove is not None:
            remove()
        check_refused(ValueError, "one that is below", log.begin_compaction, late([b"state at 55"]))
        if log.wants_preparation:
            log.prepare()
        new = [make_entry(index, 2) for index in range(101, 131)]
        log.append(batch_of(*new))
        log.sync()
        for _ in range(2):
            state = (log.snapshot.index, log.snapshot.read(0, 100), read_all(log))
            check(state, (100, b"state at 100", new), "the log")
            log = self.open_log("overtaken")
        log.close()
