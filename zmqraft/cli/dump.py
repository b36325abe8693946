"""``zmqraft dump``: the entries of a log, the data of a snapshot, the records of a state file.

Knows nothing of formats. The rule: what is damaged is named on standard error, with its place, and passed over; the
rest is shown, and the exit status is 1.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import click

from zmqraft.cli.data_path import STATUS_DAMAGED, data_path, json_option
from zmqraft.cli.output import Output, encode_data, remark
from zmqraft.cli.plain_values import decoded, plain
from zmqraft.cli.ranges import Ranges, parse_ranges
from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import CorruptionError
from zmqraft.protocol.entry import EntryType, LogEntry
from zmqraft.storage.data_files import DataFile, Kind, data_files, kind_of, read_state
from zmqraft.storage.examination import examine
from zmqraft.storage.fs import OS_FILE_SYSTEM
from zmqraft.storage.index_file import IndexFile
from zmqraft.storage.raft_persistence import read_state_file
from zmqraft.storage.snapshot_file import SnapshotFile
from zmqraft.storage.state_records import StateRecord
from zmqraft.storage.torn_tail import count_untorn, newest_with_entries

__all__ = ["dump"]

FORMATS = ("raw", "hex", "msgpack")
_READ_SIZE = 1 << 20
_SNAPSHOT_READ_SIZE = 1 << 16
_EVERYTHING: Ranges = ((1, INTEGER_MAX),)


@click.command()
@data_path
@json_option("each entry")
@click.option("--range", "ranges", callback=parse_ranges, metavar="RANGES", help="Indexes such as 100:110,1000: or 7.")
@click.option(
    "--format",
    "data_format",
    type=click.Choice(FORMATS),
    default="hex",
    show_default=True,
    help="How data is shown: raw is the data alone, byte for byte (in JSON as text, or base64); "
    "msgpack is MessagePack as JSON, or hex for what is not MessagePack.",
)
def dump(path: str, as_json: bool, ranges: Ranges | None, data_format: str) -> int:
    """Print the entries of a data directory, a log or an index file: index, term, type, request id, data.

    Of a snapshot its data is printed, of a state file each record. Entries below the snapshot are printed as long as
    they are there. The exit status is 1 when something is damaged, or nothing is in a range.
    """
    kind = kind_of(OS_FILE_SYSTEM, path)
    if ranges is not None and kind in (Kind.SNAPSHOT, Kind.STATE):
        raise click.UsageError(f"--range is for entries; {path} is a {kind.value}")
    dumper = _Dumper(data_format, as_json)
    if kind is Kind.SNAPSHOT:
        dumper.dump_snapshot(path)
    elif kind is Kind.STATE:
        dumper.dump_state(path)
    else:
        files = [file for file in data_files(OS_FILE_SYSTEM, path) if file.kind is Kind.INDEX]
        dumper.dump_log(files, _EVERYTHING if ranges is None else ranges)
        for first, last in dumper.empty_ranges if ranges is not None else ():
            shown = f"{first}:{'' if last == INTEGER_MAX else last}"
            dumper.complain(f"{path}: no entry in the range {shown}")
    dumper.output.flush()
    return dumper.status


class _Dumper:
    """Writes in the form that the options ask for."""

    def __init__(self, data_format: str, as_json: bool) -> None:
        self.output = Output()
        self.status = 0
        self.empty_ranges: list[tuple[int, int]] = []
        self._format = data_format
        self._as_json = as_json

    def complain(self, text: str) -> None:
        """Say on standard error, behind what was printed so far, that something is not right."""
        self.output.flush()
        remark(text)
        self.status = STATUS_DAMAGED

    # --- entries --------------------------------------------------------------------------------------------------

    def dump_log(self, files: list[DataFile], ranges: Ranges) -> None:
        """Print the entries in the ranges."""
        with contextlib.ExitStack() as stack:
            opened = [file for path in files if (file := self._open(path, stack)) is not None]
            newest = newest_with_entries(opened)
            for first, last in ranges:
                found = False
                for file in opened:
                    low, high = max(first, file.first_index), min(last, file.last_index)
                    if low <= high:
                        found = True
                        self._dump_file(file, low, high, file is newest)
                if not found:
                    self.empty_ranges.append((first, last))

    def _open(self, path: DataFile, stack: contextlib.ExitStack) -> IndexFile | None:
        try:
            file = IndexFile.open(path.path, fs=OS_FILE_SYSTEM, writable=False, tolerant=True)
        except CorruptionError as error:
            self.complain(str(error))
            return None
        stack.callback(file.close)
        # Of many files the handles and tables come back one by one.
        file.release()
        if file.table_error is not None:
            self.complain(str(file.table_error))
        return file

    def _dump_file(self, file: IndexFile, first: int, last: int, may_be_torn: bool) -> None:
        torn_from = last + 1
        if may_be_torn:
            # Where it is damaged instead, the entries say so themselves.
            with contextlib.suppress(CorruptionError):
                torn_from = file.first_index + count_untorn(file)
        for part in examine(file, first, min(last, torn_from - 1), _READ_SIZE):
            if part.error is not None:
                if self._as_json:
                    self.output.json({"index": part.first_index, "offset": part.error.offset, "error": str(part.error)})
                self.complain(str(part.error))
            for entry in part.batch or ():
                self._write_entry(entry, part.proved)
        if torn_from <= last:
            self.output.flush()
            remark(f"{file.path}: entries {torn_from} to {last} were not written completely; the next start drops them")
        file.release()

    def _write_entry(self, entry: LogEntry, proved: bool) -> None:
        name = EntryType(entry.type).name
        if self._as_json:
            record = {"index": entry.index, "term": entry.term, "type": name, "requestId": entry.request_id.hex()}
            self.output.json({**record, "checksum": proved, **self._data(entry.data)})
        elif self._format == "raw":
            self.output.write(entry.data)
        else:
            shown = self._shown(entry.data)
            self.output.line(f"{entry.index} {entry.term} {name} {entry.request_id.hex()} {shown}".encode())

    def _data(self, data: bytes) -> dict[str, Any]:
        """The members of a JSON object for some data."""
        if self._format == "msgpack":
            with contextlib.suppress(ValueError):
                return {"data": decoded(data), "encoding": "msgpack"}
        return encode_data(data, "text" if self._format == "raw" else "hex")

    def _shown(self, data: bytes) -> str:
        if self._format == "msgpack":
            with contextlib.suppress(ValueError):
                return json.dumps(decoded(data))
        return data.hex()

    # --- other files ----------------------------------------------------------------------------------------------

    def dump_snapshot(self, path: str) -> None:
        """Print the data of a snapshot."""
        if self._format == "msgpack":
            raise click.UsageError(f"--format msgpack is for entries; {path} is a snapshot")
        with contextlib.closing(SnapshotFile.open(path)) as snapshot:
            for offset in range(0, snapshot.size, _SNAPSHOT_READ_SIZE):
                data = snapshot.read(offset, _SNAPSHOT_READ_SIZE)
                if self._as_json:
                    # A piece ends anywhere, also within a character.
                    encoding = "base64" if self._format == "raw" else "hex"
                    self.output.json({"offset": offset, **encode_data(data, encoding)})
                elif self._format == "raw":
                    self.output.write(data)
                else:
                    self.output.write(data.hex().encode())
            if snapshot.size and not self._as_json and self._format == "hex":
                self.output.write(b"\n")

    def dump_state(self, path: str) -> None:
        """Print each record of a state file."""
        for record in self._records(path):
            content = {str(key): plain(value) for key, value in record.content.items()}
            if self._as_json:
                self.output.json({"offset": record.offset, "checksum": record.has_checksum, "record": content})
            else:
                self.output.line(f"{record.offset} {json.dumps(content)}".encode())

    def _records(self, path: str) -> Iterator[StateRecord]:
        for found in read_state_file(path, read_state(OS_FILE_SYSTEM, path)):
            if isinstance(found, StateRecord):
                yield found
            elif isinstance(found, CorruptionError):
                self.complain(str(found))
            else:
                self.output.flush()
                remark(f"{path}: what begins at offset {found.offset} was not written completely ({found.reason})")
