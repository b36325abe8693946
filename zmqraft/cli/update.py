"""``zmqraft update``: lines from a pipe become entries of the log.

Knows nothing of sockets or of who leads. The rule: the indexes come out in the order of the lines, each as soon as its
line and all before it are committed, whether or not the next line has come.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import BinaryIO

import click

from zmqraft.cli.cluster_options import ClusterAddress, cluster_options
from zmqraft.cli.output import Output
from zmqraft.client import ZmqRaftClient
from zmqraft.protocol.request_id import new_request_id, request_id_from_text

__all__ = ["update"]

#: An update under way: its request id and its index to come; an error of the reading side; or None at the end.
_Item = tuple[bytes, "Future[int]"] | BaseException | None


@click.command()
@cluster_options
@click.option("-f", "--file", "path", type=click.Path(exists=True, dir_okay=False), help="Read lines from a file.")
@click.option("--chomp", is_flag=True, help="Leave out the newline at the end of each line.")
@click.option(
    "--in-flight",
    type=click.IntRange(1, 65536),
    default=256,
    show_default=True,
    metavar="N",
    help="How many updates may be under way at once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each update.")
@click.option(
    "--request-id",
    metavar="ID",
    help="The request id of DATA: repeat with it an update whose outcome is not known.",
)
@click.argument("data", required=False)
def update(
    cluster: ClusterAddress,
    path: str | None,
    chomp: bool,
    in_flight: int,
    as_json: bool,
    request_id: str | None,
    data: str | None,
) -> None:
    """Append DATA to the log, or else every line of a file or of standard input; print the index of each entry.

    A line goes into the log with its newline, so that an empty line is an entry too and `zmqraft read` gives the file
    back as it was.
    """
    if data is not None and path is not None:
        raise click.UsageError("DATA and --file exclude each other")
    if data == "":
        raise click.UsageError("DATA is empty; an entry never is")
    if request_id is not None and data is None:
        raise click.UsageError("--request-id names one update: it needs DATA")
    given_id = None if request_id is None else _parse_request_id(request_id)
    output = Output()
    lines = _lines(path, chomp) if data is None else iter([os.fsencode(data)])
    with ZmqRaftClient(cluster.urls, secret=cluster.secret) as client:
        for used_id, index in _Updates(client, cluster.timeout_s, in_flight, given_id).results(lines):
            if as_json:
                output.json({"index": index, "requestId": used_id.hex()})
            else:
                output.line(b"%d" % index)
            output.flush()


def _parse_request_id(text: str) -> bytes:
    try:
        return request_id_from_text(text)
    except ValueError as error:
        raise click.UsageError(f"--request-id: {error}") from None


def _lines(path: str | None, chomp: bool) -> Iterator[bytes]:
    if path is not None:
        with open(path, "rb") as source:
            yield from _data_of_lines(source, chomp)
    elif sys.stdin is None:
        raise click.ClickException("standard input is closed; give it lines, a --file or DATA")
    else:
        # Not sys.stdin, whose lock a thread that waits for a line would still hold when the process ends. Nor is this
        # one closed, which would wait for that lock.
        yield from _data_of_lines(open(sys.stdin.fileno(), "rb", closefd=False), chomp)  # noqa: SIM115


def _data_of_lines(source: BinaryIO, chomp: bool) -> Iterator[bytes]:
    for number, line in enumerate(source, 1):
        data = line.removesuffix(b"\n") if chomp else line
        if not data:
            raise click.ClickException(f"line {number} is empty, an entry never is; without --chomp it has its newline")
        yield data


class _Updates:
    """Submits from a thread of its own, so that a result never waits for the next line."""

    def __init__(
        self, client: ZmqRaftClient, timeout_s: float, in_flight: int, request_id: bytes | None = None
    ) -> None:
        """``request_id`` is for a single line; without it each gets a new one."""
        self._client = client
        self._request_id = request_id
        self._timeout_s = timeout_s
        self._under_way: queue.Queue[_Item] = queue.Queue(in_flight)

    def results(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
        """Request id and index of every line, in order. Raises what reading, or the first update that fails, raised."""
        threading.Thread(target=self._submit, args=(lines,), name="zmqraft-update", daemon=True).start()
        while (item := self._under_way.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            request_id, future = item
            yield request_id, future.result()

    def _submit(self, lines: Iterable[bytes]) -> None:
        try:
            for data in lines:
                request_id = self._request_id or new_request_id()
                future = self._client.submit_update(data, request_id=request_id, deadline_s=self._timeout_s)
                self._under_way.put((request_id, future))
        except Exception as error:
            self._under_way.put(error)
        else:
            self._under_way.put(None)
