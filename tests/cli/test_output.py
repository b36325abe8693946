"""What goes to standard output and to the log."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from zmqraft.cli.logs import JsonFormatter
from zmqraft.cli.output import Output, OutputClosed, encode_data


class ClosedPipe(io.BytesIO):
    """A pipe whose reader has gone: what is written is buffered, and fails when it is to leave."""

    def flush(self) -> None:
        raise BrokenPipeError


class FullClosedPipe(ClosedPipe):
    """The same, with no room in its buffer."""

    def write(self, data: Any) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize(
    ("data", "encoding", "members"),
    [
        (b"text", "text", {"data": "text"}),
        ("ünï\n\0".encode(), "text", {"data": "ünï\n\0"}),
        (b"\xff\x00", "text", {"data": "/wA=", "encoding": "base64"}),
        (b"\xff\x00", "hex", {"data": "ff00", "encoding": "hex"}),
        (b"text", "base64", {"data": "dGV4dA==", "encoding": "base64"}),
    ],
)
def test_data_appears_in_json_without_loss(data: bytes, encoding: str, members: dict[str, str]) -> None:
    assert encode_data(data, encoding) == members


def test_output_is_lines_json_or_bytes() -> None:
    stream = io.BytesIO()
    output = Output(stream)
    output.line(b"a")
    output.line(b"b\n")
    output.line(b"\n")
    output.write(b"\xff")
    output.json({"text": "ü\n"})
    output.flush()
    assert stream.getvalue() == b'a\nb\n\n\xff{"text": "\xc3\xbc\\n"}\n'


def test_a_reader_that_has_gone_ends_the_output() -> None:
    output = Output(ClosedPipe())
    output.write(b"x")
    with pytest.raises(OutputClosed):
        output.flush()
    with pytest.raises(OutputClosed):
        Output(FullClosedPipe()).write(b"x")


def test_a_log_record_is_one_line_of_json() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("zmqraft.x", logging.WARNING, "", 0, "peer %s\nfailed", ("a",), None)
        record.exc_info = (ValueError, error, error.__traceback__)
    record.created = 0.5
    record.peer = "a"
    record.path = io
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("exception").endswith("ValueError: two\nlines")
    assert fields == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "logger": "zmqraft.x",
        "message": "peer a\nfailed",
        "peer": "a",
        "path": repr(io),
    }
