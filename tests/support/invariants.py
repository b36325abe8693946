"""What must hold in a virtual cluster after every event (FAULTS, section 3), whatever happens in it."""

from __future__ import annotations

from support.virtual_cluster import Peer, VirtualCluster
from zmqraft.protocol import LogEntry
from zmqraft.server.peer_requests import configurations_of


class Invariants:
    """Looks at a cluster after every event of it."""

    def __init__(self, cluster: VirtualCluster) -> None:
        self._cluster = cluster
        self._leaders: dict[int, str] = {}
        # Every entry that was applied anywhere, by index less one.
        self._applied: list[LogEntry] = []
        # By peer: its incarnation, term, commit index, and how many entries of it were looked at.
        self._seen: dict[str, tuple[int, int, int, int]] = {}
        self._acknowledged: dict[bytes, int] = {}

    def check(self) -> None:
        """Raises AssertionError when something does not hold."""
        for peer in self._cluster.peers.values():
            assert peer.failure is None, f"peer {peer.id}: {peer.failure}"
        self.check_running()

    def check_running(self) -> None:
        """The same, but that a peer may have stopped by itself."""
        for peer in self._cluster.peers.values():
            if peer.engine is not None:
                self._check_peer(peer)

    def _check_peer(self, peer: Peer) -> None:
        raft = peer.running.raft
        if raft.is_leader:
            leader = self._leaders.setdefault(raft.current_term, peer.id)
            assert leader == peer.id, f"{leader} and {peer.id} lead in term {raft.current_term}"
        incarnation, term, commit_index, looked_at = self._seen.get(peer.id, (0, 0, 0, 0))
        if incarnation != peer.incarnation:
            commit_index = looked_at = 0
        assert raft.current_term >= term, f"the term of {peer.id} goes back from {term} to {raft.current_term}"
        assert raft.commit_index >= commit_index, f"the commit index of {peer.id} goes back"
        assert peer.running.last_applied <= raft.commit_index <= raft.log.last_index
        for entry in peer.applied[looked_at:]:
            self._check_applied(peer, entry)
        self._seen[peer.id] = (peer.incarnation, raft.current_term, raft.commit_index, len(peer.applied))

    def _check_applied(self, peer: Peer, entry: LogEntry) -> None:
        if entry.index > len(self._applied):
            assert entry.index == len(self._applied) + 1, f"{peer.id} has applied {entry.index} too early"
            self._applied.append(entry)
        assert entry == self._applied[entry.index - 1], f"{peer.id} has applied another entry {entry.index}"

    def forget(self, peer_id: str) -> None:
        """A peer begins anew, with an empty disk."""
        self._seen.pop(peer_id, None)

    def acknowledged(self, request_id: bytes, index: int) -> None:
        """A client was told that its update is at an index."""
        assert self._acknowledged.setdefault(request_id, index) == index
        assert self._applied[index - 1].request_id == request_id

    def check_end(self) -> None:
        """Nothing is there twice, and what counts as the configuration is the last one in each log."""
        ids = [entry.request_id for entry in self._applied if not entry.is_checkpoint]
        assert len(set(ids)) == len(ids)
        for peer in self._cluster.peers.values():
            indexes = [index for index in peer.log.config_indexes() if index >= peer.log.first_index]
            raft = peer.running.raft
            if indexes and peer.log.last_index == raft.log.last_index:
                ((_, configuration),) = configurations_of(peer.log.read(indexes[-1], indexes[-1], 0))
                assert (raft.configuration, raft.configurations.current_index) == (configuration, indexes[-1])
