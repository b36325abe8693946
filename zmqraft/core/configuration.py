"""Which peers make up the cluster, and which configuration counts: the last one in the log, committed or not.

Section 6 of the paper. Knows nothing of how configurations are written down or changed. The rule: the configuration
in use is derived from the log; when the entry that brought it is truncated, the one before it counts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from zmqraft.api.persistence import PeersValue

__all__ = ["ClusterConfiguration", "ConfigurationHistory"]

PeerList = tuple[tuple[str, str], ...]


def _check_peers(value: object) -> PeerList:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"a peer list is a list of [id, url], not {value!r:.100}")
    peers: list[tuple[str, str]] = []
    for pair in value:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(s, str) and s for s in pair)):
            raise ValueError(f"a peer is [id, url], two strings, not {pair!r:.100}")
        peers.append((pair[0], pair[1]))
    if not peers:
        raise ValueError("at least one peer must be in a cluster")
    for position, what in enumerate(("id", "url")):
        if len({peer[position] for peer in peers}) != len(peers):
            raise ValueError(f"a peer {what} is in the list twice: {[peer[position] for peer in peers]!r:.200}")
    return tuple(peers)


@dataclass(frozen=True)
class ClusterConfiguration:
    """The peers of a cluster, as (id, url); while a change is under way (joint consensus) also the ``old`` ones."""

    peers: PeerList
    old: PeerList | None = None

    @classmethod
    def from_value(cls, value: object) -> ClusterConfiguration:
        """From the form in CONFIG entries and state files (SPEC section 1). Raises ValueError when it is not that."""
        if isinstance(value, dict):
            if set(value) != {"old", "new"}:
                raise ValueError(f"a joint configuration has the keys old and new, not {sorted(map(str, value))}")
            joint = cls(_check_peers(value["new"]), _check_peers(value["old"]))
            joint.check_urls()
            return joint
        return cls(_check_peers(value))

    def check_urls(self) -> None:
        """Raise ValueError when the two lists give one id two urls."""
        old = dict(self.old or ())
        for peer_id, url in self.peers:
            if old.get(peer_id, url) != url:
                raise ValueError(f"peer {peer_id!r} has two urls: {old[peer_id]} and {url}")

    def to_value(self) -> PeersValue:
        """The form in CONFIG entries and state files."""
        if self.old is None:
            return list(self.peers)
        return {"old": list(self.old), "new": list(self.peers)}

    def joint_with(self, peers: PeerList) -> ClusterConfiguration:
        """The configuration in which a change from this one to ``peers`` begins. Raises ValueError as `from_value`."""
        joint = ClusterConfiguration(_check_peers(peers), self.peers)
        joint.check_urls()
        return joint

    @property
    def final(self) -> ClusterConfiguration:
        """What the change that is under way leads to; this one when none is."""
        return ClusterConfiguration(self.peers)

    @property
    def is_joint(self) -> bool:
        """Whether a change is under way, so that majorities of both lists are needed."""
        return self.old is not None

    @cached_property
    def urls(self) -> dict[str, str]:
        """The url of every peer of both lists, by id."""
        return dict((self.old or ()) + self.peers)

    @cached_property
    def voters(self) -> tuple[frozenset[str], ...]:
        """The sets of ids of which each must give a majority."""
        lists = (self.peers,) if self.old is None else (self.old, self.peers)
        return tuple(frozenset(peer_id for peer_id, _ in peers) for peers in lists)

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self.urls


class ConfigurationHistory:
    """The configurations in the log above a base, by index: ``base_index < indexes[0] < indexes[1] ...``."""

    def __init__(
        self,
        base: ClusterConfiguration,
        base_index: int = 0,
        later: Iterable[tuple[int, ClusterConfiguration]] = (),
    ) -> None:
        self._stack: list[tuple[int, ClusterConfiguration]] = [(base_index, base)]
        #: The configuration that counts.
        self.current = base
        #: The index of the entry that brought it; the base's index when none did.
        self.current_index = base_index
        self.append(list(later))

    @property
    def base(self) -> tuple[int, ClusterConfiguration]:
        """The index and the configuration that all others follow."""
        return self._stack[0]

    @property
    def previous(self) -> ClusterConfiguration | None:
        """The configuration that counted before the current one; None when that is committed and forgotten."""
        return self._stack[-2][1] if len(self._stack) > 1 else None

    @property
    def change_index(self) -> int:
        """The index at which the change began that the current configuration belongs to; its own when it is of none."""
        for index, configuration in reversed(self._stack):
            if configuration.is_joint:
                return index
        return self.current_index

    def append(self, later: Sequence[tuple[int, ClusterConfiguration]]) -> bool:
        """Add the CONFIG entries of a batch. Returns whether there were any."""
        for index, configuration in later:
            if index <= self.current_index:
                raise ValueError(f"a configuration at index {index} cannot follow the one at {self.current_index}")
            self._stack.append((index, configuration))
            self.current_index, self.current = index, configuration
        return bool(later)

    def truncate_after(self, index: int) -> bool:
        """Forget the configurations above ``index``. Returns whether there were any."""
        kept = max(1, sum(1 for at, _ in self._stack if at <= index))
        if kept == len(self._stack):
            return False
        del self._stack[kept:]
        self.current_index, self.current = self._stack[-1]
        return True

    def compact(self, index: int) -> None:
        """Make the last configuration at or below ``index`` (committed) the base."""
        if len(self._stack) == 1:
            return
        below = sum(1 for at, _ in self._stack if at <= index)
        if below > 1:
            del self._stack[: below - 1]
