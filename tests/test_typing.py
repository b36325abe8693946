"""The public API is typed: programs that use it, the README's and those in examples/, pass ``mypy --strict``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import zmqraft

HERE = Path(__file__).parent


def test_programs_of_users_are_checked_strictly(tmp_path: Path) -> None:
    readme = (HERE.parent / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert examples
    paths = [HERE / "support" / "typed_program.py", *sorted((HERE.parent / "examples").glob("*.py"))]
    for number, example in enumerate(examples):
        paths.append(tmp_path / f"example_{number}.py")
        paths[-1].write_text(example, encoding="utf-8")
    # Silent: a checkout, other than an installed package, would be checked as well.
    options = ["--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    # mypy finds an installed package by itself, and refuses to be told where that is.
    root = str(Path(zmqraft.__file__).parents[1])
    path = {} if root in sysconfig.get_paths().values() else {"MYPYPATH": root}
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *paths],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **path},
        check=False,
    )
    assert result.stdout == f"Success: no issues found in {len(paths)} source files\n", result.stderr
