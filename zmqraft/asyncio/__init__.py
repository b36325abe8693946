"""The clients as coroutines, in the event loop of their caller and without a thread of their own; and peers for it.

`ZmqRaftClient` is the one to start with; each class is that of `zmqraft` of the same name, with ``async`` in front::

    async with ZmqRaftClient(urls, secret=secret) as client:
        index = await client.request_update(None, data)

A client belongs to the event loop in which it was made. Cancellation is safe everywhere: it leaves no request, task or
socket behind, and each method says what is then known. A call that is cancelled while it waits for room, or a read from
a stream, has changed nothing.
"""

from __future__ import annotations

from zmqraft.asyncio.clients import ZmqProtocolSocket, ZmqRaftClient, ZmqRaftPeerClient
from zmqraft.asyncio.peer import StateMachineBase, ZmqRaft, build_peer
from zmqraft.asyncio.streams import EntriesStream, UpdatesStream
from zmqraft.asyncio.subscriber import ZmqRaftPeerSub, ZmqRaftSubscriber

__all__ = [
    "EntriesStream",
    "StateMachineBase",
    "UpdatesStream",
    "ZmqProtocolSocket",
    "ZmqRaft",
    "ZmqRaftClient",
    "ZmqRaftPeerClient",
    "ZmqRaftPeerSub",
    "ZmqRaftSubscriber",
    "build_peer",
]
