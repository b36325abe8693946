"""The asyncio streams: entries of the log, and indexes of many updates.

Knows nothing of the wire. The rule: a stream takes no more than its consumer; and a read that is cancelled loses
nothing, the next one goes on where it was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType

from zmqraft.asyncio.in_flight import InFlightLimit
from zmqraft.asyncio.item_queue import ItemQueue
from zmqraft.asyncio.loop_driver import LoopDriver
from zmqraft.client.entries_request import EntriesRequest
from zmqraft.client.entry_cursor import EntryCursor
from zmqraft.client.read_request import LinearizableEntriesRequest
from zmqraft.client.requests import Request, ResultSink
from zmqraft.client.results import SnapshotChunk
from zmqraft.client.session import ClientSession
from zmqraft.client.update_pipeline import PipelinedUpdate, UpdatePipeline
from zmqraft.errors import ClosedError
from zmqraft.protocol.entries_flow import EntriesFlow, EntriesItem
from zmqraft.protocol.entry import EntryBatch, LogEntry

__all__ = ["EntriesStream", "UpdatesStream"]


class EntriesStream:
    """An async iterator over log entries, and chunks of the snapshot that comes before them.

    As `zmqraft.EntriesStream`: the same order, the same errors. For one reader at a time. Cancelling a read leaves the
    stream as it was; a stream that is not read to its end is to be closed, by ``async with`` or `close`.
    """

    def __init__(
        self,
        driver: LoopDriver,
        session: ClientSession,
        secret: bytes,
        flow: EntriesFlow,
        deadline: float,
        *,
        linearizable: bool = False,
    ) -> None:
        self._driver = driver
        self._session = session
        self._queue: ItemQueue[EntriesItem] = ItemQueue()
        kind = LinearizableEntriesRequest if linearizable else EntriesRequest
        self._request = kind(secret, flow, self._queue, deadline)
        self._cursor = EntryCursor(flow.previous_index)
        self._closed = False
        driver.start(self._request)

    @property
    def last_index(self) -> int:
        """The index of the last entry that was returned, or that a snapshot returned to its end stands for."""
        return self._cursor.last_index

    def __aiter__(self) -> AsyncIterator[LogEntry | SnapshotChunk]:
        return self

    async def __anext__(self) -> LogEntry | SnapshotChunk:
        while (entry := self._cursor.next_entry()) is None:
            if (chunk := self._cursor.take(await self._next_item())) is not None:
                return chunk
        return entry

    async def batches(self) -> AsyncIterator[EntryBatch | SnapshotChunk]:
        """The same, as it came in: many entries at a time. May be mixed with iterating over single entries."""
        while True:
            if (rest := self._cursor.rest()) is not None:
                yield rest
            try:
                item = await self._next_item()
            except StopAsyncIteration:
                return
            if (chunk := self._cursor.take(item)) is not None:
                yield chunk

    async def close(self) -> None:
        """End the stream, and tell the peer. May be called twice. It never waits."""
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._session.cancel(self._request)
            self._queue.close()
            self._driver.wake()

    async def _next_item(self) -> EntriesItem:
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        self._request.consumed(self._session, self._driver.now())
        self._driver.wake()
        return item

    async def __aenter__(self) -> EntriesStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        if self._request.live and not self._closed:
            self._driver.cancel_soon(self._request)


#: Turns what the caller gave into a request, and its size in bytes.
MakeUpdate = Callable[[object, ResultSink], "tuple[Request, int]"]


class UpdatesStream:
    """An async iterator over the indexes of updates, in the order of the updates.

    Made by ``request_updates``, which says what it raises. Nothing happens before the first index is asked for. For one
    reader at a time. Cancelling a read leaves the stream as it was; a stream that is not read to its end is to be
    closed, by ``async with`` or `close`: what is under way is cancelled then, which says nothing of whether it gets
    into the log.
    """

    def __init__(
        self,
        driver: LoopDriver,
        session: ClientSession,
        limit: InFlightLimit,
        items: Iterable[object] | AsyncIterable[object],
        make: MakeUpdate,
        in_flight: int,
    ) -> None:
        self._driver = driver
        self._limit = limit
        self._source = _source_of(items)
        self._make = make
        self._in_flight = in_flight
        self._position = 0
        self._under_way: deque[PipelinedUpdate] = deque()
        self._pipeline = UpdatePipeline(session, limit.release, self._changed)
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        while True:
            if self._closed:
                raise ClosedError("the stream is closed")
            if self._ended:
                raise StopAsyncIteration
            await self._fill()
            if self._under_way and (outcome := self._under_way[0].outcome) is not None:
                return await self._take(outcome)
            if not self._under_way and self._source.ended:
                await self._finish()
                continue
            await self._wait()

    async def close(self) -> None:
        """End the stream, and cancel what is under way. May be called twice."""
        if not self._closed:
            self._closed = True
            await self._finish()
            self._wake()

    async def _take(self, outcome: int | BaseException) -> int:
        self._under_way.popleft()
        if isinstance(outcome, BaseException):
            await self._finish()
            raise outcome
        return outcome

    async def _fill(self) -> None:
        """Take items that are there, and start them, until enough are under way."""
        source = self._source
        while len(self._under_way) < self._in_flight and not self._pipeline.failed:
            update = PipelinedUpdate(self._pipeline, self._position)
            try:
                item = source.next(self._wake)
                if item is _NONE_YET:
                    return
                request, size = self._make(item, update)
            except StopIteration:
                return
            except Exception as error:
                # The indexes of those before it come first.
                source.ended = True
                update.outcome = error
            else:
                try:
                    await self._limit.acquire(size, request.deadline)
                except asyncio.CancelledError:
                    source.give_back(item)
                    raise
                except Exception as error:
                    source.ended = True
                    update.outcome = error
                else:
                    update.size, update.request = size, request
                    self._pipeline.start(update, self._driver.now())
                    self._driver.wake()
            self._under_way.append(update)
            self._position += 1

    async def _wait(self) -> None:
        if self._waiting is not None:
            raise RuntimeError("a stream is for one reader at a time")
        self._waiting = self._driver.loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _changed(self, update: PipelinedUpdate) -> None:
        if self._under_way and update is self._under_way[0]:
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _finish(self) -> None:
        self._ended = True
        self._under_way.clear()
        self._pipeline.finish()
        self._driver.wake()
        await self._source.close()

    async def __aenter__(self) -> UpdatesStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        for update in self._under_way if not getattr(self, "_ended", True) else ():
            if update.request is not None:
                self._driver.cancel_soon(update.request)


#: What a source gives while its next item has not come.
_NONE_YET = object()


class _Source:
    """The items of an iterable."""

    def __init__(self, items: Iterator[object]) -> None:
        self.ended = False
        self._items = items
        self._given_back: list[object] = []

    def next(self, wake: Callable[[], None]) -> object:
        """The next item, or that there is none yet, and then ``wake`` is called later. StopIteration at the end."""
        if self._given_back:
            return self._given_back.pop()
        if self.ended:
            raise StopIteration
        try:
            return self._next(wake)
        except StopIteration:
            self.ended = True
            raise

    def _next(self, wake: Callable[[], None]) -> object:
        return next(self._items)

    def give_back(self, item: object) -> None:
        """The item was not used: it comes again."""
        self._given_back.append(item)

    async def close(self) -> None:
        """Take no more items."""
        self.ended = True


class _AsyncSource(_Source):
    """The items of an async iterable. One is waited for at a time, in a task, so that indexes come out meanwhile."""

    def __init__(self, items: AsyncIterator[object]) -> None:
        super().__init__(iter(()))
        self._async_items = items
        self._task: asyncio.Task[object] | None = None

    def _next(self, wake: Callable[[], None]) -> object:
        if self._task is None:
            self._task = asyncio.ensure_future(_next_of(self._async_items))
            self._task.add_done_callback(lambda _: wake())
        if not self._task.done():
            return _NONE_YET
        task, self._task = self._task, None
        item = task.result()
        if item is _NONE_YET:
            raise StopIteration
        return item

    async def close(self) -> None:
        await super().close()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # nobody asks for it any more


async def _next_of(items: AsyncIterator[object]) -> object:
    """The next item; _NONE_YET at the end, since a task cannot raise StopAsyncIteration."""
    try:
        return await items.__anext__()
    except StopAsyncIteration:
        return _NONE_YET


def _source_of(items: Iterable[object] | AsyncIterable[object]) -> _Source:
    return _AsyncSource(items.__aiter__()) if isinstance(items, AsyncIterable) else _Source(iter(items))
