"""The state machine that users write: it gets every committed entry once, in order, on every peer.

Raft knows nothing of what the entries mean. The rule: `apply_entries` must be deterministic (no clock, no random, no
order of sets), since every peer's state is the result of the same entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zmqraft.protocol.entry import EntryBatch

__all__ = ["PeerHandle", "StateMachineBase"]


class PeerHandle(Protocol):
    """What a state machine may know of, and ask from, the peer that it belongs to."""

    @property
    def id(self) -> str:
        """The id of the peer."""

    @property
    def secret(self) -> bytes:
        """The secret of the cluster."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the peer's thread. From any thread."""

    def send(self, route: tuple[bytes, bytes], frames: Sequence[bytes]) -> None:
        """Send a message to a client that sent one: ``route`` as `on_message` got it. From any thread."""


class StateMachineBase(ABC):
    """Derive from this, and implement `apply_entries`.

    The other methods do nothing until overridden. All are called one at a time: `start`, `on_message`, `role_changed`,
    `tick` and `close` in the peer's thread, which they must not hold up; `apply_entries` in a thread of its own, unless
    the class sets ``inline = True``.
    """

    #: Apply in the peer's own thread: only for a machine that never waits.
    inline = False

    @property
    def last_applied(self) -> int:
        """The index of the last entry that a persistent state machine has stored; 0 for one that starts empty.

        Read once, before the peer starts; entries are applied from the next one on. It must have been committed.
        """
        return 0

    def start(self, peer: PeerHandle) -> None:
        """The peer is about to run."""

    @abstractmethod
    def apply_entries(self, entries: EntryBatch, term: int) -> None:
        """Apply committed entries, ``entries.first_index`` to ``entries.last_index``, of all types.

        ``term`` is the peer's current term. An exception stops the peer: it could not go on with a hole in its state.
        """

    def on_message(self, route: tuple[bytes, bytes], message_type: bytes, frames: Sequence[bytes]) -> None:
        """A message of a type that is not Raft's, of a client who knows the secret; answer with `PeerHandle.send`.

        ``route`` is (socket identity, message id); ``frames`` are those after the secret. It may come from anybody
        on the network who knows the secret: check it. On an exception the message is dropped, counted and logged; only
        a ZmqRaftError that is no RemoteProtocolError stops the peer.
        """

    def role_changed(self, role: str, term: int) -> None:
        """The peer is now "follower", "candidate", "leader" or "client" in ``term``."""

    def tick(self, now: float) -> float | None:
        """Called in the peer's thread at least when the time (seconds, monotonic) that it last returned has come.

        Returns the time of the next call that it wants, or None.
        """
        return None

    def close(self) -> None:
        """The peer has ended; no call comes after this one."""
