"""``zmqraft list``: the files of a peer, with what is in them and how large they are.

Knows nothing of formats. The rule: one line for each file, whatever state it is in.
"""

from __future__ import annotations

from typing import Any

import click

from zmqraft.cli.data_path import STATUS_DAMAGED, data_path, json_option, relative
from zmqraft.cli.output import Output
from zmqraft.cli.tables import write_table
from zmqraft.storage.data_files import DataFile, Facts, Kind, data_files, facts_of, problem_of
from zmqraft.storage.fs import OS_FILE_SYSTEM

__all__ = ["list_files"]

#: Columns of the table, and where their values stand in the JSON object.
_COLUMNS = {
    "file": "path",
    "state": "state",
    "first": "firstIndex",
    "last": "lastIndex",
    "entries": "entries",
    "data bytes": "dataSize",
    "file bytes": "fileSize",
}
_NUMBERS_FROM = 2


@click.command("list")
@data_path
@json_option("each file")
def list_files(path: str, as_json: bool) -> int:
    """List the files in a data directory or a log, with the entries in them, their sizes and their state.

    The state of an index file is open (a peer is writing to it, or has crashed), closed, cutting (entries were being
    removed), changed (zmq-raft has written to it), unknown (it has no checksums) or DAMAGED, then with the exit
    status 1. Only headers and tables are looked at.
    """
    files = [(file, facts_of(OS_FILE_SYSTEM, file)) for file in data_files(OS_FILE_SYSTEM, path)]
    records = [_record(file, facts) for file, facts in files]
    output = Output()
    if as_json:
        for record in records:
            output.json(record)
    else:
        rows = [_row({**record, "path": relative(record["path"], path)}) for record in records]
        write_table(output, list(_COLUMNS), rows, _NUMBERS_FROM)
    output.flush()
    return 0 if all(facts.error is None for _, facts in files) else STATUS_DAMAGED


def _state(facts: Facts) -> str:
    values = facts.values
    if facts.error is not None:
        return "DAMAGED"
    if not values["checksums"]:
        return "unknown"
    if values.get("tornAt") is not None:
        return "torn"
    return "changed" if values.get("changedByOthers") else str(values.get("state", "ok"))


def _record(file: DataFile, facts: Facts) -> dict[str, Any]:
    values = facts.values
    last = values.get("index") if file.kind is Kind.SNAPSHOT else values.get("lastIndex")
    error = {} if facts.error is None else {"error": problem_of(facts.error), "errorOffset": facts.error.offset}
    return {
        "path": file.path,
        "kind": file.kind.value,
        "state": _state(facts),
        "firstIndex": values.get("firstIndex"),
        "lastIndex": last,
        "entries": values.get("entries"),
        "capacity": values.get("capacity"),
        "dataSize": values.get("dataSize"),
        "fileSize": values.get("fileSize"),
        **error,
    }


def _row(record: dict[str, Any]) -> list[str]:
    return ["-" if record[name] is None else str(record[name]) for name in _COLUMNS.values()]
