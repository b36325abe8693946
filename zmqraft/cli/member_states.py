"""Which members of a cluster are there, before its list of members is changed.

Knows nothing of how that is asked for or shown. The rule: who counts as there could vote and acknowledge now. A new
member whose log is far behind could not, for a while: with the others it might be a majority on paper only.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from zmqraft.cli.cluster_options import ClusterAddress
from zmqraft.cli.peer_lists import MemberChange, Peers
from zmqraft.client import ClusterInfo, LogInfo, ZmqRaftPeerClient
from zmqraft.errors import RequestError, RequestTimeoutError

__all__ = ["MemberState", "member_states", "reason_against"]

#: So many entries may be missing in the log of a new member: what it gets within a moment.
BEHIND_MAX = 10_000
#: Who answers does so at once. Who has not, within so many seconds, is asked again where it matters.
_PATIENCE_S = 1.0
_NO_ANSWER = "no answer"


@dataclass(frozen=True)
class MemberState:
    """What one peer said, and why it does not count as there; "" when it does."""

    peer_id: str
    url: str
    problem: str
    #: Whether it leads, although it is no member yet.
    leads_others: bool = False


def member_states(change: MemberChange, leader_log: LogInfo, cluster: ClusterAddress) -> list[MemberState]:
    """The states of all members, old ones and new ones. ``leader_log`` was asked for before.

    It returns as soon as it is known that enough are there, or when the time of ``cluster`` has passed.
    """
    peers = list(dict.fromkeys((*change.before, *change.after)))
    states = _ask(peers, change, leader_log, cluster, min(_PATIENCE_S, cluster.timeout_s))
    silent = [(state.peer_id, state.url) for state in states if state.problem == _NO_ANSWER]
    waits = any(peer in change.added for peer in silent) or reason_against(change, states)
    if silent and waits and cluster.timeout_s > _PATIENCE_S:
        again = _ask(silent, change, leader_log, cluster, cluster.timeout_s - _PATIENCE_S)
        later = {state.peer_id: state for state in again}
        states = [later.get(state.peer_id, state) for state in states]
    return states


def _ask(
    peers: Sequence[tuple[str, str]],
    change: MemberChange,
    leader_log: LogInfo,
    cluster: ClusterAddress,
    deadline_s: float,
) -> list[MemberState]:
    def state(peer: tuple[str, str]) -> MemberState:
        peer_id, url = peer
        try:
            with ZmqRaftPeerClient(url, secret=cluster.secret, deadline_s=deadline_s) as client:
                info, log = client.request_config(), client.request_log_info()
        except RequestTimeoutError:
            return MemberState(peer_id, url, _NO_ANSWER)
        except RequestError as error:
            return MemberState(peer_id, url, str(error))
        if peer in change.before:
            return MemberState(peer_id, url, "")
        return _new_member_state(peer_id, url, info, log, leader_log)

    with ThreadPoolExecutor(len(peers)) as executor:
        return list(executor.map(state, peers))


def _new_member_state(peer_id: str, url: str, info: ClusterInfo, log: LogInfo, leader_log: LogInfo) -> MemberState:
    if info.is_leader:
        return MemberState(peer_id, url, "leads a cluster of its own", leads_others=True)
    behind = leader_log.last_index - log.last_index
    if log.last_index < leader_log.first_index - 1:
        return MemberState(peer_id, url, f"needs a snapshot first, {behind} entries behind")
    return MemberState(peer_id, url, f"{behind} entries behind" if behind > BEHIND_MAX else "")


def reason_against(change: MemberChange, states: Sequence[MemberState]) -> str:
    """Why the change must not be made, "" when nothing speaks against it."""
    for state in states:
        if state.leads_others:
            return (
                f"{state.peer_id!r} at {state.url} leads a cluster of its own; a new member is started with the "
                "members of this cluster as its peers, and itself not among them"
            )
    problems = {state.peer_id: state.problem for state in states}
    return _lost_quorum("new", change.after, problems) or _lost_quorum("present", change.before, problems)


def _lost_quorum(which: str, members: Peers, problems: dict[str, str]) -> str:
    missing = [peer_id for peer_id, _ in members if problems[peer_id]]
    majority = len(members) // 2 + 1
    there = len(members) - len(missing)
    if there >= majority:
        return ""
    reasons = ", ".join(f"{peer_id} ({problems[peer_id]})" for peer_id in missing)
    return (
        f"of the {len(members)} {which} members {there} would be there, and a majority is {majority}; "
        f"missing: {reasons}"
    )
