"""``zmqraft read`` and ``zmqraft subscribe``: the entries of the log, up to now or for ever.

Knows nothing of sockets or of who leads. The rule: without ``--all`` only what clients wrote is shown, and what
stands in a snapshot, which only the state machine can read, is never passed off as entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from zmqraft.cli.cluster_options import ClusterAddress, cluster_options
from zmqraft.cli.output import ENCODINGS, Output, encode_data, remark
from zmqraft.client import SnapshotChunk, ZmqRaftSubscriber
from zmqraft.protocol.entry import LogEntry

__all__ = ["read", "subscribe"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _output_options(command: _Function) -> _Function:
    for option in (
        click.option(
            "--encoding",
            type=click.Choice(ENCODINGS),
            default="text",
            show_default=True,
            help="How data appears in JSON; text that is not UTF-8 appears in base64.",
        ),
        click.option("--all", "everything", is_flag=True, help="Show configurations and checkpoints too."),
        click.option("--raw", is_flag=True, help="Print the data as it is, with nothing between entries."),
        click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each entry."),
        click.option(
            "--count",
            type=click.IntRange(min=1),
            metavar="N",
            help="Stop after N entries of the log, whatever their type.",
        ),
        click.option(
            "--from",
            "first_index",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            metavar="INDEX",
            help="The index of the first entry.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@cluster_options
@_output_options
def read(cluster: ClusterAddress, first_index: int, count: int | None, **how: Any) -> None:
    """Print the entries of the log that are committed now.

    Each is a line; what `zmqraft update` made of a file comes out as it was.
    """
    writer = _Writer(**how)
    with _subscriber(cluster, first_index) as entries:
        last_index = entries.request_log_info(deadline_s=cluster.timeout_s).last_applied
        if count is not None:
            last_index = min(last_index, first_index - 1 + count)
        while entries.last_index < last_index:
            writer.write(entries.get(cluster.timeout_s))
    writer.output.flush()


@click.command()
@cluster_options
@_output_options
def subscribe(cluster: ClusterAddress, first_index: int, count: int | None, **how: Any) -> None:
    """Print the entries of the log, and go on with new ones as they are committed."""
    writer = _Writer(**how)
    with _subscriber(cluster, first_index) as entries:
        # A cluster that cannot be found at all is an error; one that is lost later is waited for.
        entries.request_config(deadline_s=cluster.timeout_s)
        while count is None or entries.last_index < first_index - 1 + count:
            writer.write(entries.get())
            writer.output.flush()


def _subscriber(cluster: ClusterAddress, first_index: int) -> ZmqRaftSubscriber:
    return ZmqRaftSubscriber(cluster.urls, secret=cluster.secret, last_index=first_index - 1)


class _Writer:
    """Writes entries and chunks of a snapshot in the form that the options ask for."""

    def __init__(self, as_json: bool, raw: bool, everything: bool, encoding: str) -> None:
        if as_json and raw:
            raise click.UsageError("--json and --raw exclude each other")
        self.output = Output()
        self._as_json = as_json
        self._raw = raw
        self._everything = everything
        self._encoding = encoding

    def write(self, item: LogEntry | SnapshotChunk) -> None:
        if isinstance(item, SnapshotChunk):
            self._write_chunk(item)
        elif item.is_state or self._everything:
            self._write_entry(item)

    def _write_entry(self, entry: LogEntry) -> None:
        if self._as_json:
            record = {"index": entry.index, "term": entry.term, "type": entry.type.name}
            self.output.json({**record, "requestId": entry.request_id.hex(), **encode_data(entry.data, self._encoding)})
        elif self._raw:
            self.output.write(entry.data)
        else:
            self.output.line(entry.data)

    def _write_chunk(self, chunk: SnapshotChunk) -> None:
        if self._as_json:
            record = {"index": chunk.index, "term": chunk.term, "offset": chunk.offset, "size": chunk.size}
            # A chunk ends anywhere, also within a character.
            encoding = "base64" if self._encoding == "text" else self._encoding
            self.output.json({"snapshot": record, **encode_data(chunk.data, encoding)})
        elif chunk.offset == 0:
            remark(f"the entries up to {chunk.index} are in a snapshot of {chunk.size} bytes; --json shows it")
