"""Peers that answer clients over real sockets, and misbehave on demand. No Raft in them: one log, which is shared.

Each has a ROUTER and a PUB socket in a thread of its own. What a peer answers to a type of message can be replaced, see
`FakePeer.script`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import zmq

from support.command import PATIENCE_S, free_ports
from zmqraft.constants import REQUEST_ENTRIES_PIPELINES
from zmqraft.protocol.entry import EntryType, LogEntry
from zmqraft.protocol.frames import decode_uint
from zmqraft.protocol.schema import Protocols

SECRET = b"secret"

Frames: TypeAlias = "list[bytes]"
#: From the frames after the secret to the replies.
Script: TypeAlias = "Callable[[Frames], list[Frames]]"


class FakePeers:
    """A cluster of fake peers."""

    def __init__(self, count: int, secret: bytes) -> None:
        self.secret = secret
        self.lock = threading.RLock()
        self.leader: str | None = "1"
        self.log: list[LogEntry] = []
        self.index_by_id: dict[bytes, int] = {}
        #: Whether the leader publishes what is committed.
        self.publishes = True
        self.entries_per_reply = 100
        self.first_index = 1
        self.snapshot = b""
        self.peers = {str(n): FakePeer(self, str(n)) for n in range(1, count + 1)}

    @property
    def urls(self) -> list[str]:
        return [peer.url for peer in self.peers.values()]

    @property
    def peer_list(self) -> list[list[str]]:
        return [[peer_id, peer.url] for peer_id, peer in self.peers.items()]

    def __getitem__(self, peer_id: str) -> FakePeer:
        return self.peers[peer_id]

    def commit(self, data: bytes, request_id: bytes | None = None, *, publish: bool | None = None) -> int:
        """Append once, and publish."""
        with self.lock:
            index = len(self.log) + 1
            if request_id is None:
                request_id = index.to_bytes(12, "big")
            if request_id in self.index_by_id:
                return self.index_by_id[request_id]
            entry = LogEntry(index, 1, EntryType.STATE, request_id, data)
            self.log.append(entry)
            self.index_by_id[request_id] = index
            if self.leader is not None and (self.publishes if publish is None else publish):
                self.peers[self.leader].publish([entry])
            return index

    def fill(self, count: int) -> None:
        """Commit so many entries without publishing them."""
        for _ in range(count):
            self.commit(b"entry %d" % (len(self.log) + 1), publish=False)


class FakePeer:
    """One peer. `stop` and `start` make it vanish and come back at the same urls."""

    def __init__(self, peers: FakePeers, peer_id: str) -> None:
        self.id = peer_id
        self.url, self.pub_url = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
        #: Message types that came in, with what came behind the secret.
        self.received: list[tuple[bytes, Frames]] = []
        #: Answers nothing while True, though it reads.
        self.silent = False
        self.script: dict[bytes, Script] = {}
        self._peers = peers
        self._streams: dict[tuple[bytes, bytes], list[int]] = {}
        self._to_publish: list[Frames] = []
        self._thread: threading.Thread | None = None

    def count(self, message_type: bytes) -> int:
        """How many messages of a type have come in."""
        return sum(found == message_type for found, _ in self.received)

    def start(self) -> None:
        if self._thread is None:
            self._wake, self._woken = socket.socketpair()
            self._wake.setblocking(False)
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name=f"fake peer {self.id}", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._stopping = True  # seen within 50 ms
            self._thread.join()
            self._thread = None
            self._wake.close()
            self._woken.close()

    def publish(self, entries: list[LogEntry], *, last_applied: int | None = None, secret: bytes | None = None) -> None:
        """Publish entries, or a heartbeat."""
        last = last_applied if last_applied is not None else entries[-1].index
        frames = [entry.to_bytes() for entry in entries]
        self.publish_frames(
            Protocols.STATE_BROADCAST.encode_request(self._peers.secret if secret is None else secret, 1, last, frames)
        )

    def publish_frames(self, frames: Frames) -> None:
        if self._thread is not None:
            self._to_publish.append(frames)
            with contextlib.suppress(BlockingIOError):  # it is awake
                self._wake.send(b"\0")

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        context = zmq.Context.instance()
        with context.socket(zmq.ROUTER) as router, context.socket(zmq.PUB) as publisher:
            for bound, url in ((router, self.url), (publisher, self.pub_url)):
                bound.linger = 0
                bound.sndhwm = bound.rcvhwm = 0
                _bind(bound, url)
            poller = zmq.Poller()
            poller.register(router, zmq.POLLIN)
            poller.register(self._woken, zmq.POLLIN)
            heartbeat_at = time.monotonic()
            while not self._stopping:
                for polled, _ in poller.poll(50):
                    if polled is router:
                        self._receive_all(router)
                    else:
                        self._woken.recv(1000)
                published, self._to_publish = self._to_publish, []
                for frames in published:
                    publisher.send_multipart(frames)
                if time.monotonic() >= heartbeat_at and self._peers.leader == self.id and not self.silent:
                    heartbeat_at = time.monotonic() + 0.2
                    publisher.send_multipart(
                        Protocols.STATE_BROADCAST.encode_request(self._peers.secret, 1, len(self._peers.log), [])
                    )

    def _receive_all(self, router: zmq.Socket[bytes]) -> None:
        while True:
            try:
                identity, *message = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            for reply in self._answer(identity, message):
                router.send_multipart([identity, message[0], *reply])

    def _answer(self, identity: bytes, message: Frames) -> list[Frames]:
        message_id, message_type, secret, *arguments = message
        if secret != self._peers.secret:
            return []
        self.received.append((message_type, arguments))
        if self.silent:
            return []
        if message_type in self.script:
            return self.script[message_type](arguments)
        with self._peers.lock:
            leads = self._peers.leader == self.id
            answers: dict[bytes, Callable[[], list[Frames]]] = {
                b"^": lambda: [self.cluster_info()],
                b"%": lambda: [self._log_info()],
                b"*": lambda: [Protocols.REQUEST_BROADCAST_URL.encode_response(self.pub_url)],
                b"=": lambda: [self._update(message_id, arguments[0], leads)],
                b"<": lambda: self._entries((identity, message_id), arguments, leads),
            }
            answer = answers.get(message_type)
            return answer() if answer is not None else []

    def cluster_info(self) -> Frames:
        leader = self._peers.leader
        return Protocols.REQUEST_CONFIG.encode_response(leader == self.id, leader, self._peers.peer_list)

    def _log_info(self) -> Frames:
        last = len(self._peers.log)
        numbers = (1, self._peers.first_index, last, last, last, len(self._peers.snapshot), 0)
        leader = self._peers.leader
        return Protocols.REQUEST_LOG_INFO.encode_response(leader == self.id, leader, *numbers)

    def _update(self, request_id: bytes, data: bytes, leads: bool) -> Frames:
        if not leads:
            return Protocols.REQUEST_UPDATE.encode_response(False, self._peers.leader)
        return Protocols.REQUEST_UPDATE.encode_response(True, self._peers.commit(data, request_id))

    def _entries(self, key: tuple[bytes, bytes], arguments: Frames, leads: bool) -> list[Frames]:
        previous = decode_uint(arguments[0])
        count = decode_uint(arguments[1]) if len(arguments) > 1 and arguments[1] else None
        offset = decode_uint(arguments[2]) if len(arguments) > 2 else 0
        peers = self._peers
        if count == 0 or not leads:
            self._streams.pop(key, None)
            return [] if count == 0 else [_entries_reply(0, peers.leader)]
        if previous + 1 < peers.first_index:
            data = peers.snapshot[offset : offset + 1000]
            position = [offset, len(peers.snapshot), 1]
            return [_entries_reply(3, position, peers.first_index - 1, [data])]
        return self._more_entries(key, previous, count)

    def _more_entries(self, key: tuple[bytes, bytes], previous: int, count: int | None) -> list[Frames]:
        log, step = self._peers.log, self._peers.entries_per_reply
        #: The next index, the last one, and the last indexes of the replies that were not acknowledged.
        stream = self._streams.get(key)
        if stream is None or previous not in stream[2:]:
            end = len(log) if count is None else min(len(log), previous + count)
            stream = self._streams[key] = [previous + 1, end]
            if previous >= end:
                return [_entries_reply(1, None, len(log), [])]
        else:
            stream.remove(previous)
        replies: list[Frames] = []
        while stream[0] <= stream[1] and len(stream) - 2 < REQUEST_ENTRIES_PIPELINES:
            last = min(stream[0] + step - 1, stream[1])
            frames = [entry.to_bytes() for entry in log[stream[0] - 1 : last]]
            replies.append(_entries_reply(1 if last == stream[1] else 2, None, last, frames))
            stream[0] = last + 1
            stream.append(last)
        return replies


def _entries_reply(*values: Any) -> Frames:
    return Protocols.REQUEST_ENTRIES.encode_response(*values)


def _bind(bound: zmq.Socket[bytes], url: str) -> None:
    """Bind; the socket of the one before may still be closing in the background."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            bound.bind(url)
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def fake_peers(count: int = 3, *, secret: bytes = SECRET) -> Iterator[FakePeers]:
    """Running peers, of which "1" leads."""
    peers = FakePeers(count, secret)
    try:
        for peer in peers.peers.values():
            peer.start()
        yield peers
    finally:
        for peer in peers.peers.values():
            peer.stop()
