"""A small file system in a file, mounted for as long as it is needed. For root only."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["mounted"]


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


@contextlib.contextmanager
def mounted(path: Path, *, size_mib: int) -> Iterator[Path]:
    """An ext4 file system of ``size_mib`` MiB at a path, which is made. Raises CalledProcessError."""
    image = path.with_name(path.name + ".image")
    path.mkdir(parents=True)
    with image.open("wb") as content:
        content.truncate(size_mib << 20)
    try:
        _run("mkfs.ext4", "-q", "-F", image)
        _run("mount", "-o", "loop", image, path)
        try:
            yield path
        finally:
            # Lazily, should a process of a failed test still be in it.
            _run("umount", "--lazy", path)
    finally:
        image.unlink()
