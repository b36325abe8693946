"""Configuration files: four formats with one meaning, and one clear line for each mistake."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from zmqraft.errors import ConfigurationError
from zmqraft.server.config_file import load_settings, read_config_file
from zmqraft.server.settings import Settings

YAML = """
raft:
  secret: hush
  label: ünï
  peers:
    - {id: a, url: "tcp://127.0.0.1:9001"}
    - {id: b, url: "tcp://127.0.0.1:9002", pub: "tcp://127.0.0.1:9102"}
  data: {path: /data, appendIdToPath: true}
  electionTimeoutMax: 400
"""
JSON = """
{"raft": {
  "secret": "hush", "label": "ünï",
  "peers": [{"id": "a", "url": "tcp://127.0.0.1:9001"},
            {"id": "b", "url": "tcp://127.0.0.1:9002", "pub": "tcp://127.0.0.1:9102"}],
  "data": {"path": "/data", "appendIdToPath": true},
  "electionTimeoutMax": 400
}}
"""
HJSON = """
{
  raft: {
    # quotes may be left out
    secret: hush
    label: ünï
    peers: [
      {id: "a", url: "tcp://127.0.0.1:9001"}
      {id: "b", url: "tcp://127.0.0.1:9002", pub: "tcp://127.0.0.1:9102"}
    ]
    data: {
      path: /data
      appendIdToPath: true
    }
    electionTimeoutMax: 400
  }
}
"""
TOML = """
[raft]
secret = "hush"
label = "ünï"
electionTimeoutMax = 400
data = { path = "/data", appendIdToPath = true }

[[raft.peers]]
id = "a"
url = "tcp://127.0.0.1:9001"

[[raft.peers]]
id = "b"
url = "tcp://127.0.0.1:9002"
pub = "tcp://127.0.0.1:9102"
"""
FORMATS = [("x.yaml", YAML), ("x.YML", YAML), ("x.json", JSON), ("x.hjson", HJSON), ("x.toml", TOML)]


def written(directory: Path, name: str, source: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return path


@pytest.mark.parametrize(("name", "source"), FORMATS)
@pytest.mark.parametrize("byte_order_mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_every_format_gives_the_same_settings(tmp_path: Path, name: str, source: str, byte_order_mark: bytes) -> None:
    made = load_settings(written(tmp_path, name, byte_order_mark + source.encode()), id="b")
    assert isinstance(made, Settings)
    assert (made.id, made.secret, made.label, made.election_timeout_max) == ("b", b"hush", "ünï", 400)
    assert made.peer_urls == [("a", "tcp://127.0.0.1:9001"), ("b", "tcp://127.0.0.1:9002")]
    assert made.broadcast.url == "tcp://127.0.0.1:9102"
    assert made.data.log_path == Path("/data/b/log")


def test_another_root_key_can_be_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, "x.json", JSON.replace('"raft"', '"other"'))
    assert load_settings(path, namespace="other", id="a").id == "a"
    with pytest.raises(ConfigurationError, match="has no key 'raft' at its root"):
        load_settings(path, id="a")


def test_flags_are_passed_on(tmp_path: Path) -> None:
    path = written(tmp_path, "x.yaml", YAML)
    made = load_settings(path, id="b", bind="*:1", pub="127.0.0.1:2", www="http://127.0.0.1:3")
    assert (made.bind_url, made.broadcast.url, made.webmonitor.url) == (
        "tcp://*:1",
        "tcp://127.0.0.1:2",
        "http://127.0.0.1:3",
    )


def test_yaml_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    source = "base: &base {rpcTimeout: 1, label: x}\nraft:\n  <<: *base\n  rpcTimeout: 2\n"
    assert read_config_file(written(tmp_path, "x.yaml", source)) == {"rpcTimeout": 2, "label": "x"}


MISTAKES: list[tuple[str, str, str | bytes, str]] = [
    ("suffix", "x.ini", "", "the name of a configuration file ends in .yaml, .yml, .json, .hjson, .toml"),
    ("no suffix", "x", "", "the name of a configuration file ends in"),
    ("empty yaml", "x.yaml", "", "has no key 'raft' at its root"),
    ("empty json", "x.json", "", "Expecting value"),
    ("broken yaml", "x.yaml", "raft: {a: [}", "line 1, column 12"),
    ("broken json", "x.json", '{"raft": ', "line 1 column 10"),
    ("broken hjson", "x.hjson", "{raft: [", "line 1"),
    ("broken toml", "x.toml", "raft = \n", "line 1, column 8"),
    ("list", "x.json", "[]", "has no key 'raft'"),
    ("raft a list", "x.json", '{"raft": []}', "raft: must be a table of settings, not list"),
    ("raft null", "x.yaml", "raft:", "raft: must be a table of settings, not NoneType"),
    ("twice, json", "x.json", '{"raft": {"id": "a", "id": "b"}}', "the key 'id' stands twice"),
    ("twice, hjson", "x.hjson", "{raft: {id: a\nid: b\n}}", "the key 'id' stands twice"),
    ("twice, yaml", "x.yaml", "raft: {id: a, id: b}", "the key 'id' stands twice"),
    ("twice, toml", "x.toml", "[raft]\nid = 'a'\nid = 'b'", "Cannot overwrite a value"),
    ("key a number", "x.yaml", "raft: {1: a}", "a key must be a text, not 1"),
    ("not utf-8", "x.yaml", b"raft: \xff", "not UTF-8 at byte 6"),
    ("tag", "x.yaml", "raft: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ("value of another tag", "x.yaml", "raft: !!timestamp x", "a value does not fit its tag"),
    ("key of another tag", "x.yaml", "raft: {!!timestamp x : 1}", "a value does not fit its tag"),
    ("deep", "x.json", "[" * 100_000, "recursion"),
]


@pytest.mark.parametrize(("name", "source", "line"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_named_in_one_line_with_the_file(
    tmp_path: Path, name: str, source: str | bytes, line: str
) -> None:
    path = written(tmp_path, name, source)
    with pytest.raises(ConfigurationError) as caught:
        read_config_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_setting_is_named_with_file_root_and_key(tmp_path: Path) -> None:
    path = written(tmp_path, "x.yaml", YAML.replace("electionTimeoutMax: 400", "electionTimeoutMax: 100"))
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, id="a")
    assert str(caught.value) == (f"{path}: raft.electionTimeoutMin: 200 is not below electionTimeoutMax, which is 100")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "directory.yaml"
    directory.mkdir()
    path = directory / name if name != "." else directory
    with pytest.raises(ConfigurationError, match=r"directory\.yaml.*: (No such file|Is a directory)"):
        read_config_file(path)


@pytest.mark.parametrize(("name", "library"), [("x.yaml", "YAML"), ("x.hjson", "HJSON"), ("x.toml", "TOML")])
def test_a_missing_library_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    def missing(module: str) -> ModuleType:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigurationError, match=rf"read {library} is missing.*pip install 'zmqraft\[cli\]'"):
        read_config_file(written(tmp_path, name, ""))
