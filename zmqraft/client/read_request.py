"""Reads that are never stale: asking the leader for an index to wait for, where it is one of ours.

Knows nothing of sockets or clocks. Own messages are passed to the state machine by peers of zmq-raft, which need not
answer. So on each connection the peer is asked first for its capabilities, and right behind that for the configuration,
which everybody answers, in order: when the second answer comes first, the peer is none of ours. The rule: nothing is
ever read in another way instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zmqraft.client.entries_request import EntriesRequest, EntriesSink
from zmqraft.client.requests import Request, ResultSink, decode_cluster_info, decode_leader_id
from zmqraft.constants import CAPABILITIES, READ_INDEX, REQUEST_CONFIG
from zmqraft.errors import NotSupportedError
from zmqraft.protocol.entries_flow import EntriesFlow
from zmqraft.protocol.schema import Protocols

if TYPE_CHECKING:
    from zmqraft.client.session import ClientSession

__all__ = ["LinearizableEntriesRequest", "ReadIndexRequest"]

#: What a reply to RequestConfig has; one to the question for capabilities has fewer frames.
_CONFIG_FRAMES = 3


class _Steps:
    """The steps to a read index, on behalf of a request."""

    __slots__ = ("_is_reading", "_request", "_secret")

    def __init__(self, request: Request, secret: bytes) -> None:
        self._request = request
        self._secret = secret
        #: Whether the question itself is under way, and not yet whether it can be asked.
        self._is_reading = False

    def prepare(self, session: ClientSession, now: float) -> bool:
        """For `Request.prepare`."""
        request = self._request
        self._is_reading = session.reads_link == session.link
        if self._is_reading:
            session.change_id(request, Protocols.READ_INDEX.encode_request(READ_INDEX, self._secret))
            return True
        session.change_id(request, Protocols.CAPABILITIES.encode_request(CAPABILITIES, self._secret))
        session.send(request.frames, request)
        question = Protocols.REQUEST_CONFIG.encode_request(REQUEST_CONFIG, self._secret)
        session.send([request.id, *question], request)
        session.await_reply(request, now)
        return False

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> int | None:
        """For `Request.receive`: the index, when it has come."""
        if self._is_reading:
            index, leader_id = Protocols.READ_INDEX.decode_response(frames)
            if index is None:
                session.not_leader(self._request, decode_leader_id(leader_id), now)
            return None if index is None else int(index)
        if len(frames) >= _CONFIG_FRAMES:
            info = decode_cluster_info(frames)
            if info.is_leader:
                self._fail(session)
            else:
                session.not_leader(self._request, info.leader_id, now)
            return None
        _, reads = Protocols.CAPABILITIES.decode_response(frames)
        if reads:
            session.reads_link = session.link
            session.send_again(self._request, now)
        else:
            self._fail(session)
        return None

    def _fail(self, session: ClientSession) -> None:
        session.fail(
            self._request,
            NotSupportedError(
                "linearizable reads are not available: the leader is a peer of zmq-raft, or of an earlier version"
            ),
        )


class ReadIndexRequest(Request):
    """READ_INDEX. The result is an index: who has applied the entries up to there sees all that was committed before
    this was asked."""

    __slots__ = ("_steps",)

    def __init__(self, secret: bytes, sink: ResultSink, deadline: float = math.inf) -> None:
        super().__init__([b""], sink, deadline)
        self._steps = _Steps(self, secret)

    def prepare(self, session: ClientSession, now: float) -> bool:
        return self._steps.prepare(session, now)

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        index = self._steps.receive(frames, session, now)
        if index is not None:
            session.finish(self, index)


class LinearizableEntriesRequest(EntriesRequest):
    """A stream of entries that reaches, at least, up to a read index which is asked for first."""

    __slots__ = ("_is_confirmed", "_steps")

    def __init__(self, secret: bytes, flow: EntriesFlow, sink: EntriesSink, deadline: float = math.inf) -> None:
        super().__init__(secret, flow, sink, deadline)
        self._steps = _Steps(self, secret)
        self._is_confirmed = False

    def prepare(self, session: ClientSession, now: float) -> bool:
        return super().prepare(session, now) if self._is_confirmed else self._steps.prepare(session, now)

    def receive(self, frames: Sequence[bytes], session: ClientSession, now: float) -> None:
        if self._is_confirmed:
            super().receive(frames, session, now)
        elif (index := self._steps.receive(frames, session, now)) is not None:
            self._is_confirmed = True
            self.flow.least_index = index
            session.send_again(self, now)
