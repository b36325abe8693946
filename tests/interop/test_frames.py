"""The same frames decoded by both sides: the same values, or refused by both; what differs is listed, with its reason.

`ZMQRAFT_INTEROP_FRAMES=1000000 pytest tests/interop/test_frames.py` decodes more, `--seed` others.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgpack

from support.node import NodeProgram
from zmqraft import ABSENT, FramesProtocol, Protocols
from zmqraft.errors import RemoteProtocolError
from zmqraft.testing.entries import random_entry

COUNT = int(os.environ.get("ZMQRAFT_INTEROP_FRAMES", "20000"))
RECORDED = Path(__file__).parents[1] / "compat"
PROTOCOLS: dict[str, FramesProtocol] = {
    protocol.name: protocol
    for protocol in (
        Protocols.REQUEST_VOTE,
        Protocols.APPEND_ENTRIES,
        Protocols.INSTALL_SNAPSHOT,
        Protocols.REQUEST_UPDATE,
        Protocols.CONFIG_UPDATE,
        Protocols.REQUEST_ENTRIES,
        Protocols.REQUEST_CONFIG,
        Protocols.REQUEST_LOG_INFO,
        Protocols.STATE_BROADCAST,
    )
}
BATCH = 1000
Message = tuple[str, str, list[bytes]]

#: The only difference that there may be: what zmq-raft decodes, and no correct sender sends, is refused by us. Why, and
#: how our error says it.
REFUSED_BY_US = [
    # A message goes by its type to the protocol that decodes it; zmq-raft does not look again.
    ("a message of another type", re.compile(r": type: expected ")),
    # zmq-raft passes over zero bytes beyond the 8th (SPEC section 1 has 1 to 8).
    ("an integer of more than 8 bytes", re.compile(r": a uint has 1 to 8 bytes, not ")),
    # zmq-raft reads numbers beyond 2^53 - 1 that are MessagePack, or the term of an entry, and rounds the first.
    ("an integer beyond 2^53 - 1", re.compile(r": an integer is at most |: a term is 0 to ")),
    # zmq-raft takes any frame for a log entry here, and looks at it when it appends it, or where the stream reads it.
    ("no log entry", re.compile(r": a log entry( has more than|'s type is) ")),
    # zmq-raft puts U+FFFD for what is not UTF-8, so that two ids may become one.
    ("no UTF-8", re.compile(r": not UTF-8 at byte |UnicodeDecodeError")),
    # zmq-raft passes over what follows the value, as when a frame has lost its beginning.
    ("bytes behind a value of MessagePack", re.compile(r"MessagePack: ExtraData")),
    # zmq-raft has these kinds of values too: keys that are no strings, and extension types. Nothing here has them.
    (
        "MessagePack of other kinds",
        re.compile(r"MessagePack: ValueError: (int is not allowed|code must be|.* is not )"),
    ),
]


# --- what is decoded ------------------------------------------------------------------------------------------------


def recorded() -> Iterator[Message]:
    for case in json.loads((RECORDED / "frames.json").read_text())["rpcs"]:
        if case["rpc"] in PROTOCOLS:
            direction = "request" if case["dir"] == "request" else "reply"
            yield case["rpc"], direction, [bytes.fromhex(frame) for frame in case["frames"]]


def generated(random: Random) -> Iterator[Message]:
    while True:
        name = random.choice(list(PROTOCOLS))
        direction = random.choice(["request", "reply"])
        if name == "StateBroadcast":
            direction = "request"
        frames = well_formed(random, PROTOCOLS[name], direction)
        while random.random() < 0.4:
            frames = changed(random, frames)
        yield name, direction, frames


def well_formed(random: Random, protocol: FramesProtocol, direction: str) -> list[bytes]:
    fields = protocol.request_fields if direction == "request" else protocol.response_fields
    frames: list[bytes] = []
    for field in fields:
        frames += random_frames(random, protocol, field)
    return frames


def random_frames(random: Random, protocol: FramesProtocol, field: str) -> list[bytes]:
    """The frames of a field of a message, by its name."""
    if field == "type":
        assert protocol.message_type is not None
        return [protocol.message_type]
    if field in ("secret", "data", "chunk"):
        return [random.randbytes(random.randrange(20))]
    if field in ("entries", "entries_or_chunk"):
        return [random_entry(random, 1, random.randrange(1, 2**20)).to_bytes() for _ in range(random.randrange(4))]
    if field in ("candidate_id", "leader_id") and protocol in (
        Protocols.REQUEST_VOTE,
        Protocols.APPEND_ENTRIES,
        Protocols.INSTALL_SNAPSHOT,
    ):
        return [random.choice(["1", "tcp://127.0.0.1:8047", "", "\u00e9\u4e2d\U0001f600"]).encode()]
    if field in ("ok", "granted", "success", "is_leader"):
        return [random.choice([b"", b"\x01", b"\x00", b"\xff", b"\x00\x01", b"\x01\x00"])]
    if field in ("peers", "leader_id", "index_or_leader_id", "index_or_leader_id_or_error", "leader_id_or_snapshot"):
        return [msgpack.packb(random_value(random))]
    return [random_uint(random)]


def random_uint(random: Random) -> bytes:
    if random.random() < 0.1:
        return b""
    value = random.randrange(2 ** random.choice([1, 8, 16, 24, 31, 32, 33, 48, 53]))
    size = max(1, (value.bit_length() + 7) // 8)
    return value.to_bytes(size + (random.randrange(3) if random.random() < 0.2 else 0), "little")


def random_value(random: Random, depth: int = 2) -> Any:
    """What MessagePack may hold on this wire: of zmq-raft's own kinds of values."""
    chosen = random.randrange(9 if depth else 7)
    if chosen == 7:
        return [random_value(random, depth - 1) for _ in range(random.randrange(4))]
    if chosen == 8:
        return {random.choice(["old", "new", "name", "message"]): random_value(random, depth - 1) for _ in range(2)}
    return random.choice(
        [
            None,
            True,
            False,
            "tcp://127.0.0.1:8047",
            random.randrange(-(2**31), 2 ** random.choice([7, 16, 31, 32, 53])),
            float(2 ** random.randrange(30, 53)),
            random.random(),
        ]
    )


def changed(random: Random, frames: Sequence[bytes]) -> list[bytes]:
    """The frames with one thing that a correct sender does not do."""
    frames = list(frames)
    chosen = random.randrange(7)
    if chosen == 0:
        return frames[: random.randrange(len(frames) + 1)]
    if chosen == 1:
        return [*frames, random.randbytes(random.randrange(30))]
    if not frames:
        return frames
    place = random.randrange(len(frames))
    frame = frames[place]
    if chosen == 2:
        frames[place] = frame[: random.randrange(len(frame) + 1)]
    elif chosen == 3:
        frames[place] = frame + bytes(random.randrange(1, 9))
    elif chosen == 4:
        frames[place] = random.randbytes(random.randrange(12))
    elif chosen == 5 and frame:
        at = random.randrange(len(frame))
        frames[place] = frame[:at] + bytes([frame[at] ^ 1 << random.randrange(8)]) + frame[at + 1 :]
    elif chosen == 6:
        del frames[place]
    return frames


# --- what comes out, in one form ------------------------------------------------------------------------------------


def by_us(message: Message) -> list[Any] | str:
    name, direction, frames = message
    protocol = PROTOCOLS[name]
    try:
        values = protocol.decode_request(frames) if direction == "request" else protocol.decode_response(frames)
    except RemoteProtocolError as error:
        return str(error)
    fields = protocol.request_fields if direction == "request" else protocol.response_fields
    # zmq-raft has repeated frames as values of their own, not as a list.
    if fields[-1:] in (("entries",), ("entries_or_chunk",)):
        values = (*values[:-1], *values[-1])
    return [plain(value) for value in values]


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return ("bytes", value)
    if value is ABSENT:
        return None
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def by_node(result: dict[str, Any]) -> list[Any] | str:
    return str(result["error"]) if "error" in result else [plain_of_node(value) for value in result["values"]]


def plain_of_node(value: Any) -> Any:
    if isinstance(value, list):
        return [plain_of_node(each) for each in value]
    if isinstance(value, dict):
        if "bytes" in value:
            return ("bytes", base64.b64decode(value["bytes"]))
        if "map" in value:
            return {key: plain_of_node(each) for key, each in value["map"]}
        return None if "absent" in value else {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[value["number"]]
    return value


def same(ours: list[Any], theirs: list[Any]) -> bool:
    """zmq-raft may leave values at the end out, where we have None for them."""
    length = max(len(ours), len(theirs))
    fill = [None] * length
    return rounded([*ours, *fill][:length]) == rounded([*theirs, *fill][:length])


def rounded(value: Any) -> Any:
    """Numbers as JavaScript has them: JSON shows a large float without its point."""
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(value) if type(value) in (int, float) else value


def test_both_decode_the_same(modules: Path, seed: int) -> None:
    random = Random(seed)
    messages = list(recorded())
    source = generated(random)
    messages += [next(source) for _ in range(COUNT - len(messages))]
    counts: Counter[str] = Counter()
    unexplained = []
    with NodeProgram(modules, "frames.js") as node:
        for start in range(0, len(messages), BATCH):
            batch = messages[start : start + BATCH]
            sent = [[name, way, [base64.b64encode(frame).decode() for frame in frames]] for name, way, frames in batch]
            for message, result in zip(batch, node.call("decode", messages=sent), strict=True):
                ours, theirs = by_us(message), by_node(result)
                verdict = compare(message, ours, theirs)
                counts[verdict] += 1
                if verdict == "unexplained":
                    unexplained.append((message, ours, theirs))
        node.close()
    assert not unexplained, (counts, unexplained[:5])
    # What was generated was neither all right nor all wrong.
    assert counts["same values"] > COUNT / 4
    assert counts["refused by both"] > COUNT / 20
    assert counts["no log entry"] > 0


def compare(message: Message, ours: list[Any] | str, theirs: list[Any] | str) -> str:
    """What is to be said of a message; "unexplained" is what must not be."""
    if isinstance(ours, str) and isinstance(theirs, str):
        return "refused by both"
    if isinstance(ours, list) and isinstance(theirs, list) and same(ours, theirs):
        return "same values"
    if isinstance(ours, str) and isinstance(theirs, list):
        return next((reason for reason, error in REFUSED_BY_US if error.search(ours)), "unexplained")
    return "unexplained"
