"""``--fuzz-seconds`` lets each target be fuzzed for so long; without it a fixed number of inputs is tried."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def fuzz_seconds(pytestconfig: pytest.Config) -> float | None:
    value = pytestconfig.getoption("--fuzz-seconds")
    return None if value is None else float(value)
