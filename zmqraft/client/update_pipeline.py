"""Many updates of one stream, without thread, event loop or clock: what is under way, and what ends with a failure.

Knows nothing of who reads the stream. The rule: an update behind one that failed for good is not sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from zmqraft.client.requests import Request
from zmqraft.client.session import ClientSession

__all__ = ["PipelinedUpdate", "UpdatePipeline"]


class PipelinedUpdate:
    """One update, as the sink of its request; ``outcome`` is None while it is under way."""

    __slots__ = ("outcome", "pipeline", "position", "request", "size")

    def __init__(self, pipeline: UpdatePipeline, position: int) -> None:
        self.pipeline = pipeline
        self.position = position
        self.size = 0
        #: None when there is none yet, or none any longer: each knows the other, and a cycle would be left behind.
        self.request: Request | None = None
        self.outcome: int | BaseException | None = None

    def set_result(self, result: int, /) -> None:
        """For the session: the update is committed."""
        self.pipeline.ended(self, result)

    def set_exception(self, exception: BaseException, /) -> None:
        """For the session: the update failed for good."""
        self.pipeline.ended(self, exception)


class UpdatePipeline:
    """What is under way. Not thread-safe: all but `failed` is for the one who drives the session."""

    def __init__(
        self, session: ClientSession, release: Callable[[int], None], changed: Callable[[PipelinedUpdate], None]
    ) -> None:
        """``release`` hears of the size of each update that ends; ``changed`` of each that has an outcome."""
        self._session = session
        self._release = release
        self._changed = changed
        self._started: dict[int, PipelinedUpdate] = {}
        #: Updates from this position on are not started.
        self._end: float = math.inf

    @property
    def failed(self) -> bool:
        """Whether an update failed for good, so that those behind it are in vain."""
        return self._end < math.inf

    def start(self, update: PipelinedUpdate, now: float) -> None:
        """Begin an update, unless it is in vain."""
        if update.position >= self._end or update.request is None:
            self._release(update.size)
        else:
            self._started[update.position] = update
            self._session.start(update.request, now)

    def ended(self, update: PipelinedUpdate, outcome: int | BaseException) -> None:
        """An update has its outcome."""
        if self._started.pop(update.position, None) is None:
            return  # a session that is closing tells also those that were cancelled while it was at it
        self._release(update.size)
        update.request = None
        update.outcome = outcome
        self._changed(update)
        if isinstance(outcome, BaseException):
            self._cancel_from(update.position)

    def finish(self) -> None:
        """Cancel all that is under way, and start nothing more."""
        self._cancel_from(-1)

    def _cancel_from(self, end: int) -> None:
        self._end = min(self._end, end)
        for update in [each for each in self._started.values() if each.position > end]:
            if update.request is not None and self._session.cancel(update.request):
                del self._started[update.position]
                self._release(update.size)
                update.request = None
