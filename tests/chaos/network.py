"""The ways between the processes of a run, and how they are cut: in network namespaces, or through TCP proxies.

Knows nothing of peers; nodes are named by short texts. The rule: `block` cuts ways in one direction each, whatever else
is cut, until what it returned is lifted; and that says whether anything has been stopped by it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Protocol

from support.command import free_ports
from support.tcp_proxy import Link, Links

__all__ = ["CLIENTS", "ISOLATED", "Cut", "NamespaceNetwork", "Network", "ProxyNetwork", "Way", "missing_for_namespaces"]

#: The nodes in which clients are.
CLIENTS = ("c1", "c2")
#: How a process gets namespaces of its own for its network, mounts and process ids. With it all that is in them ends.
ISOLATED = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
#: From a node, to a node.
Way = tuple[str, str]

_PORT = 8047
_SUBNET = "10.77.0"
_CLIENTS_HOSTS = {"c1": 201, "c2": 202}
_OWN_HOST = 254


class Cut(Protocol):
    """Ways that are cut."""

    def stopped(self) -> int:
        """How much was stopped so far: packets, pieces or connections."""

    def lift(self) -> None:
        """Let everything pass again that nothing else stops."""


class Network(Protocol):
    """Where nodes are, and what runs there."""

    def url(self, node: str, seen_from: str | None = None) -> str:
        """The url of a peer, as another node knows it (by default this process, which nothing cuts off)."""

    def prefix(self, node: str) -> list[str]:
        """The command that runs a command at a node."""

    def block(self, ways: Collection[Way]) -> Cut:
        """Cut ways."""


def missing_for_namespaces() -> str | None:
    """Why there can be no network namespaces here; None when there can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install {package})"
    tried = (
        "mount -t tmpfs tmpfs /run/netns && ip netns add try && ip link add br0 type bridge"
        " && ip link add e0 netns try type veth peer name e1 && ip link set e1 master br0"
        " && ip netns exec try nft add table ip try"
    )
    os.makedirs("/run/netns", exist_ok=True)
    result = subprocess.run([*ISOLATED, "sh", "-c", tried], capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"no network namespaces here: {result.stderr.strip()[:200]}"


# --- network namespaces ---------------------------------------------------------------------------------------------


class NamespaceNetwork:
    """A namespace for each node, with a veth pair to a bridge in that of this process, which has to be one of its own
    (`ISOLATED`): with the last process in them, namespaces and mounts are gone."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._hosts = {node: _CLIENTS_HOSTS.get(node) or int(node) for node in nodes}
        self._numbers = 0
        self._lock = threading.Lock()
        _run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "br0", "type", "bridge")
        _run("ip", "addr", "add", f"{_SUBNET}.{_OWN_HOST}/24", "dev", "br0")
        _run("ip", "link", "set", "br0", "up")
        for node, host in self._hosts.items():
            name = self._name(node)
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", name)
            _run("ip", "link", "set", name, "master", "br0", "up")
            _run("ip", "-n", name, "addr", "add", f"{_SUBNET}.{host}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")

    def url(self, node: str, seen_from: str | None = None) -> str:
        return f"tcp://{_SUBNET}.{self._hosts[node]}:{_PORT}"

    def prefix(self, node: str) -> list[str]:
        return ["ip", "netns", "exec", self._name(node)]

    def block(self, ways: Collection[Way]) -> _RuleCut:
        sources: dict[str, set[str]] = defaultdict(set)
        for source, target in ways:
            sources[target].add(source)
        with self._lock:
            self._numbers += 1
            table = f"cut{self._numbers}"
        for target, others in sources.items():
            addresses = ", ".join(f"{_SUBNET}.{self._hosts[other]}" for other in sorted(others))
            rules = (
                f"add table ip {table}; add chain ip {table} input {{ type filter hook input priority 0; }}; "
                f"add rule ip {table} input ip saddr {{ {addresses} }} counter drop"
            )
            _run(*self.prefix(target), "nft", rules)
        return _RuleCut(table, [self.prefix(target) for target in sources])

    @staticmethod
    def _name(node: str) -> str:
        return f"n{node}"


class _RuleCut:
    """A table of nftables in each namespace that something is kept away from."""

    def __init__(self, table: str, prefixes: list[list[str]]) -> None:
        self._table = table
        self._prefixes = prefixes

    def stopped(self) -> int:
        packets = 0
        for prefix in self._prefixes:
            words = _run(*prefix, "nft", "list", "table", "ip", self._table).split()
            packets += int(words[words.index("packets") + 1])
        return packets

    def lift(self) -> None:
        for prefix in self._prefixes:
            _run(*prefix, "nft", "delete", "table", "ip", self._table)


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise OSError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


# --- TCP proxies ----------------------------------------------------------------------------------------------------


class ProxyNetwork:
    """Ports on the loopback, and a link from each node to each peer. What is held up in a link is what its owner asks
    for, and the answers to that."""

    def __init__(self, nodes: Sequence[str], stack: contextlib.ExitStack) -> None:
        peers = [node for node in nodes if node not in CLIENTS]
        self._ports = dict(zip(peers, free_ports(len(peers)), strict=True))
        self._links = stack.enter_context(Links())
        self._ways = {
            (node, peer): self._links.open(port) for node in nodes for peer, port in self._ports.items() if peer != node
        }
        self._cuts: dict[Link, int] = defaultdict(int)
        self._lock = threading.Lock()

    def url(self, node: str, seen_from: str | None = None) -> str:
        seen_through = seen_from is not None and seen_from != node
        port = self._ways[seen_from, node].port if seen_through and seen_from is not None else self._ports[node]
        return f"tcp://127.0.0.1:{port}"

    def prefix(self, node: str) -> list[str]:
        return []

    def block(self, ways: Collection[Way]) -> _LinkCut:
        # Clients are asked for nothing: what gets to them are answers.
        names = {(target, source) if target in CLIENTS else (source, target) for source, target in ways}
        return _LinkCut(self, [self._ways[name] for name in names])

    def hold(self, link: Link) -> None:
        with self._lock:
            self._cuts[link] += 1
            self._links.hold(link)

    def release(self, link: Link) -> None:
        with self._lock:
            self._cuts[link] -= 1
            if self._cuts[link] == 0:
                self._links.restore(link)


class _LinkCut:
    def __init__(self, network: ProxyNetwork, links: list[Link]) -> None:
        self._network = network
        self._links = links
        self._before = sum(link.stopped for link in links)
        for link in links:
            network.hold(link)

    def stopped(self) -> int:
        return sum(link.stopped for link in self._links) - self._before

    def lift(self) -> None:
        for link in self._links:
            self._network.release(link)
