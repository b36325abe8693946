"""Request ids: made as ObjectIds, unique in every thread and process (SPEC section 1, "Request id")."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from support.process import run_python
from zmqraft.protocol import request_id
from zmqraft.protocol.request_id import (
    new_request_id,
    request_id_from_text,
    request_id_seconds,
    request_id_to_base64,
)


def test_the_parts() -> None:
    made = new_request_id(0x5956DC88)
    assert len(made) == 12
    assert made[:4].hex() == "5956dc88"
    assert made[4:7] == hashlib.md5(socket.gethostname().encode(), usedforsecurity=False).digest()[:3]
    assert made[7:9] == (os.getpid() & 0xFFFF).to_bytes(2, "big")
    assert request_id_seconds(made) == 0x5956DC88


def test_the_counter_goes_up_by_one_and_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_id._generator, "_counter", 2**24 - 2)
    assert [new_request_id()[9:].hex() for _ in range(3)] == ["ffffff", "000000", "000001"]


def test_the_time_is_now_and_in_whole_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1234567.9)
    assert request_id_seconds(new_request_id()) == 1234567


def test_threads_never_get_the_same() -> None:
    made: list[bytes] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        made.extend([new_request_id(0) for _ in range(5000)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 20_000


FORK = """
import os
from zmqraft.protocol.request_id import new_request_id
before = new_request_id(0)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, new_request_id(0))
    os._exit(0)
os.waitpid(child, 0)
print(child & 0xFFFF, before.hex(), new_request_id(0).hex(), os.read(reader, 12).hex())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_gets_others(tmp_path: Path) -> None:
    done = run_python(FORK, tmp_path)
    assert done.returncode == 0, done.stderr
    child, *ids = done.stdout.split()
    before, after, forked = (bytes.fromhex(text) for text in ids)
    assert int.from_bytes(after[9:], "big") == (int.from_bytes(before[9:], "big") + 1) % 2**24
    assert forked[7:9] == int(child).to_bytes(2, "big")
    assert forked[9:] != after[9:]


def test_text() -> None:
    made = bytes.fromhex("5956dc8826f27e10dcccab20")
    assert request_id_to_base64(made) == "WVbciCbyfhDczKsg"
    assert request_id_from_text("WVbciCbyfhDczKsg") == made
    assert request_id_from_text("5956dc8826f27e10dcccab20") == made
    assert request_id_from_text("5956DC8826F27E10DCCCAB20") == made


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "5956dc8826f27e10dcccab2", "5956dc8826f27e10dcccab2x", "59 56 dc8826f27e10dcccab2"),
        *("WVbciCbyfhDczKs", "WVbciCbyfhDczKs=", "WVbciCbyfhDczK==", "WVbciCbyfhDczK\n\n", "WVbc_CbyfhDczKsg"),
        *("ąVbciCbyfhDczKsg", "WVbciCbyfhDczKsgWVbciCbyfhDczKsg"),
    ],
)
def test_what_is_not_a_request_id(text: str) -> None:
    with pytest.raises(ValueError, match="not a request id"):
        request_id_from_text(text)
