"""Events by name, and the one event that everybody waits for: ready.

Knows nothing of what emits. The rule: a callback that raises is logged and never stops who emits, nor the others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["ReadyEmitter"]

logger = logging.getLogger(__name__)

Callback = Callable[..., object]


class ReadyEmitter:
    """Callbacks by event name, called in the thread that emits; and a flag that says "ready". Thread-safe."""

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callback]] = {}
        self._callbacks_lock = threading.Lock()
        self._ready = threading.Event()

    def on(self, event: str, callback: Callback) -> Callback:
        """Call ``callback`` with the event's values each time it is emitted. Returns the callback, for `off`."""
        with self._callbacks_lock:
            self._callbacks.setdefault(event, []).append(callback)
        return callback

    def off(self, event: str, callback: Callback) -> None:
        """Do not call ``callback`` any more. Nothing happens when it is not registered."""
        with self._callbacks_lock:
            callbacks = self._callbacks.get(event, [])
            if callback in callbacks:
                callbacks.remove(callback)

    def emit(self, event: str, *values: Any) -> None:
        """Call everybody who waits for ``event``, in the order in which they registered."""
        with self._callbacks_lock:
            callbacks = list(self._callbacks.get(event, ()))
        for callback in callbacks:
            try:
                callback(*values)
            except Exception:
                logger.exception("a callback for the event %r failed", event)

    def set_ready(self) -> None:
        """Say that it is ready: lets everybody in `wait_ready` go on."""
        self._ready.set()

    @property
    def is_ready(self) -> bool:
        """Whether `set_ready` was called."""
        return self._ready.is_set()

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until it is ready, at most ``timeout_s`` seconds. Returns whether it is."""
        return self._ready.wait(timeout_s)
