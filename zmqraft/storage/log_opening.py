"""Opening a log: everything that is checked once, and the repairs that are safe.

The rule: what can be proved never to have been acknowledged is trimmed, and a warning says so; anything else stops the
peer with a CorruptionError.

What is trimmed from the end of the newest file, and why that is known, says `torn_tail`. A newest file without a
complete header holds nothing when its table and what follows it hold nothing: the header is durable before the first
entry is written. (Ours get their names when they are complete.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from zmqraft.api.snapshot import SnapshotBase
from zmqraft.constants import INDEX_FILE_CAPACITY_MAX
from zmqraft.errors import CorruptionError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.storage.checksum_segment import MARK_NONE
from zmqraft.storage.checksums import checksum_bytes
from zmqraft.storage.index_file import TABLE_OFFSET, IndexFile
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.storage.request_index import RequestIndex
from zmqraft.storage.rotation import rotate_directory
from zmqraft.storage.term_runs import TermRuns
from zmqraft.storage.token_file import REMEDY, IncompleteHeaderError
from zmqraft.storage.torn_tail import check_table, trim_torn_tail

__all__ = ["LogContents", "capacity_at", "check_name", "check_term", "gaps", "give_way", "log_capacity", "open_log"]

_log = logging.getLogger(__name__)

#: The largest power of two that is the capacity of a file.
_CAPACITY_MAX: Final = 1 << INDEX_FILE_CAPACITY_MAX.bit_length() - 1
#: Entries are read in pieces of this size when a log is opened: large enough for few calls, small in memory.
_SCAN_SIZE: Final = 1 << 20
#: More than this behind the table of a file without a complete header is not looked through.
_HEADER_REST_MAX: Final = 1 << 20


@dataclass
class LogContents:
    """What is known of a log without its entries' data."""

    files: list[IndexFile] = field(default_factory=list)
    terms: TermRuns = field(default_factory=TermRuns)
    config_indexes: list[int] = field(default_factory=list)
    requests: RequestIndex = field(default_factory=RequestIndex)

    @property
    def last_index(self) -> int:
        """The index of the last entry in the files."""
        return self.files[-1].last_index

    def note(self, batch: EntryBatch, runs: list[tuple[int, int]], after_seconds: int = 0) -> None:
        """Take in entries that follow those known; ``runs`` are the batch's `term_runs`, checked."""
        self.terms.extend(runs)
        self.config_indexes += [batch.first_index + position for position in batch.config_positions()]
        self.requests.add(batch, after_seconds)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def capacity_at(index: int, capacity: int) -> int:
    """The capacity of a file that starts at ``index``: it ends at the next multiple of the log's capacity."""
    return capacity - index % capacity


def log_capacity(first_index: int, first_file_capacity: int, wanted: int) -> int:
    """The capacity of an existing log: that of its first file, rounded up to a power of two.

    A first file that starts late is small whatever the capacity of the log was, so the ``wanted`` one, from the
    settings, is taken where the file could be one of such a log.
    """
    if capacity_at(first_index, wanted) == first_file_capacity:
        return wanted
    return min(1 << (first_file_capacity - 1).bit_length(), _CAPACITY_MAX)


def open_log(
    directory: LogDirectory, snapshot: SnapshotBase, capacity: int, after_seconds: int, request_id_cache_max: int | None
) -> LogContents:
    """Open, check and repair the index files. The newest one, where there is one, is durable on return.

    The list of files is empty when there is no log yet, and when the log that was found is below the snapshot: a
    snapshot of the leader had taken its place, and a crash came before its directory was renamed; it is renamed now.
    Raises CorruptionError, OSError.
    """
    contents = LogContents(requests=RequestIndex(request_id_cache_max))
    try:
        _open_files(directory, contents, capacity)
        for file in contents.files:
            check_table(file)
        trim_torn_tail(contents.files)
        _remove_empty_files(directory, contents)
        for error in gaps(contents.files):
            raise error
        first_index = contents.files[0].first_index if contents.files else snapshot.index + 1
        _add_requests(contents, snapshot, min(first_index - 1, snapshot.index), after_seconds)
        if _scan(contents, after_seconds, snapshot.index):
            # Ids that are not known here must not be taken for new ones.
            contents.requests.refuse_until(int(directory.fs.now_seconds()))
        matching = _match_snapshot(directory, contents, snapshot, after_seconds)
        for file in matching.files[-1:]:
            _note_leftovers(file)
            file.begin()
            directory.sync_path_of(file.path)
        return matching
    except BaseException:
        contents.close()
        raise


def _open_files(directory: LogDirectory, contents: LogContents, capacity: int) -> None:
    names = directory.index_files()
    for position, (first_index, path) in enumerate(names):
        try:
            file = IndexFile.open(path, fs=directory.fs)
        except IncompleteHeaderError as error:
            if position != len(names) - 1:
                raise
            if contents.files:
                first = contents.files[0]
                capacity = log_capacity(first.first_index, first.capacity, capacity)
            if not _holds_nothing(directory, path, capacity_at(first_index, capacity)):
                raise
            _log.warning(
                "removing the half-made index file %s, which holds no entry (%s)", path, error, extra={"file": path}
            )
            directory.remove_files([path])
            return
        contents.files.append(file)
        check_name(file, first_index)
        if position < len(names) - 2:
            file.release()


def check_name(file: IndexFile, first_index: int) -> None:
    """Raise CorruptionError when the file does not start with the index that its name says."""
    if file.first_index != first_index:
        raise CorruptionError(
            f"{file.path}: first index {file.first_index} at offset 16 where the name says {first_index}; {REMEDY}",
            path=file.path,
            offset=16,
        )


def _holds_nothing(directory: LogDirectory, path: str, capacity: int) -> bool:
    """Whether a file without a complete header has an empty table, and no entries behind it."""
    fs = directory.fs
    handle = fs.open(path)
    try:
        table_end = TABLE_OFFSET + 4 * capacity
        table = fs.pread(handle, 4 * capacity, TABLE_OFFSET)
        rest = fs.pread(handle, _HEADER_REST_MAX + 1, table_end)
    finally:
        fs.close(handle)
    return not any(table) and len(rest) <= _HEADER_REST_MAX and not any(_behind_segments(rest))


def _behind_segments(rest: bytes) -> bytes:
    """What follows the segments that ``rest`` begins with."""
    offset = 0
    while rest[offset : offset + 4].isalpha():
        token, length = rest[offset : offset + 4], int.from_bytes(rest[offset + 4 : offset + 8], "little")
        offset += 8 + length + -length % 4
        if token == b"ITMZ":
            break
    return rest[offset:]


def _remove_empty_files(directory: LogDirectory, contents: LogContents) -> None:
    """Remove files at the end that are empty, but not one that the next entry belongs into."""
    files = contents.files
    while len(files) > 1 and not files[-1].count and files[-1].first_index != files[-2].last_index + 1:
        file = files.pop()
        file.close()
        _log.warning("removing the index file %s, which is empty", file.path, extra={"file": file.path})
        directory.remove_files([file.path])


def gaps(files: list[IndexFile]) -> Iterator[CorruptionError]:
    """What to raise for each file that does not begin where the one before it ends."""
    for previous, file in pairwise(files):
        if previous.last_index + 1 != file.first_index:
            yield CorruptionError(
                f"{file.path}: begins with entry {file.first_index}, but {previous.path} ends with entry "
                f"{previous.last_index}: entries or a file are missing, or there twice; {REMEDY}",
                path=file.path,
                offset=16,
                index=file.first_index,
            )


def _note_leftovers(file: IndexFile) -> None:
    if file.leftover_count:
        _log.warning(
            "%s: zeroing %d offsets behind entry %d, left by a truncation or a write that a crash has cut short",
            file.path,
            file.leftover_count,
            file.last_index,
            extra={"file": file.path, "offset": TABLE_OFFSET + 4 * file.count, "index": file.last_index + 1},
        )


def _scan(contents: LogContents, after_seconds: int, snapshot_index: int) -> int:
    """Read and check every entry once, for its type, term and request id.

    Those below the snapshot's last one are kept for their request ids only: the number of those that are damaged, and
    passed over.
    """
    damaged = 0
    for file in contents.files:
        index = file.first_index
        last = file.last_index
        unknown = _Unknown(file)
        while index <= file.last_index:
            try:
                batch, unmatched = file.read_unmatched(index, last, _SCAN_SIZE)
            except CorruptionError as error:
                bad = error.index
                if bad is None or not index <= bad < snapshot_index:
                    raise
                if bad > index:
                    last = bad - 1
                    continue
                _log.warning("%s; it is below the snapshot, and passed over", error, extra={"index": bad})
                damaged += 1
                index += 1
                last = file.last_index
                continue
            last = file.last_index
            unknown.note(batch, unmatched)
            last_term = contents.terms.last_term or 0
            runs = batch.term_runs()
            for run_index, term in runs:
                check_term(file, run_index, term, last_term)
                last_term = term
            contents.note(batch, runs, after_seconds)
            index = batch.last_index + 1
        unknown.settle()
        if file is not contents.files[-1]:
            file.finish()
            file.release()
    return damaged


def check_term(file: IndexFile, index: int, term: int, last_term: int) -> None:
    """Raise CorruptionError when the term of an entry is below that of the one before it."""
    if term < last_term:
        raise file.entry_error(index, f" has term {term}, below {last_term}, that of the entry before it")


class _Unknown:
    """The entries of a file that have no checksum, or one of another entry that zmq-raft has written over."""

    def __init__(self, file: IndexFile) -> None:
        self._file = file
        #: The checksums that they get, by position.
        self.slots: dict[int, int] = {}
        # The first one whose checksum is that of another entry.
        self._replaced: int | None = None

    def note(self, batch: EntryBatch, unmatched: list[tuple[int, int]]) -> None:
        """Take in the next entries of the file. CorruptionError when one of them, or of those before, is damaged."""
        file = self._file
        for position, slot in unmatched:
            if slot and not file.changed_by_others:
                raise file.checksum_error(position)
            if slot and self._replaced is None:
                self._replaced = position
            index = file.first_index + position
            part = batch.slice(index, index)
            base = file.file_offset(index) - file.data_offset
            self.slots[position] = int.from_bytes(checksum_bytes(part, base, MARK_NONE), "little")
        if self._replaced is not None:
            # zmq-raft replaces all entries from one on: one of ours behind it proves that it is damaged.
            first = max(self._replaced, batch.first_index - file.first_index)
            if any(position not in self.slots for position in range(first, batch.last_index + 1 - file.first_index)):
                raise file.checksum_error(self._replaced)

    def settle(self) -> None:
        """Store the checksums, durably; from now on they count."""
        if self.slots:
            _log.warning(
                "%s: adding the checksums of %d entries, from %d on, that had none of their own",
                self._file.path,
                len(self.slots),
                self._file.first_index + min(self.slots),
                extra={"file": self._file.path, "index": self._file.first_index + min(self.slots)},
            )
            self._file.store_checksums(self.slots)


def _add_requests(contents: LogContents, snapshot: SnapshotBase, last_index: int, after_seconds: int) -> None:
    """Remember the request ids that the snapshot has of entries up to ``last_index``, which are in no file."""
    context = snapshot.context
    contents.requests.refuse_until(context.requests_forgotten_until)
    try:
        contents.requests.add_packed(context.request_ids, last_index, after_seconds)
    except ValueError as error:
        raise CorruptionError(f"the snapshot of index {snapshot.index}: {error}; {REMEDY}") from None


def give_way(
    directory: LogDirectory, contents: LogContents, snapshot: SnapshotBase, after_seconds: int = 0
) -> LogContents:
    """Give the log another name, durably, since a snapshot takes its place: what is known of the log behind that.

    It has no file yet. Raises CorruptionError, OSError.
    """
    contents.close()
    name = rotate_directory(directory.fs, directory.path)
    _log.warning(
        "the log %s, which ends with entry %d, gives way to the snapshot of entry %d (term %d); it is kept as %s",
        directory.path,
        contents.last_index,
        snapshot.index,
        snapshot.term,
        name,
        extra={"file": directory.path},
    )
    behind = LogContents(requests=RequestIndex(contents.requests.bound))
    _add_requests(behind, snapshot, snapshot.index, after_seconds)
    return behind


def _match_snapshot(
    directory: LogDirectory, contents: LogContents, snapshot: SnapshotBase, after_seconds: int
) -> LogContents:
    if not contents.files:
        return contents
    first_index, last_index = contents.files[0].first_index, contents.last_index
    if first_index > snapshot.index + 1:
        raise CorruptionError(
            f"{contents.files[0].path}: the log begins with entry {first_index}, but the snapshot ends with entry "
            f"{snapshot.index}: what is between them is missing; {REMEDY}",
            path=contents.files[0].path,
            offset=16,
            index=first_index,
        )
    if last_index < snapshot.index or _conflicts(contents, snapshot):
        return give_way(directory, contents, snapshot, after_seconds)
    term = contents.terms.term_at(snapshot.index + 1)
    if last_index > snapshot.index and term is not None and term < snapshot.term:
        raise CorruptionError(
            f"{contents.files[0].path}: entry {snapshot.index + 1} has term {term}, below {snapshot.term}, that of the "
            f"snapshot before it; {REMEDY}",
            path=contents.files[0].path,
            index=snapshot.index + 1,
        )
    return contents


def _conflicts(contents: LogContents, snapshot: SnapshotBase) -> bool:
    """Whether the log holds another entry than the snapshot at the snapshot's index."""
    if not contents.files[0].first_index <= snapshot.index <= contents.last_index:
        return False
    return contents.terms.term_at(snapshot.index) != snapshot.term
