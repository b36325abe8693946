"""Scenarios as text: commands, a line ``----``, and what the peers did, compared literally.

In the manner of the interaction tests of etcd's raft. Lines that begin with # are remarks. A block is one or more
commands, the line ----, and what comes out, up to an empty line. Peers are letters, messages wait until they are
delivered or dropped, and time stands still, for each peer by itself, until it is told to go on:

    peers N [ours] [NAME=VALUE ...]   a cluster of N, still to be started; ``ours``: they know each other as ours
    given A 1 1 2 [term 5]            the terms of the entries in a log, and the term, before the start
    start [A B ...]                   start, also after a crash; all when nobody is named
    add D AB                          a new peer that is no member; its configuration file has A and B
    crash A                           what was not synced is gone, and so are its messages and connections
    wipe A                            its disk is lost, while it is down
    timeout A                         the election timeout of A passes
    elapse A 70                       so many milliseconds pass at A
    deliver A->B [2] [again] [anew]   the first (or second ...) message in a link arrives; ``again``: it stays there, to
                                      come once more; ``anew``: over another connection
    drop A->B [all]                   the first one, or all, are lost
    settle [AB]                       deliver everything, without showing it, until nobody has anything to say
    cut A|BC, heal                    those of different groups do not reach each other, from here on and until then
    update A x                        a client sends an update; its entry is shown as x
    change A ABD                      a client makes these the members
    read A                            a client asks for the index of a linearizable read
    compact A 3                       a snapshot takes the place of the entries up to 3
    slow A, synced A                  A syncs in the background, if it leads; that is done now
    state                             what everybody is
    COMMAND & COMMAND                 both, before the peer gets a turn

Anything else is an error, and so is delivering or dropping what is not there. After every command the invariants of
`support.invariants` are checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from support.invariants import Invariants
from support.message_texts import answer_text, entry_text, letter, letters, message_text
from support.scripted_cluster import Held, ScriptedCluster
from support.virtual_cluster import SECRET, Peer
from zmqraft import constants
from zmqraft.protocol import EntryType, LogEntry, Protocols
from zmqraft.storage import MemoryLog, MemoryPersistence

_RULE = "----"


class TranscriptError(ValueError):
    """A script that cannot be followed."""


def rewritten(text: str) -> str:
    """The same commands with what comes out now."""
    script, blocks = Transcript(), []
    for block in re.split(r"\n\n+", text.strip("\n")):
        lines = block.split("\n")
        if all(line.startswith("#") for line in lines):
            blocks.append(block)
            continue
        if _RULE not in lines:
            raise TranscriptError(f"a block without {_RULE}: {block!r:.100}")
        head = lines[: lines.index(_RULE)]
        out = [line for command in head if not command.startswith("#") for line in script.run(command)]
        blocks.append("\n".join([*head, _RULE, *(out or ["nothing"])]))
    return "\n\n".join(blocks) + "\n"


def check(path: Path, *, rewrite: bool = False) -> None:
    """Raises AssertionError when something else comes out than is written there; or write it there."""
    text = path.read_text(encoding="utf-8")
    found = rewritten(text)
    if rewrite:
        path.write_text(found, encoding="utf-8")
    else:
        assert found.split("\n") == text.split("\n")


class Transcript:
    """Runs the commands of one script."""

    def __init__(self) -> None:
        self._cluster = ScriptedCluster(0)
        self._invariants = Invariants(self._cluster)
        self._out: list[str] = []
        self._shows_messages = True
        self._seen: dict[str, tuple[dict[str, str], list[LogEntry]]] = {}
        self._names: dict[bytes, str] = {}
        self._heard: dict[bytes, int] = {}

    def run(self, line: str) -> list[str]:
        """Run a line. Returns what happened."""
        self._out = []
        for command in line.split(" & "):
            name, *arguments = command.split()
            method: Callable[..., None] | None = getattr(self, f"_do_{name}", None)
            if method is None:
                raise TranscriptError(f"unknown command: {line}")
            try:
                method(*arguments)
            except (TypeError, KeyError, IndexError, ValueError) as error:
                raise TranscriptError(f"{line}: {error!r}") from error
        self._cluster.work()
        for peer in self._cluster.peers.values():
            self._out += self._news(peer)
        self._hear_clients()
        self._invariants.check_running()
        return self._out

    def _peer(self, name: str) -> Peer:
        return self._cluster.peers[str(ord(name) - ord("A") + 1)]

    def _ids(self, names: str) -> list[str]:
        return [self._peer(name).id for name in names]

    # --- commands ---------------------------------------------------------------------------------------------------

    def _do_peers(self, count: str, *options: str) -> None:
        settings = {name: int(value) for name, _, value in (each.partition("=") for each in options if "=" in each)}
        own = [each for each in options if "=" not in each]
        if own not in ([], ["ours"]):
            raise ValueError(own)
        self._cluster = ScriptedCluster(int(count), own=bool(own), **settings)
        self._cluster.on_message = self._show_message
        self._cluster.around_turn = self._show_turn
        self._invariants = Invariants(self._cluster)

    def _do_given(self, name: str, *terms: str) -> None:
        values = [int(each) for each in terms if each != "term"]
        term = values.pop() if "term" in terms else max(values)
        # What has the same index and the same term is the same entry.
        entries = [
            LogEntry(index, each, EntryType.STATE, b"%6d%6d" % (index, each), b"data")
            for index, each in enumerate(values, 1)
        ]
        self._peer(name).put_log(entries, term)

    def _do_start(self, *names: str) -> None:
        for peer_id in self._ids("".join(names)) or self._cluster.ids:
            self._cluster.start(peer_id)
            self._news(self._cluster.peers[peer_id])

    def _do_add(self, name: str, configured: str) -> None:
        self._cluster.add(str(ord(name) - ord("A") + 1), self._ids(configured))

    def _do_crash(self, name: str) -> None:
        if self._peer(name).engine is None:
            raise ValueError("it is down")
        self._cluster.crash(self._peer(name).id)
        self._seen.pop(self._peer(name).id, None)

    def _do_wipe(self, name: str) -> None:
        peer = self._peer(name)
        if peer.engine is not None:
            raise ValueError("it is running")
        peer.log, peer.persistence = MemoryLog(), MemoryPersistence()
        self._invariants.forget(peer.id)

    def _do_timeout(self, name: str) -> None:
        raft = self._peer(name).running.raft
        if raft.is_leader or raft._election_at == float("inf"):
            raise ValueError("it has no election timeout")
        self._cluster.elapse(self._peer(name), raft._election_at)

    def _do_elapse(self, name: str, milliseconds: str) -> None:
        peer = self._peer(name)
        self._cluster.elapse(peer, self._cluster.clocks[peer.id] + int(milliseconds) / 1000)

    def _link(self, name: str) -> list[Held]:
        source, arrow, target = name.partition("->")
        link = self._cluster.links.get((self._peer(source).id, self._peer(target).id))
        if not arrow or not link:
            raise ValueError("there is no message")
        return link

    def _do_deliver(self, name: str, *options: str) -> None:
        link = self._link(name)
        numbers = [int(each) for each in options if each not in ("again", "anew")]
        position = numbers[0] - 1 if numbers else 0
        held = link[position] if "again" in options else link.pop(position)
        if self._cluster.is_stale(held):
            self._say(f"{name}: lost, {letter(held.target)} has another connection")
        self._cluster.hand_over(held, identity=b"anew" if "anew" in options else None)

    def _do_drop(self, name: str, *options: str) -> None:
        link = self._link(name)
        if options not in ((), ("all",)):
            raise ValueError(options)
        del link[: None if options else 1]

    def _do_settle(self, names: str = "") -> None:
        ids = self._ids(names) or self._cluster.ids
        self._shows_messages = False
        self._cluster.work()
        while pairs := [pair for pair, link in self._cluster.links.items() if link and set(pair) <= set(ids)]:
            self._cluster.hand_over(self._cluster.links[pairs[0]].pop(0))
            self._cluster.work()
        self._shows_messages = True

    def _do_cut(self, groups: str) -> None:
        self._cluster.cut_off(*(self._ids(group) for group in groups.split("|")))

    def _do_heal(self) -> None:
        self._cluster.heal()

    def _do_update(self, name: str, data: str, *options: str) -> None:
        with self._cluster.clock_of(self._peer(name)):
            self._names[self._cluster.update(self._peer(name).id, data.encode())] = data

    def _do_change(self, name: str, members: str) -> None:
        with self._cluster.clock_of(self._peer(name)):
            self._names[self._cluster.ask_change(self._peer(name).id, self._ids(members))] = f"change to {members}"

    def _do_read(self, name: str) -> None:
        message_id = b"read %d" % len(self._names)
        self._names[message_id] = f"read at {name}"
        with self._cluster.clock_of(self._peer(name)):
            frames = Protocols.READ_INDEX.encode_request(constants.READ_INDEX, SECRET)
            self._cluster.request(self._peer(name).id, message_id, frames)

    def _do_compact(self, name: str, index: str) -> None:
        self._peer(name).compact(int(index))
        self._say(f"{name}: snapshot of {index}")
        self._seen.pop(self._peer(name).id)
        self._news(self._peer(name))

    def _do_slow(self, name: str) -> None:
        self._cluster.slow.add(self._peer(name).id)

    def _do_synced(self, name: str) -> None:
        self._cluster.finish_sync(self._peer(name))

    def _do_state(self) -> None:
        for peer in self._cluster.peers.values():
            facts = [f"{name} {value}" for name, value in self._facts(peer).items() if value]
            log = " ".join(f"{entry.index}:{entry.term}" for entry in self._entries(peer))
            self._say(f"{letter(peer.id)}: {', '.join([*facts, f'log {log}' if log else 'no log'])}")

    # --- what is shown ----------------------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        self._out.append(line)

    def _show_turn(self, peer: Peer, turn: Callable[[], None]) -> None:
        """What a peer has become, then what it sends."""
        position = len(self._out)
        turn()
        self._out[position:position] = self._news(peer)
        self._hear_clients()

    @staticmethod
    def _entries(peer: Peer) -> list[LogEntry]:
        log = peer.log
        return list(log.read(log.first_index, log.last_index, 1 << 30)) if log.last_index >= log.first_index else []

    @staticmethod
    def _facts(peer: Peer) -> dict[str, str]:
        if peer.engine is None:
            return {"is": "stopped" if peer.failure is not None else "down"}
        raft = peer.engine.raft
        return {
            "is": f"{raft.role.value} in term {raft.current_term}",
            "vote for": letter(raft.voted_for).strip("-"),
            "commit": str(raft.commit_index or ""),
            "snapshot": str(peer.log.snapshot.index or ""),
            "match": " ".join(f"{letter(each)}{of.match}" for each, of in sorted(raft.progress.items()) if of.match),
            "members": letters(peer.members),
        }

    def _news(self, peer: Peer) -> list[str]:
        """What has changed at a peer since the last call."""
        name, facts, entries = letter(peer.id), self._facts(peer), self._entries(peer)
        known, before = self._seen.get(peer.id, (facts, entries))
        self._seen[peer.id] = (facts, entries)
        if peer.engine is None:
            return [f"{name}: stops: {peer.failure}"] if facts != known and peer.failure is not None else []
        news = [f"{what} {value}" for what, value in facts.items() if value and value != known.get(what)]
        kept = sum(1 for now, then in zip(entries, before, strict=False) if now == then)
        if kept < len(before):
            news.append(f"cuts its log back to {before[0].index + kept - 1}")
        if kept < len(entries):
            news.append("appends " + " ".join(map(entry_text, entries[kept:])))
        return [f"{name}: {', '.join(news)}"] if news else []

    def _hear_clients(self) -> None:
        for request_id, replies in self._cluster.client_replies.items():
            for frames in replies[self._heard.get(request_id, 0) :]:
                if request_id in self._names:
                    self._say(f"client: {self._names[request_id]}: {answer_text(self._names[request_id], frames)}")
            self._heard[request_id] = len(replies)

    def _show_message(self, held: Held, is_lost: bool) -> None:
        if self._shows_messages:
            lost = " (lost)" if is_lost else ""
            self._say(f"  {letter(held.source)}->{letter(held.target)} {message_text(held)}{lost}")
