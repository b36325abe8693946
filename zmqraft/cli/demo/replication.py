"""The two ends of the demo's stream: the lines that go in, many in flight, and those that a subscriber reads.

Knows nothing of processes. The rule: an index that was acknowledged is one that the line is at; that is checked at the
end, against what every peer has on disk.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import pairwise
from types import TracebackType

from zmqraft.cli.demo.cluster import DemoError
from zmqraft.cli.demo.interruption import POLL_S, Interruption
from zmqraft.client import ZmqRaftClient, ZmqRaftSubscriber
from zmqraft.errors import ZmqRaftError
from zmqraft.protocol.entry import LogEntry

__all__ = ["Replication", "SubscriberThread"]

#: How many lines are under way at once, at most; fewer for a short file, so that its end does not overtake the loss of
#: the leader.
_IN_FLIGHT_MAX = 256
_IN_FLIGHT_PART = 8
#: No line may take longer, even through an election on a very slow machine.
_DEADLINE_S = 60.0


class Replication:
    """Sends lines to the cluster, in their order, and remembers where and when each was committed."""

    def __init__(
        self,
        client: ZmqRaftClient,
        lines: Sequence[bytes],
        progress: Callable[[int, int], None],
        interruption: Interruption,
    ) -> None:
        self._client = client
        self._interruption = interruption
        self._lines = lines
        self._progress = progress
        self._in_flight = max(min(_IN_FLIGHT_MAX, len(lines) // _IN_FLIGHT_PART), 1)
        self._sent = 0
        self._under_way: deque[Future[int]] = deque()
        #: The index of every line that is committed.
        self.indexes: list[int] = []
        # When there was a commit, in seconds on the monotonic clock; appended to by the client's thread.
        self._times: list[float] = []

    def send_until(self, count: int) -> None:
        """Go on until the first ``count`` lines are committed; those after them are under way, as far as allowed.

        Raises DemoError when a line is not committed in time, click.Abort when the demo is to end.
        """
        while len(self.indexes) < count:
            while self._sent < len(self._lines) and len(self._under_way) < self._in_flight:
                future = self._client.submit_update(self._lines[self._sent], deadline_s=_DEADLINE_S)
                future.add_done_callback(lambda _: self._times.append(time.monotonic()))
                self._under_way.append(future)
                self._sent += 1
            first = self._under_way[0]
            while not _has_ended(first, POLL_S):  # every update has a deadline
                self._interruption.check()
            try:
                index = first.result()
            except ZmqRaftError as error:
                raise DemoError(f"line {len(self.indexes) + 1} was not committed: {error}") from error
            self._under_way.popleft()
            self.indexes.append(index)
            self._progress(len(self.indexes), len(self._lines))

    def pause_s(self, since: float) -> float:
        """The longest time without a commit, from the last one before the moment ``since`` on, in seconds."""
        times = sorted(self._times)
        times = times[max(bisect_left(times, since) - 1, 0) :]
        return max((after - before for before, after in pairwise(times)), default=0.0)


def _has_ended(future: Future[int], wait_s: float) -> bool:
    try:
        future.result(wait_s)
    except Exception:
        return future.done()  # failed; or else only the wait has ended
    return True


class SubscriberThread:
    """Collects what a subscriber reads, from the start of the log, while everything else goes on."""

    def __init__(self, urls: Sequence[str], secret: bytes, interruption: Interruption) -> None:
        self._interruption = interruption
        self._subscriber = ZmqRaftSubscriber(urls, secret=secret, last_index=0)
        self._thread = threading.Thread(target=self._collect, name="zmqraft-demo-subscriber", daemon=True)
        self._changed = threading.Condition()
        self._entries: list[LogEntry] = []
        self._error: Exception | None = None

    def __enter__(self) -> SubscriberThread:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._subscriber.close()
        self._thread.join()

    def _collect(self) -> None:
        try:
            for item in self._subscriber:
                if not isinstance(item, LogEntry):
                    raise DemoError("the subscriber got a snapshot, but nobody made one")
                with self._changed:
                    self._entries.append(item)
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def entries_until(self, index: int) -> list[LogEntry]:
        """The entries, once the one at ``index`` is there.

        Raises DemoError when it does not come, click.Abort when the demo is to end.
        """
        done = self._interruption.wait_for(lambda wait_s: self._has_ended_at(index, wait_s), _DEADLINE_S)
        with self._changed:
            if self._last_index < index:
                reason = self._error if done else f"nothing after entry {self._last_index} for {_DEADLINE_S:.0f} s"
                raise DemoError(f"the subscriber did not get entry {index}: {reason}")
            return list(self._entries)

    def _has_ended_at(self, index: int, wait_s: float) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._error or self._last_index >= index, wait_s))

    @property
    def _last_index(self) -> int:
        return self._entries[-1].index if self._entries else 0
