"""The blocking and the asyncio clients behind one face, that of asyncio, so that one suite runs over both.

What a test with this leaves behind, of tasks, threads and descriptors, is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from types import ModuleType
from typing import Any

import zmq

import zmqraft.asyncio
import zmqraft.client
from support.command import PATIENCE_S

#: Methods that give a stream, without waiting.
_STREAMS = {"request_entries", "request_updates"}
_END = object()


class Proxy:
    """A blocking client or stream whose methods are coroutines, run in threads."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name == "batches":
            return lambda: _iterated(value)
        if name in _STREAMS:
            return lambda *args, **kwargs: Proxy(value(*args, **kwargs))
        return _coroutine_of(value) if callable(value) else value

    async def __aenter__(self) -> Proxy:
        await asyncio.to_thread(self._target.__enter__)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await asyncio.to_thread(self._target.__exit__, *error)

    def __aiter__(self) -> Proxy:
        return self

    async def __anext__(self) -> Any:
        item = await asyncio.to_thread(next, self._target, _END)
        if item is _END:
            raise StopAsyncIteration
        return item


async def _iterated(make: Callable[[], Any]) -> AsyncIterator[Any]:
    iterator = make()
    while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield item


def _coroutine_of(method: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        result = await asyncio.to_thread(method, *args, **kwargs)
        return asyncio.wrap_future(result) if isinstance(result, Future) else result

    return call


class Clients:
    """The classes of one kind of client: ``clients.ZmqRaftClient(...)``."""

    def __init__(self, kind: str) -> None:
        self._module: ModuleType = zmqraft.client if kind == "blocking" else zmqraft.asyncio
        self._kind = kind

    def __getattr__(self, name: str) -> Callable[..., Any]:
        cls = getattr(self._module, name)
        return (lambda *args, **kwargs: Proxy(cls(*args, **kwargs))) if self._kind == "blocking" else cls

    def run(self, scenario: Coroutine[Any, Any, None], *, count_descriptors: bool = True) -> None:
        """Run a test to its end, and look for what it has left behind."""
        with no_leaks(count_descriptors):
            asyncio.run(_without_leaked_tasks(scenario))


async def _without_leaked_tasks(scenario: Coroutine[Any, Any, None]) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    await asyncio.wait_for(scenario, 1.5 * PATIENCE_S)
    gc.collect()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert errors == []


@contextlib.contextmanager
def no_leaks(count_descriptors: bool = True) -> Any:
    """As many descriptors, if they are counted, and threads of clients as before."""
    zmq.Context.instance()  # has some of its own
    with contextlib.closing(zmq.Context.instance().socket(zmq.DEALER)):
        pass
    before = _descriptors()
    yield
    gc.collect()
    deadline = time.monotonic() + PATIENCE_S
    # ZeroMQ closes in the background.
    while (count_descriptors and _descriptors() > before) or _client_threads():
        assert time.monotonic() < deadline, (before, _descriptors(), _client_threads())
        time.sleep(0.01)


def _descriptors() -> int:
    """Sockets and the like that this process has open; files and pipes are those of peers."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "anon_inode:"))
    return count


def _client_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ZmqRaft")]
