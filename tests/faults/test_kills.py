"""SIGKILL at random times under load, for one of three peers, or two, or all of them, while they start as well.

    ZMQRAFT_KILL_ROUNDS=200 pytest tests/faults/test_kills.py -s

kills in so many rounds (default: 10), drawn from ``--seed``.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from random import Random

import pytest

from support.local_cluster import wait_for
from support.process_cluster import ProcessCluster, Writer, check_entries

ROUNDS = int(os.environ.get("ZMQRAFT_KILL_ROUNDS", "10"))
WRITERS = 3


@pytest.mark.timeout(3600)
def test_kills_at_random_times(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    began = time.monotonic()
    kills = 0
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(tmp_path, 3, stack, indexFileCapacity=256)
        cluster.start()
        writers = [Writer(cluster.urls.values(), number) for number in range(WRITERS)]
        for writer in writers:
            writer.start()

        def done() -> int:
            return sum(len(writer.acknowledged) for writer in writers)

        for _ in range(ROUNDS):
            if random.random() < 0.7:
                # While updates are under way.
                enough = done() + random.randrange(1, 200)
                wait_for(
                    lambda enough=enough: done() >= enough or any(writer.error for writer in writers), "some updates"
                )
            else:
                # Whatever is going on, such as a start or an election.
                time.sleep(random.uniform(0, 0.8))
            victims = random.sample(cluster.ids, random.choice((1, 1, 1, 2, 3)))
            for peer_id in victims:
                cluster.kill(peer_id)
            kills += len(victims)
            cluster.begin(*victims)
        for peer in cluster.running.values():
            peer.wait_ready()
        enough = done() + 10
        wait_for(lambda: done() >= enough or any(writer.error for writer in writers), "updates after the last kill")
        for writer in writers:
            writer.stop()
        acknowledged = {request_id: index for writer in writers for request_id, index in writer.acknowledged.items()}
        client = cluster.client()
        for request_id, index in random.sample(list(acknowledged.items()), 20):
            assert client.request_update(request_id, b"again") == index
        last = max(acknowledged.values())
        cluster.wait_until_all_have(last)
        cluster.stop()
        logs = [cluster.entries(peer_id) for peer_id in cluster.ids]
        for entries in logs:
            check_entries(entries, acknowledged)
        assert all(entries[:last] == logs[0][:last] for entries in logs)
    print(
        f"{ROUNDS} rounds, {kills} kills, {len(acknowledged)} acknowledged updates, seed {seed}, "
        f"{time.monotonic() - began:.0f} s"
    )
