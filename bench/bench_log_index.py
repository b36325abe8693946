"""Batches and the request-id index, pure against compiled: ``pytest bench/bench_log_index.py``.

Each group is one operation, with its two twins side by side. Needs a compiled build; without one, only pure is there.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from types import ModuleType
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from support.twins import BUILDS, twin

DATA = b"x" * 128
#: What one turn of a busy leader takes.
ENTRY_COUNT = 1024
REQUEST_IDS = [(1_700_000_000 + n // 1000).to_bytes(4, "big") + n.to_bytes(8, "big") for n in range(100_000)]


@pytest.fixture(params=BUILDS, scope="module")
def build(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def log_index(build: str) -> ModuleType:
    return twin("log_index", build)


@pytest.fixture(scope="module")
def frames(build: str) -> list[bytes]:
    encode_entry = twin("frames", build).encode_entry
    return [encode_entry(request_id, 0, 5, DATA) for request_id in REQUEST_IDS[:ENTRY_COUNT]]


@pytest.fixture(scope="module")
def batch(log_index: ModuleType, frames: list[bytes]) -> Any:
    return log_index.EntryBatch.from_frames(1, frames)


@pytest.mark.benchmark(group="build a batch of 1024 entries from frames")
def test_from_frames(benchmark: BenchmarkFixture, log_index: ModuleType, frames: list[bytes]) -> None:
    benchmark(log_index.EntryBatch.from_frames, 1, frames)


@pytest.mark.benchmark(group="build a batch of 1024 entries one by one")
def test_builder(benchmark: BenchmarkFixture, log_index: ModuleType) -> None:
    def build() -> None:
        builder = log_index.BatchBuilder()
        append = builder.append_entry
        for request_id in REQUEST_IDS[:ENTRY_COUNT]:
            append(request_id, 0, 5, DATA)
        builder.finish(1)

    benchmark(build)


@pytest.mark.benchmark(group="check 1024 entries read from an index file")
def test_from_table(benchmark: BenchmarkFixture, log_index: ModuleType, frames: list[bytes]) -> None:
    data, table = b"".join(frames), array("I", accumulate(map(len, frames)))
    benchmark(log_index.EntryBatch.from_table, 1, data, table, 0, ENTRY_COUNT)


@pytest.mark.benchmark(group="the table of 1024 entries")
def test_table_bytes(benchmark: BenchmarkFixture, log_index: ModuleType, batch: Any) -> None:
    benchmark(log_index.table_bytes, batch, 1_000_000)


@pytest.mark.benchmark(group="the terms of 1024 entries")
def test_term_runs(benchmark: BenchmarkFixture, batch: Any) -> None:
    # Under another index, since a batch remembers its runs.
    benchmark(lambda: batch.with_first_index(7).term_runs())


@pytest.mark.benchmark(group="the frames of 1024 entries")
def test_frames(benchmark: BenchmarkFixture, batch: Any) -> None:
    benchmark(batch.frames)


@pytest.mark.benchmark(group="a slice and a prefix of 64 KiB")
def test_slice(benchmark: BenchmarkFixture, batch: Any) -> None:
    benchmark(lambda: batch.slice(100, 1000).prefix_of_size(65536))


@pytest.mark.benchmark(group="join 8 batches of 128 entries")
def test_join(benchmark: BenchmarkFixture, log_index: ModuleType, batch: Any) -> None:
    parts = [batch.slice(first, first + 127) for first in range(1, ENTRY_COUNT, 128)]
    benchmark(log_index.EntryBatch.join, parts)


@pytest.mark.benchmark(group="remember 1024 request ids among 100,000")
def test_request_index_add(benchmark: BenchmarkFixture, log_index: ModuleType, build: str, batch: Any) -> None:
    encode_entry = twin("frames", build).encode_entry
    index = twin("request_index", build).RequestIndex()
    frames = [encode_entry(request_id, 0, 5, b"x") for request_id in REQUEST_IDS[ENTRY_COUNT:]]
    index.add(log_index.EntryBatch.from_frames(1, frames))
    last = len(frames)

    def add_and_take_back() -> None:
        index.add(batch.with_first_index(last + 1))
        index.truncate_after(last)

    benchmark(add_and_take_back)


@pytest.mark.benchmark(group="find 1024 request ids among 100,000")
def test_request_index_find(benchmark: BenchmarkFixture, log_index: ModuleType, build: str) -> None:
    encode_entry = twin("frames", build).encode_entry
    index = twin("request_index", build).RequestIndex()
    frames = [encode_entry(request_id, 0, 5, b"x") for request_id in REQUEST_IDS]
    index.add(log_index.EntryBatch.from_frames(1, frames))

    def find() -> None:
        for request_id in REQUEST_IDS[:ENTRY_COUNT]:
            index.find(request_id)

    benchmark(find)
