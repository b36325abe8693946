"""``zmqraft recover``: new members for a cluster whose majority is gone for good, by a peer that is not running.

Knows nothing of logs. The rule: what may be lost is said before, and nothing is changed unless somebody agrees.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from zmqraft.cli import logs
from zmqraft.cli.output import Output, remark
from zmqraft.cli.peer_lists import describe_peers, parse_peers
from zmqraft.cli.run import find_config_file
from zmqraft.cli.tables import text_line
from zmqraft.errors import RequestError
from zmqraft.server.config_file import NAMESPACE_DEFAULT, load_settings
from zmqraft.server.offline_recovery import Recovery, RecoveryPlan, recover_offline

__all__ = ["recover"]


@click.command()
@click.option("-c", "--config", metavar="FILE", help="Configuration file [default: ./zmqraft.yaml, .json, ...].")
@click.option("-b", "--bind", metavar="URL", help="As that of zmqraft run, for a peer that is not in the file.")
@click.option("--ns", "namespace", default=NAMESPACE_DEFAULT, show_default=True, help="The root key of the settings.")
@click.option(
    "--peers",
    multiple=True,
    metavar="PEERS",
    help="The new members, tcp://host:port/id with commas in between [default: ID alone].",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("peer_id", metavar="[ID]", required=False)
def recover(
    config: str | None,
    bind: str | None,
    namespace: str,
    peers: tuple[str, ...],
    yes: bool,
    as_json: bool,
    peer_id: str | None,
) -> int:
    """Make the peer ID, which must not be running, the only member of its cluster.

    The last resort, when a majority of the members is gone for good: as long as one could come back, wait for it. What
    only the others had is lost, also what was acknowledged. Of several survivors take the one whose log has the highest
    term and, in that, the highest index. The others must never run again with their data. New peers get new ids; add
    them with zmqraft config once this one runs.

    What is changed is copied before; the copies are printed.
    """
    logs.configure("warning", "text")
    path = find_config_file(Path()) if config is None else Path(config)
    settings = load_settings(path, namespace=namespace, id=peer_id, bind=bind)
    members = parse_peers(peers) if peers else None
    recovery = recover_offline(settings, members, lambda plan: _agrees(plan, yes))
    if recovery is None:
        raise RequestError("nothing was changed, since nobody agreed; --yes agrees")
    _show(recovery, as_json)
    return 0


def _agrees(plan: RecoveryPlan, yes: bool) -> bool:
    for line in _warning(plan):
        click.echo(line, err=True)
    if yes:
        return True
    if sys.stdin is None:
        return False
    try:
        return click.confirm("Write this configuration?", err=True)
    except click.Abort:
        click.echo("", err=True)
        return False


def _warning(plan: RecoveryPlan) -> list[str]:
    old = plan.before.old
    before = describe_peers(plan.before.peers)
    lines = [
        f"The last resort for peer {plan.peer_id!r}, when a majority of its cluster is gone for good.",
        f"Its members are {before}" + ("." if old is None else f", in a change from {describe_peers(old)}."),
        f"The log ends with entry {plan.last_index} of term {plan.last_term}.",
        " - What only the others had is lost, also what they have acknowledged.",
        f" - Of the entries above {plan.committed} it is not known here whether they were committed; they will be."
        if plan.committed < plan.last_index
        else " - All entries here are known to be committed.",
        " - Who is not among the new members must never run again with the old data.",
    ]
    if plan.peer_id not in plan.before:
        lines.append(f" - {plan.peer_id!r} is no member, so its log may be far behind.")
    lines.append("The new members:")
    lines += [f"   {peer_id}  {url}" for peer_id, url in plan.after.peers]
    return lines


def _show(recovery: Recovery, as_json: bool) -> None:
    output = Output()
    if as_json:
        output.json(
            {
                "index": recovery.index,
                "term": recovery.term,
                "changed": recovery.is_new,
                "copies": [{"path": path, "copy": copy} for path, copy in recovery.copies],
            }
        )
    else:
        for _, copy in recovery.copies:
            output.line(text_line(copy))
    output.flush()
    if recovery.is_new:
        remark(f"entry {recovery.index} of term {recovery.term} has the new members; the peer can be started")
    else:
        remark("nothing to do: these are the members already")
