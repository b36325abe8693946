# libzmq as pyzmq loaded it: its functions, looked up at import, and its message type (zmq.h, 64 opaque bytes).

from libc.stdint cimport int64_t

cdef extern from *:
    """
    typedef union { unsigned char opaque[64]; void *aligned; } zmqraft_msg_t;
    """
    ctypedef union zmqraft_msg_t:
        unsigned char opaque[64]

cdef enum:
    ZMQ_DONTWAIT = 1
    ZMQ_SNDMORE = 2

cdef int (*msg_init)(zmqraft_msg_t *) noexcept nogil
cdef int (*msg_init_size)(zmqraft_msg_t *, size_t) noexcept nogil
cdef int (*msg_recv)(zmqraft_msg_t *, void *, int) noexcept nogil
cdef int (*msg_send)(zmqraft_msg_t *, void *, int) noexcept nogil
cdef int (*msg_close)(zmqraft_msg_t *) noexcept nogil
cdef void *(*msg_data)(zmqraft_msg_t *) noexcept nogil
cdef size_t (*msg_size)(zmqraft_msg_t *) noexcept nogil
cdef int (*msg_more)(zmqraft_msg_t *) noexcept nogil

# The void * of a zmq.Socket. Raises ZMQError when it is closed.
cdef void *handle_of(object socket) except NULL
# The first frame of the next message: 1, or 0 when none has arrived. Raises ZMQError.
cdef int receive_first(void *socket, zmqraft_msg_t *message) except -1
# One more frame of a message that has begun: these are there. Raises ZMQError.
cdef int receive_next(void *socket, zmqraft_msg_t *message) except -1
# A frame: 1, or 0 when there is no room for the message (only of its first frame). Raises ZMQError.
cdef int send_frame(void *socket, const void *data, size_t size, bint more) except -1
# A largest count, as good as any where it is huge. Raises TypeError.
cdef Py_ssize_t clipped_count(count_max) except? -2
