"""Every message of SPEC section 2, both ways, and what a message that is not one raises."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest

from support.golden import golden_frames, golden_values, load, protocol_name
from zmqraft import constants
from zmqraft.constants import ABSENT
from zmqraft.errors import LocalProtocolError, RemoteProtocolError
from zmqraft.protocol import EntryBatch
from zmqraft.protocol import Protocols as Chosen

GOLDEN = load("frames.json")["rpcs"]
CONVERSATIONS = load("conversations.json")["cases"]
ENTRY = bytes.fromhex("5956dc8826f27e10dcccab20002a000000000000666f6f")
REQUESTS = {
    "REQUEST_VOTE": (b"?", b"secret", "01", 5, 1234, 4),
    "APPEND_ENTRIES": (b"+", b"secret", "01", 5, 1234, 4, 1200, [ENTRY, ENTRY]),
    "INSTALL_SNAPSHOT": (b"$", b"secret", "01", 5, 1000, 4, 0, 10, b"0123456789"),
    "REQUEST_UPDATE": (b"=", b"secret", b"some data"),
    "CONFIG_UPDATE": (b"&", b"secret", [["1", "tcp://127.0.0.1:8047"]]),
    "REQUEST_ENTRIES": (b"<", b"secret", 10, None, 65536),
    "REQUEST_CONFIG": (b"^", b"secret"),
    "REQUEST_LOG_INFO": (b"%", b"secret"),
    "REQUEST_BROADCAST_URL": (b"*", b"secret"),
    "REQUEST_WEB_MONITOR_URL": (b"W", b"secret"),
    "CAPABILITIES": (b"zmqraft", b"secret"),
    "COMMIT_NOTICE": (b"zmqraft.commit", b"secret", "id", 7, 1234),
    "OWN_INSTALL_SNAPSHOT": (b"zmqraft.snapshot", b"secret", "01", 5, 1000, 4, 0, 10, b"0123456789", 4),
    "INTRODUCTION": (b"zmqraft.member", b"secret", "01"),
    "TRANSFER_NOTICE": (b"zmqraft.transfer", b"secret", "01", 5, "02"),
    "READ_INDEX": (b"zmqraft.read", b"secret"),
    "STATE_BROADCAST": (b"secret", 5, 1235, [ENTRY]),
}


def names(case: dict[str, Any]) -> str:
    return f"{case['rpc']}-{case['dir']}"


def coders(schema: ModuleType, case: dict[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
    protocol = getattr(schema.Protocols, protocol_name(case["rpc"]))
    if case["dir"] == "request":
        return protocol.encode_request, protocol.decode_request, protocol.request_fields
    return protocol.encode_response, protocol.decode_response, protocol.response_fields


@pytest.mark.parametrize("case", GOLDEN, ids=names)
def test_golden_encode(schema: ModuleType, case: dict[str, Any]) -> None:
    encode, _, _ = coders(schema, case)
    assert encode(*golden_values(case)) == golden_frames(case)


@pytest.mark.parametrize("case", GOLDEN, ids=names)
def test_golden_decode(schema: ModuleType, case: dict[str, Any]) -> None:
    encode, decode, fields = coders(schema, case)
    frames = golden_frames(case)
    values = decode(frames)
    assert len(values) == len(fields)
    expected = golden_values(case)
    while expected and expected[-1] is ABSENT:
        expected.pop()
    assert list(values[: len(expected)]) == expected
    assert all(value is None or value is ABSENT or value == [] for value in values[len(expected) :])
    assert encode(*values) == frames


def whole(messages: list[list[str]]) -> list[list[bytes]]:
    """The frames of recorded messages, but for those of which the record has shortened a frame."""
    return [[bytes.fromhex(f) for f in message] for message in messages if not any("..." in f for f in message)]


@pytest.mark.parametrize("case", [case for case in CONVERSATIONS if "send" in case], ids=lambda case: case["case"])
def test_recorded_conversations_decode(schema: ModuleType, case: dict[str, Any]) -> None:
    """Every recorded request and reply is one of the schema, but for the two that are meant not to be."""
    by_type = {p.message_type: p for name, p in vars(schema.Protocols).items() if name.isupper()}
    _, message_type, *rest = [bytes.fromhex(frame) for frame in case["send"]]
    if message_type not in by_type:
        assert case["replies"] == []
    elif case["case"] in ("RequestUpdate, no data frame", "missing secret"):
        with pytest.raises(RemoteProtocolError, match="at least"):
            by_type[message_type].decode_request([message_type, *rest])
    else:
        by_type[message_type].decode_request([message_type, *rest])
        for _, *reply in whole(case["replies"]):
            by_type[message_type].decode_response(reply)


def test_recorded_broadcasts_decode(schema: ModuleType) -> None:
    (case,) = (case for case in CONVERSATIONS if "messages" in case)
    messages = whole([message for _, message in case["messages"]])
    assert messages
    for message in messages:
        secret, term, last_applied, entries = schema.Protocols.STATE_BROADCAST.decode_request(message)
        assert (secret, term) == (b"sekret", 1)
        assert last_applied >= len(entries)


def test_every_message_has_a_golden_case_or_stands_here() -> None:
    """Those that zmq-raft's frames.json does not have: the two urls and ours."""
    in_table = {name for name in vars(Chosen) if name.isupper()}
    assert in_table - {protocol_name(case["rpc"]) for case in GOLDEN} == {
        "CAPABILITIES",
        "COMMIT_NOTICE",
        "INTRODUCTION",
        "OWN_INSTALL_SNAPSHOT",
        "READ_INDEX",
        "REQUEST_BROADCAST_URL",
        "REQUEST_WEB_MONITOR_URL",
        "TRANSFER_NOTICE",
    }
    assert in_table == REQUESTS.keys()


def test_urls(schema: ModuleType) -> None:
    broadcast, monitor = schema.Protocols.REQUEST_BROADCAST_URL, schema.Protocols.REQUEST_WEB_MONITOR_URL
    assert broadcast.encode_request(b"*", b"secret") == [b"*", b"secret"]
    assert broadcast.encode_response("tcp://127.0.0.1:9141") == [b"tcp://127.0.0.1:9141"]
    assert broadcast.decode_response([b"tcp://127.0.0.1:9141"]) == ("tcp://127.0.0.1:9141",)
    assert broadcast.encode_response() == broadcast.encode_response(None) == []
    assert broadcast.decode_response([]) == (None,)
    assert monitor.encode_request(b"W", b"secret") == [b"W", b"secret"]
    assert monitor.decode_response([b"http://localhost:8050"]) == ("http://localhost:8050",)
    with pytest.raises(RemoteProtocolError):
        monitor.decode_response([])


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_round_trip(schema: ModuleType, name: str) -> None:
    protocol = getattr(schema.Protocols, name)
    frames = protocol.encode_request(*REQUESTS[name])
    assert protocol.decode_request(frames) == REQUESTS[name]
    assert protocol.decode_request(tuple(frames)) == REQUESTS[name]


@pytest.mark.parametrize("name", REQUESTS)
def test_every_shorter_request_is_refused_or_complete(schema: ModuleType, name: str) -> None:
    protocol = getattr(schema.Protocols, name)
    frames = protocol.encode_request(*REQUESTS[name])
    required = {"APPEND_ENTRIES": 7, "REQUEST_ENTRIES": 3, "STATE_BROADCAST": 3}.get(name, len(frames))
    for count in range(len(frames)):
        if count < required:
            with pytest.raises(RemoteProtocolError, match=f"at least {required} frames, not {count}"):
                protocol.decode_request(frames[:count])
        else:
            assert len(protocol.decode_request(frames[:count])) == len(protocol.request_fields)


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in ("APPEND_ENTRIES", "STATE_BROADCAST")])
def test_frames_beyond_the_schema_are_ignored(schema: ModuleType, name: str) -> None:
    protocol = getattr(schema.Protocols, name)
    frames = protocol.encode_request(*REQUESTS[name])
    assert protocol.decode_request([*frames, b"of a later version", b""]) == REQUESTS[name]


def test_a_bad_entry_among_good_ones_is_refused(schema: ModuleType) -> None:
    protocol = schema.Protocols.APPEND_ENTRIES
    frames = protocol.encode_request(*REQUESTS["APPEND_ENTRIES"])
    for bad in (b"", ENTRY[:20], b"\xff" * 30):
        with pytest.raises(RemoteProtocolError, match="AppendEntries request: entries: "):
            protocol.decode_request([*frames, bad, ENTRY])
        with pytest.raises(LocalProtocolError, match="AppendEntries request: entries: "):
            protocol.encode_request(*REQUESTS["APPEND_ENTRIES"][:-1], [ENTRY, bad])


def test_the_entries_of_a_message_make_a_batch(schema: ModuleType) -> None:
    protocol = schema.Protocols.APPEND_ENTRIES
    *_, frames = protocol.decode_request(protocol.encode_request(*REQUESTS["APPEND_ENTRIES"]))
    batch = EntryBatch.from_checked_frames(1235, frames)
    assert batch == EntryBatch.from_frames(1235, [ENTRY, ENTRY])
    assert protocol.encode_request(*REQUESTS["APPEND_ENTRIES"][:-1], batch.frames())[-2:] == [ENTRY, ENTRY]


def test_an_empty_frame_is_null_for_nuint_only(schema: ModuleType) -> None:
    entries = schema.Protocols.REQUEST_ENTRIES
    assert entries.decode_request([b"<", b"secret", b"\x0a", b""]) == (b"<", b"secret", 10, None, None)
    with pytest.raises(RemoteProtocolError, match="snapshot_offset: a uint has 1 to 8 bytes, not 0"):
        entries.decode_request([b"<", b"secret", b"\x0a", b"", b""])
    with pytest.raises(RemoteProtocolError, match="conflict_index: a uint has"):
        schema.Protocols.APPEND_ENTRIES.decode_response([b"\x05", b"", b""])
    with pytest.raises(RemoteProtocolError, match="conflict_term: a uint has"):
        schema.Protocols.APPEND_ENTRIES.decode_response([b"\x05", b"", b"\x11", b""])


def test_null_and_absent_are_told_apart(schema: ModuleType) -> None:
    """`false` with null: not the leader, and none is known. `false` alone: refused for ever (SPEC "Updates")."""
    protocol = schema.Protocols.REQUEST_UPDATE
    assert protocol.decode_response([b"", b"\xc0"]) == (False, None)
    assert protocol.decode_response([b""]) == (False, ABSENT)
    assert protocol.encode_response(False, None) == [b"", b"\xc0"]
    assert protocol.encode_response(False, ABSENT) == protocol.encode_response(False) == [b""]
    assert not ABSENT


def test_what_is_not_at_the_end_cannot_be_absent(schema: ModuleType) -> None:
    append = schema.Protocols.APPEND_ENTRIES
    with pytest.raises(LocalProtocolError, match="AppendEntries reply: conflict_index: "):
        append.encode_response(5, False, None, 3)
    with pytest.raises(LocalProtocolError, match="RequestEntries reply: last_index is missing"):
        schema.Protocols.REQUEST_ENTRIES.encode_response(1, None, None, [ENTRY])
    with pytest.raises(LocalProtocolError, match="AppendEntries request: commit_index is missing"):
        append.encode_request(*REQUESTS["APPEND_ENTRIES"][:6])
    with pytest.raises(LocalProtocolError, match="AppendEntries reply: term: expected an int, not NoneType"):
        append.encode_response(None, False)


def test_a_required_json_is_null_but_not_absent(schema: ModuleType) -> None:
    protocol = schema.Protocols.REQUEST_CONFIG
    assert protocol.encode_response(False, None, []) == [b"", b"\xc0", b"\x90"]
    with pytest.raises(LocalProtocolError, match="RequestConfig reply: leader_id: json has no Absent"):
        protocol.encode_response(False, ABSENT, [])


def test_another_type_is_refused(schema: ModuleType) -> None:
    frames = schema.Protocols.REQUEST_CONFIG.encode_request(b"^", b"secret")
    with pytest.raises(RemoteProtocolError, match=r"RequestLogInfo request: type: expected b'%', not b'\^'"):
        schema.Protocols.REQUEST_LOG_INFO.decode_request(frames)
    with pytest.raises(LocalProtocolError, match="RequestConfig request: type: expected"):
        schema.Protocols.REQUEST_CONFIG.encode_request(b"%", b"secret")


def test_an_error_names_message_and_field(schema: ModuleType) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^RequestVote request: last_index: a uint has 1 to 8 bytes, not 0$"):
        schema.Protocols.REQUEST_VOTE.decode_request([b"?", b"secret", b"01", b"\x05", b"", b"\x04"])
    with pytest.raises(LocalProtocolError, match=r"^RequestVote reply: granted: expected a bool, not int$"):
        schema.Protocols.REQUEST_VOTE.encode_response(5, 1)
    with pytest.raises(LocalProtocolError, match=r"^RequestVote reply has at most 2 fields, not 3$"):
        schema.Protocols.REQUEST_VOTE.encode_response(5, True, True)


@pytest.mark.parametrize("frames", [None, 1, "?", b"?", {}, [None], ["?"] * 9, [1] * 9, [[]] * 9])
def test_what_is_not_frames_is_refused(schema: ModuleType, frames: Any) -> None:
    for name in REQUESTS:
        with pytest.raises(RemoteProtocolError):
            getattr(schema.Protocols, name).decode_request(frames)


@pytest.mark.parametrize("entries", [None, ENTRY, "entries", 5, {}])
def test_a_repeated_field_takes_a_list(schema: ModuleType, entries: Any) -> None:
    with pytest.raises(LocalProtocolError, match="entries: expected a list"):
        schema.Protocols.APPEND_ENTRIES.encode_request(*REQUESTS["APPEND_ENTRIES"][:-1], entries)


def test_a_message_of_ones_own(schema: ModuleType) -> None:
    protocol = schema.FramesProtocol("Ping", b"PING", "id:reqid count:nuint?", "pong:bool rest:string*")
    frames = protocol.encode_request(b"PING", b"secret", bytes(12), 7)
    assert frames == [b"PING", b"secret", bytes(12), b"\x07"]
    assert protocol.decode_request(frames[:3]) == (b"PING", b"secret", bytes(12), None)
    assert protocol.decode_response([b"\x01", b"a", b"b"]) == (True, ["a", "b"])
    assert repr(protocol) == "<FramesProtocol Ping>"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("a:float", "unknown type 'float' of a"),
        ("a", "unknown type '' of a"),
        ("a:uint? b:uint", "b comes after one that may be absent"),
        ("a:uint* b:uint", "b comes after a field that is repeated"),
        ("a:uint* b:uint*", "b comes after a field that is repeated"),
    ],
)
def test_a_schema_that_cannot_be_read(schema: ModuleType, wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema.FramesProtocol("Wrong", b"WR", wrong, "")


def test_a_codec_checks_what_it_is_made_of(frames: ModuleType) -> None:
    with pytest.raises(ValueError, match="2 fields of 1 kinds"):
        frames.MessageCodec("Wrong", ("a", "b"), "u", 1, False, None)
    with pytest.raises(ValueError, match="first field is not bytes"):
        frames.MessageCodec("Wrong", ("a",), "u", 1, False, b"W")
    with pytest.raises(KeyError, match="x"):
        frames.MessageCodec("Wrong", ("a",), "x", 1, False, None)


def test_message_types_are_those_of_the_constants() -> None:
    for name, value in inspect.getmembers(Chosen):
        if name.isupper() and name != "STATE_BROADCAST":
            assert value.message_type == getattr(constants, name)
