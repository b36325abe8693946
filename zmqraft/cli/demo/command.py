"""The steps of the demo, and what must have held in the end.

Knows nothing of how peers and clients work. The rule: exit status 0 means that every check was made and held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import click

from zmqraft.cli.demo.cluster import Cluster, DemoError
from zmqraft.cli.demo.comparison import difference
from zmqraft.cli.demo.interruption import POLL_S, Interruption
from zmqraft.cli.demo.replication import Replication, SubscriberThread
from zmqraft.cli.demo.report import Reporter, choose_reporter
from zmqraft.cli.output import describe_version, remark
from zmqraft.client import ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.errors import RequestError
from zmqraft.protocol.entry import LogEntry
from zmqraft.server.checks import camel_case
from zmqraft.storage import FileLog

__all__ = ["bundled_text", "demo"]

#: The file that ships with the package.
_TEXT = "logbook.txt"
_LINES_MIN = 2
_DEADLINE_S = 60.0
_REQUEST_DEADLINE_S = 2.0
_READ_SIZE_MAX = 1024 * 1024


@dataclass
class _Result:
    """What the demo has found."""

    lines: int
    size_bytes: int
    first_leader: str = ""
    second_leader: str = ""
    updates_per_second: float = 0.0
    seconds_without_leader: float = 0.0
    #: For each stream, whether it gave the file back, each line exactly once.
    identical: dict[str, bool] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return bool(self.identical) and all(self.identical.values())

    def record(self) -> dict[str, Any]:
        """The result for JSON."""
        return {"holds": self.holds, **{camel_case(name): value for name, value in dataclasses.asdict(self).items()}}


@click.command()
@click.option("--input", "path", type=click.Path(exists=True, dir_okay=False), help="Replicate this file.")
@click.option("--keep", is_flag=True, help="Keep the data of the peers, and say where it is.")
@click.option("--json", "as_json", is_flag=True, help="Print only the results, as a JSON object.")
def demo(path: str | None, keep: bool, as_json: bool) -> None:
    """Replicate a file through three peers, kill their leader half-way, and read the file back from each.

    The exit status is 0 only if the subscriber's stream and every peer's log are the file, byte for byte, with each
    line exactly once.
    """
    content = bundled_text() if path is None else Path(path).read_bytes()
    lines = io.BytesIO(content).readlines()
    if len(lines) < _LINES_MIN:
        raise DemoError(f"{path}: the leader is lost half-way, so at least {_LINES_MIN} lines are needed")
    result = _Result(len(lines), len(content))
    with (
        Interruption() as interruption,
        _directory(keep) as directory,
        choose_reporter(quiet=as_json) as reporter,
    ):
        _replicate(directory, lines, result, reporter, interruption)
    if as_json:
        click.echo(json.dumps({**result.record(), **({"directory": str(directory)} if keep else {})}))
    if not result.holds:
        raise DemoError("the file did not come back everywhere as it was")


def bundled_text() -> bytes:
    """The file that is replicated when none is named."""
    return (resources.files("zmqraft.cli.demo") / "data" / _TEXT).read_bytes()


@contextlib.contextmanager
def _directory(keep: bool) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="zmqraft-demo-"))
    try:
        yield directory
    finally:
        if keep:
            remark(f"the data of the peers is in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _replicate(
    directory: Path, lines: Sequence[bytes], result: _Result, reporter: Reporter, interruption: Interruption
) -> None:
    reporter.say(f"{describe_version()}: starting three peers in {directory}")
    with Cluster(directory, interruption) as cluster:
        urls, secret = tuple(cluster.urls.values()), cluster.secret.encode()
        with (
            ZmqRaftClient(urls, secret=secret) as client,
            SubscriberThread(urls, secret, interruption) as subscriber,
        ):
            replication = Replication(client, lines, reporter.progress, interruption)
            _lose_leader(cluster, client, replication, result, reporter, interruption)
            _wait_for_logs(cluster, replication.indexes[-1], interruption)
            entries = subscriber.entries_until(replication.indexes[-1])
        reporter.say("closing the peers, to read their logs back")
        cluster.stop()
        _compare("subscriber", entries, lines, replication.indexes, result, reporter)
        for peer_id in cluster.ids:
            log = _read_log(cluster.data_directory(peer_id))
            _compare(f"peer {peer_id}", log, lines, replication.indexes, result, reporter)


def _lose_leader(
    cluster: Cluster,
    client: ZmqRaftClient,
    replication: Replication,
    result: _Result,
    reporter: Reporter,
    interruption: Interruption,
) -> None:
    """Send all lines; kill the leader half-way, and start it again when three quarters are committed."""
    total = result.lines
    half, three_quarters = total // 2, total * 3 // 4
    leader = _leader(client, None, interruption)
    reporter.say(f"{leader} leads; replicating {total} lines of {result.size_bytes} bytes together")
    start = time.monotonic()
    replication.send_until(half)
    # Whom the client sends to; to ask would take until all that is under way is committed.
    killed = cluster.id_of(client.leader_url) or _leader(client, None, interruption)
    killed_at = time.monotonic()
    cluster.kill(killed)
    result.first_leader = killed
    reporter.say(f"killed the leader, {killed}, with {half} lines committed")
    result.second_leader = _leader(client, killed, interruption)
    reporter.say(f"{result.second_leader} leads now")
    replication.send_until(max(three_quarters, half + 1))
    # Measured before the killed peer competes with the others for the processor.
    result.seconds_without_leader = round(replication.pause_s(killed_at), 3)
    cluster.launch(killed)
    reporter.say(f"without a leader nothing was committed for {result.seconds_without_leader:.3f} s")
    reporter.say(f"started {killed} again")
    replication.send_until(total)
    result.updates_per_second = round(total / (time.monotonic() - start), 1)
    reporter.say(f"all {total} lines are committed: {result.updates_per_second:.0f} updates/s")
    cluster.wait_ready(killed)


def _leader(client: ZmqRaftClient, other_than: str | None, interruption: Interruption) -> str:
    """The id of the leader, once there is one, and it is not ``other_than``."""
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RequestError):
            leader_id = client.request_config(deadline_s=_REQUEST_DEADLINE_S).leader_id
            if leader_id is not None and leader_id != other_than:
                return leader_id
        interruption.sleep(POLL_S)
    raise DemoError(f"there was no leader within {_DEADLINE_S:.0f} s")


def _wait_for_logs(cluster: Cluster, index: int, interruption: Interruption) -> None:
    """Wait until every peer has the log up to ``index``, and knows that it is committed. Raises DemoError."""
    deadline = time.monotonic() + _DEADLINE_S
    for peer_id, url in cluster.urls.items():
        with ZmqRaftPeerClient(url, secret=cluster.secret.encode()) as peer:
            while not _has_committed(peer, index):
                cluster.check()
                if time.monotonic() > deadline:
                    raise DemoError(f"peer {peer_id} did not get entry {index} within {_DEADLINE_S:.0f} s")
                interruption.sleep(POLL_S)


def _has_committed(peer: ZmqRaftPeerClient, index: int) -> bool:
    try:
        return peer.request_log_info(deadline_s=_REQUEST_DEADLINE_S).commit_index >= index
    except RequestError:
        return False


def _read_log(directory: Path) -> Iterator[LogEntry]:
    log = FileLog.open(directory / "log", directory / "snap")
    try:
        index = log.first_index
        while index <= log.last_index:
            batch = log.read(index, log.last_index, _READ_SIZE_MAX)
            yield from batch
            index = batch.last_index + 1
    finally:
        log.close()


def _compare(
    name: str,
    entries: Iterable[LogEntry],
    lines: Sequence[bytes],
    indexes: Sequence[int],
    result: _Result,
    reporter: Reporter,
) -> None:
    """Note, and tell, whether a stream gave the file back."""
    found = difference(entries, lines, indexes)
    result.identical[name] = found is None
    reporter.say(f"{name}: {f'NOT IDENTICAL: {found}' if found else 'identical, each line exactly once'}")
