"""The small clients in pipes, against a real peer: what goes in through ``update`` comes out of the others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import (
    PATIENCE_S,
    assert_fails_in_one_line,
    free_ports,
    run_command,
    run_shell_line,
    running_peer,
    started_command,
    started_shell_line,
    write_config,
)
from support.local_cluster import wait_for
from zmqraft.protocol.request_id import new_request_id

SECRET = "sésame"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration file of a cluster of one peer, which runs. Tests share it, and its log."""
    directory = tmp_path_factory.mktemp("pipes")
    port, pub_port = free_ports(2)
    peers = [{"id": "a", "url": f"tcp://127.0.0.1:{port}", "pub": f"tcp://127.0.0.1:{pub_port}"}]
    path = write_config(directory, peers, secret=SECRET, id="a")
    with running_peer(path):
        yield path


def url_of(config: Path) -> str:
    url: str = json.loads(config.read_text())["raft"]["peers"][0]["url"]
    return url


def checked(result: subprocess.CompletedProcess[bytes]) -> bytes:
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout


def updated(config: Path, content: bytes, *arguments: str) -> list[int]:
    """Send lines; their indexes."""
    return [int(line) for line in checked(run_command("update", "-c", config, *arguments, input=content)).splitlines()]


CONTENT = "first\n\n  \tünï\r\n\0binary\xff\nno newline at the end".encode("latin-1")


def test_a_file_comes_back_as_it_was(config: Path, tmp_path: Path) -> None:
    indexes = updated(config, CONTENT)
    assert indexes == list(range(indexes[0], indexes[0] + 5))
    window = ("-c", str(config), "--from", str(indexes[0]), "--count", "5")
    assert checked(run_command("read", "--raw", *window)) == CONTENT
    assert checked(run_command("read", *window)) == CONTENT + b"\n"
    assert checked(run_command("subscribe", "--raw", *window)) == CONTENT
    (tmp_path / "file").write_bytes(CONTENT)
    again = updated(config, b"", "--file", str(tmp_path / "file"))
    assert again == list(range(again[0], again[0] + 5))


def test_one_argument_is_one_entry(config: Path) -> None:
    url, secret = url_of(config), ("--secret", SECRET)
    (line,) = checked(run_command("update", "-u", url, *secret, "--json", "two\nlines")).splitlines()
    sent = json.loads(line)
    (line,) = checked(run_command("read", "-u", url, *secret, "--json", "--from", str(sent["index"]))).splitlines()
    entry = json.loads(line)
    assert entry.pop("term") >= 1
    assert entry == {**sent, "type": "STATE", "data": "two\nlines"}


def test_an_update_can_be_repeated_with_its_request_id(config: Path) -> None:
    arguments = ("update", "-c", config, "--request-id", new_request_id().hex())
    first = checked(run_command(*arguments, "once"))
    assert checked(run_command(*arguments, "once")) == first
    entries = checked(run_command("read", "-c", config, "--from", first.decode().strip()))
    assert entries == b"once\n"


def test_newlines_can_be_left_out_but_then_no_line_may_be_empty(config: Path) -> None:
    indexes = updated(config, b"a\nb\n", "--chomp")
    assert checked(run_command("read", "-c", config, "--raw", "--from", str(indexes[0]))) == b"ab"
    result = run_command("update", "-c", config, "--chomp", input=b"\n")
    assert_fails_in_one_line(result, "line 1 is empty")


def test_no_lines_are_no_updates(config: Path) -> None:
    assert updated(config, b"") == []


def test_many_lines_are_in_their_order(config: Path) -> None:
    content = b"".join(b"%d\n" % number for number in range(2000))
    indexes = updated(config, content, "--in-flight", "100")
    assert indexes == list(range(indexes[0], indexes[0] + 2000))
    assert checked(run_command("read", "-c", config, "--from", str(indexes[0]), "--count", "2000")) == content


def test_all_shows_what_no_client_wrote(config: Path) -> None:
    updated(config, b"x")
    lines = checked(run_command("read", "-c", config, "--json", "--all", "--encoding", "hex")).splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["index"] for entry in entries] == list(range(1, len(entries) + 1))
    assert (entries[0]["type"], entries[0]["data"], entries[0]["encoding"]) == ("CHECKPOINT", "c0", "hex")
    lines = checked(run_command("read", "-c", config, "--json")).splitlines()
    assert {json.loads(line)["type"] for line in lines} == {"STATE"}


def test_an_index_comes_out_before_the_next_line_goes_in(config: Path) -> None:
    with started_command("update", "-c", config) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        last = 0
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            index = int(process.stdout.readline())
            assert index > last
            last = index
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


def test_a_subscriber_sees_an_update_as_it_comes(config: Path) -> None:
    (index,) = updated(config, b"before\n")
    with started_command("subscribe", "-c", config, "--from", str(index)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"before\n"
        for line in (b"one\n", b"two\n"):
            updated(config, line)
            assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130
        assert stderr.strip() == b""


@pytest.mark.parametrize("command", ["update", "read", "subscribe"])
def test_a_reader_that_goes_away_ends_the_command_quietly(config: Path, command: str) -> None:
    # More than a pipe holds.
    updated(config, (b"x" * 999 + b"\n") * 500)
    with started_command(command, "-c", config) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if command == "update":
            process.stdin.write(b"x\n")
            process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        if command == "update":
            process.stdin.write(b"x\n")
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert stderr == b""
        assert process.returncode == 141


def test_an_interrupted_update_ends_without_a_traceback(config: Path) -> None:
    with started_command("update", "-c", config) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip() == b""


def test_info_shows_every_peer(config: Path) -> None:
    updated(config, b"x")
    heading, row = checked(run_command("info", "-c", config)).decode().splitlines()
    assert heading.split()[:4] == ["id", "url", "state", "term"]
    assert row.split()[:3] == ["a", url_of(config), "leader"]
    (line,) = checked(run_command("info", "-c", config, "--json")).splitlines()
    record = json.loads(line)
    assert (record["id"], record["leaderId"], record["isLeader"]) == ("a", "a", True)
    assert record["firstIndex"] == 1
    assert record["commitIndex"] == record["lastApplied"] == record["lastIndex"] > 1
    assert record["peers"] == [["a", url_of(config)]]


def test_info_shows_who_does_not_answer(config: Path) -> None:
    (port,) = free_ports(1)
    result = run_command("info", "-c", config, "-u", url_of(config), "-u", f"127.0.0.1:{port}", "--timeout", "1")
    assert (result.returncode, result.stderr) == (1, b"")
    assert [line.split()[2:4] for line in result.stdout.decode().splitlines()[1:]] == [
        ["no", "answer"],
        ["leader", result.stdout.decode().splitlines()[2].split()[3]],
    ]
    records = run_command("info", "-u", f"127.0.0.1:{port}", "--json", "--timeout", "0.5").stdout.splitlines()
    assert [json.loads(line) for line in records] == [
        {"id": "?", "url": f"tcp://127.0.0.1:{port}", "error": "no answer"}
    ]


@pytest.mark.parametrize("arguments", [["update", "x"], ["read"], ["subscribe"]])
def test_a_cluster_that_does_not_answer_is_one_line(arguments: list[str]) -> None:
    (port,) = free_ports(1)
    result = run_command(*arguments, "-u", f"127.0.0.1:{port}", "--timeout", "0.5")
    assert_fails_in_one_line(result, f"no answer from the peers tcp://127.0.0.1:{port} within 0.5 s")


def test_a_wrong_secret_gets_no_answer(config: Path) -> None:
    result = run_command("update", "-c", config, "--secret", "wrong", "--timeout", "0.5", "x")
    assert_fails_in_one_line(result)


#: A shell that starts the command with a standard stream closed, or without room on it.
WITHOUT_STREAMS = [
    ("update -c {config} x >&-", 1, "zmqraft: standard output is closed\n"),
    ("update -c {config} x >/dev/full", 1, "zmqraft: standard output: No space left on device\n"),
    ("read -c {config} >&-", 1, "zmqraft: standard output is closed\n"),
    ("read -c {config} >/dev/full", 1, "zmqraft: standard output: No space left on device\n"),
    ("info -c {config} >&-", 1, "zmqraft: standard output is closed\n"),
    ("info -c {config} >/dev/full", 1, "zmqraft: standard output: No space left on device\n"),
    ("update -c {config} <&-", 1, "zmqraft: standard input is closed; give it lines, a --file or DATA\n"),
    ("update -c {config} -u 127.0.0.1:1 --timeout 0.1 x 2>&-", 1, ""),
    ("update -u 127.0.0.1:1:1 x 2>&- >&2", 2, ""),
    ("--version >&-", 0, ""),
    ("-h >&-", 0, ""),
]


@pytest.mark.parametrize(("line", "status", "said"), WITHOUT_STREAMS, ids=[case[0] for case in WITHOUT_STREAMS])
def test_a_stream_that_is_closed_or_full_is_no_traceback(config: Path, line: str, status: int, said: str) -> None:
    updated(config, b"x" * 100_000)
    result = run_shell_line(line.format(config=config))
    assert (result.returncode, result.stdout, result.stderr.decode()) == (status, b"", said)


@pytest.mark.parametrize("line", ["--help", "run --help", "demo"])
def test_whatever_is_printed_a_reader_that_goes_away_is_status_141(line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with started_command(*line.split(), stdout=writer) as process:
        os.close(writer)
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, stderr) == (141, b"")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """A library that complains on standard error must not write into the log."""
    (port,) = free_ports(1)
    path = write_config(tmp_path, [["a", f"tcp://127.0.0.1:{port}"]])
    with started_shell_line(f"run -c {path} a <&- >&- 2>&-") as process:
        wait_for(lambda: is_listening(port), "the peer")
        opened = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert opened == ["/dev/null"] * 3


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("timeout", ["inf", "1e300"])
@pytest.mark.parametrize("arguments", [["read"], ["subscribe", "--count", "1", "--all"], ["update", "x"], ["info"]])
def test_a_timeout_can_be_as_long_as_one_likes(config: Path, arguments: list[str], timeout: str) -> None:
    assert checked(run_command(*arguments, "-c", config, "--timeout", timeout))
