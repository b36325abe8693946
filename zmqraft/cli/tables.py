"""Tables: drawn at a terminal, and as lines with aligned columns where another program reads them.

Knows nothing of what stands in them. The rule: a cell is text, and is never taken for markup.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zmqraft.cli.output import Output

__all__ = ["aligned", "text_line", "write_table"]


def text_line(text: str) -> bytes:
    """A line for `Output`, also of a path that is not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def aligned(rows: Sequence[Sequence[str]], numbers_from: int) -> list[str]:
    """The rows as lines with columns of one width: from the column ``numbers_from`` on to the right.

    A row may be shorter than the first one.
    """
    widths = [0] * len(rows[0])
    for row in rows:
        for column, cell in enumerate(row):
            widths[column] = max(widths[column], len(cell))
    return [
        "  ".join(
            cell.rjust(width) if column >= numbers_from else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def write_table(output: Output, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> None:
    """Write the rows below the names of the columns."""
    if sys.stdout is not None and sys.stdout.isatty():
        output.write(text_line(_drawn(columns, rows, numbers_from)))
    else:
        for line in aligned([columns, *rows], numbers_from):
            output.line(text_line(line))


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console, JustifyMethod
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(columns):
        justify: JustifyMethod = "right" if position >= numbers_from else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=position > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    with console.capture() as capture:
        console.print(table)
    return capture.get()
