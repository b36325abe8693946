"""Ranges of indexes on the command line: ``100:110,1000:``.

Knows nothing of logs. The rule: both ends belong to a range, and one that is left out is that of the log.
"""

from __future__ import annotations

import re

import click

from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import shown

__all__ = ["Ranges", "parse_ranges"]

#: First and last index of each range, rising, without overlaps.
Ranges = tuple[tuple[int, int], ...]

_PATTERN = re.compile(r"(\d{0,16}):(\d{0,16})|(\d{1,16})", re.ASCII)


def parse_ranges(ctx: click.Context, param: click.Parameter, value: str | None) -> Ranges | None:
    """The callback of an option that takes ranges of indexes. Raises click.BadParameter for anything else."""
    if value is None:
        return None
    ranges = []
    for text in map(str.strip, value.split(",")):
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise click.BadParameter(f"{shown(text)} is no range of indexes like 100:110, 1000:, :50 or 7", ctx, param)
        first = int(match[3] or match[1] or 1)
        last = int(match[3] or match[2] or INTEGER_MAX)
        if not 1 <= first <= last <= INTEGER_MAX:
            raise click.BadParameter(
                f"{shown(text)} is no range of indexes: they start at 1 and rise to {INTEGER_MAX}", ctx, param
            )
        ranges.append((first, last))
    return _merged(ranges)


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
