"""The peers and the clients of a run as processes: who runs, who was ended by whom, who leads.

The rule: a process that ends by itself, with nothing done to it that explains this, is an error of the run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zmqraft
from chaos.client import KINDS as CLIENT_KINDS
from chaos.history import read_history
from chaos.network import CLIENTS, Network
from support.command import PATIENCE_S, started_command, started_program, write_config
from support.process_cluster import SECRET, PeerProcess
from zmqraft import FileLog, LogEntry, LogInfo, ZmqRaftPeerClient
from zmqraft.errors import RequestError
from zmqraft.testing.entries import read_all
from zmqraft.testing.histories import Operation

__all__ = ["ChaosError", "Clients", "Cluster", "wait_until"]

_POLL_S = 0.02
#: How long peers are asked for, who may be paused; and when all of them are well.
_ASK_S = 0.4
_ASK_LONG_S = 3.0
#: How a peer ends whose disk fails: while it runs or opens its log, and before that.
_FAILED = (1, 2)
_TESTS = Path(__file__).parents[1]


class ChaosError(AssertionError):
    """Something that must not happen has happened, or what must happen has not."""


def wait_until(condition: Callable[[], object], until: float, what: str) -> None:
    """Wait until a condition holds. ChaosError when it does not by that time, of time.monotonic."""
    while not condition():
        if time.monotonic() > until:
            raise ChaosError(f"in vain: {what}")
        time.sleep(_POLL_S)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has arrived."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except FileNotFoundError:
        return False


class Cluster:
    """Peers of a key-value store, by their ids. ``environments`` are variables of some of them."""

    def __init__(
        self,
        directory: Path,
        network: Network,
        members: list[str],
        spares: list[str],
        environments: Mapping[str, Mapping[str, str]],
        stack: contextlib.ExitStack,
        *,
        index_file_capacity: int,
    ) -> None:
        self.members = list(members)
        self.spares = list(spares)
        self.directory = directory
        self._network = network
        self._environments = environments
        self._stack = stack
        self._lock = threading.RLock()
        self._closed = False
        self._running: dict[str, PeerProcess] = {}
        #: What those say that may end by themselves now, since something was done to their disk.
        self._may_end: dict[str, str] = {}
        self._said: list[str] = []
        self._clients: dict[str, ZmqRaftPeerClient] = {}
        self._pool = stack.enter_context(ThreadPoolExecutor(16))
        self._configs = {}
        for peer_id in [*members, *spares]:
            own = directory / f"peer-{peer_id}"
            own.mkdir(exist_ok=True)
            self._configs[peer_id] = write_config(
                own,
                [[member, network.url(member, seen_from=peer_id)] for member in members],
                secret=SECRET,
                indexFileCapacity=index_file_capacity,
                router={"bind": network.url(peer_id)} if peer_id in spares else None,
            )
            client = ZmqRaftPeerClient(network.url(peer_id), secret=SECRET)
            self._clients[peer_id] = stack.enter_context(client)

    @property
    def urls(self) -> list[str]:
        """Of all peers, those that are not there yet as well."""
        return [self._network.url(peer_id) for peer_id in self._configs]

    def data(self, peer_id: str) -> Path:
        """The data directory of a peer."""
        return self.directory / f"peer-{peer_id}" / "data" / peer_id

    # --- processes --------------------------------------------------------------------------------------------------

    def begin(self, *peer_ids: str) -> None:
        """Start those of these peers that do not run, and do not wait for them."""
        with self._lock:
            for peer_id in peer_ids:
                if not self._closed and self.process(peer_id) is None:
                    command = started_command(
                        *("kv", "run", "-c", self._configs[peer_id], "--log-level=info", peer_id),
                        prefix=self._network.prefix(peer_id),
                        environment=self._environments.get(peer_id),
                    )
                    self._running[peer_id] = PeerProcess(self._stack.enter_context(command))

    def process(self, peer_id: str) -> PeerProcess | None:
        """The process of a peer while it runs. ChaosError when it has ended by itself for no reason."""
        with self._lock:
            peer = self._running.get(peer_id)
            if peer is None or peer.process.poll() is None:
                return peer
            del self._running[peer_id]
            status = peer.end(None)
            self._keep(peer_id, peer)
            reason = self._may_end.get(peer_id)
            if reason is not None and status in _FAILED and peer.has_said(reason):
                return None
            raise ChaosError(f"peer {peer_id} has ended with {status}: {''.join(peer.said[-20:])}")

    def running(self) -> list[str]:
        """The ids of the peers that run."""
        return [peer_id for peer_id in self._configs if self.process(peer_id) is not None]

    def kill(self, peer_id: str) -> bool:
        """SIGKILL. Returns whether the peer has run until then."""
        with self._lock:
            peer = self.process(peer_id)
            if peer is None:
                return False
            del self._running[peer_id]
            status = peer.end(signal.SIGKILL)
            self._keep(peer_id, peer)
            if status != -signal.SIGKILL:
                # It was quicker: then for a reason that is known, or not.
                self._running[peer_id] = peer
                self.process(peer_id)
            return status == -signal.SIGKILL

    def stop_all(self) -> None:
        """SIGTERM for all, which end without an error."""
        with self._lock:
            peers = {peer_id: self._running.pop(peer_id) for peer_id in self.running()}
        for peer in peers.values():
            # One that is no member any more may have been started just now, and not obey yet.
            peer.wait_ready()
        for peer in peers.values():
            peer.process.send_signal(signal.SIGTERM)
        for peer_id, peer in peers.items():
            status = peer.end(None)
            self._keep(peer_id, peer)
            if status != 0:
                raise ChaosError(f"peer {peer_id} was asked to end, and has with {status}: {''.join(peer.said[-20:])}")

    @contextlib.contextmanager
    def may_end(self, peer_id: str, saying: str) -> Iterator[None]:
        """For as long as it lasts a peer may end as one does whose disk fails, if it says this."""
        with self._lock:
            if peer_id in self._may_end:
                raise ChaosError(f"two reasons for peer {peer_id} to end")
            self._may_end[peer_id] = saying
        try:
            yield
        finally:
            with self._lock:
                # One that has ended meanwhile is found before it counts as one without a reason.
                try:
                    self.process(peer_id)
                finally:
                    del self._may_end[peer_id]

    def _keep(self, peer_id: str, peer: PeerProcess) -> None:
        with (self.directory / f"peer-{peer_id}" / "said").open("a") as file:
            file.writelines([*peer.said, f"--- ended with {peer.process.returncode}\n"])

    def close(self) -> None:
        """Start nothing any more, and write down what those have said that still run."""
        with self._lock:
            self._closed = True
            for peer_id, peer in self._running.items():
                self._keep(peer_id, peer)

    # --- what they say ----------------------------------------------------------------------------------------------

    def log_info(self, peer_id: str, timeout_s: float = _ASK_S) -> LogInfo | None:
        """What a peer says of its log; None when it says nothing."""
        try:
            return self._clients[peer_id].request_log_info(deadline_s=timeout_s)
        except RequestError:
            return None

    def log_infos(self, peer_ids: list[str], timeout_s: float = _ASK_S) -> dict[str, LogInfo | None]:
        """The same of several, at once."""
        infos = self._pool.map(self.log_info, peer_ids, [timeout_s] * len(peer_ids))
        return dict(zip(peer_ids, infos, strict=True))

    def leader(self) -> str | None:
        """Who says that it leads, in the highest term."""
        infos = self.log_infos(list(self.running()))
        leaders = [(info.term, peer_id) for peer_id, info in infos.items() if info is not None and info.is_leader]
        return max(leaders)[1] if leaders else None

    def wait_equal(self, least_index: int, until: float) -> int:
        """Wait until all members have the same log, with this index, applied to its end. Returns its last index."""
        seen: dict[str, LogInfo | None] = {}

        def are_equal() -> bool:
            nonlocal seen
            self.begin(*self.members)
            seen = self.log_infos(self.members, _ASK_LONG_S)
            states = {info and (info.last_index, info.commit_index, info.last_applied) for info in seen.values()}
            state = states.pop()
            return not states and state is not None and state[0] >= least_index and len(set(state)) == 1

        try:
            wait_until(are_equal, until, "equal logs")
        except ChaosError as error:
            raise ChaosError(f"{error}, with {least_index}: {seen}") from None
        info = seen[self.members[0]]
        assert info is not None
        return info.last_index

    def with_data(self) -> list[str]:
        """The peers that have been there."""
        return [peer_id for peer_id in self._configs if (self.data(peer_id) / "log").exists()]

    def entries(self, peer_id: str) -> list[LogEntry]:
        """All entries of a peer that does not run."""
        data = self.data(peer_id)
        with contextlib.closing(FileLog.open(data / "log", data / "snap")) as log:
            return read_all(log, 1 << 20)


class Clients:
    """The processes of the clients, by their kinds."""

    def __init__(
        self, directory: Path, network: Network, cluster: Cluster, seed: int, stack: contextlib.ExitStack
    ) -> None:
        self._histories = {kind: directory / f"history-{kind.replace(' ', '-')}" for kind in CLIENT_KINDS}
        self._processes = {}
        for node, (kind, history) in zip(itertools.cycle(CLIENTS), self._histories.items(), strict=False):
            urls = [network.url(peer_id, seen_from=node) for peer_id in [*cluster.members, *cluster.spares]]
            command = [sys.executable, "-W", "error", "-m", "chaos.client", kind, "--url", *urls, "--secret", SECRET]
            command += ["--history", str(history), "--seed", str(seed)]
            self._processes[kind] = stack.enter_context(
                started_program([*network.prefix(node), *command], environment=program_environment())
            )

    @property
    def kinds(self) -> list[str]:
        return list(self._processes)

    def pid(self, kind: str) -> int:
        self.check()
        return self._processes[kind].pid

    def check(self) -> None:
        """ChaosError when one has ended."""
        for kind, process in self._processes.items():
            if process.poll() is not None:
                assert process.stderr is not None
                raise ChaosError(f"client {kind!r} has ended: {process.stderr.read().decode()}")

    def signal(self, kind: str, number: signal.Signals) -> None:
        self._processes[kind].send_signal(number)

    def stop(self) -> None:
        """Ask them to end, and wait until they have."""
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for kind, process in self._processes.items():
            _, said = process.communicate(timeout=PATIENCE_S)
            if process.returncode != 0:
                raise ChaosError(f"client {kind!r} has ended with {process.returncode}: {said.decode()}")

    def history(self) -> list[Operation]:
        """What they have done so far."""
        return [each for path in self._histories.values() if path.exists() for each in read_history(path)]


def program_environment() -> dict[str, str]:
    """For processes of Python that import this package, and the zmqraft that is being tested."""
    return {"PYTHONPATH": os.pathsep.join([str(_TESTS), str(Path(zmqraft.__file__).parents[1])])}
