"""A peer of zmq-raft never stops because of us: links between mixed peers are cut, held up and restored at random.

`--seed` draws other cuts.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from random import Random

import pytest

from support.command import free_ports
from support.mixed_cluster import MixedCluster
from support.node import LONG
from support.tcp_proxy import Link, Links
from support.writers import Writers, check_logs, wait_all

#: So many changes of links in each cluster, with a pause of up to so many seconds between two.
CUTS = 200 if LONG else 20
PAUSE_S = 0.4


@pytest.mark.timeout(120 + 3 * CUTS)
@pytest.mark.parametrize("kinds", ["PPN", "PNN", "PPPNN"])
def test_links_are_cut_and_restored(modules: Path, tmp_path: Path, seed: int, kinds: str) -> None:
    random = Random(f"{seed} {kinds}")
    with contextlib.ExitStack() as stack:
        links = stack.enter_context(Links())
        ports = {str(number): port for number, port in enumerate(free_ports(len(kinds)), 1)}
        # Each peer knows each other one by a link of its own.
        ways = {
            peer_id: {other: links.open(port) for other, port in ports.items() if other != peer_id} for peer_id in ports
        }
        cluster = stack.enter_context(
            MixedCluster(
                tmp_path,
                modules,
                kinds,
                urls=[f"tcp://127.0.0.1:{port}" for port in ports.values()],
                seen_urls={
                    peer_id: {other: f"tcp://127.0.0.1:{link.port}" for other, link in others.items()}
                    for peer_id, others in ways.items()
                },
                indexFileCapacity=256,
            )
        )
        writers = stack.enter_context(Writers(modules, cluster.urls, cluster.secret))
        writers.write(100)
        under_way = writers.start(30)
        for _ in range(CUTS):
            disturb(random, links, ways)
            time.sleep(random.random() * PAUSE_S)
            cluster.check()
            if all(future.done() for future in under_way):
                wait_all(under_way)
                under_way = writers.start(random.choice([3, 30, 300]))
        for link in links.links:
            links.restore(link)
        wait_all(under_way)
        writers.write(100)
        last = cluster.wait_caught_up()
        # They did talk over the links, and connected anew. Not over each of them: who is not asked anything, or was cut
        # off in the beginning and waits for longer and longer before he tries again, may have none.
        assert sum(link.connections for link in links.links) > len(links.links)
        cluster.stop()
        check_logs(cluster.logs(), last, writers.acknowledged)


def disturb(random: Random, links: Links, ways: dict[str, dict[str, Link]]) -> None:
    """Change one link, all of one peer, or a way between two in one direction."""
    peer_id = random.choice(list(ways))
    other = random.choice(list(ways[peer_id]))
    chosen = random.choice(
        [
            [ways[peer_id][other]],
            [ways[peer_id][other], ways[other][peer_id]],
            [*ways[peer_id].values(), *(ways[each][peer_id] for each in ways[peer_id])],
        ]
    )
    # More often whole than not, so that something is committed between.
    change = random.choice([links.cut, links.hold, links.restore, links.restore, links.restore])
    if random.random() < 0.2:
        chosen, change = links.links, links.restore
    for link in chosen:
        change(link)
