"""State files: what is written, what is read of damaged ones, whose they are, and the rules of a vote."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import msgpack
import pytest

from support.file_systems import MemoryDisk, ProbeFileSystem
from zmqraft.api import PersistenceBase
from zmqraft.errors import ConfigurationError, CorruptionError, StorageError, StorageFailedError
from zmqraft.storage import FileSystem, RaftPersistence, StatePersistence
from zmqraft.storage.checksums import crc32c

PEERS = [("1", "tcp://127.0.0.1:8047"), ("2", "tcp://127.0.0.1:8147")]
JOINT = {"old": PEERS, "new": [*PEERS, ("3", "tcp://127.0.0.1:8247")]}
REQUEST_ID = bytes.fromhex("65956dd526f27e10dc00000d")
#: SHA-256 of b"secret".
MARKS = {"peerId": "1", "clusterHash": "2bb80d537b1da3e3"}


def open_state(path: Path, **options: Any) -> RaftPersistence:
    return RaftPersistence.open(path / "raft.pers", **{"peer_id": "1", "cluster": b"secret", **options})


def records(content: bytes) -> list[dict[str, Any]]:
    """The records of a file, each without its checksum, which matches when there is one."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(content)
    found = []
    start = 0
    for record in unpacker:
        end = unpacker.tell()
        if "crc32c" in record:
            assert record.pop("crc32c") == crc32c(content[start : end - 4])
        found.append(record)
        start = end
    return found


def write(path: Path, *parts: dict[str, Any] | bytes) -> bytes:
    content = b"".join(part if isinstance(part, bytes) else msgpack.packb(part) for part in parts)
    (path / "raft.pers").write_bytes(content)
    return content


def values(state: PersistenceBase) -> tuple[Any, ...]:
    return state.current_term, state.voted_for, state.peers, state.peers_update_request, state.peers_index


# --- what is written -------------------------------------------------------------------------------------------------


def test_records_hold_what_changed(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    state.update_vote(1, None)
    state.update_vote(1, None)
    state.update_vote(2, "1")
    state.update_vote(2**31 - 1, "1")
    state.update_vote(2**31, None)
    state.update_peers(PEERS, REQUEST_ID, 12)
    state.update_peers(PEERS, REQUEST_ID, 13)
    state.close()
    content = (tmp_path / "raft.pers").read_bytes()
    assert records(content) == [
        {**MARKS, "currentTerm": 1},
        {"currentTerm": 2, "votedFor": "1"},
        {"currentTerm": 2**31 - 1},
        {"currentTerm": 2**31, "votedFor": None},
        {"peers": [list(peer) for peer in PEERS], "peersUpdateRequest": "ZZVt1SbyfhDcAAAN", "peersIndex": 12},
        {"peersIndex": 13},
    ]
    # From 2^31 on as zmq-raft writes it.
    assert b"\xabcurrentTerm\xcb\x41\xe0\0\0\0\0\0\0" in content


def test_an_update_is_one_write_and_one_sync() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    state = RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"", fs=disk)
    assert disk.calls() == [
        ("mkdir", "/data"),
        ("sync_directory", "/"),
        ("create", "/data/raft.pers"),
        ("fdatasync", "/data/raft.pers"),
        ("sync_directory", "/data"),
    ]
    del disk.events[:]
    state.update_vote(1, "1")
    state.update_vote(1, "1")
    assert disk.calls() == [("pwrite", "/data/raft.pers"), ("fdatasync", "/data/raft.pers")]


def test_a_full_file_is_replaced() -> None:
    disk = ProbeFileSystem(MemoryDisk())

    def open_() -> RaftPersistence:
        return RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"secret", size_max=130, fs=disk)

    state = open_()
    state.update_vote(1, "1")
    state.update_peers([], None, 0)
    del disk.events[:]
    old = content_of(disk, "/data/raft.pers")
    assert len(old) <= 130
    state.update_vote(2**33, "a candidate with a name of some length")
    assert disk.calls() == [
        ("create", "/data/raft.pers.tmp"),
        ("pwrite", "/data/raft.pers.tmp"),
        ("fdatasync", "/data/raft.pers.tmp"),
        ("link", "/data/raft.pers"),
        ("rename", "/data/raft.pers.tmp"),
        ("sync_directory", "/data"),
    ]
    kept = "raft.pers-2023-11-14-221320-0000"
    assert disk.listdir("/data") == ["raft.pers", kept]
    assert content_of(disk, f"/data/{kept}") == old
    assert records(content_of(disk, "/data/raft.pers")) == [
        {
            **MARKS,
            "currentTerm": 2**33,
            "votedFor": "a candidate with a name of some length",
            "peers": [],
            "peersUpdateRequest": None,
            "peersIndex": 0,
        }
    ]
    del disk.events[:]
    state.update_peers([], None, 1)
    assert disk.calls()[0][0] == "create"
    state.close()
    state = open_()
    assert values(state) == (2**33, "a candidate with a name of some length", [], None, 1)
    state.close()
    assert not disk.open_paths


def content_of(disk: FileSystem, path: str) -> bytes:
    handle = disk.open(path)
    content = disk.pread(handle, 1 << 20, 0)
    disk.close(handle)
    return content


def test_sixty_old_files_are_kept() -> None:
    disk = MemoryDisk()
    state = StatePersistence.open("/data/state.pers", size_max=1, fs=disk)
    for index in range(1, 100):
        disk.now += 0.0004
        state.update(index)
    state.close()
    names = disk.listdir("/data")
    assert len(names) == 61
    assert names[0] == "state.pers"
    last_values = []
    for name in names[1:]:
        old = StatePersistence.open(f"/data/{name}", fs=disk)
        last_values.append(old.last_applied)
        old.close()
    assert last_values == list(range(39, 99))


def test_values_that_are_not_stored(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    for term, voted_for in ((2**53, None), (1, ""), (1, 5), (True, None), (1.5, None), (1, "a\0b")):
        with pytest.raises(ValueError, match="is not"):
            state.update_vote(term, voted_for)  # type: ignore[arg-type]
    for peers in (None, "x", [("1",)], [("1", 2)], {"old": []}, [["", "tcp://a:1"]]):
        with pytest.raises(ValueError, match="is not"):
            state.update_peers(peers, None, None)  # type: ignore[arg-type]
    assert values(state) == (0, None, None, None, None)
    state.close()
    assert (tmp_path / "raft.pers").read_bytes() == b""


def test_an_update_that_need_not_be_durable() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    state = StatePersistence.open("/data/state.pers", fs=disk)
    del disk.events[:]
    state.update(1, durable=False)
    state.update(2, durable=False)
    assert disk.calls() == [("pwrite", "/data/state.pers")] * 2
    state.update(2)
    state.update(2)
    assert disk.calls()[2:] == [("fdatasync", "/data/state.pers")]
    assert state.last_applied == 2
    state.update(2**40, durable=False)
    state.close()
    state = StatePersistence.open("/data/state.pers", fs=disk)
    assert state.last_applied == 2**40
    assert isinstance(disk.inner, MemoryDisk)
    # An earlier process may have been killed before it synced: what was found is durable.
    found = StatePersistence.open("/data/state.pers", fs=disk.inner.crash())
    assert found.last_applied == 2**40


# --- what is read ----------------------------------------------------------------------------------------------------


def test_floats_and_unknown_keys(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"currentTerm": 7.0, "votedFor": "2", "crc": 5, "other": [None]},
        {"currentTerm": float(2**52), "peersIndex": 3.0},
        {"currentTerm": 2**52 + 1, "peersIndex": None},
    )
    state = open_state(tmp_path, size_max=1)
    assert values(state) == (2**52 + 1, "2", None, None, None)
    state.update_vote(2**52 + 2, "2")
    state.close()
    (record,) = records((tmp_path / "raft.pers").read_bytes())
    assert set(record) == {*MARKS, "currentTerm", "votedFor", "peersUpdateRequest", "peersIndex"}


FIRST = {"currentTerm": 5, "votedFor": "1"}
LAST = {"currentTerm": float(2**33 + 1), "votedFor": "2", "peersIndex": 9}
#: Where the file may end in the last record so that it is a record all the same when zeros follow: before the index
#: at its end. It was never acknowledged, so that it may be there or not.
LOOKS_WHOLE = {44}


def on_disk(content: bytes) -> MemoryDisk:
    disk = MemoryDisk()
    handle = disk.open("/raft.pers", write=True, create=True)
    disk.pwrite(handle, content, 0)
    disk.close(handle)
    return disk


def open_on(disk: MemoryDisk) -> RaftPersistence:
    return RaftPersistence.open("/raft.pers", peer_id="1", cluster=b"secret", fs=disk)


@pytest.mark.parametrize("zeros", [0, 8, 100])
def test_a_last_record_that_was_cut_off(zeros: int, caplog: pytest.LogCaptureFixture) -> None:
    """With nothing behind it, or with zeros that a crash left in the place of the rest and more."""
    last = msgpack.packb(LAST)
    for size in range(1, len(last)):
        content = msgpack.packb(FIRST) + last[:size] + bytes(zeros and len(last) - size + zeros)
        disk = on_disk(content)
        caplog.clear()
        state = open_on(disk)
        if not (zeros and size in LOOKS_WHOLE):
            assert values(state) == (5, "1", None, None, None)
        assert "never acknowledged" in caplog.text
        assert content_of(disk, "/raft.pers") == content
        state.update_vote(2**33 + 2, "3")
        state.close()
        (old,) = (name for name in disk.listdir("/") if name != "raft.pers")
        assert content_of(disk, f"/{old}") == content
        assert len(records(content_of(disk, "/raft.pers"))) == 1
        state = open_on(disk)
        assert values(state)[:2] == (2**33 + 2, "3")
        state.close()


@pytest.mark.parametrize("zeros", [1, 7, 8, 4096])
def test_zeros_behind_the_last_record(zeros: int) -> None:
    disk = on_disk(msgpack.packb(FIRST) + bytes(zeros))
    state = open_on(disk)
    assert values(state)[:2] == (5, "1")
    state.update_vote(6, "1")
    state.close()
    assert len(records(content_of(disk, "/raft.pers"))) == 1


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (b"\xc1", "not MessagePack"),
        (b"\x05", "not a map but 5"),
        (b"\x93\1\2\3", "not a map"),
        (b"\x81\1\2", "not MessagePack"),
        (b"\x81\x90\2", "not MessagePack"),
        (b"\xdd\xff\xff\xff\xff", "not MessagePack"),
        (msgpack.packb({"currentTerm": "6"}), "currentTerm: '6' is not an integer"),
        (msgpack.packb({"currentTerm": 6.5}), "currentTerm: 6.5 is not an integer"),
        (msgpack.packb({"currentTerm": float("nan")}), "currentTerm: nan is not an integer"),
        (msgpack.packb({"currentTerm": float("inf")}), "currentTerm: inf is not an integer"),
        (msgpack.packb({"currentTerm": -6}), "currentTerm: -6 is not an integer"),
        (msgpack.packb({"currentTerm": 2**53}), "currentTerm: 9007199254740992 is not an integer"),
        (msgpack.packb({"currentTerm": None}), "currentTerm: None is not an integer"),
        (msgpack.packb({"currentTerm": True}), "currentTerm: True is not an integer"),
        (msgpack.packb({"currentTerm": 4}), "currentTerm goes back from 5 to 4"),
        (msgpack.packb({"votedFor": 1}), "votedFor: 1 is not an id"),
        (msgpack.packb({"peers": [["1"]]}), "peers: ['1'] is not a peer"),
        (msgpack.packb({"peers": None}), "peers: None is not a list"),
        (msgpack.packb({"peersUpdateRequest": "x"}), "peersUpdateRequest: not a request id"),
    ],
)
def test_a_damaged_record_stops(damage: bytes, part: str) -> None:
    content = msgpack.packb(FIRST) + damage + msgpack.packb({"currentTerm": 9})
    disk = on_disk(content)
    offset = len(msgpack.packb(FIRST))
    with pytest.raises(CorruptionError) as caught:
        open_on(disk)
    message = str(caught.value)
    assert f"/raft.pers: the record at offset {offset} is damaged" in message
    assert part in message
    assert "backup" in message
    assert "\n" not in message
    assert content_of(disk, "/raft.pers") == content


def test_a_damaged_length_that_hides_later_records_stops() -> None:
    later = [msgpack.packb({"currentTerm": term}) for term in (6, 7, 8)]
    disk = on_disk(msgpack.packb(FIRST) + b"\xde\0\x10" + later[0][1:] + later[1][1:] + later[2][1:])
    with pytest.raises(CorruptionError, match=r"the record at offset 25 does not end before the file does"):
        open_on(disk)


def long_state(disk: MemoryDisk) -> bytes:
    """Records of ours, the last one over more than one sector."""
    state = open_on(disk)
    state.update_vote(1, "1")
    state.update_vote(2, "2")
    state.update_peers([("1", "tcp://127.0.0.1:8047"), ("2", "tcp://" + "long-name." * 100)], REQUEST_ID, 5)
    state.close()
    return content_of(disk, "/raft.pers")


def last_record(content: bytes) -> int:
    """Where the last record begins."""
    return len(content) - len(msgpack.packb(records(content)[-1])) - 12


def test_a_byte_of_a_record_of_ours_that_is_damaged_stops() -> None:
    whole = long_state(on_disk(b""))
    for offset in range(len(whole)):
        for flip in (1, 0x80, 0xFF, whole[offset]):
            content = bytearray(whole)
            content[offset] ^= flip
            try:
                state = open_on(on_disk(bytes(content)))
            except (CorruptionError, ConfigurationError):
                continue
            # Only where it was in the name of the checksum.
            assert (state.current_term, state.voted_for, state.peers_index) == (2, "2", 5)
            assert b"crc32c" in whole[max(offset - 6, 0) : offset + 7]
            state.close()


@pytest.mark.parametrize("lost", range(4))
def test_a_lost_sector_of_the_last_record(lost: int, caplog: pytest.LogCaptureFixture) -> None:
    disk = on_disk(b"")
    content = bytearray(long_state(disk))
    start = last_record(content)
    sectors = range(start // 512, -(-len(content) // 512))
    sector = sectors[lost % len(sectors)]
    low, high = max(sector * 512, start), min(sector * 512 + 512, len(content))
    content[low:high] = bytes(high - low)
    state = open_on(on_disk(bytes(content)))
    assert (state.current_term, state.voted_for, state.peers) == (2, "2", None)
    assert "ignoring the bytes" in caplog.text
    state.update_vote(3, "3")
    state.close()


def test_a_lost_sector_before_the_last_record_stops() -> None:
    disk = on_disk(b"")
    long_state(disk)
    state = open_on(disk)
    state.update_vote(3, "3")
    state.close()
    content = bytearray(content_of(disk, "/raft.pers"))
    content[512:1024] = bytes(512)
    with pytest.raises(CorruptionError, match=r"/raft\.pers: the record at offset"):
        open_on(on_disk(bytes(content)))


def test_a_file_far_too_large() -> None:
    disk = MemoryDisk()
    handle = disk.open("/raft.pers", write=True, create=True)
    disk.pwrite(handle, b"x", 65 * 1024 * 1024)
    with pytest.raises(CorruptionError, match="no state file"):
        RaftPersistence.open("/raft.pers", peer_id="1", cluster=b"", fs=disk)


# --- whose file it is ------------------------------------------------------------------------------------------------


def test_data_of_another_cluster_or_peer(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    state.update_vote(1, "1")
    state.close()
    with pytest.raises(ConfigurationError, match=r"raft\.pers holds the data of another .* its peerId is '1', not '2'"):
        open_state(tmp_path, peer_id="2")
    with pytest.raises(ConfigurationError, match=r"another .* its clusterHash is '2bb80d537b1da3e3', not '"):
        open_state(tmp_path, cluster=b"other")
    state = open_state(tmp_path)
    assert values(state)[:2] == (1, "1")
    state.close()


def test_data_of_zmq_raft_is_marked_with_the_next_record(tmp_path: Path) -> None:
    write(tmp_path, {"currentTerm": 5})
    open_state(tmp_path, peer_id="someone", cluster=b"any").close()
    state = open_state(tmp_path)
    state.update_vote(6, None)
    state.update_vote(7, None)
    state.close()
    assert records((tmp_path / "raft.pers").read_bytes())[1:] == [{**MARKS, "currentTerm": 6}, {"currentTerm": 7}]


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_max", [1, 1000])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("number", range(6))
def test_any_failed_call_is_final(number: int, code: int, size_max: int) -> None:
    disk = ProbeFileSystem(MemoryDisk())

    def open_() -> RaftPersistence:
        return RaftPersistence.open("/data/raft.pers", peer_id="1", cluster=b"", size_max=size_max, fs=disk)

    state = open_()
    disk.fail_at = len(disk.events) + number
    disk.error = lambda: OSError(code, "the disk says no")
    with pytest.raises(StorageFailedError, match=r"raft\.pers: cannot store .*: the disk says no"):  # noqa: PT012
        for term in range(1, 9):
            state.update_vote(term, "1")
    held = state.current_term
    assert state.failure is not None
    after = len(disk.events)
    with pytest.raises(StorageFailedError, match="takes no more writes"):
        state.update_vote(20, "2")
    with pytest.raises(StorageFailedError, match="takes no more writes"):
        state.update_peers(PEERS, None, None)
    assert state.current_term == held
    assert len(disk.events) == after
    state.close()
    assert not disk.open_paths
    disk.fail_at = None
    state = open_()
    assert state.current_term in (held, held + 1)
    state.close()


def test_a_closed_state_file(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    state.update_vote(1, "1")
    state.close()
    assert state.current_term == 1
    with pytest.raises(StorageFailedError, match="it is closed"):
        state.update_vote(2, "1")


@pytest.mark.parametrize("where", ["below a file", "a directory"])
def test_paths_that_cannot_be_used(tmp_path: Path, where: str) -> None:
    if where == "a directory":
        path = tmp_path / "raft.pers"
        path.mkdir()
    else:
        (tmp_path / "file").write_text("x")
        path = tmp_path / "file" / "raft.pers"
    with pytest.raises(StorageError, match=r"cannot open the state file .*raft\.pers: ") as caught:
        RaftPersistence.open(path, peer_id="1", cluster=b"")
    assert "\n" not in str(caught.value)
