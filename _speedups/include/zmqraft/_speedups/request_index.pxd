# The request-id index as it lies in memory: records in the order of their entries, and a hash table that finds them.

from libc.stdint cimport uint32_t, uint64_t

from zmqraft._speedups.log_index cimport EntryBatch

# 20 bytes. The index in two halves, so that nothing is lost to alignment.
cdef struct Record:
    unsigned char request_id[12]
    uint32_t index_low
    uint32_t index_high

cdef class RequestIndex:
    # Records have sequence numbers from head up to, not including, tail. They stand in blocks of RECORDS_IN_BLOCK; block
    # number b is blocks[b & (directory_size - 1)], for every b from head / RECORDS_IN_BLOCK to where tail lies.
    cdef Record **blocks
    cdef uint64_t directory_size, head, tail
    # Open addressing, linear probing. A slot is 0, or the hash of an id (high half) and its record's `tag` (low half).
    cdef uint64_t *slots
    cdef uint64_t slot_count  # 0 or a power of two
    cdef uint64_t bound_count  # the largest number of records
    cdef readonly object bound
    cdef uint64_t oldest_accepted

    # The index of the first entry with this id (12 bytes); 0 when it is not known.
    cdef long long find_c(self, const unsigned char *request_id) noexcept
    # Remember an id for an index above those so far: 1; 0 when it is known or all zero. -1: MemoryError.
    cdef int insert_c(self, const unsigned char *request_id, long long index) except -1

    cdef Record *record(self, uint64_t sequence) noexcept
    cdef uint64_t sequence_of(self, uint32_t tag) noexcept
    cdef uint64_t *slot_of(self, const unsigned char *request_id, uint32_t hash) noexcept
    cdef int reserve(self) except -1
    cdef int resize(self, uint64_t slot_count) noexcept
    cdef int add_block(self) except -1
    cdef void remove_slot(self, const unsigned char *request_id) noexcept
    cdef void forget_first(self) noexcept
    cdef void forget_last(self) noexcept
