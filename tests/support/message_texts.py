"""What peers and clients say to each other, as a line of a transcript."""

from __future__ import annotations

from collections.abc import Sequence

from support.scripted_cluster import Held
from zmqraft import constants
from zmqraft.protocol import ABSENT, EntryBatch, LogEntry, Protocols, decode_json


def letter(peer_id: object) -> str:
    """The name of a peer in a script; nobody's is a dash."""
    return chr(ord("A") + int(str(peer_id)) - 1) if peer_id else "-"


def letters(ids: str) -> str:
    """As `Peer.members`."""
    return " ".join("".join(map(letter, group)) for group in ids.split())


def entry_text(entry: LogEntry) -> str:
    """Index, term and what is in it."""
    what = f"{entry.index}:{entry.term}"
    if entry.is_config:
        value = decode_json(entry.data)
        lists = [value["old"], value["new"]] if isinstance(value, dict) else [value]
        return f"{what}({' '.join(''.join(letter(each) for each, _ in peers) for peers in lists)})"
    return what if entry.is_checkpoint else f"{what}({entry.data.decode()})"


def message_text(held: Held) -> str:
    """Of a peer to another."""
    return (_reply_text if held.is_reply else _request_text)(held.message_type, held.frames[1:])


def _request_text(message_type: bytes, frames: Sequence[bytes]) -> str:
    if message_type == constants.REQUEST_VOTE:
        *_, term, index, last_term = Protocols.REQUEST_VOTE.decode_request(frames)
        return f"vote? term {term}, last {index}:{last_term}"
    if message_type == constants.APPEND_ENTRIES:
        *_, term, index, prev_term, commit, entries = Protocols.APPEND_ENTRIES.decode_request(frames)
        what = " ".join(map(entry_text, EntryBatch.from_frames(index + 1, entries)))
        return f"append term {term}, previous {index}:{prev_term}, commit {commit}{', ' if what else ''}{what}"
    if message_type == constants.COMMIT_NOTICE:
        *_, term, commit = Protocols.COMMIT_NOTICE.decode_request(frames)
        return f"committed term {term}, {commit}"
    if message_type in (constants.INSTALL_SNAPSHOT, constants.OWN_INSTALL_SNAPSHOT):
        _, _, _, term, index, last_term, *_ = Protocols.INSTALL_SNAPSHOT.decode_request(frames)
        return f"snapshot term {term}, {index}:{last_term}"
    return "make way" if message_type == constants.TRANSFER_NOTICE else "introduction"


def _reply_text(message_type: bytes, frames: Sequence[bytes]) -> str:
    if message_type == constants.REQUEST_VOTE:
        term, granted = Protocols.REQUEST_VOTE.decode_response(frames)
        return f"vote {'granted' if granted else 'refused'}, term {term}"
    if message_type == constants.APPEND_ENTRIES:
        term, success, conflict, _ = Protocols.APPEND_ENTRIES.decode_response(frames)
        return f"append {'ok' if success else 'refused'}, term {term}" + (f", go on at {conflict}" if conflict else "")
    term, *_ = Protocols.INSTALL_SNAPSHOT.decode_response(frames)
    return f"snapshot ok, term {term}"


def answer_text(name: str, frames: Sequence[bytes]) -> str:
    """To a client's request of this name: "read at A", "change to AB", or the data of an update."""
    if name.startswith("read "):
        index, leader_id = Protocols.READ_INDEX.decode_response(frames)
        return f"refused, the leader is {letter(leader_id)}" if index is None else f"index {index}"
    protocol = Protocols.CONFIG_UPDATE if name.startswith("change ") else Protocols.REQUEST_UPDATE
    status, value = protocol.decode_response(frames)
    if status == constants.CONFIG_IN_PROGRESS:
        return "refused, another change is under way"
    if not status:
        return f"refused, the leader is {letter(value)}"
    return "accepted" if value is ABSENT else f"done at {value}"
