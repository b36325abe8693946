"""What every test gets: the twins as fixtures, the build in the header, and property tests without a clock."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

import zmqraft
from support.twins import BUILDS, COMPILED, PURE, build_name, module_over, twin

# Machines are slow and shared: no deadlines. The same examples in every run; --hypothesis-profile=explore draws anew.
settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("default"), derandomize=False, max_examples=5000)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=1, help="the seed of the random tests (default: 1)")
    parser.addoption(
        "--rewrite", action="store_true", help="write what comes out into the transcripts (tests/scenarios)"
    )
    parser.addoption("--fuzz-seconds", type=float, help="fuzz each target for so long (tests/fuzz)")


def pytest_configure(config: pytest.Config) -> None:
    # A shell without job control lets what it starts in the background ignore SIGINT, and so would what tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    return f"zmqraft: {build_name()}; seed: {config.getoption('--seed')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, rather than skip, what needs the compiled twins where they are not to be had."""
    if COMPILED in BUILDS:
        return
    missing = [item for item in items if _build_of(item) == COMPILED]
    if missing:
        config.hook.pytest_deselected(items=missing)
        items[:] = [item for item in items if _build_of(item) != COMPILED]


def _build_of(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("build") if callspec is not None else None


@pytest.fixture(scope="session", autouse=True)
def _beside_the_tested_package() -> Iterator[None]:
    """Processes that tests start with ``python -m`` or ``-c`` look for zmqraft in the working directory first.

    That may be a checkout while the tests run against an installed package: so stay beside the one that is tested.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(zmqraft.__file__).resolve().parent.parent)
        yield


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """What random tests draw from: ``random.Random(seed)``."""
    return int(pytestconfig.getoption("--seed"))


@pytest.fixture(params=[PURE, COMPILED], scope="session")
def build(request: pytest.FixtureRequest) -> str:
    """Runs the test once for each twin."""
    return str(request.param)


@pytest.fixture(scope="session")
def frames(build: str) -> ModuleType:
    """A twin of `zmqraft.protocol.frames`."""
    return twin("frames", build)


@pytest.fixture(scope="session")
def schema(build: str) -> ModuleType:
    """`zmqraft.protocol.schema` over a twin of the frames."""
    return module_over("zmqraft.protocol.schema", "frames", build)


@pytest.fixture(scope="session")
def log_index(build: str) -> ModuleType:
    """A twin of `zmqraft.protocol.log_index`."""
    return twin("log_index", build)


@pytest.fixture(scope="session")
def entry(build: str) -> ModuleType:
    """`zmqraft.protocol.entry` over the twins of a build."""
    module = module_over("zmqraft.protocol.entry", ("frames", "log_index"), build)
    over_frames = module_over("zmqraft.protocol.log_entry", "frames", build)
    module.LogEntry, module.EntryType = over_frames.LogEntry, over_frames.EntryType  # type: ignore[attr-defined]
    return module
