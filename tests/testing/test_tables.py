"""What tests/README.md says of tests is so: the tests that it names are there, and every row of FAULTS has a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.mutants import MUTANTS

TESTS = Path(__file__).parent.parent
TEXT = (TESTS / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([a-z_]+/test_\w+\.py(?:::\w+)*)`", TEXT)))


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_is_there(name: str) -> None:
    path, *names = name.split("::")
    source = (TESTS / path).read_text(encoding="utf-8")
    for each in names:
        assert re.search(rf"^ *(?:def|class) {each}\b", source, re.MULTILINE), name


def test_every_transcript_has_a_line() -> None:
    named = set(re.findall(r"`(w?\d\d_\w+)`", TEXT))
    assert named == {path.stem for path in (TESTS / "scenarios/transcripts").glob("*.txt")}


def test_every_row_has_a_line() -> None:
    rows = [*(str(number) for number in range(1, 51)), *(f"W{number}" for number in range(1, 28))]
    assert [row for row in rows if f"\n| {row} | " not in TEXT] == []


def test_every_mutant_has_a_line() -> None:
    assert [mutant.name for mutant in MUTANTS if f"\n| {mutant.name} | " not in TEXT] == []
