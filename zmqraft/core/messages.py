"""What peers say to each other, decoded, and what the core asks its host to do. Data only.

The wire form of each message is in `zmqraft.protocol`. The core never sees the bytes of entries: it handles batches of
them through the few relations of `Entries`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from zmqraft.core.configuration import ClusterConfiguration

__all__ = [
    "AppendEntries",
    "AppendReply",
    "AppendToLog",
    "CheckpointToLog",
    "CommitNotice",
    "Entries",
    "LogEffect",
    "RequestVote",
    "SendAppend",
    "SendCommitNotice",
    "SendSnapshot",
    "SendVoteRequest",
    "SnapshotReply",
    "ToPeer",
    "TransferNotice",
    "TruncateLog",
    "VoteReply",
]


class Entries(Protocol):
    """Consecutive log entries, as the core sees them; `zmqraft.EntryBatch` is one."""

    def __len__(self) -> int: ...

    @property
    def first_index(self) -> int: ...

    @property
    def last_index(self) -> int: ...

    def term_runs(self) -> list[tuple[int, int]]: ...

    def slice(self, first: int, last: int) -> Entries: ...


# --- between peers (figure 2 of the paper) --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestVote:
    """A candidate asks for a vote (section 5.2)."""

    candidate_id: str
    term: int
    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True)
class VoteReply:
    """The answer. A refusal whose term is below the candidate's says "not now: I hear a leader"."""

    term: int
    granted: bool


@dataclass(frozen=True, slots=True)
class AppendEntries:
    """A leader's entries, or its heartbeat (section 5.3).

    ``configurations`` are the decoded CONFIG entries among ``entries``, as (index, configuration), rising.
    """

    leader_id: str
    term: int
    prev_index: int
    prev_term: int
    commit_index: int
    entries: Entries
    configurations: Sequence[tuple[int, ClusterConfiguration]] = ()


@dataclass(frozen=True, slots=True)
class AppendReply:
    """The answer. On failure ``conflict_index``, where given, is where the leader should go on."""

    term: int
    success: bool
    conflict_index: int | None = None
    conflict_term: int | None = None


class SnapshotReply(enum.Enum):
    """What a peer makes of the chunk of a snapshot: it is of an old term, it is not needed, or it is wanted."""

    STALE = "stale"
    HAVE = "have"
    WANTED = "wanted"


@dataclass(frozen=True, slots=True)
class TransferNotice:
    """A leader makes way for ``target_id``, which has all its entries (own message; thesis 3.10). It has no reply."""

    leader_id: str
    term: int
    target_id: str


@dataclass(frozen=True, slots=True)
class CommitNotice:
    """A leader's commit index by itself, for a peer that is known to understand it (own message). It has no reply."""

    leader_id: str
    term: int
    commit_index: int


# --- from the core to its host: what to send ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendVoteRequest:
    """Send this vote request, after term and vote are durable."""

    request: RequestVote


@dataclass(frozen=True, slots=True)
class SendAppend:
    """Send entries from ``prev_index + 1`` on, at most ``count_max`` of them and none above ``last_index``."""

    term: int
    prev_index: int
    prev_term: int
    commit_index: int
    last_index: int
    count_max: int | None


@dataclass(frozen=True, slots=True)
class SendCommitNotice:
    """Send this notice; it is not answered, and may get lost."""

    notice: CommitNotice


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """The entries that the peer needs are compacted away: it needs the snapshot. Send the next chunk of the one under
    way to it, or begin with the log's."""

    term: int


ToPeer: TypeAlias = "SendVoteRequest | SendAppend | SendCommitNotice | SendSnapshot"


# --- from the core to its host: what to do to the log, in this order ------------------------------------------------


@dataclass(frozen=True, slots=True)
class TruncateLog:
    """Remove the entries above ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class AppendToLog:
    """Append these entries."""

    entries: Entries


@dataclass(frozen=True, slots=True)
class CheckpointToLog:
    """Append a CHECKPOINT entry of this term at this index."""

    index: int
    term: int


LogEffect: TypeAlias = "TruncateLog | AppendToLog | CheckpointToLog"
