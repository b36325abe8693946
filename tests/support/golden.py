"""What zmq-raft for Node.js produced, from tests/compat."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from zmqraft.constants import ABSENT
from zmqraft.protocol import Protocols

COMPAT: Final = Path(__file__).resolve().parent.parent / "compat"


def load(name: str) -> Any:
    """The content of a JSON file in tests/compat."""
    return json.loads((COMPAT / name).read_text(encoding="utf-8"))


def golden_value(value: Any) -> Any:
    """A value of frames.json: JSON has neither bytes nor anything for what is absent."""
    if isinstance(value, dict) and value.keys() == {"bytes"}:
        return bytes.fromhex(value["bytes"])
    return ABSENT if value == {"absent": True} else value


def protocol_name(rpc: str) -> str:
    """``RequestVote`` is ``Protocols.REQUEST_VOTE``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", rpc).upper()


def golden_values(case: dict[str, Any]) -> list[Any]:
    """The values of a case of frames.json, as FramesProtocol takes them: a repeated field is one list."""
    values = [golden_value(value) for value in case["values"]]
    protocol = getattr(Protocols, protocol_name(case["rpc"]))
    fields = protocol.request_fields if case["dir"] == "request" else protocol.response_fields
    if fields[-1] in ("entries", "entries_or_chunk") and len(values) >= len(fields):
        values[len(fields) - 1 :] = [values[len(fields) - 1 :]]
    return values


def golden_frames(case: dict[str, Any]) -> list[bytes]:
    """The frames of a case of frames.json."""
    return [bytes.fromhex(frame) for frame in case["frames"]]
