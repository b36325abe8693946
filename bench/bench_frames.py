"""Frames, pure against compiled: ``pytest bench/bench_frames.py``.

Each group is one operation, with its two twins side by side. Needs a compiled build; without one, only pure is there.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from support.twins import BUILDS, module_over, twin

REQUEST_ID = bytes(range(12))
DATA = b"x" * 128
#: What one AppendEntries carries: about 64 KiB.
ENTRY_COUNT = 440


@pytest.fixture(params=BUILDS, scope="module")
def build(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def frames(build: str) -> ModuleType:
    return twin("frames", build)


@pytest.fixture(scope="module")
def protocols(build: str) -> Any:
    return module_over("zmqraft.protocol.schema", "frames", build).Protocols


@pytest.fixture(scope="module")
def append(frames: ModuleType) -> tuple[Any, ...]:
    entries = [frames.encode_entry(REQUEST_ID, 0, 5, DATA)] * ENTRY_COUNT
    return b"+", b"secret", "01", 5, 1_000_000, 5, 999_000, entries


@pytest.mark.benchmark(group="encode a uint")
def test_encode_uint(benchmark: BenchmarkFixture, frames: ModuleType) -> None:
    benchmark(frames.encode_uint, 1_000_000)


@pytest.mark.benchmark(group="encode an entry of 128 bytes")
def test_encode_entry(benchmark: BenchmarkFixture, frames: ModuleType) -> None:
    benchmark(frames.encode_entry, REQUEST_ID, 0, 5, DATA)


@pytest.mark.benchmark(group="decode RequestUpdate")
def test_decode_request_update(benchmark: BenchmarkFixture, protocols: Any) -> None:
    benchmark(protocols.REQUEST_UPDATE.decode_request, [b"=", b"secret", DATA])


@pytest.mark.benchmark(group="encode the reply of RequestUpdate")
def test_encode_request_update_reply(benchmark: BenchmarkFixture, protocols: Any) -> None:
    benchmark(protocols.REQUEST_UPDATE.encode_response, True, 1_000_000)


@pytest.mark.benchmark(group="decode AppendEntries of 440 entries")
def test_decode_append_entries(benchmark: BenchmarkFixture, protocols: Any, append: tuple[Any, ...]) -> None:
    message = protocols.APPEND_ENTRIES.encode_request(*append)
    benchmark(protocols.APPEND_ENTRIES.decode_request, message)


@pytest.mark.benchmark(group="encode AppendEntries of 440 entries")
def test_encode_append_entries(benchmark: BenchmarkFixture, protocols: Any, append: tuple[Any, ...]) -> None:
    benchmark(protocols.APPEND_ENTRIES.encode_request, *append)


@pytest.mark.benchmark(group="check 440 entries in one buffer")
def test_check_entries(benchmark: BenchmarkFixture, frames: ModuleType, append: tuple[Any, ...]) -> None:
    entries = append[-1]
    ends = [len(entries[0]) * (position + 1) for position in range(ENTRY_COUNT)]
    benchmark(frames.check_entries, b"".join(entries), ends)
