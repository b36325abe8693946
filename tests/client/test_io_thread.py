"""The thread of a client when the caller is interrupted: KeyboardInterrupt may come between any two instructions."""

from __future__ import annotations

import socket
import threading
from typing import NoReturn, cast

import pytest

from support.fake_peers import SECRET, fake_peers
from zmqraft.client import ZmqRaftClient
from zmqraft.client.io_thread import IoThread

#: Far more than a thread takes to end on a slow machine.
PATIENCE_S = 30.0


class InterruptedSocket:
    """A socket whose first ``send`` is interrupted, before the byte has left or behind it."""

    def __init__(self, inner: socket.socket, sent: bool) -> None:
        self._inner = inner
        self._sent = sent
        self.interruptions = 0

    def send(self, data: bytes) -> int:
        if self.interruptions:
            return self._inner.send(data)
        self.interruptions += 1
        if self._sent:
            self._inner.send(data)
        raise KeyboardInterrupt

    def close(self) -> None:
        self._inner.close()


def close_in_time(client: ZmqRaftClient) -> bool:
    """Whether `close` returns; it is called in a thread, so that a test that fails does not hang."""
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    return not closing.is_alive()


def call_until_it_sleeps(thread: IoThread) -> NoReturn:
    """A thread that is awake takes commands without being woken; this ends by the interrupt of waking it."""
    while True:
        thread.call(lambda _now: None)


@pytest.mark.parametrize("sent", [False, True])
def test_a_client_can_be_used_and_closed_after_an_interrupt_in_the_middle_of_waking_its_thread(sent: bool) -> None:
    with fake_peers(1) as peers:
        client = ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=PATIENCE_S)
        thread = client._thread
        assert thread is not None
        interrupted = InterruptedSocket(thread._wake_out, sent)
        thread._wake_out = cast(socket.socket, interrupted)
        with pytest.raises(KeyboardInterrupt):
            call_until_it_sleeps(thread)
        done = threading.Event()
        thread.call(lambda _now: done.set())
        assert done.wait(PATIENCE_S)
        assert close_in_time(client)


def test_a_client_can_be_closed_right_after_an_interrupt_in_the_middle_of_waking_its_thread() -> None:
    with fake_peers(1) as peers:
        client = ZmqRaftClient(peers.urls, secret=SECRET, deadline_s=PATIENCE_S)
        thread = client._thread
        assert thread is not None
        thread._wake_out = cast(socket.socket, InterruptedSocket(thread._wake_out, sent=False))
        with pytest.raises(KeyboardInterrupt):
            call_until_it_sleeps(thread)
        assert close_in_time(client)
