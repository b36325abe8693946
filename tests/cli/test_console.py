"""``zmqraft console``: its commands against a real peer, from a pipe, and at a prompt without a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.command import assert_fails_in_one_line, free_ports, run_command
from support.local_cluster import SECRET, running_cluster, wait_for
from zmqraft import ZmqRaft, ZmqRaftClient
from zmqraft.cli import main
from zmqraft.cli.cluster_options import ClusterAddress
from zmqraft.cli.console.commands import Console


class Talk:
    """A console, and what it says."""

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self.lines: list[str] = []
        self.console = Console(ClusterAddress((url,), SECRET, timeout_s), self.lines.append)

    def __call__(self, line: str, *, fails: bool = False) -> list[str]:
        """What it says to a line."""
        del self.lines[:]
        assert self.console.execute(line) is not fails, self.lines
        return list(self.lines)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZmqRaft]:
    with running_cluster(tmp_path_factory.mktemp("peer"), 1) as (running,):
        yield running


@pytest.fixture
def talk(peer: ZmqRaft) -> Iterator[Talk]:
    talk = Talk(peer.url)
    with talk.console:
        yield talk


def test_the_cluster(talk: Talk, peer: ZmqRaft) -> None:
    assert talk(f"connect {peer.url}") == ["peer 1 leads, of 1"]
    assert talk("peers") == [f"1 {peer.url} leads"]
    (line,) = talk("info")
    assert line.startswith(f"1 {peer.url} leader term ")
    assert talk.console.where == peer.url.removeprefix("tcp://")


def test_entries(talk: Talk, peer: ZmqRaft) -> None:
    index = int(talk("update 'some  data' more")[0])
    assert talk(f"read {index}") == [f"{index} {peer.engine.raft.current_term} some  data more"]
    talk("decode hex")
    assert talk(f"read {index} 1")[0].endswith(b"some  data more".hex())
    talk("decode msgpack")
    with ZmqRaftClient(peer.url, secret=SECRET, deadline_s=60.0) as client:
        client.request_update(None, b"\x81\xa1a\x01")
    assert talk(f"read {index + 1}")[0].endswith("{'a': 1}")
    assert talk(f"read {index} 1")[0].endswith(b"some  data more".hex())
    assert "CHECKPOINT" in talk("read 1 1")[0]


def test_a_subscription(talk: Talk) -> None:
    talk("subscribe")
    index = int(talk("update followed")[0])
    wait_for(lambda: any(line.endswith(" followed") for line in talk.lines), "the entry")
    talk("subscribe", fails=True)
    talk("stop")
    talk(f"subscribe {index}")
    wait_for(lambda: any(line.endswith(" followed") for line in talk.lines), "the entry")


def test_a_flood(talk: Talk, peer: ZmqRaft) -> None:
    talk("verify", fails=True)
    before = peer.engine.last_applied
    talk("flood 20 10")
    talk("flood", fails=True)
    wait_for(lambda: peer.engine.last_applied > before + 100, "some updates")
    assert " updates in " in talk("stop")[0]
    (line,) = talk("verify")
    assert line.endswith("are as they were written")
    index = min(talk.console._written)
    talk.console._written[index] = b"other"
    assert f"the first is {index}" in talk("verify", fails=True)[0]
    assert "at least 16 bytes" in talk("flood 1", fails=True)[0]


def test_mistakes(talk: Talk) -> None:
    assert talk("") == talk("# a remark") == talk("   ") == []
    for line in ("nothing", "update", "read x", "read 0", "decode", "decode x", "peers now", "connect ipc://x", "'"):
        assert len(talk(line, fails=True)) == 1
    assert talk("peers now", fails=True) == ["error: usage: peers"]
    assert len(talk("help")) == len(talk.console.completions())
    talk("quit")
    assert talk.console.is_over


def test_a_cluster_that_does_not_answer() -> None:
    talk = Talk(f"tcp://127.0.0.1:{free_ports(1)[0]}", 0.1)
    with talk.console:
        for line in ("peers", "update x", "read", "subscribe"):
            assert len(talk(line, fails=True)) == 1
        talk("flood")
        wait_for(lambda: talk.console._flood is None or talk.console._flood._error, "the end")
        talk("stop", fails=True)


def test_from_a_pipe(peer: ZmqRaft) -> None:
    arguments = ("console", "-u", peer.url, "--secret", SECRET.decode())
    result = run_command(*arguments, input=b"update piped\npeers\nquit\nnever\n")
    index, line = result.stdout.decode().splitlines()
    assert (int(index) > 0, line, result.returncode) == (True, f"1 {peer.url} leads", 0)
    result = run_command(*arguments, input=b"never\npeers\n")
    assert (result.stdout.decode().splitlines()[1:], result.returncode) == ([f"1 {peer.url} leads"], 1)
    assert_fails_in_one_line(run_command("console", "x"), "unexpected extra argument")


def test_the_prompt(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from zmqraft.cli.console import prompt

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as keys:
        keys.send_text("pee\t\npeers\n\x03\x04")
        lines: Any = prompt.prompted_lines(talk.console, input=keys, output=DummyOutput())
        assert list(lines)[1:] == ["peers", "stop"]
    assert "+peers" in (tmp_path / "zmqraft" / "console_history").read_text()


def test_without_prompt_toolkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.delitem(sys.modules, "zmqraft.cli.console.prompt", raising=False)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert main(["console"]) == 1
    assert "pip install 'zmqraft[console]'" in capsys.readouterr().err
