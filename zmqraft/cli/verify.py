"""``zmqraft verify``: everything that is wrong with the files of a peer, and where.

Knows nothing of formats. The rule: one line for each finding and each file, which names the file; the exit status is 1
exactly when something is damaged, and then standard error says what to do.
"""

from __future__ import annotations

from typing import Any

import click

from zmqraft.cli.data_path import STATUS_DAMAGED, data_path, json_option, lock_holder, place
from zmqraft.cli.output import Output, remark
from zmqraft.cli.tables import text_line
from zmqraft.storage.token_file import REMEDY
from zmqraft.storage.verification import FileReport, Severity
from zmqraft.storage.verification import verify as verify_files

__all__ = ["verify"]


@click.command()
@data_path
@json_option("each file, with what was found in it")
def verify(path: str, as_json: bool) -> int:
    """Check every byte of a data directory, a log, an index file, a snapshot or a state file.

    \b
    ok       every checksum matches
    unknown  the structure is right, but there is no checksum: zmq-raft wrote it
    torn     left by a crash, never acknowledged; the next start removes or repairs it
    bad      damaged; the exit status is 1

    Nothing is changed, and a peer may be running on it.
    """
    holder = lock_holder(path)
    if holder is not None:
        remark(f"{path} is in use by the process {holder}; what it is writing now may not be seen")
    reports = verify_files(path)
    output = Output()
    for report in reports:
        if as_json:
            output.json(_record(report))
        else:
            _write(output, report)
    output.flush()
    bad = [report.path for report in reports if report.severity is Severity.BAD]
    if bad:
        remark(f"damaged: {', '.join(bad)}; {REMEDY}")
    return STATUS_DAMAGED if bad else 0


def _state(report: FileReport) -> str:
    return report.severity.value if report.severity is not None else "ok"


def _record(report: FileReport) -> dict[str, Any]:
    findings = [
        {"severity": found.severity.value, "offset": found.offset, "index": found.index, "text": found.text}
        for found in report.findings
    ]
    return {
        "path": report.path,
        "kind": report.kind.value,
        "state": _state(report),
        **report.values,
        "findings": findings,
    }


def _write(output: Output, report: FileReport) -> None:
    for found in report.findings:
        line = f"{report.path}: {found.severity.value}: {place(found.text, found.offset, found.index)}{found.text}"
        output.line(text_line(line))
    if not report.findings:
        values = ", ".join(f"{name} {value}" for name, value in report.values.items())
        output.line(text_line(f"{report.path}: ok: {report.kind.value}{f', {values}' if values else ''}"))
