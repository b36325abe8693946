"""A load for etcd: ``python -m bench.etcd_load COUNT IN_FLIGHT SIZE PORT``; prints what the load generator prints.

Puts of one key through the JSON gateway of the v3 interface, on as many HTTP connections as are in flight, from one
thread. The gateway costs etcd something; still most of the time goes to etcd itself.
"""

from __future__ import annotations

import base64
import json
import math
import selectors
import socket
import sys
import time

__all__ = ["reply_end", "request", "summary"]

#: As long as the load generator waits for a reply.
_REPLY_TIMEOUT_S = 10.0
_RECEIVE_BYTES = 65536


def request(size_bytes: int, port: int) -> bytes:
    """A put of so many bytes."""
    value = base64.b64encode(b"a" * size_bytes).decode()
    body = json.dumps({"key": base64.b64encode(b"bench").decode(), "value": value}).encode()
    head = f"POST /v3/kv/put HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


def reply_end(received: bytes | bytearray) -> int | None:
    """Where the first HTTP reply ends, or None while it is not whole. ValueError when it cannot be read."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    for line in bytes(received[:head_end]).split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            end = head_end + 4 + int(value)
            return end if len(received) >= end else None
    raise ValueError(f"a reply without a length: {bytes(received[:200])!r}")


def summary(times_s: list[float], elapsed_s: float, in_flight: int, size_bytes: int, refused: int) -> str:
    """The line that the load generator prints, from the time that each update took."""
    ordered = sorted(times_s)
    count = len(ordered)
    return json.dumps(
        {
            "n": count,
            "in_flight": in_flight,
            "size": size_bytes,
            "per_s": count / elapsed_s,
            "p50_ms": ordered[count // 2] * 1e3,
            "p99_ms": ordered[math.floor(count * 0.99)] * 1e3,
            "max_ms": ordered[-1] * 1e3,
            "refused": refused,
        }
    )


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _REPLY_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()
        self.sent_at = 0.0

    def send(self, data: bytes) -> None:
        self.sent_at = time.perf_counter()
        # Small beside the socket's buffer, which is empty.
        self.socket.sendall(data)

    def receive(self) -> bool | None:
        """Whether the update was taken; None while the reply is not whole."""
        part = self.socket.recv(_RECEIVE_BYTES)
        if not part:
            raise ConnectionError("etcd closed a connection")
        self.received += part
        end = reply_end(self.received)
        if end is None:
            return None
        taken = self.received.startswith(b"HTTP/1.1 200 ")
        del self.received[:end]
        return taken


def measure(count: int, in_flight: int, size_bytes: int, port: int) -> str:
    data = request(size_bytes, port)
    times_s: list[float] = []
    refused = 0
    with selectors.DefaultSelector() as selector:
        connections = [_Connection(port) for _ in range(min(in_flight, count))]
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        start = time.perf_counter()
        for connection in connections:
            connection.send(data)
        sent = len(connections)
        while len(times_s) < count:
            events = selector.select(_REPLY_TIMEOUT_S)
            if not events:
                raise TimeoutError(f"no reply for {_REPLY_TIMEOUT_S:.0f} s after {len(times_s)} of {count}")
            for key, _ in events:
                connection = key.data
                taken = connection.receive()
                if taken is None:
                    continue
                refused += not taken
                times_s.append(time.perf_counter() - connection.sent_at)
                if sent < count:
                    sent += 1
                    connection.send(data)
        elapsed_s = time.perf_counter() - start
        for connection in connections:
            connection.socket.close()
    return summary(times_s, elapsed_s, in_flight, size_bytes, refused)


if __name__ == "__main__":
    print(measure(*map(int, sys.argv[1:])))
