"""Running Python in a process of its own, with the same zmqraft that this one uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import zmqraft

#: Generous: machines are slow and shared. It ends a process that hangs, and decides nothing else.
DEADLINE_S = 60


def run_python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -c code``; without ZMQRAFT_* variables but for those given.

    ``cwd`` should not be the checkout, since ``-c`` puts it in front of what is installed.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZMQRAFT_")}
    inherited["PYTHONPATH"] = str(Path(zmqraft.__file__).resolve().parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
