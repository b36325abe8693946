"""Clusters of `zmqraft run` and of zmq-raft's peers, as processes.

Peers are named by their place, "1" on, and kinds by a letter: P is ours, N is zmq-raft's. The rule: whoever is stopped
here, by whatever means, is expected to end so; a zmq-raft that ends by itself fails the test, at the latest in `stop`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support.command import PATIENCE_S, free_ports, running_peer, stop
from support.local_cluster import wait_for
from support.node import NodeProgram
from zmqraft import FileLog, LogEntry, LogInfo, ZmqRaftClient, ZmqRaftPeerClient

__all__ = ["NODE", "PYTHON", "MixedCluster", "read_log"]

PYTHON, NODE = "P", "N"


@dataclasses.dataclass(frozen=True)
class PeerPlace:
    """Where a peer is. One that joins is not among the peers of its own configuration."""

    id: str
    kind: str
    url: str
    pub: str
    joins: bool = False


class MixedCluster:
    """Peers with their data below ``directory``, all of them running; what still runs is killed at the end of ``with``.

    ``kinds`` is a letter for each peer. ``seen_urls`` has, for a peer, the urls that it knows others by, where those
    are not their own: of a proxy, for instance. ``settings`` are for all.
    """

    def __init__(
        self,
        directory: Path,
        modules: Path,
        kinds: str,
        *,
        secret: str = "interop",
        start: bool = True,
        urls: Sequence[str] | None = None,
        seen_urls: Mapping[str, Mapping[str, str]] | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.secret = secret
        self._modules = modules
        self._seen_urls = seen_urls or {}
        self._settings = settings
        urls = urls or [f"tcp://127.0.0.1:{port}" for port in free_ports(len(kinds))]
        pubs = [f"tcp://127.0.0.1:{port}" for port in free_ports(len(kinds))]
        self.places = {
            str(number): PeerPlace(str(number), kind, url, pub)
            for number, (kind, url, pub) in enumerate(zip(kinds, urls, pubs, strict=True), 1)
        }
        self._stack = contextlib.ExitStack()
        self._running: dict[str, subprocess.Popen[bytes] | NodeProgram] = {}
        for peer_id in self.places:
            self._write_config(peer_id)
        if start:
            with contextlib.ExitStack() as stack:
                stack.callback(self._stack.close)
                self.start(*self.places)
                stack.pop_all()

    def __enter__(self) -> MixedCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def urls(self) -> list[str]:
        return [place.url for place in self.places.values()]

    @property
    def running(self) -> list[str]:
        """The ids of the peers that were started and not stopped."""
        return list(self._running)

    def add(self, kind: str, members: Sequence[str]) -> str:
        """Start one more peer, of a kind, that joins the members; its id. It is no member itself before it is told."""
        peer_id = str(len(self.places) + 1)
        url, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
        self.places[peer_id] = PeerPlace(peer_id, kind, url, pub, joins=True)
        self._write_config(peer_id, members)
        self.start(peer_id)
        return peer_id

    def change_kind(self, peer_id: str) -> None:
        """Let the other program go on with a peer's data, under its id and url, where the one stops."""
        self.stop(peer_id)
        place = self.places[peer_id]
        self.places[peer_id] = dataclasses.replace(place, kind=NODE if place.kind == PYTHON else PYTHON)
        self.start(peer_id)

    def peers(self, peer_ids: Sequence[str]) -> list[tuple[str, str]]:
        """These peers as a configuration has them."""
        return [(peer_id, self.places[peer_id].url) for peer_id in peer_ids]

    def of_kind(self, kind: str) -> list[str]:
        """The ids of all peers of a kind."""
        return [place.id for place in self.places.values() if place.kind == kind]

    def data(self, peer_id: str) -> Path:
        """The data directory of a peer."""
        return self.directory / "data" / peer_id

    def start(self, *peer_ids: str) -> None:
        """Start peers, all at once, and wait until each has its socket."""
        with ThreadPoolExecutor(len(peer_ids)) as pool:
            for peer_id, started in [(peer_id, pool.submit(self._start_one, peer_id)) for peer_id in peer_ids]:
                self._running[peer_id] = started.result()

    def _start_one(self, peer_id: str) -> subprocess.Popen[bytes] | NodeProgram:
        config = self._config(peer_id)
        if self.places[peer_id].kind == PYTHON:
            return self._stack.enter_context(running_peer(config, peer_id, "--log-level=error"))
        program = self._stack.enter_context(NodeProgram(self._modules, "peer.js", config, peer_id))
        program.wait_event("ready")
        return program

    def kill(self, *peer_ids: str) -> None:
        """End peers by SIGKILL."""
        for peer_id in peer_ids:
            self.check(peer_id)
            peer = self._running.pop(peer_id)
            if isinstance(peer, NodeProgram):
                peer.kill()
            else:
                peer.send_signal(signal.SIGKILL)
                peer.communicate(timeout=PATIENCE_S)

    def stop(self, *peer_ids: str) -> None:
        """End peers, all of them by default, as an operator does. AssertionError when one says something, or failed."""
        for peer_id in peer_ids or self._leader_last():
            self.check(peer_id)
            peer = self._running.pop(peer_id)
            if isinstance(peer, NodeProgram):
                peer.close()
            else:
                assert stop(peer, signal.SIGTERM) == (0, b"")

    def _leader_last(self) -> list[str]:
        """The running peers in an order that gives the others no leader of their own."""
        if len(self.running) < 2:
            return self.running
        leader = self.leader_id()
        return sorted(self.running, key=lambda peer_id: peer_id == leader)

    def check(self, *peer_ids: str) -> None:
        """AssertionError when a peer, any by default, has ended by itself."""
        for peer_id in peer_ids or self.running:
            peer = self._running[peer_id]
            if isinstance(peer, NodeProgram):
                failed = [event for event in peer.events if event["event"] == "failed"]
                assert peer.running, f"peer {peer_id}, zmq-raft, has stopped: {failed} {peer.process.returncode}"
            else:
                assert peer.poll() is None, f"peer {peer_id} has stopped: {peer.communicate()[1].decode()}"

    def node(self, peer_id: str) -> NodeProgram:
        """The running script of one of zmq-raft's peers."""
        peer = self._running[peer_id]
        assert isinstance(peer, NodeProgram)
        return peer

    def client(self) -> ZmqRaftClient:
        return ZmqRaftClient(self.urls, secret=self.secret, deadline_s=PATIENCE_S)

    def leader_id(self) -> str:
        """The id of the peer that says of itself that it leads."""
        with self.client() as client:
            leader_id = client.request_config().leader_id
        assert leader_id is not None
        return leader_id

    def make_lead(self, peer_ids: Collection[str]) -> str:
        """Kill and start the leader until it is one of these peers; its id. (One that is asked to stop may choose.)"""
        leader = self.leader_id()

        def leads() -> bool:
            nonlocal leader
            if leader not in peer_ids:
                loser = leader
                self.kill(loser)
                # Started only when another leads, or it might be back in time to be elected again.
                leader = self.leader_id()
                self.start(loser)
            return leader in peer_ids

        wait_for(leads, f"a leader among {', '.join(peer_ids)}")
        return leader

    def wait_applied(self, index: int) -> dict[str, LogInfo]:
        """Wait until every running peer has applied an entry; what they say of their logs."""
        found: dict[str, LogInfo] = {}
        with contextlib.ExitStack() as stack:
            clients = {
                peer_id: stack.enter_context(ZmqRaftPeerClient(self.places[peer_id].url, secret=self.secret))
                for peer_id in self.running
            }

            def have() -> bool:
                self.check()
                found.update({id: each.request_log_info(deadline_s=PATIENCE_S) for id, each in clients.items()})
                return all(info.last_applied >= index for info in found.values())

            wait_for(have, f"index {index} on every peer; they have {found}")
        return found

    def wait_caught_up(self) -> int:
        """Wait until every running peer has applied all that was acknowledged, and one more; the index of that."""
        with self.client() as client:
            last = client.request_update(None, b"the last")
        self.wait_applied(last)
        return last

    def logs(self) -> dict[str, list[LogEntry]]:
        """The entries of every peer, from its files. For peers that are stopped."""
        return {peer_id: read_log(self.data(peer_id)) for peer_id in self.places}

    def _config(self, peer_id: str) -> Path:
        return self.directory / f"{peer_id}.json"

    def _write_config(self, peer_id: str, members: Sequence[str] = ()) -> None:
        """``members``: whom a peer that joins knows."""
        seen = self._seen_urls.get(peer_id, {})
        peers = [
            {"id": place.id, "url": seen.get(place.id, place.url), "pub": place.pub}
            for place in self.places.values()
            if not members or place.id in members
        ]
        section = {"secret": self.secret, "peers": peers, "data": {"path": str(self.data(peer_id))}, **self._settings}
        place = self.places[peer_id]
        if place.joins:
            section |= {"router": {"bind": place.url}, "broadcast": {"url": place.pub}}
        self._config(peer_id).write_text(json.dumps({"raft": section}))


def read_log(data: Path) -> list[LogEntry]:
    """The entries of a data directory, which is closed."""
    return list(_entries(data))


def _entries(data: Path) -> Iterator[LogEntry]:
    with contextlib.closing(FileLog.open(data / "log", data / "snap")) as log:
        index = log.first_index
        while index <= log.last_index:
            batch = log.read(index, log.last_index, 1 << 20)
            yield from batch
            index = batch.last_index + 1
