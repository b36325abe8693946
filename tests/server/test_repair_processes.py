"""Peers as processes whose logs are damaged: what the others have is fetched, and nobody else is asked to help."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from support.command import PATIENCE_S, assert_fails_in_one_line, run_command
from support.local_cluster import wait_for
from support.process_cluster import ProcessCluster
from zmqraft.api import SnapshotContext
from zmqraft.protocol import LogEntry
from zmqraft.storage import IndexFile


def damage(cluster: ProcessCluster, peer_id: str, *indexes: int) -> Path:
    """Change a byte of each of these entries on the disk of a peer; the file of the last one."""
    folder = cluster.directory / "data" / peer_id / "log/00000/00/00"
    path = folder
    for index in indexes:
        path = folder / f"{max(index - index % 64, 1):014x}.rlog"
        with contextlib.closing(IndexFile.open(str(path), writable=False)) as file:
            offset = file.file_offset(index) + 25
        with path.open("r+b") as content:
            content.seek(offset)
            (byte,) = content.read(1)
            content.seek(offset)
            content.write(bytes([byte ^ 0x20]))
    return path


@contextlib.contextmanager
def cluster_of(directory: Path, size: int, updates: int) -> Iterator[tuple[ProcessCluster, list[LogEntry]]]:
    """Peers that have so many updates, in index files of 64 entries, and are stopped; and these entries."""
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(directory, size, stack, indexFileCapacity=64)
        cluster.start()
        last = max(cluster.client().request_updates(b"update %d " % number * 20 for number in range(updates)))
        cluster.wait_until_all_have(last)
        cluster.stop()
        yield cluster, cluster.entries("1")[:last]


def test_damaged_entries_come_from_the_others(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, 500) as (cluster, expected):
        damage(cluster, "1", 5, 6, 7, 63, 64, 300, 499)
        cluster.start("2", "3", "1")
        process = cluster.running["1"]
        wait_for(lambda: process.has_said("entries 499 to 499"), "the end of it")
        assert process.has_said("it neither votes nor leads until")
        assert process.has_said("entries 5 to 7 of ")
        cluster.client().request_update(None, b"after that")
        cluster.stop()
        for peer_id in cluster.ids:
            assert cluster.entries(peer_id)[: len(expected)] == expected


def test_a_damaged_peer_does_not_take_part(tmp_path: Path) -> None:
    """One that is good does not get its vote; with two that are good it is mended."""
    with cluster_of(tmp_path, 3, 100) as (cluster, expected):
        damage(cluster, "1", 50)
        cluster.begin("1")
        cluster.start("2")
        waiting = cluster.running["1"]
        wait_for(lambda: waiting.has_said("fetching entries 50 to 50"), "the search")
        with cluster.peer_client("2") as client:
            term = expected[-1].term
            wait_for(lambda: client.request_log_info(deadline_s=PATIENCE_S).term > term, "an election")
            info = client.request_log_info(deadline_s=PATIENCE_S)
            assert not info.is_leader
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", cluster.ports["1"])) != 0
        assert not waiting.is_ready.is_set()
        cluster.start("3")
        waiting.wait_ready()
        cluster.client().request_update(None, b"after that")
        cluster.stop()
        assert cluster.entries("1")[: len(expected)] == expected


def test_who_cannot_be_helped_waits_until_it_is_stopped(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, 20) as (cluster, _):
        path = damage(cluster, "1", 5, 6)
        content = path.read_bytes()
        cluster.begin("1")
        process = cluster.running["1"]
        wait_for(lambda: process.has_said("fetching entries 5 to 6 from the other peers"), "the search")
        cluster.stop("1")
        assert not process.is_ready.is_set()
        assert path.read_bytes() == content


def test_alone_it_stops_and_says_where(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 1, 100) as (cluster, _):
        path = damage(cluster, "1", 70)
        result = run_command("run", "-c", cluster.config, "1")
        assert_fails_in_one_line(result, f"{path}: entry 70 at offset", "does not match its checksum", "backup")


def test_a_snapshot_comes_where_the_others_have_no_entries(tmp_path: Path) -> None:
    """It takes the place of what is damaged; what is above it stays, and so do the members of the cluster."""
    with cluster_of(tmp_path, 3, 200) as (cluster, expected):
        for peer_id in ("2", "3"):
            with contextlib.closing(cluster.log(peer_id)) as log:
                snapshot = log.begin_snapshot(120, SnapshotContext())([b"state", b" at 120"])
                log.begin_compaction(snapshot)()
                log.compact(snapshot)
        damage(cluster, "1", 5, 70, 71, 150)
        cluster.start("2", "3", "1")
        assert cluster.running["1"].has_said("receiving the leader's snapshot of index 120 instead")
        cluster.wait_until_all_have(cluster.client().request_update(None, b"after that"))
        cluster.stop()
        with contextlib.closing(cluster.log("1")) as log:
            assert (log.first_index, log.snapshot.read(0, 100)) == (121, b"state at 120")
            assert log.snapshot.context.peers == list(cluster.urls.items())
        assert cluster.entries("1")[: len(expected) - 120] == expected[120:]
        # What is damaged below the snapshot is passed over from now on.
        cluster.start()
        assert cluster.running["1"].has_said("it is below the snapshot, and passed over")
        cluster.stop()


def test_damage_while_it_runs(tmp_path: Path) -> None:
    """A leader that comes upon a damaged entry is mended by the next one, and the reader goes on there."""
    with cluster_of(tmp_path, 3, 500) as (cluster, expected):
        cluster.start()
        client = cluster.client()
        leader_id = client.request_config(deadline_s=PATIENCE_S).leader_id
        assert leader_id is not None
        damage(cluster, leader_id, 200)
        client.close()
        with cluster.client().request_entries(0, count=len(expected)) as entries:
            assert list(entries) == expected
        process = cluster.running[leader_id]
        wait_for(lambda: process.has_said("entries 200 to 200"), "the end of it")
        assert process.has_said("starting anew, since entry 200 of the log is damaged")
        cluster.wait_until_all_have(cluster.client().request_update(None, b"and that"))
        cluster.stop()
        for peer_id in cluster.ids:
            assert cluster.entries(peer_id)[: len(expected)] == expected
