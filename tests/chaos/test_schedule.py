"""What is drawn from a seed."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from chaos.faults import partition
from chaos.network import CLIENTS
from chaos.schedule import KINDS, draw_faults, draw_size


def test_a_seed_fixes_it() -> None:
    assert draw_faults(7, 120, KINDS) == draw_faults(7, 120, KINDS) != draw_faults(8, 120, KINDS)


def test_every_kind_is_drawn_and_only_what_there_is() -> None:
    counts = Counter(fault.kind for seed in range(50) for fault in draw_faults(seed, 30, KINDS))
    assert set(counts) == set(KINDS)
    assert {fault.kind for seed in range(50) for fault in draw_faults(seed, 30, ["kill", "pause"])} == {"kill", "pause"}


@pytest.mark.parametrize("seconds", [10, 26, 116])
def test_faults_come_two_at_a_time_at_least(seconds: float) -> None:
    for seed in range(100):
        faults = draw_faults(seed, seconds, KINDS)
        assert len(faults) >= 2
        for fault in faults:
            assert fault.at >= 0
            assert fault.duration > 0.29
            assert fault.at + fault.duration <= seconds
            others = [other for other in faults if other is not fault]
            assert any(
                other.at < fault.at + fault.duration and fault.at < other.at + other.duration for other in others
            ), (seed, fault)


def test_clusters_have_three_peers_or_five() -> None:
    assert Counter(draw_size(seed) for seed in range(10)) == {3: 5, 5: 5}


@pytest.mark.parametrize("size", [3, 4, 5])
def test_partitions_have_all_shapes_and_cut_something_that_the_leader_would_say_or_hear(size: int) -> None:
    peers = [str(number) for number in range(1, size + 1)]
    shapes = set()
    for number in range(300):
        words, ways = partition(Random(number), peers, "1")
        shapes.add(words.split(":")[0])
        assert ways
        assert all(source != target and {source, target} <= {*peers, *CLIENTS} for source, target in ways)
    wanted = {"one away", "half", "bridge", "deaf", "mute", "one way", "all apart", "clients away"}
    assert shapes == (wanted | {"ring"} if size > 3 else wanted)
