"""Real clusters of 3 and 5 peers, under faults drawn from a seed, two at a time or more, while clients go on.

    pytest tests/chaos --seed 7                         # 5 runs of 30 s, with the seeds from 7 on
    python -m tests.chaos --runs 100 --seconds 120 --first-seed 7

ZMQRAFT_CHAOS_RUNS and ZMQRAFT_CHAOS_SECONDS are other numbers for the first one. The same seed gives the same schedule
of faults; what comes of them depends on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from chaos.command import BESIDE_S, Runs
from chaos.run import INVALID, OK, Report

RUNS = int(os.environ.get("ZMQRAFT_CHAOS_RUNS", "5"))
SECONDS = float(os.environ.get("ZMQRAFT_CHAOS_SECONDS", "30"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run_seed" in metafunc.fixturenames:
        first = int(metafunc.config.getoption("--seed"))
        metafunc.parametrize("run_seed", range(first, first + RUNS))


@pytest.fixture(scope="module")
def reports(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> Iterator[dict[int, Future[Report]]]:
    """All runs, by their seeds: they go on side by side, and each test waits for its own."""
    with Runs(tmp_path_factory.mktemp("chaos"), SECONDS) as runs:
        reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
        for line in runs.missing:
            if reporter is not None:
                reporter.write_line(f"tests/chaos: {line}")
        yield runs.start(range(seed, seed + RUNS))


@pytest.mark.timeout(3 * (SECONDS + BESIDE_S))
def test_nothing_is_lost_and_no_read_is_stale(reports: dict[int, Future[Report]], run_seed: int) -> None:
    """Each acknowledged update is in the one log once, in an order that respects real time; reads are linearizable; and
    soon after the last fault all peers have the same."""
    report = reports[run_seed].result()
    print(report)
    if report.outcome == INVALID:
        pytest.skip(f"this machine is too slow now: {report}")
    assert report.outcome == OK, report
