"""A cluster of processes that grows, shrinks and is replaced while clients write to it.

``ZMQRAFT_MEMBERSHIP_REPORT=1 pytest -s tests/server/test_membership_processes.py`` prints the pauses.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from support.command import PATIENCE_S
from support.local_cluster import wait_for
from support.process_cluster import SECRET, ProcessCluster, check_entries
from zmqraft.client import ZmqRaftClient
from zmqraft.protocol import new_request_id

#: Updates that are asked for in a second.
RATE = 500


class SteadyWriter(threading.Thread):
    """A client that begins an update every 2 ms, whatever became of those before."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(name="steady writer", daemon=True)
        self._urls = list(urls)
        self._stopping = threading.Event()
        #: (time, index) of each update that was acknowledged.
        self.times: list[float] = []
        self.acknowledged: dict[bytes, int] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with ZmqRaftClient(self._urls, secret=SECRET, deadline_s=PATIENCE_S) as client:
                waiting = []
                due = time.monotonic()
                while not self._stopping.is_set():
                    request_id = new_request_id()
                    update = client.submit_update(b"steady".ljust(100, b"."), request_id=request_id)
                    update.add_done_callback(lambda _: self.times.append(time.monotonic()))
                    waiting.append((request_id, update))
                    due += 1 / RATE
                    self._stopping.wait(max(0.0, due - time.monotonic()))
                for request_id, update in waiting:
                    self.acknowledged[request_id] = update.result(PATIENCE_S)
        except BaseException as error:
            self.error = error

    def wait_for_more(self) -> None:
        """Wait for the updates of a second."""
        done = len(self.times)
        wait_for(lambda: len(self.times) > done + RATE or self.error is not None, "updates")

    def stop(self) -> None:
        self._stopping.set()
        self.join(2 * PATIENCE_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error

    @property
    def longest_pause(self) -> float:
        """Seconds between two acknowledgements that came one after the other."""
        return max(after - before for before, after in itertools.pairwise(sorted(self.times)))


def change(cluster: ProcessCluster, client: ZmqRaftClient, ids: str) -> None:
    """Make these the members, and wait until all of them have the log."""
    client.request_config_update(None, [(peer_id, cluster.urls[peer_id]) for peer_id in ids])
    last = client.request_log_info().commit_index
    for peer_id in ids:
        wait_until_it_has(cluster, peer_id, last)


def wait_until_it_has(cluster: ProcessCluster, peer_id: str, index: int) -> None:
    with cluster.peer_client(peer_id) as client:
        wait_for(lambda: client.request_log_info(deadline_s=PATIENCE_S).last_applied >= index, f"{index} on {peer_id}")


def report(what: str, writer: SteadyWriter) -> None:
    if "ZMQRAFT_MEMBERSHIP_REPORT" in os.environ:
        rate = len(writer.times) / (max(writer.times) - min(writer.times))
        print(
            f"\n{what}: {len(writer.times)} updates, {rate:.0f}/s, longest pause {writer.longest_pause * 1000:.0f} ms"
        )


def test_every_peer_is_replaced_under_load(tmp_path: Path) -> None:
    """Add two, remove the leader, and replace the rest one by one: nothing is lost, and no client sees an error."""
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(tmp_path, 3, stack)
        cluster.start()
        client = cluster.client()
        writer = SteadyWriter(list(cluster.urls.values()))
        writer.start()
        writer.wait_for_more()
        members = "123"

        def become(ids: str) -> None:
            nonlocal members
            new = [peer_id for peer_id in ids if peer_id not in cluster.ids]
            cluster.join(*new)
            for peer_id in new:
                wait_until_it_has(cluster, peer_id, client.request_log_info().commit_index)
            change(cluster, client, ids)
            for peer_id in set(members) - set(ids):
                cluster.stop(peer_id)
            members = ids

        become("12345")
        leader_id = client.request_config().leader_id
        assert leader_id is not None
        become(members.replace(leader_id, ""))
        assert client.request_config().leader_id != leader_id
        for old, new in zip([peer_id for peer_id in members if peer_id in "123"], "67", strict=True):
            become(members.replace(old, "") + new)
        assert set(members) == set("4567")
        writer.wait_for_more()
        writer.stop()
        report("every peer replaced", writer)
        cluster.stop()
        last = max(writer.acknowledged.values())
        for peer_id in members:
            entries = cluster.entries(peer_id)
            assert entries[-1].index >= last
            check_entries(entries, writer.acknowledged)
        logs = [cluster.entries(peer_id)[:last] for peer_id in members]
        assert all(log == logs[0] for log in logs)


def test_a_leader_that_is_stopped_makes_way(tmp_path: Path) -> None:
    """SIGTERM: another peer takes over at once, and clients are sent there."""
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(tmp_path, 3, stack)
        cluster.start()
        client = cluster.client()
        writer = SteadyWriter(list(cluster.urls.values()))
        writer.start()
        for _ in range(2):
            writer.wait_for_more()
            leader_id = client.request_config().leader_id
            assert leader_id is not None
            cluster.stop(leader_id)
            cluster.start(leader_id)
        writer.wait_for_more()
        writer.stop()
        report("leaders stopped", writer)
        cluster.stop()
        check_entries(cluster.entries("1"), writer.acknowledged)


def test_a_peer_that_joins_is_killed_again_and_again(tmp_path: Path) -> None:
    """It goes on where it was."""
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(tmp_path, 3, stack)
        cluster.start()
        client = cluster.client()
        indexes = list(client.request_updates(b"%d" % number * 100 for number in range(20_000)))
        cluster.join("4")
        for _ in range(3):
            cluster.running.pop("4").end(signal.SIGKILL)
            cluster.begin_joining("4")
            cluster.running["4"].wait_ready()
        wait_until_it_has(cluster, "4", indexes[-1])
        change(cluster, client, "1234")
        cluster.stop()
        assert cluster.entries("4")[: indexes[-1]] == cluster.entries("1")[: indexes[-1]]


def test_a_peer_that_was_replaced_with_all_others_starts_again(tmp_path: Path) -> None:
    """And says who the cluster is now, to clients that have the old configuration file."""
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(tmp_path, 3, stack)
        cluster.start()
        client = cluster.client()
        cluster.join("4", "5", "6")
        change(cluster, client, "456")

        def knows() -> bool:
            with cluster.peer_client("1") as peer:
                return {peer_id for peer_id, _ in peer.request_config(deadline_s=PATIENCE_S).peers} == set("456")

        wait_for(knows, "1 to know")
        cluster.stop("1")
        cluster.start("1")
        assert knows()
        # A member starts again as well, with a file that does not have it.
        cluster.stop("4")
        cluster.begin_joining("4")
        cluster.running["4"].wait_ready()
        client.request_update(None, b"goes on")
