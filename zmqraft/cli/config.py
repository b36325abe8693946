"""``zmqraft config``: who the members of a cluster are, and changes of them.

Knows nothing of joint consensus, which is the leader's. The rule: nothing is asked of the cluster that would leave it
without a majority that is there, unless by force; and a change has succeeded when a leader among the new members says
that they are the members.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from zmqraft.cli.cluster_options import ClusterAddress, cluster_options
from zmqraft.cli.member_states import MemberState, member_states, reason_against
from zmqraft.cli.output import Output, remark
from zmqraft.cli.peer_lists import MemberChange, Peers, member_change
from zmqraft.cli.tables import aligned
from zmqraft.client import ClusterInfo, ZmqRaftClient
from zmqraft.errors import RequestError, RequestTimeoutError

__all__ = ["config"]

_POLL_S = 0.05
_PEERS_HELP = "tcp://host:port/id, with commas in between; the id is the url when it is left out"


@click.command()
@cluster_options
@click.option("-a", "--add", multiple=True, metavar="PEERS", help=f"Add members: {_PEERS_HELP}.")
@click.option("-d", "--delete", multiple=True, metavar="PEERS", help="Delete members: ids or urls.")
@click.option("-r", "--replace", multiple=True, metavar="PEERS", help="Let these be the members, and nobody else.")
@click.option("-n", "--dry-run", is_flag=True, help="Check the change and show it, and change nothing.")
@click.option("--force", is_flag=True, help="Also when too few of the members are there, or one is far behind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("hosts", metavar="[HOST[:PORT]]...", nargs=-1)
def config(
    cluster: ClusterAddress,
    add: tuple[str, ...],
    delete: tuple[str, ...],
    replace: tuple[str, ...],
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Show the members of the cluster and who leads, or change the members.

    HOST is a peer of the cluster, as --url is. New peers are started first, with the present members as their peers.
    With --add or --delete only those change. It ends when the change is done and a new member leads.
    """
    if replace and (add or delete):
        raise click.UsageError("--replace excludes --add and --delete")
    shows_only = not (add or delete or replace)
    if shows_only and (dry_run or force):
        raise click.UsageError("--dry-run and --force are for --add, --delete and --replace")
    with ZmqRaftClient(cluster.urls, secret=cluster.secret, deadline_s=cluster.timeout_s) as client:
        info = client.request_config()
        if shows_only:
            _show(as_json, info)
            return 0
        change = member_change(info.peers, add=add, delete=delete, replace=replace)
        states: list[MemberState] = []
        if dry_run or not force:
            states = member_states(change, client.request_log_info(), cluster)
            reason = reason_against(change, states)
            if reason and not force:
                raise RequestError(f"nothing was changed: {reason}; see zmqraft info, or use --force")
        if dry_run:
            _show_plan(as_json, info, change, states)
            return 0
        index = _make_change(client, change, cluster)
    _show(as_json, _new_cluster(change.after, index, cluster), change, index)
    return 0


def _make_change(client: ZmqRaftClient, change: MemberChange, cluster: ClusterAddress) -> int:
    """Returns the index at which the change began."""
    # While another one is under way the leader names the members of both lists; the new list must not come of those.
    if set(client.request_config().peers) != set(change.before):
        raise RequestError("nothing was changed: the members have changed meanwhile; look at them, and try again")
    try:
        return client.request_config_update(None, change.after)
    except RequestTimeoutError as error:
        raise RequestError(
            f"the change was not confirmed within {cluster.timeout_s:g} s, and may or may not be under way; "
            "zmqraft config shows the members"
        ) from error


def _new_cluster(members: Peers, index: int, cluster: ClusterAddress) -> ClusterInfo:
    """The cluster when one of the new members leads, and names just them."""
    deadline = time.monotonic() + cluster.timeout_s
    with ZmqRaftClient(members, secret=cluster.secret) as client:
        while (left := deadline - time.monotonic()) > 0:
            try:
                info = client.request_config(deadline_s=left)
            except RequestTimeoutError:
                break
            if set(info.peers) == set(members) and info.leader_id in dict(members):
                return info
            time.sleep(_POLL_S)
    raise RequestError(
        f"the change was made at index {index}, but within {cluster.timeout_s:g} s none of the new members was found "
        "to lead with just these members; zmqraft config shows them"
    )


def _show(as_json: bool, info: ClusterInfo, change: MemberChange | None = None, index: int | None = None) -> None:
    output = Output()
    if as_json:
        output.json({**_record(info.leader_id, info.peers, change), **({} if index is None else {"index": index})})
    else:
        rows = [(peer_id, url, "leader" if peer_id == info.leader_id else "member") for peer_id, url in info.peers]
        _write(output, [("id", "url", "role"), *rows])
    output.flush()
    if change is not None:
        remark(f"{change.describe()}, by a change at index {index}")


def _show_plan(as_json: bool, info: ClusterInfo, change: MemberChange, states: Sequence[MemberState]) -> None:
    output = Output()
    if as_json:
        problems = {state.peer_id: state.problem for state in states if state.problem}
        output.json({**_record(info.leader_id, change.after, change), "problems": problems, "dryRun": True})
    else:
        rows = [(state.peer_id, state.url, _role(state, info, change), state.problem or "there") for state in states]
        _write(output, [("id", "url", "role", "state"), *rows])
    output.flush()
    remark("nothing was changed")


def _role(state: MemberState, info: ClusterInfo, change: MemberChange) -> str:
    peer = (state.peer_id, state.url)
    role = "leader" if state.peer_id == info.leader_id else "member"
    if peer in change.added:
        return "new member"
    return f"{role}, removed" if peer in change.removed else role


def _record(leader_id: str | None, peers: Peers, change: MemberChange | None) -> dict[str, Any]:
    record: dict[str, Any] = {"leaderId": leader_id, "peers": [list(peer) for peer in peers]}
    if change is not None:
        record["added"] = [list(peer) for peer in change.added]
        record["removed"] = [list(peer) for peer in change.removed]
    return record


def _write(output: Output, rows: list[tuple[str, ...]]) -> None:
    for line in aligned(rows, len(rows[0])):
        output.line(line.encode())
