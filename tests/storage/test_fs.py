"""The real file system, the lock on a data directory, and that nothing else in the storage touches files."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zmqraft.storage
from support.file_systems import MemoryDisk, ProbeFileSystem
from zmqraft.errors import ConfigurationError
from zmqraft.storage import OS_FILE_SYSTEM, DirectoryLock, OsFileSystem, lock_directory

FS = OS_FILE_SYSTEM

#: What the modules of the storage may import besides zmqraft: nothing that opens files or knows the time by itself.
#: pathlib only for PurePath, datetime only to write a given time.
ALLOWED = {
    "__future__", "abc", "array", "base64", "bisect", "collections", "contextlib", "copy", "dataclasses", "datetime",
    "enum", "errno", "hashlib", "itertools", "logging", "msgpack", "operator", "pathlib", "re", "struct", "sys",
    "threading", "types", "typing", "weakref",
}  # fmt: skip


def test_only_fs_touches_files() -> None:
    modules = sorted(Path(zmqraft.storage.__path__[0]).glob("*.py"))
    assert len(modules) > 10
    for path in modules:
        if path.name == "fs.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "."]
                if node.module == "pathlib":
                    assert [name.name for name in node.names] == ["PurePath"], path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "open", f"{path}:{node.lineno}"
                continue
            else:
                continue
            for name in names:
                inward = name.split(".")[:2] in (
                    ["zmqraft", part]
                    for part in ("errors", "constants", "_accel", "_speedups", "api", "protocol", "storage")
                )
                assert inward or name.split(".")[0] in ALLOWED, f"{path} imports {name}"


def test_every_public_name_is_there() -> None:
    for name in zmqraft.storage.__all__:
        assert getattr(zmqraft.storage, name) is not None


def test_reads_and_writes(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    handle = FS.open(path, write=True, create=True)
    FS.pwrite(handle, b"hello", 3)
    FS.pwrite(handle, memoryview(b"xHEx")[1:3], 3)
    assert FS.pread(handle, 100, 0) == b"\0\0\0HEllo"
    assert FS.pread(handle, 100, 8) == FS.pread(handle, 100, 50) == FS.pread(handle, 0, 0) == b""
    assert FS.size(handle) == 8
    FS.truncate(handle, 4)
    FS.allocate(handle, 0, 10)
    assert FS.pread(handle, 100, 0) == b"\0\0\0H" + bytes(6)
    FS.fdatasync(handle)
    FS.close(handle)
    with pytest.raises(FileExistsError):
        FS.open(path, write=True, create=True)
    handle = FS.open(path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        FS.pwrite(handle, b"x", 0)
    FS.close(handle)
    handle = FS.open(path, write=True, truncate=True)
    assert FS.size(handle) == 0
    FS.close(handle)


def test_short_reads_and_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: pread(handle, min(size, 3), offset))
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, memoryview(data)[:2], offset))
    handle = FS.open(str(tmp_path / "file"), write=True, create=True)
    FS.pwrite(handle, b"0123456789", 1)
    assert FS.pread(handle, 100, 0) == b"\x000123456789"
    assert FS.pread(handle, 5, 2) == b"12345"
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="did not get on"):
        FS.pwrite(handle, b"x", 0)
    FS.close(handle)


def test_directories(tmp_path: Path) -> None:
    folder = str(tmp_path / "folder")
    assert FS.kind(folder) is None
    FS.mkdir(folder)
    FS.sync_directory(folder)
    assert FS.kind(folder) == "directory"
    for name in ("b", "a"):
        FS.close(FS.open(f"{folder}/{name}", write=True, create=True))
    assert FS.kind(f"{folder}/a") == "file"
    assert FS.kind("/dev/null") == "other"
    FS.link(f"{folder}/a", f"{folder}/c")
    FS.rename(f"{folder}/a", f"{folder}/b")
    assert FS.listdir(folder) == ["b", "c"]
    FS.unlink(f"{folder}/c")
    assert FS.listdir(folder) == ["b"]
    with pytest.raises(NotADirectoryError):
        FS.kind(f"{folder}/b/x")
    with pytest.raises(NotADirectoryError):
        FS.sync_directory(f"{folder}/b")
    assert FS.host_name()
    assert FS.now_seconds() > 1_700_000_000


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_directory_is_locked_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data"
    with lock_directory(path) as lock:
        assert isinstance(lock, DirectoryLock)
        assert lock.path == str(path)
        with pytest.raises(ConfigurationError, match=rf"data directory {path} is in use by another process"):
            lock_directory(path)
    lock.close()
    lock_directory(path).close()


def test_another_process_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from zmqraft.storage import lock_directory; lock = lock_directory(sys.argv[1]);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(zmqraft.storage.__path__[0]).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigurationError, match="is in use by another process"):
            lock_directory(tmp_path)
        process.kill()
    lock_directory(tmp_path).close()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(ConfigurationError, match=rf"cannot use the data directory {path}: ") as caught:
            lock_directory(path)
        assert "\n" not in str(caught.value)
    disk = ProbeFileSystem(MemoryDisk())
    disk.fail_at = 0
    disk.error = lambda: PermissionError(13, "Permission denied", "/data")
    with pytest.raises(ConfigurationError, match="cannot use the data directory /data: Permission denied: /data"):
        lock_directory("/data", fs=disk)


def test_two_peers_make_the_directory_above_theirs_at_once(tmp_path: Path) -> None:
    """Each finds it missing, and one is later than the other (found by peers that were started together)."""

    class LateFileSystem(OsFileSystem):
        def mkdir(self, path: str) -> None:
            if path == str(tmp_path / "data"):
                os.mkdir(path)
            super().mkdir(path)

    lock_directory(tmp_path / "data" / "1", fs=LateFileSystem()).close()
    assert (tmp_path / "data" / "1").is_dir()
