# Entry batches as they lie in memory, and what other compiled modules call directly.

from libc.stdint cimport uint64_t

from zmqraft._speedups.frames cimport ENTRY_HEADER_SIZE, ENTRY_TERM_OFFSET, ENTRY_TYPE_MAX, ENTRY_TYPE_OFFSET

# What is wrong with an entry, if anything.
cdef enum EntryFault:
    ENTRY_GOOD = 0
    ENTRY_TOO_SHORT = 1
    ENTRY_BAD_TYPE = 2
    ENTRY_BAD_TERM = 3
    ENTRY_TERM_GOES_BACK = 4

cdef inline uint64_t entry_term(const unsigned char *entry) noexcept nogil:
    """The term in the header of an entry, 7 bytes. One load of 8 bytes, as compilers see it."""
    return (
        <uint64_t> entry[12] | <uint64_t> entry[13] << 8 | <uint64_t> entry[14] << 16 | <uint64_t> entry[15] << 24
        | <uint64_t> entry[16] << 32 | <uint64_t> entry[17] << 40 | <uint64_t> entry[18] << 48
        | <uint64_t> entry[19] << 56
    ) >> 8

# An entry of that many bytes, by itself: never ENTRY_TERM_GOES_BACK.
cdef EntryFault entry_fault(const unsigned char *entry, Py_ssize_t size) noexcept nogil

# Immutable. Entry k has the bytes from start + (offsets[k] - offsets[0]) to start + (offsets[k + 1] - offsets[0]).
cdef class EntryBatch:
    cdef readonly long long first_index
    cdef Py_ssize_t count
    cdef const unsigned char *start
    cdef const uint64_t *offsets  # count + 1, rising
    cdef object owner  # keeps both alive
    cdef list runs, configs  # None until they are asked for

    cdef int scan(self) except -1
    # The number of entries from `first` (0 to count) on that fit in size_max bytes, taken together.
    cdef Py_ssize_t count_that_fit(self, Py_ssize_t first, long long size_max) noexcept
    # `count` entries from a position on, which are there.
    cdef EntryBatch part(self, Py_ssize_t position, Py_ssize_t count)

cdef inline Py_ssize_t batch_size(EntryBatch batch) noexcept:
    """The number of bytes of all entries."""
    return <Py_ssize_t> (batch.offsets[batch.count] - batch.offsets[0])

# Trusts its arguments.
cdef EntryBatch new_batch(
    long long first_index, const unsigned char *start, const uint64_t *offsets, Py_ssize_t count, object owner
)

cdef class BatchBuilder:
    cdef unsigned char *data
    cdef Py_ssize_t data_capacity
    cdef uint64_t *offsets  # NULL, or offsets_capacity > count of them; the first is 0
    cdef Py_ssize_t offsets_capacity
    cdef Py_ssize_t count
    cdef uint64_t last_term

    cdef str term_goes_back(self, term)

    cdef Py_ssize_t used(self) noexcept
    # Room for one more entry of that size: where its bytes go, or NULL and MemoryError. `commit` makes it count.
    cdef unsigned char *reserve(self, Py_ssize_t size) except NULL
    cdef void commit(self, Py_ssize_t size, uint64_t term) noexcept
    # Raises LocalProtocolError, and adds nothing, on an illegal entry. `request_id` has 12 bytes.
    cdef int add(
        self, const unsigned char *request_id, unsigned char type, uint64_t term, const unsigned char *data,
        Py_ssize_t size
    ) except -1
    # Adds an entry, or returns what is wrong with it. -1: MemoryError.
    cdef int add_frame(self, const unsigned char *frame, Py_ssize_t size) except -1
    # `first_index` is 0 to INTEGER_MAX + 1.
    cdef EntryBatch take(self, long long first_index)
