"""What an operator writes about members, and what is refused before anybody is asked."""

from __future__ import annotations

from typing import Any

import pytest

from zmqraft.cli.member_states import MemberState, reason_against
from zmqraft.cli.peer_lists import MemberChange, Peers, member_change, parse_peers
from zmqraft.errors import ConfigurationError


def peers(ids: str) -> Peers:
    return tuple((peer_id, f"tcp://h:{peer_id}") for peer_id in ids)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["tcp://h:1/a"], [("a", "tcp://h:1")]),
        (["tcp://h:1/a,tcp://h:2/b", " TCP://H:3/c "], [("a", "tcp://h:1"), ("b", "tcp://h:2"), ("c", "tcp://h:3")]),
        (["tcp://h:1", "tcp://h:2/"], [("tcp://h:1", "tcp://h:1"), ("tcp://h:2", "tcp://h:2")]),
        (["h:1/a,h/b"], [("a", "tcp://h:1"), ("b", "tcp://h:8047")]),
        (["[::1]:1/a%2Cb%2f%25/c"], [("a,b/%/c", "tcp://[::1]:1")]),
        (["h:1/\u00e9,h:2/%C3%A8"], [("\u00e9", "tcp://h:1"), ("\u00e8", "tcp://h:2")]),
    ],
)
def test_a_list_of_peers(texts: list[str], expected: list[tuple[str, str]]) -> None:
    assert parse_peers(texts) == tuple(expected)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([""], "not a peer like tcp://host:port/id: ''"),
        (["h:1/a,"], "not a peer like tcp://host:port/id: ''"),
        (["h:0/a"], "a port is 1 to 65535"),
        (["tcp://0.0.0.0:1/a"], "0.0.0.0 stands for every address"),
        (["ipc://h/a"], "only tcp:// is supported"),
        (["h:1/%ff"], "the id is not UTF-8"),
        (["h:1/%00"], "must not contain a zero character"),
        (["h:1/a,h:2/a"], "the id 'a' is in the list twice"),
        (["h:1/a", "H:1/b"], "the url 'tcp://h:1' is in the list twice"),
        (["h:1", "tcp://h:1"], "the id 'tcp://h:1' is in the list twice"),
    ],
)
def test_what_is_no_list_of_peers(texts: list[str], reason: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_peers(texts)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("how", "after"),
    [
        ({"add": ["h:4/4,h:5/5"]}, "12345"),
        ({"delete": ["1,3"]}, "2"),
        ({"delete": ["tcp://h:1", "h:2/2"]}, "3"),
        ({"add": ["h:4/4"], "delete": ["2"]}, "134"),
        ({"replace": ["h:3/3,h:4/4"]}, "34"),
    ],
)
def test_a_change(how: dict[str, Any], after: str) -> None:
    change = member_change(peers("123"), **how)
    assert change.after == peers(after)
    assert {peer_id for peer_id, _ in change.added} == set(after) - set("123")
    assert {peer_id for peer_id, _ in change.removed} == set("123") - set(after)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"add": ["h:3/3"]}, "'3' is a member already"),
        ({"add": ["h:4/3"]}, "'3' has the url tcp://h:3, and an id keeps its url: add tcp://h:4 under another id"),
        ({"add": ["h:4/3"], "delete": ["3"]}, "'3' has the url tcp://h:3, and an id keeps its url"),
        ({"add": ["h:3/4"]}, "tcp://h:3 is the url of the member '3'"),
        ({"add": ["h:3/4"], "delete": ["3"]}, "delete that first, in a change of its own"),
        ({"add": ["h:4/4"], "delete": ["4"]}, "'4' is no member; the members are 1, 2, 3"),
        ({"delete": ["4"]}, "'4' is no member; the members are 1, 2, 3"),
        ({"delete": ["h:4"]}, "'h:4' is no member"),
        ({"delete": ["h:1/2"]}, "'h:1/2' is no member"),
        ({"delete": [""]}, "'' is no member"),
        ({"delete": ["1,1"]}, "'1' is to be deleted twice"),
        ({"delete": ["1", "h:1"]}, "'1' is to be deleted twice"),
        ({"delete": ["1,2,3"]}, "at least one member must be left"),
        ({"replace": ["h:3/3,h:1/1,h:2/2"]}, "no change: these are the members already"),
        ({"replace": ["h:3/1"]}, "'1' has the url tcp://h:1"),
    ],
)
def test_what_is_no_change(how: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        member_change(peers("123"), **how)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "absent", "reason"),
    [
        ("123", "12345", "", ""),
        ("123", "12345", "45", ""),
        ("123", "12345", "345", "of the 5 new members 2 would be there, and a majority is 3; missing: 3 (no answer), "),
        ("123", "1234", "34", "of the 4 new members 2 would be there, and a majority is 3; missing: 3 (no answer), 4"),
        ("123", "1", "3", ""),
        ("12345", "12", "2", "of the 2 new members 1 would be there, and a majority is 2; missing: 2 (no answer)"),
        ("1", "12", "2", "of the 2 new members 1 would be there"),
        (
            "123",
            "145",
            "23",
            "of the 3 present members 1 would be there, and a majority is 2; missing: 2 (no answer), 3",
        ),
    ],
)
def test_a_majority_of_the_members_must_be_there(before: str, after: str, absent: str, reason: str) -> None:
    change = MemberChange(peers(before), peers(after))
    states = [
        MemberState(peer_id, url, "no answer" if peer_id in absent else "")
        for peer_id, url in dict.fromkeys((*change.before, *change.after))
    ]
    found = reason_against(change, states)
    assert (found == "") == (reason == "")
    assert reason in found


def test_a_new_member_that_leads_is_of_another_cluster() -> None:
    change = MemberChange(peers("123"), peers("1234"))
    states = [MemberState(*peer, "") for peer in change.before]
    states.append(MemberState("4", "tcp://h:4", "leads a cluster of its own", leads_others=True))
    assert "'4' at tcp://h:4 leads a cluster of its own" in reason_against(change, states)
