"""What the README shows works as it stands there, but for ports, paths and how much is written."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zmqraft
from support.command import PATIENCE_S, free_ports, run_command, running_peer, started_command
from support.logs import batch_of, make_entry
from zmqraft.client import ZmqRaftPeerClient
from zmqraft.storage import FileLog

README = Path(__file__).parents[2] / "README.md"
SECRET = "name of the cluster"


@pytest.fixture
def text(tmp_path: Path) -> str:
    """The README with free ports instead of its own, and a directory of this test."""
    text = README.read_text(encoding="utf-8")
    own_ports = sorted(set(re.findall(r"\b8[0-9]47\b|\b8[0-9]48\b", text)))
    ports = dict(zip(own_ports, free_ports(len(own_ports)), strict=True))
    text = re.sub("|".join(own_ports), lambda match: str(ports[match[0]]), text)
    for path in ("/tmp/zmqraft-example", "/var/lib/zmqraft"):
        assert path in text
        text = text.replace(path, str(tmp_path / "data"))
    return text.replace("100_000", "1_000")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def urls_in(text: str) -> list[str]:
    return re.findall(r"tcp://127\.0\.0\.1:\d+", text)


@contextlib.contextmanager
def running(source: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program; killed in the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(zmqraft.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_the_examples_in_python(text: str, tmp_path: Path) -> None:
    peer, clients, _ = blocks(text, "python")
    (url,) = urls_in(peer)
    with running(peer) as process, ZmqRaftPeerClient(url, secret=SECRET) as client:
        index = client.request_update(None, b"for the counter", deadline_s=PATIENCE_S)
        assert client.request_log_info(deadline_s=PATIENCE_S).last_applied == index
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)

    # The subscriber wants a peer that broadcasts: here the one of the command, on the same data.
    (pub_port,) = free_ports(1)
    (yaml,) = blocks(text, "yaml")
    config = tmp_path / "one.yaml"
    config.write_text(
        re.sub(r"peers:.*\n( +- .*\n)+", f'peers: [["1", "{url}"]]\n', yaml).replace(", appendIdToPath: true", "")
    )
    with running_peer(config, "1", "-p", f"127.0.0.1:{pub_port}"), running(clients) as process:
        assert process.stdout is not None
        first, thousandth = map(int, process.stdout.readline().split())
        assert thousandth == first + 1000
        until = thousandth + 1000
        read = [process.stdout.readline().decode().strip().split(maxsplit=2) for _ in range(until)]
        assert [int(words[0]) for words in read] == list(range(1, until + 1))
        assert read[first - 1][2] == "b'some data'"
        subscribed = [int(process.stdout.readline()) for _ in range(until)]
        assert subscribed == list(range(1, until + 1))
        assert process.poll() is None


def test_the_cluster_in_a_shell(text: str, tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    (yaml,) = blocks(text, "yaml")
    config.write_text(yaml)
    for command in ("run", "update", "read", "subscribe", "info"):
        assert re.search(rf"^    .*zmqraft {command} -c cluster.yaml", text, re.MULTILINE)
    lines = b"".join(b"%d\n" % number for number in range(1, 1001))
    with contextlib.ExitStack() as stack:
        for peer_id in "123":
            stack.enter_context(running_peer(config, peer_id))
        indexes = run_command("update", "-c", config, input=lines)
        assert (len(indexes.stdout.split()), indexes.returncode, indexes.stderr) == (1000, 0, b"")
        assert run_command("read", "-c", config).stdout == lines
        with started_command("subscribe", "-c", config) as subscriber:
            assert subscriber.stdout is not None
            assert b"".join(subscriber.stdout.readline() for _ in range(1000)) == lines
        rows = run_command("info", "-c", config).stdout.decode().splitlines()[1:]
        assert [row.split()[0] for row in rows] == ["1", "2", "3"]
        assert sum(" leader " in row for row in rows) == 1
    assert re.search(r"^    zmqraft compact -c cluster.yaml -s words.py:Words 1 ", text, re.MULTILINE)
    (tmp_path / "words.py").write_text(blocks(text, "python")[2])
    for index in (b"500", b"900"):
        # Its peers were killed, and have not written down what they had applied; and the request ids are remembered.
        flags = ("-s", f"{tmp_path}/words.py:Words", "--index", index.decode(), "--force")
        result = run_command("compact", "-c", config, *flags, "1")
        assert (result.returncode, result.stdout) == (0, b"")
        assert b"the snapshot is of index %s, " % index in result.stderr
    with contextlib.ExitStack() as stack:
        for peer_id in "123":
            stack.enter_context(running_peer(config, peer_id))
        assert run_command("update", "-c", config, input=b"more").returncode == 0


def test_the_tools_for_files(text: str, tmp_path: Path) -> None:
    """On the log of a peer with enough entries for the ranges; MessagePack as they are small integers."""
    log = FileLog.open(tmp_path / "data/1/log", tmp_path / "data/1/snap")
    log.append(batch_of(*(make_entry(index, data=bytes([index % 100])) for index in range(1, 1003))))
    log.sync()
    log.close()
    lines = re.findall(r"^    zmqraft ((inspect|list|dump|verify) .*?) *(?:#.*)?$", text, re.MULTILINE)
    assert [name for _, name in lines] == ["inspect", "list", "dump", "verify"]
    for line, name in lines:
        result = run_command(*line.split())
        assert (result.returncode, result.stderr) == (0, b"")
        if name == "dump":
            entries = [row.split() for row in result.stdout.decode().splitlines()]
            assert [int(entry[0]) for entry in entries] == [*range(100, 111), 1000, 1001, 1002]
            assert [int(entry[4]) for entry in entries] == [*range(11), 0, 1, 2]


def test_the_client_of_the_example_is_the_one_that_waits(text: str) -> None:
    """Without a cluster it gives up at its deadline, which the example sets."""
    _, clients, _ = blocks(text, "python")
    with running(clients.replace("deadline_s=10", "deadline_s=0.2")) as process:
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "zmqraft.errors.RequestTimeoutError" in stderr.decode()
