"""What these tests need of the machine; where it is missing they are deselected, and one line says so."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from support.loop_file_system import mounted


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark, missing in (("strace", missing_for_strace), ("loop_file_system", missing_for_loop)):
        marked = [item for item in items if item.get_closest_marker(mark)]
        reason = missing() if marked else None
        if reason is not None:
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]
            names = ", ".join(sorted({item.name for item in marked}))
            reporter = config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None:
                reporter.write_line(f"deselected: {names}: {reason}")


@functools.cache
def missing_for_strace() -> str | None:
    """Why no system call can be made to fail here; None when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    command = ["strace", "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "true"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"strace does not work here: {result.stderr.strip()[:200]}"


@functools.cache
def missing_for_loop() -> str | None:
    """Why no file system can be mounted from a file here; None when it can."""
    if os.geteuid() != 0:
        return "only root can mount a file system"
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed (apt-get install e2fsprogs)"
    try:
        with tempfile.TemporaryDirectory() as directory, mounted(Path(directory) / "try", size_mib=2):
            return None
    except subprocess.CalledProcessError as error:
        return f"no file system can be mounted from a file: {error.stderr.decode().strip()[:200]}"
