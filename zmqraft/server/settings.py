"""The settings of a peer, with the names and defaults of SPEC section 4.

Knows nothing of files that settings come from, nor of what they are for. The rule: a `Settings` that exists is valid,
however it was made: every class here checks itself, and `dataclasses.replace` checks anew. In configuration files the
names are in camelCase, here the same in snake_case; times are in ms, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from zmqraft import constants
from zmqraft.errors import ConfigurationError
from zmqraft.protocol.url import parse_bind_url, parse_host_port, parse_url
from zmqraft.server import checks

__all__ = [
    "BroadcastSettings",
    "CompactSettings",
    "CompactStateSettings",
    "DataSettings",
    "PeerAddress",
    "Settings",
    "WebMonitorBindSettings",
    "WebMonitorSettings",
]

_PORT_MAX = 65535
_WEBMONITOR_PORT = 8050
_WEBMONITOR_PROTOCOLS = ("http", "https")
#: Timers are at most this long (25 days), which every clock and poll call can take.
_TIMER_MS_MAX = 2**31 - 1
_ENTRY_DATA_SIZE_MAX = constants.INDEX_FILE_DATA_SIZE_MAX - constants.ENTRY_HEADER_SIZE
#: The largest power of two that an index file can have as its capacity.
_CAPACITY_MAX = 1 << (constants.INDEX_FILE_CAPACITY_MAX.bit_length() - 1)


@dataclass(frozen=True)
class PeerAddress:
    """One entry of the list of peers: its id, its url and the urls of its PUB socket and web monitor, if any."""

    id: str
    url: str
    pub: str | None = None
    www: str | None = None

    def __post_init__(self) -> None:
        checks.text("id", self.id)
        _set(self, "url", checks.url("url", self.url, parse_url))
        if self.pub is not None:
            _set(self, "pub", checks.url("pub", self.pub, parse_url))
        if self.www is not None:
            checks.url("www", self.www, _check_web_url)

    @classmethod
    def from_value(cls, value: object) -> PeerAddress:
        """A peer as configuration files write it: ``{id, url, pub?, www?}``, a pair of id and url, or a url."""
        if isinstance(value, str):
            address = checks.url("url", value, parse_url)
            return cls(address, address)
        if isinstance(value, Mapping):
            given = checks.keywords("", value, ("id", "url", "pub", "www"))
            for name in ("id", "url"):
                if name not in given:
                    raise checks.failure(name, "is missing")
            return cls(**given)
        if isinstance(value, Sequence) and len(value) == 2:
            return cls(value[0], value[1])
        raise ConfigurationError(f"must be {{id, url}}, a pair of id and url, or a url, not {value!r}")


@dataclass(frozen=True)
class CompactStateSettings:
    """The state machine that the compaction tool loads, and what it is given."""

    path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _optional_text("data.compact.state.path", self.path)
        checks.table("data.compact.state.options", self.options)


@dataclass(frozen=True)
class CompactSettings:
    """When the log is compacted, and what is kept of it.

    ``install`` is where a compaction snapshot is dropped to be installed, and ``watch`` whether the peer looks for one
    there. The rest is ours, zmq-raft does not have it.
    """

    install: str = "compact/snap.new"
    watch: bool = False
    state: CompactStateSettings = field(default_factory=CompactStateSettings)
    #: The state machine is asked for a snapshot when so many entries, or so many bytes of entries, were applied since
    #: the last one; None: not for that reason.
    after_entries: int | None = None
    after_bytes: int | None = None
    #: So many index files are kept of those whose entries and request ids nobody needs; None: all, for an operator to
    #: delete.
    keep_files: int | None = None
    #: So many snapshots are kept of those that a compaction has replaced, under a name with the date.
    keep_snapshots: int = constants.ROTATED_FILES_MAX

    def __post_init__(self) -> None:
        checks.text("data.compact.install", self.install)
        checks.boolean("data.compact.watch", self.watch)
        for name, low in (("after_entries", 1), ("after_bytes", 1), ("keep_files", 0)):
            if (value := getattr(self, name)) is not None:
                checks.integer(f"data.compact.{checks.camel_case(name)}", value, low, constants.INTEGER_MAX)
        checks.integer("data.compact.keepSnapshots", self.keep_snapshots, 0, constants.INTEGER_MAX)


@dataclass(frozen=True)
class DataSettings:
    """Where a peer keeps its data. Names are relative to `directory`, unless they are absolute paths."""

    path: str | Path
    append_id_to_path: bool = False
    raft: str = "raft.pers"
    log: str = "log"
    snapshot: str = "snap"
    state: str = "state.pers"
    compact: CompactSettings = field(default_factory=CompactSettings)
    #: Whether a peer without data is refused: one that has lost them would forget its votes, and what it acknowledged.
    #: Ours, zmq-raft does not have it.
    must_exist: bool = False
    #: The peer whose data it is; `Settings` fills it in.
    peer_id: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.text("data.path", str(self.path) if isinstance(self.path, Path) else self.path)
        checks.boolean("data.appendIdToPath", self.append_id_to_path)
        checks.boolean("data.mustExist", self.must_exist)
        if self.append_id_to_path and (self.peer_id in (".", "..") or "/" in self.peer_id or "\\" in self.peer_id):
            raise checks.failure("data.appendIdToPath", f"the id {self.peer_id!r} cannot be the name of a directory")
        owners: dict[Path, str] = {}
        values = {name: getattr(self, name) for name in ("raft", "log", "snapshot", "state")}
        # What is found there is taken away.
        for name, value in {**values, "compact.install": self.compact.install}.items():
            checks.text(f"data.{name}", value)
            other = owners.setdefault(self._resolved(value), name)
            if other != name:
                raise checks.failure(f"data.{name}", f"is the same path as data.{other}: {value!r}")

    def _resolved(self, name: str) -> Path:
        return self.directory / name

    @property
    def directory(self) -> Path:
        """``path``, with the peer's id appended if ``append_id_to_path`` says so."""
        return Path(self.path, self.peer_id) if self.append_id_to_path else Path(self.path)

    @property
    def raft_path(self) -> Path:
        """The state file: term, vote and configuration."""
        return self._resolved(self.raft)

    @property
    def log_path(self) -> Path:
        """The directory of the index files."""
        return self._resolved(self.log)

    @property
    def snapshot_path(self) -> Path:
        """The snapshot file."""
        return self._resolved(self.snapshot)

    @property
    def state_path(self) -> Path:
        """The file of a persistent state machine."""
        return self._resolved(self.state)

    @property
    def compact_install_path(self) -> Path:
        """Where a compaction snapshot is dropped to be installed."""
        return self._resolved(self.compact.install)


@dataclass(frozen=True)
class BroadcastSettings:
    """The PUB socket: its url for subscribers (None: there is none), what to bind (None: the url), its heartbeat."""

    url: str | None = None
    bind: str | None = None
    broadcast_heartbeat_interval: int = constants.BROADCAST_HEARTBEAT_INTERVAL_MS

    def __post_init__(self) -> None:
        if self.url is not None:
            _set(self, "url", checks.url("broadcast.url", self.url, parse_url))
        if self.bind is not None:
            _set(self, "bind", checks.url("broadcast.bind", self.bind, parse_bind_url))
        interval = self.broadcast_heartbeat_interval
        checks.integer("broadcast.broadcastHeartbeatInterval", interval, 1, _TIMER_MS_MAX)

    @property
    def bind_url(self) -> str | None:
        """What the PUB socket binds; None when there is no broadcast."""
        return None if self.url is None else self.bind or self.url


@dataclass(frozen=True)
class WebMonitorBindSettings:
    """What the web monitor binds, where that differs from its public address. Paths of PEM files for https."""

    host: str | None = None
    port: int | None = None
    proto: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        for name in ("host", "ca", "cert", "key"):
            _optional_text(f"webmonitor.bind.{name}", getattr(self, name))
        if self.port is not None:
            checks.integer("webmonitor.bind.port", self.port, 1, _PORT_MAX)
        if self.proto is not None:
            checks.choice("webmonitor.bind.proto", self.proto, _WEBMONITOR_PROTOCOLS)


@dataclass(frozen=True)
class WebMonitorSettings:
    """The address of the web monitor, and whether there is one."""

    enable: bool = False
    host: str = "localhost"
    port: int = _WEBMONITOR_PORT
    proto: str = "http"
    bind: WebMonitorBindSettings = field(default_factory=WebMonitorBindSettings)

    def __post_init__(self) -> None:
        checks.boolean("webmonitor.enable", self.enable)
        checks.text("webmonitor.host", self.host)
        checks.integer("webmonitor.port", self.port, 1, _PORT_MAX)
        checks.choice("webmonitor.proto", self.proto, _WEBMONITOR_PROTOCOLS)

    @property
    def url(self) -> str:
        """The public url of the web monitor."""
        return f"{self.proto}://{self.host}:{self.port}"

    def at(self, url: str) -> WebMonitorSettings:
        """These settings, enabled, under another public url. Raises ConfigurationError on a bad one."""
        proto, host, port = _parse_web_url(url)
        return replace(self, enable=True, proto=proto, host=host, port=port)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one peer.

    ``peers`` lists the configuration to start with. A peer that is not in it joins later (SPEC section 2, difference
    8) and needs ``router_bind``. Raises ConfigurationError, with the key path of the setting and its value, when
    anything is wrong.
    """

    id: str
    peers: tuple[PeerAddress, ...]
    data: DataSettings
    secret: bytes = field(default=b"", repr=False)
    label: str | None = None
    router_bind: str | None = None
    broadcast: BroadcastSettings = field(default_factory=BroadcastSettings)
    webmonitor: WebMonitorSettings = field(default_factory=WebMonitorSettings)
    election_timeout_min: int = constants.ELECTION_TIMEOUT_MIN_MS
    election_timeout_max: int = constants.ELECTION_TIMEOUT_MAX_MS
    rpc_timeout: int = constants.RPC_TIMEOUT_MS
    append_entries_heartbeat_interval: int = constants.APPEND_ENTRIES_HEARTBEAT_INTERVAL_MS
    append_entries_rpc_timeout_min: int = constants.APPEND_ENTRIES_RPC_TIMEOUT_MIN_MS
    append_entries_rpc_timeout_max: int = constants.APPEND_ENTRIES_RPC_TIMEOUT_MAX_MS
    max_log_entry_data_size: int = constants.MAX_LOG_ENTRY_DATA_SIZE
    peer_msg_data_size: int = constants.PEER_MSG_DATA_SIZE
    #: None: the time in a request id is not checked, and ids are remembered as long as their entries are on disk.
    request_id_ttl: int | None = constants.REQUEST_ID_TTL_MS
    request_id_ttl_accept_margin: int = constants.REQUEST_ID_TTL_ACCEPT_MARGIN_MS
    #: The most request ids that are remembered; None for no limit.
    request_id_cache_max: int | None = None
    request_entries_high_watermak: int = constants.REQUEST_ENTRIES_HIGH_WATERMARK
    request_entries_ttl: int = constants.REQUEST_ENTRIES_TTL_MS
    request_entries_pipelines: int = constants.REQUEST_ENTRIES_PIPELINES
    request_entries_snapshot_pipelines: int = constants.REQUEST_ENTRIES_SNAPSHOT_PIPELINES
    request_entries_entry_size_limit_pipeline: int = constants.PEER_MSG_DATA_SIZE
    #: Entries in an index file; rounded up to a power of two.
    index_file_capacity: int = constants.INDEX_FILE_CAPACITY
    prevent_spiral_elections: bool = True

    def __post_init__(self) -> None:
        checks.text("id", self.id)
        _optional_text("label", self.label)
        if not isinstance(self.secret, bytes):
            raise checks.failure("secret", f"must be bytes, not {type(self.secret).__name__}")
        for name, section in _SECTIONS.items():
            if not isinstance(value := getattr(self, name), section):
                raise checks.failure(name, f"must be {section.__name__}, not {type(value).__name__}")
        _set(self, "data", replace(self.data, peer_id=self.id))
        self._check_peers()
        self._check_own_urls()
        self._check_times()
        self._check_sizes()
        checks.boolean("preventSpiralElections", self.prevent_spiral_elections)

    def _check_peers(self) -> None:
        _set(self, "peers", tuple(self.peers))
        if not self.peers:
            raise checks.failure("peers", "at least one peer is needed")
        ids: set[str] = set()
        urls: dict[str, str] = {}
        for position, peer in enumerate(self.peers):
            if not isinstance(peer, PeerAddress):
                raise checks.failure(f"peers[{position}]", f"must be a PeerAddress, not {peer!r}")
            if peer.id in ids:
                raise checks.failure(f"peers[{position}].id", f"another peer has this id: {peer.id!r}")
            ids.add(peer.id)
            for name, url in (("url", peer.url), ("pub", peer.pub)):
                if url is not None and urls.setdefault(url, place := f"peers[{position}].{name}") != place:
                    raise checks.failure(place, f"is the same as {urls[url]}: {url!r}")

    def _check_own_urls(self) -> None:
        own = self.own_address
        if self.router_bind is not None:
            _set(self, "router_bind", checks.url("router.bind", self.router_bind, parse_bind_url))
        elif own is None:
            known = ", ".join(peer.id for peer in self.peers)
            reason = f"{self.id!r} is not one of the peers ({known}); to join them it needs router.bind"
            raise checks.failure("id", reason)
        if own is not None and own.pub is not None and self.broadcast.url is None:
            _set(self, "broadcast", replace(self.broadcast, url=own.pub))
        if self.broadcast.url is None:
            return
        if self.broadcast.bind_url == self.bind_url:
            raise checks.failure("broadcast.url", f"the peer's ROUTER socket binds the same: {self.bind_url!r}")
        for peer in self.peers:
            if self.broadcast.url == peer.url or (peer is not own and self.broadcast.url == peer.pub):
                raise checks.failure("broadcast.url", f"peer {peer.id!r} has the same: {self.broadcast.url!r}")

    def _check_times(self) -> None:
        _check_integers(self, _TIMERS, 1, _TIMER_MS_MAX)
        if self.election_timeout_min >= self.election_timeout_max:
            raise self._not_below("election_timeout_min", "election_timeout_max")
        if self.append_entries_rpc_timeout_min > self.append_entries_rpc_timeout_max:
            raise self._not_below("append_entries_rpc_timeout_min", "append_entries_rpc_timeout_max")
        if self.append_entries_heartbeat_interval >= self.election_timeout_min:
            raise self._not_below("append_entries_heartbeat_interval", "election_timeout_min")
        checks.integer("requestIdTtlAcceptMargin", self.request_id_ttl_accept_margin, 0, constants.INTEGER_MAX)
        if self.request_id_ttl is not None:
            checks.integer("requestIdTtl", self.request_id_ttl, 1, constants.INTEGER_MAX)
            if self.request_id_ttl_accept_margin >= self.request_id_ttl:
                raise self._not_below("request_id_ttl_accept_margin", "request_id_ttl")

    def _not_below(self, low: str, high: str) -> ConfigurationError:
        low_value, high_value = getattr(self, low), getattr(self, high)
        return checks.failure(
            checks.camel_case(low), f"{low_value} is not below {checks.camel_case(high)}, which is {high_value}"
        )

    def _check_sizes(self) -> None:
        _check_integers(self, _COUNTS, 1, constants.INTEGER_MAX)
        checks.integer("maxLogEntryDataSize", self.max_log_entry_data_size, 1, _ENTRY_DATA_SIZE_MAX)
        for name in ("after_entries", "after_bytes"):
            forever = self.request_id_ttl is None and self.request_id_cache_max is None
            if forever and getattr(self.data.compact, name) is not None:
                raise checks.failure(
                    f"data.compact.{checks.camel_case(name)}",
                    "needs requestIdTtl or requestIdCacheMax: request ids that are never forgotten keep every entry",
                )
        if self.request_id_cache_max is not None:
            checks.integer("requestIdCacheMax", self.request_id_cache_max, 1, constants.INTEGER_MAX)
        checks.integer("indexFileCapacity", self.index_file_capacity, 1, _CAPACITY_MAX)
        _set(self, "index_file_capacity", 1 << (self.index_file_capacity - 1).bit_length())

    @property
    def own_address(self) -> PeerAddress | None:
        """The peer's own entry in ``peers``; None for one that joins."""
        return next((peer for peer in self.peers if peer.id == self.id), None)

    @property
    def url(self) -> str:
        """The url under which others reach the peer; for one that joins, what it binds."""
        own = self.own_address
        return own.url if own is not None else self.bind_url

    @property
    def bind_url(self) -> str:
        """The url that the ROUTER socket binds."""
        own = self.own_address
        if self.router_bind is None and own is not None:
            return own.url
        return self.router_bind or ""

    @property
    def peer_urls(self) -> list[tuple[str, str]]:
        """``(id, url)`` of every peer, as the protocol and the state file have it."""
        return [(peer.id, peer.url) for peer in self.peers]

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any],
        *,
        id: str | None = None,
        bind: str | None = None,
        pub: str | None = None,
        www: str | None = None,
    ) -> Settings:
        """The settings of one peer from what stands under the root key of a configuration file.

        ``id``, ``bind``, ``pub`` and ``www`` go before what the file says, as the flags of ``zmqraft run`` do. The
        ``pub`` and ``www`` of the peer's own entry go before ``broadcast.url`` and ``webmonitor``, since one file
        serves all peers. Raises ConfigurationError with the key path below the root, and the value.
        """
        from zmqraft.server.settings_mapping import settings_from_mapping

        return settings_from_mapping(mapping, id=id, bind=bind, pub=pub, www=www)


_SECTIONS = {"data": DataSettings, "broadcast": BroadcastSettings, "webmonitor": WebMonitorSettings}
_TIMERS = (
    "election_timeout_min",
    "election_timeout_max",
    "rpc_timeout",
    "append_entries_heartbeat_interval",
    "append_entries_rpc_timeout_min",
    "append_entries_rpc_timeout_max",
    "request_entries_ttl",
)
_COUNTS = (
    "peer_msg_data_size",
    "request_entries_high_watermak",
    "request_entries_pipelines",
    "request_entries_snapshot_pipelines",
    "request_entries_entry_size_limit_pipeline",
)


def field_names(settings_class: type) -> list[str]:
    """The Python names of what a configuration file may set in a class of this module."""
    return [item.name for item in fields(settings_class) if item.name not in ("peer_id", "router_bind")]


def _check_integers(settings: Settings, names: Sequence[str], low: int, high: int) -> None:
    for name in names:
        checks.integer(checks.camel_case(name), getattr(settings, name), low, high)


def _optional_text(path: str, value: str | None) -> None:
    if value is not None:
        checks.text(path, value)


def _set(settings: object, name: str, value: object) -> None:
    """Put a value in its canonical form, while a frozen object is being made."""
    object.__setattr__(settings, name, value)


def _parse_web_url(url: str) -> tuple[str, str, int]:
    """Protocol, host and port of the url of a web monitor. Raises ConfigurationError."""
    proto, separator, rest = url.partition("://")
    if not separator or proto.lower() not in _WEBMONITOR_PROTOCOLS:
        raise ConfigurationError(f"not a url like http://host:port: {url!r}")
    host, port = parse_host_port(url, rest.removesuffix("/"), _WEBMONITOR_PORT)
    return proto.lower(), host, port


def _check_web_url(url: str) -> str:
    _parse_web_url(url)
    return url
