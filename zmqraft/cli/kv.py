"""``zmqraft kv``: a replicated key-value store, its peers and its client.

Knows nothing of sockets or of who leads. The rule: a value comes out as the bytes that went in; what is not there is no
output and the exit status 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from zmqraft.cli import logs
from zmqraft.cli.cluster_options import ClusterAddress, cluster_options
from zmqraft.cli.output import ENCODINGS, Output, encode_data
from zmqraft.cli.run import find_config_file, run_peer
from zmqraft.machines import Change, KeyValueClient, KeyValueMachine
from zmqraft.protocol.request_id import request_id_from_text
from zmqraft.server.config_file import NAMESPACE_DEFAULT, load_settings

__all__ = ["kv"]

STATUS_ABSENT = 1

_json = click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each.")
_encoding = click.option(
    "--encoding",
    type=click.Choice(ENCODINGS),
    default="text",
    show_default=True,
    help="How values appear in JSON; text that is not UTF-8 appears in base64.",
)
_request_id = click.option("--request-id", metavar="ID", help="Repeat with it a change whose outcome is not known.")


@click.group()
def kv() -> None:
    """Use a replicated key-value store. Reads see every change that was acknowledged before them."""


@kv.command()
@click.option("-c", "--config", metavar="FILE", help="Configuration file [default: ./zmqraft.yaml, .json, ...].")
@click.option("--ns", "namespace", default=NAMESPACE_DEFAULT, show_default=True, help="The root key of the settings.")
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="warning", show_default=True)
@click.option("--log-format", type=click.Choice(logs.FORMATS), default="text", show_default=True)
@click.argument("peer_id", metavar="[ID]", required=False)
def run(config: str | None, namespace: str, log_level: str, log_format: str, peer_id: str | None) -> int:
    """Run the peer ID of a store, as `zmqraft run` does. All peers of the cluster must be run so."""
    logs.configure(log_level, log_format)
    path = find_config_file(Path()) if config is None else Path(config)
    return run_peer(load_settings(path, namespace=namespace, id=peer_id), state_machine=lambda _: KeyValueMachine())


@kv.command()
@cluster_options
@_json
@_encoding
@click.argument("key")
def get(cluster: ClusterAddress, key: str, as_json: bool, encoding: str) -> int:
    """Print the value of KEY."""
    with _client(cluster) as client:
        found = client.get(os.fsencode(key))
    if found is None:
        return STATUS_ABSENT
    output = Output()
    if as_json:
        output.json({"key": key, "revision": found.revision, **encode_data(found.value, encoding)})
    else:
        output.line(found.value)
    output.flush()
    return 0


@kv.command()
@cluster_options
@_request_id
@click.argument("key")
@click.argument("value", required=False)
def put(cluster: ClusterAddress, key: str, value: str | None, request_id: str | None) -> None:
    """Store VALUE, or else standard input, under KEY; print its revision."""
    data = sys.stdin.buffer.read() if value is None else os.fsencode(value)
    with _client(cluster) as client:
        _say(b"%d" % client.put(os.fsencode(key), data, request_id=_id(request_id)))


@kv.command()
@cluster_options
@_request_id
@click.argument("key")
def delete(cluster: ClusterAddress, key: str, request_id: str | None) -> int:
    """Remove KEY. The exit status is 1 when it had no value."""
    with _client(cluster) as client:
        return 0 if client.delete(os.fsencode(key), request_id=_id(request_id)) else STATUS_ABSENT


@kv.command()
@cluster_options
@_request_id
@click.option("--expect", metavar="VALUE", help="The value that KEY must have; without this option, none.")
@click.argument("key")
@click.argument("value", required=False)
def swap(cluster: ClusterAddress, key: str, value: str | None, expect: str | None, request_id: str | None) -> int:
    """Store VALUE under KEY, or without VALUE remove it, if it has the value that is expected.

    The exit status is 1 when it has another.
    """
    expected = None if expect is None else os.fsencode(expect)
    with _client(cluster) as client:
        swapped = client.compare_and_swap(
            os.fsencode(key), expected, None if value is None else os.fsencode(value), request_id=_id(request_id)
        )
    return 0 if swapped else STATUS_ABSENT


@kv.command()
@cluster_options
@_json
@_encoding
@click.argument("prefix", default="")
def scan(cluster: ClusterAddress, prefix: str, as_json: bool, encoding: str) -> None:
    """Print the keys that begin with PREFIX, in their order, with their values behind a tabulator."""
    output = Output()
    with _client(cluster) as client:
        for key, stored in client.scan(os.fsencode(prefix)):
            if as_json:
                record = {"key": key.decode(errors="replace"), "revision": stored.revision}
                output.json({**record, **encode_data(stored.value, encoding)})
            else:
                output.line(key + b"\t" + stored.value)
    output.flush()


@kv.command()
@cluster_options
@_json
@_encoding
@click.option("--from", "index", type=click.IntRange(min=1), metavar="INDEX", help="The first revision [default: new].")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N changes.")
@click.argument("prefix", default="")
def watch(
    cluster: ClusterAddress, prefix: str, index: int | None, count: int | None, as_json: bool, encoding: str
) -> None:
    """Print every change of keys that begin with PREFIX: revision, key and value, with tabulators between them.

    A key that is removed has no value, nor a tabulator before it.
    """
    output = Output()
    with _client(cluster) as client:
        for number, change in enumerate(client.watch(os.fsencode(prefix), None if index is None else index - 1), 1):
            _write_change(output, change, as_json, encoding)
            output.flush()
            if number == count:
                return


def _write_change(output: Output, change: Change, as_json: bool, encoding: str) -> None:
    value = change.value
    if as_json:
        record = {"key": change.key.decode(errors="replace"), "revision": change.revision}
        output.json({**record, **({"deleted": True} if value is None else encode_data(value, encoding))})
    else:
        output.line(b"\t".join([b"%d" % change.revision, change.key, *([] if value is None else [value])]))


def _client(cluster: ClusterAddress) -> KeyValueClient:
    return KeyValueClient(cluster.urls, secret=cluster.secret, deadline_s=cluster.timeout_s)


def _id(text: str | None) -> bytes | None:
    try:
        return None if text is None else request_id_from_text(text)
    except ValueError as error:
        raise click.UsageError(f"--request-id: {error}") from None


def _say(line: bytes) -> None:
    output = Output()
    output.line(line)
    output.flush()
