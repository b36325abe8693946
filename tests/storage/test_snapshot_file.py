"""Snapshot files: written piece by piece, put in place at once, read in chunks, refused when damaged."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from support.file_systems import MemoryDisk, ProbeFileSystem
from support.foreign_files import without_segment
from zmqraft.errors import CorruptionError, StorageError, StorageFailedError
from zmqraft.storage import SnapshotFile, SnapshotWriter


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    snapshot = SnapshotFile.create(path, 12, 3, [b"abc", b"", b"defgh"])
    assert (snapshot.index, snapshot.term, snapshot.size) == (12, 3, 8)
    assert [snapshot.read(offset, 3) for offset in (0, 3, 6, 8, 9, 100)] == [b"abc", b"def", b"gh", b"", b"", b""]
    assert set(snapshot.meta) == {"created", "hostname"}
    snapshot.close()
    snapshot.close()
    content = path.read_bytes()
    assert content.startswith(b"SNAP\x1c\0\0\0\1\0\0\0" + b"\x0c" + bytes(7) + b"\3" + bytes(7) + b"\x08" + bytes(7))
    assert content.endswith(b"DATA\0\0\0\0abcdefgh")
    with pytest.raises(StorageError, match="is closed"):
        snapshot.read(0, 1)


def test_the_order_of_calls() -> None:
    disk = ProbeFileSystem(MemoryDisk())
    SnapshotFile.create("/snap", 0, 0, fs=disk).close()
    del disk.events[:]
    SnapshotFile.create("/snap", 1, 1, [b"a", b"b"], fs=disk).close()
    assert disk.calls() == [
        ("create", "/snap.tmp"),
        ("pwrite", "/snap.tmp"),
        ("pwrite", "/snap.tmp"),
        ("pwrite", "/snap.tmp"),
        ("pwrite", "/snap.tmp"),
        ("fdatasync", "/snap.tmp"),
        ("link", "/snap"),
        ("rename", "/snap.tmp"),
        ("sync_directory", "/"),
    ]
    assert disk.listdir("/") == ["snap", "snap-2023-11-14-221320-0000"]
    assert not disk.open_paths


def test_who_reads_the_old_one_goes_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    old = SnapshotFile.create(path, 1, 1, [b"old state"])
    new = SnapshotFile.create(path, 2, 1, [b"new state"])
    assert (old.read(0, 100), new.read(0, 100)) == (b"old state", b"new state")
    old.close()
    new.close()


def test_sixty_old_ones_are_kept() -> None:
    disk = MemoryDisk()
    for index in range(75):
        disk.now += 0.25
        SnapshotFile.create("/snap", index, 1, fs=disk).close()
    names = disk.listdir("/")
    assert len(names) == 61
    kept = []
    for name in names:
        snapshot = SnapshotFile.open(f"/{name}", fs=disk)
        kept.append(snapshot.index)
        snapshot.close()
    assert kept == [74, *range(14, 74)]


def test_a_file_system_without_hard_links(caplog: pytest.LogCaptureFixture) -> None:
    disk = ProbeFileSystem(MemoryDisk())
    SnapshotFile.create("/snap", 1, 1, [b"old"], fs=disk).close()
    disk.fail_at = len(disk.events) + 5
    disk.error = lambda: OSError(errno.EPERM, "Operation not permitted")
    snapshot = SnapshotFile.create("/snap", 2, 1, [b"new"], fs=disk)
    assert snapshot.read(0, 10) == b"new"
    assert disk.events[-3][0] == "link"
    assert disk.listdir("/") == ["snap"]
    assert "/snap: the old file is not kept, since it cannot be linked: Operation not permitted" in caplog.text


def test_giving_up_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    SnapshotFile.create(path, 1, 1, [b"old"]).close()
    with pytest.raises(RuntimeError), SnapshotWriter(path, 2, 1) as writer:  # noqa: PT012
        writer.write(b"new")
        raise RuntimeError("the state machine failed")
    assert [entry.name for entry in tmp_path.iterdir()] == ["snap"]
    with pytest.raises(StorageError, match="already finished or given up"):
        writer.write(b"more")
    snapshot = SnapshotFile.open(path)
    assert snapshot.read(0, 10) == b"old"
    snapshot.close()


def test_what_a_crash_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "snap.tmp").write_bytes(b"x" * 1000)
    SnapshotFile.create(tmp_path / "snap", 1, 1, [b"state"]).close()
    snapshot = SnapshotFile.open(tmp_path / "snap")
    assert snapshot.read(0, 2000) == b"state"
    snapshot.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("number", range(8))
def test_any_failed_call_leaves_an_old_or_a_new_one(number: int, code: int) -> None:
    disk = ProbeFileSystem(MemoryDisk())
    SnapshotFile.create("/snap", 1, 1, [b"old"], fs=disk).close()
    disk.fail_at = len(disk.events) + number
    disk.error = lambda: OSError(code, "the disk says no")
    with pytest.raises(StorageFailedError, match=r"the snapshot /snap\.tmp: cannot .*: the disk says no"):
        SnapshotFile.create("/snap", 2, 1, [b"new"], fs=disk)
    assert disk.failed == 1
    assert not disk.open_paths
    snapshot = SnapshotFile.open("/snap", fs=disk)
    assert (snapshot.index, snapshot.read(0, 10)) in ((1, b"old"), (2, b"new"))


@pytest.mark.parametrize(
    ("offset", "data", "part"),
    [
        (0, b"XNAP", "begins with b'XNAP'"),
        (4, b"\x18", ""),
        (8, b"\2", "version 2 at offset 8"),
        (18, b"\xff", "out of range"),
        (28, b"\x09", "the file has 108 bytes where 109 are expected"),
        (92, b"\x07", ""),
    ],
)
def test_damage(tmp_path: Path, offset: int, data: bytes, part: str) -> None:
    path = tmp_path / "snap"
    with SnapshotWriter(path, 1, 1) as writer:
        writer.write(b"12345678")
        writer.finish().close()
    # As zmq-raft writes it.
    content = bytearray(without_segment(path.read_bytes(), b"CRCS"))
    assert offset < len(content)
    at = content.index(b"META")
    # The name of the machine varies.
    length = int.from_bytes(content[at + 4 : at + 8], "little")
    content[at : at + 8 + length + -length % 4] = b"META" + (44).to_bytes(4, "little") + bytes(44)
    assert len(content) == 104
    if "108" in part:
        part = "the file has 104 bytes where 105 are expected"
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    if offset == 92:
        snapshot = SnapshotFile.open(path)
        assert snapshot.meta == {}
        snapshot.close()
        return
    with pytest.raises(CorruptionError) as caught:
        SnapshotFile.open(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_a_block_that_has_changed_since_the_snapshot_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "snap"
    data = bytes(range(256)) * 1024
    snapshot = SnapshotFile.create(path, 7, 1, [data[:100_000], data[100_000:]])
    content = bytearray(path.read_bytes())
    content[snapshot.data_offset + 150_000] ^= 1
    path.write_bytes(content)
    for offset, size in ((0, 65536), (0, 131072), (100, 131072 - 100), (196608, 65536), (200_000, 100_000)):
        assert snapshot.read(offset, size) == data[offset : offset + size]
    for offset, size in ((131072, 65536), (0, 131073), (150_001, 1), (196_607, 5)):
        with pytest.raises(CorruptionError, match=rf" from offset {snapshot.data_offset + 131072} on, .*index 7"):
            snapshot.read(offset, size)
    snapshot.close()
    with pytest.raises(CorruptionError, match="the snapshot of index 7 does not match its checksum"):
        SnapshotFile.open(path)


@pytest.mark.parametrize("cut", [1, 5, 8, 12, 60])
def test_a_file_that_was_cut(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "snap"
    SnapshotFile.create(path, 1, 1, [b"12345678"]).close()
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CorruptionError, match=r"snap: (the file has|the header breaks off|segment)"):
        SnapshotFile.open(path)


def test_missing_and_unusable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SnapshotFile.open(tmp_path / "snap")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot open the snapshot .*Not a directory"):
        SnapshotFile.open(tmp_path / "file" / "snap")
    with pytest.raises(StorageFailedError, match="cannot create it: Not a directory"):
        SnapshotWriter(tmp_path / "file" / "snap", 1, 1)
    with pytest.raises(ValueError, match="no snapshot has index -1"):
        SnapshotWriter(tmp_path / "snap", -1, 1)
