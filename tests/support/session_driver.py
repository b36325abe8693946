"""Drives a `ClientSession` by hand: virtual time, no socket, and every message in plain sight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zmqraft.client.requests import Request, UpdateRequest
from zmqraft.client.session import ClientSession
from zmqraft.constants import ABSENT
from zmqraft.protocol.entries_flow import EntriesItem
from zmqraft.protocol.entry import EntryType, LogEntry
from zmqraft.protocol.request_id import new_request_id
from zmqraft.protocol.schema import FramesProtocol, Protocols

SECRET = b"secret"
URLS = {"1": "tcp://10.0.0.1:8047", "2": "tcp://10.0.0.2:8047", "3": "tcp://10.0.0.3:8047"}
PEERS = [[peer_id, url] for peer_id, url in URLS.items()]
TIMEOUT_S = 0.5
GRACE_S = 0.3


class Sink:
    """Records how a request ended, and what a stream brought."""

    def __init__(self) -> None:
        self.ends: list[object] = []
        self.items: list[EntriesItem] = []

    def put(self, item: EntriesItem, /) -> None:
        self.items.append(item)

    def set_result(self, result: object, /) -> None:
        self.ends.append(result)

    def set_exception(self, exception: BaseException, /) -> None:
        self.ends.append(exception)

    @property
    def pending(self) -> bool:
        return not self.ends

    @property
    def result(self) -> Any:
        """The one end of the request; fails when there was none, or more than one."""
        (end,) = self.ends
        return end


@dataclass(frozen=True)
class Sent:
    """A message that the session sent: where to, and its frames."""

    url: str
    id: bytes
    type: bytes
    arguments: tuple[bytes, ...]


class Driver:
    """A session, its clock, and the connection that it wants."""

    def __init__(self, session: ClientSession) -> None:
        self.session = session
        self.now = 1000.0
        self.unread: list[Sent] = []
        self.links: list[str | None] = []
        self._link = session.link

    @classmethod
    def following(cls, *, peers: list[tuple[str | None, str]] | None = None, heartbeat_s: float = 0.0) -> Driver:
        """A session that follows the leader, with the three peers as seeds, in order."""
        return cls(
            ClientSession(
                peers or [(None, url) for url in URLS.values()],
                secret=SECRET,
                timeout_s=TIMEOUT_S,
                grace_delay_s=GRACE_S,
                heartbeat_s=heartbeat_s,
            )
        )

    @classmethod
    def for_peer(cls, peer_id: str = "1") -> Driver:
        """A session for one peer."""
        peers: list[tuple[str | None, str]] = [(None, URLS[peer_id])]
        return cls(
            ClientSession(peers, secret=SECRET, timeout_s=TIMEOUT_S, grace_delay_s=GRACE_S, follows_leader=False)
        )

    # --- the world ------------------------------------------------------------------------------------------------

    def flush(self) -> list[Sent]:
        """Send everything that the session has to send over the present connection; all that was not read yet."""
        self._follow_link()
        while (frames := self.session.next_frames()) is not None:
            assert self.session.url is not None, "a message without a connection"
            message_id, message_type, secret, *arguments = frames
            assert secret == SECRET
            self.unread.append(Sent(self.session.url, message_id, message_type, tuple(arguments)))
            self.session.sent()
        return self.unread

    def _follow_link(self) -> None:
        if self._link != self.session.link:
            self._link = self.session.link
            self.links.append(self.session.url)

    def read(self) -> list[Sent]:
        """What the session sent since the last call."""
        messages, self.unread = self.flush(), []
        return messages

    def read_one(self, message_type: bytes) -> Sent:
        """The one message that the session sent since the last call."""
        messages = self.read()
        assert [message.type for message in messages] == [message_type], messages
        return messages[0]

    def advance(self, seconds: float) -> None:
        """Let time pass, with a tick whenever the session wants one."""
        end = self.now + seconds
        while (at := self.session.next_time()) is not None and at <= end:
            self.now = max(self.now, at)
            self.session.tick(self.now)
            self.flush()
        self.now = end
        self.session.tick(self.now)
        self.flush()

    def start(self, request: Request) -> None:
        self.session.start(request, self.now)
        self.flush()

    def update(self, data: bytes = b"data", *, request_id: bytes | None = None, deadline_s: float = 1e9) -> Sink:
        """Start an update."""
        sink = Sink()
        self.start(UpdateRequest(SECRET, request_id or new_request_id(), data, sink, self.now + deadline_s))
        return sink

    # --- replies --------------------------------------------------------------------------------------------------

    def reply(self, message: Sent | bytes, protocol: FramesProtocol, *values: object) -> None:
        """A reply to a message, over the present connection."""
        self.reply_frames(message, *protocol.encode_response(*values))

    def reply_frames(self, message: Sent | bytes, *frames: bytes) -> None:
        message_id = message if isinstance(message, bytes) else message.id
        self.session.receive([message_id, *frames], self.now)
        self.flush()

    def committed(self, message: Sent | bytes, index: int) -> None:
        self.reply(message, Protocols.REQUEST_UPDATE, True, index)

    def accepted(self, message: Sent | bytes) -> None:
        self.reply(message, Protocols.REQUEST_UPDATE, True, ABSENT)

    def not_leader(self, message: Sent | bytes, leader_id: str | None) -> None:
        self.reply(message, Protocols.REQUEST_UPDATE, False, leader_id)

    def cluster_info(self, message: Sent | bytes, leader_id: str | None, *, leads: bool = False) -> None:
        self.reply(message, Protocols.REQUEST_CONFIG, leads, leader_id, PEERS)

    def find_leader(self, peer_id: str = "1") -> None:
        """Answer the question that is open: the peer asked leads."""
        question = self.read_one(b"^")
        assert question.url == URLS[peer_id], question
        self.cluster_info(question, peer_id, leads=True)


def log_entry(index: int, term: int = 1, data: bytes | None = None) -> LogEntry:
    """An entry whose data tells its index."""
    return LogEntry(index, term, EntryType.STATE, index.to_bytes(12, "big"), data or b"entry %d" % index)


def entry_frames(first: int, last: int, term: int = 1) -> list[bytes]:
    """The entries from ``first`` to ``last``, as frames."""
    return [log_entry(index, term).to_bytes() for index in range(first, last + 1)]
