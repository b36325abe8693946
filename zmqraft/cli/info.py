"""``zmqraft info``: who leads, and how far each peer's log is.

Knows nothing of sockets. The rule: a peer that does not answer is shown as such and holds up nobody for longer than
the timeout, since all are asked at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click

from zmqraft.cli.cluster_options import ClusterAddress, cluster_options
from zmqraft.cli.output import Output
from zmqraft.cli.tables import aligned
from zmqraft.client import LogInfo, ZmqRaftPeerClient
from zmqraft.errors import RequestError, RequestTimeoutError
from zmqraft.server.checks import camel_case

__all__ = ["info"]

_COLUMNS = ("id", "url", "state", "term", "first", "applied", "commit", "last", "snapshot", "prune")


@dataclass(frozen=True)
class _PeerReport:
    """What one peer said, or why it did not."""

    url: str
    peers: tuple[tuple[str, str], ...] = ()
    log: LogInfo | None = None
    error: str = ""

    def row(self, peer_id: str) -> tuple[str, ...]:
        log = self.log
        if log is None:
            return (peer_id, self.url, self.error)
        numbers = (log.term, log.first_index, log.last_applied, log.commit_index, log.last_index)
        state = "leader" if log.is_leader else "follower"
        return (peer_id, self.url, state, *map(str, numbers), str(log.snapshot_size), str(log.prune_index))

    def record(self, peer_id: str) -> dict[str, Any]:
        if self.log is None:
            return {"id": peer_id, "url": self.url, "error": self.error}
        names = {field.name: camel_case(field.name) for field in dataclasses.fields(self.log)}
        values = {names[name]: value for name, value in dataclasses.asdict(self.log).items()}
        return {"id": peer_id, "url": self.url, **values, "peers": [list(peer) for peer in self.peers]}


@click.command()
@cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each peer.")
def info(cluster: ClusterAddress, as_json: bool) -> int:
    """Show every peer of the cluster: who leads, and the indexes of its log.

    The exit status is 1 when a peer does not answer.
    """
    reports = {report.url: report for report in _ask(cluster.urls, cluster)}
    ids = _ids(list(reports.values()))
    others = [url for url in ids if url not in reports]
    reports.update((report.url, report) for report in _ask(others, cluster))
    rows = sorted((ids.get(url, "?"), report) for url, report in reports.items())
    output = Output()
    if as_json:
        for peer_id, report in rows:
            output.json(report.record(peer_id))
    else:
        for line in aligned([_COLUMNS, *(report.row(peer_id) for peer_id, report in rows)], _COLUMNS.index("term")):
            output.line(line.encode())
    output.flush()
    return 0 if all(report.log is not None for report in reports.values()) else 1


def _ask(urls: Sequence[str], cluster: ClusterAddress) -> list[_PeerReport]:
    if not urls:
        return []
    with ThreadPoolExecutor(len(urls)) as executor:
        return list(executor.map(lambda url: _report(url, cluster), urls))


def _report(url: str, cluster: ClusterAddress) -> _PeerReport:
    try:
        with ZmqRaftPeerClient(url, secret=cluster.secret) as peer:
            config = peer.request_config(deadline_s=cluster.timeout_s)
            log = peer.request_log_info(deadline_s=cluster.timeout_s)
    except RequestTimeoutError:
        return _PeerReport(url, error="no answer")
    except RequestError as error:
        return _PeerReport(url, error=str(error))
    return _PeerReport(url, config.peers, log)


def _ids(reports: Sequence[_PeerReport]) -> dict[str, str]:
    """The id of each url, as the peers say; the leader's word counts most, then that of the highest term."""
    answered = [(report.log.is_leader, report.log.term, report) for report in reports if report.log is not None]
    answered.sort(key=lambda answer: answer[:2])
    return {url: peer_id for _, _, report in answered for peer_id, url in report.peers}
