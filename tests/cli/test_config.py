"""``zmqraft config``: the members shown, and changed, of real clusters; and what it makes of strange ones."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import PATIENCE_S, assert_fails_in_one_line, run_command
from support.fake_peers import SECRET as FAKE_SECRET
from support.fake_peers import FakePeers, Frames, fake_peers
from support.local_cluster import wait_for
from support.process_cluster import SECRET, ProcessCluster, Writer, check_entries
from zmqraft.cli import main
from zmqraft.protocol import new_request_id
from zmqraft.protocol.schema import Protocols

#: On a machine with a slow disk no leader loses its place.
PATIENT = {"electionTimeoutMin": 600, "electionTimeoutMax": 900}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ProcessCluster]:
    """Three peers that run, with a leader."""
    with contextlib.ExitStack() as stack:
        cluster = ProcessCluster(tmp_path, 3, stack, **PATIENT)
        cluster.start()
        yield cluster


def run_config(cluster: ProcessCluster, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return run_command("config", "-c", cluster.config, "-t", str(int(PATIENCE_S * 500)), *arguments)


def shown(cluster: ProcessCluster, *arguments: str) -> dict[str, Any]:
    """What the command says as JSON."""
    result = run_config(cluster, "--json", *arguments)
    assert result.returncode == 0, result.stderr.decode()
    (line,) = result.stdout.splitlines()
    record: dict[str, Any] = json.loads(line)
    return record


def named(cluster: ProcessCluster, ids: str) -> str:
    """A list of peers as an operator writes it."""
    return ",".join(f"{cluster.urls[peer_id]}/{peer_id}" for peer_id in ids)


def pairs(cluster: ProcessCluster, ids: str) -> list[list[str]]:
    return [[peer_id, cluster.urls[peer_id]] for peer_id in ids]


def request_ids(count: int) -> list[bytes]:
    return [new_request_id() for _ in range(count)]


def wait_until_applied(cluster: ProcessCluster, ids: str, index: int) -> None:
    for peer_id in ids:
        with cluster.peer_client(peer_id) as client:
            wait_for(
                lambda: client.request_log_info(deadline_s=PATIENCE_S).last_applied >= index,
                f"index {index} on peer {peer_id}",
            )


def check_logs(cluster: ProcessCluster, ids: str, acknowledged: dict[bytes, int]) -> None:
    """Stop all peers; these have every update that was acknowledged."""
    cluster.stop()
    for peer_id in ids:
        check_entries(cluster.entries(peer_id), acknowledged)


def call(
    capsys: pytest.CaptureFixture[str], *arguments: str, secret: str = FAKE_SECRET.decode()
) -> tuple[int, str, str]:
    """Run the command in this process: its status, and what it wrote."""
    status = main(["config", "-k", secret, *arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def said_in_one_line(result: tuple[int, str, str], reason: str, expected_status: int = 1) -> None:
    status, out, err = result
    assert (status, out) == (expected_status, "")
    assert err.startswith("zmqraft: ")
    assert err.count("\n") == 1
    assert reason in err


def test_a_cluster_grows_and_shrinks_while_a_client_writes(cluster: ProcessCluster) -> None:
    writer = Writer([cluster.urls["1"], cluster.urls["2"], cluster.urls["3"]])
    writer.start()
    before = shown(cluster)
    assert before["peers"] == pairs(cluster, "123")
    assert before["leaderId"] in {"1", "2", "3"}
    cluster.join("4", "5")
    grown = shown(cluster, "-a", named(cluster, "45"))
    assert (grown["peers"], grown["added"]) == (pairs(cluster, "12345"), pairs(cluster, "45"))
    assert grown["index"] > 1
    # The leader goes; who is left is shown by another.
    leader = grown["leaderId"]
    rest = "12345".replace(leader, "")
    shrunk = shown(cluster, "-d", leader)
    assert (shrunk["peers"], shrunk["removed"]) == (pairs(cluster, rest), pairs(cluster, leader))
    assert shrunk["leaderId"] in rest
    # It knows, and says who the members are to who asks nobody else.
    with cluster.peer_client(leader) as client:
        wait_for(
            lambda: [list(peer) for peer in client.request_config(deadline_s=PATIENCE_S).peers] == pairs(cluster, rest),
            "the peer that was removed to know it",
        )
    host = cluster.urls[leader].removeprefix("tcp://")
    asked = run_command("config", "--json", "-k", SECRET, "--timeout", str(PATIENCE_S), host)
    assert json.loads(asked.stdout)["peers"] == pairs(cluster, rest), asked
    count = len(writer.acknowledged)
    wait_for(lambda: len(writer.acknowledged) > count + 10 or writer.error, "updates after the changes")
    writer.stop()
    wait_until_applied(cluster, rest, max(writer.acknowledged.values()))
    check_logs(cluster, rest, writer.acknowledged)


def test_all_members_are_replaced(cluster: ProcessCluster) -> None:
    client = cluster.client()
    acknowledged = {request_id: client.request_update(request_id, b"before") for request_id in request_ids(20)}
    cluster.join("4", "5", "6")
    text = run_config(cluster, "-r", named(cluster, "456"))
    assert text.returncode == 0, text
    heading, *rows = text.stdout.decode().splitlines()
    assert heading.split() == ["id", "url", "role"]
    assert [row.split()[:2] for row in rows] == pairs(cluster, "456")
    assert sorted(row.split()[2] for row in rows) == ["leader", "member", "member"]
    assert "added 4, 5, 6; removed 1, 2, 3" in text.stderr.decode()
    acknowledged |= {request_id: client.request_update(request_id, b"after") for request_id in request_ids(20)}
    wait_until_applied(cluster, "456", max(acknowledged.values()))
    check_logs(cluster, "456", acknowledged)


def test_what_is_refused_changes_nothing(capsys: pytest.CaptureFixture[str], cluster: ProcessCluster) -> None:
    urls = cluster.urls
    for arguments, reason in (
        (["-d", "9"], "'9' is no member; the members are 1, 2, 3"),
        (["-a", named(cluster, "3")], "'3' is a member already"),
        (["-a", f"{urls['3']}/9"], "is the url of the member '3'"),
        (["-r", named(cluster, "312")], "no change: these are the members already"),
        (["-a", "127.0.0.1:1/8,127.0.0.1:2/8"], "the id '8' is in the list twice"),
    ):
        said_in_one_line(call(capsys, "-c", str(cluster.config), *arguments, secret=SECRET), reason, 2)
    # Of three members one is down, so that the other two are needed.
    leader = shown(cluster)["leaderId"]
    down = next(peer_id for peer_id in "123" if peer_id != leader)
    cluster.stop(down)
    up = next(peer_id for peer_id in "123" if peer_id not in (leader, down))
    refused = run_command("config", "-c", cluster.config, "--timeout", "2.5", "-d", up)
    assert_fails_in_one_line(refused, "nothing was changed: of the 2 new members", f"{down} (no answer)", "use --force")
    # To say what would be done changes nothing.
    plan = shown(cluster, "-n", "-d", down)
    assert plan["dryRun"]
    assert plan["peers"] == pairs(cluster, "123".replace(down, ""))
    assert (plan["removed"], plan["problems"]) == (pairs(cluster, down), {down: "no answer"})
    after = shown(cluster)
    assert after["peers"] == pairs(cluster, "123")
    # And what is possible is done.
    assert shown(cluster, "-d", down)["peers"] == pairs(cluster, "123".replace(down, ""))


# --- peers that are not what they should be --------------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[FakePeers]:
    """A cluster of one peer with a long log, which leads."""
    with fake_peers(1) as peers:
        peers.fill(10_100)
        yield peers


@pytest.fixture
def new() -> Iterator[FakePeers]:
    """A peer that is not of the cluster, and does not lead."""
    with fake_peers(1) as peers:
        peers.leader = None
        yield peers


def test_a_new_member_that_is_far_behind(capsys: pytest.CaptureFixture[str], small: FakePeers, new: FakePeers) -> None:
    add = ("-u", small["1"].url, "-a", f"{new['1'].url}/2")
    said_in_one_line(call(capsys, *add), "a majority is 2; missing: 2 (10100 entries behind)")
    new.fill(99)
    said_in_one_line(call(capsys, *add), "missing: 2 (10001 entries behind)")
    small.first_index = 10_099
    said_in_one_line(call(capsys, *add), "missing: 2 (needs a snapshot first, 10001 entries behind)")
    small.first_index = 1
    status, out, _ = call(capsys, *add, "-n", "--force")
    assert (status, out.splitlines()[2].split()[2:]) == (0, ["new", "member", "10001", "entries", "behind"])
    new.fill(1)
    status, out, _ = call(capsys, *add, "-n")
    assert (status, out.splitlines()[2].split()[2:]) == (0, ["new", "member", "there"])
    assert small["1"].count(b"&") == 0


def test_a_new_member_that_leads_its_own_cluster(
    capsys: pytest.CaptureFixture[str], small: FakePeers, new: FakePeers
) -> None:
    new.leader = "1"
    result = call(capsys, small["1"].url, "-a", f"{new['1'].url}/2")
    said_in_one_line(result, f"'2' at {new['1'].url} leads a cluster of its own")


def test_a_new_member_that_does_not_answer(capsys: pytest.CaptureFixture[str], small: FakePeers) -> None:
    result = call(capsys, small["1"].url, "-t", "2000", "-a", "127.0.0.1:1/2")
    said_in_one_line(
        result, "nothing was changed: of the 2 new members 1 would be there, and a majority is 2; missing: "
    )
    assert "missing: 2 (no answer); see zmqraft info, or use --force" in result[2]


def test_a_member_that_answers_late_counts(
    capsys: pytest.CaptureFixture[str], small: FakePeers, new: FakePeers
) -> None:
    """Its first answers are lost, for longer than anybody is waited for who does not matter."""
    new.fill(10_000)
    asked: list[Frames] = []

    def late(frames: Frames) -> list[Frames]:
        asked.append(frames)
        return [new["1"].cluster_info()] if len(asked) > 3 else []

    new["1"].script[b"^"] = late
    status, _, err = call(capsys, small["1"].url, "-n", "-t", str(PATIENCE_S * 1000), "-a", f"{new['1'].url}/2")
    assert (status, err) == (0, "zmqraft: nothing was changed\n")
    assert len(asked) > 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((3,), "another change is under way; repeat it when that is done"),
        ((2, {"name": "Error", "message": "not today"}), "the change of the cluster was refused: not today (Error)"),
        ((4,), "too old, or too far in the future"),
        (None, "the change was not confirmed within 1.5 s, and may or may not be under way"),
        ((1, 7), "the change was made at index 7, but within 1.5 s none of the new members was found to lead"),
    ],
    ids=["in progress", "refused", "expired", "silent", "done, but not to be seen"],
)
def test_what_a_leader_answers(
    capsys: pytest.CaptureFixture[str], small: FakePeers, answer: tuple[Any, ...] | None, reason: str
) -> None:
    reply = [] if answer is None else [Protocols.CONFIG_UPDATE.encode_response(*answer)]
    small["1"].script[b"&"] = lambda _: reply
    result = call(capsys, small["1"].url, "--force", "-t", "1500", "-a", "127.0.0.1:1/2")
    said_in_one_line(result, reason)
    assert small["1"].count(b"&") >= 1


def test_members_that_change_meanwhile(capsys: pytest.CaptureFixture[str], small: FakePeers) -> None:
    asked: list[Frames] = []

    def info(frames: Frames) -> list[Frames]:
        asked.append(frames)
        peers = [*small.peer_list, *([] if len(asked) <= 2 else [["2", "tcp://127.0.0.1:2"]])]
        return [Protocols.REQUEST_CONFIG.encode_response(True, "1", peers)]

    small["1"].script[b"^"] = info
    result = call(capsys, small["1"].url, "--force", "-a", "127.0.0.1:3/3")
    said_in_one_line(result, "nothing was changed: the members have changed meanwhile")
    assert small["1"].count(b"&") == 0


def test_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    said_in_one_line(
        call(capsys, "-t", "50", "127.0.0.1:1"), "no answer from the peers tcp://127.0.0.1:1 within 0.05 s"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-r", "h:1/1", "-a", "h:2/2"], "--replace excludes --add and --delete"),
        (["-n"], "--dry-run and --force are for --add, --delete and --replace"),
        (["--force"], "--dry-run and --force are for --add, --delete and --replace"),
        (["ipc://x"], "not a url like tcp://host:port: 'ipc://x'"),
        (["-c", "/nowhere.json"], "/nowhere.json: No such file or directory"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str) -> None:
    status, out, err = call(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert reason in err
