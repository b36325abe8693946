"""What happens for each update on a leader, and for each message on the ROUTER. The pure twin of commit_loop.pyx.

SPEC section 2, "Updates". An update that a leader takes for the first time, which is nearly every one, is handled here
from its frames to its entry in the turn's batch, and from its index to the reply; every other message comes out as
frames, for those who know what it means. Knows nothing of elections, of logs or of time, but for the numbers that it is
given. The rule: an index has at most one waiting client, the one who asked last, and each is answered at most once
finally. Import it through `zmqraft.server.commit_loop`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index as to_index

import zmq

from zmqraft.constants import APPEND_ENTRIES, INTEGER_MAX, REQUEST_ID_SIZE, REQUEST_UPDATE
from zmqraft.errors import LocalProtocolError, RemoteProtocolError, shown
from zmqraft.protocol._zmq_io import receive_messages, send_message
from zmqraft.protocol.entry import EntryBatch, EntryType
from zmqraft.protocol.log_index import BatchBuilder
from zmqraft.protocol.schema import Protocols

__all__ = ["Intake", "ReplyQueue", "WaitingUpdates"]

#: Identity, message id, type, secret, data.
_UPDATE_FRAMES = 5
#: Identity, message id, type, secret, leader id, term, previous index, previous term, commit index; then the entries.
_APPEND_FRAMES = 9

#: Messages that are not taken come out of `Intake.drain` until they have this many bytes.
_OTHERS_SIZE_MAX = 16 * 1024 * 1024
#: As many bytes as an update can have: what is remembered for each who waits.
_SIZE_MAX = 2**32 - 1

_encode = Protocols.REQUEST_UPDATE.encode_response
_ACCEPTED = _encode(True)


def _checked(value: int, name: str, smallest: int, greatest: int) -> int:
    number = int(to_index(value))
    if not smallest <= number <= greatest:
        raise LocalProtocolError(f"{name} is from {smallest} to {greatest}, not {shown(number)}")
    return number


def _check_type(value: object, expected: type) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"expected {expected.__name__}, not {type(value).__name__}")


class ReplyQueue:
    """Replies on their way to the ROUTER socket, in order."""

    def __init__(self) -> None:
        self._replies: list[tuple[Sequence[bytes], EntryBatch | None]] = []

    def append(self, frames: Sequence[bytes], entries: EntryBatch | None = None) -> None:
        """Add a reply: socket identity, message id, and what follows; then a frame for each of ``entries``."""
        self._replies.append((frames, entries))

    def extend(self, replies: Iterable[Sequence[bytes]]) -> None:
        """Add several."""
        for frames in replies:
            self.append(frames)

    def __len__(self) -> int:
        return len(self._replies)

    def __iter__(self) -> Iterator[Sequence[bytes]]:
        for frames, entries in self._replies:
            yield frames if entries is None else [*frames, *entries.frames()]

    def flush(self, socket: zmq.Socket[bytes]) -> None:
        """Send them all. A reply to a client who is gone, or does not read, is dropped."""
        for frames, entries in self._replies:
            send_message(socket, frames, entries)
        self._replies.clear()


class WaitingUpdates:
    """Clients who wait for their update to be applied, by the index of its entry."""

    def __init__(self) -> None:
        self._routes: dict[int, tuple[bytes, bytes]] = {}
        self._sizes: dict[int, int] = {}
        #: The bytes of data that are waited for, as they were given to `add`.
        self.size = 0

    def __len__(self) -> int:
        return len(self._routes)

    def add(self, index: int, identity: bytes, request_id: bytes, size: int) -> None:
        """Wait for ``index``, an entry with ``size`` bytes. Who waited for it before is forgotten; its size stays.

        Raises LocalProtocolError, and changes nothing, when one of the numbers is out of range.
        """
        _check_type(identity, bytes)
        _check_type(request_id, bytes)
        index = _checked(index, "the index of an entry", 1, INTEGER_MAX)
        size = _checked(size, "a size", 0, _SIZE_MAX)
        if index not in self._routes:
            self._sizes[index] = size
            self.size += size
        self._routes[index] = (identity, request_id)

    def applied(self, first: int, last: int, replies: ReplyQueue) -> None:
        """Answer everybody who waits for an index from ``first`` to ``last``: it is applied."""
        _check_type(replies, ReplyQueue)
        for index in self._between(first, last):
            self.size -= self._sizes.pop(index)
            replies.append([*self._routes.pop(index), *_encode(True, index)])

    def accepted(self, first: int, last: int, replies: ReplyQueue) -> None:
        """Tell everybody who waits for an index from ``first`` to ``last`` that it is accepted, so that he goes on
        waiting."""
        _check_type(replies, ReplyQueue)
        for index in self._between(first, last):
            replies.append([*self._routes[index], *_ACCEPTED])

    def _between(self, first: int, last: int) -> list[int]:
        """The indexes in a range that somebody waits for, rising."""
        first = _checked(first, "an index", 0, INTEGER_MAX)
        last = _checked(last, "an index", 0, INTEGER_MAX)
        if last - first < len(self._routes):
            return [index for index in range(first, last + 1) if index in self._routes]
        return sorted(index for index in self._routes if first <= index <= last)

    def refuse_all(self, refusal: Sequence[bytes], replies: ReplyQueue) -> None:
        """Answer everybody with these frames, in the order of the indexes, and forget them."""
        _check_type(replies, ReplyQueue)
        for _, route in sorted(self._routes.items()):
            replies.append([*route, *refusal])
        self._routes.clear()
        self._sizes.clear()
        self.size = 0


class Intake:
    """The first look at each message on the ROUTER socket.

    Between `open` and `close` it takes new updates: each becomes the next entry of a batch, and its client waits.
    """

    def __init__(
        self,
        secret: bytes,
        data_size_max: int,
        waiting: WaitingUpdates,
        find_request: Callable[[bytes], int | None],
    ) -> None:
        """``find_request`` gives the index of a request id in the log; such an update is none of a new one."""
        _check_type(secret, bytes)
        _check_type(waiting, WaitingUpdates)
        self._secret = secret
        self._data_size_max = _checked(data_size_max, "a size", 0, INTEGER_MAX)
        self._waiting = waiting
        self._find_request = find_request
        self._builder = BatchBuilder()
        self._ids: dict[bytes, int] = {}
        self._is_open = False
        self._term = 0
        self._first_index = 1
        self._after_seconds = 0.0
        self._before_seconds = 0.0
        self._room_count = 0
        self._room_size = 0

    def open(
        self,
        term: int,
        first_index: int,
        *,
        after_seconds: float,
        before_seconds: float,
        room_count: int,
        room_size: int,
    ) -> None:
        """Take updates as the leader of ``term``, whose next entry has ``first_index``.

        New ones are those whose own time lies between the two, in seconds since the epoch, both excluded; at most
        ``room_count``, as long as their data has not reached ``room_size`` bytes. What was not taken out is kept when
        the term and the index say so. Raises LocalProtocolError, and changes nothing, when one of the numbers is out
        of range.
        """
        term = _checked(term, "a term", 0, INTEGER_MAX)
        first_index = _checked(first_index, "the index of an entry", 1, INTEGER_MAX)
        room_count = _checked(room_count, "a count", -INTEGER_MAX, INTEGER_MAX)
        room_size = _checked(room_size, "a size", -INTEGER_MAX, INTEGER_MAX)
        # Not float(), which reads text as well.
        after_seconds, before_seconds = 0.0 + after_seconds, 0.0 + before_seconds
        if self._ids and (term, first_index) != (self._term, self._first_index):
            self._drop()
        self._is_open = True
        self._term = term
        self._first_index = first_index
        self._after_seconds = after_seconds
        self._before_seconds = before_seconds
        self._room_count = room_count
        self._room_size = room_size

    def close(self) -> None:
        """Take no updates any more, and forget those that were not taken out."""
        self._is_open = False
        self._drop()

    def _drop(self) -> None:
        self._builder.finish(0)
        self._ids.clear()

    def find(self, request_id: bytes) -> int | None:
        """The index that an update of this turn is to get."""
        _check_type(request_id, bytes)
        return self._ids.get(request_id)

    def offer(self, frames: Sequence[bytes]) -> bool:
        """Take a message, if it is a well-formed new update that there is room for. Returns whether it was taken."""
        if not self._is_open or len(frames) < _UPDATE_FRAMES:
            return False
        for position in range(_UPDATE_FRAMES):
            _check_type(frames[position], bytes)
        identity, request_id, message_type, secret, data = frames[:_UPDATE_FRAMES]
        if (
            message_type != REQUEST_UPDATE
            or len(request_id) != REQUEST_ID_SIZE
            or not hmac.compare_digest(secret, self._secret)
            or not 0 < len(data) <= self._data_size_max
            or not self._after_seconds < int.from_bytes(request_id[:4], "big") < self._before_seconds
            or self._room_count <= 0
            or self._room_size <= 0
            or request_id in self._ids
            or self._find_request(request_id) is not None
        ):
            return False
        self.add(identity, request_id, data)
        return True

    def add(self, identity: bytes, request_id: bytes, data: bytes) -> None:
        """Make an update the next entry, and let its client wait. What `offer` checks is the caller's to check.

        Raises LocalProtocolError, and changes nothing, on what is no update at all.
        """
        for value in (identity, request_id, data):
            _check_type(value, bytes)
        if len(request_id) != REQUEST_ID_SIZE or not data:
            raise LocalProtocolError(f"no update has an id of {len(request_id)} bytes and {len(data)} bytes of data")
        index = self._first_index + len(self._builder)
        self._builder.append_entry(request_id, EntryType.STATE, self._term, data)
        self._ids[request_id] = index
        self._room_count -= 1
        self._room_size -= len(data)
        self._waiting.add(index, identity, request_id, len(data))

    def take(self) -> EntryBatch | None:
        """The entries since the last call, or None. The next ones follow them."""
        if not len(self._builder):
            return None
        batch = self._builder.finish(self._first_index)
        self._first_index = batch.last_index + 1
        self._ids.clear()
        return batch

    def drain(self, socket: zmq.Socket[bytes], count_max: int) -> list[tuple[list[bytes], EntryBatch | None]]:
        """Read the messages that have arrived, at most ``count_max``, and offer each. Returns those not taken.

        It ends when those not taken have 16 MiB: any number of them may wait, of any size, and from anybody. The
        entries of an AppendEntries message come as a batch whose first index is 0, its other frames before it; if one
        of them is no entry, all come as frames.
        """
        others: list[tuple[list[bytes], EntryBatch | None]] = []
        size = 0
        count_max = to_index(count_max)
        while count_max > 0 and size < _OTHERS_SIZE_MAX and (messages := receive_messages(socket, 1)):
            count_max -= 1
            (frames,) = messages
            if not self.offer(frames):
                size += sum(map(len, frames))
                others.append(_split_entries(frames))
        return others


def _split_entries(frames: list[bytes]) -> tuple[list[bytes], EntryBatch | None]:
    if len(frames) <= _APPEND_FRAMES or frames[2] != APPEND_ENTRIES:
        return frames, None
    builder = BatchBuilder()
    try:
        for frame in frames[_APPEND_FRAMES:]:
            builder.append_frame(frame)
    except RemoteProtocolError:
        return frames, None
    return frames[:_APPEND_FRAMES], builder.finish(0)
