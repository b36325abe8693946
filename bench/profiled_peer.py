"""A peer under cProfile: ``python -m bench.profiled_peer FILE -c CONFIG ID`` is ``zmqraft run -c CONFIG ID``.

Only the peer's own thread is profiled, the one that owns its sockets, from its start to its end; then the figures are
in FILE, as `pstats` reads them. cProfile does not see compiled functions: their time is counted as their callers'.
"""

from __future__ import annotations

import cProfile
import sys
import threading
from pathlib import Path

#: How ZmqRaft names its thread (server/peer.py), before the peer's id.
_THREAD_PREFIX = "zmqraft "


def profile_thread(name: str, path: Path) -> None:
    """From now on, profile the thread with a name and write the figures when it ends."""
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        if thread.name != name:
            run(thread)
            return
        profile = cProfile.Profile()
        try:
            profile.runcall(run, thread)
        finally:
            profile.dump_stats(path)

    setattr(threading.Thread, "run", profiled)  # noqa: B010  (mypy takes the assignment for a mistake)


def main() -> int:
    from zmqraft.cli import main as zmqraft_main

    path, *arguments = sys.argv[1:]
    profile_thread(f"{_THREAD_PREFIX}{arguments[-1]}", Path(path))
    return zmqraft_main(["run", *arguments])


if __name__ == "__main__":
    sys.exit(main())
