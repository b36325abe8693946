"""A failed fdatasync of the real system, injected with strace: the peer ends at once, and has lost nothing.

Only the one call fails; those after it would succeed, as they do after the kernel has dropped what it could not write.

    ZMQRAFT_FAULTS=all pytest tests/faults/test_failing_sync.py -s

lets each of the first 50 calls fail (default: some of them), and says how long the peer took to end.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path

import pytest

from support.local_cluster import wait_for
from support.process_cluster import ProcessCluster, Writer, check_entries

#: Calls are counted in each thread by itself: the first ones fail while the peer starts.
CALLS = range(1, 51) if os.environ.get("ZMQRAFT_FAULTS") == "all" else (1, 2, 4, 7, 12, 23, 50)
#: A leader that has written so much syncs in a thread of its own.
LARGE = 100_000

_LINE = re.compile(r"\d+ +(?P<time>\d+\.\d+) (?P<what>.*)")


def strace(call: int, output: Path) -> list[str]:
    """The command under which a program's fdatasync fails when it is called the ``call``th time in a thread."""
    options = ["-e", "signal=none", "-e", "trace=fdatasync", "-e", f"inject=fdatasync:error=EIO:when={call}"]
    return ["strace", "-D", "-f", "-q", "-ttt", *options, "-o", str(output)]


def seconds_to_the_end(output: Path) -> float:
    """How long the program has run after the call that failed first."""

    def lines() -> list[tuple[float, str]]:
        found = map(_LINE.match, output.read_text().splitlines())
        return [(float(line["time"]), line["what"]) for line in found if line is not None]

    # strace may end a little later than what it watches.
    wait_for(lambda: any("exited with 1" in what for _, what in lines()), "the end in the output of strace")
    failed = min(time for time, what in lines() if "EIO" in what)
    return max(time for time, what in lines() if "exited with" in what) - failed


@pytest.mark.strace
@pytest.mark.timeout(600)
def test_a_failed_sync(tmp_path: Path) -> None:
    acknowledged: dict[bytes, int] = {}
    took: list[float] = []
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(tmp_path, 1, stack, indexFileCapacity=64)
        for call, size in [*((call, 100) for call in CALLS), (4, LARGE), (12, LARGE)]:
            output = tmp_path / f"strace-{call}-{size}"
            cluster.begin("1", prefix=strace(call, output))
            peer = cluster.running.pop("1")
            writer = Writer(list(cluster.urls.values()), size=size)
            writer.start()
            assert peer.end(None) == 1
            writer.stop()
            acknowledged |= writer.acknowledged
            assert any("Input/output error" in line for line in peer.said), peer.said
            took.append(seconds_to_the_end(output))
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", cluster.ports["1"])) != 0
        # Nobody has repaired anything: each round has started on what the one before has left, and so does this one.
        cluster.start()
        client = cluster.client()
        for request_id, index in list(acknowledged.items())[::10]:
            assert client.request_update(request_id, b"again") == index
        cluster.stop()
        check_entries(cluster.entries("1"), acknowledged)
    assert len(acknowledged) > max(CALLS)
    print(
        f"{len(took)} failed syncs, {len(acknowledged)} acknowledged updates; from the failed call to the end of the "
        f"process: {max(took):.3f} s at most"
    )
