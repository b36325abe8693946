"""Which peer to ask next whether it leads (SPEC section 2 "Clients").

Knows nothing of messages, connections or time. The rule: in one pass no peer is asked twice, so that peers which name
one another as the leader cannot keep a client running in circles; between two passes the client waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zmqraft.errors import ConfigurationError
from zmqraft.protocol.url import parse_url

__all__ = ["LeaderSearch"]

#: A cluster with more peers than this is taken for a malicious answer; the rest of them is ignored.
PEERS_MAX = 1000


class LeaderSearch:
    """The peers known to a client, in the order in which they are asked.

    Peers come from the seeds, which are never forgotten, and from the configurations that peers answered with.
    """

    def __init__(self, seeds: Sequence[tuple[str | None, str]]) -> None:
        self._seeds = list(seeds)
        self._url_by_id: dict[str, str] = {}
        self._order: list[str] = []
        self._asked: set[str] = set()
        self._passed_over: set[str] = set()
        self._silent: set[str] = set()
        self.learn(())

    @property
    def urls(self) -> tuple[str, ...]:
        """The urls of all known peers, the one to be asked next first."""
        return tuple(self._order)

    def learn(self, peers: Iterable[tuple[str, str]]) -> None:
        """Take over a configuration that a peer answered with. Urls that cannot be connected to are ignored."""
        known = {seed_id: url for seed_id, url in self._seeds if seed_id is not None}
        urls = [url for _, url in self._seeds]
        for peer_id, text in list(peers)[:PEERS_MAX]:
            try:
                url = parse_url(text)
            except ConfigurationError:
                continue
            known[peer_id] = url
            urls.append(url)
        self._url_by_id = known
        wanted = dict.fromkeys(urls)
        known_before = set(self._order)
        kept = [url for url in self._order if url in wanted]
        self._order = [url for url in wanted if url not in known_before] + kept

    def begin(self, suspect: str | None) -> None:
        """Start a search. ``suspect`` is the peer that ceased to answer or to lead: the first two passes ask it only
        if another peer still names it as the leader."""
        self._asked = set()
        self._silent = set() if suspect is None else {suspect}
        self._passed_over = self._unless_all(self._silent)

    def next(self, leader_id: str | None = None) -> str | None:
        """The url to ask next; ``leader_id`` is the leader that the last one named. None: the pass is over."""
        named = self._url_by_id.get(leader_id) if leader_id is not None else None
        if named is not None and named not in self._asked:
            return self._ask(named)
        for url in self._order:
            if url not in self._asked and url not in self._passed_over:
                return self._ask(url)
        return None

    def silent(self, url: str) -> None:
        """The peer at ``url`` did not answer: the next pass asks it only if another one names it, so as not to wait
        for a dead peer while the others elect a leader; the pass after that does ask it."""
        self._silent.add(url)

    def next_pass(self) -> None:
        """Everybody may be asked again, but for those who were silent in the last pass."""
        self._passed_over = self._unless_all(self._silent)
        self._asked = set()
        self._silent = set()

    def _unless_all(self, urls: set[str]) -> set[str]:
        return set(urls) if any(url not in urls for url in self._order) else set()

    def _ask(self, url: str) -> str:
        self._asked.add(url)
        self._order.remove(url)
        self._order.append(url)
        return url
