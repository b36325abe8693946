# cython: language_level=3
"""What happens for each update on a leader, and for each message on the ROUTER. The compiled twin of _commit_loop.py.

No Python object is made for an update: its frames are read where libzmq holds them, its bytes are copied once, into the
batch, and its client's route into a ring by the index of its entry. Same names, signatures, results and exceptions as
the pure twin; import either through `zmqraft.server.commit_loop`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from zmqraft._speedups.log_index cimport BatchBuilder, EntryBatch
from zmqraft._speedups.request_index cimport RequestIndex
from zmqraft._speedups.zmq_io cimport (
    clipped_count,
    handle_of,
    msg_close,
    msg_data,
    msg_more,
    msg_size,
    receive_first,
    receive_next,
    send_frame,
    zmqraft_msg_t,
)

from zmqraft import constants as _constants
from zmqraft._speedups.zmq_io import send_message
from zmqraft.errors import LocalProtocolError, shown

cdef enum:
    REQUEST_ID_SIZE = 12
    STATE = 0
    # Identity, message id, type, secret, data.
    UPDATE_FRAMES = 5
    # Identity, message id, type, secret, leader id, term, previous index, previous term, commit index; then entries.
    APPEND_FRAMES = 9
    RING_SIZE_MIN = 1024
    # A wider gap between two indexes that are waited for is not bridged with empty slots.
    GAP_MAX = 65536
    # Messages that are not taken come out of Intake.drain until they have this many bytes.
    OTHERS_SIZE_MAX = 16 * 1024 * 1024

cdef bytes _OK = b"\x01"
cdef int64_t INTEGER_MAX = _constants.INTEGER_MAX
# As many bytes as an update can have: what is remembered for each who waits.
cdef int64_t SIZE_MAX = 0xFFFFFFFF


cdef inline uint8_t *bytes_of(bytes data):
    return <uint8_t *> PyBytes_AS_STRING(data)


cdef int64_t checked(value, str name, int64_t smallest, int64_t greatest) except? -1:
    value = PyNumber_Index(value)
    if not smallest <= value <= greatest:
        raise LocalProtocolError(f"{name} is from {smallest} to {greatest}, not {shown(int(value))}")
    return value


cdef inline bytes to_bytes(frame):
    if not isinstance(frame, bytes):
        raise TypeError(f"expected bytes, not {type(frame).__name__}")
    return <bytes> frame


cdef Py_ssize_t pack_index(uint8_t *target, uint64_t index) noexcept nogil:
    """MessagePack as Node writes it: shortest form, a float from 2^31 on. Returns the number of bytes, at most 9."""
    cdef int size, position
    cdef double number
    cdef uint64_t bits
    if index <= 0x7F:
        target[0] = <uint8_t> index
        return 1
    if index <= 0xFF:
        target[0] = 0xCC
        size = 1
        bits = index
    elif index <= 0xFFFF:
        target[0] = 0xCD
        size = 2
        bits = index
    elif index <= 0x7FFFFFFF:
        target[0] = 0xCE
        size = 4
        bits = index
    else:
        target[0] = 0xCB
        size = 8
        number = <double> index
        memcpy(&bits, &number, 8)
    for position in range(size):
        target[1 + position] = <uint8_t> (bits >> (8 * (size - 1 - position)))
    return 1 + size


cdef class ReplyQueue:
    """Replies on their way to the ROUTER socket, in order."""

    cdef Acknowledgement *_acknowledgements
    cdef Py_ssize_t _count, _capacity
    # Other replies: (number of acknowledgements before it, frames, entries behind them or None).
    cdef list _others

    def __cinit__(self):
        self._others = []

    def __dealloc__(self):
        free(self._acknowledgements)

    cdef int acknowledge(self, Route *route, int64_t index) except -1:
        cdef Acknowledgement *grown
        if self._count == self._capacity:
            grown = <Acknowledgement *> realloc(
                self._acknowledgements, (2 * self._capacity + 64) * sizeof(Acknowledgement)
            )
            if grown is NULL:
                raise MemoryError()
            self._acknowledgements = grown
            self._capacity = 2 * self._capacity + 64
        self._acknowledgements[self._count].route = route[0]
        self._acknowledgements[self._count].index = index
        self._count += 1
        return 0

    def append(self, frames, EntryBatch entries=None):
        """Add a reply: socket identity, message id, and what follows; then a frame for each of ``entries``."""
        self._others.append((self._count, frames, entries))

    def extend(self, replies):
        """Add several."""
        for frames in replies:
            self.append(frames)

    def __len__(self):
        return self._count + len(self._others)

    cdef list _frames(self, Py_ssize_t position):
        cdef Acknowledgement *one = &self._acknowledgements[position]
        cdef uint8_t packed[9]
        cdef list frames = [
            PyBytes_FromStringAndSize(<char *> one.route.identity, one.route.identity_size),
            PyBytes_FromStringAndSize(<char *> one.route.request_id, REQUEST_ID_SIZE),
            _OK,
        ]
        if one.index:
            frames.append(PyBytes_FromStringAndSize(<char *> packed, pack_index(packed, one.index)))
        return frames

    def __iter__(self):
        cdef Py_ssize_t position = 0
        for before, frames, entries in list(self._others):
            while position < before:
                yield self._frames(position)
                position += 1
            yield frames if entries is None else [*frames, *entries.frames()]
        while position < self._count:
            yield self._frames(position)
            position += 1

    def flush(self, socket):
        """Send them all. A reply to a client who is gone, or does not read, is dropped."""
        cdef void *handle = handle_of(socket)
        cdef Py_ssize_t position = 0, before
        for before, frames, entries in self._others:
            self._send(handle, position, before)
            position = before
            send_message(socket, frames, entries)
        self._send(handle, position, self._count)
        self._count = 0
        self._others.clear()

    cdef int _send(self, void *handle, Py_ssize_t position, Py_ssize_t end) except -1:
        cdef Acknowledgement *one
        cdef uint8_t packed[9]
        while position < end:
            one = &self._acknowledgements[position]
            position += 1
            if not send_frame(handle, one.route.identity, one.route.identity_size, True):
                continue
            send_frame(handle, one.route.request_id, REQUEST_ID_SIZE, True)
            send_frame(handle, "\x01", 1, one.index != 0)
            if one.index:
                send_frame(handle, packed, pack_index(packed, one.index), False)
        return 0


cdef class WaitingUpdates:
    """Clients who wait for their update to be applied, by the index of its entry."""

    # A ring of _length slots for the indexes from _base on; its capacity is a power of two.
    cdef Route *_slots
    cdef Py_ssize_t _capacity, _head, _length, _live
    cdef int64_t _base
    # index: (identity, request id, size), for what has no place in the ring.
    cdef dict _others
    #: The bytes of data that are waited for, as they were given to `add`.
    cdef readonly int64_t size

    def __cinit__(self):
        self._others = {}
        self._slots = <Route *> calloc(RING_SIZE_MIN, sizeof(Route))
        if self._slots is NULL:
            raise MemoryError()
        self._capacity = RING_SIZE_MIN

    def __dealloc__(self):
        free(self._slots)

    def __len__(self):
        return self._live + len(self._others)

    cdef inline Route *_slot(self, int64_t index) noexcept:
        return &self._slots[(self._head + (index - self._base)) & (self._capacity - 1)]

    cdef int _extend_to(self, int64_t index) except -1:
        """Make the ring reach up to ``index``, with slots in which nobody waits."""
        cdef Py_ssize_t needed, capacity, first
        cdef Route *grown
        if self._length == 0:
            self._base = index
            self._head = 0
        needed = index - self._base + 1
        if needed > self._capacity:
            capacity = self._capacity
            while capacity < needed:
                capacity *= 2
            grown = <Route *> calloc(capacity, sizeof(Route))
            if grown is NULL:
                raise MemoryError()
            first = min(self._length, self._capacity - self._head)
            memcpy(grown, self._slots + self._head, first * sizeof(Route))
            memcpy(grown + first, self._slots, (self._length - first) * sizeof(Route))
            free(self._slots)
            self._slots, self._capacity, self._head = grown, capacity, 0
        while self._length < needed:
            self._length += 1
            self._slot(self._base + self._length - 1).identity_size = 0
        return 0

    cdef int add_route(
        self,
        int64_t index,
        const uint8_t *identity,
        Py_ssize_t identity_size,
        const uint8_t *request_id,
        Py_ssize_t size,
    ) except -1:
        cdef Route *slot
        cdef bint fits = 0 < identity_size <= IDENTITY_SIZE_MAX and not (self._others and index in self._others)
        if fits and self._length and not self._base <= index <= self._base + self._length + GAP_MAX:
            fits = False
        if not fits:
            self._add_other(
                index,
                PyBytes_FromStringAndSize(<const char *> identity, identity_size),
                PyBytes_FromStringAndSize(<const char *> request_id, REQUEST_ID_SIZE),
                size,
            )
            return 0
        self._extend_to(index)
        slot = self._slot(index)
        if slot.identity_size == 0:
            slot.size = <uint32_t> size
            self.size += size
            self._live += 1
        slot.identity_size = <uint8_t> identity_size
        memcpy(slot.identity, identity, identity_size)
        memcpy(slot.request_id, request_id, REQUEST_ID_SIZE)
        return 0

    cdef int _add_other(self, int64_t index, bytes identity, bytes request_id, Py_ssize_t size) except -1:
        cdef Route *slot
        known = self._others.get(index)
        if known is not None:
            size = known[2]
        elif self._length and self._base <= index < self._base + self._length and self._slot(index).identity_size:
            slot = self._slot(index)
            size = slot.size
            slot.identity_size = 0
            self._live -= 1
        else:
            self.size += size
        self._others[index] = (identity, request_id, size)
        return 0

    def add(self, index, identity, request_id, size):
        """Wait for ``index``, an entry with ``size`` bytes. Who waited for it before is forgotten; its size stays.

        Raises LocalProtocolError, and changes nothing, when one of the numbers is out of range.
        """
        cdef bytes route = to_bytes(identity), own = to_bytes(request_id)
        cdef int64_t at = checked(index, "the index of an entry", 1, INTEGER_MAX)
        cdef int64_t bytes_count = checked(size, "a size", 0, SIZE_MAX)
        if len(own) != REQUEST_ID_SIZE:
            self._add_other(at, route, own, bytes_count)
        else:
            self.add_route(at, bytes_of(route), len(route), bytes_of(own), bytes_count)

    def applied(self, first, last, ReplyQueue replies not None):
        """Answer everybody who waits for an index from ``first`` to ``last``: it is applied."""
        cdef int64_t low = checked(first, "an index", 0, INTEGER_MAX), high = checked(last, "an index", 0, INTEGER_MAX)
        cdef int64_t index
        cdef Route *slot
        if self._others:
            self._applied_others(low, high, replies)
            return
        if self._length:
            for index in range(max(low, self._base), min(high, self._base + self._length - 1) + 1):
                slot = self._slot(index)
                if slot.identity_size:
                    replies.acknowledge(slot, index)
                    self._release(slot)
            self._trim()

    cdef void _release(self, Route *slot) noexcept:
        self.size -= slot.size
        self._live -= 1
        slot.identity_size = 0

    cdef void _trim(self) noexcept:
        while self._length and self._slots[self._head].identity_size == 0:
            self._head = (self._head + 1) & (self._capacity - 1)
            self._base += 1
            self._length -= 1

    cdef int _applied_others(self, int64_t first, int64_t last, ReplyQueue replies) except -1:
        cdef int64_t index
        cdef Route *slot
        cdef uint8_t packed[9]
        for index in self._indexes(first, last):
            if index in self._others:
                identity, request_id, size = self._others.pop(index)
                self.size -= size
                packed_index = PyBytes_FromStringAndSize(<char *> packed, pack_index(packed, index))
                replies.append([identity, request_id, _OK, packed_index])
            else:
                slot = self._slot(index)
                replies.acknowledge(slot, index)
                self._release(slot)
        self._trim()
        return 0

    cdef list _indexes(self, int64_t first, int64_t last):
        """The indexes that somebody waits for, rising."""
        cdef int64_t index
        cdef list indexes = [index for index in self._others if first <= index <= last]
        for index in range(max(first, self._base), min(last, self._base + self._length - 1) + 1):
            if self._slot(index).identity_size:
                indexes.append(index)
        indexes.sort()
        return indexes

    def accepted(self, first, last, ReplyQueue replies not None):
        """Tell everybody who waits for an index from ``first`` to ``last`` that it is accepted, so that he goes on
        waiting."""
        cdef int64_t low = checked(first, "an index", 0, INTEGER_MAX), high = checked(last, "an index", 0, INTEGER_MAX)
        cdef int64_t index
        cdef Route *slot
        if not self._others:
            for index in range(max(low, self._base), min(high, self._base + self._length - 1) + 1):
                slot = self._slot(index)
                if slot.identity_size:
                    replies.acknowledge(slot, 0)
            return
        for index in self._indexes(low, high):
            if index in self._others:
                identity, request_id, _ = self._others[index]
                replies.append([identity, request_id, _OK])
            else:
                replies.acknowledge(self._slot(index), 0)

    def refuse_all(self, refusal, ReplyQueue replies not None):
        """Answer everybody with these frames, in the order of the indexes, and forget them."""
        cdef int64_t index, infinity = 0x7FFFFFFFFFFFFFFF
        cdef Route *slot
        for index in self._indexes(0, infinity):
            if index in self._others:
                identity, request_id, _ = self._others[index]
            else:
                slot = self._slot(index)
                identity = PyBytes_FromStringAndSize(<char *> slot.identity, slot.identity_size)
                request_id = PyBytes_FromStringAndSize(<char *> slot.request_id, REQUEST_ID_SIZE)
            replies.append([identity, request_id, *refusal])
        self._others.clear()
        self._length = self._live = 0
        self.size = 0


cdef class Intake:
    """The first look at each message on the ROUTER socket.

    Between `open` and `close` it takes new updates: each becomes the next entry of a batch, and its client waits.
    """

    cdef bytes _secret
    cdef Py_ssize_t _data_size_max
    cdef WaitingUpdates _waiting
    cdef object _find_request
    cdef RequestIndex _index
    cdef BatchBuilder _builder
    # The ids of the batch, and a table of their positions + 1, by hash; its capacity is a power of two.
    cdef uint8_t *_ids
    cdef Py_ssize_t _ids_capacity, _count
    cdef uint32_t *_table
    cdef Py_ssize_t _table_size
    cdef bint _is_open
    cdef uint64_t _term
    cdef int64_t _first_index
    cdef double _after_seconds, _before_seconds
    cdef Py_ssize_t _room_count, _room_size, _others_size

    def __init__(self, bytes secret not None, data_size_max, WaitingUpdates waiting not None, find_request):
        """``find_request`` gives the index of a request id in the log; such an update is none of a new one."""
        self._secret = secret
        self._data_size_max = checked(data_size_max, "a size", 0, INTEGER_MAX)
        self._waiting = waiting
        self._find_request = find_request
        # The method of the compiled table is called without a detour over Python.
        owner = getattr(find_request, "__self__", None)
        if type(owner) is RequestIndex and find_request == owner.find:
            self._index = owner
        self._builder = BatchBuilder()
        self._first_index = 1

    def __dealloc__(self):
        free(self._ids)
        free(self._table)

    def open(self, term, first_index, *, after_seconds, before_seconds, room_count, room_size):
        """Take updates as the leader of ``term``, whose next entry has ``first_index``.

        New ones are those whose own time lies between the two, in seconds since the epoch, both excluded; at most
        ``room_count``, as long as their data has not reached ``room_size`` bytes. What was not taken out is kept when
        the term and the index say so. Raises LocalProtocolError, and changes nothing, when one of the numbers is out
        of range.
        """
        cdef uint64_t own_term = checked(term, "a term", 0, INTEGER_MAX)
        cdef int64_t own_index = checked(first_index, "the index of an entry", 1, INTEGER_MAX)
        cdef int64_t count = checked(room_count, "a count", -INTEGER_MAX, INTEGER_MAX)
        cdef int64_t size = checked(room_size, "a size", -INTEGER_MAX, INTEGER_MAX)
        cdef double after = after_seconds, before = before_seconds
        if self._count and (self._term != own_term or self._first_index != own_index):
            self._drop()
        self._is_open = True
        self._term = own_term
        self._first_index = own_index
        self._after_seconds = after
        self._before_seconds = before
        self._room_count = count
        self._room_size = size

    def close(self):
        """Take no updates any more, and forget those that were not taken out."""
        self._is_open = False
        self._drop()

    cdef int _drop(self) except -1:
        if self._count:
            self._builder.finish(0)
            self._forget_ids()
        return 0

    cdef void _forget_ids(self) noexcept:
        self._count = 0
        if self._table is not NULL:
            memset(self._table, 0, self._table_size * sizeof(uint32_t))

    # --- the ids of the batch ---------------------------------------------------------------------------------------

    cdef inline Py_ssize_t _probe(self, const uint8_t *request_id) noexcept nogil:
        """The place of an id in the table: where it is, or the free one where it would be."""
        cdef uint64_t hash
        cdef Py_ssize_t place
        cdef uint32_t position
        memcpy(&hash, request_id + 4, 8)
        hash = (hash ^ (hash >> 29)) * <uint64_t> 0x9E3779B97F4A7C15
        place = <Py_ssize_t> (hash >> 32) & (self._table_size - 1)
        while True:
            position = self._table[place]
            if position == 0 or memcmp(self._ids + (position - 1) * REQUEST_ID_SIZE, request_id, REQUEST_ID_SIZE) == 0:
                return place
            place = (place + 1) & (self._table_size - 1)

    cdef int _make_room(self) except -1:
        """Room for one more id: at most half of the table is in use."""
        cdef Py_ssize_t capacity, position
        cdef uint8_t *ids
        cdef uint32_t *table
        if self._count < self._ids_capacity:
            return 0
        capacity = max(2 * self._ids_capacity, 1024)
        ids = <uint8_t *> realloc(self._ids, capacity * REQUEST_ID_SIZE)
        if ids is NULL:
            raise MemoryError()
        self._ids, self._ids_capacity = ids, capacity
        table = <uint32_t *> calloc(2 * capacity, sizeof(uint32_t))
        if table is NULL:
            raise MemoryError()
        free(self._table)
        self._table, self._table_size = table, 2 * capacity
        for position in range(self._count):
            table[self._probe(self._ids + position * REQUEST_ID_SIZE)] = <uint32_t> (position + 1)
        return 0

    cdef inline bint _holds(self, const uint8_t *request_id) noexcept nogil:
        return self._count > 0 and self._table[self._probe(request_id)] != 0

    def find(self, bytes request_id not None):
        """The index that an update of this turn is to get."""
        cdef uint32_t position
        if self._count == 0 or len(request_id) != REQUEST_ID_SIZE:
            return None
        position = self._table[self._probe(bytes_of(request_id))]
        return self._first_index + position - 1 if position else None

    # --- updates ----------------------------------------------------------------------------------------------------

    cdef bint _is_new(self, const uint8_t *request_id) except -1:
        cdef uint32_t seconds = (
            (<uint32_t> request_id[0] << 24) | (<uint32_t> request_id[1] << 16) | (request_id[2] << 8) | request_id[3]
        )
        if not self._after_seconds < seconds < self._before_seconds or self._holds(request_id):
            return False
        if self._index is not None:
            return self._index.find_c(request_id) == 0
        return self._find_request(PyBytes_FromStringAndSize(<const char *> request_id, REQUEST_ID_SIZE)) is None

    cdef bint _knows_secret(self, const uint8_t *secret, Py_ssize_t size) noexcept:
        """In a time that does not depend on how much of it is right."""
        cdef uint8_t *own = bytes_of(self._secret)
        cdef uint8_t difference = 0
        cdef Py_ssize_t position
        if size != PyBytes_GET_SIZE(self._secret):
            return False
        for position in range(size):
            difference |= own[position] ^ secret[position]
        return difference == 0

    cdef int _add(
        self,
        const uint8_t *identity,
        Py_ssize_t identity_size,
        const uint8_t *request_id,
        const uint8_t *data,
        Py_ssize_t size,
    ) except -1:
        cdef int64_t index = self._first_index + self._count
        self._make_room()
        self._builder.add(request_id, STATE, self._term, data, size)
        memcpy(self._ids + self._count * REQUEST_ID_SIZE, request_id, REQUEST_ID_SIZE)
        self._count += 1
        self._table[self._probe(request_id)] = <uint32_t> self._count
        self._room_count -= 1
        self._room_size -= size
        self._waiting.add_route(index, identity, identity_size, request_id, size)
        return 0

    def offer(self, frames):
        """Take a message, if it is a well-formed new update that there is room for. Returns whether it was taken."""
        cdef bytes identity, request_id, message_type, secret, data
        if not self._is_open or len(frames) < UPDATE_FRAMES:
            return False
        identity, request_id, message_type = to_bytes(frames[0]), to_bytes(frames[1]), to_bytes(frames[2])
        secret, data = to_bytes(frames[3]), to_bytes(frames[4])
        if message_type != b"=" or not self._is_welcome(
            bytes_of(request_id), len(request_id), bytes_of(secret), len(secret), len(data)
        ):
            return False
        self._add(bytes_of(identity), len(identity), bytes_of(request_id), bytes_of(data), len(data))
        return True

    cdef bint _is_welcome(
        self,
        const uint8_t *request_id,
        Py_ssize_t request_id_size,
        const uint8_t *secret,
        Py_ssize_t secret_size,
        Py_ssize_t size,
    ) except -1:
        return (
            request_id_size == REQUEST_ID_SIZE
            and self._knows_secret(secret, secret_size)
            and 0 < size <= self._data_size_max
            and self._room_count > 0
            and self._room_size > 0
            and self._is_new(request_id)
        )

    def add(self, bytes identity not None, bytes request_id not None, bytes data not None):
        """Make an update the next entry, and let its client wait. What `offer` checks is the caller's to check.

        Raises LocalProtocolError, and changes nothing, on what is no update at all.
        """
        if len(request_id) != REQUEST_ID_SIZE or len(data) == 0:
            raise LocalProtocolError(f"no update has an id of {len(request_id)} bytes and {len(data)} bytes of data")
        self._add(bytes_of(identity), len(identity), bytes_of(request_id), bytes_of(data), len(data))

    def take(self):
        """The entries since the last call, or None. The next ones follow them."""
        cdef EntryBatch batch
        if self._count == 0:
            return None
        batch = self._builder.finish(self._first_index)
        self._first_index += self._count
        self._forget_ids()
        return batch

    # --- the socket -------------------------------------------------------------------------------------------------

    def drain(self, socket, count_max):
        """Read the messages that have arrived, at most ``count_max``, and offer each. Returns those not taken.

        It ends when those not taken have 16 MiB: any number of them may wait, of any size, and from anybody. The
        entries of an AppendEntries message come as a batch whose first index is 0, its other frames before it; if one
        of them is no entry, all come as frames.
        """
        cdef void *handle = handle_of(socket)
        cdef zmqraft_msg_t parts[APPEND_FRAMES]
        cdef zmqraft_msg_t surplus
        cdef Py_ssize_t taken = 0, allowed = clipped_count(count_max)
        cdef int count, position
        cdef bint more
        cdef list others = []
        self._others_size = 0
        while taken < allowed and self._others_size < OTHERS_SIZE_MAX and receive_first(handle, &parts[0]):
            taken += 1
            count = 1
            more = msg_more(&parts[0])
            while more and count < APPEND_FRAMES:
                receive_next(handle, &parts[count])
                more = msg_more(&parts[count])
                count += 1
            try:
                if self._take_update(parts, count):
                    while more:
                        receive_next(handle, &surplus)
                        more = msg_more(&surplus)
                        msg_close(&surplus)
                else:
                    others.append(self._read_on(handle, parts, count, more))
            finally:
                for position in range(count):
                    msg_close(&parts[position])
        return others

    cdef bint _take_update(self, zmqraft_msg_t *parts, int count) except -1:
        cdef Py_ssize_t size
        if not self._is_open or count < UPDATE_FRAMES or not _is_type(&parts[2], 61):  # =
            return False
        size = msg_size(&parts[4])
        if not self._is_welcome(
            <uint8_t *> msg_data(&parts[1]), msg_size(&parts[1]), <uint8_t *> msg_data(&parts[3]), msg_size(&parts[3]), size
        ):
            return False
        self._add(
            <uint8_t *> msg_data(&parts[0]),
            msg_size(&parts[0]),
            <uint8_t *> msg_data(&parts[1]),
            <uint8_t *> msg_data(&parts[4]),
            size,
        )
        return True

    cdef tuple _read_on(self, void *handle, zmqraft_msg_t *parts, int count, bint more):
        cdef list frames = []
        cdef int position
        for position in range(count):
            self._others_size += msg_size(&parts[position])
            frames.append(_frame(&parts[position]))
        cdef bint is_append = more and _is_type(&parts[2], 43)  # +
        cdef BatchBuilder builder = BatchBuilder() if is_append else None
        cdef zmqraft_msg_t message
        while more:
            receive_next(handle, &message)
            try:
                more = msg_more(&message)
                self._others_size += msg_size(&message)
                if builder is None:
                    frames.append(_frame(&message))
                elif builder.add_frame(<uint8_t *> msg_data(&message), msg_size(&message)) != 0:
                    frames += builder.finish(0).frames()
                    frames.append(_frame(&message))
                    builder = None
            finally:
                msg_close(&message)
        return frames, builder.finish(0) if builder is not None else None


cdef bint _is_type(zmqraft_msg_t *message, uint8_t character) noexcept:
    return msg_size(message) == 1 and (<uint8_t *> msg_data(message))[0] == character


cdef bytes _frame(zmqraft_msg_t *message):
    return PyBytes_FromStringAndSize(<char *> msg_data(message), msg_size(message))
