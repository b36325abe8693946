"""Everything that decodes bytes from the network, pure and compiled: it refuses what is wrong, and both agree.

The only error that may come out of a decoder is RemoteProtocolError (LocalProtocolError and ValueError where a program
gives the bytes); and what a decoder takes, it gives back as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import ModuleType
from typing import Any

import pytest

from support.fuzzing import corpus_of, fuzz, mutated, mutated_frames
from support.golden import golden_frames, load
from support.twins import BUILDS, module_over, twin
from zmqraft.client.requests import decode_cluster_info
from zmqraft.errors import LocalProtocolError, RemoteProtocolError, ZmqRaftError
from zmqraft.protocol import EntryBatch, LogEntry, Protocols
from zmqraft.storage.snapshot_context import parse_context

CASES = load("frames.json")
MESSAGES: dict[str, list[list[bytes]]] = {}
for _case in CASES["rpcs"]:
    MESSAGES.setdefault(f"{_case['rpc']} {_case['dir']}", []).append(golden_frames(_case))
ALL_FRAMES = [frames for messages in MESSAGES.values() for frames in messages]
FRAMES = sorted({frame for frames in ALL_FRAMES for frame in frames})
ENTRIES = [
    LogEntry.checkpoint(1, 1).to_bytes(),
    b"\x01" * 12 + b"\0" + b"\x02" + b"\0" * 6 + b"data",
    b"\x02" * 12 + b"\x01" + b"\x03" + b"\0" * 6 + bytes.fromhex("9192a131b07463703a2f2f3132372e302e302e313a31"),
]
SCALARS = (
    "decode_bytes",
    "decode_string",
    "decode_uint",
    "decode_nuint",
    "decode_bool",
    "decode_json",
    "decode_request_id",
    "check_entry",
)
PROTOCOLS = sorted(name for name in vars(Protocols) if name.isupper())


def outcome(call: Callable[[], Any], *allowed: type[Exception]) -> object:
    """What comes out, in a form that can be compared between twins."""
    try:
        result = call()
    except (RemoteProtocolError, *allowed) as error:
        return type(error).__name__, str(error)
    return repr(result)


def test_there_are_golden_messages() -> None:
    assert len(ALL_FRAMES) > 20
    assert len(FRAMES) > 20


@pytest.mark.parametrize("name", SCALARS)
def test_scalars(name: str, seed: int, fuzz_seconds: float | None) -> None:
    decoders = [getattr(twin("frames", build), name) for build in BUILDS]

    def draw(random: Random) -> bytes:
        return mutated(random, random.choice(FRAMES + ENTRIES), FRAMES)

    def check(frame: object) -> None:
        assert len({str(outcome(lambda d=decode: d(frame))) for decode in decoders}) == 1

    for frame in corpus_of("scalars"):
        check(frame)
    assert fuzz(seed, fuzz_seconds, draw, check)


@pytest.mark.parametrize("direction", ["request", "response"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_messages(name: str, direction: str, seed: int, fuzz_seconds: float | None) -> None:
    schemas: list[ModuleType] = [module_over("zmqraft.protocol.schema", "frames", build) for build in BUILDS]
    protocols = [getattr(schema.Protocols, name) for schema in schemas]

    def draw(random: Random) -> list[bytes]:
        frames = mutated_frames(random, ALL_FRAMES)
        if direction == "request" and frames and random.random() < 0.8:
            frames[0] = protocols[0].message_type or frames[0]
        return frames

    def check(frames: object) -> None:
        results = []
        for protocol in protocols:
            decode = getattr(protocol, f"decode_{direction}")
            results.append(outcome(lambda d=decode: d(frames)))
        assert len(set(map(str, results))) == 1
        if isinstance(results[0], str):
            # What was taken can be sent on.
            protocol = protocols[0]
            values = getattr(protocol, f"decode_{direction}")(frames)
            again = getattr(protocol, f"encode_{direction}")(*values)
            assert str(getattr(protocol, f"decode_{direction}")(again)) == str(values)

    assert fuzz(seed, fuzz_seconds, draw, check)


def test_batches(seed: int, fuzz_seconds: float | None) -> None:
    modules = [twin("log_index", build) for build in BUILDS]

    def draw(random: Random) -> list[bytes]:
        return [
            frame if random.random() < 0.7 else mutated(random, frame, ENTRIES)
            for frame in random.choices(ENTRIES, k=random.randint(0, 6))
        ]

    def check(frames: object) -> None:
        assert isinstance(frames, list)
        results = set()
        for module in modules:
            made = outcome(lambda m=module: m.EntryBatch.from_frames(5, frames).frames())
            built = outcome(lambda m=module: _built(m, frames))
            results.add((str(made), str(built)))
        assert len(results) == 1

    assert fuzz(seed, fuzz_seconds, draw, check)


def _built(module: ModuleType, frames: list[bytes]) -> list[bytes]:
    builder = module.BatchBuilder()
    for frame in frames:
        builder.append_frame(frame)
    batch: EntryBatch = builder.finish(5)
    return batch.frames()


def test_tables(seed: int, fuzz_seconds: float | None) -> None:
    """Entries as an index file has them: the bytes, and the offsets of their ends."""
    modules = [twin("log_index", build) for build in BUILDS]

    def draw(random: Random) -> tuple[bytes, list[int]]:
        frames = random.choices(ENTRIES, k=random.randint(1, 5))
        ends = [sum(map(len, frames[: number + 1])) for number in range(len(frames))]
        data = b"".join(frames)
        if random.random() < 0.5:
            data = mutated(random, data, ENTRIES)
        if random.random() < 0.5:
            ends[random.randrange(len(ends))] = random.choice((0, 1, 19, 20, len(data), len(data) + 1, 2**32 - 1))
        return data, ends

    def check(value: object) -> None:
        data, ends = value  # type: ignore[misc]
        results = {
            str(outcome(lambda m=module: m.EntryBatch.from_buffer(1, data, ends).frames(), ValueError, IndexError))
            for module in modules
        }
        assert len(results) == 1

    assert fuzz(seed, fuzz_seconds, draw, check)


def test_packed_request_ids(seed: int, fuzz_seconds: float | None) -> None:
    modules = [twin("request_index", build) for build in BUILDS]
    records = [bytes([number]) * 12 + number.to_bytes(8, "little") for number in range(1, 6)]

    def draw(random: Random) -> bytes:
        data = b"".join(records[: random.randint(0, 5)])
        return mutated(random, data, records) if random.random() < 0.9 else data

    def check(data: object) -> None:
        results = set()
        for module in modules:
            index = module.RequestIndex(None)
            results.add(str(outcome(lambda i=index: i.add_packed(data, 10), ValueError)) + str(len(index)))
        assert len(results) == 1

    assert fuzz(seed, fuzz_seconds, draw, check)


def test_the_context_of_a_snapshot(seed: int, fuzz_seconds: float | None) -> None:
    from zmqraft.api import SnapshotContext
    from zmqraft.storage.snapshot_context import encode_context

    good = encode_context(SnapshotContext([("1", "tcp://127.0.0.1:1")], 3, bytes(12) + (1).to_bytes(8, "little"), 5))

    def check(data: object) -> None:
        assert isinstance(data, bytes)
        outcome(lambda: parse_context(data), ValueError)

    assert fuzz(seed, fuzz_seconds, lambda random: mutated(random, good), check)


def test_what_clients_learn_of_a_cluster(seed: int, fuzz_seconds: float | None) -> None:
    good = [b"\x01", b"\xa11", bytes.fromhex("9192a131b07463703a2f2f3132372e302e302e313a31")]

    def check(frames: object) -> None:
        assert isinstance(frames, list)
        outcome(lambda: decode_cluster_info(frames))

    assert fuzz(seed, fuzz_seconds, lambda random: mutated_frames(random, [good]), check)


def test_updates_at_the_intake(seed: int, fuzz_seconds: float | None) -> None:
    """Whatever arrives, both twins take the same, and make the same entries of it."""
    update = [b"identity", bytes(3) + b"\x10" + bytes(8), b"=", b"secret", b"data"]
    intakes = []
    for build in BUILDS:
        module = twin("commit_loop", build)
        waiting = module.WaitingUpdates()
        intakes.append((module.Intake(b"secret", 100, waiting, lambda request_id: None), waiting))

    def draw(random: Random) -> list[bytes]:
        frames = mutated_frames(random, [update, *ALL_FRAMES])
        return frames if random.random() < 0.7 else [*update[:1], random.randbytes(12), *update[2:]]

    def check(frames: object) -> None:
        results = set()
        for intake, waiting in intakes:
            intake.open(3, 7, after_seconds=-1.0, before_seconds=2.0**32, room_count=10, room_size=1000)
            taken = intake.offer(frames)
            batch = intake.take()
            results.add((taken, len(waiting), None if batch is None else bytes(batch.data)))
            intake.close()
        assert len(results) == 1

    assert fuzz(seed, fuzz_seconds, draw, check)


def test_errors_are_ours() -> None:
    assert issubclass(RemoteProtocolError, ZmqRaftError)
    assert issubclass(LocalProtocolError, ValueError)
