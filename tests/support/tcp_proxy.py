"""TCP links that can be cut, held up and restored while somebody talks over them.

Knows nothing of what passes. The rule: bytes are never changed, reordered or left out within a connection; what a cut
loses is what was on the way, as when a cable is pulled and the kernel gives up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

__all__ = ["Link", "Links"]

_PIECE_SIZE = 65536
_PATIENCE_S = 30.0


class Link:
    """One way to a port: a port of its own, whose connections go on to the other."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        #: Connections that were broken or refused, and pieces that were held up.
        self.stopped = 0
        self._cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Break all connections, and every new one at once."""
        self._cut = True
        self.stopped += len(self._writers)
        for writer in self._writers:
            writer.transport.abort()

    async def hold(self) -> None:
        """Let nothing pass, but keep the connections and what is on the way."""
        self._flows.clear()

    async def restore(self) -> None:
        """Let everything pass."""
        self._cut = False
        self._flows.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._cut:
                self.stopped += 1
            else:
                await self._pass_on(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(other_writer)
        self.connections += 1
        ways = [
            asyncio.ensure_future(self._pump(reader, other_writer)),
            asyncio.ensure_future(self._pump(other_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            other_writer.transport.abort()
            self._writers.discard(other_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE_SIZE):
            if not self._flows.is_set():
                self.stopped += 1
                await self._flows.wait()
            writer.write(piece)
            await writer.drain()


class Links:
    """Links in a thread of their own; all calls are made from outside of it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()
        self.links: list[Link] = []

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self.links:
            with contextlib.suppress(OSError):
                self._run(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    def open(self, target: int) -> Link:
        """A new link to a port on the loopback."""
        link = Link(target)
        self._run(link.open())
        self.links.append(link)
        return link

    def cut(self, link: Link) -> None:
        self._run(link.cut())

    def hold(self, link: Link) -> None:
        self._run(link.hold())

    def restore(self, link: Link) -> None:
        self._run(link.restore())

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(_PATIENCE_S)
