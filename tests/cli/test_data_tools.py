"""``inspect``, ``list``, ``dump`` and ``verify``: what they say of files of either origin, whole and damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.command import (
    assert_fails_in_one_line,
    free_ports,
    run_command,
    run_shell_line,
    running_peer,
    write_config,
)
from support.logs import batch_of, make_entry
from zmqraft.cli import main
from zmqraft.cli.plain_values import decoded
from zmqraft.constants import ENTRY_HEADER_SIZE
from zmqraft.protocol.entry import EntryType, LogEntry
from zmqraft.storage import FileLog, RaftPersistence, SnapshotFile

COMPAT = Path(__file__).parent.parent / "compat" / "data"
EXPECTED: dict[str, Any] = json.loads((COMPAT / "expected.json").read_text())
TOOLS = ("inspect", "list", "dump", "verify")
#: {"a": [1, nil]}
PACKED = b"\x81\xa1a\x92\x01\xc0"
INDEX_FILE = "log/00000/00/00/00000000000008.rlog"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory of ours: a snapshot of entry 2, entries 3 to 12 in two files, the state."""
    path = tmp_path / "data"
    path.mkdir()
    SnapshotFile.create(path / "snap", 2, 1, [b"state\xff"]).close()
    log = FileLog.open(path / "log", path / "snap", capacity=8)
    entries = [make_entry(index, 1 + index // 6, PACKED) for index in range(3, 11)]
    log.append(batch_of(*entries, LogEntry.checkpoint(11, 4), make_entry(12, 4, b"text", EntryType.CONFIG)))
    log.sync()
    log.close()
    state = RaftPersistence.open(path / "raft.pers", peer_id="a", cluster=b"secret")
    state.update_vote(4, "b")
    state.update_peers([("a", "tcp://127.0.0.1:8047")], bytes(12), 12)
    state.close()
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> list[str]:
    """The lines that the command prints. With a status other than 0 standard error may say why."""
    assert main(list(map(str, arguments))) == status
    output = capsys.readouterr()
    assert status or not output.err
    return output.out.splitlines()


def objects(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said(capsys, *arguments, "--json", status=status)]


def damage(path: Path, needle: bytes) -> int:
    """Change a byte of what is found last in a file; its offset."""
    content = bytearray(path.read_bytes())
    offset = content.rindex(needle)
    content[offset] ^= 1
    path.write_bytes(content)
    return offset


# --- inspect --------------------------------------------------------------------------------------------------------


def test_inspect_a_directory(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, snapshot, log, state = objects(capsys, "inspect", data)
    assert directory == {"path": str(data), "kind": "data directory", "lockedBy": None}
    assert (snapshot["index"], snapshot["term"], snapshot["dataSize"], snapshot["checksums"]) == (2, 1, 6, True)
    assert [segment["token"] for segment in snapshot["segments"]] == ["SNAP", "META", "CRCS", "DATA"]
    assert (log["kind"], log["files"], log["firstIndex"], log["lastIndex"]) == ("log", 2, 3, 12)
    assert (state["currentTerm"], state["votedFor"], state["peerId"]) == (4, "b", "a")
    assert (state["peers"], state["peersIndex"]) == ([["a", "tcp://127.0.0.1:8047"]], 12)
    lines = said(capsys, "inspect", data)
    assert f"{data / 'raft.pers'}: state file" in lines
    assert '  votedFor: "b"' in lines


def test_inspect_an_index_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = objects(capsys, "inspect", data / INDEX_FILE)
    assert (record["firstIndex"], record["lastIndex"], record["entries"], record["capacity"]) == (8, 12, 5, 8)
    assert (record["state"], record["checksums"], record["leftovers"]) == ("closed", True, 0)
    assert set(record["meta"]) == {"created", "hostname"}
    assert record["fileSize"] == (data / INDEX_FILE).stat().st_size


def test_inspect_what_zmq_raft_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    (state,) = objects(capsys, "inspect", COMPAT / "raft.pers")
    expected = EXPECTED["raft.pers"]
    assert {name: state[name] for name in ("currentTerm", "votedFor", "peersIndex")} == {
        name: expected[name] for name in ("currentTerm", "votedFor", "peersIndex")
    }
    assert (state["checksums"], state["tornAt"]) == (False, None)
    _, snapshot, log = objects(capsys, "inspect", COMPAT / "installed")
    assert (snapshot["index"], snapshot["checksums"], log["firstIndex"], log["lastIndex"]) == (50, False, 51, 53)


def test_inspect_a_damaged_header(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(data / INDEX_FILE, b"RLOG")
    *_, log, index_file, state = objects(capsys, "inspect", data, status=1)
    assert (log["lastIndex"], state["currentTerm"]) == (7, 4)
    assert index_file["errorOffset"] == 0
    assert "where b'RLOG' is expected" in index_file["error"]
    assert any("DAMAGED: begins with" in line for line in said(capsys, "inspect", data, status=1))


# --- list -----------------------------------------------------------------------------------------------------------


def test_list(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split() for line in said(capsys, "list", data)]
    assert rows[0] == ["file", "state", "first", "last", "entries", "data", "bytes", "file", "bytes"]
    assert [row[:5] for row in rows[1:]] == [
        ["snap", "ok", "-", "2", "-"],
        ["log/00000/00/00/00000000000003.rlog", "closed", "3", "7", "5"],
        [INDEX_FILE, "closed", "8", "12", "5"],
        ["raft.pers", "ok", "-", "-", "-"],
    ]
    records = objects(capsys, "list", data)
    assert [record["fileSize"] for record in records] == [Path(record["path"]).stat().st_size for record in records]


def test_list_says_what_is_damaged_torn_or_without_checksums(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(data / INDEX_FILE, b"RLOG")
    damage(data / "snap", b"state")
    with open(data / "raft.pers", "ab") as file:
        file.write(b"\x82\xa5")
    states = [record["state"] for record in objects(capsys, "list", data, status=1)]
    assert states == ["DAMAGED", "closed", "DAMAGED", "torn"]
    assert {record["state"] for record in objects(capsys, "list", COMPAT / "multifile")} == {"unknown"}


# --- dump -----------------------------------------------------------------------------------------------------------


def test_dump_in_every_format(data: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    def dumped(*arguments: str) -> bytes:
        assert main(["dump", str(data), *arguments]) == 0
        output = capfdbinary.readouterr()
        assert output.err == b""
        return output.out

    ids = {index: make_entry(index, term).request_id.hex() for index, term in ((10, 2), (12, 4))}
    assert dumped("--range", "10:").decode().splitlines() == [
        f"10 2 STATE {ids[10]} {PACKED.hex()}",
        f"11 4 CHECKPOINT {bytes(12).hex()} c0",
        f"12 4 CONFIG {ids[12]} {b'text'.hex()}",
    ]
    assert dumped("--range", "10:", "--format", "raw") == PACKED + b"\xc0text"
    packed = dumped("--range", "10:", "--format", "msgpack").decode().splitlines()
    assert [line.split(maxsplit=4)[4] for line in packed] == ['{"a": [1, null]}', "null", b"text".hex()]
    (entry,) = map(json.loads, dumped("--range", "10", "--format", "msgpack", "--json").splitlines())
    assert entry == {
        "index": 10,
        "term": 2,
        "type": "STATE",
        "requestId": ids[10],
        "checksum": True,
        "data": {"a": [1, None]},
        "encoding": "msgpack",
    }
    raw = [json.loads(line) for line in dumped("--range", "10,12", "--format", "raw", "--json").splitlines()]
    assert [entry["data"] for entry in raw] == ["gaFhkgHA", "text"]
    assert [entry.get("encoding") for entry in raw] == ["base64", None]


@pytest.mark.parametrize("name", sorted(name for name, value in EXPECTED.items() if "entries" in value))
def test_dump_what_zmq_raft_wrote(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = EXPECTED[name]
    entries = objects(capsys, "dump", COMPAT / name, "--range", f"{expected['first_index']}:")
    assert [
        {
            "index": entry["index"],
            "term": entry["term"],
            "type": int(EntryType[entry["type"]]),
            "request_id": entry["requestId"],
            "data": entry["data"],
        }
        for entry in entries
    ] == [{key: entry[key] for key in ("index", "term", "type", "request_id", "data")} for entry in expected["entries"]]
    assert {entry["checksum"] for entry in entries} == {False}


@pytest.mark.parametrize(
    ("ranges", "indexes"),
    [
        ("3:5", [3, 4, 5]),
        (":4", [3, 4]),
        ("11:", [11, 12]),
        (":", list(range(3, 13))),
        ("12,3,4:5,5:6", [3, 4, 5, 6, 12]),
        ("6:9", [6, 7, 8, 9]),
        ("12:100", [12]),
    ],
)
def test_dump_ranges(data: Path, ranges: str, indexes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert [entry["index"] for entry in objects(capsys, "dump", data, "--range", ranges)] == indexes
    assert [int(line.split()[0]) for line in said(capsys, "dump", data / "log", "--range", ranges)] == indexes


@pytest.mark.parametrize(
    "ranges", ["", ",", "5:3", "0:4", "0", "x", "1:2:3", "-1", "1,", "1-2", "9007199254740992", "9" * 5000, "\u0661"]
)
def test_nonsense_ranges_are_one_line(data: Path, ranges: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(data), "--range", ranges]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "is no range of indexes" in output.err
    assert output.err.count("\n") == 1
    assert len(output.err) < 300


def test_dump_a_range_in_which_nothing_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(data), "--range", "1:3,50:60,70:"]) == 1
    output = capsys.readouterr()
    assert [line.split()[0] for line in output.out.splitlines()] == ["3"]
    assert output.err.splitlines() == [
        f"zmqraft: {data}: no entry in the range 50:60",
        f"zmqraft: {data}: no entry in the range 70:",
    ]


def test_dump_passes_over_what_is_damaged(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offset = damage(data / INDEX_FILE, PACKED)
    assert main(["dump", str(data)]) == 1
    output = capsys.readouterr()
    assert [int(line.split()[0]) for line in output.out.splitlines()] == [3, 4, 5, 6, 7, 8, 9, 11, 12]
    (line,) = output.err.splitlines()
    assert f"{data / INDEX_FILE}: entry 10 at offset {offset - ENTRY_HEADER_SIZE} does not match its checksum" in line
    bad = [entry for entry in objects(capsys, "dump", data, status=1) if "error" in entry]
    assert [(entry["index"], entry["offset"]) for entry in bad] == [(10, offset - ENTRY_HEADER_SIZE)]


def test_dump_other_files(data: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    def dumped(*arguments: str | Path, status: int = 0) -> bytes:
        assert main(["dump", *map(str, arguments)]) == status
        return capfdbinary.readouterr().out

    assert dumped(data / "snap", "--format", "raw") == b"state\xff"
    assert dumped(data / "snap") == b"state\xff".hex().encode() + b"\n"
    assert json.loads(dumped(data / "snap", "--json")) == {"offset": 0, "data": "7374617465ff", "encoding": "hex"}
    first, second = map(json.loads, dumped(data / "raft.pers", "--json").splitlines())
    assert first["offset"] == 0
    assert (first["record"]["currentTerm"], first["record"]["votedFor"], first["checksum"]) == (4, "b", True)
    assert second["record"]["peersIndex"] == 12
    dumped(data / "snap", "--range", "1:", status=2)
    dumped(data / "snap", "--format", "msgpack", status=2)
    damage(data / "snap", b"state")
    assert dumped(data / "snap", status=1) == b""
    damage(data / "raft.pers", b"peers")
    assert len(dumped(data / "raft.pers", status=1).splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\xc4\x02\xff\x00", {"$base64": "/wA="}),
        (b"\xcb\x7f\xf0\0\0\0\0\0\0", {"$float": "inf"}),
        (b"\x82\x01\xa1a\xa1b\x02", {"$map": [[1, "a"], ["b", 2]]}),
        (b"\xd4\x05x", {"$ext": 5, "data": "eA=="}),
        (b"\xd6\xff\0\0\0\x07", {"$timestamp": [7, 0]}),
        (b"\xcf" + b"\xff" * 8, 2**64 - 1),
    ],
)
def test_messagepack_that_json_does_not_have(data: bytes, value: object) -> None:
    assert decoded(data) == value
    json.dumps(value, allow_nan=False)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x01\x02", b"\xa1\xff", b"\x91" * 200 + b"\x01", b"\x91" * 5000])
def test_what_is_not_messagepack(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"MessagePack|deep"):
        decoded(data)


# --- verify ---------------------------------------------------------------------------------------------------------


def test_verify_a_good_directory(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "verify", data)
    assert [line.split(": ")[1] for line in lines] == ["ok"] * 4
    assert f"{data / INDEX_FILE}: ok: index file, firstIndex 8, lastIndex 12, dataSize" in lines[2]
    assert [(record["kind"], record["state"], record["findings"]) for record in objects(capsys, "verify", data)] == [
        ("snapshot", "ok", []),
        ("index file", "ok", []),
        ("index file", "ok", []),
        ("state file", "ok", []),
    ]


def test_verify_names_every_place(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offset = damage(data / INDEX_FILE, PACKED)
    second = damage(data / INDEX_FILE, b"text")
    damage(data / "snap", b"state")
    with open(data / "raft.pers", "ab") as file:
        file.write(b"\x82\xa5")
    assert main(["verify", str(data)]) == 1
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if INDEX_FILE in line]
    assert len(lines) == 2
    for line, index, at in zip(lines, (10, 12), (offset, second), strict=True):
        where = f"entry {index} at offset {at - ENTRY_HEADER_SIZE}"
        assert line.startswith(f"{data / INDEX_FILE}: bad: {where} does not match its checksum")
    (line,) = output.err.splitlines()
    assert line.startswith(f"zmqraft: damaged: {data / 'snap'}, {data / INDEX_FILE}; ")
    records = objects(capsys, "verify", data, status=1)
    assert [record["state"] for record in records] == ["bad", "ok", "bad", "torn"]
    assert [(found["index"], found["offset"]) for found in records[2]["findings"]] == [
        (10, offset - ENTRY_HEADER_SIZE),
        (12, second - ENTRY_HEADER_SIZE),
    ]


def test_what_zmq_raft_wrote_is_unknown_and_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "verify", COMPAT / "multifile")
    assert all(": unknown: offset " in line for line in lines)
    assert len(lines) == 5


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
def test_a_path_with_nothing_of_a_peer_is_one_line(tool: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "nothing").write_text("")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert_fails_in_one_line(run_command(tool, tmp_path / "pipe"), "pipe: neither a file nor a directory")
    assert_fails_in_one_line(run_command(tool, tmp_path / "empty"), "empty: no data directory")
    assert_fails_in_one_line(run_command(tool, tmp_path / "text"), "begins with b'hell'")
    assert main([tool, str(tmp_path / "nothing")]) == 1
    assert main([tool, str(tmp_path / "missing")]) == 2


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("where", "status", "said"),
    [(">&-", 1, "standard output is closed"), (">/dev/full", 1, "standard output: No space left on device")],
)
def test_output_that_cannot_be_written(tool: str, where: str, status: int, said: str, data: Path) -> None:
    result = run_shell_line(f"{tool} {data} {where}")
    assert (result.returncode, result.stderr.decode()) == (status, f"zmqraft: {said}\n")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_running_peer_is_not_disturbed(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    config = write_config(tmp_path, [["a", f"tcp://127.0.0.1:{port}"]], id="a")
    path = tmp_path / "data" / "a"
    with running_peer(config) as process:
        assert run_command("update", "-c", config, input=b"1\n2\n3\n").returncode == 0
        assert main([tool, str(path), "--json"]) == 0
        output = capsys.readouterr()
        records = [json.loads(line) for line in output.out.splitlines()]
        if tool == "inspect":
            assert records[0]["lockedBy"] == process.pid
        if tool == "verify":
            assert f"in use by the process {process.pid}" in output.err
            assert {record["state"] for record in records} == {"ok"}
        if tool == "dump":
            assert [record["data"] for record in records if record["type"] == "STATE"] == ["310a", "320a", "330a"]
        if tool == "list":
            assert [record["state"] for record in records] == ["ok", "open", "ok"]
        assert run_command("update", "-c", config, input=b"4\n").returncode == 0


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_changed(tool: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even what is damaged, torn or unfinished."""
    damage(data / INDEX_FILE, PACKED)
    content = (data / "log/00000/00/00/00000000000003.rlog").read_bytes()
    (data / "log/00000/00/00/00000000000003.rlog").write_bytes(content[:-3])
    with open(data / "raft.pers", "ab") as file:
        file.write(b"\x82\xa5")
    shutil.copytree(COMPAT / "truncated", tmp_path / "theirs")
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()}
    main([tool, str(data)])
    main([tool, str(tmp_path / "theirs")])
    capsys.readouterr()
    assert before == {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()
    }
