"""What real faults need of the machine, and why it is not to be had here.

Each function returns None where it is, and else one line for whoever wonders what was left out.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from support.loop_file_system import mounted

__all__ = ["missing_for_loop", "missing_for_strace"]


@functools.cache
def missing_for_strace() -> str | None:
    """Why no system call can be made to fail here."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    command = ["strace", "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "true"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"strace does not work here: {result.stderr.strip()[:200]}"


@functools.cache
def missing_for_loop() -> str | None:
    """Why no file system can be mounted from a file here."""
    if os.geteuid() != 0:
        return "only root can mount a file system"
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed (apt-get install e2fsprogs)"
    try:
        with tempfile.TemporaryDirectory() as directory, mounted(Path(directory) / "try", size_mib=2):
            return None
    except subprocess.CalledProcessError as error:
        return f"no file system can be mounted from a file: {error.stderr.decode().strip()[:200]}"
