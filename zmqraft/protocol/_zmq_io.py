"""Whole multipart messages in and out of a socket, without waiting. The pure twin of _speedups/zmq_io.pyx.

Knows nothing of what messages mean. The rule: nothing here waits, and a message that cannot be sent is not sent at all.
Import it through `zmqraft.protocol.zmq_io`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as to_index

import zmq

from zmqraft.protocol.entry import EntryBatch

__all__ = ["receive_messages", "send_message"]


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
