"""The state machine that users write: it gets every committed entry once, in order, on every peer.

Raft knows nothing of what the entries mean. The rule: `apply_entries` must be deterministic (no clock, no random, no
order of sets), since every peer's state is the result of the same entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from zmqraft.errors import ConfigurationError

if TYPE_CHECKING:
    from zmqraft.api.snapshot import SnapshotBase
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
    `tick` and `close` in the peer's thread, which they must not hold up; `apply_entries` and `snapshot` in a thread of
    its own, unless the class sets ``inline = True``; `restore` before anything else, in the thread that makes the peer.

    One that offers snapshots (`snapshot` and `restore`) lets its peer compact the log.
    """

    #: Apply in the peer's own thread: only for a machine that never waits.
    inline = False

    @property
    def last_applied(self) -> int:
        """The index of the last entry that a persistent state machine has stored; 0 for one that starts empty.

        Read once, before the peer starts, and after `restore`; entries are applied from the next one on. It must have
        been committed.
        """
        return 0

    def start(self, peer: PeerHandle) -> None:
        """The peer is about to run."""

    @abstractmethod
    def apply_entries(self, entries: EntryBatch, term: int) -> Sequence[Any] | None:
        """Apply committed entries, ``entries.first_index`` to ``entries.last_index``, of all types.

        ``term`` is the peer's current term. An exception stops the peer: it could not go on with a hole in its state.

        What it returns is for those who update through this peer (`ZmqRaft.update`): one result for each entry, in
        their order. A machine without results returns None, and is declared so.
        """

    def snapshot(self) -> bytes | Iterable[bytes] | None:
        """The state after the entry applied last, as bytes or as chunks of bytes of any sizes; None when there is no
        such thing, and then the log is never compacted here.

        Called between two calls of `apply_entries`, in the same thread, and must return soon: entries wait for it. What
        it returns is a view that never changes: it is consumed once, later and in another thread, while further entries
        are applied. So it must not read what `apply_entries` writes. Ways to do that: encode a small state at once;
        copy the containers, when the values in them are never changed in place; give a generator a transaction that
        reads (of a database that has them); or a forked process. ``dict(self.values).items()`` is a view,
        ``self.values.items()`` is not.

        The bytes are the state machine's affair, compressed or not; `restore` must understand them, also those of
        earlier versions. They need not be the same on every peer. When it raises an exception, or the iterator does,
        there is no snapshot this time, and the peer goes on.
        """
        return None

    def restore(self, snapshot: SnapshotBase) -> None:
        """Become what the snapshot says: the state after the entry at ``snapshot.index``.

        Called at the start of a peer when `last_applied` is below the snapshot's index; ``snapshot.chunks()`` are the
        data. A persistent state machine has stored it durably when this returns, so that `last_applied` is the
        snapshot's index. By default a ConfigurationError, since with the entries below the snapshot left out the state
        would be wrong. An exception keeps the peer from starting.
        """
        raise ConfigurationError(
            f"the log begins behind a snapshot of index {snapshot.index}, which {type(self).__name__} cannot restore: "
            "implement restore()"
        )

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
