"""zmq-raft's clients with the methods and results of ours, so that one test runs over both.

The rule: what zmq-raft has decoded is compared, not what was on the wire; nothing is corrected on the way.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.command import PATIENCE_S
from support.node import NodeCallError, NodeProgram
from zmqraft import ClusterInfo, EntryType, LogEntry, LogInfo, RequestExpiredError, SnapshotChunk

__all__ = ["NodeClient", "NodeSubscriber", "entry_of", "item_of"]

#: In ms, for requests of zmq-raft's clients.
_TIMEOUT_MS = PATIENCE_S * 1000


def entry_of(value: dict[str, Any]) -> LogEntry:
    """A log entry of what a script tells."""
    return LogEntry(
        value["index"],
        value["term"],
        EntryType(value["type"]),
        bytes.fromhex(value["id"]),
        base64.b64decode(value["data"]),
    )


def item_of(value: dict[str, Any]) -> LogEntry | SnapshotChunk:
    """A log entry, or a chunk of a snapshot, of what a script tells."""
    if "chunk" not in value:
        return entry_of(value)
    return SnapshotChunk(
        value["index"], value["term"], value["offset"], value["size"], base64.b64decode(value["chunk"])
    )


class NodeClient:
    """A ZmqRaftClient, or with ``kind`` "peer" or "subscriber" a ZmqRaftPeerClient or ZmqRaftPeerSub, of zmq-raft."""

    def __init__(self, modules: Path, urls: Sequence[str], *, secret: str, kind: str = "cluster") -> None:
        self.program = NodeProgram(modules, "client.js")
        try:
            self.program.call("open", kind=kind, urls=list(urls), options={"secret": secret})
        except BaseException:
            self.program.kill()
            raise

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()

    def request_config(self) -> ClusterInfo:
        value = self.program.call("config", timeout=_TIMEOUT_MS)
        return ClusterInfo(value["isLeader"], value["leaderId"], tuple((id, url) for id, url in value["peers"]))

    def request_log_info(self) -> LogInfo:
        value = self.program.call("info", timeout=_TIMEOUT_MS, anyPeer=False)
        return LogInfo(
            value["isLeader"],
            value["leaderId"],
            value["currentTerm"],
            value["firstIndex"],
            value["lastApplied"],
            value["commitIndex"],
            value["lastIndex"],
            value["snapshotSize"],
            value["pruneIndex"],
        )

    def request_broadcast_url(self) -> str | None:
        url = self.program.call("broadcastUrl", timeout=_TIMEOUT_MS)
        return None if url is None else str(url)

    def request_update(self, request_id: bytes | None, data: bytes) -> int:
        id = self.program.call("newId") if request_id is None else request_id.hex()
        try:
            return int(self.program.call("update", id=id, data=_text(data), timeout=_TIMEOUT_MS))
        except NodeCallError as error:
            if "expired" in error.message:
                raise RequestExpiredError(error.message) from None
            raise

    def request_config_update(self, request_id: bytes | None, peers: Sequence[tuple[str, str]]) -> int:
        id = self.program.call("newId") if request_id is None else request_id.hex()
        return int(self.program.call("configUpdate", id=id, peers=list(peers), timeout=_TIMEOUT_MS))

    def request_updates(self, updates: Sequence[tuple[bytes, bytes]], in_flight: int) -> list[int]:
        pairs = [[request_id.hex(), _text(data)] for request_id, data in updates]
        indexes = self.program.call("updates", updates=pairs, inFlight=in_flight, timeout=_TIMEOUT_MS)
        return [int(index) for index in indexes]

    def request_entries(
        self, previous_index: int = 0, *, count: int | None = None, snapshot_offset: int | None = None
    ) -> list[LogEntry | SnapshotChunk]:
        """By the callback, to the end."""
        items, complete = self.receive_entries(previous_index, count=count, snapshot_offset=snapshot_offset)
        assert complete
        return items

    def receive_entries(
        self,
        previous_index: int = 0,
        *,
        count: int | None = None,
        snapshot_offset: int | None = None,
        stop_after: int | None = None,
    ) -> tuple[list[LogEntry | SnapshotChunk], bool]:
        """By the callback, which says after so many replies that it has enough; and whether all was received."""
        value = self.program.call(
            "entries",
            previousIndex=previous_index,
            count=count,
            snapshotOffset=snapshot_offset,
            stopAfter=stop_after,
            timeout=_TIMEOUT_MS,
        )
        return list(map(item_of, value["items"])), value["complete"]

    def stream_entries(self, previous_index: int = 0, *, count: int | None = None) -> list[LogEntry | SnapshotChunk]:
        """By the stream. With entries of very different sizes zmq-raft's own may stall (see test_clients)."""
        options = {} if count is None else {"count": count}
        return list(map(item_of, self.program.call("stream", previousIndex=previous_index, options=options)))


class NodeSubscriber:
    """A ZmqRaftSubscriber of zmq-raft, or with ``kind`` "peer" the stream of a ZmqRaftPeerSub."""

    def __init__(
        self, modules: Path, urls: Sequence[str], *, secret: str, last_index: int = 0, kind: str = "cluster"
    ) -> None:
        options = json.dumps({"secret": secret, "lastIndex": last_index})
        self.program = NodeProgram(modules, "subscriber.js", kind, options, *urls)

    def __enter__(self) -> NodeSubscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()

    def write(self, request_id: bytes, data: bytes) -> None:
        """Make an update by the writing side."""
        self.program.call("write", id=request_id.hex(), data=_text(data))

    def received(self) -> Iterator[LogEntry | SnapshotChunk]:
        """All that came so far."""
        return (item_of(event["item"]) for event in list(self.program.events) if event["event"] == "item")

    def wait_index(self, index: int) -> list[LogEntry | SnapshotChunk]:
        """All that came, up to the entry at ``index``."""

        def has_index(events: list[dict[str, Any]]) -> bool:
            items = (event["item"] for event in reversed(events) if event["event"] == "item")
            return any(item["index"] >= index for item in itertools.islice(items, 1))

        self.program.wait_events(has_index, f"the entry {index}")
        return list(self.received())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
