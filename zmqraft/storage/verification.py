"""Everything that is wrong with the files of a peer, and what its next start would do about it. Nothing is changed.

Knows nothing of formats. The rules: what a peer checks is what is checked here, by the same code, but all of it instead
of up to the first error; and when that has found nothing, the log is opened as a peer would open it, on a
`ShadowFileSystem`. So what is called good here, a peer starts with.

What is found is one of three:

- BAD: damage. A peer does not start with it, or stops when it reads it; but it fetches entries with checksums from the
  others in its cluster (`zmqraft.server.repair`), and passes over what is below its snapshot.
- TORN: left by a crash or a kill, and never acknowledged; or otherwise harmless. The next start removes or repairs it.
- UNKNOWN: there is no checksum. zmq-raft wrote it, or an early version of ours; its structure is right.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Final

from zmqraft.api.snapshot import SnapshotBase
from zmqraft.constants import INDEX_FILE_CAPACITY
from zmqraft.errors import CorruptionError, StorageError
from zmqraft.storage.data_files import DataFile, Kind, data_files, kind_of, problem_of, read_state
from zmqraft.storage.examination import examine
from zmqraft.storage.failure import describe
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.index_file import TABLE_OFFSET, IndexFile
from zmqraft.storage.log_directory import LogDirectory
from zmqraft.storage.log_opening import check_name, check_term, gaps, open_log
from zmqraft.storage.memory import MemorySnapshot
from zmqraft.storage.raft_persistence import read_state_file
from zmqraft.storage.shadow import ShadowFileSystem
from zmqraft.storage.snapshot_file import SnapshotFile
from zmqraft.storage.state_records import TornRecord
from zmqraft.storage.token_file import IncompleteHeaderError
from zmqraft.storage.torn_tail import check_table, count_untorn, newest_with_entries

__all__ = ["FileReport", "Finding", "Severity", "verify"]

#: As much is read at once.
_READ_SIZE: Final = 1 << 20
#: A directory that a peer writes to is looked at as often before something in it is called wrong.
_ATTEMPTS: Final = 3


class Severity(Enum):
    """How bad it is; see the head of the module."""

    UNKNOWN = "unknown"
    TORN = "torn"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """Something in a file: what, and where: the offset in bytes, and the index of the first entry that it is about."""

    severity: Severity
    text: str
    offset: int | None = None
    index: int | None = None


@dataclass
class FileReport:
    """All that was found in a file; and what is in it, by names as in JSON."""

    kind: Kind
    path: str
    values: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def severity(self) -> Severity | None:
        """That of the worst finding; None when all is good."""
        ranks = list(Severity)
        return max((finding.severity for finding in self.findings), key=ranks.index, default=None)

    def add(self, finding: Finding) -> None:
        """Take in a finding, unless something of this severity is known of this place."""
        known = {(other.severity, other.offset, other.index) for other in self.findings}
        if (finding.severity, finding.offset, finding.index) not in known:
            self.findings.append(finding)

    def add_error(self, error: CorruptionError) -> None:
        """Take in damage."""
        self.add(Finding(Severity.BAD, problem_of(error), error.offset, error.index))


def verify(path: str | PurePath, *, fs: FileSystem = OS_FILE_SYSTEM) -> list[FileReport]:
    """Check a data directory, a log, an index file, a snapshot or a state file; the reports of its files.

    A peer may be running on it: what is found then counts only when it is found several times. Raises StorageError
    when there is nothing of a peer at the path, or it cannot be listed.
    """
    path = str(PurePath(path))
    reports = _verify_once(fs, path)
    for _ in range(_ATTEMPTS - 1):
        if not any(report.severity in (Severity.BAD, Severity.TORN) for report in reports):
            break
        before = _findings(reports)
        reports = _verify_once(fs, path)
        if _findings(reports) == before:
            break
        for report in reports:
            report.findings = [
                finding
                for finding in report.findings
                if finding.severity is Severity.UNKNOWN or (report.path, finding) in before
            ]
    return reports


def _findings(reports: list[FileReport]) -> set[tuple[str, Finding]]:
    return {(report.path, finding) for report in reports for finding in report.findings}


def _verify_once(fs: FileSystem, path: str) -> list[FileReport]:
    kind = kind_of(fs, path)
    if kind is Kind.INDEX:
        return _verify_index_file(fs, path)
    reports = []
    try:
        files = list(data_files(fs, path))
    except CorruptionError as error:
        report = FileReport(kind, str(error.path))
        report.add_error(error)
        return [report]
    snapshot: SnapshotBase | None = None
    for file in files:
        if file.kind is Kind.SNAPSHOT:
            report, snapshot = _verify_snapshot(fs, file.path)
            reports.append(report)
    index_files = [file for file in files if file.kind is Kind.INDEX]
    if index_files:
        log_path = path if kind is Kind.LOG else f"{path}/log"
        if snapshot is None and kind is Kind.DATA and not reports:
            snapshot = MemorySnapshot()
        reports += _verify_log(fs, LogDirectory(fs, log_path), index_files, snapshot)
    if snapshot is not None:
        snapshot.close()
    return reports + [_verify_state(fs, file.path) for file in files if file.kind is Kind.STATE]


# --- the small files ------------------------------------------------------------------------------------------------


def _verify_snapshot(fs: FileSystem, path: str) -> tuple[FileReport, SnapshotFile | None]:
    report = FileReport(Kind.SNAPSHOT, path)
    try:
        snapshot = SnapshotFile.open(path, fs=fs)
    except CorruptionError as error:
        report.add_error(error)
        return report, None
    except (OSError, StorageError) as error:
        report.add(Finding(Severity.BAD, f"cannot be read: {describe(error)}"))
        return report, None
    report.values = {"index": snapshot.index, "term": snapshot.term, "dataSize": snapshot.size}
    if not snapshot.has_checksum:
        report.add(
            Finding(Severity.UNKNOWN, f"no checksum for its {snapshot.size} bytes of data", snapshot.data_offset)
        )
    return report, snapshot


def _verify_state(fs: FileSystem, path: str) -> FileReport:
    report = FileReport(Kind.STATE, path)
    try:
        content = read_state(fs, path)
    except CorruptionError as error:
        report.add_error(error)
        return report
    except OSError as error:
        report.add(Finding(Severity.BAD, f"cannot be read: {describe(error)}"))
        return report
    records = 0
    unproved: list[int] = []
    for found in read_state_file(path, content):
        if isinstance(found, CorruptionError):
            report.add_error(found)
        elif isinstance(found, TornRecord):
            text = f"{len(content) - found.offset} bytes at the end are a record that was not written completely"
            report.add(Finding(Severity.TORN, f"{text} ({found.reason}); the next start ignores them", found.offset))
        else:
            records += 1
            if not found.has_checksum:
                unproved.append(found.offset)
    report.values = {"records": records, "fileSize": len(content)}
    if unproved:
        report.add(Finding(Severity.UNKNOWN, f"no checksum for {len(unproved)} of {records} records", unproved[0]))
    return report


# --- the log --------------------------------------------------------------------------------------------------------


class _OneFile(LogDirectory):
    """A directory that holds one index file."""

    def __init__(self, fs: FileSystem, path: str, first_index: int) -> None:
        super().__init__(fs, path)
        self._first_index = first_index

    def index_files(self) -> list[tuple[int, str]]:
        return [(self._first_index, self.path)]


def _verify_index_file(fs: FileSystem, path: str) -> list[FileReport]:
    """One file, which can only be torn when no later one in its log has entries."""
    first_index, later = _place_in_log(fs, path)
    is_newest = not any(_has_entries(fs, other) for other in later)
    checked = _LogCheck(fs, [DataFile(Kind.INDEX, path, first_index if is_newest else None)])
    try:
        checked.check(may_be_newest=is_newest)
        if checked.newest is not None:
            first_index = checked.newest.first_index
        if is_newest and first_index is not None and not checked.is_bad:
            start = first_index
            checked.open_as_a_peer(lambda shadow: _OneFile(shadow, path, start), MemorySnapshot(start - 1))
    finally:
        checked.close()
    return checked.reports


def _place_in_log(fs: FileSystem, path: str) -> tuple[int | None, list[str]]:
    """The first index by the name of a file that lies in a log, and the files behind it there."""
    parents = PurePath(path).parents
    if len(parents) >= 4:
        with contextlib.suppress(OSError, CorruptionError):
            files = LogDirectory(fs, str(parents[3])).index_files()
            for position, (first_index, file) in enumerate(files):
                if file == path:
                    return first_index, [later for _, later in files[position + 1 :]]
    return None, []


def _has_entries(fs: FileSystem, path: str) -> bool:
    with contextlib.suppress(OSError, CorruptionError), _opened(fs, path) as file:
        return file.count > 0
    return False


@contextlib.contextmanager
def _opened(fs: FileSystem, path: str) -> Iterator[IndexFile]:
    file = IndexFile.open(path, fs=fs, writable=False)
    try:
        yield file
    finally:
        file.close()


def _verify_log(
    fs: FileSystem, directory: LogDirectory, files: list[DataFile], snapshot: SnapshotBase | None
) -> list[FileReport]:
    """All files of a log; without a snapshot it is taken to begin where it does."""
    checked = _LogCheck(fs, files)
    try:
        checked.check(may_be_newest=True)
        if snapshot is None:
            snapshot = MemorySnapshot((files[0].first_index or 1) - 1)
        checked.open_as_a_peer(lambda shadow: LogDirectory(shadow, directory.path), snapshot)
    finally:
        checked.close()
    return checked.reports


class _LogCheck:
    """One look at some index files, in the order of their indexes."""

    def __init__(self, fs: FileSystem, files: list[DataFile]) -> None:
        self._fs = fs
        self._shadow = ShadowFileSystem(fs)
        self._files = files
        self._by_path = {file.path: FileReport(Kind.INDEX, file.path) for file in files}
        #: Those that could be opened, by path.
        self._opened: dict[str, IndexFile] = {}
        #: The one whose end may be torn, and how many of its entries are left without those that are.
        self.newest: IndexFile | None = None
        self._kept = 0
        self._last_term = 0

    @property
    def reports(self) -> list[FileReport]:
        """What was found."""
        return list(self._by_path.values())

    @property
    def is_bad(self) -> bool:
        """Whether anything is damaged."""
        return any(report.severity is Severity.BAD for report in self.reports)

    def close(self) -> None:
        """Close the files."""
        for file in self._opened.values():
            file.close()

    def check(self, may_be_newest: bool) -> None:
        """Look at each file by itself, and at how they follow each other."""
        for file in self._files:
            with self._reported(file.path):
                self._open(file)
        with _repairs(self._note_repair):
            for path, opened in self._opened.items():
                with self._reported(path):
                    check_table(opened)
            self._find_torn_end(may_be_newest)
        self._check_gaps()
        for path, opened in self._opened.items():
            with self._reported(path):
                self._check_entries(opened, self._by_path[path])
            opened.release()

    @contextlib.contextmanager
    def _reported(self, path: str) -> Iterator[None]:
        try:
            yield
        except CorruptionError as error:
            self._by_path[path].add_error(error)
        except OSError as error:
            self._by_path[path].add(Finding(Severity.BAD, f"cannot be read: {describe(error)}"))

    def _open(self, file: DataFile) -> None:
        try:
            opened = IndexFile.open(file.path, fs=self._shadow, tolerant=True)
        except IncompleteHeaderError:
            # Of the newest it is for `open_as_a_peer` to say what that means.
            if file is self._files[-1] and file.first_index is not None:
                return
            raise
        self._opened[file.path] = opened
        opened.release()
        if opened.table_error is not None:
            self._by_path[file.path].add_error(opened.table_error)
        if file.first_index is not None:
            check_name(opened, file.first_index)

    def _find_torn_end(self, may_be_newest: bool) -> None:
        files = list(self._opened.values())
        if may_be_newest:
            self.newest = newest_with_entries(files)
        for file in files:
            if file.unordered_end is not None and file is not self.newest and file.table_error is None:
                error = file.unordered_error(file.count, file.unordered_end, file.data_size)
                self._by_path[file.path].add_error(error)
        newest = self.newest
        if newest is None:
            # One that has no entries is the newest as well as any.
            self.newest = files[-1] if files and may_be_newest else None
            return
        self._kept = newest.count
        report = self._by_path[newest.path]
        if newest.table_error is None:
            with self._reported(newest.path):
                self._kept = count_untorn(newest)
        if self._kept < newest.count:
            first = newest.first_index + self._kept
            text = f"entries {first} to {newest.last_index} were not written completely and never acknowledged"
            report.add(Finding(Severity.TORN, f"{text}; the next start removes them", newest.file_offset(first), first))

    def _check_gaps(self) -> None:
        """Between files that both could be opened, and up to the last one with entries."""
        for before, after in pairwise(self._files):
            previous, file = (self._opened.get(each.path) for each in (before, after))
            if previous is None or file is None or previous.table_error is not None or not file.count:
                continue
            for error in gaps([previous, file]):
                self._by_path[file.path].add_error(error)

    def _check_entries(self, file: IndexFile, report: FileReport) -> None:
        count = self._kept if file is self.newest else file.count
        report.values = {"firstIndex": file.first_index, "lastIndex": file.last_index, "dataSize": file.data_size}
        unknown: list[tuple[int, int]] = []
        last = file.first_index + count - 1
        for part in examine(file, file.first_index, last, _READ_SIZE) if count else ():
            if part.error is not None:
                report.add_error(part.error)
                continue
            if not part.proved:
                unknown.append((part.first_index, part.last_index))
            assert part.batch is not None
            for index, term in part.batch.term_runs():
                with self._reported(file.path):
                    check_term(file, index, term, self._last_term)
                self._last_term = max(term, self._last_term)
        if file is self.newest and file.may_be_torn and count == file.count < file.capacity:
            self._check_behind(file, report)
        if unknown:
            number = sum(last - first + 1 for first, last in unknown)
            text = f"no checksum for {number} of {count} entries, the first of them {unknown[0][0]}"
            report.add(Finding(Severity.UNKNOWN, text, file.file_offset(unknown[0][0]), unknown[0][0]))

    def _check_behind(self, file: IndexFile, report: FileReport) -> None:
        """Behind the last entry there may be one that is only there in part."""
        slots = file.checksums(file.count, file.capacity)
        if slots.count(0) != len(slots):
            text = "checksums, but no offsets, of entries behind the last one, which count as never acknowledged"
            index, offset = file.last_index + 1, TABLE_OFFSET + 4 * file.count
            report.add(Finding(Severity.TORN, f"{text}; the next start removes them", offset, index))

    def open_as_a_peer(self, directory: Callable[[FileSystem], LogDirectory], snapshot: SnapshotBase) -> None:
        """Open the log as the next start would, to find what it would do, and whether it would start at all."""
        shadowed = directory(ShadowFileSystem(self._fs))
        with _repairs(self._note_repair), contextlib.suppress(OSError):
            try:
                open_log(shadowed, snapshot, INDEX_FILE_CAPACITY, 0, 1).close()
            except CorruptionError as error:
                report = self._by_path[error.path if error.path in self._by_path else self._files[-1].path]
                # It is the first of those that are known of a file, or one that only shows in the log as a whole.
                if report.severity is not Severity.BAD:
                    report.add_error(error)

    def _note_repair(self, record: logging.LogRecord) -> None:
        path = getattr(record, "file", None)
        text = record.getMessage()
        if "adding the checksums" in text:
            return
        report = self._by_path.get(str(path))
        if report is None:
            # About the log as a whole.
            report = self._by_path.setdefault(str(path), FileReport(Kind.LOG, str(path)))
        offset, index = getattr(record, "offset", None), getattr(record, "index", None)
        report.add(Finding(Severity.TORN, f"the next start: {text.removeprefix(f'{path}: ')}", offset, index))


class _RepairHandler(logging.Handler):
    def __init__(self, note: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on."""
        self._note(record)


@contextlib.contextmanager
def _repairs(note: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Give what is said of repairs to ``note``, and not to the log of the process: nothing is repaired here."""
    # Above the modules that repair, so that it gets what any of them says.
    logger = logging.getLogger("zmqraft.storage")
    handler = _RepairHandler(note)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)
