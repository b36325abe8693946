"""A server under messages that no honest client sends goes on serving, and its memory does not grow with them."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from pathlib import Path
from random import Random

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from support.command import PATIENCE_S, free_ports, running_peer, write_config
from support.hostile import hostile_frame, hostile_messages
from support.local_cluster import SECRET, RawClient, cluster_settings, wait_for
from support.virtual_cluster import SECRET as VIRTUAL_SECRET
from support.virtual_cluster import VirtualCluster
from zmqraft.client import ZmqRaftClient, ZmqRaftSubscriber
from zmqraft.protocol import new_request_id
from zmqraft.server import rpc_socket
from zmqraft.server.builder import build_peer

COUNT = 10_000
#: What 10,000 more messages may leave behind: far less than they carry, far more than noise.
GROWTH_MAX_KIB = 8 * 1024
REPLY_SIZE_MAX = 65536
HUGE_FRAME_SIZE = 100 * 1024 * 1024


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_an_engine_takes_anything(seed: int, role: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cluster = VirtualCluster(3, seed)
    cluster.start()
    leader = cluster.leader()
    peer = leader if role == "leader" else next(each for each in cluster.peers.values() if each is not leader)
    term = leader.term
    members = tuple(peer_id.encode() for peer_id in cluster.ids)
    for message in hostile_messages(seed, COUNT, VIRTUAL_SECRET, members):
        cluster.receive(peer, [b"client", *message])
        if len(cluster.client_replies) > 1000:
            cluster.run(0.001)
            cluster.client_replies.clear()
    cluster.run(1.0)
    assert [each.failure for each in cluster.peers.values()] == [None] * 3
    assert (cluster.leader(), leader.term) == (leader, term)
    assert sum(peer.running.dropped.values()) > COUNT // 10
    assert {"malformed message", "wrong secret"} <= set(peer.running.dropped)
    cluster.commit(b"still here")


@pytest.mark.parametrize("seed", range(3))
def test_replies_of_a_peer_can_be_anything(seed: int) -> None:
    """One of three peers answers with nonsense under the right ids. The others go on, and in the end it does too."""
    cluster = VirtualCluster(3, seed)
    cluster.start()
    liar = next(peer_id for peer_id in cluster.ids if peer_id != cluster.leader().id)
    random = Random(seed)

    def lie(source: str, frames: list[bytes]) -> list[bytes]:
        if source != liar:
            return frames
        return [frames[0], *(hostile_frame(random) for _ in range(random.choice((0, 1, 2, 2, 3, 4, 20))))]

    cluster.change_reply = lie
    for number in range(200):
        if cluster.leaders:
            cluster.update(cluster.leaders[0].id, b"%d" % number)
        cluster.run(0.05)
    cluster.change_reply = None
    cluster.commit(b"still here")
    assert [peer.failure for peer in cluster.peers.values()] == [None] * 3
    assert sum(peer.running.dropped["malformed reply"] for peer in cluster.peers.values()) > 50


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def test_a_process_takes_anything_and_does_not_grow(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"tcp://127.0.0.1:{port}"
    config = write_config(tmp_path, [["1", url]], secret=SECRET.decode())
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running_peer(config, "1"))
        client = stack.enter_context(ZmqRaftClient(url, secret=SECRET))
        client.request_update(new_request_id(), b"before")
        raw = stack.enter_context(RawClient(url))

        def attack(seed: int) -> int:
            """Send messages, wait until the last one has been taken, and return the server's memory."""
            for number, message in enumerate(hostile_messages(seed, COUNT, SECRET, (b"1",))):
                raw.send(*message)
                if number % 100 == 0:
                    raw.replies([b"\x7e", b"^", SECRET], [b"\x7f", b"^", SECRET])
            return resident_kib(process.pid)

        attack(1)
        after_first = attack(2)
        after_second = attack(3)
        assert after_second - after_first < GROWTH_MAX_KIB
        assert process.poll() is None
        assert client.request_update(new_request_id(), b"after") > 2


def test_a_frame_above_the_limit_is_refused(tmp_path: Path) -> None:
    """100 MB in one frame: the connection is dropped, and the memory is not taken."""
    (port,) = free_ports(1)
    url = f"tcp://127.0.0.1:{port}"
    config = write_config(tmp_path, [["1", url]], secret=SECRET.decode())
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running_peer(config, "1"))
        client = stack.enter_context(ZmqRaftClient(url, secret=SECRET))
        client.request_update(new_request_id(), b"before")
        before = resident_kib(process.pid)
        raw = stack.enter_context(RawClient(url))
        monitor = raw.socket.get_monitor_socket()
        stack.callback(monitor.close)
        stack.callback(raw.socket.disable_monitor)
        raw.send(new_request_id(), b"=", SECRET, bytes(HUGE_FRAME_SIZE))
        seen: set[int] = set()

        def disconnected() -> bool:
            while monitor.poll(0):
                seen.add(recv_monitor_message(monitor)["event"])
            return int(zmq.EVENT_DISCONNECTED) in seen

        wait_for(disconnected, "the server to drop the connection")
        assert resident_kib(process.pid) - before < HUGE_FRAME_SIZE // 1024 // 4
        assert process.poll() is None
        assert client.request_update(new_request_id(), b"after") == 3


def hostile_subscriber(port: int) -> socket.socket:
    """A SUB socket as far as its handshake goes (ZMTP 3.0). One of libzmq itself could not bear what it is to send."""
    subscriber = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    subscriber.sendall(b"\xff" + bytes(8) + b"\x7f\3\0NULL".ljust(55, b"\0"))
    ready = b"\5READY\x0bSocket-Type\0\0\0\3SUB"
    subscriber.sendall(bytes([4, len(ready)]) + ready)
    return subscriber


def test_a_subscription_above_the_limit_is_refused(tmp_path: Path) -> None:
    """A subscription costs its publisher about a hundred times its size; one that matches is at most the secret."""
    port, pub_port = free_ports(2)
    url = f"tcp://127.0.0.1:{port}"
    peers = [{"id": "1", "url": url, "pub": f"tcp://127.0.0.1:{pub_port}"}]
    config = write_config(tmp_path, peers, secret=SECRET.decode())
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running_peer(config, "1"))
        subscriber = stack.enter_context(ZmqRaftSubscriber(url, secret=SECRET, last_index=0))
        assert subscriber.get(PATIENCE_S).index == 1
        before = resident_kib(process.pid)
        hostile = stack.enter_context(hostile_subscriber(pub_port))
        size = 1024 * 1024
        with contextlib.suppress(ConnectionError):
            hostile.sendall(b"\2" + (1 + size).to_bytes(8, "big") + b"\1" + bytes(size))
            while hostile.recv(65536):
                pass
        assert resident_kib(process.pid) - before < GROWTH_MAX_KIB
        assert process.poll() is None
        client = stack.enter_context(ZmqRaftClient(url, secret=SECRET))
        client.request_update(new_request_id(), b"after")
        assert subscriber.get(PATIENCE_S).index == 2


class HostilePeer(threading.Thread):
    """A ROUTER in the place of a peer, which answers each request with a lot of nonsense."""

    def __init__(self, url: str) -> None:
        super().__init__(name="hostile peer")
        self._url = url
        self.ended = threading.Event()
        self.answered = 0

    def run(self) -> None:
        random = Random(1)
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = router.sndhwm = 0
            router.bind(self._url)
            while not self.ended.is_set():
                if not router.poll(50):
                    continue
                identity, message_id, *_ = router.recv_multipart()
                for _ in range(500):
                    # Not above the limit for a frame: that is another test.
                    reply = [
                        hostile_frame(random)[:REPLY_SIZE_MAX] for _ in range(random.choice((0, 1, 2, 2, 3, 1000)))
                    ]
                    router.send_multipart([identity, random.choice((message_id, b"\1", b"\xff" * 4, b"")), *reply])
                    self.answered += 1


def test_a_hostile_peer_stops_nobody(tmp_path: Path) -> None:
    ports = free_ports(3)
    peers = [[str(number), f"tcp://127.0.0.1:{port}"] for number, port in enumerate(ports, 1)]
    config = write_config(tmp_path, peers, secret=SECRET.decode())
    hostile = HostilePeer(peers[2][1])
    hostile.start()
    try:
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(running_peer(config, each, "--log-level=error")) for each in "12"]
            client = stack.enter_context(ZmqRaftClient([url for _, url in peers[:2]], secret=SECRET))

            def attacked(count: int) -> list[int]:
                """The memory of the peers after so many more answers, with updates in between."""
                until = hostile.answered + count
                while hostile.answered < until:
                    client.request_update(None, b"meanwhile", deadline_s=PATIENCE_S)
                return [resident_kib(process.pid) for process in processes]

            attacked(COUNT // 4)
            before, after = attacked(COUNT // 2), attacked(COUNT // 2)
            assert [after[each] - before[each] < GROWTH_MAX_KIB for each in (0, 1)] == [True, True]
            assert [process.poll() for process in processes] == [None, None]
    finally:
        hostile.ended.set()
        hostile.join()


def test_a_link_comes_back_after_a_frame_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq drops the connection, and never makes it again by itself: a peer would be without its link for ever."""
    monkeypatch.setattr(rpc_socket, "_STUCK_AFTER", 0.2)
    settings = cluster_settings(tmp_path, 2)[0]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as other, build_peer(settings):
        other.linger = 0
        other.rcvtimeo = int(PATIENCE_S * 1000)
        other.bind(settings.peers[1].url)
        identity, message_id, *request = other.recv_multipart()
        assert request[:2] == [b"?", SECRET]
        other.send_multipart([identity, message_id, bytes(REPLY_SIZE_MAX + 1)])
        while other.recv_multipart()[0] == identity:
            pass
