"""``zmqraft kv``: a store whose peer is a process, and its commands, most of them run in this one."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import assert_fails_in_one_line, free_ports, run_command, started_command, write_config
from zmqraft import new_request_id
from zmqraft.cli import main


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("store")
    peers = [["1", f"tcp://127.0.0.1:{free_ports(1)[0]}"]]
    path = write_config(directory, peers, secret="store")
    with contextlib.ExitStack() as stack:
        for peer_id, url in peers:
            process = stack.enter_context(started_command("kv", "run", "-c", path, peer_id))
            assert process.stdout is not None
            assert process.stdout.readline().decode() == f"{url}\n"
        yield path


class Commands:
    """``zmqraft kv NAME -c FILE ...``: standard output."""

    def __init__(self, config: Path, capture: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self._config = config
        self._capture = capture
        self._monkeypatch = monkeypatch

    def __call__(self, name: str, *arguments: str, input: bytes = b"", status: int = 0) -> bytes:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input)))
        found = main(["kv", name, "-c", str(self._config), *arguments])
        output = self._capture.readouterr()
        assert (found, output.err) == (status, b"")
        return output.out


@pytest.fixture
def kv(config: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(config, capsysbinary, monkeypatch)


def test_values(kv: Commands) -> None:
    assert kv("get", "key", status=1) == b""
    revision = int(kv("put", "key", "value"))
    assert kv("get", "key") == b"value\n"
    assert json.loads(kv("get", "--json", "key")) == {"key": "key", "revision": revision, "data": "value"}
    request_id = new_request_id().hex()
    revisions = {kv("put", "--request-id", request_id, "key", input=b"from\0a pipe\n") for _ in range(2)}
    assert len(revisions) == 1
    assert kv("get", "key") == b"from\0a pipe\n"
    kv("swap", "key", "x", status=1)
    kv("swap", "key", "x", "--expect", "from", status=1)
    kv("put", "key", "y")
    kv("swap", "key", "x", "--expect", "y")
    assert kv("get", "key") == b"x\n"
    kv("swap", "key", "--expect", "x")
    kv("delete", "key", status=1)
    kv("swap", "key", "new")
    kv("delete", "key")


def test_scanning_and_watching(kv: Commands) -> None:
    first = int(kv("put", "scan/a", "1"))
    kv("put", "scan/b", "2")
    kv("put", "other", "3")
    assert kv("scan", "scan/") == b"scan/a\t1\nscan/b\t2\n"
    assert [json.loads(line)["key"] for line in kv("scan", "scan/", "--json").splitlines()] == [
        "scan/a",
        "scan/b",
    ]
    kv("delete", "scan/a")
    watched = kv("watch", "scan/", "--from", str(first), "--count", "3").splitlines()
    assert [line.split(b"\t")[1:] for line in watched] == [[b"scan/a", b"1"], [b"scan/b", b"2"], [b"scan/a"]]
    last = int(watched[-1].split(b"\t")[0])
    record = json.loads(kv("watch", "scan/", "--from", str(last), "--count", "1", "--json"))
    assert record == {"key": "scan/a", "revision": last, "deleted": True}


def test_mistakes(config: Path) -> None:
    assert_fails_in_one_line(run_command("kv", "put", "-c", config, "--request-id", "x", "k", "v"), "--request-id")
    assert_fails_in_one_line(run_command("kv", "get", "-u", "127.0.0.1:1", "--timeout", "0.1", "key"), "no answer from")
    assert_fails_in_one_line(run_command("kv", "run", "-c", "/nowhere.yaml"), "/nowhere.yaml")


def test_peers_that_run_something_else(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    path = write_config(tmp_path, [["1", f"tcp://127.0.0.1:{port}"]])
    with started_command("run", "-c", path, "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert_fails_in_one_line(run_command("kv", "get", "-c", path, "--timeout", "1", "key"), "no answer from")
