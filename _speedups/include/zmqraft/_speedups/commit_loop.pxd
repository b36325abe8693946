# What waits for an index, as it lies in memory.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    #: Identities that libzmq makes have 5 bytes; longer ones than this are kept as Python objects.
    IDENTITY_SIZE_MAX = 18

# 40 bytes.
cdef struct Route:
    uint8_t identity_size  # 0: nobody waits
    uint8_t identity[IDENTITY_SIZE_MAX]
    uint8_t request_id[12]
    uint32_t size

# 48 bytes: a reply to `route`: its index, or, when that is 0, "accepted".
cdef struct Acknowledgement:
    Route route
    int64_t index
