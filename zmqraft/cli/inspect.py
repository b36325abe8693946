"""``zmqraft inspect``: what the headers of a peer's files say: term, vote and members, the snapshot, the log.

Knows nothing of formats. The rule: of a log only headers and tables are looked at; ``verify`` looks at the entries too.
"""

from __future__ import annotations

import json
from typing import Any

import click

from zmqraft.cli.data_path import STATUS_DAMAGED, data_path, json_option, lock_holder
from zmqraft.cli.output import Output
from zmqraft.cli.plain_values import plain
from zmqraft.cli.tables import text_line
from zmqraft.storage.data_files import DataFile, Kind, data_files, facts_of, kind_of, problem_of
from zmqraft.storage.fs import OS_FILE_SYSTEM

__all__ = ["inspect"]


@click.command()
@data_path
@json_option("the directory and each file; of a log in a directory, for the log as a whole")
def inspect(path: str, as_json: bool) -> int:
    """Show what a data directory, a log, an index file, a snapshot or a state file says of itself.

    Nothing is changed, and a peer may be running on it. The exit status is 1 when a header is damaged.
    """
    writer = _Writer(as_json)
    kind = kind_of(OS_FILE_SYSTEM, path)
    files = list(data_files(OS_FILE_SYSTEM, path))
    if kind is Kind.DATA:
        writer.write(kind, path, {"lockedBy": lock_holder(path)})
    for file in files:
        if file.kind is not Kind.INDEX or kind is Kind.INDEX:
            facts = facts_of(OS_FILE_SYSTEM, file)
            writer.write(file.kind, file.path, facts.values, facts.error)
        elif file.path == next(other.path for other in files if other.kind is Kind.INDEX):
            _write_log(writer, path if kind is Kind.LOG else f"{path}/log", files)
    writer.output.flush()
    return STATUS_DAMAGED if writer.found_damage else 0


class _Writer:
    """Writes what is known of a file, as lines or as JSON."""

    def __init__(self, as_json: bool) -> None:
        self.output = Output()
        self.found_damage = False
        self._as_json = as_json

    def write(self, kind: Kind, path: str, values: dict[str, Any], error: Any = None) -> None:
        problem = None if error is None else problem_of(error)
        self.found_damage = self.found_damage or error is not None
        if self._as_json:
            record = {"path": path, "kind": kind.value, **plain(values)}
            self.output.json(record if error is None else {**record, "error": problem, "errorOffset": error.offset})
            return
        self.output.line(text_line(f"{path}: {kind.value}"))
        if problem is not None:
            self.output.line(text_line(f"  DAMAGED: {problem}"))
        for name, value in values.items():
            self.output.line(f"  {name}: {json.dumps(plain(value))}".encode())


def _write_log(writer: _Writer, path: str, files: list[DataFile]) -> None:
    """The log as a whole: where it begins and ends, by the tables of its first and last files."""
    index_files = [file for file in files if file.kind is Kind.INDEX]
    facts = [facts_of(OS_FILE_SYSTEM, file) for file in index_files]
    values = [each.values for each in facts if "firstIndex" in each.values]
    summary: dict[str, Any] = {"files": len(index_files)}
    if values:
        summary["firstIndex"] = values[0]["firstIndex"]
        summary["lastIndex"] = values[-1]["lastIndex"]
        summary["dataSize"] = sum(each["dataSize"] for each in values)
        summary["checksums"] = all(each["checksums"] for each in values)
    writer.write(Kind.LOG, path, summary)
    for file, each in zip(index_files, facts, strict=True):
        if each.error is not None:
            writer.write(Kind.INDEX, file.path, each.values, each.error)
