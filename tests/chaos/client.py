"""The program of the clients: several in one process, until SIGTERM. All that they do goes into a history.

    python -m chaos.client KIND --url URL... --secret SECRET --history FILE --seed N

KIND says what they use: the log or the key-value store, blocking or in asyncio. The rule: each operation gets one line
in the history, whatever becomes of it; one that timed out is tried again with its id, or left as it is, unknown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from chaos.history import Recorder
from zmqraft import RequestExpiredError, RequestTimeoutError, ResultForgottenError, ZmqRaftClient, new_request_id
from zmqraft.asyncio import ZmqRaftClient as AsyncZmqRaftClient
from zmqraft.machines import AsyncKeyValueClient, KeyValueClient
from zmqraft.testing.histories import Operation

__all__ = ["KINDS", "main"]

KINDS = ("log", "asyncio log", "store", "asyncio store")
#: Clients of each process.
_CLIENTS = 3
#: A client thinks for so long between two operations, on average.
_THINK_S = {"log": 0.008, "asyncio log": 0.008, "store": 0.015, "asyncio store": 0.015}
#: How often an operation is tried.
_TRIES = 5
#: A connection lasts for so many operations.
_OPERATIONS = (30, 300)
#: After a refusal because of the time a client waits for so long: the next one would be refused as well.
_EXPIRED_S = 0.2
#: All clients turn to other keys after so many seconds, so that no key gets too long a history.
_EPOCH_S = 4.0
_KEYS = 3
#: One of the clients of the log writes streams of so many updates.
_STREAM = (10, 100)


#: What came of an operation.
_UNKNOWN = object()


class Client:
    """One client: what it does next, and what it has seen."""

    def __init__(self, name: str, random: Random, recorder: Recorder, *, only_reads: bool) -> None:
        self.name = name
        self._only_reads = only_reads
        self.random = random
        self._recorder = recorder
        self._numbers = itertools.count()
        self._seen: dict[str, str | None] = {}

    def update(self) -> Operation:
        return self._operation()

    def store_operation(self) -> Operation:
        """A read, a write or a swap of one of the keys of this time.

        Some clients only read: they do not find out by themselves that a leader commits nothing any more.
        """
        key = f"{int(time.monotonic() / _EPOCH_S)}-{self.random.randrange(_KEYS)}"
        kind = 0 if self._only_reads else self.random.random()
        if kind < 0.4:
            return self._operation("get", key)
        if kind < 0.75:
            return self._operation("put", key, self._value())
        return self._operation("cas", key, self._seen.get(key), self._value())

    def data(self, operation: Operation) -> bytes:
        """Of any length: no command of the store, so that it changes nothing there."""
        return f"{self.name} {operation.request_id.hex()} ".encode().ljust(self.random.choice((60, 120, 1000)), b".")

    def finish(self, operation: Operation, result: Any) -> None:
        """Write down an operation that has returned this, or `_UNKNOWN`: it may have happened, or may happen yet."""
        now = time.monotonic()
        kind, key, *values = operation.command or ("update", "")
        if result is _UNKNOWN:
            pass
        elif kind in ("update", "put"):
            operation.finish(now, result)
        elif kind == "get":
            operation.finish(now, None, None if result is None else result.value.decode())
        else:
            operation.finish(now, None, result)
        self._recorder.write(operation)
        if operation.is_done and kind == "get":
            self._seen[key] = operation.result
        elif kind == "put" or (kind == "cas" and operation.result):
            self._seen[key] = values[-1]

    def _value(self) -> str:
        return f"{self.name}:{next(self._numbers)}"

    def _operation(self, *command: Any) -> Operation:
        request_id = b"" if command[:1] == ("get",) else new_request_id()
        return Operation(self.name, request_id, command, time.monotonic())


def _is_tried_again(random: Random, number: int) -> bool:
    return number < _TRIES and random.random() < 0.7


def _timeout_s(random: Random) -> float:
    return random.uniform(0.5, 4)


class BlockingClients:
    """Clients in threads."""

    def __init__(self, kind: str, urls: list[str], secret: str, clients: list[Client]) -> None:
        self._kind = kind
        self._urls = urls
        self._secret = secret
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        runs = [self._run_store] * len(clients) if kind == "store" else [self._run_log, self._run_log, self._run_stream]
        self._threads = [
            threading.Thread(target=self._guard, args=(run, client), name=client.name)
            for run, client in zip(runs, clients, strict=True)
        ]

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _guard(self, run: Callable[[Client], None], client: Client) -> None:
        try:
            while not self._stopping.is_set():
                run(client)
        except BaseException as error:
            self._errors.append(error)
            self._stopping.set()

    def _turns(self, client: Client) -> Iterator[int]:
        for number in range(client.random.randint(*_OPERATIONS)):
            if self._stopping.wait(client.random.expovariate(1 / _THINK_S[self._kind])):
                return
            yield number

    def _try(self, client: Client, call: Callable[[], Any]) -> Any:
        """What the call returns; `_UNKNOWN` when it may have been in vain."""
        for number in itertools.count(1):
            try:
                return call()
            except RequestTimeoutError:
                if self._stopping.is_set() or not _is_tried_again(client.random, number):
                    return _UNKNOWN
            except RequestExpiredError:
                # The clock of some leader is far from ours. An earlier try may have got through.
                self._stopping.wait(_EXPIRED_S)
                return _UNKNOWN
            except ResultForgottenError:
                return _UNKNOWN
        return _UNKNOWN

    def _run_log(self, client: Client) -> None:
        with ZmqRaftClient(self._urls, secret=self._secret, heartbeat_ms=1000) as connection:
            for _ in self._turns(client):
                operation = client.update()
                request_id, data = operation.request_id, client.data(operation)
                call = partial(connection.request_update, request_id, data, deadline_s=_timeout_s(client.random))
                client.finish(operation, self._try(client, call))

    def _run_stream(self, client: Client) -> None:
        with ZmqRaftClient(self._urls, secret=self._secret, heartbeat_ms=1000) as connection:
            for _ in self._turns(client):
                started: list[Operation] = []

                def updates(started: list[Operation] = started) -> Iterator[tuple[bytes, bytes]]:
                    for _ in range(client.random.randint(*_STREAM)):
                        operation = client.update()
                        started.append(operation)
                        yield operation.request_id, client.data(operation)

                done = 0
                with (
                    contextlib.suppress(RequestTimeoutError, RequestExpiredError),
                    connection.request_updates(updates(), 16, deadline_s=_timeout_s(client.random)) as indexes,
                ):
                    for index in indexes:
                        client.finish(started[done], index)
                        done += 1
                for operation in started[done:]:
                    client.finish(operation, _UNKNOWN)
                # As many as all the others together would be too many.
                self._stopping.wait(_EXPIRED_S + done * 0.005)

    def _run_store(self, client: Client) -> None:
        deadline_s = _timeout_s(client.random)
        with KeyValueClient(self._urls, secret=self._secret, heartbeat_ms=1000, deadline_s=deadline_s) as store:
            for _ in self._turns(client):
                operation = client.store_operation()
                client.finish(operation, self._try(client, partial(_store_call, store, operation)))


class AsyncClients:
    """Clients as tasks."""

    def __init__(self, kind: str, urls: list[str], secret: str, clients: list[Client]) -> None:
        self._kind = kind
        self._urls = urls
        self._secret = secret
        self._clients = clients
        self._stopping = asyncio.Event()

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopping.set)
        run = self._run_store if self._kind.endswith("store") else self._run_log
        tasks = [asyncio.ensure_future(self._go_on(run, client)) for client in self._clients]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _go_on(self, run: Callable[[Client], Awaitable[None]], client: Client) -> None:
        while not self._stopping.is_set():
            await run(client)

    async def _thinks(self, client: Client) -> bool:
        """Whether the client goes on, after a while."""
        await asyncio.sleep(client.random.expovariate(1 / _THINK_S[self._kind]))
        return not self._stopping.is_set()

    async def _try(self, client: Client, call: Callable[[], Awaitable[Any]]) -> Any:
        for number in itertools.count(1):
            try:
                return await call()
            except RequestTimeoutError:
                if self._stopping.is_set() or not _is_tried_again(client.random, number):
                    return _UNKNOWN
            except RequestExpiredError:
                await asyncio.sleep(_EXPIRED_S)
                return _UNKNOWN
            except ResultForgottenError:
                return _UNKNOWN
        return _UNKNOWN

    async def _run_log(self, client: Client) -> None:
        deadline_s = _timeout_s(client.random)
        async with AsyncZmqRaftClient(
            self._urls, secret=self._secret, heartbeat_ms=1000, deadline_s=deadline_s
        ) as connection:
            for _ in range(client.random.randint(*_OPERATIONS)):
                if not await self._thinks(client):
                    return
                operation = client.update()
                request_id, data = operation.request_id, client.data(operation)
                client.finish(operation, await self._try(client, partial(connection.request_update, request_id, data)))

    async def _run_store(self, client: Client) -> None:
        deadline_s = _timeout_s(client.random)
        async with AsyncKeyValueClient(
            self._urls, secret=self._secret, heartbeat_ms=1000, deadline_s=deadline_s
        ) as store:
            for _ in range(client.random.randint(*_OPERATIONS)):
                if not await self._thinks(client):
                    return
                operation = client.store_operation()
                client.finish(operation, await self._try(client, partial(_store_call, store, operation)))


def _store_call(store: KeyValueClient | AsyncKeyValueClient, operation: Operation) -> Any:
    """What a client of the store returns for an operation: a result, or an awaitable of it."""
    kind, key, *values = operation.command
    name = key.encode()
    if kind == "get":
        return store.get(name)
    if kind == "put":
        return store.put(name, values[0].encode(), request_id=operation.request_id)
    expected = None if values[0] is None else values[0].encode()
    return store.compare_and_swap(name, expected, values[1].encode(), request_id=operation.request_id)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--url", nargs="+", required=True)
    parser.add_argument("--secret", required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    arguments = parser.parse_args()
    recorder = Recorder(arguments.history)
    clients = []
    for number in range(_CLIENTS):
        name = f"{arguments.kind} {number}"
        clients.append(Client(name, Random(f"{arguments.seed} {name}"), recorder, only_reads=number == 0))
    program = AsyncClients if arguments.kind.startswith("asyncio") else BlockingClients
    program(arguments.kind, arguments.url, arguments.secret, clients).run()
    recorder.close()


if __name__ == "__main__":
    main()
