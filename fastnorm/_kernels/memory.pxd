"""How bytes travel. Nothing here changes a result.

What a call writes beyond the size of the last cache will not be found there, yet an ordinary store
reads the line that it writes to. Such calls stream: they compute into a sink, which stays in L1,
and write whole lines from there past the cache.
"""

from libc.stdint cimport uintptr_t

from fastnorm._cpu cimport last_cache_bytes
from fastnorm._kernels.arrays cimport real

cdef extern from "memory.h" nogil:
    enum:
        LINE "FASTNORM_LINE"            # bytes in a line of the cache
        SINK "FASTNORM_SINK"            # bytes of a result that is computed elsewhere
    ctypedef struct Sink "fastnorm_sink":
        char bytes[8256]
    void prefetch "fastnorm_prefetch"(const void* memory, Py_ssize_t num_bytes)
    void prefetch_far "fastnorm_prefetch_far"(const void* memory, Py_ssize_t num_bytes)
    void stream "fastnorm_stream"(char* to, const Sink* sink, Py_ssize_t num_bytes)
    bint CAN_STREAM "FASTNORM_CAN_STREAM"


cdef enum:
    RUN_BYTES = 2048                # of one run of a result in the sink


cdef inline bint streams(Py_ssize_t num_bytes) noexcept nogil:
    """Whether a call that reads and writes so many bytes in all should write past the cache."""
    return CAN_STREAM and num_bytes > last_cache_bytes() // 8 * 5


cdef struct Writer:
    Sink sink
    bint streams
    bint direct                 # results are computed where they belong, or in the sink
    char* begin                 # where the content of the sink belongs
    Py_ssize_t held             # bytes of it


cdef inline void open_writer(Writer* w, bint streams, bint direct) noexcept nogil:
    """Not direct: results are computed elsewhere, and come here as bytes."""
    w.streams, w.direct, w.begin, w.held = streams, direct, NULL, 0


cdef inline void flush(Writer* w) noexcept nogil:
    if w.held:
        stream(w.begin, &w.sink, w.held)
        w.held = 0


cdef inline Py_ssize_t line_offset(const char* p) noexcept nogil:
    return <Py_ssize_t> (<uintptr_t> p % LINE)


cdef inline char* place_bytes(
    Writer* w, char* p, Py_ssize_t size, Py_ssize_t* n
) noexcept nogil:
    """Where to compute what belongs to p, n elements of `size` bytes, and in n, how many of them.
    The writer must be flushed after the last."""
    cdef Py_ssize_t end
    cdef char* target
    if not w.streams:
        return p
    end = line_offset(w.begin) + w.held
    if end + size > RUN_BYTES or p != w.begin + w.held:
        flush(w)
        w.begin = p
        end = line_offset(p)
    n[0] = min(n[0], (RUN_BYTES - end) // size)
    target = w.sink.bytes + end
    w.held += n[0] * size
    return target


cdef inline real* place(Writer* w, real* y, Py_ssize_t* n) noexcept nogil:
    """The same for a result that is computed where it belongs."""
    if not w.direct:
        return y
    return <real*> place_bytes(w, <char*> y, sizeof(real), n)


cdef inline real* place_rows(Writer* w, real* y, Py_ssize_t n) noexcept nogil:
    """The same for n elements at once, at most SINK bytes."""
    if not (w.streams and w.direct):
        return y
    flush(w)
    w.begin, w.held = <char*> y, n * sizeof(real)
    return <real*> (w.sink.bytes + line_offset(w.begin))
