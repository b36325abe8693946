"""The clients against real peers in this process."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from support.local_cluster import SECRET, running_cluster
from zmqraft.client import LogInfo, ZmqRaftClient, ZmqRaftPeerClient, ZmqRaftPeerSub, ZmqRaftSubscriber
from zmqraft.errors import NotLeaderError, RequestExpiredError
from zmqraft.protocol.entry import LogEntry
from zmqraft.protocol.request_id import new_request_id

LONG_S = 60.0


def test_one_peer(tmp_path: Path) -> None:
    with running_cluster(tmp_path, 1) as (peer,):
        url = peer.url
        with ZmqRaftClient(url, secret=SECRET, deadline_s=LONG_S) as client:
            request_id = new_request_id()
            first = client.request_update(request_id, b"first")
            assert client.request_update(request_id, b"first") == first
            futures = [client.submit_update(b"%d" % n) for n in range(2000)]
            indexes = [future.result() for future in futures]
            assert indexes == list(range(first + 1, first + 2001))
            with client.request_entries() as stream:
                entries = list(stream)
            assert [entry.index for entry in entries] == list(range(1, indexes[-1] + 1))
            data = [entry.data for entry in entries if isinstance(entry, LogEntry) and entry.is_state]
            assert data == [b"first", *(b"%d" % n for n in range(2000))]
            with client.request_entries(10, count=500) as stream:
                assert list(stream) == entries[10:510]
            assert client.request_config().peers == (("1", url),)
            info = client.request_log_info()
            assert info == LogInfo(True, "1", info.term, 1, indexes[-1], indexes[-1], indexes[-1], 0, info.prune_index)
            with pytest.raises(RequestExpiredError):
                client.request_update(new_request_id(1_000_000_000), b"old")


def test_subscribers(tmp_path: Path) -> None:
    with running_cluster(tmp_path, 1) as (peer,):
        url = peer.url
        with (
            ZmqRaftPeerSub(url, secret=SECRET, deadline_s=LONG_S) as peer_subscriber,
            ZmqRaftSubscriber(url, secret=SECRET, deadline_s=LONG_S) as subscriber,
        ):
            indexes = [subscriber.request_update(None, b"%d" % n) for n in range(100)]
            followed: list[LogEntry] = []
            while subscriber.last_index < indexes[-1]:
                entry = subscriber.get(LONG_S)
                assert isinstance(entry, LogEntry)
                followed.append(entry)
            assert [entry.index for entry in followed] == list(range(1, indexes[-1] + 1))
            assert [entry.data for entry in followed if entry.is_state] == [b"%d" % n for n in range(100)]
            _, last_applied, _ = peer_subscriber.get(LONG_S)
            assert last_applied <= indexes[-1]


def test_three_peers_and_the_loss_of_the_leader(tmp_path: Path) -> None:
    with running_cluster(tmp_path, 3) as peers:
        urls = [peer.url for peer in peers]
        received: list[bytes] = []
        with (
            ZmqRaftSubscriber(urls, secret=SECRET) as subscriber,
            ZmqRaftClient(urls, secret=SECRET, deadline_s=LONG_S) as client,
        ):
            done = threading.Event()

            def follow() -> None:
                for entry in subscriber:
                    if isinstance(entry, LogEntry) and entry.is_state:
                        received.append(entry.data)
                        if entry.data == b"end":
                            done.set()

            following = threading.Thread(target=follow)
            following.start()
            futures = [client.submit_update(b"%d" % n) for n in range(500)]
            futures[100].result()
            leader = next(peer for peer in peers if peer.id == peer.leader_id)
            leader.close()
            futures += [client.submit_update(b"%d" % n) for n in range(500, 1000)]
            indexes = [future.result() for future in futures]
            assert indexes == sorted(set(indexes))
            client.request_update(None, b"end")
            assert done.wait(LONG_S)
            subscriber.close()
            following.join()
            assert received == [*(b"%d" % n for n in range(1000)), b"end"]
            follower = next(
                peer for peer in peers if peer is not leader and peer.id != client.request_config().leader_id
            )
            with (
                ZmqRaftPeerClient(follower.url, secret=SECRET, deadline_s=LONG_S) as one,
                pytest.raises(NotLeaderError),
            ):
                one.request_update(None, b"data")
