"""Three peers as three processes, four clients, and SIGKILL for the leader, three times.

Every acknowledged update is in the log of every peer exactly once, at the acknowledged index, also after a restart.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from support.command import PATIENCE_S, free_ports, running_peer, stop, write_config
from support.local_cluster import wait_for
from zmqraft.client import ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.errors import RequestTimeoutError
from zmqraft.protocol import LogEntry, new_request_id
from zmqraft.storage import FileLog

CLIENTS = 4
UPDATES_PER_CLIENT = 1250
KILLS = 3
SECRET = "three processes"


class Cluster:
    """The processes, by peer id."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        ports = free_ports(3)
        self.urls = {str(number): f"tcp://127.0.0.1:{port}" for number, port in enumerate(ports, 1)}
        self.directory = directory
        self._config = write_config(directory, [list(peer) for peer in self.urls.items()], secret=SECRET)
        self._stack = stack
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for peer_id in self.urls:
            self.start(peer_id)

    def start(self, peer_id: str) -> None:
        self.processes[peer_id] = self._stack.enter_context(running_peer(self._config, peer_id, "--log-level=error"))

    def kill(self, peer_id: str) -> None:
        self.processes[peer_id].send_signal(signal.SIGKILL)
        self.processes[peer_id].wait()

    def leader_id(self) -> str:
        with ZmqRaftClient(list(self.urls.values()), secret=SECRET) as client:
            leader_id = client.request_config(deadline_s=PATIENCE_S).leader_id
        assert leader_id is not None
        return leader_id

    def wait_until_all_have(self, last_index: int) -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(ZmqRaftPeerClient(url, secret=SECRET)) for url in self.urls.values()]

            def have() -> bool:
                infos = [client.request_log_info(deadline_s=PATIENCE_S) for client in clients]
                return all(info.last_applied >= last_index for info in infos)

            wait_for(have, f"index {last_index} on every peer")

    def stop(self) -> None:
        for process in self.processes.values():
            assert stop(process, signal.SIGTERM) == (0, b"")

    def logs(self) -> dict[str, list[LogEntry]]:
        return {peer_id: list(read_log(self.directory / "data" / peer_id)) for peer_id in self.urls}


def read_log(data: Path) -> Iterator[LogEntry]:
    log = FileLog.open(data / "log", data / "snap")
    with contextlib.closing(log):
        index = log.first_index
        while index <= log.last_index:
            batch = log.read(index, log.last_index, 1 << 20)
            yield from batch
            index = batch.last_index + 1


class Writer(threading.Thread):
    """One client that makes its updates one after the other, each repeated with its id until it is acknowledged."""

    def __init__(self, number: int, urls: list[str], count: int) -> None:
        super().__init__(name=f"writer {number}")
        self.number = number
        self.urls = urls
        self.count = count
        self.acknowledged: dict[bytes, int] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with ZmqRaftClient(self.urls, secret=SECRET) as client:
                for number in range(self.count):
                    request_id = new_request_id()
                    data = b"writer %d update %d" % (self.number, number)
                    self.acknowledged[request_id] = client.request_update(request_id, data, deadline_s=PATIENCE_S)
        except BaseException as error:
            self.error = error


def test_acknowledged_updates_survive_the_loss_of_leaders(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        writers = [Writer(number, list(cluster.urls.values()), UPDATES_PER_CLIENT) for number in range(CLIENTS)]
        for writer in writers:
            writer.start()
        total = CLIENTS * UPDATES_PER_CLIENT

        def done() -> int:
            return sum(len(writer.acknowledged) for writer in writers)

        for kill in range(1, KILLS + 1):
            share = total * kill // (KILLS + 1)
            wait_for(lambda share=share: done() >= share or any(writer.error for writer in writers), f"{share} updates")
            assert done() < total, "the leader is to be killed while updates are under way"
            leader_id = cluster.leader_id()
            cluster.kill(leader_id)
            cluster.start(leader_id)
        for writer in writers:
            writer.join(4 * PATIENCE_S)
        assert [writer.error for writer in writers] == [None] * CLIENTS
        assert done() == total
        acknowledged = {request_id: index for writer in writers for request_id, index in writer.acknowledged.items()}
        cluster.wait_until_all_have(max(acknowledged.values()))
        cluster.stop()
        check_logs(cluster, acknowledged)

        # And once more after a restart of all: nothing is lost, nothing applied twice, repeated ids are still known.
        for peer_id in cluster.urls:
            cluster.start(peer_id)
        with ZmqRaftClient(list(cluster.urls.values()), secret=SECRET) as client:
            for request_id, index in list(acknowledged.items())[:: total // 20]:
                assert client.request_update(request_id, b"again", deadline_s=PATIENCE_S) == index
            last = client.request_update(new_request_id(), b"after the restart", deadline_s=PATIENCE_S)
        cluster.wait_until_all_have(last)
        cluster.stop()
        check_logs(cluster, acknowledged)


def check_logs(cluster: Cluster, acknowledged: dict[bytes, int]) -> None:
    logs = cluster.logs()
    # Who is stopped first does not have what its leader appends when it makes way.
    shortest = min(map(len, logs.values()))
    assert shortest >= max(acknowledged.values())
    log = logs["1"][:shortest]
    for peer_id, other in logs.items():
        assert other[:shortest] == log, f"the logs of peers 1 and {peer_id} differ"
    assert [entry.index for entry in log] == list(range(1, len(log) + 1))
    by_id = [(entry.request_id, entry.index) for entry in log if entry.is_state]
    assert len(dict(by_id)) == len(by_id), "an update is in the log twice"
    found = dict(by_id)
    assert {request_id: found.get(request_id) for request_id in acknowledged} == acknowledged


def test_a_majority_is_needed_for_an_acknowledgement(tmp_path: Path) -> None:
    """With two of three peers gone an update is not acknowledged; when one is back it is, under the same id."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        leader_id = cluster.leader_id()
        others = [peer_id for peer_id in cluster.urls if peer_id != leader_id]
        for peer_id in others:
            cluster.kill(peer_id)
        client = stack.enter_context(ZmqRaftClient(list(cluster.urls.values()), secret=SECRET))
        request_id = new_request_id()
        try:
            client.request_update(request_id, b"data", deadline_s=2.0)
        except RequestTimeoutError:
            acknowledged = False
        else:
            acknowledged = True
        assert not acknowledged
        cluster.start(others[0])
        index = client.request_update(request_id, b"data", deadline_s=PATIENCE_S)
        cluster.start(others[1])
        cluster.wait_until_all_have(index)
        client.close()
        cluster.stop()
        check_logs(cluster, {request_id: index})
