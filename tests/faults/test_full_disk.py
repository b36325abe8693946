"""A disk that gets full: the peer ends, has lost nothing, and starts again when there is room."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from support.local_cluster import wait_for
from support.loop_file_system import mounted
from support.process_cluster import ProcessCluster, Writer, check_entries

BALLAST_SIZE = 500 << 10


@pytest.mark.loop_file_system
@pytest.mark.parametrize("size", [1, 3])
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    """Of the only peer, or of one of three, without which the others go on."""
    with mounted(tmp_path / "data/1", size_mib=2) as disk, contextlib.ExitStack() as stack:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(BALLAST_SIZE))
        cluster = ProcessCluster(tmp_path, size, stack, indexFileCapacity=256)
        cluster.start()
        writer = Writer(cluster.urls.values(), size=1000)
        writer.start()
        peer = cluster.running.pop("1")
        assert peer.end(None) == 1
        assert any("No space left on device" in line for line in peer.said), peer.said
        if size > 1:
            so_far = len(writer.acknowledged)
            wait_for(lambda: len(writer.acknowledged) >= so_far + 20 or writer.error, "updates without the full disk")
        writer.stop()
        acknowledged = dict(writer.acknowledged)
        assert len(acknowledged) > 100
        ballast.unlink()
        cluster.start("1")
        client = cluster.client()
        for request_id, index in list(acknowledged.items())[::50]:
            assert client.request_update(request_id, b"again") == index
        last = client.request_update(None, b"there is room again")
        cluster.wait_until_all_have(last)
        cluster.stop()
        logs = [cluster.entries(peer_id) for peer_id in cluster.ids]
        for entries in logs:
            check_entries(entries, acknowledged)
        assert all(entries[:last] == logs[0][:last] for entries in logs)
