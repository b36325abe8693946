"""Urls: one canonical spelling, and everything else refused with the text and the reason."""

from __future__ import annotations

import pytest

from zmqraft.errors import ConfigurationError
from zmqraft.protocol.url import parse_bind_url, parse_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("tcp://127.0.0.1:9000", "tcp://127.0.0.1:9000"),
        ("127.0.0.1", "tcp://127.0.0.1:8047"),
        ("TCP://Node-1.Example:65535", "tcp://node-1.example:65535"),
        ("raft_1:1", "tcp://raft_1:1"),
        ("localhost:08047", "tcp://localhost:8047"),
        ("[::1]", "tcp://[::1]:8047"),
        ("tcp://[0:0:0:0:0:0:0:1]:9000", "tcp://[::1]:9000"),
    ],
)
def test_equal_addresses_have_one_spelling(text: str, url: str) -> None:
    assert parse_url(text) == url
    assert parse_url(url) == url
    assert parse_bind_url(text) == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the host is missing"),
        ("tcp://", "the host is missing"),
        ("tcp://:8047", "the host is missing"),
        ("ipc:///tmp/socket", "only tcp://"),
        ("tcp://a://b", "only tcp://"),
        ("tcp://a:b", "a port is 1 to 65535, not 'b'"),
        ("tcp://a:", "a port is 1 to 65535, not ''"),
        ("tcp://a:0", "a port is 1 to 65535, not '0'"),
        ("tcp://a:65536", "a port is 1 to 65535, not '65536'"),
        ("tcp://a:+80", "a port is 1 to 65535"),
        ("tcp://a:\N{ARABIC-INDIC DIGIT ONE}", "a port is 1 to 65535"),
        ("tcp://a:1/path", "a port is 1 to 65535"),
        ("tcp://a/path", "neither an address nor a host name"),
        ("tcp://user@a", "neither an address nor a host name"),
        ("a b", "neither an address nor a host name"),
        ("a\n", "neither an address nor a host name"),
        ("-a", "neither an address nor a host name"),
        ("a..b", "neither an address nor a host name"),
        ("x" * 64, "neither an address nor a host name"),
        (".".join(["x" * 63] * 4), "neither an address nor a host name"),
        ("300.0.0.1", "300"),
        ("1.2.3", "4 octets"),
        ("::1", "in brackets"),
        ("[::1", "written as"),
        ("[::1]8047", "written as"),
        ("[::g]:1", "::g"),
    ],
)
def test_what_is_no_url_is_refused(text: str, reason: str) -> None:
    for parse in (parse_url, parse_bind_url):
        with pytest.raises(ConfigurationError) as caught:
            parse(text)
        assert reason in str(caught.value)
        assert repr(text) in str(caught.value)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not 8047"):
        parse_url(8047)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "url"),
    [("*", "tcp://*:8047"), ("tcp://0.0.0.0:1", "tcp://0.0.0.0:1"), ("tcp://[0::0]:1", "tcp://[::]:1")],
)
def test_a_placeholder_can_be_bound_but_not_connected_to(text: str, url: str) -> None:
    assert parse_bind_url(text) == url
    with pytest.raises(ConfigurationError, match="every address"):
        parse_url(text)
