"""Configurations and their history along the log (section 6 of the paper)."""

from __future__ import annotations

import pytest

from zmqraft.core.configuration import ClusterConfiguration, ConfigurationHistory

ONE = ClusterConfiguration((("1", "tcp://a:1"),))
TWO = ClusterConfiguration((("1", "tcp://a:1"), ("2", "tcp://b:2")))
JOINT = ClusterConfiguration(TWO.peers, ONE.peers)


@pytest.mark.parametrize("configuration", [ONE, TWO, JOINT])
def test_value_form_goes_there_and_back(configuration: ClusterConfiguration) -> None:
    assert ClusterConfiguration.from_value(configuration.to_value()) == configuration


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "peers",
        [],
        [["1"]],
        [["1", 2]],
        [["", "tcp://a:1"]],
        [["1", "tcp://a:1"], ["1", "tcp://b:2"]],
        [["1", "tcp://a:1"], ["2", "tcp://a:1"]],
        {"old": [["1", "tcp://a:1"]]},
        {"old": [["1", "tcp://a:1"]], "new": []},
        {"old": [["1", "tcp://a:1"]], "new": [["1", "tcp://c:3"]]},
        {"old": [["1", "tcp://a:1"]], "new": [["2", "tcp://b:2"]], "more": 1},
    ],
)
def test_what_is_no_configuration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"peer|configuration"):
        ClusterConfiguration.from_value(value)


def test_the_joint_configuration_has_the_peers_of_both_lists() -> None:
    assert JOINT.is_joint
    assert JOINT.urls == {"1": "tcp://a:1", "2": "tcp://b:2"}
    assert JOINT.voters == (frozenset("1"), frozenset("12"))
    assert "2" in JOINT
    assert "3" not in JOINT


def test_truncation_brings_back_the_configuration_before() -> None:
    history = ConfigurationHistory(ONE, 0, [(5, JOINT), (8, TWO)])
    assert (history.current, history.current_index) == (TWO, 8)
    assert history.truncate_after(7)
    assert (history.current, history.current_index) == (JOINT, 5)
    assert not history.truncate_after(5)
    assert history.truncate_after(4)
    assert history.current is ONE
    assert not history.truncate_after(0)


def test_two_at_once_are_truncated_at_once() -> None:
    history = ConfigurationHistory(ONE, 0, [(5, JOINT), (8, TWO)])
    assert history.truncate_after(3)
    assert history.current is ONE


def test_the_committed_one_is_the_base() -> None:
    history = ConfigurationHistory(ONE, 0, [(5, JOINT), (8, TWO)])
    history.compact(6)
    assert history.truncate_after(6)
    assert history.current is JOINT


def test_an_earlier_index_cannot_follow() -> None:
    history = ConfigurationHistory(ONE, 0, [(5, JOINT)])
    with pytest.raises(ValueError, match="cannot follow"):
        history.append([(5, TWO)])
