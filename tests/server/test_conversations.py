"""Every recorded conversation of compat/conversations.json, held with real peers over real sockets.

What must be the same is which frames answer, and what they mean. Ids, terms, ports and indexes vary: our leader starts
its term with a CHECKPOINT, so each index is one higher than in the recording, and it may leave out the early
"accepted".
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from support.golden import load
from support.local_cluster import PATIENT, SECRET, RawClient, running_cluster, wait_for
from zmqraft.constants import ABSENT
from zmqraft.protocol import (
    EntryBatch,
    EntryType,
    Protocols,
    decode_json,
    encode_json,
    encode_uint,
    request_id_seconds,
)
from zmqraft.server.peer import ZmqRaft

CASES: list[dict[str, Any]] = load("conversations.json")["cases"]
SINGLE = [case for case in CASES if case["server"] == "single peer, leader"]
THREE = [case for case in CASES if case["server"].startswith("three peers") and "send" in case]
BROADCAST = next(case for case in CASES if "messages" in case)
RECORDED_AT = request_id_seconds(bytes.fromhex(SINGLE[2]["send"][0]))
#: Data of the updates that were made between the recorded cases, before the case with this name.
UPDATES_BETWEEN = {
    "RequestEntries, all": [b"entry-%d" % number for number in range(2, 8)],
    "RequestEntries, larger than the pipeline": [bytes([letter]) * 20000 for letter in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"],
}
#: The url of the single peer in the recording.
RECORDED_URL = "tcp://127.0.0.1:9041"
_marks = itertools.count(0x7F000000)


@functools.cache
def started_at() -> int:
    """All ids are moved by the same time, since a repeated one must stay the same: to that of the first test."""
    return int(time.time())


def mark() -> list[bytes]:
    """A request that is always answered, so that its answer marks the end of those before it."""
    return [encode_uint(next(_marks)), b"^", SECRET]


def frames_of(case: dict[str, Any]) -> list[bytes]:
    """What the case sends, with the times in request ids moved to today."""
    frames = [bytes.fromhex(frame) for frame in case["send"]]
    if len(frames[0]) in (11, 12):
        seconds = request_id_seconds(frames[0]) - RECORDED_AT + started_at()
        frames[0] = seconds.to_bytes(4, "big") + frames[0][4:]
    return frames


def recorded(case: dict[str, Any]) -> list[list[bytes]]:
    return [[bytes.fromhex(frame.partition("...")[0]) for frame in reply] for reply in case["replies"]]


class Conversation:
    """One server and the client that talks to it, in the order of the recording."""

    def __init__(self, peer: ZmqRaft, client: RawClient) -> None:
        self.peer = peer
        self.client = client
        #: The last indexes of the replies of the stream under way.
        self.unacknowledged: list[int] = []

    def update(self, data: bytes) -> None:
        request_id = int(time.time()).to_bytes(4, "big") + bytes(4) + next(_marks).to_bytes(4, "big")
        self.client.send(request_id, b"=", SECRET, data)
        while True:
            reply = self.client.receive()
            assert reply[:2] == [request_id, b"\1"]
            if len(reply) == 3:
                return

    def hold(self, case: dict[str, Any]) -> list[list[bytes]]:
        """Send what the case sends. Returns what comes back: as often as in the recording, and no more at once."""
        frames = frames_of(case)
        final = [reply for reply in recorded(case) if not is_early_accept(frames, reply)]
        if frames[1:2] != [b"="] or not final:
            return self.client.replies(frames, mark())
        # An update is answered when it is committed, later than other requests.
        self.client.send(*frames)
        replies = []
        while len(replies) < len(final):
            reply = self.client.receive()
            if not is_early_accept(frames, reply):
                replies.append(reply)
        return replies


def is_early_accept(frames: list[bytes], reply: list[bytes]) -> bool:
    return frames[1:2] == [b"="] and reply[1:] == [b"\1"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversation]:
    with running_cluster(tmp_path_factory.mktemp("single"), 1) as (peer,), RawClient(peer.url) as client:
        wait_for(lambda: peer.engine.last_applied == 1, "the CHECKPOINT of its term")
        yield Conversation(peer, client)


@pytest.mark.parametrize("case", SINGLE, ids=[case["case"] for case in SINGLE])
def test_single_peer(single: Conversation, case: dict[str, Any]) -> None:
    for data in UPDATES_BETWEEN.get(case["case"], ()):
        single.update(data)
    check = CHECKS.get(case["case"].partition(",")[0], check_same_shape)
    check(single, case)


def check_same_shape(conversation: Conversation, case: dict[str, Any]) -> None:
    """The same number of replies with the same number of frames, and the same id before them."""
    replies = conversation.hold(case)
    assert [len(reply) for reply in replies] == [len(reply) for reply in recorded(case)]
    assert all(reply[0] == frames_of(case)[0] for reply in replies)


def check_config(conversation: Conversation, case: dict[str, Any]) -> None:
    replies, (expected,) = conversation.hold(case), recorded(case)
    decode = Protocols.REQUEST_CONFIG.decode_response
    is_leader, leader_id, peers = decode(expected[1:])
    urls = [[each.id, each.url] for each in conversation.peer.settings.peers]
    assert [each[0] for each in peers] == [each[0] for each in urls]
    assert [decode(reply[1:]) for reply in replies] == [(is_leader, own_leader(conversation, leader_id), urls)]


def own_leader(conversation: Conversation, recorded_leader: str) -> str:
    leader_id = conversation.peer.leader_id
    assert leader_id is not None
    assert len(leader_id) == len(recorded_leader)
    return leader_id


def check_log_info(conversation: Conversation, case: dict[str, Any]) -> None:
    replies, (expected,) = conversation.hold(case), recorded(case)
    decode = Protocols.REQUEST_LOG_INFO.decode_response
    is_leader, _, term, first_index, applied, commit, last, size, _ = decode(expected[1:])
    (reply,) = replies
    own = decode(reply[1:])
    # One more entry: the CHECKPOINT. The pruneable index, too, counts entries without a request id.
    shift = 1 if conversation.peer.settings.peers[1:] == () else own[6] - last
    assert own[:8] == (
        is_leader, conversation.peer.leader_id, term, first_index, applied + shift, commit + shift, last + shift, size
    )  # fmt: skip
    assert 0 <= own[8] <= own[6]


def check_update(conversation: Conversation, case: dict[str, Any]) -> None:
    frames = frames_of(case)
    expected = [reply for reply in recorded(case) if not is_early_accept(frames, reply)]
    replies = conversation.hold(case)
    assert [reply[0] for reply in replies] == [frames[0]] * len(expected)
    decode = Protocols.REQUEST_UPDATE.decode_response
    for reply, other in zip(replies, expected, strict=True):
        ok, value = decode(reply[1:])
        assert (ok, type(value)) == next((a, type(b)) for a, b in [decode(other[1:])])
        if ok:
            assert value == decode(other[1:])[1] + 1
        elif value is not ABSENT:
            assert value == conversation.peer.leader_id


def check_entries(conversation: Conversation, case: dict[str, Any]) -> None:
    frames = frames_of(case)
    previous = int.from_bytes(frames[3], "little")
    if previous and len(conversation.peer.settings.peers) == 1:
        frames[3] = encode_uint(previous + 1)
    if case["case"].endswith(("acknowledge the first reply", ", stop")):
        frames[3] = encode_uint(conversation.unacknowledged.pop(0))
    replies = conversation.client.replies(frames, mark())
    expected = recorded(case)
    decode = Protocols.REQUEST_ENTRIES.decode_response
    assert len(replies) == len(expected)
    for reply, other in zip(replies, expected, strict=True):
        status, json, last_index, entries = decode(reply[1:])
        other_status, other_json, other_last, other_entries = decode(other[1:])
        assert (status, reply[0]) == (other_status, other[0])
        if status == 0:
            assert json == conversation.peer.leader_id
            assert isinstance(other_json, str)
            continue
        assert json is None
        batch = EntryBatch.from_frames(last_index - len(entries) + 1, entries)
        assert all(len(entry.data) for entry in batch)
        if not case["case"].endswith(("pipeline", "first reply")):
            assert last_index == other_last + 1
            data = [entry.data for entry in batch if entry.type is EntryType.STATE]
            assert data == [entry.data for entry in EntryBatch.from_frames(1, other_entries)]
        else:
            assert 1 <= len(batch) <= 4
    if case["case"].endswith("larger than the pipeline"):
        conversation.unacknowledged = [decode(reply[1:])[2] for reply in replies]


def check_broadcast_url(conversation: Conversation, case: dict[str, Any]) -> None:
    # The state machine answers it, in a turn of its own.
    conversation.client.send(*frames_of(case))
    reply = conversation.client.receive()
    assert len(reply) == len(recorded(case)[0])
    assert Protocols.REQUEST_BROADCAST_URL.decode_response(reply[1:]) == (conversation.peer.settings.broadcast.url,)


def check_config_update(conversation: Conversation, case: dict[str, Any]) -> None:
    """The same status, and of a refusal the same kind of error, in the same words as far as they are words."""
    frames = frames_of(case)
    value = decode_json(frames[3])
    if isinstance(value, list):
        urls = {RECORDED_URL: conversation.peer.url}
        frames[3] = encode_json([[peer_id, urls.get(url, url)] for peer_id, url in value])
    (reply,), (expected,) = conversation.client.replies(frames, mark()), recorded(case)
    assert (reply[0], reply[1], len(reply)) == (frames[0], expected[1], len(expected))
    if isinstance(decode_json(expected[2]) if len(expected) > 2 else None, dict):
        error, other = decode_json(reply[2]), decode_json(expected[2])
        assert error["name"] == other["name"]
        assert error["message"].startswith(other["message"].partition("\n")[0])


CHECKS = {
    "ConfigUpdate": check_config_update,
    "RequestConfig": check_config,
    "RequestLogInfo": check_log_info,
    "RequestLogInfo on an empty log": check_log_info,
    "RequestUpdate": check_update,
    "RequestEntries": check_entries,
    "RequestBroadcastStateUrl": check_broadcast_url,
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ZmqRaft]]:
    with running_cluster(tmp_path_factory.mktemp("three"), 3, **PATIENT) as peers:
        yield peers


@pytest.mark.parametrize("case", THREE, ids=[f"{case['server']}, {case['case']}" for case in THREE])
def test_three_peers(three: list[ZmqRaft], case: dict[str, Any]) -> None:
    wants_leader = case["server"].endswith("leader")
    wait_for(lambda: all(peer.leader_id == three[0].leader_id for peer in three), "one leader for all")
    peer = next(peer for peer in three if (peer.state == "leader") == wants_leader)
    with RawClient(peer.url) as client:
        conversation = Conversation(peer, client)
        name = case["case"].partition(",")[0]
        if name.startswith(("AppendEntries", "RequestVote")):
            check_peer_message(conversation, case)
        elif name == "RequestUpdate" and wants_leader:
            ok, index = Protocols.REQUEST_UPDATE.decode_response(conversation.hold(case)[0][1:])
            assert ok
            assert isinstance(index, int)
        else:
            CHECKS.get(name, check_same_shape)(conversation, case)


def check_peer_message(conversation: Conversation, case: dict[str, Any]) -> None:
    """A message of peer 2 in the recording, whom the peer follows: here of the one that it does follow."""
    frames = frames_of(case)
    frames[3] = str(conversation.peer.leader_id).encode()
    replies = conversation.client.replies(frames, mark())
    expected = recorded(case)
    assert [len(reply) for reply in replies] == [len(reply) for reply in expected]
    for reply, other in zip(replies, expected, strict=True):
        assert (reply[0], reply[2]) == (other[0], other[2])
        assert int.from_bytes(reply[1], "little") == conversation.peer.engine.raft.current_term


def test_a_follower_refuses_a_config_update(three: list[ZmqRaft]) -> None:
    case = next(case for case in THREE if case["case"] == "ConfigUpdate")
    peer = next(peer for peer in three if peer.state == "follower")
    with RawClient(peer.url) as client:
        replies = client.replies(frames_of(case), mark())
    (reply,) = replies
    (expected,) = recorded(case)
    assert (reply[1], len(reply)) == (expected[1], len(expected))
    assert decode_json(reply[2]) == peer.leader_id


def test_broadcast_seen_by_a_subscriber(three: list[ZmqRaft]) -> None:
    """Entries as they are applied, heartbeats in between; all with the secret, the term and the last applied index."""
    leader = next(peer for peer in three if peer.state == "leader")
    with RawClient(leader.url) as client:
        subscriber = client.context.socket(zmq.SUB)
        subscriber.linger = 0
        subscriber.rcvtimeo = client.socket.rcvtimeo
        subscriber.subscribe(SECRET)
        subscriber.connect(str(leader.settings.broadcast.url))
        try:
            # A heartbeat says that the subscription has arrived.
            first = subscriber.recv_multipart()
            Conversation(leader, client).update(b"broadcast me")
            messages = [first]
            while not messages[-1][3:]:
                messages.append(subscriber.recv_multipart())
            messages += [subscriber.recv_multipart(), subscriber.recv_multipart()]
        finally:
            subscriber.close()
    recording = [[bytes.fromhex(frame) for frame in frames] for _, frames in BROADCAST["messages"]]
    assert {len(message) for message in recording} == {3, 4}
    assert {len(message) for message in messages} == {3, 4}
    (position,) = [position for position, message in enumerate(messages) if message[3:]]
    for decoded in (Protocols.STATE_BROADCAST.decode_request(message) for message in messages):
        assert decoded[:2] == (SECRET, leader.engine.raft.current_term)
    applied = [Protocols.STATE_BROADCAST.decode_request(message)[2] for message in messages]
    assert applied[position - 1] + 1 == applied[position] == applied[-1]
    assert messages[position][3].endswith(b"broadcast me")
