"""The pure and the compiled twin of a module, side by side in one process, whichever of them zmqraft itself chose."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Final
from unittest.mock import patch

from zmqraft import _accel

#: Name of the dispatcher, then its twins.
_TWINS: Final = {
    "frames": ("zmqraft.protocol.frames", "zmqraft.protocol._frames", "zmqraft._speedups.frames"),
    "log_index": ("zmqraft.protocol.log_index", "zmqraft.protocol._log_index", "zmqraft._speedups.log_index"),
    "request_index": (
        "zmqraft.storage.request_index",
        "zmqraft.storage._request_index",
        "zmqraft._speedups.request_index",
    ),
    "checksums": ("zmqraft.storage.checksums", "zmqraft.storage._checksums", "zmqraft._speedups.checksums"),
    "zmq_io": ("zmqraft.protocol.zmq_io", "zmqraft.protocol._zmq_io", "zmqraft._speedups.zmq_io"),
    "commit_loop": ("zmqraft.server.commit_loop", "zmqraft.server._commit_loop", "zmqraft._speedups.commit_loop"),
}
#: Every module that has twins.
MODULES: Final = tuple(_TWINS)
PURE: Final = "pure"
COMPILED: Final = "compiled"
#: The builds that can be tested: under ZMQRAFT_NO_EXTENSIONS, or where nothing was compiled, only one.
BUILDS: Final = (PURE, COMPILED) if _accel.EXTENSIONS else (PURE,)


def build_name() -> str:
    """What zmqraft itself uses, for people."""
    if not _accel.EXTENSIONS:
        return f"{PURE} ({_accel.PURE_REASON})"
    return f"{COMPILED} (OLDER THAN THE SOURCES: python setup.py build_ext --inplace)" if _is_stale() else COMPILED


def _is_stale() -> bool:
    """Whether, in a checkout, a source was changed after it was compiled."""
    compiled = [Path(str(twin(name, COMPILED).__file__)) for name in _TWINS]
    sources = [path.with_name(f"{path.name.partition('.')[0]}.pyx") for path in compiled]
    return any(
        source.exists() and source.stat().st_mtime > path.stat().st_mtime
        for source, path in zip(sources, compiled, strict=True)
    )


def twin(name: str, build: str) -> ModuleType:
    """The twin of a module in a build: ``twin("frames", PURE)``."""
    _, pure, compiled = _TWINS[name]
    return importlib.import_module(compiled if build == COMPILED else pure)


def public_names(name: str) -> list[str]:
    """What the dispatcher of a module exports."""
    return list(importlib.import_module(_TWINS[name][0]).__all__)


def module_over(module_name: str, names: str | tuple[str, ...], build: str) -> ModuleType:
    """A second copy of a module, which got everything that it imports from these dispatchers from a twin instead."""
    spec = importlib.util.find_spec(module_name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with ExitStack() as patches:
        for name in (names,) if isinstance(names, str) else names:
            dispatcher = importlib.import_module(_TWINS[name][0])
            chosen = twin(name, build)
            replaced = {public: getattr(chosen, public) for public in dispatcher.__all__}
            patches.enter_context(patch.multiple(dispatcher, **replaced))
        spec.loader.exec_module(module)
    return module
