"""``zmqraft recover``: a cluster goes on from one survivor, and grows again; and what it refuses."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import PATIENCE_S, assert_fails_in_one_line, free_ports, run_command, running_peer, write_config
from support.logs import batch_of, make_entry
from support.process_cluster import SECRET, ProcessCluster, check_entries
from zmqraft.client import ZmqRaftClient
from zmqraft.protocol import new_request_id
from zmqraft.storage import FileLog, RaftPersistence

PATIENT = {"electionTimeoutMin": 600, "electionTimeoutMax": 900}


@pytest.fixture
def survivor(tmp_path: Path) -> Path:
    """The configuration file of a cluster of three, of which peer "a" has its data."""
    peers = [[name, f"tcp://127.0.0.1:{port}"] for name, port in zip("abc", free_ports(3), strict=True)]
    config = write_config(tmp_path, peers)
    data = tmp_path / "data/a"
    with contextlib.closing(RaftPersistence.open(data / "raft.pers", peer_id="a", cluster=b"")) as state:
        state.update_peers([(name, url) for name, url in peers], None, None)
        state.update_vote(3, "b")
    with contextlib.closing(FileLog.open(data / "log", data / "snap")) as log:
        log.append(batch_of(*(make_entry(index, 3, b"%d" % index) for index in range(1, 6))))
        log.sync()
    return config


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def recover(config: Path, *arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return run_command("recover", "-c", config, *arguments, input=input)


def test_one_of_three_goes_on_and_grows_again(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(tmp_path, 3, stack, **PATIENT)
        cluster.start()
        client = cluster.client()
        acknowledged = {request_id: client.request_update(request_id, b"before") for request_id in request_ids(50)}
        client.close()
        cluster.wait_until_all_have(max(acknowledged.values()))
        for peer_id in ("1", "2", "3"):
            cluster.kill(peer_id)
        result = recover(cluster.config, "--yes", "--json", "1")
        assert result.returncode == 0, result
        record = json.loads(result.stdout)
        assert (record["index"] > max(acknowledged.values()), record["changed"]) == (True, True)
        assert all(Path(each["copy"]).parent == tmp_path / "data/1" for each in record["copies"])
        # It leads, with everything that was acknowledged; and two that were never there join it.
        cluster.start("1")
        with ZmqRaftClient(cluster.urls["1"], secret=SECRET, deadline_s=PATIENCE_S) as client:
            found = [entry for entry in client.request_entries() if entry.is_state]
            check_entries(found, acknowledged)
            acknowledged |= {request_id: client.request_update(request_id, b"alone") for request_id in request_ids(10)}
            cluster.join("4", "5")
            new = ",".join(f"{cluster.urls[peer_id]}/{peer_id}" for peer_id in "45")
            grown = run_command("config", "-c", cluster.config, "--timeout", str(PATIENCE_S), "--json", "-a", new)
            assert json.loads(grown.stdout)["peers"] == [[each, cluster.urls[each]] for each in "145"], grown
            acknowledged |= {request_id: client.request_update(request_id, b"three") for request_id in request_ids(10)}
        cluster.ids = ["1", "4", "5"]
        cluster.wait_until_all_have(max(acknowledged.values()))
        cluster.stop()
        for peer_id in cluster.ids:
            check_entries(cluster.entries(peer_id), acknowledged)


def request_ids(count: int) -> list[bytes]:
    return [new_request_id() for _ in range(count)]


@pytest.mark.parametrize("answer", [b"", b"n\n"], ids=["no answer", "no"])
def test_without_a_yes_nothing_is_changed(survivor: Path, answer: bytes) -> None:
    before = contents(survivor.parent)
    result = recover(survivor, "a", input=answer)
    assert (result.returncode, result.stdout) == (1, b"")
    assert "zmqraft: nothing was changed, since nobody agreed" in result.stderr.decode()
    assert contents(survivor.parent) == before


def test_the_warning_says_what_may_be_lost(survivor: Path) -> None:
    before = contents(survivor.parent)
    result = recover(survivor, "a", input=b"y\n")
    assert result.returncode == 0, result
    said = result.stderr.decode()
    for line in (
        "The last resort for peer 'a', when a majority of its cluster is gone for good.",
        "Its members are a, b, c.",
        "The log ends with entry 5 of term 3.",
        "What only the others had is lost, also what they have acknowledged.",
        "Of the entries above 0 it is not known here whether they were committed; they will be.",
        "Who is not among the new members must never run again with the old data.",
        "zmqraft: entry 6 of term 1003 has the new members; the peer can be started",
    ):
        assert line in said
    # Standard output names the copies, which are what was there.
    copies = [Path(line) for line in result.stdout.decode().splitlines()]
    assert [path.name.partition("-")[0] for path in copies] == ["raft.pers", "00000000000001.rlog"]
    for copy in copies:
        assert copy.read_bytes() in before.values()
    again = recover(survivor, "a")
    assert (again.returncode, again.stdout) == (0, b"")
    assert again.stderr.decode() == "zmqraft: nothing to do: these are the members already\n"


@pytest.fixture
def running(survivor: Path) -> Iterator[Path]:
    with running_peer(survivor, "a"):
        yield survivor


def test_a_peer_that_runs_is_refused(running: Path) -> None:
    assert_fails_in_one_line(recover(running, "-y", "a"), str(running.parent / "data/a"), "in use by another process")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["b"], "there is no data of a peer in "),
        (["x"], "raft.id: 'x' is not one of the peers (a, b, c); to join them it needs router.bind"),
        (["a", "--peers", "127.0.0.1:1/b"], "the new members (b) are without 'a', whose data this is"),
        (["a", "--ns", "other"], "has no key 'other' at its root"),
    ],
)
def test_what_makes_no_sense_is_one_line(survivor: Path, arguments: list[str], reason: str) -> None:
    before = contents(survivor.parent)
    result = recover(survivor, "-y", *arguments)
    assert_fails_in_one_line(result, "zmqraft: ", reason)
    assert result.returncode == 2
    assert contents(survivor.parent) == before


def test_damaged_data_is_one_line(survivor: Path) -> None:
    path = survivor.parent / "data/a/snap"
    path.write_bytes(b"not a snapshot" * 20)
    before = contents(survivor.parent)
    assert_fails_in_one_line(recover(survivor, "-y", "a"), str(path))
    assert contents(survivor.parent) == before
