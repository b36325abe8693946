"""One PySyncObj peer that loads itself: ``python -m bench.pysyncobj_peer ITS_ADDRESS OTHERS CONTROL_URL``.

Answers JSON on a REP socket: ``{"op": "status"}`` says whether it leads, ``{"op": "measure", "count", "in_flight",
"size_bytes", "timeout_s"}`` has the updates made in the leader's own process, as PySyncObj is used, and answers what
the load generator prints. It keeps the log in memory: nothing is written, nothing is synced.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import zmq
from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found,unused-ignore]

from bench.etcd_load import summary


class Log(SyncObj):  # type: ignore[misc,unused-ignore]
    """Takes updates, and only counts them."""

    def __init__(self, address: str, others: list[str]) -> None:
        super().__init__(address, others, SyncObjConf(autoTick=True, fullDumpFile=None, journalFile=None))
        self.count = 0

    @replicated  # type: ignore[untyped-decorator,unused-ignore]
    def put(self, data: bytes) -> int:
        self.count += 1
        return self.count


class _LoadRun:
    """Keeps so many updates on the way until all are done."""

    def __init__(self, log: Log, count: int, in_flight: int, size_bytes: int) -> None:
        self._log = log
        self._data = b"a" * size_bytes
        self._count = count
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self._sent = 0
        self._refused = 0
        self._times_s: list[float] = []
        self._done = threading.Event()

    def measure(self, timeout_s: float) -> str:
        start = time.perf_counter()
        for _ in range(min(self._in_flight, self._count)):
            self._send()
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"{len(self._times_s)} of {self._count} updates within {timeout_s:.0f} s")
        elapsed_s = time.perf_counter() - start
        return summary(self._times_s, elapsed_s, self._in_flight, len(self._data), self._refused)

    def _send(self) -> None:
        with self._lock:
            if self._sent == self._count:
                return
            self._sent += 1
        start = time.perf_counter()

        def answered(result: object, error: object) -> None:
            with self._lock:
                self._refused += bool(error)
                self._times_s.append(time.perf_counter() - start)
                done = len(self._times_s) == self._count
            if done:
                self._done.set()
            else:
                self._send()

        self._log.put(self._data, callback=answered)


def _answer(log: Log, request: dict[str, Any]) -> str:
    if request["op"] == "measure":
        try:
            load = _LoadRun(log, request["count"], request["in_flight"], request["size_bytes"])
            return load.measure(request["timeout_s"])
        except TimeoutError as error:
            return json.dumps({"error": str(error)})
    status = log.getStatus()
    leads = status["leader"] is not None and status["leader"] == status["self"]
    return json.dumps({"leads": bool(leads and log.isReady())})


def main() -> None:
    address, others, control = sys.argv[1:]
    log = Log(address, others.split(","))
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.linger = 0
        socket.bind(control)
        while True:
            socket.send_string(_answer(log, json.loads(socket.recv())))


if __name__ == "__main__":
    main()
