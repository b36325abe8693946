"""Stop after the first failed write: what logs, snapshots and state files have in common.

A failed sync must not be tried again, since the kernel may have dropped the pages and call them clean (SPEC section 5,
number 3). The rule: every call that writes runs in `FailStop.writing`, and whatever goes wrong in it, an interrupt of
the program included, is final for the object.
"""

from __future__ import annotations

from types import TracebackType

from zmqraft.errors import StorageFailedError

__all__ = ["FailStop"]


class FailStop:
    """`failure` is the first error of a write, or None; after it every write is refused."""

    def __init__(self, what: str) -> None:
        """``what`` names the object in messages, with its path."""
        self._what = what
        self.failure: BaseException | None = None

    def fail(self, cause: BaseException) -> None:
        """Refuse every later write, as after a failed one. The first cause stays."""
        if self.failure is None:
            self.failure = cause

    def check_writable(self) -> None:
        """Raise StorageFailedError when an earlier write failed."""
        if self.failure is not None:
            raise StorageFailedError(
                f"{self._what} takes no more writes since one failed ({describe(self.failure)}); "
                "start the peer anew when the cause is gone"
            ) from self.failure

    def writing(self, action: str) -> _Writing:
        """For a ``with`` statement around a write; an exception in it becomes StorageFailedError, now and from then on.

        Raises StorageFailedError when an earlier write failed.
        """
        return _Writing(self, action)


class _Writing:
    """What `FailStop.writing` returns. Not a generator, since this is done twice for each batch."""

    __slots__ = ("_action", "_owner")

    def __init__(self, owner: FailStop, action: str) -> None:
        self._owner = owner
        self._action = action

    def __enter__(self) -> None:
        self._owner.check_writable()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        owner = self._owner
        owner.fail(error)
        if isinstance(error, Exception):
            raise StorageFailedError(f"{owner._what}: cannot {self._action}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """An error in one line: for one of the operating system its text and its file, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__
