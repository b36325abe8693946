"""Every exception that a user of zmqraft may see, grouped by when it occurs.

Knows nothing of sockets, files or Raft. The one rule: an error says what was wrong, with the value, where (file,
offset, peer, setting), and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "ClosedError",
    "CompactedError",
    "ConfigUpdateInProgressError",
    "ConfigUpdateRefusedError",
    "ConfigurationError",
    "CorruptionError",
    "InvariantError",
    "LocalProtocolError",
    "NotLeaderError",
    "NotSupportedError",
    "OutOfOrderError",
    "PeerFailedError",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestError",
    "RequestExpiredError",
    "RequestTimeoutError",
    "ResultForgottenError",
    "StorageError",
    "StorageFailedError",
    "ZmqRaftError",
    "shown",
]


class ZmqRaftError(Exception):
    """The base of every error that zmqraft raises on purpose."""


# --- before anything runs -------------------------------------------------------------------------------------------


class ConfigurationError(ZmqRaftError, ValueError):
    """A setting, a configuration file or a command line is wrong; the message names the setting and the value."""


# --- on the wire: whose fault it is ---------------------------------------------------------------------------------


class ProtocolError(ZmqRaftError):
    """A message does not follow the protocol."""


class LocalProtocolError(ProtocolError, ValueError):
    """This side tried to send something that the protocol does not allow. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something malformed. The message is to be dropped and counted."""


# --- on disk --------------------------------------------------------------------------------------------------------


class StorageError(ZmqRaftError):
    """A data directory or a file in it cannot be used."""


class CorruptionError(StorageError):
    """Stored data is damaged and cannot be repaired without losing what may have been acknowledged.

    The message names the file, the offset where that is known, and the remedy. ``path``, ``offset`` (in bytes from the
    start of the file) and ``index`` (of the entry) say the same to a program; each is None where it is not known.
    """

    def __init__(
        self, message: str, *, path: str | None = None, offset: int | None = None, index: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset
        self.index = index


class StorageFailedError(StorageError):
    """An earlier write or sync failed: nothing more is written to, or acknowledged from, these files.

    A failed sync must not be tried again: the kernel may have dropped the pages. Start the peer anew; it verifies
    from disk what is really there.
    """


# --- in a running peer ----------------------------------------------------------------------------------------------


class InvariantError(ZmqRaftError):
    """A relation that guards data does not hold. The peer stops: going on could lose acknowledged entries."""


class PeerFailedError(ZmqRaftError):
    """The peer has stopped because of an error, which is this one's cause."""


# --- in a client ----------------------------------------------------------------------------------------------------


class RequestError(ZmqRaftError):
    """A client's request did not succeed."""


class NotLeaderError(RequestError):
    """The peer asked is not the leader.

    ``leader_id`` is the id of the leader that it knows of, or None.
    """

    def __init__(self, leader_id: str | None, message: str | None = None) -> None:
        super().__init__(message or f"not the leader; the leader is {leader_id or 'not known'}")
        self.leader_id = leader_id


class NotSupportedError(RequestError):
    """The peer cannot do this: it is one of zmq-raft, or of an earlier version."""


class RequestExpiredError(RequestError):
    """The request id is too old, or too far in the future, to be taken. Final: the same id never succeeds."""


class ConfigUpdateRefusedError(RequestError):
    """The leader refused a change of the cluster's members. Nothing was changed.

    ``name`` is the kind of error and ``reason`` what the leader said about it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the change of the cluster was refused: {reason} ({name})")
        self.name = name
        self.reason = reason


class ConfigUpdateInProgressError(RequestError):
    """Another change of the cluster's members is under way. Nothing was changed; repeat it when that one is done."""


class RequestTimeoutError(RequestError, TimeoutError):
    """The deadline of a request has passed. An update may or may not be committed; repeating it with the same
    request id is safe."""


class ResultForgottenError(RequestError):
    """An update is applied, but what the state machine returned for it is no longer known.

    It was applied before it was asked for again with the same request id, or came with a snapshot. ``index`` is that of
    its entry.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"the entry at index {index} is applied; what the state machine returned for it is forgotten")
        self.index = index


class OutOfOrderError(RequestError):
    """A stream of entries has a gap or goes back. The stream is closed; start again from the last good index."""


class CompactedError(OutOfOrderError):
    """What was asked for goes back further than what is kept. ``first_index`` is where that begins."""

    def __init__(self, message: str, first_index: int) -> None:
        super().__init__(message)
        self.first_index = first_index


class ClosedError(RequestError):
    """The client, socket, stream or peer is closed."""


# --- for all of them ------------------------------------------------------------------------------------------------

_SHOWN_LENGTH_MAX = 100


def shown(value: object) -> str:
    """A value for the text of an error: its repr, cut to 100 characters. Never raises."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, or a __repr__ that fails
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN_LENGTH_MAX else f"{text[: _SHOWN_LENGTH_MAX - 3]}..."
