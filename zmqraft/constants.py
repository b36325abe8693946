"""Numbers and names that the protocol and the files fix, and the defaults of the settings.

Knows nothing of anything else. A limit has a name, a unit in the name, and a reason.
"""

from __future__ import annotations

import enum
from typing import Final

#: The largest integer on the wire and on disk: the largest that a float64 holds with all below it (Node's limit).
INTEGER_MAX: Final = 2**53 - 1
#: A message of a peer that states a higher term than this, and one that is so far above one's own, is not believed. No
#: cluster gets there by itself; one that a single message has led there still has terms left.
TERM_JUMP_MAX: Final = 2**52
TERM_STEP_MAX: Final = 2**32

REQUEST_ID_SIZE: Final = 12
#: Request id, type byte and seven bytes of term before an entry's data.
ENTRY_HEADER_SIZE: Final = 20
#: The request id of entries that no client asked for.
REQUEST_ID_NONE: Final = bytes(REQUEST_ID_SIZE)
#: The data of a CHECKPOINT entry: MessagePack nil.
CHECKPOINT_DATA: Final = b"\xc0"


class Absent(enum.Enum):
    """The type of `ABSENT`."""

    ABSENT = "absent"

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "ABSENT"


#: An optional json frame that a message does not have; None is one that holds null. It is false.
ABSENT: Final = Absent.ABSENT

# Message types: the frame after the message id.
REQUEST_VOTE: Final = b"?"
APPEND_ENTRIES: Final = b"+"
INSTALL_SNAPSHOT: Final = b"$"
REQUEST_UPDATE: Final = b"="
CONFIG_UPDATE: Final = b"&"
REQUEST_ENTRIES: Final = b"<"
REQUEST_CONFIG: Final = b"^"
REQUEST_LOG_INFO: Final = b"%"
REQUEST_BROADCAST_URL: Final = b"*"
REQUEST_WEB_MONITOR_URL: Final = b"W"

#: An own message, of more than one byte as those of other programs must be: what a peer can do beyond zmq-raft, whose
#: peers pass it to their state machine and do not answer.
CAPABILITIES: Final = b"zmqraft"
#: An own message, to peers that have answered the one before: the commit index by itself, with no reply.
COMMIT_NOTICE: Final = b"zmqraft.commit"
#: An own message, of clients to peers that answer CAPABILITIES with it: an index for a linearizable read.
READ_INDEX: Final = b"zmqraft.read"
#: An own message, to such peers as well: InstallSnapshot with what a peer must know beside the state machine's data.
OWN_INSTALL_SNAPSHOT: Final = b"zmqraft.snapshot"
#: An own message, to peers that do not answer: the sender belongs to their cluster, by a configuration that they may
#: not have. It has no reply, and those of zmq-raft pass it to their state machine.
INTRODUCTION: Final = b"zmqraft.member"
#: An own message, to such peers as well: the leader makes way, for the peer that it names. It has no reply.
TRANSFER_NOTICE: Final = b"zmqraft.transfer"

# Status of a ConfigUpdate reply.
CONFIG_NOT_LEADER: Final = 0
CONFIG_ACCEPTED: Final = 1
CONFIG_BAD: Final = 2
CONFIG_IN_PROGRESS: Final = 3
CONFIG_EXPIRED: Final = 4

# Status of a RequestEntries reply.
ENTRIES_NOT_LEADER: Final = 0
ENTRIES_LAST: Final = 1
ENTRIES_MORE: Final = 2
ENTRIES_SNAPSHOT: Final = 3

#: Message ids of peers: 1 to 3 bytes.
PEER_MESSAGE_ID_MAX: Final = 2**24 - 1
#: Message ids of clients: 1 to 4 bytes.
CLIENT_MESSAGE_ID_MAX: Final = 2**32 - 1

PORT_DEFAULT: Final = 8047

ELECTION_TIMEOUT_MIN_MS: Final = 200
ELECTION_TIMEOUT_MAX_MS: Final = 300
#: Added to the first election timeout after the start, so that a restarted peer first listens.
ELECTION_TIMEOUT_START_EXTRA_MS: Final = 300
#: A vote request without a reply is sent again after this.
RPC_TIMEOUT_MS: Final = 50
#: An idle leader sends an empty AppendEntries this long after the last reply.
APPEND_ENTRIES_HEARTBEAT_INTERVAL_MS: Final = 70
#: AppendEntries without a reply is sent again after this: MIN without entries, MAX with entries (and snapshots).
APPEND_ENTRIES_RPC_TIMEOUT_MIN_MS: Final = 70
APPEND_ENTRIES_RPC_TIMEOUT_MAX_MS: Final = 140

MAX_LOG_ENTRY_DATA_SIZE: Final = 10 * 1024 * 1024
#: AppendEntries, snapshot chunks and replies of RequestEntries carry about this many bytes.
PEER_MSG_DATA_SIZE: Final = 65536
#: AppendEntries to a peer that is known to be ours carries about this many bytes: a whole batch, for one sync.
OWN_APPEND_SIZE_MAX: Final = 1024 * 1024
#: At most this many entries in one reply of RequestEntries.
REQUEST_ENTRIES_COUNT_MAX: Final = 4096

REQUEST_ID_TTL_MS: Final = 8 * 3600 * 1000
REQUEST_ID_TTL_ACCEPT_MARGIN_MS: Final = 15 * 60 * 1000
REQUEST_ENTRIES_HIGH_WATERMARK: Final = 8000
REQUEST_ENTRIES_TTL_MS: Final = 5000
REQUEST_ENTRIES_PIPELINES: Final = 5
REQUEST_ENTRIES_SNAPSHOT_PIPELINES: Final = 2

INDEX_FILE_CAPACITY: Final = 16384
INDEX_FILE_CAPACITY_MAX: Final = 16777215
#: The data of one index file stays below this; then the next file is started early.
INDEX_FILE_DATA_SIZE_MAX: Final = 2**30 - 1
#: As many old snapshots, or old state files, are kept under a name with the date.
ROTATED_FILES_MAX: Final = 60

BROADCAST_HEARTBEAT_INTERVAL_MS: Final = 500
#: The frames of a broadcast before its entries: secret, term, last applied index.
BROADCAST_HEAD_FRAMES: Final = 3
#: A client waits this long for a reply before it tries the next peer.
CLIENT_TIMEOUT_MS: Final = 500
#: A client waits this long while no leader is known.
CLIENT_SERVER_ELECTION_GRACE_DELAY_MS: Final = 300
#: A client's ZMQ_SNDHWM: small, so that a dead peer does not collect stale messages.
CLIENT_SNDHWM: Final = 2
