"""Each side's client against the other side's peers, frame by frame the same to the one who asks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.mixed_cluster import NODE, PYTHON, MixedCluster
from support.node_clients import NodeClient
from zmqraft import (
    EntryType,
    FileLog,
    LogEntry,
    RequestExpiredError,
    SnapshotChunk,
    SnapshotContext,
    ZmqRaftClient,
    ZmqRaftPeerClient,
    new_request_id,
    request_id_seconds,
)
from zmqraft.testing.entries import batch_of, make_entry

CROSSED = [(PYTHON, NODE), (NODE, PYTHON)]
Client = ZmqRaftClient | NodeClient


class Served:
    """A cluster of one kind, and a client of the other."""

    def __init__(self, cluster: MixedCluster, client: Client, modules: Path) -> None:
        self.cluster = cluster
        self.client = client
        self.modules = modules

    @contextlib.contextmanager
    def peer_client(self, peer_id: str) -> Iterator[ZmqRaftPeerClient | NodeClient]:
        """A client of one peer, of the same kind as the other client."""
        url = self.cluster.places[peer_id].url
        if isinstance(self.client, NodeClient):
            with NodeClient(self.modules, [url], secret=self.cluster.secret, kind="subscriber") as client:
                yield client
        else:
            with ZmqRaftPeerClient(url, secret=self.cluster.secret, deadline_s=60) as peer_client:
                yield peer_client


@contextlib.contextmanager
def serving(cluster: MixedCluster, kind: str, modules: Path) -> Iterator[Served]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster)
        client: Client
        if kind == NODE:
            client = stack.enter_context(NodeClient(modules, cluster.urls, secret=cluster.secret))
        else:
            client = stack.enter_context(cluster.client())
        yield Served(cluster, client, modules)
        cluster.stop()


@pytest.fixture(params=CROSSED, ids=["node client, python peers", "python client, node peers"], scope="module")
def served(request: pytest.FixtureRequest, modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three peers of one kind, and a client of the other."""
    peers, client = request.param
    directory = tmp_path_factory.mktemp("served")
    with serving(MixedCluster(directory, modules, 3 * peers), client, modules) as served:
        yield served


def test_config(served: Served) -> None:
    info = served.client.request_config()
    assert info.leader_id == served.cluster.leader_id()
    assert info.is_leader
    assert sorted(info.peers) == [(place.id, place.url) for place in served.cluster.places.values()]
    for peer_id in served.cluster.places:
        with served.peer_client(peer_id) as client:
            one = client.request_config()
        assert (one.is_leader, one.leader_id) == (peer_id == info.leader_id, info.leader_id)


def test_log_info(served: Served) -> None:
    index = served.client.request_update(None, b"data")
    infos = served.cluster.wait_applied(index)
    leader = served.client.request_log_info()
    assert leader.is_leader
    assert leader == infos[str(leader.leader_id)]
    assert (leader.first_index, leader.last_applied, leader.commit_index, leader.last_index) == (1, index, index, index)
    # All ids are remembered, but ours begin with a checkpoint, which has none.
    assert (leader.snapshot_size, leader.prune_index) == (0, int(served.cluster.places["1"].kind == PYTHON))
    for peer_id, expected in infos.items():
        with served.peer_client(peer_id) as client:
            assert client.request_log_info() == expected


def test_updates_and_repeated_ids(served: Served) -> None:
    updates = [(new_request_id(), b"update %d" % number) for number in range(200)]
    indexes = list(served.client.request_updates(updates, 32))
    assert len(set(indexes)) == len(updates)
    # Known and applied: the same index, whatever the data is.
    assert [served.client.request_update(request_id, b"again") for request_id, _ in updates[::20]] == indexes[::20]
    entries = {entry.index: entry for entry in read_from(served, min(indexes) - 1)}
    assert [(entries[index].request_id, entries[index].data) for index in indexes] == updates


@pytest.mark.parametrize(
    ("size", "fill"), [(1, b"\x00"), (65536, b"\xff"), (300_000, b"x"), (10 * 1024 * 1024, b"\x80")]
)
def test_data_of_any_size(served: Served, size: int, fill: bytes) -> None:
    index = served.client.request_update(None, fill * size)
    entry, *others = read_from(served, index - 1)
    assert entry.data == fill * size
    # So much may take a peer so long that another one is elected.
    assert {other.type for other in others} <= {EntryType.CHECKPOINT}


def test_expired_ids(served: Served) -> None:
    request_id = new_request_id()
    seconds = request_id_seconds(request_id)
    for shift in (-8 * 3600, 3600):
        shifted = (seconds + shift).to_bytes(4, "big") + request_id[4:]
        with pytest.raises(RequestExpiredError):
            served.client.request_update(shifted, b"data")
    for shift in (-7 * 3600, 800):
        shifted = (seconds + shift).to_bytes(4, "big") + request_id[4:]
        index = served.client.request_update(shifted, b"data")
        assert served.client.request_update(shifted, b"data") == index


def test_entries_with_a_count(served: Served) -> None:
    updates = [(new_request_id(), bytes([number]) * 5000) for number in range(100)]
    indexes = sorted(served.client.request_updates(updates, 16))
    everything = read_from(served, 0)
    assert [entry.index for entry in everything] == list(range(1, len(everything) + 1))
    for previous, count in [(0, 1), (0, 7), (3, 60), (indexes[0], 99), (indexes[-1] - 2, 50), (indexes[-1], 5)]:
        found = list(served.client.request_entries(previous, count=count))
        assert found == everything[previous : previous + count]


def test_entries_stopped(served: Served) -> None:
    """A client that has enough says so, and goes on with other requests at once."""
    updates = [(new_request_id(), bytes([number]) * 20_000) for number in range(60)]
    indexes = list(served.client.request_updates(updates, 16))
    first = min(indexes) - 1
    everything = read_from(served, first)
    for _ in range(3):
        if isinstance(served.client, NodeClient):
            found, complete = served.client.receive_entries(first, stop_after=3)
            assert not complete
        else:
            with served.client.request_entries(first) as stream:
                found = [next(stream) for _ in range(10)]
        assert read_from(served, first) == everything
        assert found == everything[: len(found)]
        assert 0 < len(found) < len(everything)
    assert served.client.request_config().is_leader


def test_entries_by_the_stream(served: Served) -> None:
    """zmq-raft's stream, from its own peers as well, stalls at times where large entries stand beside small ones."""
    updates = [(new_request_id(), bytes([number])) for number in range(200)]
    indexes = list(served.client.request_updates(updates, 16))
    first = min(indexes) - 1
    if isinstance(served.client, NodeClient):
        assert served.client.stream_entries(first) == read_from(served, first)
        assert served.client.stream_entries(first, count=7) == read_from(served, first)[:7]
    else:
        with served.client.request_entries(first) as stream:
            assert [entry for batch in stream.batches() for entry in batch] == read_from(served, first)


def test_broadcast_url(served: Served) -> None:
    for place in served.cluster.places.values():
        with served.peer_client(place.id) as client:
            assert client.request_broadcast_url() == place.pub


def read_from(served: Served, previous_index: int) -> list[LogEntry]:
    items = list(served.client.request_entries(previous_index))
    assert all(isinstance(item, LogEntry) for item in items)
    return items  # type: ignore[return-value]


# --- snapshots ------------------------------------------------------------------------------------------------------

SNAPSHOT_INDEX, LAST_INDEX = 700, 1000
SNAPSHOT = b"".join(number.to_bytes(4, "big") for number in range(75_000))


def write_compacted_log(data: Path) -> list[LogEntry]:
    """A log of one term whose first entries are in a snapshot of several chunks; the entries behind it."""
    data.mkdir(parents=True)
    entries = [make_entry(index, 1, b"entry %d" % index) for index in range(1, LAST_INDEX + 1)]
    with contextlib.closing(FileLog.open(data / "log", data / "snap", capacity=256)) as log:
        log.append(batch_of(*entries))
        log.sync()
        context = SnapshotContext(None, 0, log.packed_requests(SNAPSHOT_INDEX))
        snapshot = log.begin_snapshot(SNAPSHOT_INDEX, context)([SNAPSHOT])
        log.begin_compaction(snapshot)()
        log.compact(snapshot)
    return entries[SNAPSHOT_INDEX:]


@pytest.mark.parametrize(("peers", "client"), CROSSED)
def test_a_snapshot_in_chunks_then_entries(modules: Path, tmp_path: Path, peers: str, client: str) -> None:
    cluster = MixedCluster(tmp_path, modules, peers, start=False)
    entries = write_compacted_log(cluster.data("1"))
    cluster.start("1")
    with serving(cluster, client, modules) as served:
        # One more, with which the others are committed as well.
        last = served.client.request_update(None, b"the last")
        items = list(served.client.request_entries(0))
        chunks = [item for item in items if isinstance(item, SnapshotChunk)]
        found = [item for item in items if isinstance(item, LogEntry)]
        assert items[: len(chunks)] == chunks
        assert len(chunks) == -(-len(SNAPSHOT) // 65536)
        check_chunks(chunks, 0)
        assert found[: len(entries)] == entries
        assert [entry.index for entry in found] == list(range(SNAPSHOT_INDEX + 1, last + 1))
        assert list(served.client.request_entries(SNAPSHOT_INDEX)) == found
        assert list(served.client.request_entries(SNAPSHOT_INDEX + 5, count=3)) == found[5:8]

        # From the middle of the snapshot on. (zmq-raft does not answer one that asks from its end on.)
        for offset in (100_001, len(SNAPSHOT) - 1):
            items = list(served.client.request_entries(0, snapshot_offset=offset))
            check_chunks([item for item in items if isinstance(item, SnapshotChunk)], offset)
            assert [item for item in items if isinstance(item, LogEntry)] == found


def check_chunks(chunks: list[SnapshotChunk], offset: int) -> None:
    """The chunks are those of the snapshot from an offset on, without a gap."""
    for chunk in chunks:
        assert (chunk.index, chunk.term, chunk.size) == (SNAPSHOT_INDEX, 1, len(SNAPSHOT))
        assert chunk.offset == offset
        assert chunk.data == SNAPSHOT[offset : offset + len(chunk.data)]
        offset += len(chunk.data)
    assert offset == len(SNAPSHOT)
    assert chunks
