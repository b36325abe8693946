"""The group of all commands, and what becomes of an error.

Knows nothing of what the commands do. The rule: every command is in a module of its own that is imported only when it
is used, so that a peer does not load what only a client needs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from zmqraft.cli import STATUS_INTERRUPTED, STATUS_USAGE
from zmqraft.cli.output import OutputClosed, describe_version
from zmqraft.errors import ConfigurationError, ZmqRaftError

__all__ = ["run_command"]

STATUS_FAILED = 1
#: As a shell reports a process that SIGPIPE ended.
STATUS_OUTPUT_CLOSED = 141

#: Where each command is: a module, and the name in it where that is not the command's own.
_COMMANDS = {
    "run": "zmqraft.cli.run",
    "update": "zmqraft.cli.update",
    "read": "zmqraft.cli.read",
    "subscribe": "zmqraft.cli.read",
    "info": "zmqraft.cli.info",
    "config": "zmqraft.cli.config",
    "inspect": "zmqraft.cli.inspect",
    "list": "zmqraft.cli.list_files:list_files",
    "dump": "zmqraft.cli.dump",
    "verify": "zmqraft.cli.verify",
    "compact": "zmqraft.cli.compact",
    "recover": "zmqraft.cli.recover",
    "demo": "zmqraft.cli.demo",
    "kv": "zmqraft.cli.kv",
    "console": "zmqraft.cli.console",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name or cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{_COMMANDS[cmd_name]}.{cmd_name} is not a command")
        return command


@click.command(
    cls=_LazyGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(describe_version(), message="%(version)s")
def zmqraft_group() -> None:
    """The Raft consensus protocol over ZeroMQ: run peers of a cluster, and talk to one; look into their files."""


def run_command(arguments: Sequence[str] | None) -> int:
    """Run the command and return its exit status; an error is one line on standard error."""
    stdout = sys.stdout
    try:
        status = zmqraft_group.main(arguments, prog_name="zmqraft", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.Abort:
        return STATUS_INTERRUPTED
    except (OutputClosed, BrokenPipeError):
        _discard_output()
        return STATUS_OUTPUT_CLOSED
    except SystemExit:
        # Click itself ends the process on a broken pipe, behind a wrapper of standard output that hides the next error.
        if sys.stdout is stdout:
            raise
        _discard_output()
        return STATUS_OUTPUT_CLOSED
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "zmqraft"
        return _fail(f"{error.format_message()} (see {command} --help)", STATUS_USAGE, command)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except ConfigurationError as error:
        return _fail(str(error), STATUS_USAGE)
    except ZmqRaftError as error:
        return _fail(str(error) or type(error).__name__, STATUS_FAILED)
    except OSError as error:
        return _fail(str(error), STATUS_FAILED)


def _fail(message: str, status: int, command: str = "zmqraft") -> int:
    # Not print, which turns to standard output when there is no standard error.
    click.echo(f"{command}: {' '.join(message.split())}", err=True)
    return status


def _discard_output() -> None:
    """Nobody reads on: let what is still buffered go nowhere, instead of failing again when the process ends."""
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
