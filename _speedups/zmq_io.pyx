# cython: language_level=3
"""Whole multipart messages in and out of a socket, without waiting. The compiled twin of protocol/_zmq_io.py.

Calls libzmq itself, the one that pyzmq has loaded: the wheel of pyzmq carries neither its header nor a library to link,
so the functions are looked up at import in what pyzmq depends on. Never link a second libzmq: its sockets would not be
the same. The rule: as in the pure twin, nothing here waits, and a message that cannot be sent is not sent at all.
"""

import ctypes

import zmq
from zmq.backend.cython import _zmq

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_Index
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from zmqraft._speedups.log_index cimport BatchBuilder, EntryBatch

cdef extern from *:
    """
    typedef struct { void *socket; int fd; short events; short revents; } zmqraft_pollitem_t;
    """
    ctypedef struct zmqraft_pollitem_t:
        void *socket
        int fd
        short events
        short revents

cdef int (*c_errno)() noexcept nogil
cdef int (*c_poll)(zmqraft_pollitem_t *, int, long) noexcept nogil


cdef uintptr_t _address(object library, str name) except 0:
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except AttributeError as error:
        raise ImportError(f"the libzmq of pyzmq {zmq.pyzmq_version()} has no {name}: {error}") from None


def _look_up():
    global c_errno, c_poll, msg_init, msg_init_size, msg_recv, msg_send, msg_close, msg_data, msg_size, msg_more
    library = ctypes.CDLL(_zmq.__file__)
    c_errno = <int (*)() noexcept nogil> _address(library, "zmq_errno")
    c_poll = <int (*)(zmqraft_pollitem_t *, int, long) noexcept nogil> _address(library, "zmq_poll")
    msg_init = <int (*)(zmqraft_msg_t *) noexcept nogil> _address(library, "zmq_msg_init")
    msg_init_size = <int (*)(zmqraft_msg_t *, size_t) noexcept nogil> _address(library, "zmq_msg_init_size")
    msg_recv = <int (*)(zmqraft_msg_t *, void *, int) noexcept nogil> _address(library, "zmq_msg_recv")
    msg_send = <int (*)(zmqraft_msg_t *, void *, int) noexcept nogil> _address(library, "zmq_msg_send")
    msg_close = <int (*)(zmqraft_msg_t *) noexcept nogil> _address(library, "zmq_msg_close")
    msg_data = <void *(*)(zmqraft_msg_t *) noexcept nogil> _address(library, "zmq_msg_data")
    msg_size = <size_t (*)(zmqraft_msg_t *) noexcept nogil> _address(library, "zmq_msg_size")
    msg_more = <int (*)(zmqraft_msg_t *) noexcept nogil> _address(library, "zmq_msg_more")


_look_up()


cdef void *handle_of(object socket) except NULL:
    if socket.closed:
        raise zmq.ZMQError(zmq.ENOTSOCK)
    return <void *> <uintptr_t> socket.underlying


cdef int _fail(zmqraft_msg_t *message, int error) except -1:
    msg_close(message)
    raise zmq.ZMQError(error)


cdef int receive_first(void *socket, zmqraft_msg_t *message) except -1:
    cdef int error
    msg_init(message)
    while msg_recv(message, socket, ZMQ_DONTWAIT) < 0:
        error = c_errno()
        if error == EAGAIN:
            msg_close(message)
            return 0
        if error != EINTR:
            _fail(message, error)
    return 1


cdef int receive_next(void *socket, zmqraft_msg_t *message) except -1:
    cdef int error
    msg_init(message)
    while msg_recv(message, socket, 0) < 0:
        error = c_errno()
        if error != EINTR:
            _fail(message, error)
    return 1


cdef int send_frame(void *socket, const void *data, size_t size, bint more) except -1:
    cdef zmqraft_msg_t message
    cdef int error
    if msg_init_size(&message, size) < 0:
        raise MemoryError()
    memcpy(msg_data(&message), data, size)
    while msg_send(&message, socket, ZMQ_DONTWAIT | (ZMQ_SNDMORE if more else 0)) < 0:
        error = c_errno()
        if error == EAGAIN:
            msg_close(&message)
            return 0
        if error != EINTR:
            _fail(&message, error)
    return 1


cdef Py_ssize_t clipped_count(count_max) except? -2:
    return max(-1, min(PyNumber_Index(count_max), <long long> 1 << 62))


cdef bytes _take(zmqraft_msg_t *message):
    cdef bytes frame = PyBytes_FromStringAndSize(<char *> msg_data(message), msg_size(message))
    msg_close(message)
    return frame


def receive_messages(socket, count_max):
    """The messages that have arrived, at most ``count_max`` of them."""
    cdef void *handle = handle_of(socket)
    cdef zmqraft_msg_t message
    cdef bint more
    cdef list messages = [], frames
    cdef Py_ssize_t count = clipped_count(count_max)
    while len(messages) < count and receive_first(handle, &message):
        frames = []
        while True:
            more = msg_more(&message)
            frames.append(_take(&message))
            if not more:
                break
            receive_next(handle, &message)
        messages.append(frames)
    return messages


def receive_with_entries(socket, head_count, count_max):
    """As `receive_messages`, but the frames of each behind the first ``head_count`` as a batch whose first index is 0.

    A message is a pair of frames and batch. There is no batch (None), and all come as frames, where there is no frame
    behind the first ones, or one of them is no entry, or their terms go back.
    """
    cdef void *handle = handle_of(socket)
    cdef zmqraft_msg_t message
    cdef list messages = []
    cdef Py_ssize_t head = clipped_count(head_count), count = clipped_count(count_max)
    while len(messages) < count and receive_first(handle, &message):
        messages.append(_with_entries(handle, &message, head))
    return messages


cdef tuple _with_entries(void *handle, zmqraft_msg_t *message, Py_ssize_t head):
    """A message whose first frame is there."""
    cdef list frames = []
    cdef BatchBuilder builder = BatchBuilder()
    cdef bint more
    while True:
        try:
            more = msg_more(message)
            if builder is None or len(frames) < head:
                frames.append(PyBytes_FromStringAndSize(<char *> msg_data(message), msg_size(message)))
            elif builder.add_frame(<const unsigned char *> msg_data(message), msg_size(message)) != 0:
                frames += builder.take(0).frames()
                frames.append(PyBytes_FromStringAndSize(<char *> msg_data(message), msg_size(message)))
                builder = None
        finally:
            msg_close(message)
        if not more:
            return frames, builder.take(0) if builder is not None and builder.count > 0 else None
        receive_next(handle, message)


def send_message(socket, frames, EntryBatch entries=None):
    """Send ``frames``, and a frame for each of ``entries`` behind them. Returns False when there is no room for it."""
    cdef void *handle = handle_of(socket)
    # First all, since a message whose second frame is none would be half sent when that comes out.
    cdef list parts = [frame if type(frame) is bytes else bytes(memoryview(frame)) for frame in frames]
    cdef Py_ssize_t last = len(parts) - 1, position
    cdef Py_ssize_t count = entries.count if entries is not None else 0
    cdef uint64_t start, end
    cdef bytes data
    if last < 0:
        raise ValueError("a message has at least one frame before its entries")
    for position in range(last + 1):
        data = parts[position]
        if not send_frame(handle, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), position < last or count > 0):
            return False
    for position in range(count):
        start = entries.offsets[position] - entries.offsets[0]
        end = entries.offsets[position + 1] - entries.offsets[0]
        send_frame(handle, entries.start + start, end - start, position + 1 < count)
    return True


cdef class Poller:
    """Waits for sockets, and for file descriptors, until something can be read from one of them, or written to it.

    As `zmq.Poller`, but says only which, and its events are POLLIN and POLLOUT. A socket is unregistered before it is
    closed; `poll` raises ZMQError when it was not. To be used in one thread.
    """

    cdef list _sockets
    cdef list _events
    # One for each of them.
    cdef zmqraft_pollitem_t *_items

    def __cinit__(self):
        self._sockets = []
        self._events = []

    def __dealloc__(self):
        PyMem_Free(self._items)

    def register(self, socket, events):
        """Wait for these events of ``socket`` from now on, instead of others. ZMQError when it is closed."""
        if isinstance(socket, int):
            if not 0 <= socket < 1 << 31:
                raise ValueError(f"{socket} is no file descriptor")
        elif socket.closed:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        events = PyNumber_Index(events)
        if events not in (zmq.POLLIN, zmq.POLLOUT, zmq.POLLIN | zmq.POLLOUT):
            raise ValueError(f"events are POLLIN, POLLOUT or both, not {events}")
        sockets, all_events = self._sockets.copy(), self._events.copy()
        if socket in sockets:
            all_events[sockets.index(socket)] = events
        else:
            sockets.append(socket)
            all_events.append(events)
        self._replace(sockets, all_events)

    def unregister(self, socket):
        """Do not wait for it any longer. KeyError when that was not so."""
        if socket not in self._sockets:
            raise KeyError(socket)
        position = self._sockets.index(socket)
        self._replace(
            self._sockets[:position] + self._sockets[position + 1:], self._events[:position] + self._events[position + 1:]
        )

    cdef int _replace(self, list sockets, list events) except -1:
        """Wait for these; after an error for those of before, so that the lists and the items always fit."""
        cdef Py_ssize_t position
        cdef zmqraft_pollitem_t *item
        cdef zmqraft_pollitem_t *items = <zmqraft_pollitem_t *> PyMem_Malloc(
            max(len(sockets), 1) * sizeof(zmqraft_pollitem_t)
        )
        if items == NULL:
            raise MemoryError()
        try:
            for position, socket in enumerate(sockets):
                item = &items[position]
                item.events, item.revents = events[position], 0
                if isinstance(socket, int):
                    item.socket, item.fd = NULL, socket
                else:
                    # `poll` looks whether it is closed by then.
                    item.socket, item.fd = <void *> <uintptr_t> socket.underlying, 0
        except BaseException:
            PyMem_Free(items)
            raise
        PyMem_Free(self._items)
        self._items, self._sockets, self._events = items, sockets, events
        return 0

    def poll(self, timeout_ms):
        """What is ready, as soon as anything is, or after so many milliseconds nothing; a negative time has no end. A
        signal may make it return earlier."""
        cdef long timeout = max(-1, PyNumber_Index(timeout_ms))
        cdef int count = <int> len(self._sockets), found, error
        cdef Py_ssize_t position
        for socket in self._sockets:
            if not isinstance(socket, int) and socket.closed:
                raise zmq.ZMQError(zmq.ENOTSOCK)
        with nogil:
            found = c_poll(self._items, count, timeout)
            error = c_errno() if found < 0 else 0
        if error == EINTR:
            PyErr_CheckSignals()
        elif error:
            raise zmq.ZMQError(error)
        if found <= 0:
            return []
        return [self._sockets[position] for position in range(count) if self._items[position].revents]
