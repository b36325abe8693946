"""Settings: names, defaults, which source wins, and one clear line for each mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from zmqraft import constants
from zmqraft.errors import ConfigurationError
from zmqraft.server.settings import BroadcastSettings, DataSettings, PeerAddress, Settings

PEERS: list[Any] = [
    {"id": "a", "url": "tcp://127.0.0.1:9001", "pub": "tcp://127.0.0.1:9101", "www": "https://a.example:9201/"},
    {"id": "b", "url": "tcp://127.0.0.1:9002"},
    {"id": "c", "url": "tcp://127.0.0.1:9003"},
]
MINIMUM: dict[str, Any] = {"id": "b", "peers": PEERS, "data": {"path": "/data"}}


def settings(**changes: Any) -> Settings:
    return Settings.from_mapping({**MINIMUM, **changes})


def test_the_defaults_are_those_of_the_specification() -> None:
    made = settings()
    assert (made.id, made.secret, made.label) == ("b", b"", None)
    assert made.peer_urls == [
        ("a", "tcp://127.0.0.1:9001"),
        ("b", "tcp://127.0.0.1:9002"),
        ("c", "tcp://127.0.0.1:9003"),
    ]
    assert (made.url, made.bind_url, made.router_bind) == ("tcp://127.0.0.1:9002", "tcp://127.0.0.1:9002", None)
    assert made.data.raft_path == Path("/data/raft.pers")
    assert made.data.log_path == Path("/data/log")
    assert made.data.snapshot_path == Path("/data/snap")
    assert made.data.state_path == Path("/data/state.pers")
    assert made.data.compact_install_path == Path("/data/compact/snap.new")
    assert (made.data.append_id_to_path, made.data.compact.watch) == (False, False)
    compact = made.data.compact
    assert (compact.after_entries, compact.after_bytes, compact.keep_files) == (None, None, None)
    assert made.broadcast == BroadcastSettings(None, None, 500)
    assert made.broadcast.bind_url is None
    assert (made.webmonitor.enable, made.webmonitor.url) == (False, "http://localhost:8050")
    assert (made.election_timeout_min, made.election_timeout_max) == (200, 300)
    assert (made.rpc_timeout, made.append_entries_heartbeat_interval) == (50, 70)
    assert (made.append_entries_rpc_timeout_min, made.append_entries_rpc_timeout_max) == (70, 140)
    assert (made.max_log_entry_data_size, made.peer_msg_data_size) == (10485760, 65536)
    assert (made.request_id_ttl, made.request_id_ttl_accept_margin) == (8 * 3600 * 1000, 15 * 60 * 1000)
    assert made.request_id_cache_max is None
    assert (made.request_entries_high_watermak, made.request_entries_ttl) == (8000, 5000)
    assert (made.request_entries_pipelines, made.request_entries_snapshot_pipelines) == (5, 2)
    assert made.request_entries_entry_size_limit_pipeline == 65536
    assert made.index_file_capacity == 16384
    assert made.prevent_spiral_elections is True


def test_every_setting_can_be_given_under_its_name_in_camel_case() -> None:
    values: dict[str, Any] = {
        "label": "the one",
        "electionTimeoutMin": 1000,
        "electionTimeoutMax": 2000,
        "rpcTimeout": 51,
        "appendEntriesHeartbeatInterval": 71,
        "appendEntriesRpcTimeoutMin": 72,
        "appendEntriesRpcTimeoutMax": 73,
        "maxLogEntryDataSize": 1,
        "peerMsgDataSize": 2,
        "requestIdTtl": None,
        "requestIdTtlAcceptMargin": 3,
        "requestIdCacheMax": 4,
        "requestEntriesHighWatermak": 5,
        "requestEntriesTtl": 6,
        "requestEntriesPipelines": 7,
        "requestEntriesSnapshotPipelines": 8,
        "requestEntriesEntrySizeLimitPipeline": 9,
        "indexFileCapacity": 1024,
        "preventSpiralElections": False,
    }
    made = settings(secret="sésame", **values)
    assert made.secret == "sésame".encode()
    snake = {"".join("_" + c.lower() if c.isupper() else c for c in name): value for name, value in values.items()}
    assert {name: getattr(made, name) for name in snake} == snake


def test_nested_tables_are_read() -> None:
    made = settings(
        data={
            "path": "/data",
            "appendIdToPath": True,
            "mustExist": True,
            "log": "entries",
            "snapshot": "/elsewhere/snap",
            "compact": {
                "install": "new",
                "watch": True,
                "state": {"path": "kv.py", "options": {"size": 1}},
                "afterEntries": 9,
            },
        },
        router={"bind": "*:9002"},
        broadcast={"url": "node-b:9102", "bind": "*:9102", "broadcastHeartbeatInterval": 100},
        webmonitor={"enable": True, "port": 80, "bind": {"port": 8080, "proto": "https", "cert": "c", "key": "k"}},
    )
    assert made.data.must_exist
    assert made.data.log_path == Path("/data/b/entries")
    assert made.data.snapshot_path == Path("/elsewhere/snap")
    assert made.data.compact_install_path == Path("/data/b/new")
    assert (made.data.compact.watch, made.data.compact.state.path) == (True, "kv.py")
    assert made.data.compact.state.options == {"size": 1}
    assert made.data.compact.after_entries == 9
    assert (made.url, made.bind_url) == ("tcp://127.0.0.1:9002", "tcp://*:9002")
    assert made.broadcast == BroadcastSettings("tcp://node-b:9102", "tcp://*:9102", 100)
    assert made.broadcast.bind_url == "tcp://*:9102"
    assert (made.webmonitor.enable, made.webmonitor.url) == (True, "http://localhost:80")
    assert (made.webmonitor.bind.port, made.webmonitor.bind.proto, made.webmonitor.bind.key) == (8080, "https", "k")


def test_peers_may_be_tables_pairs_or_urls() -> None:
    peers = [{"id": "a", "url": "10.0.0.1"}, ["b", "tcp://10.0.0.2:1"], "10.0.0.3"]
    made = settings(peers=peers, id="tcp://10.0.0.3:8047")
    assert made.peer_urls == [
        ("a", "tcp://10.0.0.1:8047"),
        ("b", "tcp://10.0.0.2:1"),
        ("tcp://10.0.0.3:8047", "tcp://10.0.0.3:8047"),
    ]
    assert made.url == "tcp://10.0.0.3:8047"


def test_pub_and_www_of_the_own_entry_go_before_the_tables_of_all_peers() -> None:
    tables = {
        "broadcast": {"url": "tcp://127.0.0.1:7000", "bind": "*:7000"},
        "webmonitor": {"port": 7001, "bind": {"port": 7002}},
    }
    own = settings(id="a", **tables)
    assert own.broadcast == BroadcastSettings("tcp://127.0.0.1:9101", "tcp://*:7000")
    assert (own.webmonitor.enable, own.webmonitor.url) == (True, "https://a.example:9201")
    assert own.webmonitor.bind.port == 7002
    other = settings(id="b", **tables)
    assert other.broadcast.url == "tcp://127.0.0.1:7000"
    assert (other.webmonitor.enable, other.webmonitor.url) == (False, "http://localhost:7001")


def test_flags_go_before_everything() -> None:
    mapping = {**MINIMUM, "router": {"bind": "*:1"}}
    made = Settings.from_mapping(mapping, id="a", bind="127.0.0.1:2", pub="127.0.0.1:3", www="http://127.0.0.1")
    assert (made.id, made.bind_url, made.url) == ("a", "tcp://127.0.0.1:2", "tcp://127.0.0.1:9001")
    assert made.broadcast.url == "tcp://127.0.0.1:3"
    assert made.webmonitor.url == "http://127.0.0.1:8050"


def test_an_address_with_pub_is_enough_without_a_file() -> None:
    address = PeerAddress("a", "localhost:1", pub="localhost:2")
    made = Settings(id="a", peers=(address,), data=DataSettings("/data"))
    assert made.broadcast.url == "tcp://localhost:2"


def test_a_peer_that_joins_is_not_listed_and_binds_a_url_of_its_own() -> None:
    made = settings(id="d", router={"bind": "127.0.0.1:9004"})
    assert made.own_address is None
    assert (made.url, made.bind_url) == ("tcp://127.0.0.1:9004", "tcp://127.0.0.1:9004")


def test_a_changed_copy_is_checked_and_completed_like_a_new_one() -> None:
    made = dataclasses.replace(settings(), data=DataSettings(Path("/data"), append_id_to_path=True))
    assert dataclasses.replace(made, id="c").data.log_path == Path("/data/c/log")
    with pytest.raises(ConfigurationError, match=r"electionTimeoutMin: 300 is not below electionTimeoutMax"):
        dataclasses.replace(made, election_timeout_min=300)


def test_an_index_file_capacity_is_rounded_up_to_a_power_of_two() -> None:
    assert settings(indexFileCapacity=1).index_file_capacity == 1
    assert settings(indexFileCapacity=1000).index_file_capacity == 1024


def test_the_secret_is_not_shown() -> None:
    assert "hush" not in repr(settings(secret="hush"))


TWICE = "another peer has this id: 'a'"
MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("unknown", {"electionTimeotMin": 1}, "electionTimeotMin: unknown setting, did you mean electionTimeoutMin?"),
    (
        "snake case",
        {"election_timeout_min": 1},
        "election_timeout_min: unknown setting, did you mean electionTimeoutMin?",
    ),
    ("unknown, nested", {"data": {"path": "x", "lgo": "x"}}, "data.lgo: unknown setting, did you mean log?"),
    ("unknown, deep", {"data": {"path": "x", "compact": {"state": {"pth": "x"}}}}, "data.compact.state.pth: unknown"),
    ("unlike all", {"zzz": 1}, "zzz: unknown setting (known are appendEntriesHeartbeatInterval,"),
    ("python's own", {"routerBind": "x"}, "routerBind: unknown setting"),
    ("internal", {"data": {"path": "x", "peerId": "x"}}, "data.peerId: unknown setting"),
    ("no id", {"id": ...}, "id: is missing"),
    ("empty id", {"id": ""}, "id: must not be empty"),
    ("id of digits", {"id": 1}, "id: must be a text, not 1 (int); put quotes around it"),
    ("id not listed", {"id": "d"}, "id: 'd' is not one of the peers (a, b, c); to join them it needs router.bind"),
    ("secret of digits", {"secret": 123}, "secret: must be a text, not 123 (int)"),
    ("secret null", {"secret": None}, "secret: must be a text, not None"),
    ("label", {"label": ["x"]}, "label: must be a text, not ['x'] (list)"),
    ("no peers", {"peers": ...}, "peers: is missing"),
    ("peers empty", {"peers": []}, "peers: at least one peer is needed"),
    ("peers a table", {"peers": {"a": "b"}}, "peers: must be a list of peers"),
    ("peers a text", {"peers": "tcp://a:1"}, "peers: must be a list of peers"),
    ("peer a number", {"peers": [1]}, "peers[0]: must be {id, url}, a pair of id and url, or a url, not 1"),
    ("peer a triple", {"peers": [["a", "b", "c"]]}, "peers[0]: must be {id, url}"),
    ("peer without id", {"peers": [{"url": "b:1"}]}, "peers[0].id: is missing"),
    ("peer without url", {"peers": [{"id": "b"}]}, "peers[0].url: is missing"),
    ("peer with more", {"peers": [{"id": "b", "url": "b:1", "web": "x"}]}, "peers[0].web: unknown setting"),
    ("peer's id empty", {"peers": [{"id": "", "url": "b:1"}]}, "peers[0].id: must not be empty"),
    ("peer's id a number", {"peers": [*PEERS, {"id": 4, "url": "b:1"}]}, "peers[3].id: must be a text, not 4 (int)"),
    ("id twice", {"peers": [*PEERS, {"id": "a", "url": "b:1"}]}, f"peers[3].id: {TWICE}"),
    (
        "url twice",
        {"peers": [*PEERS, {"id": "d", "url": "127.0.0.1:9002"}]},
        "peers[3].url: is the same as peers[1].url: 'tcp://127.0.0.1:9002'",
    ),
    (
        "pub as another's url",
        {"peers": [*PEERS, {"id": "d", "url": "b:1", "pub": "127.0.0.1:9001"}]},
        "peers[3].pub: is the same as peers[0].url",
    ),
    ("pub as url", {"peers": [{"id": "b", "url": "b:1", "pub": "b:1"}]}, "peers[0].pub: is the same as peers[0].url"),
    ("placeholder", {"peers": [{"id": "b", "url": "tcp://0.0.0.0:1"}]}, "peers[0].url: not a url like"),
    ("placeholder *", {"peers": [["b", "*:1"]]}, "peers[0]: url: not a url like tcp://host:port: '*:1'"),
    ("port", {"peers": [{"id": "b", "url": "tcp://b:70000"}]}, "a port is 1 to 65535, not '70000'"),
    ("scheme", {"peers": [{"id": "b", "url": "http://b:1"}]}, "only tcp:// is supported"),
    ("www", {"peers": [{"id": "b", "url": "b:1", "www": "b:1"}]}, "peers[0].www: not a url like http://host:port"),
    ("www with path", {"peers": [{"id": "b", "url": "b:1", "www": "http://b/x"}]}, "peers[0].www: not a url"),
    ("no data", {"data": ...}, "data: is missing"),
    ("data a text", {"data": "/data"}, "data: must be a table of settings, not '/data' (str)"),
    ("no path", {"data": {}}, "data.path: is missing"),
    ("path a number", {"data": {"path": 1}}, "data.path: must be a text"),
    ("path with zero", {"data": {"path": "a\0b"}}, "data.path: must not contain a zero character"),
    ("append a text", {"data": {"path": "x", "appendIdToPath": "yes"}}, "data.appendIdToPath: must be true or false"),
    ("one path twice", {"data": {"path": "x", "log": "snap"}}, "data.snapshot: is the same path as data.log: 'snap'"),
    ("compact a list", {"data": {"path": "x", "compact": []}}, "data.compact: must be a table"),
    ("compact null", {"data": {"path": "x", "compact": None}}, "data.compact: must be a table"),
    (
        "options a list",
        {"data": {"path": "x", "compact": {"state": {"options": []}}}},
        "data.compact.state.options: must",
    ),
    ("no bytes", {"data": {"path": "x", "compact": {"afterBytes": 0}}}, "data.compact.afterBytes: must be 1 to"),
    (
        "install over the snapshot",
        {"data": {"path": "x", "compact": {"install": "snap"}}},
        "data.compact.install: is the same path as data.snapshot",
    ),
    ("keep", {"data": {"path": "x", "compact": {"keepFiles": -1}}}, "data.compact.keepFiles: must be 0 to"),
    (
        "ids that stay for ever",
        {"data": {"path": "x", "compact": {"afterEntries": 9}}, "requestIdTtl": None},
        "data.compact.afterEntries: needs requestIdTtl or requestIdCacheMax",
    ),
    ("watch", {"data": {"path": "x", "compact": {"watch": 1}}}, "data.compact.watch: must be true or false"),
    ("router", {"router": "tcp://*:1"}, "router: must be a table"),
    ("router bind", {"router": {"bind": "nowhere:x"}}, "router.bind: not a url like tcp://host:port: 'nowhere:x'"),
    ("broadcast url", {"broadcast": {"url": "*:1"}}, "broadcast.url: not a url like"),
    ("broadcast bind", {"broadcast": {"bind": 1}}, "broadcast.bind: must be a text"),
    (
        "broadcast itself",
        {"broadcast": {"url": "127.0.0.1:9002"}},
        "broadcast.url: the peer's ROUTER socket binds the same",
    ),
    ("broadcast of other", {"broadcast": {"url": "127.0.0.1:9101"}}, "broadcast.url: peer 'a' has the same"),
    (
        "heartbeat",
        {"broadcast": {"broadcastHeartbeatInterval": 0}},
        "broadcast.broadcastHeartbeatInterval: must be 1 to",
    ),
    ("web port", {"webmonitor": {"port": 0}}, "webmonitor.port: must be 1 to 65535, not 0"),
    ("web proto", {"webmonitor": {"proto": "ftp"}}, "webmonitor.proto: must be one of http, https, not 'ftp'"),
    ("web bind", {"webmonitor": {"bind": {"port": "80"}}}, "webmonitor.bind.port: must be an integer, not '80' (str)"),
    ("time a text", {"rpcTimeout": "50ms"}, "rpcTimeout: must be an integer, not '50ms' (str)"),
    ("time a float", {"rpcTimeout": 1.5}, "rpcTimeout: must be an integer, not 1.5 (float)"),
    ("time a bool", {"rpcTimeout": True}, "rpcTimeout: must be an integer, not True (bool)"),
    ("time zero", {"rpcTimeout": 0}, "rpcTimeout: must be 1 to 2147483647, not 0 (int)"),
    ("time negative", {"requestEntriesTtl": -1}, "requestEntriesTtl: must be 1 to"),
    ("time huge", {"electionTimeoutMax": 2**31}, "electionTimeoutMax: must be 1 to 2147483647"),
    (
        "elections",
        {"electionTimeoutMin": 300},
        "electionTimeoutMin: 300 is not below electionTimeoutMax, which is 300",
    ),
    ("append times", {"appendEntriesRpcTimeoutMax": 69}, "appendEntriesRpcTimeoutMin: 70 is not below"),
    (
        "heartbeats",
        {"appendEntriesHeartbeatInterval": 200},
        "appendEntriesHeartbeatInterval: 200 is not below election",
    ),
    ("ttl", {"requestIdTtl": 0}, "requestIdTtl: must be 1 to"),
    ("margin", {"requestIdTtlAcceptMargin": -1}, "requestIdTtlAcceptMargin: must be 0 to"),
    ("margin above ttl", {"requestIdTtl": 900000}, "requestIdTtlAcceptMargin: 900000 is not below requestIdTtl"),
    ("cache", {"requestIdCacheMax": 0}, "requestIdCacheMax: must be 1 to"),
    ("entry size", {"maxLogEntryDataSize": 2**30}, "maxLogEntryDataSize: must be 1 to"),
    ("message size", {"peerMsgDataSize": 0}, "peerMsgDataSize: must be 1 to"),
    ("pipelines", {"requestEntriesPipelines": 0}, "requestEntriesPipelines: must be 1 to"),
    ("capacity", {"indexFileCapacity": 2**24}, "indexFileCapacity: must be 1 to 8388608"),
    ("spiral", {"preventSpiralElections": "no"}, "preventSpiralElections: must be true or false, not 'no' (str)"),
]


@pytest.mark.parametrize(("changes", "line"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_named_in_one_line(changes: dict[str, Any], line: str) -> None:
    mapping = {name: value for name, value in {**MINIMUM, **changes}.items() if value is not ...}
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_mapping(mapping)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("peer_id", ["..", "a/b", "tcp://h:1"])
def test_an_id_that_is_no_directory_name_is_not_appended_to_the_path(peer_id: str) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.appendIdToPath: the id"):
        settings(peers=[[peer_id, "h:1"]], id=peer_id, data={"path": "x", "appendIdToPath": True})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"secret": "text"}, "secret: must be bytes"),
        ({"peers": (("a", "b"),)}, "peers[0]: must be a PeerAddress"),
        ({"data": "/data"}, "data: must be DataSettings, not str"),
        ({"broadcast": None}, "broadcast: must be BroadcastSettings"),
    ],
)
def test_mistakes_in_python_are_named_too(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        dataclasses.replace(settings(), **changes)
    assert line in str(caught.value)


def test_the_limits_of_the_protocol_are_legal_values() -> None:
    largest = constants.INDEX_FILE_DATA_SIZE_MAX - constants.ENTRY_HEADER_SIZE
    assert settings(maxLogEntryDataSize=largest).max_log_entry_data_size == largest
    assert settings(indexFileCapacity=2**23).index_file_capacity == 2**23
