"""Lists of members as an operator writes them, ``tcp://host:port/id,...``, and what they make of a cluster's members.

Knows nothing of sockets. The rule: what no leader would accept, or what cannot be what is meant, is refused here, with
the peer that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from zmqraft.errors import ConfigurationError
from zmqraft.protocol.url import parse_url
from zmqraft.server.settings import PeerAddress

__all__ = ["MemberChange", "Peers", "describe_peers", "member_change", "parse_peers"]

#: (id, url) each.
Peers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MemberChange:
    """The members before and after a change."""

    before: Peers
    after: Peers

    @property
    def added(self) -> Peers:
        """Who becomes a member."""
        return tuple(peer for peer in self.after if peer not in self.before)

    @property
    def removed(self) -> Peers:
        """Who is no member any more."""
        return tuple(peer for peer in self.before if peer not in self.after)

    def describe(self) -> str:
        """What is added and removed, for people."""
        parts = [("added", self.added), ("removed", self.removed)]
        return "; ".join(f"{what} {describe_peers(peers)}" for what, peers in parts if peers)


def describe_peers(peers: Peers) -> str:
    """The ids, for people."""
    return ", ".join(peer_id for peer_id, _ in peers)


def parse_peers(texts: Sequence[str]) -> Peers:
    """The peers of the values of an option, each a list with commas. What stands behind the ``/`` is the id, with
    ``%2C`` and the like for special characters; without it the url is the id, as in configuration files.

    Raises ConfigurationError for what is no peer, and for an id or a url that is there twice.
    """
    peers = tuple(_parse_peer(item) for text in texts for item in text.split(","))
    for position, what in enumerate(("id", "url")):
        values = [peer[position] for peer in peers]
        for value in values:
            if values.count(value) > 1:
                raise ConfigurationError(f"the {what} {value!r} is in the list twice")
    return peers


def _parse_peer(text: str) -> tuple[str, str]:
    url, peer_id = _split(text.strip())
    address = PeerAddress(url if peer_id is None else peer_id, url)
    return address.id, address.url


def _split(text: str) -> tuple[str, str | None]:
    """Url and id of ``tcp://host:port/id``."""
    scheme, separator, rest = text.rpartition("://")
    place, _, peer_id = rest.partition("/")
    try:
        return parse_url(scheme + separator + place), unquote(peer_id, errors="strict") if peer_id else None
    except ConfigurationError as error:
        raise ConfigurationError(f"not a peer like tcp://host:port/id: {text!r} ({error})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"not a peer like tcp://host:port/id: {text!r} (the id is not UTF-8)") from None


def member_change(
    members: Peers, *, add: Sequence[str] = (), delete: Sequence[str] = (), replace: Sequence[str] = ()
) -> MemberChange:
    """What the values of the options make of the members; ``delete`` may name a peer by its id or by its url.

    Raises ConfigurationError when that is no change that a leader accepts.
    """
    if replace:
        after = parse_peers(replace)
    else:
        removed = _members_named(members, delete)
        added = parse_peers(add)
        for peer in added:
            if peer in members:
                raise ConfigurationError(f"{peer[0]!r} is a member already")
        after = (*(peer for peer in members if peer not in removed), *added)
    change = MemberChange(members, after)
    _check_consistent(change)
    return change


def _members_named(members: Peers, texts: Sequence[str]) -> Peers:
    found: list[tuple[str, str]] = []
    for text in (item.strip() for value in texts for item in value.split(",")):
        peer = _member_named(members, text)
        if peer in found:
            raise ConfigurationError(f"{peer[0]!r} is to be deleted twice")
        found.append(peer)
    return tuple(found)


def _member_named(members: Peers, text: str) -> tuple[str, str]:
    for peer in members:
        if peer[0] == text:
            return peer
    try:
        url, peer_id = _split(text)
    except ConfigurationError:
        url, peer_id = "", None
    for peer in members:
        if peer[1] == url and peer_id in (None, peer[0]):
            return peer
    raise ConfigurationError(f"{text!r} is no member; the members are {describe_peers(members)}")


def _check_consistent(change: MemberChange) -> None:
    if not change.after:
        raise ConfigurationError("at least one member must be left")
    urls = dict(change.before)
    ids = {url: peer_id for peer_id, url in change.before}
    for peer_id, url in change.after:
        if urls.get(peer_id, url) != url:
            raise ConfigurationError(
                f"{peer_id!r} has the url {urls[peer_id]}, and an id keeps its url: add {url} under another id"
            )
        if ids.get(url, peer_id) != peer_id:
            raise ConfigurationError(
                f"{url} is the url of the member {ids[url]!r}: delete that first, in a change of its own"
            )
    if not change.added and not change.removed:
        raise ConfigurationError("no change: these are the members already")
