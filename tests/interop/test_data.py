"""Data directories of either side: opened, appended to, cut back, compacted and reopened by the other."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest

from support.local_cluster import wait_for
from support.mixed_cluster import read_log
from support.node import NodeProgram
from support.node_clients import entry_of
from zmqraft import (
    CorruptionError,
    EntryBatch,
    EntryType,
    FileLog,
    LogEntry,
    RaftPersistence,
    SnapshotContext,
    new_request_id,
    request_id_from_text,
    request_id_to_base64,
)
from zmqraft.storage.verification import Severity, verify

COMPAT = Path(__file__).parents[1] / "compat" / "data"
EXPECTED: dict[str, Any] = json.loads((COMPAT / "expected.json").read_text())
DIRECTORIES = sorted(name for name, value in EXPECTED.items() if "entries" in value)
CAPACITY = 8
#: From 2^31 on, zmq-raft writes and reads integers in MessagePack as float64.
TERMS = [1, 2**31 - 1, 2**31, 2**31 + 5, 2**32 + 1, 2**45, 2**53 - 1]


@pytest.fixture(scope="module")
def node(modules: Path) -> Iterator[NodeProgram]:
    with NodeProgram(modules, "data.js") as program:
        yield program
        program.close()


@contextlib.contextmanager
def python_log(data: Path) -> Iterator[FileLog]:
    data.mkdir(exist_ok=True)
    with contextlib.closing(FileLog.open(data / "log", data / "snap", capacity=CAPACITY)) as log:
        yield log


@contextlib.contextmanager
def node_log(node: NodeProgram, data: Path) -> Iterator[dict[str, Any]]:
    data.mkdir(exist_ok=True)
    described = node.call("openLog", directory=str(data), options={"indexFileCapacity": CAPACITY})
    try:
        yield described
    finally:
        node.call("closeLog")


class Either:
    """A log that one side or the other opens for each operation, and what must be in it."""

    def __init__(self, node: NodeProgram, data: Path) -> None:
        self.node = node
        self.data = data
        data.mkdir(exist_ok=True)
        self.entries: list[LogEntry] = []
        self.snapshot = (0, 0, b"")

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else self.snapshot[0]

    def append(self, by_node: bool, entries: Sequence[LogEntry]) -> None:
        """Append from the first entry on, in place of what is there."""
        index = entries[0].index
        if by_node:
            frames = [base64.b64encode(entry.to_bytes()).decode() for entry in entries]
            with node_log(self.node, self.data):
                self.node.call("append", entries=frames, index=index)
        else:
            with python_log(self.data) as log:
                if index <= log.last_index:
                    log.truncate_after(index - 1)
                log.append(EntryBatch.from_entries(entries))
                log.sync()
        self.entries = [entry for entry in self.entries if entry.index < index] + list(entries)

    def compact(self, by_node: bool, index: int, content: bytes) -> None:
        term = next(entry.term for entry in self.entries if entry.index == index)
        if by_node:
            with node_log(self.node, self.data):
                self._install(index, term, content, compaction=True)
        else:
            with python_log(self.data) as log:
                snapshot = log.begin_snapshot(index, SnapshotContext(None, 0, log.packed_requests(index)))([content])
                log.begin_compaction(snapshot)()
                log.compact(snapshot)
        self.snapshot = (index, term, content)
        self.entries = [entry for entry in self.entries if entry.index > index]

    def install(self, by_node: bool, index: int, term: int, content: bytes) -> None:
        """A leader's snapshot, over a log that does not match."""
        if by_node:
            with node_log(self.node, self.data):
                self._install(index, term, content, compaction=False)
            # It says that it is done before the new log has its file. Who opens it meanwhile makes the same one.
            name = f"{index + 1:014x}.rlog"
            wait_for(lambda: list((self.data / "log").rglob(name)), f"zmq-raft to make {name}")
        else:
            with python_log(self.data) as log:
                receiver = log.begin_receive(index, term, len(content), SnapshotContext())
                receiver.write(content)
                log.install(receiver.finish())
        self.snapshot = (index, term, content)
        self.entries = []

    def _install(self, index: int, term: int, content: bytes, compaction: bool) -> None:
        data = base64.b64encode(content).decode()
        self.node.call("install", index=index, term=term, data=data, compaction=compaction)

    def check(self) -> None:
        """Both read what must be in it, and neither finds anything to complain of."""
        check_both_read(self.node, self.data, self.entries, self.snapshot)


def check_both_read(
    node: NodeProgram,
    data: Path,
    entries: Sequence[LogEntry],
    snapshot: tuple[int, int, bytes],
    *,
    ids: bool = True,
) -> None:
    """``ids``: that zmq-raft finds the entries by their ids, which are young enough."""
    index, term, content = snapshot
    last = (entries[-1].index, entries[-1].term) if entries else (index, term)
    with node_log(node, data) as described:
        assert (described["firstIndex"], described["lastIndex"], described["lastTerm"]) == (index + 1, *last)
        assert described["snapshot"] == {"index": index, "term": term, "size": len(content)}
        assert [entry_of(value) for value in node.call("entries")] == list(entries)
        assert base64.b64decode(node.call("snapshotData")) == content
        for entry in entries[-20:]:
            if ids and not entry.is_checkpoint:
                assert node.call("find", id=entry.request_id.hex()) == entry.index
    bad = [report for report in verify(data) if report.severity is Severity.BAD]
    assert bad == []
    with python_log(data) as log:
        assert (log.first_index, log.last_index, log.last_term) == (index + 1, *last)
        assert (log.snapshot.index, log.snapshot.term) == (index, term)
        assert b"".join(log.snapshot.chunks()) == content
        for entry in entries:
            if not entry.is_checkpoint:
                assert log.find_request(entry.request_id) == entry.index
    assert read_log(data) == list(entries)


_lengths = itertools.count(1)


def fresh(first: int, count: int, term: int) -> list[LogEntry]:
    """Entries with request ids that are remembered, none of them known before, and each longer than all before.

    For as many entries of as many bytes see `test_replaced_by_as_many_bytes`.
    """
    return [
        LogEntry(index, term, EntryType.STATE, new_request_id(), b"%d " % index + b"x" * next(_lengths))
        for index in range(first, first + count)
    ]


@pytest.fixture(params=[True, False], ids=["node first", "python first"])
def node_first(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_written_in_turns(node: NodeProgram, tmp_path: Path, node_first: bool) -> None:
    """Each side goes on where the other ended: within an index file, at its end, and over several."""
    log = Either(node, tmp_path)
    by_node = node_first
    for count, term in ((3, 1), (4, 1), (1, 2), (9, 2), (20, 3), (8, 3), (1, 7), (40, 9)):
        log.append(by_node, fresh(log.last_index + 1, count, term))
        log.check()
        by_node = not by_node


def test_cut_back_in_turns(node: NodeProgram, tmp_path: Path, node_first: bool) -> None:
    """What one has written is replaced by the other: within a file, and over several, by fewer and by more."""
    log = Either(node, tmp_path)
    by_node = node_first
    log.append(by_node, fresh(1, 30, 1))
    for index, count, term in ((30, 1, 2), (28, 12, 3), (17, 3, 4), (16, 1, 5), (9, 40, 6), (1, 5, 7), (5, 30, 8)):
        by_node = not by_node
        log.append(by_node, fresh(index, count, term))
        log.check()


def test_compacted_and_installed_in_turns(node: NodeProgram, tmp_path: Path, node_first: bool) -> None:
    log = Either(node, tmp_path)
    by_node = node_first
    log.append(by_node, fresh(1, 50, 1))
    for index in (20, 24, 49, 50):
        log.compact(by_node, index, b"up to %d " % index * 20_000)
        log.check()
        by_node = not by_node
        log.append(by_node, fresh(log.last_index + 1, 3, 2))
        log.check()
    log.install(by_node, 1000, 5, b"installed " * 30_000)
    log.check()
    log.append(not by_node, fresh(1001, 20, 5))
    log.check()
    log.install(not by_node, 2000, 2**33, b"once more")
    log.append(by_node, fresh(2001, 20, 2**33 + 1))
    log.compact(not by_node, 2010, b"the last")
    log.check()


def test_random_turns(node: NodeProgram, tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    for number in range(4):
        log = Either(node, tmp_path / str(number))
        term = 1
        for _ in range(40):
            by_node = random.random() < 0.5
            term += random.choice([0, 0, 1, 5])
            chosen = random.random()
            first = log.snapshot[0] + 1
            if chosen < 0.5 or not log.entries:
                log.append(by_node, fresh(log.last_index + 1, random.randrange(1, 30), term))
            elif chosen < 0.8:
                index = random.randrange(first, log.last_index + 1)
                term += 1
                log.append(by_node, fresh(index, random.randrange(1, 30), term))
            elif chosen < 0.95:
                log.compact(
                    by_node, random.randrange(first, log.last_index + 1), random.randbytes(random.randrange(1, 5000))
                )
            else:
                term += 1
                log.install(by_node, log.last_index + random.randrange(1, 100), term, random.randbytes(1000))
        log.check()


def test_entries_of_every_type_and_terms_beyond_32_bits(node: NodeProgram, tmp_path: Path, node_first: bool) -> None:
    log = Either(node, tmp_path)
    by_node = node_first
    for term in TERMS:
        first = log.last_index + 1
        config = msgpack.packb([["1", "tcp://127.0.0.1:8047"], ["2", "tcp://127.0.0.1:8147"]])
        entries = [
            LogEntry.checkpoint(first, term),
            LogEntry(first + 1, term, EntryType.CONFIG, new_request_id(), config),
            LogEntry(first + 2, term, EntryType.STATE, new_request_id(), b"\x00"),
            LogEntry(first + 3, term, EntryType.STATE, new_request_id(), b"\xff" * 100_000),
        ]
        log.append(by_node, entries)
        by_node = not by_node
        log.check()
    log.compact(by_node, log.last_index - 5, b"state")
    log.check()


def test_a_damaged_entry_of_ours_is_found_after_zmq_raft_has_written_to_the_file(
    node: NodeProgram, tmp_path: Path
) -> None:
    """Its writes count as without a checksum; those of ours keep theirs."""
    log = Either(node, tmp_path)
    log.append(False, fresh(1, 3, 1))
    log.append(True, fresh(4, 2, 1))
    log.check()
    (path,) = tmp_path.rglob("*.rlog")
    content = bytearray(path.read_bytes())
    content[content.index(b"2 xx")] ^= 1
    path.write_bytes(content)
    assert [report.path for report in verify(tmp_path) if report.severity is Severity.BAD] == [str(path)]
    with pytest.raises(CorruptionError) as caught, python_log(tmp_path) as opened:
        opened.read(2, 2, 1000)
    assert caught.value.index == 2


def test_replaced_by_as_many_bytes(node: NodeProgram, tmp_path: Path) -> None:
    """What cannot be told from damage: zmq-raft replaces the last entries of our file by as many, as long as those."""
    entries = [LogEntry(index, 1, EntryType.STATE, new_request_id(), b"data") for index in range(1, 6)]
    log = Either(node, tmp_path)
    log.append(False, entries)
    log.append(True, [dataclasses.replace(entries[-1], term=2, request_id=new_request_id())])
    with pytest.raises(CorruptionError, match=r"entry 5 .* does not match its checksum"), python_log(tmp_path):
        pass
    # One more, and it can be told.
    log.append(True, fresh(6, 1, 2))
    log.check()


@pytest.mark.parametrize("name", DIRECTORIES)
def test_recorded_directories_are_read_the_same(node: NodeProgram, tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    shutil.copytree(COMPAT / name, data)
    expected = EXPECTED[name]
    snapshot = expected["snapshot"]
    entries = [
        LogEntry(
            entry["index"],
            entry["term"],
            EntryType(entry["type"]),
            bytes.fromhex(entry["request_id"]),
            bytes.fromhex(entry["data"]),
        )
        for entry in expected["entries"]
    ]
    content = bytes.fromhex(snapshot.get("data", ""))
    check_both_read(node, data, entries, (snapshot["index"], snapshot["term"], content), ids=False)


# --- state files ----------------------------------------------------------------------------------------------------

PEERS = [("1", "tcp://127.0.0.1:8047"), ("2", "tcp://127.0.0.1:8147")]
MORE_PEERS = [*PEERS, ("3", "tcp://127.0.0.1:8247")]


@contextlib.contextmanager
def node_state(node: NodeProgram, file: Path) -> Iterator[dict[str, Any]]:
    described = node.call("openState", file=str(file), peers=[{"id": id, "url": url} for id, url in PEERS])
    try:
        yield described
    finally:
        node.call("closeState")


def python_state(file: Path) -> contextlib.closing[RaftPersistence]:
    return contextlib.closing(RaftPersistence.open(file, peer_id="1", cluster=b"secret"))


def plain_peers(value: Any) -> Any:
    """A configuration of either side in one form."""
    if isinstance(value, dict) and "old" in value:
        return {name: plain_peers(value[name]) for name in ("old", "new")}
    return [(peer["id"], peer["url"]) if isinstance(peer, dict) else tuple(peer) for peer in value]


def check_state(
    node: NodeProgram, file: Path, term: int, vote: str | None, peers: Any, request_id: bytes | None, index: int | None
) -> None:
    key = None if request_id is None else request_id_to_base64(request_id)
    with node_state(node, file) as described:
        assert described["currentTerm"] == term
        assert described["votedFor"] == vote
        assert plain_peers(described["peers"]) == plain_peers(peers)
        assert (described["peersUpdateRequest"], described["peersIndex"]) == (key, index)
    with python_state(file) as state:
        assert (state.current_term, state.voted_for) == (term, vote)
        # Until somebody writes them, the members are those of the settings.
        assert plain_peers(state.peers or PEERS) == plain_peers(peers)
        assert (state.peers_update_request, state.peers_index) == (request_id, index)


def test_state_files_written_in_turns(node: NodeProgram, tmp_path: Path, node_first: bool) -> None:
    file = tmp_path / "raft.pers"
    by_node = node_first
    peers: Any = PEERS
    request_id: bytes | None = None
    index: int | None = None
    for term, vote in zip(TERMS, ["1", None, "2", "1", None, "a peer called \u00e9", "1"], strict=True):
        if by_node:
            with node_state(node, file):
                node.call("updateState", changes={"currentTerm": term, "votedFor": vote})
        else:
            with python_state(file) as state:
                state.update_vote(term, vote)
        check_state(node, file, term, vote, peers, request_id, index)

        peers = {"old": PEERS, "new": MORE_PEERS} if peers == PEERS else PEERS
        request_id = None if request_id else new_request_id()
        index = term
        if by_node:
            key = request_id and request_id_to_base64(request_id)
            changes = {"peers": peers, "peersUpdateRequest": key, "peersIndex": index}
            with node_state(node, file):
                node.call("updateState", changes=changes)
        else:
            with python_state(file) as state:
                state.update_peers(peers, request_id, index)
        check_state(node, file, term, vote, peers, request_id, index)
        by_node = not by_node


@pytest.mark.parametrize("name", ["raft.pers", "raft-torn.pers"])
def test_recorded_state_files_are_read_the_same(node: NodeProgram, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    shutil.copy(COMPAT / name, file)
    expected = EXPECTED[name]
    request_id = bytes.fromhex("65956dd526f27e10dc00000d")
    arguments = (expected["currentTerm"], expected["votedFor"], expected["peers"], request_id, expected["peersIndex"])
    check_state(node, file, *arguments)
    # And in turns from there on.
    with python_state(file) as state:
        state.update_vote(2**40, "2")
    check_state(node, file, 2**40, "2", *arguments[2:])
    with node_state(node, file):
        node.call("updateState", changes={"currentTerm": 2**41, "votedFor": None})
    check_state(node, file, 2**41, None, *arguments[2:])


def test_request_keys_are_the_same(node: NodeProgram, tmp_path: Path) -> None:
    for number in range(20):
        request_id = new_request_id()
        file = tmp_path / f"{number}.pers"
        with node_state(node, file):
            key = request_id_to_base64(request_id)
            described = node.call("updateState", changes={"peersUpdateRequest": key})
        with python_state(file) as state:
            assert state.peers_update_request == request_id == request_id_from_text(described["peersUpdateRequest"])
