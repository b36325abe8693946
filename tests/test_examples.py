"""The programs in examples/ work as they stand there, but for ports and paths."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import zmqraft
from support.command import PATIENCE_S, free_ports
from support.local_cluster import cluster_settings, wait_for
from zmqraft import StateMachineBase, build_peer
from zmqraft.machines import CounterMachine, LockMachine
from zmqraft.server.settings import Settings

EXAMPLES = Path(__file__).parent.parent / "examples"
SECRET = b"name of the cluster"


@contextlib.contextmanager
def cluster(directory: Path, machine: Callable[[], StateMachineBase] | None, size: int) -> Iterator[list[str]]:
    """The ports of running peers."""
    made = {} if machine is None else {"state_machine": lambda _: machine()}
    with contextlib.ExitStack() as stack:
        settings = [
            Settings(id=each.id, peers=each.peers, secret=SECRET, data=each.data)
            for each in cluster_settings(directory, size)
        ]
        peers = [stack.enter_context(build_peer(each, **made)) for each in settings]  # type: ignore[arg-type]
        wait_for(lambda: all(peer.leader_id for peer in peers), "a leader")
        yield [peer.url.rpartition(":")[2] for peer in peers]


def run(name: str, ports: list[str], directory: Path, *arguments: str) -> list[str]:
    """The lines that an example prints."""
    source = (EXAMPLES / name).read_text(encoding="utf-8").replace("/tmp/zmqraft-rooms", str(directory / "rooms"))
    known = sorted(set(re.findall(r"\b8[0-9]47\b", source)))
    assert len(known) <= len(ports)
    for port, other in zip(known, ports, strict=False):
        source = source.replace(port, other)
    program = directory / name
    program.write_text(source, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "error", program, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": str(Path(zmqraft.__file__).parents[1])},
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_all_are_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "embed_a_peer.py",
        "follow_the_log.py",
        "lock.py",
        "migrate_a_counter.py",
    }


def test_embedding_a_peer(tmp_path: Path) -> None:
    ports = [str(port) for port in free_ports(1)]
    for left in ("library", "library"):
        assert run("embed_a_peer.py", ports, tmp_path) == [f"Ada left the {left} for the garden"]


def test_following_the_log(tmp_path: Path) -> None:
    with cluster(tmp_path, None, 3) as ports:
        lines = run("follow_the_log.py", ports, tmp_path)
    assert len(lines) == 1001
    assert sorted(line.partition(" ")[2] for line in lines[:-1]) == sorted(f"number {n}" for n in range(1000))
    assert [int(line.partition(" ")[0]) for line in lines] == sorted(int(line.partition(" ")[0]) for line in lines)


def test_a_lock(tmp_path: Path) -> None:
    with cluster(tmp_path, LockMachine, 1) as ports:
        first = run("lock.py", ports, tmp_path)
        second = run("lock.py", ports, tmp_path)
    assert first[0] == first[1]
    assert first[2] == second[2] == "holder: nobody"
    assert int(first[0].split()[-1]) < int(second[0].split()[-1])


def test_a_migration(tmp_path: Path) -> None:
    path = tmp_path / "visits.txt"
    path.write_text("41\n")
    with cluster(tmp_path, CounterMachine, 1) as ports:
        assert run("migrate_a_counter.py", ports, tmp_path, str(path)) == [
            "visits is 41 in the cluster",
            "and after one more 42",
        ]
        # Run again it finds that the move was made.
        assert run("migrate_a_counter.py", ports, tmp_path, str(path))[1] == "and after one more 43"
