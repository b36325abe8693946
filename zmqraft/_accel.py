"""The one place that chooses between the compiled modules and their pure twins.

Knows nothing of what the modules do. The rule: all or none. The process runs with every compiled module or with no
one of them, never with a mixture; so a module that has a twin asks for `EXTENSIONS` and decides nothing by itself::

    if TYPE_CHECKING or not EXTENSIONS:
        from zmqraft.protocol._frames import encode_uint
    else:
        from zmqraft._speedups.frames import encode_uint

``ZMQRAFT_NO_EXTENSIONS=1`` selects the pure modules, ``ZMQRAFT_REQUIRE_EXTENSIONS=1`` makes a missing compiled one an
ImportError; both are read once, at import.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["EXTENSIONS", "PURE_REASON"]

_PACKAGE: Final = "zmqraft._speedups"
#: Every compiled module. A new one is named here and in setup.py.
_MODULES: Final = ("frames", "log_index", "request_index", "checksums", "zmq_io", "commit_loop")


def _switch(name: str) -> bool:
    """Whether an environment variable is set to something other than 0."""
    return os.environ.get(name, "") not in ("", "0")


def _find_in_checkout() -> None:
    """In a checkout the compiled modules stand beside the package, not in it: let the package be found there."""
    root = Path(__file__).parent.parent
    source = root / "_speedups" / "__init__.py"
    if importlib.util.find_spec(_PACKAGE) is not None or not (source.is_file() and (root / "setup.py").is_file()):
        return
    spec = importlib.util.spec_from_file_location(_PACKAGE, source, submodule_search_locations=[str(source.parent)])
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = module
        spec.loader.exec_module(module)


def _choose() -> tuple[bool, str]:
    """Whether to use the compiled modules and, if not, why."""
    refused, required = _switch("ZMQRAFT_NO_EXTENSIONS"), _switch("ZMQRAFT_REQUIRE_EXTENSIONS")
    if refused and required:
        raise ImportError("ZMQRAFT_NO_EXTENSIONS and ZMQRAFT_REQUIRE_EXTENSIONS are both set: unset one of them")
    if refused:
        return False, "ZMQRAFT_NO_EXTENSIONS is set"
    try:
        _find_in_checkout()
        for name in _MODULES:
            importlib.import_module(f"{_PACKAGE}.{name}")
    except ImportError as error:
        reason = f"a compiled module could not be loaded: {error}"
        if required:
            hint = "install zmqraft with a C compiler at hand, or unset ZMQRAFT_REQUIRE_EXTENSIONS"
            raise ImportError(f"{reason}; {hint}") from error
        return False, reason
    return True, ""


_choice = _choose()
#: Whether the compiled modules are in use.
EXTENSIONS: Final = _choice[0]
#: Why they are not; empty when they are.
PURE_REASON: Final = _choice[1]
