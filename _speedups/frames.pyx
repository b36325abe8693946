# cython: language_level=3
"""Frames: the bytes of the scalars and of whole messages (SPEC section 1). The compiled twin of protocol/_frames.py.

Knows nothing of which messages there are and of sockets. The rule: every ``encode_*`` raises LocalProtocolError and
every ``decode_*`` and ``check_*`` RemoteProtocolError, whatever it is given, and nothing else. Same names, signatures,
results, exceptions and docstrings as the pure twin; import either through `zmqraft.protocol.frames`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from zmqraft import _msgpack
from zmqraft import constants as _constants
from zmqraft.constants import ABSENT
from zmqraft.errors import LocalProtocolError, RemoteProtocolError, shown

cdef object _absent = ABSENT
cdef object _integer_max = _constants.INTEGER_MAX
cdef uint64_t INTEGER_MAX = _constants.INTEGER_MAX

if (_constants.REQUEST_ID_SIZE, _constants.ENTRY_HEADER_SIZE) != (REQUEST_ID_SIZE, ENTRY_HEADER_SIZE):
    raise ImportError("zmqraft._speedups.frames was compiled for another layout of log entries: build it again")

cdef bytes _EMPTY = b""
cdef bytes _ONE = b"\x01"
cdef bytes _NIL = b"\xc0"


cdef bint is_frame(object value):
    if isinstance(value, (bytes, bytearray)):
        return True
    if not isinstance(value, memoryview):
        return False
    try:
        return value.format == "B" and value.ndim == 1 and value.contiguous
    except ValueError:  # a memoryview that was released
        return False


cdef inline bint is_integer(object value):
    return isinstance(value, int) and not isinstance(value, bool)


cdef int64_t to_integer(object value):
    """The value, or -1 when it is outside of 0 to INTEGER_MAX. It must be an int."""
    if 0 <= value <= _integer_max:
        return value
    return -1


cdef bytes to_bytes(object frame):
    """A frame that came in, as bytes."""
    if type(frame) is bytes:
        return <bytes> frame
    if not is_frame(frame):
        raise RemoteProtocolError(f"a frame is bytes, not {type(frame).__name__}")
    return bytes(frame)


cdef uint64_t load_uint(const uint8_t *source, Py_ssize_t size) noexcept nogil:
    cdef uint64_t value = 0
    while size > 0:
        size -= 1
        value = (value << 8) | source[size]
    return value


cdef void store_uint(uint8_t *target, uint64_t value, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t position
    for position in range(size):
        target[position] = value & 0xFF
        value >>= 8


# --- scalars --------------------------------------------------------------------------------------------------------


cpdef bytes encode_bytes(value):
    """Bytes as they are."""
    if type(value) is bytes:
        return <bytes> value
    if not is_frame(value):
        raise LocalProtocolError(f"expected bytes, not {type(value).__name__}")
    return bytes(value)


cpdef bytes decode_bytes(frame):
    """Bytes as they are."""
    return to_bytes(frame)


cpdef bytes encode_string(value):
    """UTF-8, no terminator."""
    if not isinstance(value, str):
        raise LocalProtocolError(f"expected a str, not {type(value).__name__}")
    try:
        return str.encode(value)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"cannot be written as UTF-8: {shown(value)} at {error.start}") from None


cpdef str decode_string(frame):
    """UTF-8, no terminator."""
    cdef bytes data = to_bytes(frame)
    try:
        return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), NULL)
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"not UTF-8 at byte {error.start}") from None


cpdef bytes encode_uint(value):
    """An integer from 0 to INTEGER_MAX in the fewest bytes, at least one, the least significant first."""
    cdef int64_t number
    cdef uint8_t buffer[UINT_SIZE_MAX]
    cdef Py_ssize_t size = 0
    if not is_integer(value):
        raise LocalProtocolError(f"expected an int, not {type(value).__name__}")
    number = to_integer(value)
    if number < 0:
        raise LocalProtocolError(f"an integer is 0 to {_integer_max}, not {shown(value)}")
    while True:
        buffer[size] = number & 0xFF
        size += 1
        number >>= 8
        if number == 0:
            return PyBytes_FromStringAndSize(<char *> buffer, size)


cpdef decode_uint(frame):
    """1 to 8 bytes, the least significant first; trailing zero bytes are accepted."""
    cdef bytes data = to_bytes(frame)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef uint64_t value
    if not 1 <= size <= UINT_SIZE_MAX:
        raise RemoteProtocolError(f"a uint has 1 to {UINT_SIZE_MAX} bytes, not {size}")
    value = load_uint(<const uint8_t *> PyBytes_AS_STRING(data), size)
    if value > INTEGER_MAX:
        raise RemoteProtocolError(f"an integer is 0 to {_integer_max}, not {value}")
    return value


cpdef bytes encode_nuint(value):
    """As `encode_uint`, and None is the empty frame."""
    return _EMPTY if value is None else encode_uint(value)


cpdef decode_nuint(frame):
    """As `decode_uint`, and the empty frame is None."""
    cdef bytes data = to_bytes(frame)
    return decode_uint(data) if PyBytes_GET_SIZE(data) else None


cpdef bytes encode_bool(value):
    """True is one byte 01, False the empty frame."""
    if value is True:
        return _ONE
    if value is False:
        return _EMPTY
    raise LocalProtocolError(f"expected a bool, not {type(value).__name__}")


cpdef decode_bool(frame):
    """True when the first byte exists and is not 0."""
    cdef bytes data = to_bytes(frame)
    return PyBytes_GET_SIZE(data) > 0 and PyBytes_AS_STRING(data)[0] != 0


cpdef bytes encode_json(value):
    """A value that JSON has, as MessagePack; integers from 2**31 on as float64. See `zmqraft._msgpack`."""
    cdef int64_t number
    # What nearly every json frame holds; the rest goes the long way.
    if value is None:
        return _NIL
    if type(value) is int:
        number = to_integer(value)
        if 0 <= number < 0x80:
            return PyBytes_FromStringAndSize([<char> number], 1)
        if 0x10000 <= number < 0x80000000:
            return PyBytes_FromStringAndSize(
                [<char> 0xCE, <char> (number >> 24), <char> (number >> 16), <char> (number >> 8), <char> number], 5
            )
    return _msgpack.pack(value)


cpdef decode_json(frame):
    """A value from MessagePack; an integral number is always an int."""
    cdef bytes data = to_bytes(frame)
    cdef const uint8_t *packed = <const uint8_t *> PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    # What nearly every json frame holds, indexes above all; the rest goes the long way.
    if size == 1:
        if packed[0] < 0x80:
            return packed[0]
        if packed[0] == 0xC0:
            return None
    if size == 2 and packed[0] == 0xCC:
        return packed[1]
    if size == 3 and packed[0] == 0xCD:
        return packed[1] << 8 | packed[2]
    if size == 5 and packed[0] == 0xCE:
        return <uint32_t> packed[1] << 24 | <uint32_t> packed[2] << 16 | <uint32_t> packed[3] << 8 | packed[4]
    return _msgpack.unpack(data)


cpdef bytes encode_request_id(value):
    """12 bytes, as `new_request_id` makes them."""
    if not is_frame(value) or len(value) != REQUEST_ID_SIZE:
        raise LocalProtocolError(f"a request id is {REQUEST_ID_SIZE} bytes, not {shown(value)}")
    return bytes(value)


cpdef bytes decode_request_id(frame):
    """12 bytes."""
    cdef bytes data = to_bytes(frame)
    if PyBytes_GET_SIZE(data) != REQUEST_ID_SIZE:
        raise RemoteProtocolError(f"a request id has {REQUEST_ID_SIZE} bytes, not {PyBytes_GET_SIZE(data)}")
    return data


# --- log entries ----------------------------------------------------------------------------------------------------


cpdef bytes encode_entry(request_id, entry_type, term, data):
    """The bytes of a log entry: 12 of request id, 1 of type, 7 of term (least significant first), then the data."""
    cdef bytes id_bytes, data_bytes, entry
    cdef int64_t type_number, term_number
    cdef uint8_t *target
    if not (is_frame(request_id) and is_frame(data)):
        raise LocalProtocolError("the request id and the data of a log entry are bytes")
    id_bytes, data_bytes = encode_bytes(request_id), encode_bytes(data)
    if PyBytes_GET_SIZE(id_bytes) != REQUEST_ID_SIZE:
        raise LocalProtocolError(f"a request id has {REQUEST_ID_SIZE} bytes, not {PyBytes_GET_SIZE(id_bytes)}")
    type_number = to_integer(entry_type) if is_integer(entry_type) else -1
    if not 0 <= type_number <= ENTRY_TYPE_MAX:
        raise LocalProtocolError(f"a log entry's type is 0 to {ENTRY_TYPE_MAX}, not {shown(entry_type)}")
    term_number = to_integer(term) if is_integer(term) else -1
    if term_number < 0:
        raise LocalProtocolError(f"a term is 0 to {_integer_max}, not {shown(term)}")
    if PyBytes_GET_SIZE(data_bytes) == 0:
        raise LocalProtocolError("the data of a log entry is never empty")
    entry = PyBytes_FromStringAndSize(NULL, ENTRY_HEADER_SIZE + PyBytes_GET_SIZE(data_bytes))
    target = <uint8_t *> PyBytes_AS_STRING(entry)
    memcpy(target, PyBytes_AS_STRING(id_bytes), REQUEST_ID_SIZE)
    target[ENTRY_TYPE_OFFSET] = type_number
    store_uint(target + ENTRY_TERM_OFFSET, term_number, ENTRY_TERM_SIZE)
    memcpy(target + ENTRY_HEADER_SIZE, PyBytes_AS_STRING(data_bytes), PyBytes_GET_SIZE(data_bytes))
    return entry


cdef int check_header(const uint8_t *header, Py_ssize_t size) except -1:
    cdef uint64_t term
    if size <= ENTRY_HEADER_SIZE:
        raise RemoteProtocolError(f"a log entry has more than {ENTRY_HEADER_SIZE} bytes, not {size}")
    if header[ENTRY_TYPE_OFFSET] > ENTRY_TYPE_MAX:
        raise RemoteProtocolError(f"a log entry's type is 0 to {ENTRY_TYPE_MAX}, not {header[ENTRY_TYPE_OFFSET]}")
    term = load_uint(header + ENTRY_TERM_OFFSET, ENTRY_TERM_SIZE)
    if term > INTEGER_MAX:
        raise RemoteProtocolError(f"a term is 0 to {_integer_max}, not {term}")
    return 0


cpdef check_entry(frame):
    """Raise RemoteProtocolError unless the bytes are a log entry."""
    cdef Py_buffer buffer
    if type(frame) is bytes:
        check_header(<const uint8_t *> PyBytes_AS_STRING(<bytes> frame), PyBytes_GET_SIZE(<bytes> frame))
        return
    if not is_frame(frame):
        raise RemoteProtocolError(f"a frame is bytes, not {type(frame).__name__}")
    PyObject_GetBuffer(frame, &buffer, PyBUF_SIMPLE)
    try:
        check_header(<const uint8_t *> buffer.buf, buffer.len)
    finally:
        PyBuffer_Release(&buffer)


cpdef check_entries(data, ends):
    """Raise RemoteProtocolError unless the bytes are log entries one after the other that end at these offsets."""
    cdef Py_buffer buffer
    cdef int64_t start = 0, end
    if not is_frame(data):
        raise RemoteProtocolError(f"a frame is bytes, not {type(data).__name__}")
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        for item in ends:
            end = to_integer(item) if is_integer(item) else -1
            if not start < end <= buffer.len:
                raise RemoteProtocolError(f"a log entry ends at {shown(item)}, outside of {start} to {buffer.len}")
            check_header(<const uint8_t *> buffer.buf + start, end - start)
            start = end
        if start != buffer.len:
            raise RemoteProtocolError(f"{buffer.len - start} bytes behind the last log entry")
    finally:
        PyBuffer_Release(&buffer)


cdef bytes encode_entry_frame(object frame):
    try:
        check_entry(frame)
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from None
    return encode_bytes(frame)


cdef bytes decode_entry_frame(object frame):
    check_entry(frame)
    return to_bytes(frame)


# --- messages -------------------------------------------------------------------------------------------------------


cdef object encode_kind(int kind, object value):
    if kind == KIND_UINT:
        return encode_uint(value)
    if kind == KIND_BYTES:
        return encode_bytes(value)
    if kind == KIND_ENTRY:
        return encode_entry_frame(value)
    if kind == KIND_STRING:
        return encode_string(value)
    if kind == KIND_BOOL:
        return encode_bool(value)
    if kind == KIND_JSON:
        return encode_json(value)
    if kind == KIND_NUINT:
        return encode_nuint(value)
    return encode_request_id(value)


cdef object decode_kind(int kind, object frame):
    if kind == KIND_UINT:
        return decode_uint(frame)
    if kind == KIND_BYTES:
        return to_bytes(frame)
    if kind == KIND_ENTRY:
        return decode_entry_frame(frame)
    if kind == KIND_STRING:
        return decode_string(frame)
    if kind == KIND_BOOL:
        return decode_bool(frame)
    if kind == KIND_JSON:
        return decode_json(frame)
    if kind == KIND_NUINT:
        return decode_nuint(frame)
    return decode_request_id(frame)


cdef class MessageCodec:
    """The frames of one message, from the type frame on, to a tuple of values and back.

    ``kinds`` has one letter for each field in ``fields``; fields from position ``required`` on may be absent; with
    ``repeated`` the last field stands for any number of frames. ``first`` is what the first field, of bytes and
    required, must be, if anything. Made by `FramesProtocol` from its schema.
    """

    def __init__(self, str name not None, fields, str kinds not None, Py_ssize_t required, bint repeated, bytes first):
        if len(fields) != len(kinds):
            raise ValueError(f"{name}: {len(fields)} fields of {len(kinds)} kinds")
        if first is not None and not (kinds.startswith("b") and required > 0):
            raise ValueError(f"{name}: the first field is not bytes, or not required")
        for kind in kinds:
            if kind not in "besjnrtu":
                raise KeyError(kind)
        self.name = name
        self.fields = tuple(fields)
        self.kinds = kinds.encode()
        self.count = len(self.fields)
        self.required = required
        self.repeated = repeated
        self.first = first

    def encode(self, values):
        """The frames. Raises LocalProtocolError when the values are not what the message has."""
        cdef Py_ssize_t count, position = 0
        cdef object last = ()
        cdef list frames
        if not isinstance(values, (list, tuple)):
            raise LocalProtocolError(f"{self.name}: expected a tuple of values, not {type(values).__name__}")
        if len(values) > self.count:
            raise LocalProtocolError(f"{self.name} has at most {self.count} fields, not {len(values)}")
        if self.repeated and len(values) == self.count:
            last = values[self.count - 1]
            values = values[:self.count - 1]
            if not isinstance(last, (list, tuple)):
                field = self.fields[self.count - 1]
                raise LocalProtocolError(f"{self.name}: {field}: expected a list, not {type(last).__name__}")
        count = self.present(values)
        if count < self.required or (last and count < self.count - 1):
            raise LocalProtocolError(f"{self.name}: {self.fields[count]} is missing")
        frames = []
        try:
            if self.first is not None and encode_bytes(values[0]) != self.first:
                raise LocalProtocolError(f"expected {self.first!r}, not {shown(values[0])}")
            while position < count:
                frames.append(encode_kind(self.kinds[position], values[position]))
                position += 1
            if last:
                position = self.count - 1
                for value in last:
                    frames.append(encode_kind(self.kinds[position], value))
        except LocalProtocolError as error:
            raise LocalProtocolError(f"{self.name}: {self.fields[position]}: {error}") from None
        return frames

    def decode(self, frames):
        """The values. Raises RemoteProtocolError when the frames are not the message."""
        cdef Py_ssize_t total, single, present, position = 0
        cdef list values = [], last = []
        if not isinstance(frames, (list, tuple)):
            raise RemoteProtocolError(f"{self.name}: expected a list of frames, not {type(frames).__name__}")
        total = len(frames)
        if total < self.required:
            raise RemoteProtocolError(f"{self.name} has at least {self.required} frames, not {total}")
        single = self.count - self.repeated
        present = min(total, single)
        try:
            if self.first is not None and to_bytes(frames[0]) != self.first:
                raise RemoteProtocolError(f"expected {self.first!r}, not {shown(frames[0])}")
            while position < present:
                values.append(decode_kind(self.kinds[position], frames[position]))
                position += 1
            while position < single:
                values.append(_absent if self.kinds[position] == KIND_JSON else None)
                position += 1
            if self.repeated:
                for frame in frames[single:]:
                    last.append(decode_kind(self.kinds[single], frame))
                values.append(last)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self.name}: {self.fields[position]}: {error}") from None
        return tuple(values)

    cdef Py_ssize_t present(self, values) except -1:
        """How many of the values are there, without those at the end that stand for absent frames."""
        cdef Py_ssize_t count = len(values)
        while count > self.required:
            value = values[count - 1]
            if value is _absent or (value is None and self.kinds[count - 1] != KIND_JSON):
                count -= 1
            else:
                break
        return count
