"""How entries are written to standard output: as lines, as JSON lines, or raw.

Knows nothing of where entries come from. The rule: only data is written here, byte for byte where it can be; remarks
go to standard error.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import click

import zmqraft

__all__ = ["ENCODINGS", "Output", "OutputClosed", "describe_version", "encode_data", "remark"]

#: How data appears in JSON.
ENCODINGS = ("text", "base64", "hex")


class OutputClosed(Exception):  # noqa: N818 - a signal to stop, not an error
    """Whoever read standard output has gone."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        raise click.ClickException(f"standard output: {error.strerror or error}") from None


class Output:
    """Standard output, in bytes.

    Every method raises OutputClosed when nobody reads it any more, and ClickException when it cannot be written, as on
    a full disk or when the process was started without it.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        if stream is None:
            if sys.stdout is None:
                raise click.ClickException("standard output is closed")
            stream = sys.stdout.buffer
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        with _writing():
            self._stream.write(data)

    def line(self, data: bytes) -> None:
        """Write bytes as a line: with a newline behind them, unless they end with one."""
        self.write(data if data.endswith(b"\n") else data + b"\n")

    def json(self, record: Mapping[str, Any]) -> None:
        """Write one line of JSON."""
        self.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    def flush(self) -> None:
        """Hand everything on, so that a reader behind a pipe sees it now."""
        with _writing():
            self._stream.flush()


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


def describe_version() -> str:
    """The version, and which build it is."""
    build = "compiled" if zmqraft.EXTENSIONS else "pure Python"
    return f"zmqraft {zmqraft.__version__} ({build})"


def remark(text: str) -> None:
    """Say something to the person at the terminal, beside the data."""
    click.echo(f"zmqraft: {text}", err=True)
