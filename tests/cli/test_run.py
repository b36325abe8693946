"""``zmqraft run``: it starts, says so, and closes cleanly; each mistake ends it with one clear line."""

from __future__ import annotations

import json
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.command import (
    PATIENCE_S,
    assert_fails_in_one_line,
    free_ports,
    run_command,
    running_peer,
    stop,
    write_config,
)
from zmqraft.cli.run import run_peer
from zmqraft.client import ZmqRaftClient
from zmqraft.errors import CorruptionError
from zmqraft.server.settings import DataSettings, PeerAddress, Settings
from zmqraft.storage import FileLog


def peers_on(*ports: int) -> list[dict[str, str]]:
    return [{"id": name, "url": f"tcp://127.0.0.1:{port}"} for name, port in zip("abcdef", ports, strict=False)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_peer_says_its_url_and_closes_when_asked(tmp_path: Path, number: signal.Signals) -> None:
    (port,) = free_ports(1)
    config = write_config(tmp_path, peers_on(port))
    with running_peer(config, "a") as process:
        assert stop(process, number) == (0, b"")
    with running_peer(config, "a") as process:
        assert stop(process, number) == (0, b"")
    FileLog.open(tmp_path / "data/a/log", tmp_path / "data/a/snap").close()


def test_a_peer_that_must_have_data_starts_as_a_new_one_when_it_is_told_to(tmp_path: Path) -> None:
    """FAULTS 28: a disk that is not mounted is not that of a new peer."""
    (port,) = free_ports(1)
    data = {"path": str(tmp_path / "data"), "appendIdToPath": True, "mustExist": True}
    config = write_config(tmp_path, peers_on(port), data=data)
    assert_fails_in_one_line(run_command("run", "-c", str(config), "a"), "raft.pers is missing, but data.mustExist")
    for flags in (["--new"], []):
        with running_peer(config, *flags, "a") as process:
            assert stop(process, signal.SIGTERM) == (0, b"")


def test_the_flags_say_what_is_bound(tmp_path: Path) -> None:
    ports = free_ports(3)
    config = write_config(tmp_path, peers_on(ports[0]), id="a")
    with running_peer(config, "-b", f"127.0.0.1:{ports[1]}", "-p", f"127.0.0.1:{ports[2]}") as process:
        with socket.socket() as free:
            free.bind(("127.0.0.1", ports[0]))
        for port in ports[1:]:
            with socket.create_connection(("127.0.0.1", port)):
                pass
        assert stop(process, signal.SIGTERM) == (0, b"")


def test_a_peer_that_cannot_write_any_more_ends_and_says_why(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = write_config(tmp_path, peers_on(port))
    with running_peer(config, "a") as process, ZmqRaftClient(f"127.0.0.1:{port}", deadline_s=PATIENCE_S) as client:
        client.request_update(None, b"fits")
        # From now on writing fails with EFBIG, as it would with ENOSPC on a full disk.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        update = client.submit_update(b"does not")
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert not update.done()
    (line,) = stderr.decode().splitlines()
    assert "CRITICAL zmqraft.server.peer: a: stopped: " in line
    assert str(tmp_path / "data/a") in line
    assert "File too large" in line
    with running_peer(config, "a"), ZmqRaftClient(f"127.0.0.1:{port}", deadline_s=PATIENCE_S) as client:
        assert [entry.data for entry in client.request_entries() if entry.is_state] == [b"fits"]


def test_the_log_can_be_json(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = write_config(tmp_path, peers_on(port))
    with running_peer(config, "a", "--log-level", "debug", "--log-format", "json") as process:
        status, stderr = stop(process, signal.SIGTERM)
    assert status == 0
    for line in stderr.splitlines():
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()


ONE = [{"id": "a", "url": "tcp://127.0.0.1:1"}]
MISTAKES: list[tuple[str, dict[str, Any], list[str], str]] = [
    ("unknown key", {"electionTimeotMin": 1}, ["a"], "raft.electionTimeotMin: unknown setting, did you mean"),
    ("wrong type", {"rpcTimeout": "50"}, ["a"], "raft.rpcTimeout: must be an integer, not '50' (str)"),
    ("range", {"electionTimeoutMin": 500}, ["a"], "raft.electionTimeoutMin: 500 is not below electionTimeoutMax"),
    ("no id", {}, [], "raft.id: is missing"),
    ("unknown id", {}, ["x"], "raft.id: 'x' is not one of the peers (a)"),
    ("two peers with one url", {"peers": [*ONE, ["b", "127.0.0.1:1"]]}, ["a"], "raft.peers[1].url: is the same as"),
    ("two peers with one id", {"peers": [*ONE, ["a", "127.0.0.1:2"]]}, ["a"], "raft.peers[1].id: another peer"),
    ("placeholder", {"peers": [{"id": "a", "url": "tcp://0.0.0.0:1"}]}, ["a"], "raft.peers[0].url: not a url"),
    ("no data", {"data": None}, ["a"], "raft.data: is missing"),
    ("secret", {"secret": 1}, ["a"], "raft.secret: must be a text, not 1 (int)"),
    ("bad bind", {}, ["a", "-b", "127.0.0.1:1:1"], "raft.router.bind: not a url like tcp://host:port"),
    ("bad pub", {}, ["a", "-p", "x:y"], "raft.broadcast.url: not a url"),
    ("bad www", {}, ["a", "-w", "x"], "not a url like http://host:port: 'x'"),
    ("namespace", {}, ["a", "--ns", "other"], "has no key 'other' at its root"),
]


@pytest.mark.parametrize(("settings", "arguments", "line"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_in_the_settings_is_one_line(
    tmp_path: Path, settings: dict[str, Any], arguments: list[str], line: str
) -> None:
    config = write_config(tmp_path, **{"peers": ONE, **settings})
    result = run_command("run", "-c", config, *arguments)
    assert_fails_in_one_line(result, f"zmqraft: {config}: ", line)
    assert not (tmp_path / "data").exists()


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    port, pub_port = free_ports(2)
    config = write_config(tmp_path, peers_on(port))
    with running_peer(config, "a", "-p", f"127.0.0.1:{pub_port}"):
        (tmp_path / "second").mkdir()
        second = write_config(tmp_path / "second", peers_on(port))
        assert_fails_in_one_line(run_command("run", "-c", second, "a"), f"tcp://127.0.0.1:{port}", "in use")
        (tmp_path / "third").mkdir()
        third = write_config(tmp_path / "third", peers_on(*free_ports(1)), broadcast={"url": f"127.0.0.1:{pub_port}"})
        assert_fails_in_one_line(run_command("run", "-c", third, "a"), f"tcp://127.0.0.1:{pub_port}", "in use")


def test_an_address_of_another_machine_is_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, [["a", "tcp://192.0.2.1:8047"]])
    assert_fails_in_one_line(run_command("run", "-c", config, "a"), "tcp://192.0.2.1:8047")


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, where the directory should be")
    config = write_config(tmp_path, peers_on(*free_ports(1)))
    assert_fails_in_one_line(run_command("run", "-c", config, "a"), str(tmp_path / "data" / "a"))


def test_data_in_use_by_another_peer_is_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, peers_on(*free_ports(1)))
    with running_peer(config, "a"):
        (other_port,) = free_ports(1)
        result = run_command("run", "-c", config, "a", "-b", f"127.0.0.1:{other_port}")
        assert_fails_in_one_line(result, str(tmp_path / "data" / "a"))


@pytest.mark.parametrize(
    ("peer_id", "secret"), [("b", "hush"), ("a", "another")], ids=["another peer", "another secret"]
)
def test_data_of_another_cluster_is_one_line(tmp_path: Path, peer_id: str, secret: str) -> None:
    (port,) = free_ports(1)
    config = write_config(tmp_path, peers_on(port), secret="hush", data={"path": str(tmp_path / "data")})
    with running_peer(config, "a") as process:
        assert stop(process, signal.SIGTERM) == (0, b"")
    config = write_config(
        tmp_path, [[peer_id, f"127.0.0.1:{port}"]], secret=secret, data={"path": str(tmp_path / "data")}
    )
    assert_fails_in_one_line(run_command("run", "-c", config, peer_id), str(tmp_path / "data"))


def test_damaged_data_is_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, peers_on(*free_ports(1)))
    directory = tmp_path / "data" / "a"
    directory.mkdir(parents=True)
    (directory / "snap").write_bytes(b"not a snapshot, but long enough to be one" * 10)
    assert_fails_in_one_line(run_command("run", "-c", config, "a"), str(directory / "snap"))


class FailingPeer:
    """A peer that fails as soon as it has started."""

    url = "tcp://127.0.0.1:8047"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on(self, event: str, listener: Callable[[], None]) -> None:
        listener()

    def __enter__(self) -> FailingPeer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_closed(self, timeout_s: float) -> bool:
        return True


@pytest.mark.parametrize(
    ("indexes", "starts"), [([5, 5], 2), ([5, 7, 5], 3), ([None], 1)], ids=["again", "another, then again", "no entry"]
)
def test_a_peer_whose_log_is_damaged_starts_anew_but_once_for_each_entry(
    indexes: list[int | None], starts: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = [FailingPeer(CorruptionError("damaged", path="a file", index=index)) for index in indexes]
    left = iter(peers)
    monkeypatch.setattr("zmqraft.server.builder.build_peer", lambda *_, **__: next(left))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert run_peer(Settings(id="1", peers=(PeerAddress("1", FailingPeer.url),), data=DataSettings("unused"))) == 1
    assert len(list(left)) == len(peers) - starts
    assert capsys.readouterr().out == f"{FailingPeer.url}\n"
