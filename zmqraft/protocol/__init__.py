"""Bytes to messages and back: frames, the schema of every message, log entries, request ids (SPEC sections 1 and 2).

Knows nothing of sockets, files or Raft. The rule: every byte from outside comes in through here and is validated; what
raises is RemoteProtocolError, and the message is to be dropped and counted.
"""

from __future__ import annotations

from zmqraft.constants import ABSENT
from zmqraft.protocol.entry import EntryBatch, EntryType, LogEntry
from zmqraft.protocol.frames import (
    check_entries,
    check_entry,
    decode_bool,
    decode_bytes,
    decode_json,
    decode_nuint,
    decode_request_id,
    decode_string,
    decode_uint,
    encode_bool,
    encode_bytes,
    encode_entry,
    encode_json,
    encode_nuint,
    encode_request_id,
    encode_string,
    encode_uint,
)
from zmqraft.protocol.request_id import (
    new_request_id,
    request_id_from_text,
    request_id_seconds,
    request_id_to_base64,
)
from zmqraft.protocol.schema import FramesProtocol, Protocols

__all__ = [
    "ABSENT",
    "EntryBatch",
    "EntryType",
    "FramesProtocol",
    "LogEntry",
    "Protocols",
    "check_entries",
    "check_entry",
    "decode_bool",
    "decode_bytes",
    "decode_json",
    "decode_nuint",
    "decode_request_id",
    "decode_string",
    "decode_uint",
    "encode_bool",
    "encode_bytes",
    "encode_entry",
    "encode_json",
    "encode_nuint",
    "encode_request_id",
    "encode_string",
    "encode_uint",
    "new_request_id",
    "request_id_from_text",
    "request_id_seconds",
    "request_id_to_base64",
]
