"""What the ready-made state machines share: commands with results, questions, repetition, snapshots.

Knows nothing of what a command does. A command is an entry: a list whose first item names it. A question is a message
to the machine of one peer, which answers when it has applied the entries up to an index that comes with it: from
`ZmqRaftClient.read_index`, so that the answer is not stale, or of a command, so that it is there.

The rule: the state follows from the entries alone, and an entry with a request id whose result is still remembered is
not applied again. What is no command changes nothing.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgpack

from zmqraft.api import PeerHandle, SnapshotBase, StateMachineBase
from zmqraft.errors import CorruptionError, RemoteProtocolError
from zmqraft.machines.wire import FORGOTTEN, OK, REFUSED, WAITED, pack, unpack
from zmqraft.protocol.entry import EntryBatch
from zmqraft.protocol.log_entry import LogEntry

__all__ = ["NOT_YET", "CommandError", "ReplicatedMachine"]

#: So many results are remembered, for those who ask what became of their command, and against repetition.
RESULTS_MAX: Final = 16_384
#: Questions that wait, and for how long, in seconds; then they are answered that nothing has happened.
_WAITING_MAX: Final = 4096
_WAITING_S: Final = 5.0
#: Items of one piece of a snapshot.
_PIECE: Final = 1000
_VERSION: Final = 1
#: An answer: there is none yet.
NOT_YET: Final = object()

Route = tuple[bytes, bytes]


class CommandError(Exception):
    """A command or a question that makes no sense: it changes nothing."""


#: What arguments of a wrong kind lead to.
_SENSELESS: Final = (CommandError, RemoteProtocolError, ValueError, TypeError, ArithmeticError)


@dataclass(slots=True)
class _Question:
    least_index: int
    route: Route
    question: list[Any]
    expires_at: float


class ReplicatedMachine(StateMachineBase):
    """Derive from this; implement `apply_command`, `answer`, `dump` and `load`."""

    inline = True

    #: The type of the messages that are questions to this machine.
    MESSAGE: ClassVar[bytes]

    def __init__(self) -> None:
        self._index = 0
        self._results: OrderedDict[bytes, tuple[int, Any]] = OrderedDict()
        self._waiting: deque[_Question] = deque()
        self._peer: PeerHandle | None = None

    # --- what a machine is ------------------------------------------------------------------------------------------

    @abstractmethod
    def apply_command(self, command: list[Any], entry: LogEntry) -> Any:
        """Change the state, and return the result: plain values that MessagePack has. Deterministic.

        Raises CommandError, or ValueError or TypeError for arguments of a wrong kind, having changed nothing.
        """

    @abstractmethod
    def answer(self, question: list[Any]) -> Any:
        """The answer to a question, from the state as it is; `NOT_YET` when it is to be asked again after the next
        entries, as it is then: it may be changed here. Raises as `apply_command`."""

    @abstractmethod
    def dump(self) -> Iterable[Any]:
        """The state as plain values, in a copy that never changes."""

    @abstractmethod
    def load(self, items: Iterable[Any]) -> None:
        """Take over what `dump` gave, up to `applied_index`."""

    @property
    def applied_index(self) -> int:
        """The index of the last entry applied."""
        return self._index

    # --- for the peer -----------------------------------------------------------------------------------------------

    def start(self, peer: PeerHandle) -> None:
        """Remember who sends the answers."""
        self._peer = peer

    def apply_entries(self, entries: EntryBatch, term: int) -> list[Any]:
        """Apply commands; each result is ``[True, result]``, or ``[False, text]`` for what is no command."""
        results = [self._apply(entry) if entry.is_state else None for entry in entries]
        self._index = entries.last_index
        if self._waiting:
            self._ask_again()
        return results

    def _apply(self, entry: LogEntry) -> Any:
        known = self._results.get(entry.request_id)
        if known is not None:
            return known[1]
        result: list[Any]
        try:
            result = [True, self.apply_command(unpack(entry.data), entry)]
        except _SENSELESS as error:
            result = [False, str(error)]
        self._results[entry.request_id] = (entry.index, result)
        if len(self._results) > RESULTS_MAX:
            self._results.popitem(last=False)
        return result

    def snapshot(self) -> Iterable[bytes]:
        """Results and state, piece by piece."""
        head = [self.MESSAGE.decode(), _VERSION, self._index]
        results = [[request_id, index, result] for request_id, (index, result) in self._results.items()]
        return _pieces(head, results, self.dump())

    def restore(self, snapshot: SnapshotBase) -> None:
        """Raises CorruptionError when the snapshot is of another machine."""
        items = _items(snapshot.chunks())
        try:
            head = next(items, None)
            if not isinstance(head, list) or head[:2] != [self.MESSAGE.decode(), _VERSION]:
                raise CorruptionError(f"the snapshot begins with {head!r:.100}: it is not of {type(self).__name__}")
            self._index = snapshot.index
            results = next(items, ())
            self._results = OrderedDict((request_id, (index, result)) for request_id, index, result in results)
            self.load(item for piece in items for item in piece)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise CorruptionError(f"the snapshot is not one of {type(self).__name__}: {error!r}") from error
        if self._waiting:
            self._ask_again()

    def on_message(self, route: Route, message_type: bytes, frames: Sequence[bytes]) -> None:
        """A question: the least index that must be applied, then the question itself."""
        if message_type != self.MESSAGE:
            return
        if len(frames) != 2:
            raise RemoteProtocolError(f"a question has two frames, not {len(frames)}")
        least, question = unpack(frames[0]), unpack(frames[1])
        if len(least) != 1 or not isinstance(least_index := least[0], int):
            raise RemoteProtocolError(f"a question begins with an index, not {least!r:.100}")
        asked = _Question(least_index, route, question, time.monotonic() + _WAITING_S)
        if not self._try_answer(asked) and len(self._waiting) < _WAITING_MAX:
            self._waiting.append(asked)

    def tick(self, now: float) -> float | None:
        """Answer those who have waited for long."""
        while self._waiting and self._waiting[0].expires_at <= now:
            self._send(self._waiting.popleft().route, WAITED, self._index)
        return self._waiting[0].expires_at if self._waiting else None

    # --- questions --------------------------------------------------------------------------------------------------

    def _ask_again(self) -> None:
        self._waiting = deque(asked for asked in self._waiting if not self._try_answer(asked))

    def _try_answer(self, asked: _Question) -> bool:
        if asked.least_index > self._index:
            return False
        try:
            status, value = self._answer(asked.question)
        except _SENSELESS as error:
            status, value = REFUSED, str(error)
        if value is NOT_YET:
            return False
        self._send(asked.route, status, value)
        return True

    def _answer(self, question: list[Any]) -> tuple[int, Any]:
        if not question:
            raise CommandError("an empty question")
        if question[0] != "result":
            return OK, self.answer(question)
        _, request_id, index = question
        if not isinstance(index, int):
            raise CommandError(f"an index is an integer, not {index!r:.100}")
        known = self._results.get(request_id)
        return (FORGOTTEN, index) if known is None else (OK, known[1])

    def _send(self, route: Route, status: int, value: Any) -> None:
        if self._peer is not None:
            self._peer.send(route, [pack([status, value])])


def _pieces(head: list[Any], results: list[Any], state: Iterable[Any]) -> Iterator[bytes]:
    yield pack(head)
    yield pack(results)
    piece: list[Any] = []
    for item in state:
        piece.append(item)
        if len(piece) == _PIECE:
            yield pack(piece)
            piece = []
    yield pack(piece)


def _items(chunks: Iterable[bytes]) -> Iterator[Any]:
    unpacker = msgpack.Unpacker(max_buffer_size=2**31 - 1, strict_map_key=False)
    for chunk in chunks:
        unpacker.feed(chunk)
        yield from unpacker
