"""Whole multipart messages in and out of a socket, compiled or pure; see `zmqraft.protocol._zmq_io`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zmqraft._accel import EXTENSIONS

if TYPE_CHECKING or not EXTENSIONS:
    from zmqraft.protocol._zmq_io import Poller, receive_messages, receive_with_entries, send_message
else:
    from zmqraft._speedups.zmq_io import Poller, receive_messages, receive_with_entries, send_message

__all__ = ["Poller", "receive_messages", "receive_with_entries", "send_message"]
