# cython: language_level=3
"""The request-id index: which entry of the log holds a request id. The compiled twin of storage/_request_index.py.

At most 64 bytes for each id: 20 of record and 8 for each slot of a hash table that is 1/4 to 3/4 full. Knows nothing of
files or clocks. The rule: the first index of an id counts, and an id that is forgotten has no index, whatever entries
follow. Same names, signatures, results, exceptions and docstrings as the pure twin; use either through
`zmqraft.storage.request_index`.
"""

import os
import sys

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from zmqraft.constants import INTEGER_MAX
from zmqraft.errors import shown

cdef enum:
    _ID_SIZE = 12
    _CHECKPOINT = 2
    # What `RequestIndex.packed` gives for each id: the id, then the index, least significant byte first.
    _RECORD_SIZE = 20
    _RECORDS_IN_BLOCK = 512
    _SLOTS_MIN = 64
    _DIRECTORY_MIN = 8

cdef uint64_t TAG_COUNT = 0xFFFFFFFF
cdef unsigned char[12] _NO_ID = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
cdef object _far = 1 << 62
cdef uint64_t _INDEX_MAX = INTEGER_MAX
cdef bint _IS_LITTLE_ENDIAN = sys.byteorder == "little"

# Clients choose their ids: without a secret in the hash, one could choose them so that they all collide.
cdef uint64_t _SECRET_1 = int.from_bytes(os.urandom(8), "little")
cdef uint64_t _SECRET_2 = int.from_bytes(os.urandom(8), "little")


cdef inline uint32_t hash_of(const unsigned char *request_id) noexcept:
    cdef uint64_t first, value
    cdef uint32_t last
    memcpy(&first, request_id, 8)
    memcpy(&last, request_id + 8, 4)
    value = (first ^ _SECRET_1) * <uint64_t> 0x9E3779B97F4A7C15
    value ^= value >> 32
    value = (value + last + _SECRET_2) * <uint64_t> 0xBF58476D1CE4E5B9
    value ^= value >> 29
    value *= <uint64_t> 0x94D049BB133111EB
    return <uint32_t> (value >> 32)


cdef inline uint64_t seconds_of(const unsigned char *request_id) noexcept:
    return (
        <uint64_t> request_id[0] << 24 | <uint64_t> request_id[1] << 16 | <uint64_t> request_id[2] << 8 | request_id[3]
    )


cdef inline uint64_t packed_index(const unsigned char *record) noexcept:
    cdef uint64_t index = 0
    cdef int position
    for position in range(8):
        index |= <uint64_t> record[_ID_SIZE + position] << (8 * position)
    return index


cdef inline uint32_t tag_of(uint64_t sequence) noexcept:
    """Never 0."""
    return <uint32_t> (sequence % TAG_COUNT) + 1


cdef inline int64_t index_of(const Record *record) noexcept:
    return <int64_t> (<uint64_t> record.index_high << 32 | record.index_low)


cdef int64_t clipped(number) except? -1:
    """An int; those that no time or index comes near are cut to 2**62."""
    number = PyNumber_Index(number)
    return max(-_far, min(number, _far))


@cython.final
cdef class RequestIndex:
    """Request id (12 bytes) to log index, for STATE and CONFIG entries whose id is not all zero.

    ``bound`` is the largest number of ids that are remembered, or None. Beyond it the oldest entries' ids are
    forgotten, and `oldest_accepted_seconds` rises so that none of them is taken for a new one.
    """

    def __cinit__(self):
        # Not 0, so that tags come around early, in every test, and not only after 2**32 ids.
        self.head = self.tail = TAG_COUNT - 700

    def __init__(self, bound=None):
        if bound is not None and (not isinstance(bound, int) or isinstance(bound, bool) or bound < 1):
            raise ValueError(f"the largest number of request ids is 1 or more, or None, not {shown(bound)}")
        self.bound = bound
        self.bound_count = TAG_COUNT - 1 if bound is None else min(bound, TAG_COUNT - 1)

    def __dealloc__(self):
        cdef uint64_t number
        for number in range(self.directory_size):
            PyMem_RawFree(self.blocks[number])
        PyMem_RawFree(self.blocks)
        PyMem_RawFree(self.slots)

    def __len__(self):
        return self.tail - self.head

    @property
    def oldest_accepted_seconds(self):
        """An id whose own time (seconds since the epoch) is at or before this may have been forgotten for the bound's
        sake; 0 when none was."""
        return self.oldest_accepted

    @property
    def memory_size(self):
        """The memory in use, in bytes; in the pure twin about."""
        cdef uint64_t blocks = (self.tail + _RECORDS_IN_BLOCK - 1) // _RECORDS_IN_BLOCK - self.head // _RECORDS_IN_BLOCK
        return (
            blocks * _RECORDS_IN_BLOCK * sizeof(Record)
            + self.directory_size * sizeof(Record *)
            + self.slot_count * sizeof(uint64_t)
        )

    def add(self, EntryBatch batch not None, after_seconds=0):
        """Remember the ids of entries that follow those known so far, unless an id's time is before ``after_seconds``.

        ``after_seconds`` is meant for opening a log, where old ids are not worth their memory; an entry that is
        appended is always remembered, since the clock may be wrong.
        """
        cdef int64_t after = clipped(after_seconds)
        cdef Py_ssize_t position
        cdef const unsigned char *entry
        for position in range(batch.count):
            entry = batch.start + (batch.offsets[position] - batch.offsets[0])
            if <int64_t> seconds_of(entry) >= after and entry[_ID_SIZE] != _CHECKPOINT:
                self.insert_c(entry, batch.first_index + position)

    def packed(self, last_index):
        """The ids of entries up to ``last_index``, oldest first: of each the 12 bytes of the id, then 8 of its index,
        least significant byte first."""
        cdef int64_t last = clipped(last_index)
        cdef uint64_t low = self.head, high = self.tail, middle, sequence, index
        cdef bytes packed
        cdef unsigned char *out
        cdef int position
        while low < high:
            middle = low + (high - low) // 2
            if index_of(self.record(middle)) > last:
                high = middle
            else:
                low = middle + 1
        packed = PyBytes_FromStringAndSize(NULL, (low - self.head) * _RECORD_SIZE)
        out = <unsigned char *> PyBytes_AS_STRING(packed)
        for sequence in range(self.head, low):
            # The index by halves, byte by byte on a machine that has the bytes the other way round.
            memcpy(out, self.record(sequence), _RECORD_SIZE)
            if not _IS_LITTLE_ENDIAN:
                index = <uint64_t> index_of(self.record(sequence))
                for position in range(8):
                    out[_ID_SIZE + position] = <unsigned char> (index >> (8 * position) & 0xFF)
            out += _RECORD_SIZE
        return packed

    def add_packed(self, records, last_index, after_seconds=0):
        """Remember what `packed` gave, of entries up to ``last_index`` that follow those known so far; the rest as
        `add`. ValueError, and nothing is added, when that is not what they are."""
        cdef int64_t after, until
        cdef uint64_t last, index
        cdef Py_ssize_t start, size
        cdef const unsigned char *data
        if not isinstance(records, bytes):
            raise TypeError(f"packed request ids are bytes, not {type(records).__name__}")
        until, after = clipped(last_index), clipped(after_seconds)
        size = PyBytes_GET_SIZE(records)
        if size % _RECORD_SIZE:
            raise ValueError(f"packed request ids have {_RECORD_SIZE} bytes each, not {size} in all")
        data = <const unsigned char *> PyBytes_AS_STRING(records)
        last = <uint64_t> index_of(self.record(self.tail - 1)) if self.tail > self.head else 0
        for start in range(0, size, _RECORD_SIZE):
            index = packed_index(data + start)
            if not last < index <= _INDEX_MAX:
                raise ValueError(f"the request id of entry {index} does not follow that of entry {last}")
            last = index
        for start in range(0, size, _RECORD_SIZE):
            index = packed_index(data + start)
            if <int64_t> index > until:
                return
            if <int64_t> seconds_of(data + start) >= after:
                self.insert_c(data + start, index)

    def refuse_until(self, seconds):
        """Let `oldest_accepted_seconds` be at least this: ids of that time were forgotten elsewhere."""
        cdef int64_t until = min(clipped(seconds), <int64_t> 0xFFFFFFFF)
        self.oldest_accepted = max(<int64_t> self.oldest_accepted, until)

    def find(self, request_id):
        """The index of the first entry with this id, or None."""
        cdef uint64_t *slot
        cdef const unsigned char *data
        if not isinstance(request_id, bytes):
            raise TypeError(f"a request id is bytes, not {type(request_id).__name__}")
        if PyBytes_GET_SIZE(request_id) != _ID_SIZE or self.slot_count == 0:
            return None
        data = <const unsigned char *> PyBytes_AS_STRING(request_id)
        slot = self.slot_of(data, hash_of(data))
        return index_of(self.record(self.sequence_of(<uint32_t> slot[0]))) if slot[0] else None

    def truncate_after(self, index):
        """Drop the ids of entries above ``index``."""
        cdef int64_t last = clipped(index)
        while self.tail > self.head and index_of(self.record(self.tail - 1)) > last:
            self.forget_last()

    def forget_before(self, seconds):
        """Forget ids whose own time (seconds since the epoch) is before this, from the oldest entry up to the first
        whose id is not."""
        cdef int64_t oldest = clipped(seconds)
        while self.tail > self.head and <int64_t> seconds_of(self.record(self.head).request_id) < oldest:
            self.forget_first()

    def prune_index(self, last_index):
        """The index just below the first entry that is remembered, or ``last_index`` when none is."""
        return last_index if self.tail == self.head else index_of(self.record(self.head)) - 1

    cdef long long find_c(self, const unsigned char *request_id) noexcept:
        cdef uint64_t *slot
        if self.slot_count == 0:
            return 0
        slot = self.slot_of(request_id, hash_of(request_id))
        return index_of(self.record(self.sequence_of(<uint32_t> slot[0]))) if slot[0] else 0

    cdef int insert_c(self, const unsigned char *request_id, long long index) except -1:
        cdef uint32_t hash
        cdef uint64_t *slot
        cdef Record *record
        if memcmp(request_id, _NO_ID, _ID_SIZE) == 0:
            return 0
        self.reserve()
        hash = hash_of(request_id)
        slot = self.slot_of(request_id, hash)
        if slot[0]:
            return 0
        slot[0] = <uint64_t> hash << 32 | tag_of(self.tail)
        record = self.record(self.tail)
        memcpy(record.request_id, request_id, _ID_SIZE)
        record.index_low = <uint32_t> index
        record.index_high = <uint32_t> (<uint64_t> index >> 32)
        self.tail += 1
        while self.tail - self.head > self.bound_count:
            self.oldest_accepted = max(self.oldest_accepted, seconds_of(self.record(self.head).request_id))
            self.forget_first()
        return 1

    # --- records ----------------------------------------------------------------------------------------------------

    cdef Record *record(self, uint64_t sequence) noexcept:
        cdef uint64_t number = sequence // _RECORDS_IN_BLOCK
        return &self.blocks[number & (self.directory_size - 1)][sequence % _RECORDS_IN_BLOCK]

    cdef int reserve(self) except -1:
        """Room for one more record and its slot."""
        if 4 * (self.tail - self.head + 1) > 3 * self.slot_count:
            if self.resize(max(2 * self.slot_count, <uint64_t> _SLOTS_MIN)) < 0:
                raise MemoryError()
        if self.directory_size == 0 or self.blocks[
            (self.tail // _RECORDS_IN_BLOCK) & (self.directory_size - 1)
        ] == NULL or (
            self.tail % _RECORDS_IN_BLOCK == 0
            and self.tail // _RECORDS_IN_BLOCK - self.head // _RECORDS_IN_BLOCK >= self.directory_size
        ):
            self.add_block()
        return 0

    cdef int add_block(self) except -1:
        """The block that `tail` lies in."""
        cdef uint64_t first = self.head // _RECORDS_IN_BLOCK, number = self.tail // _RECORDS_IN_BLOCK
        cdef uint64_t size, old
        cdef Record **blocks
        if number - first >= self.directory_size:
            size = max(2 * self.directory_size, <uint64_t> _DIRECTORY_MIN)
            blocks = <Record **> PyMem_RawCalloc(size, sizeof(Record *))
            if blocks == NULL:
                raise MemoryError()
            for old in range(first, number):
                blocks[old & (size - 1)] = self.blocks[old & (self.directory_size - 1)]
            PyMem_RawFree(self.blocks)
            self.blocks = blocks
            self.directory_size = size
        self.blocks[number & (self.directory_size - 1)] = <Record *> PyMem_RawMalloc(
            _RECORDS_IN_BLOCK * sizeof(Record)
        )
        if self.blocks[number & (self.directory_size - 1)] == NULL:
            raise MemoryError()
        return 0

    cdef void forget_first(self) noexcept:
        cdef uint64_t number = self.head // _RECORDS_IN_BLOCK
        self.remove_slot(self.record(self.head).request_id)
        self.head += 1
        if self.head % _RECORDS_IN_BLOCK == 0:
            PyMem_RawFree(self.blocks[number & (self.directory_size - 1)])
            self.blocks[number & (self.directory_size - 1)] = NULL

    cdef void forget_last(self) noexcept:
        cdef uint64_t number = (self.tail - 1) // _RECORDS_IN_BLOCK
        self.remove_slot(self.record(self.tail - 1).request_id)
        self.tail -= 1
        if self.tail % _RECORDS_IN_BLOCK == 0:
            PyMem_RawFree(self.blocks[number & (self.directory_size - 1)])
            self.blocks[number & (self.directory_size - 1)] = NULL

    # --- the hash table ---------------------------------------------------------------------------------------------

    cdef uint64_t sequence_of(self, uint32_t tag) noexcept:
        """The record with a tag: the one among those from head on, of which there are fewer than tags."""
        cdef uint64_t ahead = (<uint64_t> tag - 1 + TAG_COUNT - self.head % TAG_COUNT) % TAG_COUNT
        return self.head + ahead

    cdef uint64_t *slot_of(self, const unsigned char *request_id, uint32_t hash) noexcept:
        """The slot of an id, or the empty one where it belongs."""
        cdef uint64_t mask = self.slot_count - 1, position = hash & mask, slot
        while True:
            slot = self.slots[position]
            if slot == 0 or (
                slot >> 32 == hash
                and memcmp(self.record(self.sequence_of(<uint32_t> slot)).request_id, request_id, _ID_SIZE) == 0
            ):
                return &self.slots[position]
            position = (position + 1) & mask

    cdef int resize(self, uint64_t slot_count) noexcept:
        """-1, and nothing is changed, when there is no memory for it."""
        cdef uint64_t mask = slot_count - 1, position, old
        cdef uint64_t *slots = <uint64_t *> PyMem_RawCalloc(slot_count, sizeof(uint64_t))
        if slots == NULL:
            return -1
        for old in range(self.slot_count):
            if self.slots[old]:
                position = (self.slots[old] >> 32) & mask
                while slots[position]:
                    position = (position + 1) & mask
                slots[position] = self.slots[old]
        PyMem_RawFree(self.slots)
        self.slots = slots
        self.slot_count = slot_count
        return 0

    cdef void remove_slot(self, const unsigned char *request_id) noexcept:
        """Take out the slot of an id that is there, and move back those that it had pushed away from their places."""
        cdef uint64_t mask = self.slot_count - 1
        cdef uint64_t hole = self.slot_of(request_id, hash_of(request_id)) - self.slots
        cdef uint64_t position = hole, home
        while True:
            position = (position + 1) & mask
            if self.slots[position] == 0:
                break
            home = (self.slots[position] >> 32) & mask
            # Whether the hole lies between its home and where it stands.
            if ((position - home) & mask) >= ((position - hole) & mask):
                self.slots[hole] = self.slots[position]
                hole = position
        self.slots[hole] = 0
        # Called before the record is gone: one less remains. Without memory it stays as large as it is.
        if self.slot_count > _SLOTS_MIN and 4 * (self.tail - self.head - 1) < self.slot_count:
            self.resize(self.slot_count // 2)
