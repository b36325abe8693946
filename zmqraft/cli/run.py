"""``zmqraft run``: one peer, from its configuration file to its end.

Knows nothing of Raft. The rule: standard output carries one line, the url, once the peer is ready; the exit status is
0 only for a peer that was asked to stop and did.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from zmqraft.api import StateMachineBase
from zmqraft.cli import logs
from zmqraft.errors import ClosedError, ConfigurationError, CorruptionError, ZmqRaftError
from zmqraft.server.config_file import NAMESPACE_DEFAULT, load_settings
from zmqraft.server.settings import Settings

__all__ = ["find_config_file", "run", "run_peer"]

logger = logging.getLogger(__name__)

#: Looked for in the working directory when no file is named.
CONFIG_FILE_NAMES = tuple(f"zmqraft.{suffix}" for suffix in ("yaml", "yml", "json", "hjson", "toml"))

_WAIT_S = 1.0


@click.command()
@click.option("-c", "--config", metavar="FILE", help="Configuration file [default: ./zmqraft.yaml, .json, ...].")
@click.option("-b", "--bind", metavar="URL", help="What the peer's socket binds, instead of its own url.")
@click.option("-p", "--pub", metavar="URL", help="The url of its broadcast socket.")
@click.option("-w", "--www", metavar="URL", help="The url of its web monitor.")
@click.option("--new", "is_new", is_flag=True, help="It has no data yet, whatever data.mustExist says.")
@click.option("--ns", "namespace", default=NAMESPACE_DEFAULT, show_default=True, help="The root key of the settings.")
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="warning", show_default=True)
@click.option("--log-format", type=click.Choice(logs.FORMATS), default="text", show_default=True)
@click.argument("peer_id", metavar="[ID]", required=False)
def run(
    config: str | None,
    bind: str | None,
    pub: str | None,
    www: str | None,
    is_new: bool,
    namespace: str,
    log_level: str,
    log_format: str,
    peer_id: str | None,
) -> int:
    """Run the peer ID, until SIGTERM or SIGINT closes it.

    ID and the other flags go before what the file says. Once the peer is ready, its url is printed: one whose log is
    damaged fetches the entries from the others before that.
    """
    logs.configure(log_level, log_format)
    path = find_config_file(Path()) if config is None else Path(config)
    settings = load_settings(path, namespace=namespace, id=peer_id, bind=bind, pub=pub, www=www)
    if is_new:
        settings = replace(settings, data=replace(settings.data, must_exist=False))
    return run_peer(settings)


def find_config_file(directory: Path) -> Path:
    """The configuration file of a directory. Raises ConfigurationError unless there is exactly one."""
    found = [directory / name for name in CONFIG_FILE_NAMES if (directory / name).is_file()]
    if not found:
        raise ConfigurationError(f"no configuration file: name one with -c, or put {CONFIG_FILE_NAMES[0]} here")
    if len(found) > 1:
        raise ConfigurationError(f"several configuration files: name one with -c ({', '.join(map(str, found))})")
    return found[0]


def run_peer(settings: Settings, *, state_machine: Callable[[Settings], StateMachineBase] | None = None) -> int:
    """Run a peer until it is asked to stop, or fails. Returns the exit status; an error of the settings is raised.

    ``state_machine`` makes one in place of that of the settings.

    A peer that comes upon a damaged entry of its log ends, and another one begins: that mends the log before it runs.
    """
    signals: list[str] = []
    # A SimpleQueue may be put to from a signal handler, whatever the main thread is doing; an Event may not.
    endings: queue.SimpleQueue[str] = queue.SimpleQueue()

    def stop(number: int, frame: types.FrameType | None) -> None:
        # Who asks twice is in a hurry.
        signal.signal(number, signal.SIG_DFL)
        signals.append(signal.Signals(number).name)
        endings.put(signals[-1])

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    damaged: set[int] = set()
    while True:
        error = _run_once(settings, state_machine, signals, endings, say_url=not damaged)
        if error is None or signals:
            return 0 if error is None else 1
        # A peer that fails has logged why. An entry that was put back and is damaged again is a matter for somebody.
        if not isinstance(error, CorruptionError) or error.index is None or error.index in damaged:
            return 1
        damaged.add(error.index)
        logger.error("%s: starting anew, since entry %d of the log is damaged", settings.id, error.index)


def _run_once(
    settings: Settings,
    state_machine: Callable[[Settings], StateMachineBase] | None,
    signals: list[str],
    endings: queue.SimpleQueue[str],
    *,
    say_url: bool,
) -> BaseException | None:
    """Run a peer to its end; why it has failed, if it has after its start."""
    from zmqraft.server.builder import build_peer, make_state_machine

    try:
        raft = build_peer(settings, state_machine=state_machine or make_state_machine, stopped=lambda: bool(signals))
    except ClosedError:
        # It was asked to stop before its log was mended.
        return None
    raft.on("close", lambda *_: endings.put("closed"))
    try:
        with raft:
            if say_url:
                click.echo(raft.url)
            while not signals and not raft.wait_closed(0):
                _wait_for(endings)
    except ZmqRaftError:
        if raft.error is None:
            raise
    return raft.error


def _wait_for(endings: queue.SimpleQueue[str]) -> None:
    """Wait until there is something. A signal that comes just before the wait begins does not interrupt it, and its
    handler runs only afterwards: so no wait is long."""
    while True:
        with contextlib.suppress(queue.Empty):
            endings.get(timeout=_WAIT_S)
            return
