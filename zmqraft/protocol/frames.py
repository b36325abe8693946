"""Frames: the bytes of the scalars and of whole messages, compiled or pure; see `zmqraft.protocol._frames`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmqraft._accel import EXTENSIONS

if TYPE_CHECKING or not EXTENSIONS:
    from zmqraft.protocol._frames import (
        MessageCodec,
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
else:
    from zmqraft._speedups.frames import (
        MessageCodec,
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

__all__ = [
    "MessageCodec",
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
]
