"""The data directories and state files that zmq-raft wrote: read as it would read them, and written on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.foreign_files import without_segment
from support.logs import batch_of, make_entry, read_all
from zmqraft.errors import ConfigurationError
from zmqraft.protocol.entry import EntryBatch, EntryType, LogEntry
from zmqraft.storage import FileLog, IndexFile, RaftPersistence, SnapshotFile

DATA = Path(__file__).parent.parent / "compat" / "data"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text())
DIRECTORIES = sorted(name for name, value in EXPECTED.items() if "entries" in value)


def copy_of(name: str, tmp_path: Path) -> Path:
    target = tmp_path / name
    if (DATA / name).is_dir():
        shutil.copytree(DATA / name, target)
    else:
        shutil.copy(DATA / name, target)
    return target


def entries_of(name: str) -> list[LogEntry]:
    return [
        LogEntry(
            entry["index"],
            entry["term"],
            EntryType(entry["type"]),
            bytes.fromhex(entry["request_id"]),
            bytes.fromhex(entry["data"]),
        )
        for entry in EXPECTED[name]["entries"]
    ]


def test_every_directory_is_expected() -> None:
    assert {path.name for path in DATA.iterdir() if path.is_dir()} == {*DIRECTORIES}
    assert len(DIRECTORIES) == 4


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directory(name: str, tmp_path: Path) -> None:
    expected, entries = EXPECTED[name], entries_of(name)
    path = copy_of(name, tmp_path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    log = FileLog.open(path / "log", path / "snap")
    assert (log.first_index, log.last_index) == (expected["first_index"], expected["last_index"])
    assert (log.last_term, log.capacity) == (expected["last_term"], 8)
    snapshot = expected["snapshot"]
    assert (log.snapshot.index, log.snapshot.term, log.snapshot.size) == (
        snapshot["index"],
        snapshot["term"],
        snapshot["size"],
    )
    assert log.snapshot.read(0, 1 << 20) == bytes.fromhex(snapshot.get("data", ""))
    assert read_all(log) == entries
    assert log.term_runs() == EntryBatch.from_entries(entries).term_runs()
    assert log.config_indexes() == [entry.index for entry in entries if entry.is_config]
    for entry in entries:
        if not entry.is_checkpoint:
            assert log.find_request(entry.request_id) == entry.index
    log.close()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directory_is_written_on(name: str, tmp_path: Path) -> None:
    path, entries = copy_of(name, tmp_path), entries_of(name)
    log = FileLog.open(path / "log", path / "snap")
    term = log.last_term + 1
    more = [make_entry(index, term, b"more") for index in range(log.last_index + 1, log.last_index + 21)]
    log.append(EntryBatch.from_entries(more))
    log.sync()
    log.close()
    log = FileLog.open(path / "log", path / "snap")
    assert read_all(log) == entries + more
    log.truncate_after(entries[-2].index)
    log.close()
    log = FileLog.open(path / "log", path / "snap")
    assert read_all(log) == entries[:-1]
    log.close()


def test_entries_below_the_snapshot_keep_their_request_ids(tmp_path: Path) -> None:
    path = copy_of("compacted", tmp_path)
    log = FileLog.open(path / "log", path / "snap")
    below = [entry for entry in entries_of("multifile") if entry.index <= 10]
    found = {entry.index: log.find_request(entry.request_id) for entry in below if not entry.is_checkpoint}
    assert found == {index: index for index in found}
    assert len(found) == 9
    assert log.prune_index == 0
    with pytest.raises(ValueError, match="not within the log"):
        log.read(10, 12, 1000)
    log.close()


def test_files_written_here_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    source = DATA / "multifile"
    log = FileLog.open(tmp_path / "log", tmp_path / "snap", capacity=8)
    log.append(EntryBatch.from_entries(entries_of("multifile")))
    log.sync()
    log.close()
    theirs = sorted(path.relative_to(source) for path in source.rglob("*"))
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == theirs
    for name in theirs:
        if (source / name).is_file():
            assert without_meta((tmp_path / name).read_bytes()) == without_meta((source / name).read_bytes())


def without_meta(content: bytes) -> bytes:
    assert content[content.index(b"META") + 8 :].startswith(b"\x82\xa7created\xb8")
    plain = without_segment(content, b"META")
    return without_segment(plain, b"CRCS") if b"CRCS" in plain else plain


def test_meta_of_their_files(tmp_path: Path) -> None:
    path = copy_of("installed", tmp_path)
    file = IndexFile.open(str(path / "log/00000/00/00/00000000000033.rlog"), writable=False)
    assert file.meta == {"created": "2026-11-23T02:53:59.494Z", "hostname": "vm"}
    file.close()
    snapshot = SnapshotFile.open(path / "snap")
    assert snapshot.meta == {"created": "2026-11-23T02:53:59.491Z", "hostname": "vm"}
    snapshot.close()
    old = FileLog.open(path / "log-2026-11-23-025359-4930", path / "snap-2026-11-23-025359-4920")
    assert (old.first_index, old.snapshot.size) == (1, 0)
    assert old.last_index >= 1
    old.close()


@pytest.mark.parametrize("name", ["raft.pers", "raft-torn.pers"])
def test_state_file(name: str, tmp_path: Path) -> None:
    path, expected = copy_of(name, tmp_path), EXPECTED[name]
    content = path.read_bytes()
    state = RaftPersistence.open(path, peer_id="1", cluster=b"secret")
    assert state.current_term == expected["currentTerm"]
    assert state.voted_for == expected["votedFor"]
    assert state.peers == [tuple(peer) for peer in expected["peers"]]
    assert state.peers_update_request == bytes.fromhex("65956dd526f27e10dc00000d")
    assert state.peers_index == expected["peersIndex"]
    assert path.read_bytes() == content

    state.update_vote(2**40, "2")
    state.close()
    if name == "raft.pers":
        assert path.read_bytes().startswith(content)
    else:
        (old,) = tmp_path.glob("raft-torn.pers-*")
        assert old.read_bytes() == content
    state = RaftPersistence.open(path, peer_id="1", cluster=b"secret")
    assert (state.current_term, state.voted_for) == (2**40, "2")
    assert state.peers == [tuple(peer) for peer in expected["peers"]]
    assert state.peers_index == expected["peersIndex"]
    state.close()
    with pytest.raises(ConfigurationError, match="another cluster or peer"):
        RaftPersistence.open(path, peer_id="2", cluster=b"secret")


def test_appending_after_a_snapshot_of_theirs(tmp_path: Path) -> None:
    path = copy_of("installed", tmp_path)
    log = FileLog.open(path / "log", path / "snap")
    log.truncate_after(50)
    assert (log.last_index, log.last_term) == (50, 6)
    log.append(batch_of(make_entry(51, 8)))
    log.sync()
    log.close()
    log = FileLog.open(path / "log", path / "snap")
    assert read_all(log) == [make_entry(51, 8)]
    log.close()
