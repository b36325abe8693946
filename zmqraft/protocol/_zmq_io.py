"""Whole multipart messages in and out of a socket, without waiting. The pure twin of _speedups/zmq_io.pyx.

Knows nothing of what messages mean. The rule: nothing here waits, and a message that cannot be sent is not sent at all.
Import it through `zmqraft.protocol.zmq_io`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as to_index

import zmq

from zmqraft.errors import RemoteProtocolError
from zmqraft.protocol.entry import EntryBatch
from zmqraft.protocol.log_index import BatchBuilder

__all__ = ["Poller", "receive_messages", "receive_with_entries", "send_message"]


class Poller:
    """Waits for sockets, and for file descriptors, until something can be read from one of them, or written to it.

    As `zmq.Poller`, but says only which, and its events are POLLIN and POLLOUT. A socket is unregistered before it is
    closed; `poll` raises ZMQError when it was not. To be used in one thread.
    """

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def register(self, socket: zmq.Socket[bytes] | int, events: int) -> None:
        """Wait for these events of ``socket`` from now on, instead of others. ZMQError when it is closed."""
        if isinstance(socket, int):
            if not 0 <= socket < 1 << 31:
                raise ValueError(f"{socket} is no file descriptor")
        elif socket.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        self._poller.register(socket, _checked(events))

    def unregister(self, socket: zmq.Socket[bytes] | int) -> None:
        """Do not wait for it any longer. KeyError when that was not so."""
        self._poller.unregister(socket)

    def poll(self, timeout_ms: int) -> list[zmq.Socket[bytes] | int]:
        """What is ready, as soon as anything is, or after so many milliseconds nothing; a negative time has no end. A
        signal may make it return earlier."""
        if any(not isinstance(socket, int) and socket.closed for socket, _ in self._poller.sockets):
            raise zmq.ZMQError(zmq.ENOTSOCK)
        return [socket for socket, _ in self._poller.poll(to_index(timeout_ms))]


def _checked(events: int) -> int:
    if to_index(events) not in (zmq.POLLIN, zmq.POLLOUT, zmq.POLLIN | zmq.POLLOUT):
        raise ValueError(f"events are POLLIN, POLLOUT or both, not {events}")
    return to_index(events)


def receive_messages(socket: zmq.Socket[bytes], count_max: int) -> list[list[bytes]]:
    """The messages that have arrived, at most ``count_max`` of them."""
    messages: list[list[bytes]] = []
    count_max = to_index(count_max)
    try:
        while len(messages) < count_max:
            messages.append(socket.recv_multipart(zmq.DONTWAIT))
    except zmq.Again:
        pass
    return messages


def receive_with_entries(
    socket: zmq.Socket[bytes], head_count: int, count_max: int
) -> list[tuple[list[bytes], EntryBatch | None]]:
    """As `receive_messages`, but the frames of each behind the first ``head_count`` as a batch whose first index is 0.

    A message is a pair of frames and batch. There is no batch (None), and all come as frames, where there is no frame
    behind the first ones, or one of them is no entry, or their terms go back.
    """
    head_count = max(to_index(head_count), 0)
    return [_with_entries(frames, head_count) for frames in receive_messages(socket, count_max)]


def _with_entries(frames: list[bytes], head_count: int) -> tuple[list[bytes], EntryBatch | None]:
    if len(frames) <= head_count:
        return frames, None
    builder = BatchBuilder()
    try:
        for frame in frames[head_count:]:
            builder.append_frame(frame)
    except RemoteProtocolError:
        return frames, None
    return frames[:head_count], builder.finish(0)


def send_message(socket: zmq.Socket[bytes], frames: Sequence[bytes], entries: EntryBatch | None = None) -> bool:
    """Send ``frames``, and a frame for each of ``entries`` behind them. Returns False when there is no room for it."""
    message = [frame if type(frame) is bytes else bytes(memoryview(frame)) for frame in frames]
    if not message:
        raise ValueError("a message has at least one frame before its entries")
    if entries is not None:
        message += entries.frames()
    try:
        socket.send_multipart(message, zmq.DONTWAIT)
    except zmq.Again:
        return False
    return True
