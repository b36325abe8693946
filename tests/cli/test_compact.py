"""``zmqraft compact``: a log compacted while its peer is down, and the peer that starts from it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from support.command import PATIENCE_S, assert_fails_in_one_line, free_ports, run_command, running_peer, write_config
from support.logs import make_entry
from zmqraft.client import ZmqRaftClient
from zmqraft.protocol import EntryBatch
from zmqraft.storage import FileLog, StatePersistence

MACHINE = """
import zlib
from zmqraft import EntryBatch, SnapshotBase, StateMachineBase

class Lines(StateMachineBase):
    def __init__(self, level=1):
        self.level = level
        self.lines = []

    def apply_entries(self, entries, term):
        self.lines += [entry.data for entry in entries if entry.is_state]

    def snapshot(self):
        return zlib.compress(b"\\n".join(self.lines), self.level)

    def restore(self, snapshot):
        self.lines = zlib.decompress(b"".join(snapshot.chunks())).split(b"\\n")

class Bare(StateMachineBase):
    def apply_entries(self, entries, term):
        pass

number = 5
"""


@pytest.fixture
def machine(tmp_path: Path) -> str:
    path = tmp_path / "lines.py"
    path.write_text(textwrap.dedent(MACHINE))
    return f"{path}:Lines"


def configure(tmp_path: Path, count: int = 1, **compact: Any) -> Path:
    peers = [
        {"id": name, "url": f"tcp://127.0.0.1:{port}"} for name, port in zip("abc", free_ports(count), strict=False)
    ]
    path = write_config(tmp_path, peers)
    config = json.loads(path.read_text())
    config["raft"]["data"]["compact"] = compact
    config["raft"]["indexFileCapacity"] = 8
    path.write_text(json.dumps(config))
    return path


def fill(tmp_path: Path, count: int) -> None:
    log = FileLog.open(tmp_path / "data/a/log", tmp_path / "data/a/snap", capacity=8)
    first = log.last_index + 1
    log.append(EntryBatch.from_entries([make_entry(at, 1, b"%d" % at) for at in range(first, first + count)]))
    log.sync()
    log.close()


def files_of(tmp_path: Path) -> list[str]:
    return sorted(map(str, (tmp_path / "data/a/log").rglob("*.rlog")))


def test_a_peer_that_is_alone(tmp_path: Path, machine: str) -> None:
    config = configure(tmp_path, state={"path": machine, "options": {"level": 9}})
    fill(tmp_path, 20)
    files = files_of(tmp_path)
    result = run_command("compact", "-c", config, "a")
    assert (result.returncode, result.stdout.decode().split()) == (0, files[:2])
    assert b"the snapshot is of index 20, term 1, " in result.stderr
    assert b"2 index files are no longer needed and may be deleted" in result.stderr
    assert files_of(tmp_path) == files
    result = run_command("compact", "-c", config, "--prune", "a")
    assert (result.returncode, result.stdout.decode().split()) == (0, files[:2])
    assert b"nothing to do, the snapshot is of index 20" in result.stderr
    assert files_of(tmp_path) == files[2:]
    with running_peer(config, "a") as process:
        port = json.loads(config.read_text())["raft"]["peers"][0]["url"].rpartition(":")[2]
        with ZmqRaftClient(f"127.0.0.1:{port}", deadline_s=PATIENCE_S) as client:
            assert client.request_update(None, b"more") == 22
        in_use = run_command("compact", "-c", config, "a")
        assert_fails_in_one_line(in_use, "in use by another process")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    # The new ids are remembered, so that nothing but the checkpoint may go; by force everything.
    for flags, index in (((), 21), (("--force",), 23)):
        result = run_command("compact", "-c", config, *flags, "a")
        assert (result.returncode, b"index %d, " % index in result.stderr) == (0, True), result.stderr
        with running_peer(config, "a") as process:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
    log = FileLog.open(tmp_path / "data/a/log", tmp_path / "data/a/snap")
    assert log.snapshot.context.peers == [("a", f"tcp://127.0.0.1:{port}")]
    log.close()


def test_a_member_of_a_cluster_needs_to_be_told_what_is_committed(tmp_path: Path, machine: str) -> None:
    config = configure(tmp_path, 3)
    fill(tmp_path, 20)
    command = ("compact", "-c", config, "-s", machine, "a")
    assert_fails_in_one_line(run_command(*command), "nothing says how many of the entries 1 to 20 are committed")
    assert_fails_in_one_line(run_command(*command, "--index", "21"), "index 21 is not within the log")
    result = run_command(*command, "--index", "9")
    assert (result.returncode, b"index 9, " in result.stderr) == (0, True)
    state = StatePersistence.open(tmp_path / "data/a/state.pers")
    state.update(14)
    state.close()
    result = run_command(*command)
    assert (result.returncode, b"index 14, " in result.stderr) == (0, True)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (None, "no state machine: name one with --state-machine, or in data.compact.state.path"),
        ("lines", "a state machine is named as module:Class or file.py:Class, not 'lines'"),
        ("no_such_module:Lines", "cannot load the state machine 'no_such_module:Lines': No module named"),
        ("{}/missing.py:Lines", "No such file or directory"),
        ("{}/lines.py:Missing", "is no class derived from StateMachineBase"),
        ("{}/lines.py:number", "is no class derived from StateMachineBase"),
        ("{}/lines.py:Bare", "Bare offers no snapshots: implement snapshot()"),
    ],
)
def test_mistakes(tmp_path: Path, machine: str, name: str | None, part: str) -> None:
    config = configure(tmp_path)
    fill(tmp_path, 5)
    named = [] if name is None else ["-s", name.format(tmp_path)]
    assert_fails_in_one_line(run_command("compact", "-c", config, *named, "a"), part)
    assert_fails_in_one_line(run_command("compact", "-c", config, "-s", machine, "b"), "b")


def test_options_that_do_not_fit_and_a_log_that_is_not_there(tmp_path: Path, machine: str) -> None:
    config = configure(tmp_path, state={"path": machine, "options": {"speed": 1}})
    assert_fails_in_one_line(run_command("compact", "-c", config, "a"), "there is no log at")
    fill(tmp_path, 5)
    assert_fails_in_one_line(run_command("compact", "-c", config, "a"), "does not take the options ['speed']")
