# cython: language_level=3
"""Checksums of what is on disk: CRC32C, and the 4 bytes that stand for each entry of an index file. The compiled twin
of storage/_checksums.py.

Knows nothing of files. The rule: a checksum covers an entry's bytes, its index, where it ends in the file, and a mark
of the writer's, 0 to 2; so it fits that entry in that place only. Same names, signatures, results, exceptions and
docstrings as the pure twin; use either through `zmqraft.storage.checksums`.

By the instructions of SSE 4.2 or ARMv8 where the processor that it runs on has them, else with 8 tables.
"""

from array import array

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint32_t, uint64_t

from zmqraft._speedups.log_index cimport EntryBatch, batch_size
from zmqraft.errors import shown

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #if defined(__GNUC__) && defined(__x86_64__)
      #define ZR_CRC_HARDWARE 1
      #define ZR_CRC_TARGET __attribute__((target("sse4.2")))
      #define ZR_CRC_8(crc, word) ((uint32_t) __builtin_ia32_crc32di((crc), (word)))
      #define ZR_CRC_1(crc, byte) __builtin_ia32_crc32qi((crc), (byte))
      static int zr_crc_has_hardware(void)
      {
        __builtin_cpu_init();
        return __builtin_cpu_supports("sse4.2") != 0;
      }
    #elif defined(__GNUC__) && defined(__aarch64__) && !defined(__AARCH64EB__) \\
          && (defined(__linux__) || defined(__APPLE__))
      #define ZR_CRC_HARDWARE 1
      #define ZR_CRC_TARGET
      static inline uint32_t zr_crc_8(uint32_t crc, uint64_t word)
      {
        __asm__(".arch_extension crc\\n\\tcrc32cx %w0, %w1, %x2" : "=r"(crc) : "r"(crc), "r"(word));
        return crc;
      }
      static inline uint32_t zr_crc_1(uint32_t crc, uint32_t byte)
      {
        __asm__(".arch_extension crc\\n\\tcrc32cb %w0, %w1, %w2" : "=r"(crc) : "r"(crc), "r"(byte));
        return crc;
      }
      #define ZR_CRC_8(crc, word) zr_crc_8((crc), (word))
      #define ZR_CRC_1(crc, byte) zr_crc_1((crc), (byte))
      #if defined(__linux__)
        #include <sys/auxv.h>
        static int zr_crc_has_hardware(void)
        {
          return (getauxval(AT_HWCAP) & (1UL << 7)) != 0; /* HWCAP_CRC32 */
        }
      #else
        static int zr_crc_has_hardware(void) { return 1; } /* each ARM processor of Apple has it */
      #endif
    #endif

    static uint32_t zr_crc_table[8][256];

    /* `crc` is inverted before and after by the caller, here as in the other ones. */
    static uint32_t zr_crc_software(uint32_t crc, const unsigned char *data, size_t size)
    {
      for (; size >= 8; data += 8, size -= 8) {
        crc ^= (uint32_t) data[0] | (uint32_t) data[1] << 8 | (uint32_t) data[2] << 16 | (uint32_t) data[3] << 24;
        crc = zr_crc_table[7][crc & 255] ^ zr_crc_table[6][crc >> 8 & 255] ^ zr_crc_table[5][crc >> 16 & 255]
          ^ zr_crc_table[4][crc >> 24] ^ zr_crc_table[3][data[4]] ^ zr_crc_table[2][data[5]]
          ^ zr_crc_table[1][data[6]] ^ zr_crc_table[0][data[7]];
      }
      for (; size > 0; data++, size--)
        crc = zr_crc_table[0][(crc ^ *data) & 255] ^ crc >> 8;
      return crc;
    }

    #ifdef ZR_CRC_HARDWARE
    ZR_CRC_TARGET static uint32_t zr_crc_hardware(uint32_t crc, const unsigned char *data, size_t size)
    {
      uint64_t word;
      for (; size >= 8; data += 8, size -= 8) {
        memcpy(&word, data, 8);
        crc = ZR_CRC_8(crc, word);
      }
      for (; size > 0; data++, size--)
        crc = ZR_CRC_1(crc, *data);
      return crc;
    }
    #endif

    static uint32_t (*zr_crc)(uint32_t, const unsigned char *, size_t) = zr_crc_software;

    static void zr_crc_choose(int hardware)
    {
      uint32_t value, number, bit;
      for (number = 0; number < 256; number++) {
        for (value = number, bit = 0; bit < 8; bit++)
          value = value >> 1 ^ (0x82F63B78u & (0u - (value & 1)));
        zr_crc_table[0][number] = value;
      }
      for (bit = 1; bit < 8; bit++)
        for (number = 0; number < 256; number++)
          zr_crc_table[bit][number] = zr_crc_table[bit - 1][number] >> 8
            ^ zr_crc_table[0][zr_crc_table[bit - 1][number] & 255];
      zr_crc = zr_crc_software;
    #ifdef ZR_CRC_HARDWARE
      if (hardware && zr_crc_has_hardware())
        zr_crc = zr_crc_hardware;
    #else
      (void) hardware;
    #endif
    }
    """
    uint32_t zr_crc(uint32_t crc, const unsigned char *data, size_t size) noexcept nogil
    void zr_crc_choose(int hardware) noexcept

zr_crc_choose(1)


def _choose(hardware):
    """For tests: calculate with the instructions of the processor, where it has them, or with the tables."""
    zr_crc_choose(1 if hardware else 0)


cdef object _far = 1 << 62
# What the pure twin takes for a longer end.
cdef int64_t OFFSET_MAX = 0xFFFFFFFF


cdef inline uint32_t slot_value(uint32_t crc, uint64_t index, uint64_t end, uint32_t mark) noexcept nogil:
    """The checksum of an entry, from that of its bytes (still inverted)."""
    cdef unsigned char[12] place
    cdef int byte
    for byte in range(8):
        place[byte] = <unsigned char> (index >> (8 * byte))
    for byte in range(4):
        place[8 + byte] = <unsigned char> (end >> (8 * byte))
    crc = zr_crc(crc, place, 12) ^ <uint32_t> 0xFFFFFFFF
    if mark:
        crc ^= <uint32_t> 0xA5A5A5A4 if mark == 1 else <uint32_t> 0x5A5A5A58
    crc = crc & <uint32_t> 0xFFFFFFFC | mark
    return crc if crc else 4


cdef int hold(data, Py_buffer *view) except -1:
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except BufferError as error:
        raise TypeError(str(error)) from None
    return 0


def crc32c(data, value=0):
    """The CRC32C (Castagnoli) of some bytes; of more bytes in several steps, by the ``value`` of those before."""
    cdef Py_buffer view
    cdef uint32_t crc
    value = PyNumber_Index(value)
    if not 0 <= value <= OFFSET_MAX:
        raise ValueError(f"a checksum is 0 to {OFFSET_MAX}, not {shown(value)}")
    crc = value
    hold(data, &view)
    crc = zr_crc(crc ^ <uint32_t> 0xFFFFFFFF, <const unsigned char *> view.buf, view.len) ^ <uint32_t> 0xFFFFFFFF
    PyBuffer_Release(&view)
    return crc


def checksum_bytes(batch, base, mark):
    """The checksums of a batch whose data begins ``base`` bytes behind the start of the file's: 4 bytes for each entry.

    The first one gets the ``mark``, 0 to 2. ValueError for another one, and when an end lies at 4 GiB or more.
    """
    cdef EntryBatch entries
    cdef Py_ssize_t position
    cdef const unsigned char *data
    cdef unsigned char *slot
    cdef uint64_t shift, start, end
    cdef uint32_t value, first
    cdef bytes table
    if not isinstance(batch, EntryBatch):
        raise TypeError(f"expected an EntryBatch, not {type(batch).__name__}")
    entries = batch
    base = PyNumber_Index(base)
    mark = PyNumber_Index(mark)
    if not 0 <= mark <= 2:
        raise ValueError(f"a mark is 0 to 2, not {shown(mark)}")
    if not 0 <= base <= OFFSET_MAX - batch_size(entries):
        raise ValueError(f"{batch_size(entries)} bytes behind offset {shown(base)} end beyond {OFFSET_MAX}")
    shift = base
    first = mark
    table = PyBytes_FromStringAndSize(NULL, 4 * entries.count)
    slot = <unsigned char *> PyBytes_AS_STRING(table)
    data = entries.start
    start = 0
    for position in range(entries.count):
        end = entries.offsets[position + 1] - entries.offsets[0]
        value = slot_value(
            zr_crc(<uint32_t> 0xFFFFFFFF, data + start, end - start), entries.first_index + position, end + shift, first
        )
        first = 0
        slot[0] = value & 0xFF
        slot[1] = (value >> 8) & 0xFF
        slot[2] = (value >> 16) & 0xFF
        slot[3] = (value >> 24) & 0xFF
        slot += 4
        start = end
    return table


def count_matching(first_index, data, ends, slots, low, high):
    """How many entries, from the first on, match their checksums, of those at the positions ``low`` up to, not
    including, ``high`` of a file that starts at ``first_index``.

    ``ends`` and ``slots`` are arrays of type "I", of the file's end offsets and of its checksums from ``low`` on;
    ``data`` the bytes of these entries. An entry that is not wholly in ``data`` does not match. ValueError when a
    position is not in the arrays.
    """
    cdef Py_buffer bytes_view, ends_view, slots_view
    cdef const uint32_t *end_of
    cdef const uint32_t *slot_of
    cdef const unsigned char *bytes_of
    cdef Py_ssize_t first, last, position
    cdef int64_t base, start, end, size
    cdef uint64_t index
    cdef uint32_t value
    for table in (ends, slots):
        if not isinstance(table, array) or table.typecode != "I":
            raise TypeError(f"a table is an array of type I, not {shown(table)}")
    first_index, low, high = PyNumber_Index(first_index), PyNumber_Index(low), PyNumber_Index(high)
    if not (0 <= low <= high <= len(ends) and high - low <= len(slots) and 0 <= first_index < _far):
        raise ValueError(f"positions {shown(low)} to {shown(high)} in tables of {len(ends)} and {len(slots)}")
    first, last, index = low, high, first_index
    hold(data, &bytes_view)
    try:
        PyObject_GetBuffer(ends, &ends_view, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(slots, &slots_view, PyBUF_SIMPLE)
            end_of = <const uint32_t *> ends_view.buf
            slot_of = <const uint32_t *> slots_view.buf
            bytes_of = <const unsigned char *> bytes_view.buf
            size = bytes_view.len
            base = start = end_of[first - 1] if first else 0
            for position in range(first, last):
                end = end_of[position]
                if not start <= end <= base + size:
                    last = position
                    break
                value = slot_of[position - first]
                if value == 0 or value & 3 == 3 or value != slot_value(
                    zr_crc(<uint32_t> 0xFFFFFFFF, bytes_of + (start - base), end - start),
                    index + position, end, value & 3
                ):
                    last = position
                    break
                start = end
            PyBuffer_Release(&slots_view)
        finally:
            PyBuffer_Release(&ends_view)
    finally:
        PyBuffer_Release(&bytes_view)
    return last - first


def find_end(index, data, start, low, high, step, slot):
    """Where an entry ends, by its checksum: the first of ``low``, ``low + step``, ... below ``high`` for which it
    matches; None when there is no one.

    ``data`` are the bytes of the file's data from ``start`` on, where the entry begins; ``high`` is clipped to them.
    """
    cdef Py_buffer view
    cdef uint64_t entry_index
    cdef int64_t begin, end, stop, stride, done
    cdef uint32_t crc = <uint32_t> 0xFFFFFFFF, wanted
    cdef bint found = False
    index, start, step = PyNumber_Index(index), PyNumber_Index(start), PyNumber_Index(step)
    low, high, slot = PyNumber_Index(low), PyNumber_Index(high), PyNumber_Index(slot)
    if not (0 <= index < _far and 0 <= start <= low <= OFFSET_MAX and step >= 1 and 0 <= slot <= OFFSET_MAX):
        raise ValueError(f"no entry {shown(index)} begins at {shown(start)} and ends from {shown(low)} on")
    hold(data, &view)
    begin, end, stride, wanted, entry_index = start, low, min(step, OFFSET_MAX), slot, index
    stop = max(min(high, begin + view.len + 1, OFFSET_MAX), 0)
    done = begin
    while wanted and wanted & 3 != 3 and end < stop:
        crc = zr_crc(crc, <const unsigned char *> view.buf + (done - begin), end - done)
        done = end
        if slot_value(crc, entry_index, end, wanted & 3) == wanted:
            found = True
            break
        end += stride
    PyBuffer_Release(&view)
    return end if found else None
