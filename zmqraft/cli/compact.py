"""``zmqraft compact``: the log of a peer that is not running, compacted with a state machine of the user's.

Knows nothing of logs. The rule: standard output has the index files that may be deleted, one a line, and nothing else;
nothing is deleted unless it is asked for.
"""

from __future__ import annotations

from pathlib import Path

import click

from zmqraft.cli import logs
from zmqraft.cli.output import Output, remark
from zmqraft.cli.run import find_config_file
from zmqraft.errors import ConfigurationError
from zmqraft.server.config_file import NAMESPACE_DEFAULT, load_settings

__all__ = ["compact"]


@click.command()
@click.option("-c", "--config", metavar="FILE", help="Configuration file [default: ./zmqraft.yaml, .json, ...].")
@click.option("--ns", "namespace", default=NAMESPACE_DEFAULT, show_default=True, help="The root key of the settings.")
@click.option(
    "-s",
    "--state-machine",
    metavar="MODULE:CLASS",
    help="Or FILE.py:CLASS [default: data.compact.state.path]; made with data.compact.state.options as keywords.",
)
@click.option(
    "--index",
    type=click.IntRange(min=1),
    metavar="INDEX",
    help="The last entry that goes into the snapshot; it must be committed, see lastApplied of zmqraft info.",
)
@click.option("--force", is_flag=True, help="Also above the prune index, below which all request ids are forgotten.")
@click.option("--prune", is_flag=True, help="Delete the index files that are no longer needed.")
@click.argument("peer_id", metavar="[ID]", required=False)
def compact(
    config: str | None,
    namespace: str,
    state_machine: str | None,
    index: int | None,
    force: bool,
    prune: bool,
    peer_id: str | None,
) -> int:
    """Compact the log of the peer ID, which must not be running.

    The state machine is restored from the snapshot, applies the entries behind it and gives a new snapshot, which takes
    their place. The index files that may be deleted then are printed.
    """
    from zmqraft.server.offline_compaction import compact_offline, load_state_machine

    logs.configure("warning", "text")
    path = find_config_file(Path()) if config is None else Path(config)
    settings = load_settings(path, namespace=namespace, id=peer_id)
    state = settings.data.compact.state
    name = state_machine or state.path
    if name is None:
        raise ConfigurationError("no state machine: name one with --state-machine, or in data.compact.state.path")
    result = compact_offline(
        settings, lambda: load_state_machine(name, state.options), index=index, force=force, prune=prune
    )
    output = Output()
    for file in result.removable_files:
        output.line(file.encode("utf-8", "surrogateescape"))
    output.flush()
    what = "the snapshot is" if result.is_new else "nothing to do, the snapshot is"
    remark(f"{what} of index {result.index}, term {result.term}, {result.size} bytes")
    if result.removable_files:
        done = "were deleted" if prune else "may be deleted"
        remark(f"{len(result.removable_files)} index files are no longer needed and {done}")
    return 0
