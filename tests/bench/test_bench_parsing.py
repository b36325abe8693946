"""What the benchmark reads: lines of load generators, HTTP replies, /proc, figures of a profiler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import machine, processes
from bench.etcd_load import reply_end, request, summary
from bench.peer_checks import summarize_kills
from bench.processes import BenchError
from bench.profiling import by_module, function_rows, function_times
from bench.systems import Measurement

LINE = '{"n":200,"in_flight":16,"size":128,"per_s":1000,"p50_ms":0.500,"p99_ms":2.000,"max_ms":3.250,"refused":0}\n'


def test_a_line_of_the_load_generator() -> None:
    measurement = Measurement.parse(LINE)
    assert measurement == Measurement(200, 1000.0, 0.5, 2.0, 3.25)
    assert measurement.duration_s == 0.2


@pytest.mark.parametrize("text", ["", "no leader\n", "[]", "{}", LINE.replace('"per_s":1000', '"per_s":null')])
def test_what_is_no_such_line_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="not what a load generator prints"):
        Measurement.parse(text)


def test_refused_updates_are_no_measurement() -> None:
    with pytest.raises(BenchError, match="7 of 200 updates were refused"):
        Measurement.parse(LINE.replace('"refused":0', '"refused":7'))


def test_other_loads_print_the_same_line() -> None:
    line = summary([0.003, 0.001, 0.002], elapsed_s=0.5, in_flight=2, size_bytes=128, refused=0)
    assert json.loads(line).keys() == json.loads(LINE).keys()
    assert Measurement.parse(line) == Measurement(3, 6.0, 2.0, 3.0, 3.0)


def test_an_http_reply_ends_where_its_length_says() -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    assert reply_end(reply + b"HTTP/1.1 200") == len(reply)
    assert [reply_end(reply[:end]) for end in range(len(reply))] == [None] * len(reply)
    with pytest.raises(ValueError, match="without a length"):
        reply_end(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


def test_a_put_says_its_length() -> None:
    head, _, body = request(100, 2379).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert json.loads(body).keys() == {"key", "value"}


MOUNTS = r"""21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /dev/shm rw,nosuid - tmpfs tmpfs rw
23 21 0:21 / /with\040blank rw shared:2 master:1 - xfs /dev/vdb rw
24 21 0:22 / /with\040blank rw - btrfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/tmp/data", "ext4"),
        ("/dev/shm/data", "tmpfs"),
        ("/dev/shmother", "ext4"),
        ("/with blank/data", "btrfs"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(path: str, kind: str) -> None:
    assert machine.file_system(Path(path), MOUNTS) == kind


def test_without_mounts_the_file_system_is_unknown() -> None:
    assert machine.file_system(Path("/tmp"), "") == "unknown"


def test_the_model_of_the_processor() -> None:
    text = "processor\t: 0\nmodel name\t: A Processor @ 2.00GHz\nprocessor\t: 1\nmodel name\t: other\n"
    assert machine._cpu_model(text) == "A Processor @ 2.00GHz"
    assert machine._cpu_model("") != ""


def test_the_name_of_a_thread_may_hold_anything() -> None:
    name, fields = processes._parse_stat("17 (a) b) (c) S 1 17 17 0 -1 4 5 6 7 8 120 30 0 0 20 0")
    assert (name, fields[0], fields[11], fields[12]) == ("a) b) (c", "S", "120", "30")


def test_functions_are_named_by_whose_they_are() -> None:
    stats = {
        ("~", 0, "<built-in method posix.fdatasync>"): (10, 10, 0.5, 0.5, {}),
        ("/x/zmqraft/zmqraft/server/peer.py", 12, "_turn"): (20, 20, 0.2, 0.9, {}),
        ("/x/site-packages/zmq/sugar/socket.py", 7, "send"): (30, 40, 0.7, 0.7, {}),
        ("/x/zmqraft/zmqraft/server/peer.py", 40, "_loop"): (1, 1, 0.1, 1.0, {}),
        ("/usr/lib/python3.11/enum.py", 3, "__call__"): (2, 2, 0.05, 0.1, {}),
    }
    functions = function_times(stats)
    assert [(each.name, each.calls) for each in functions] == [
        ("zmq/sugar/socket.py:7 send", 40),
        ("<built-in method posix.fdatasync>", 10),
        ("server/peer.py:12 _turn", 20),
        ("server/peer.py:40 _loop", 1),
        ("enum.py:3 __call__", 2),
    ]
    peer = next(each for each in by_module(functions) if each.module == "server/peer.py")
    assert (peer.calls, peer.own_s) == (21, pytest.approx(0.3))
    assert "70000.00 | 4.000 |" in function_rows(functions, updates=10, count=1)


def test_kills_in_one_line() -> None:
    assert summarize_kills([300.0, 1200.0, 200.0]) == {
        "kills": 3,
        "within 1 s": 2,
        "shortest ms": 200.0,
        "median ms": 300.0,
        "p90 ms": 1200.0,
        "p99 ms": 1200.0,
        "longest ms": 1200.0,
    }
    assert summarize_kills([float(number) for number in range(1, 101)])["p90 ms"] == 90.0
