"""How entries are written to standard output: as lines, as JSON lines, or raw.

Knows nothing of where entries come from. The rule: only data is written here, byte for byte where it can be; remarks
go to standard error.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

__all__ = ["ENCODINGS", "Output", "OutputClosed", "encode_data", "remark"]

#: How data appears in JSON.
ENCODINGS = ("text", "base64", "hex")


class OutputClosed(Exception):  # noqa: N818 - a signal to stop, not an error
    """Whoever read standard output has gone."""


class Output:
    """Standard output, in bytes. Every method raises OutputClosed when nobody reads it any more."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = sys.stdout.buffer if stream is None else stream

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        try:
            self._stream.write(data)
        except BrokenPipeError:
            raise OutputClosed from None

    def line(self, data: bytes) -> None:
        """Write bytes as a line: with a newline behind them, unless they end with one."""
        self.write(data if data.endswith(b"\n") else data + b"\n")

    def json(self, record: Mapping[str, Any]) -> None:
        """Write one line of JSON."""
        self.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    def flush(self) -> None:
        """Hand everything on, so that a reader behind a pipe sees it now."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise OutputClosed from None


def encode_data(data: bytes, encoding: str) -> dict[str, str]:
    """The members of a JSON record for some bytes.

    Bytes that are not UTF-8 are given in base64 even if ``encoding`` is text; ``encoding`` is a member whenever it is
    not text.
    """
    if encoding == "text":
        try:
            return {"data": data.decode()}
        except UnicodeDecodeError:
            encoding = "base64"
    shown = data.hex() if encoding == "hex" else base64.b64encode(data).decode("ascii")
    return {"data": shown, "encoding": encoding}


def remark(text: str) -> None:
    """Say something to the person at the terminal, beside the data."""
    print(f"zmqraft: {text}", file=sys.stderr, flush=True)
