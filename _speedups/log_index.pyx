# cython: language_level=3
"""Log entries in batches: one contiguous buffer and the offsets in it. The compiled twin of protocol/_log_index.py.

Knows nothing of sockets, files or Raft. The rule: an EntryBatch is immutable and was validated when it was made; who
holds one may trust every entry in it. Same names, signatures, results, exceptions and docstrings as the pure twin; use
either through `zmqraft.protocol.log_index`.
"""

from array import array

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from zmqraft import constants as _constants
from zmqraft._speedups.frames import check_entries, check_entry, encode_entry
from zmqraft.errors import LocalProtocolError, RemoteProtocolError, shown

cdef enum:
    _REQUEST_ID_SIZE = 12
    # The first memory of a builder: small, since a turn of an idle peer has one entry or none.
    _BUILDER_DATA_SIZE = 4096
    _BUILDER_OFFSETS = 32

# Behind the last entry of the longest log there is an empty batch.
cdef object _index_max = _constants.INTEGER_MAX + 1
cdef uint64_t INTEGER_MAX = _constants.INTEGER_MAX
cdef int64_t OFFSET_MAX = 0xFFFFFFFF
cdef int64_t FAR = 1 << 62
cdef object _far = 1 << 62
cdef uint64_t _zero_offset = 0
cdef object _log_entry = None


cdef object entry_from(bytes frame, index):
    """A LogEntry, which exists once, in Python; its module is not imported yet when this one is."""
    global _log_entry
    if _log_entry is None:
        from zmqraft.protocol.log_entry import LogEntry

        _log_entry = LogEntry._from_checked
    return _log_entry(frame, index)


cdef long long to_entry_index(index) except -1:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= _index_max:
        raise LocalProtocolError(f"the first index of a batch is 0 to {_index_max}, not {shown(index)}")
    return index


cdef int64_t clipped(number) except? -1:
    """An int, those that no size or index comes near cut to 2**62."""
    if -_far <= number <= _far:
        return number
    return FAR if number > 0 else -FAR


cdef EntryFault entry_fault(const unsigned char *entry, Py_ssize_t size) noexcept nogil:
    if size <= ENTRY_HEADER_SIZE:
        return ENTRY_TOO_SHORT
    if entry[ENTRY_TYPE_OFFSET] > ENTRY_TYPE_MAX:
        return ENTRY_BAD_TYPE
    if entry_term(entry) > INTEGER_MAX:
        return ENTRY_BAD_TERM
    return ENTRY_GOOD


cdef bint is_frame(value):
    if isinstance(value, (bytes, bytearray)):
        return True
    if not isinstance(value, memoryview):
        return False
    try:
        return value.format == "B" and value.ndim == 1 and value.contiguous
    except ValueError:  # a memoryview that was released
        return False


# --- memory ---------------------------------------------------------------------------------------------------------


@cython.final
cdef class _Memory:
    """What batches point into: offsets that belong to it, and data that belong to it or to a Python object."""

    cdef unsigned char *data
    cdef uint64_t *offsets
    cdef Py_buffer source
    cdef bint has_source

    def __cinit__(self):
        self.data = NULL
        self.offsets = NULL
        self.has_source = False

    def __dealloc__(self):
        PyMem_RawFree(self.data)
        PyMem_RawFree(self.offsets)
        if self.has_source:
            PyBuffer_Release(&self.source)

    cdef int allocate_offsets(self, Py_ssize_t count) except -1:
        self.offsets = <uint64_t *> PyMem_RawMalloc((count + 1) * sizeof(uint64_t))
        if self.offsets == NULL:
            raise MemoryError()
        self.offsets[0] = 0
        return 0

    cdef int allocate_data(self, Py_ssize_t size) except -1:
        self.data = <unsigned char *> PyMem_RawMalloc(max(size, 1))
        if self.data == NULL:
            raise MemoryError()
        return 0

    cdef int hold(self, data) except -1:
        """Keep the bytes of an object; those that somebody could change are copied."""
        if type(data) is not bytes:
            try:
                view = memoryview(data)
                if not (view.readonly and view.format == "B" and view.ndim == 1 and view.contiguous):
                    data = bytes(data)
            except (TypeError, ValueError):
                raise LocalProtocolError(f"the data of a batch is bytes, not {type(data).__name__}") from None
        PyObject_GetBuffer(data, &self.source, PyBUF_SIMPLE)
        self.has_source = True
        return 0


cdef EntryBatch new_batch(
    long long first_index, const unsigned char *start, const uint64_t *offsets, Py_ssize_t count, object owner
):
    cdef EntryBatch batch = EntryBatch.__new__(EntryBatch)
    batch.first_index = first_index
    batch.start = start
    batch.offsets = offsets
    batch.count = count
    batch.owner = owner
    return batch


# --- batches --------------------------------------------------------------------------------------------------------


@cython.final
cdef class EntryBatch:
    """Consecutive log entries in one contiguous buffer.

    ``first_index`` is the index of the first entry, ``data`` the bytes of all entries one after the other (as in an
    index file), ``ends`` the end offset of each, in bytes from the start of ``data``.
    Immutable; what could be changed by others is copied. The constructor checks that every entry is longer than its
    header and lies within ``data`` (LocalProtocolError), and trusts the rest; bytes from outside come in through
    `from_frames`, `from_buffer` or `from_table`.
    """

    def __cinit__(self):
        self.start = <const unsigned char *> &_zero_offset
        self.offsets = &_zero_offset

    def __init__(self, first_index, data, ends):
        cdef _Memory memory = _Memory.__new__(_Memory)
        cdef int64_t start = 0
        cdef Py_ssize_t position
        cdef list numbers
        cdef object end
        if self.owner is not None:
            raise TypeError("an EntryBatch is immutable")
        self.first_index = to_entry_index(first_index)
        memory.hold(data)
        numbers = [*ends]
        memory.allocate_offsets(len(numbers))
        for position, end in enumerate(numbers):
            if not isinstance(end, int) or not start + ENTRY_HEADER_SIZE < end <= memory.source.len:
                raise LocalProtocolError(
                    f"the entry at position {position} ends at {shown(end)}, "
                    f"not {start + ENTRY_HEADER_SIZE + 1} to {memory.source.len}"
                )
            start = end
            memory.offsets[position + 1] = start
        if start != memory.source.len:
            raise LocalProtocolError(f"{memory.source.len - start} bytes behind the last entry")
        self.start = <const unsigned char *> memory.source.buf
        self.offsets = memory.offsets
        self.count = len(numbers)
        self.owner = memory

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *> self.start, batch_size(self), True, flags)

    @classmethod
    def empty(cls, first_index):
        """A batch of no entries whose first one would have this index."""
        return new_batch(to_entry_index(first_index), <const unsigned char *> &_zero_offset, &_zero_offset, 0, None)

    @classmethod
    def from_frames(cls, first_index, frames):
        """A batch of the frames of a message. Raises RemoteProtocolError when one is not a log entry."""
        cdef long long first = to_entry_index(first_index)
        cdef list parts = list(frames)
        for frame in parts:
            if type(frame) is not bytes or entry_fault(
                <const unsigned char *> PyBytes_AS_STRING(<bytes> frame), PyBytes_GET_SIZE(<bytes> frame)
            ):
                check_entry(frame)
        return joined_frames(first, parts)

    @classmethod
    def from_checked_frames(cls, first_index, frames):
        """A batch of frames that are known to be log entries: those of a message that a FramesProtocol decoded."""
        cdef long long first = to_entry_index(first_index)
        cdef list parts = list(frames)
        for position, frame in enumerate(parts):
            if not is_frame(frame):
                raise LocalProtocolError(f"a frame is bytes, not {type(frame).__name__}")
            if len(frame) <= ENTRY_HEADER_SIZE:
                raise LocalProtocolError(f"the entry at position {position} has {len(frame)} bytes")
        return joined_frames(first, parts)

    @classmethod
    def from_buffer(cls, first_index, data, ends):
        """A batch of bytes that were read from a file. Raises RemoteProtocolError when an entry is malformed."""
        to_entry_index(first_index)
        check_entries(data, ends)
        return cls(first_index, data, ends)

    @classmethod
    def from_table(cls, first_index, data, table, low, high):
        """A batch of bytes that were read from an index file, by its table (an array of type "I") of end offsets.

        The entries are those at the positions from ``low`` up to, not including, ``high``. Raises
        RemoteProtocolError when one is malformed, or the bytes are more or less than theirs.
        """
        cdef long long first = to_entry_index(first_index)
        cdef EntryBatch batch
        if not isinstance(table, array) or table.typecode != "I":
            raise LocalProtocolError(f"the table of offsets is an array of type I, not {shown(table)}")
        low, high = PyNumber_Index(low), PyNumber_Index(high)
        if not 0 <= low <= high <= len(table):
            raise LocalProtocolError(f"positions {low} to {high} in a table of {len(table)} entries")
        if is_frame(data):
            batch = batch_by_table(first, data, table, low, high)
            if batch is not None:
                return batch
        # Something is wrong: let the slow way say what.
        base = table[low - 1] if low else 0
        return cls.from_buffer(first_index, data, [end - base for end in table[low:high]])

    @classmethod
    def from_entries(cls, entries):
        """A batch of entries with consecutive indexes; at least one."""
        if not entries:
            raise LocalProtocolError("a batch of no entries has no first index; use EntryBatch.empty")
        first = entries[0].index
        for position, entry in enumerate(entries):
            if entry.index != first + position:
                raise LocalProtocolError(f"entry {entry.index} does not follow {first + position - 1}")
        return cls.from_frames(first, [entry.to_bytes() for entry in entries])

    @classmethod
    def join(cls, batches):
        """One batch of several, each of which follows the one before it; at least one."""
        cdef _Memory memory
        cdef EntryBatch batch
        cdef Py_ssize_t count = 0, size = 0, position
        cdef list parts = list(batches)
        cdef long long next_index
        if not parts:
            raise LocalProtocolError("no batches to join; use EntryBatch.empty")
        for part in parts:
            if not isinstance(part, EntryBatch):
                raise TypeError(f"expected an EntryBatch, not {type(part).__name__}")
        if len(parts) == 1:
            return parts[0]
        next_index = (<EntryBatch> parts[0]).first_index
        for batch in parts:
            if batch.first_index != next_index:
                raise LocalProtocolError(f"entry {batch.first_index} does not follow {next_index - 1}")
            next_index += batch.count
            count += batch.count
            size += batch_size(batch)
        memory = _Memory.__new__(_Memory)
        memory.allocate_data(size)
        memory.allocate_offsets(count)
        count = size = 0
        for batch in parts:
            memcpy(memory.data + size, batch.start, batch_size(batch))
            for position in range(batch.count):
                memory.offsets[count + position + 1] = size + batch.offsets[position + 1] - batch.offsets[0]
            count += batch.count
            size += batch_size(batch)
        return new_batch((<EntryBatch> parts[0]).first_index, memory.data, memory.offsets, count, memory)

    @property
    def data(self):
        """The bytes of all entries, one after the other."""
        return memoryview(self)

    @property
    def ends(self):
        """The end offset of each entry, from the start of `data`. Made anew: for one or two ask `end`."""
        cdef Py_ssize_t position
        return tuple([self.offsets[position] - self.offsets[0] for position in range(1, self.count + 1)])

    def __len__(self):
        return self.count

    @property
    def last_index(self):
        """The index of the last entry; first_index - 1 when there is none."""
        return self.first_index + self.count - 1

    @property
    def size(self):
        """The number of bytes of all entries together."""
        return batch_size(self)

    def end(self, position):
        """The end offset of the entry at a position, from the start of `data`."""
        return self.offsets[position_in(self, position) + 1] - self.offsets[0]

    def frame(self, position):
        """The bytes of the entry at a position (0 is the first)."""
        return frame_at(self, position_in(self, position))

    def frames(self):
        """The bytes of every entry: the last frames of an AppendEntries or a RequestEntries reply."""
        cdef Py_ssize_t position
        return [frame_at(self, position) for position in range(self.count)]

    def entry(self, position):
        """The entry at a position (0 is the first)."""
        cdef Py_ssize_t at = position_in(self, position)
        return entry_from(frame_at(self, at), self.first_index + at)

    def __iter__(self):
        cdef Py_ssize_t position
        for position in range(self.count):
            yield entry_from(frame_at(self, position), self.first_index + position)

    def term(self, position):
        """The term of the entry at a position."""
        return entry_term(bytes_at(self, position_in(self, position)))

    def type(self, position):
        """The type of the entry at a position, as in `EntryType`."""
        return bytes_at(self, position_in(self, position))[ENTRY_TYPE_OFFSET]

    def request_id(self, position):
        """The request id of the entry at a position."""
        return PyBytes_FromStringAndSize(<char *> bytes_at(self, position_in(self, position)), _REQUEST_ID_SIZE)

    def payload(self, position):
        """The data of the entry at a position, without its header."""
        cdef Py_ssize_t at = position_in(self, position)
        cdef const unsigned char *entry = bytes_at(self, at)
        return PyBytes_FromStringAndSize(
            <char *> entry + ENTRY_HEADER_SIZE, self.offsets[at + 1] - self.offsets[at] - ENTRY_HEADER_SIZE
        )

    cdef int scan(self) except -1:
        """One pass over the headers, for `term_runs` and `config_positions`."""
        cdef list runs = [], configs = []
        cdef Py_ssize_t position
        cdef uint64_t term, last = 0
        cdef const unsigned char *entry
        if self.runs is not None:
            return 0
        for position in range(self.count):
            entry = bytes_at(self, position)
            term = entry_term(entry)
            if term != last or position == 0:
                runs.append((self.first_index + position, term))
                last = term
            if entry[ENTRY_TYPE_OFFSET] == 1:
                configs.append(position)
        self.configs = configs
        self.runs = runs
        return 0

    def term_runs(self):
        """``(index, term)`` for the first entry and for each whose term differs from the one before it."""
        self.scan()
        return list(self.runs)

    def config_positions(self):
        """The positions of CONFIG entries."""
        self.scan()
        return list(self.configs)

    cdef EntryBatch part(self, Py_ssize_t position, Py_ssize_t count):
        return new_batch(
            self.first_index + position,
            self.start + (self.offsets[position] - self.offsets[0]),
            self.offsets + position,
            count,
            self.owner,
        )

    def with_first_index(self, first_index):
        """The same entries under other indexes. Shares the bytes."""
        cdef EntryBatch batch = self.part(0, self.count)
        batch.first_index = to_entry_index(first_index)
        return batch

    def slice(self, first, last):
        """The entries from index ``first`` to index ``last``, both included and clipped to the batch.

        Shares the bytes. An empty range gives an empty batch.
        """
        cdef int64_t low, high
        first, last = PyNumber_Index(first), PyNumber_Index(last)
        low = max(clipped(first) - self.first_index, 0)
        high = min(clipped(last) - self.first_index + 1, <int64_t> self.count)
        if low >= high:
            return EntryBatch.empty(max(first, self.first_index))
        if low == 0 and high == self.count:
            return self
        return self.part(low, high - low)

    cdef Py_ssize_t count_that_fit(self, Py_ssize_t first, long long size_max) noexcept:
        cdef Py_ssize_t low = first, high = self.count, middle
        while low < high:
            middle = low + (high - low + 1) // 2
            if <int64_t> (self.offsets[middle] - self.offsets[first]) <= size_max:
                low = middle
            else:
                high = middle - 1
        return low - first

    def count_within(self, size_max, first=0):
        """How many entries from position ``first`` on fit in ``size_max`` bytes, taken together; maybe none."""
        size_max, first = PyNumber_Index(size_max), PyNumber_Index(first)
        if not 0 <= first <= self.count:
            raise IndexError(f"position {shown(first)} in a batch of {self.count} entries")
        return self.count_that_fit(first, clipped(size_max))

    def prefix_of_size(self, size_max):
        """As many of the first entries as fit in ``size_max`` bytes, but at least one (if there is one)."""
        cdef Py_ssize_t count = max(self.count_that_fit(0, clipped(PyNumber_Index(size_max))), 1)
        return self if count >= self.count else self.part(0, count)

    def __eq__(self, other):
        cdef EntryBatch batch
        cdef Py_ssize_t position
        if not isinstance(other, EntryBatch):
            return NotImplemented
        batch = other
        if self.first_index != batch.first_index or self.count != batch.count:
            return False
        for position in range(self.count + 1):
            if self.offsets[position] - self.offsets[0] != batch.offsets[position] - batch.offsets[0]:
                return False
        return memcmp(self.start, batch.start, batch_size(self)) == 0

    __hash__ = None

    def __repr__(self):
        return f"<EntryBatch of {self.count} entries from index {self.first_index}, {batch_size(self)} bytes>"


cdef inline const unsigned char *bytes_at(EntryBatch batch, Py_ssize_t position) noexcept:
    return batch.start + (batch.offsets[position] - batch.offsets[0])


cdef bytes frame_at(EntryBatch batch, Py_ssize_t position):
    return PyBytes_FromStringAndSize(
        <char *> bytes_at(batch, position), batch.offsets[position + 1] - batch.offsets[position]
    )


cdef Py_ssize_t position_in(EntryBatch batch, position) except -1:
    position = PyNumber_Index(position)
    if not 0 <= position < batch.count:
        raise IndexError(f"position {shown(position)} in a batch of {batch.count} entries")
    return position


cdef EntryBatch joined_frames(long long first_index, list frames):
    """A batch of frames; each is one and longer than the header."""
    cdef _Memory memory = _Memory.__new__(_Memory)
    cdef Py_ssize_t size = 0, position = 0
    cdef Py_buffer view
    for frame in frames:
        size += len(frame)
    memory.allocate_data(size)
    memory.allocate_offsets(len(frames))
    size = 0
    for frame in frames:
        if type(frame) is bytes:
            memcpy(memory.data + size, PyBytes_AS_STRING(<bytes> frame), PyBytes_GET_SIZE(<bytes> frame))
            size += PyBytes_GET_SIZE(<bytes> frame)
        else:
            PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE)
            memcpy(memory.data + size, view.buf, view.len)
            size += view.len
            PyBuffer_Release(&view)
        position += 1
        memory.offsets[position] = size
    return new_batch(first_index, memory.data, memory.offsets, position, memory)


cdef EntryBatch batch_by_table(long long first_index, data, table, Py_ssize_t low, Py_ssize_t high):
    """A batch, or None when the bytes and the table do not fit or an entry is malformed."""
    cdef _Memory memory = _Memory.__new__(_Memory)
    cdef Py_buffer view
    cdef const uint32_t *ends
    cdef int64_t start = 0, end, base
    cdef Py_ssize_t position
    memory.hold(data)
    memory.allocate_offsets(high - low)
    PyObject_GetBuffer(table, &view, PyBUF_SIMPLE)
    try:
        ends = <const uint32_t *> view.buf
        base = ends[low - 1] if low else 0
        for position in range(high - low):
            end = <int64_t> ends[low + position] - base
            if not start < end <= memory.source.len:
                return None
            if entry_fault(<const unsigned char *> memory.source.buf + start, end - start):
                return None
            memory.offsets[position + 1] = end
            start = end
    finally:
        PyBuffer_Release(&view)
    if start != memory.source.len:
        return None
    return new_batch(first_index, <const unsigned char *> memory.source.buf, memory.offsets, high - low, memory)


# --- building them --------------------------------------------------------------------------------------------------


@cython.final
cdef class BatchBuilder:
    """Collects entries, one by one, into a batch. Their terms never go back."""

    def __dealloc__(self):
        PyMem_RawFree(self.data)
        PyMem_RawFree(self.offsets)

    def __len__(self):
        return self.count

    @property
    def size(self):
        """The number of bytes of all entries so far."""
        return self.used()

    cdef Py_ssize_t used(self) noexcept:
        return <Py_ssize_t> self.offsets[self.count] if self.offsets != NULL else 0

    cdef unsigned char *reserve(self, Py_ssize_t size) except NULL:
        cdef Py_ssize_t used = self.used(), capacity
        cdef unsigned char *data
        cdef uint64_t *offsets
        if self.count + 1 >= self.offsets_capacity:
            capacity = max(2 * self.offsets_capacity, <Py_ssize_t> _BUILDER_OFFSETS)
            offsets = <uint64_t *> PyMem_RawRealloc(self.offsets, capacity * sizeof(uint64_t))
            if offsets == NULL:
                raise MemoryError()
            offsets[self.count] = used
            self.offsets = offsets
            self.offsets_capacity = capacity
        if size > self.data_capacity - used:
            capacity = max(2 * self.data_capacity, used + size, <Py_ssize_t> _BUILDER_DATA_SIZE)
            data = <unsigned char *> PyMem_RawRealloc(self.data, capacity)
            if data == NULL:
                raise MemoryError()
            self.data = data
            self.data_capacity = capacity
        return self.data + used

    cdef void commit(self, Py_ssize_t size, uint64_t term) noexcept:
        self.offsets[self.count + 1] = self.offsets[self.count] + size
        self.count += 1
        self.last_term = term

    cdef int add(
        self, const unsigned char *request_id, unsigned char type, uint64_t term, const unsigned char *data,
        Py_ssize_t size
    ) except -1:
        cdef unsigned char *entry
        cdef int position
        if size <= 0 or type > ENTRY_TYPE_MAX or term > INTEGER_MAX:
            raise LocalProtocolError(f"no entry has type {type}, term {term} and {size} bytes of data")
        if term < self.last_term:
            raise LocalProtocolError(self.term_goes_back(term))
        entry = self.reserve(ENTRY_HEADER_SIZE + size)
        memcpy(entry, request_id, _REQUEST_ID_SIZE)
        entry[ENTRY_TYPE_OFFSET] = type
        for position in range(ENTRY_HEADER_SIZE - ENTRY_TERM_OFFSET):
            entry[ENTRY_TERM_OFFSET + position] = (term >> (8 * position)) & 0xFF
        memcpy(entry + ENTRY_HEADER_SIZE, data, size)
        self.commit(ENTRY_HEADER_SIZE + size, term)
        return 0

    cdef int add_frame(self, const unsigned char *frame, Py_ssize_t size) except -1:
        cdef EntryFault fault = entry_fault(frame, size)
        if fault == ENTRY_GOOD and entry_term(frame) < self.last_term:
            fault = ENTRY_TERM_GOES_BACK
        if fault == ENTRY_GOOD:
            memcpy(self.reserve(size), frame, size)
            self.commit(size, entry_term(frame))
        return fault

    def append_entry(self, request_id, entry_type, term, data):
        """Add an entry. Raises LocalProtocolError, and adds nothing, on illegal values (see `encode_entry`)."""
        cdef bytes frame = encode_entry(request_id, entry_type, term, data)
        if self.add_frame(<const unsigned char *> PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame)):
            raise LocalProtocolError(self.term_goes_back(term))

    def append_frame(self, frame):
        """Add a frame of a message. Raises RemoteProtocolError, and adds nothing, when it is not a log entry."""
        cdef bytes entry
        if type(frame) is not bytes:
            check_entry(frame)
        entry = frame if type(frame) is bytes else bytes(frame)
        if self.add_frame(<const unsigned char *> PyBytes_AS_STRING(entry), PyBytes_GET_SIZE(entry)):
            check_entry(entry)
            raise RemoteProtocolError(
                self.term_goes_back(entry_term(<const unsigned char *> PyBytes_AS_STRING(entry)))
            )

    cdef str term_goes_back(self, term):
        return f"the term goes back from {self.last_term} to {term} at position {self.count}"

    cdef EntryBatch take(self, long long first_index):
        cdef _Memory memory
        cdef Py_ssize_t count = self.count
        cdef void *shrunk
        if count == 0:
            return EntryBatch.empty(first_index)
        memory = _Memory.__new__(_Memory)
        # Give back what grew too much; where that fails the memory stays as it is.
        shrunk = PyMem_RawRealloc(self.data, self.used())
        memory.data = <unsigned char *> shrunk if shrunk != NULL else self.data
        shrunk = PyMem_RawRealloc(self.offsets, (count + 1) * sizeof(uint64_t))
        memory.offsets = <uint64_t *> shrunk if shrunk != NULL else self.offsets
        self.data = NULL
        self.offsets = NULL
        self.data_capacity = self.offsets_capacity = self.count = 0
        self.last_term = 0
        return new_batch(first_index, memory.data, memory.offsets, count, memory)

    def finish(self, first_index):
        """The batch of the entries so far, the first of which gets this index; the builder is empty again."""
        return self.take(to_entry_index(first_index))


def table_bytes(batch, base):
    """The part of an index file's table for a batch whose data begins ``base`` bytes behind the start of the file's.

    LocalProtocolError when an end lies at 4 GiB or more.
    """
    cdef EntryBatch entries
    cdef bytes table
    cdef unsigned char *slot
    cdef Py_ssize_t position
    cdef uint64_t shift, end
    if not isinstance(batch, EntryBatch):
        raise LocalProtocolError(f"expected an EntryBatch, not {type(batch).__name__}")
    entries = batch
    base = PyNumber_Index(base)
    if not 0 <= base <= OFFSET_MAX - batch_size(entries):
        raise LocalProtocolError(f"{batch_size(entries)} bytes behind offset {shown(base)} end beyond {OFFSET_MAX}")
    shift = base
    table = PyBytes_FromStringAndSize(NULL, 4 * entries.count)
    slot = <unsigned char *> PyBytes_AS_STRING(table)
    for position in range(1, entries.count + 1):
        end = entries.offsets[position] - entries.offsets[0] + shift
        slot[0] = end & 0xFF
        slot[1] = (end >> 8) & 0xFF
        slot[2] = (end >> 16) & 0xFF
        slot[3] = (end >> 24) & 0xFF
        slot += 4
    return table
