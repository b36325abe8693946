"""Whether a stream of entries is the file: every line, in order, once, and where it was acknowledged to be.

Knows nothing of where the entries come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zmqraft.protocol.entry import LogEntry

__all__ = ["difference"]


def difference(entries: Iterable[LogEntry], lines: Sequence[bytes], indexes: Sequence[int]) -> str | None:
    """How what clients wrote first differs from ``lines`` at ``indexes``; None when it does not differ."""
    expected = list(zip(indexes, lines, strict=True))
    written = [(entry.index, entry.data) for entry in entries if entry.is_state]
    for number, (got, want) in enumerate(zip(written, expected, strict=False), 1):
        if got != want:
            return f"line {number} should be {want[1]!r} at {want[0]}, but is {got[1]!r} at {got[0]}"
    if len(written) != len(expected):
        return f"{len(written)} lines instead of {len(expected)}"
    return None
