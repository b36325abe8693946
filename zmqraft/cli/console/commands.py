"""The commands of the console: a line in, lines out.

Knows nothing of terminals. The rule: a command that fails says so in one line and changes nothing; what goes on in the
background (subscribe, flood) ends with `stop`, and with the console.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from zmqraft.cli.cluster_options import ClusterAddress
from zmqraft.cli.console.flood import Flood
from zmqraft.cli.plain_values import decoded
from zmqraft.client import SnapshotChunk, ZmqRaftClient, ZmqRaftPeerClient, ZmqRaftSubscriber
from zmqraft.errors import RequestError, ZmqRaftError
from zmqraft.protocol.entry import LogEntry

__all__ = ["Console"]

FORMATS = ("text", "hex", "msgpack")
_READ_COUNT = 100


class UsageError(Exception):
    """A command with the wrong arguments."""


class Console:
    """Executes commands; output goes to ``say``, also from other threads while something goes on in the background."""

    def __init__(self, cluster: ClusterAddress, say: Callable[[str], None]) -> None:
        #: Whether the user wants to leave.
        self.is_over = False
        self._say = say
        self._cluster = cluster
        self._urls: tuple[str, ...] = cluster.urls
        self._secret: bytes = cluster.secret
        self._client: ZmqRaftClient | None = None
        self._format = "text"
        self._subscriber: ZmqRaftSubscriber | None = None
        self._following: threading.Thread | None = None
        self._flood: Flood | None = None
        self._written: dict[int, bytes] = {}
        self._commands: Mapping[str, Callable[..., None]] = {
            "connect": self._connect,
            "peers": self._peers,
            "info": self._info,
            "update": self._update,
            "read": self._read,
            "subscribe": self._subscribe,
            "flood": self._begin_flood,
            "stop": self._stop,
            "verify": self._verify,
            "decode": self._decode,
            "help": self._help,
            "quit": self._quit,
        }

    @property
    def where(self) -> str:
        """What the prompt shows."""
        leader = self._client.leader_url if self._client is not None else None
        return (leader or self._urls[0]).removeprefix("tcp://")

    def completions(self) -> dict[str, Any]:
        """What may follow what, as nested dictionaries."""
        return {name: dict.fromkeys(FORMATS) if name == "decode" else None for name in self._commands}

    def execute(self, line: str) -> bool:
        """Carry out a line. Returns whether that went well."""
        try:
            name, *arguments = shlex.split(line, comments=True) or [""]
            if not name:
                return True
            command = self._commands.get(name)
            if command is None:
                raise UsageError(f"unknown command {name!r}; help lists them")
            try:
                command(*arguments)
            except TypeError as error:
                # Only of the call itself: wrong arguments.
                if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                    raise
                raise UsageError(f"usage: {self._usage(name)}") from None
        except (UsageError, ValueError, ZmqRaftError) as error:
            self._say(f"error: {error}")
            return False
        return True

    def close(self) -> None:
        """Stop what goes on, and close the client."""
        self._stop()
        self._close_client()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- the cluster ------------------------------------------------------------------------------------------------

    def _open_client(self) -> ZmqRaftClient:
        if self._client is None:
            deadline_s = self._cluster.timeout_s
            self._client = ZmqRaftClient(self._urls, secret=self._secret, deadline_s=deadline_s, sndhwm=1000)
        return self._client

    def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connect(self, *urls: str) -> None:
        """connect URL...: talk to another cluster with the same secret; without URL, find the leader anew"""
        self._stop()
        self._close_client()
        self._urls = urls or self._urls
        info = self._open_client().request_config()
        self._say(f"peer {info.leader_id} leads, of {len(info.peers)}")

    def _peers(self) -> None:
        """peers: who is in the cluster"""
        info = self._open_client().request_config()
        for peer_id, url in info.peers:
            self._say(f"{peer_id} {url}{' leads' if peer_id == info.leader_id else ''}")

    def _info(self) -> None:
        """info: the log of each peer"""
        for peer_id, url in self._open_client().request_config().peers:
            try:
                with ZmqRaftPeerClient(url, secret=self._secret, deadline_s=self._cluster.timeout_s) as peer:
                    log = peer.request_log_info()
            except RequestError as error:
                self._say(f"{peer_id} {url} {error}")
                continue
            role = "leader" if log.is_leader else "follower"
            numbers = f"term {log.term} entries {log.first_index} to {log.last_index}"
            self._say(f"{peer_id} {url} {role} {numbers} commit {log.commit_index} applied {log.last_applied}")

    # --- entries ----------------------------------------------------------------------------------------------------

    def _update(self, *words: str) -> None:
        """update TEXT: append an entry, and say its index"""
        if not words:
            raise UsageError("usage: update TEXT")
        self._say(str(self._open_client().request_update(None, " ".join(words).encode())))

    def _read(self, first: str = "1", count: str = str(_READ_COUNT)) -> None:
        """read [FROM] [COUNT]: entries of the log, 100 by default"""
        with self._open_client().request_entries(int(first) - 1, count=int(count)) as entries:
            for entry in entries:
                self._show(entry)

    def _subscribe(self, first: str = "") -> None:
        """subscribe [FROM]: show entries as they are committed, until stop"""
        if self._subscriber is not None:
            raise UsageError("a subscription is under way; stop it first")
        last_index = int(first) - 1 if first else self._open_client().request_log_info().last_applied
        subscriber = self._subscriber = ZmqRaftSubscriber(self._urls, secret=self._secret, last_index=last_index)

        def follow() -> None:
            for entry in subscriber:
                self._show(entry)

        self._following = threading.Thread(target=follow, name="zmqraft-console-subscription", daemon=True)
        self._following.start()

    def _show(self, entry: LogEntry | SnapshotChunk) -> None:
        if isinstance(entry, SnapshotChunk):
            if entry.offset == 0:
                self._say(f"the entries up to {entry.index} are in a snapshot of {entry.size} bytes")
        else:
            kind = "" if entry.is_state else f" {entry.type.name}"
            self._say(f"{entry.index} {entry.term}{kind} {self._shown(entry.data)}")

    def _shown(self, data: bytes) -> str:
        if self._format == "msgpack":
            try:
                return repr(decoded(data))
            except ValueError:
                return data.hex()
        return data.hex() if self._format == "hex" else data.decode(errors="backslashreplace")

    def _decode(self, data_format: str) -> None:
        """decode text|hex|msgpack: how data is shown from now on"""
        if data_format not in FORMATS:
            raise UsageError(f"usage: {self._usage('decode')}")
        self._format = data_format

    # --- load -------------------------------------------------------------------------------------------------------

    def _begin_flood(self, size: str = "100", in_flight: str = "256") -> None:
        """flood [SIZE] [IN_FLIGHT]: updates of SIZE bytes, as fast as they go, until stop"""
        if self._flood is not None:
            raise UsageError("a flood is under way; stop it first")
        self._flood = Flood(self._open_client(), int(size), int(in_flight))

    def _stop(self) -> None:
        """stop: end a subscription and a flood, and say how that went"""
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None and self._following is not None:
            subscriber.close()
            self._following.join()
        flood, self._flood = self._flood, None
        if flood is not None:
            result = flood.stop()
            self._written.update(result.written)
            count = len(result.written)
            self._say(f"{count} updates in {result.seconds:.2f} s, {count / result.seconds:,.0f}/s")
            if result.error is not None:
                raise result.error

    def _verify(self) -> None:
        """verify: whether everything that was flooded is in the log, once, where it was acknowledged"""
        if not self._written:
            raise UsageError("there is nothing to verify: flood and stop first")
        first, last = min(self._written), max(self._written)
        found: dict[int, bytes] = {}
        with self._open_client().request_entries(first - 1, count=last - first + 1) as entries:
            for entry in entries:
                if isinstance(entry, SnapshotChunk):
                    raise ValueError("the entries are in a snapshot by now")
                if entry.is_state:
                    found[entry.index] = entry.data
        wrong = [index for index, data in self._written.items() if found.get(index) != data]
        if wrong:
            raise ValueError(f"{len(wrong)} entries are not as they were written, the first is {min(wrong)}")
        written = set(self._written.values())
        if sum(data in written for data in found.values()) != len(self._written):
            raise ValueError("an update is there twice")
        self._say(f"{len(self._written)} entries from {first} to {last} are as they were written")

    # --- the console ------------------------------------------------------------------------------------------------

    def _usage(self, name: str) -> str:
        return str(self._commands[name].__doc__).partition(":")[0]

    def _help(self) -> None:
        """help: this list"""
        for command in self._commands.values():
            self._say(str(command.__doc__))

    def _quit(self) -> None:
        """quit: leave"""
        self.is_over = True
