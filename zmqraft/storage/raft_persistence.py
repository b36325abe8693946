"""What a peer must never forget, in ``raft.pers``; and what a broadcast state machine remembers, in ``state.pers``.

Knows the keys and values of SPEC section 3, and nothing of how they are stored. The rule: a vote is never taken back
nor given to another one in its term.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

from zmqraft.api.persistence import PeersValue, PersistenceBase
from zmqraft.errors import CorruptionError
from zmqraft.protocol.request_id import request_id_from_text, request_id_to_base64
from zmqraft.storage.file_persistence import (
    STATE_FILE_SIZE_MAX,
    Field,
    FilePersistence,
    decode_integer,
    encode_integer,
)
from zmqraft.storage.fs import OS_FILE_SYSTEM, FileSystem
from zmqraft.storage.state_records import StateRecord, TornRecord, read_records

__all__ = ["RaftPersistence", "StatePersistence", "check_peers", "check_vote", "cluster_hash", "read_state_file"]


def check_vote(stored: tuple[int, str | None], current_term: int, voted_for: str | None) -> None:
    """ValueError when the stored term and vote must not be followed by these (Raft paper, section 5.2)."""
    stored_term, stored_vote = stored
    if current_term < stored_term:
        raise ValueError(f"the term cannot go back from {stored_term} to {current_term}")
    if current_term == stored_term and stored_vote is not None and voted_for != stored_vote:
        raise ValueError(f"the vote of term {current_term} is {stored_vote!r}; it cannot become {voted_for!r}")


def cluster_hash(secret: bytes) -> str:
    """What stands for the secret of a cluster in its files: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(secret).hexdigest()[:16]


def _text(value: object) -> str:
    # A zero byte can only come from a record that was torn by a crash.
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is not an id or url")
    return value


def _peer_list(value: object) -> list[tuple[str, str]]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is not a list of peers")
    peers: list[tuple[str, str]] = []
    for peer in value:
        if not isinstance(peer, list | tuple) or len(peer) != 2:
            raise ValueError(f"{peer!r} is not a peer, [id, url]")
        peers.append((_text(peer[0]), _text(peer[1])))
    return peers


def check_peers(value: object) -> PeersValue:
    """A configuration in its canonical form. ValueError when it is none."""
    if isinstance(value, Mapping):
        if set(value) != {"old", "new"}:
            raise ValueError(f"{value!r} is not a configuration, {{old, new}}")
        return {key: _peer_list(value[key]) for key in ("old", "new")}
    return _peer_list(value)


def _request_id(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not the text of a request id")
    return request_id_from_text(value)


_RAFT_FIELDS: Final[Mapping[str, Field]] = {
    "currentTerm": Field(0, decode_integer, encode_integer, rises=True),
    "votedFor": Field(None, _text, _text, nullable=True),
    "peers": Field(None, check_peers, check_peers),
    "peersUpdateRequest": Field(None, _request_id, request_id_to_base64, nullable=True),
    "peersIndex": Field(None, decode_integer, encode_integer, nullable=True),
}

_STATE_FIELDS: Final[Mapping[str, Field]] = {"lastApplied": Field(0, decode_integer, encode_integer)}


def read_state_file(path: str, content: bytes) -> Iterator[StateRecord | TornRecord | CorruptionError]:
    """All that is in a file called as one of the two kinds, with this content; see `read_records`."""
    if PurePath(path).name.startswith("state."):
        return read_records(path, content, _STATE_FIELDS, always_durable=False)
    return read_records(path, content, _RAFT_FIELDS, always_durable=True)


class RaftPersistence(PersistenceBase):
    """Term, vote and configuration of a peer in a file. `RaftPersistence.open` makes one."""

    def __init__(self, file: FilePersistence, has_secret: bool) -> None:
        """For `open` only."""
        self._file = file
        self._has_secret = has_secret

    @classmethod
    def open(
        cls,
        path: str | PurePath,
        *,
        peer_id: str,
        cluster: bytes,
        size_max: int = STATE_FILE_SIZE_MAX,
        fs: FileSystem = OS_FILE_SYSTEM,
    ) -> RaftPersistence:
        """Open the state of the peer ``peer_id`` in the cluster with the secret ``cluster``, or make an empty one.

        Raises ConfigurationError when the file is that of another peer or cluster (one that only zmq-raft has written
        does not say whose it is), CorruptionError when it is damaged, StorageError when it cannot be opened or made.
        """
        marks = {"peerId": peer_id, "clusterHash": cluster_hash(cluster)}
        return cls(FilePersistence.open(path, _RAFT_FIELDS, marks=marks, size_max=size_max, fs=fs), bool(cluster))

    @property
    def is_identified(self) -> bool:
        return self._has_secret and self._file.has_marks

    @property
    def path(self) -> str:
        """The path of the file."""
        return self._file.path

    @property
    def failure(self) -> BaseException | None:
        """The first error of a write; None while all went well."""
        return self._file.failure

    @property
    def current_term(self) -> int:
        term: int = self._file["currentTerm"]
        return term

    @property
    def voted_for(self) -> str | None:
        voted_for: str | None = self._file["votedFor"]
        return voted_for

    @property
    def peers(self) -> PeersValue | None:
        return copy.deepcopy(self._file["peers"])  # type: ignore[no-any-return]

    @property
    def peers_update_request(self) -> bytes | None:
        request_id: bytes | None = self._file["peersUpdateRequest"]
        return request_id

    @property
    def peers_index(self) -> int | None:
        index: int | None = self._file["peersIndex"]
        return index

    def update_vote(self, current_term: int, voted_for: str | None) -> None:
        check_vote((self.current_term, self.voted_for), current_term, voted_for)
        self._file.update({"currentTerm": current_term, "votedFor": voted_for})

    def update_peers(self, peers: PeersValue, request_id: bytes | None, index: int | None) -> None:
        changes: dict[str, Any] = {"peers": check_peers(peers), "peersUpdateRequest": request_id, "peersIndex": index}
        self._file.update(changes)

    def close(self) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return f"<RaftPersistence {self.path} of term {self.current_term}>"


class StatePersistence:
    """The index of the last entry that a state machine has applied, in a file."""

    def __init__(self, file: FilePersistence) -> None:
        """For `open` only."""
        self._file = file

    @classmethod
    def open(
        cls, path: str | PurePath, *, size_max: int = STATE_FILE_SIZE_MAX, fs: FileSystem = OS_FILE_SYSTEM
    ) -> StatePersistence:
        """Open the file, or make an empty one. Raises CorruptionError, StorageError."""
        return cls(FilePersistence.open(path, _STATE_FIELDS, size_max=size_max, always_durable=False, fs=fs))

    @property
    def path(self) -> str:
        """The path of the file."""
        return self._file.path

    @property
    def failure(self) -> BaseException | None:
        """The first error of a write; None while all went well."""
        return self._file.failure

    @property
    def last_applied(self) -> int:
        """The index stored last; 0 at first."""
        index: int = self._file["lastApplied"]
        return index

    def update(self, last_applied: int, *, durable: bool = True) -> None:
        """Store the index. Without ``durable`` a crash may bring back an earlier one.

        Raises StorageFailedError when this or an earlier write failed.
        """
        self._file.update({"lastApplied": last_applied}, durable=durable)

    def close(self) -> None:
        """Close the file. Does not sync. May be called twice."""
        self._file.close()
