# The layout of log entries and the kinds of frames (SPEC section 1), and what other compiled modules call directly.

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    REQUEST_ID_SIZE = 12
    ENTRY_TYPE_OFFSET = 12
    ENTRY_TERM_OFFSET = 13
    ENTRY_TERM_SIZE = 7
    ENTRY_HEADER_SIZE = 20
    ENTRY_TYPE_MAX = 2
    UINT_SIZE_MAX = 8

cdef enum Kind:
    KIND_BYTES = 98  # b
    KIND_ENTRY = 101  # e
    KIND_JSON = 106  # j
    KIND_NUINT = 110  # n
    KIND_REQUEST_ID = 114  # r
    KIND_STRING = 115  # s
    KIND_BOOL = 116  # t
    KIND_UINT = 117  # u

# The least significant byte first; at most 8 bytes.
cdef uint64_t load_uint(const uint8_t *source, Py_ssize_t size) noexcept nogil
cdef void store_uint(uint8_t *target, uint64_t value, Py_ssize_t size) noexcept nogil

# Raises RemoteProtocolError unless the bytes start with the header of a log entry of that size.
cdef int check_header(const uint8_t *header, Py_ssize_t size) except -1

cdef class MessageCodec:
    cdef str name
    cdef tuple fields
    cdef bytes kinds
    cdef Py_ssize_t count, required
    cdef bint repeated
    cdef bytes first

    cdef Py_ssize_t present(self, values) except -1
