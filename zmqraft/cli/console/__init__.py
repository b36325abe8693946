"""``zmqraft console``: an interactive client.

Commands come from a prompt with history and completion on a terminal, which wants the extra ``console``, or line by
line from a pipe. The rule: what goes wrong is one line, and the console goes on; from a pipe the exit status tells of
it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from zmqraft.cli.cluster_options import ClusterAddress, cluster_options
from zmqraft.cli.console.commands import Console

__all__ = ["console"]


@click.command()
@cluster_options
def console(cluster: ClusterAddress) -> int:
    """Talk to a cluster: type help for what it understands.

    Commands may come from a pipe too; then the exit status is 1 when one has failed.
    """
    if sys.stdin is None:
        raise click.ClickException("standard input is closed")
    if sys.stdin.isatty():
        return _at_a_terminal(cluster)
    with Console(cluster, _say) as commands:
        return _run(commands, sys.stdin)


def _run(commands: Console, lines: Iterator[str]) -> int:
    failures = 0
    for line in lines:
        failures += not commands.execute(line)
        if commands.is_over:
            break
    return int(failures > 0)


def _at_a_terminal(cluster: ClusterAddress) -> int:
    try:
        from zmqraft.cli.console.prompt import prompted_lines
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "prompt_toolkit":
            raise
        raise click.ClickException("a console at a terminal wants: pip install 'zmqraft[console]'") from None
    with Console(cluster, _say) as commands:
        _run(commands, prompted_lines(commands))
    return 0


def _say(text: str) -> None:
    click.echo(text)
