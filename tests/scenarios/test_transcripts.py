"""The transcripts beside this file: what must come out of each, literally. ``pytest tests/scenarios --rewrite`` writes
what comes out now into them, to be looked at with ``git diff``."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.transcripts import TranscriptError, check, rewritten

TRANSCRIPTS = Path(__file__).parent / "transcripts"


def check_transcript(name: str) -> None:
    """For `support.mutants` as well."""
    check(TRANSCRIPTS / f"{name}.txt")


@pytest.mark.parametrize("name", sorted(path.stem for path in TRANSCRIPTS.glob("*.txt")))
def test_transcript(name: str, pytestconfig: pytest.Config) -> None:
    check(TRANSCRIPTS / f"{name}.txt", rewrite=pytestconfig.getoption("--rewrite"))


@pytest.mark.parametrize(
    "command",
    [
        "peerz 3",
        "deliver A->B",
        "drop A->B",
        "timeout D",
        "timeout",
        "crash C",
        "deliver AB",
        "elapse A soon",
        "wipe A",
    ],
)
def test_a_script_that_cannot_be_followed_is_an_error(command: str) -> None:
    with pytest.raises(TranscriptError):
        rewritten(f"peers 3\nstart A B\n{command}\n----\n")


def test_something_else_than_what_is_written_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("peers 1\nstart\n----\nnothing\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        check(path)
    check(path, rewrite=True)
    check(path)
    assert "A: commit 1, appends 1:1" in path.read_text(encoding="utf-8")
