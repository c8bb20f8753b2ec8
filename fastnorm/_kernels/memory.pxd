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
    ctypedef struct Sink "fastnorm_sink":
        char bytes[512]
    void prefetch "fastnorm_prefetch"(const void* memory, Py_ssize_t num_bytes)
    void stream "fastnorm_stream"(void* to, const Sink* sink, Py_ssize_t num_bytes)
    bint CAN_STREAM "FASTNORM_CAN_STREAM"


cdef inline bint streams(Py_ssize_t num_bytes) noexcept nogil:
    """Whether a call that reads and writes so many bytes in all should write past the cache."""
    return CAN_STREAM and num_bytes > last_cache_bytes() // 8 * 5


cdef struct Writer:
    Sink sink
    bint streams
    char* begin                 # where the content of the sink belongs
    Py_ssize_t held             # bytes of it


cdef inline void open_writer(Writer* w, bint streams) noexcept nogil:
    w.streams, w.begin, w.held = streams, NULL, 0


cdef inline void flush(Writer* w) noexcept nogil:
    if w.held:
        stream(w.begin, &w.sink, w.held)
        w.held = 0


cdef inline real* place(Writer* w, real* y, Py_ssize_t* n) noexcept nogil:
    """Where to compute what belongs to y, n elements, and in n, how many of them. The writer must
    be flushed after the last."""
    cdef char* p = <char*> y
    cdef Py_ssize_t size = sizeof(real), begun, room
    cdef real* target
    if not w.streams:
        return y
    if w.held + size > <Py_ssize_t> sizeof(Sink) or p != w.begin + w.held:
        flush(w)
    if w.held == 0:
        begun = <Py_ssize_t> (<uintptr_t> p % LINE)
        if begun:  # in place, up to the next line
            n[0] = min(n[0], max((LINE - begun) // size, <Py_ssize_t> 1))
            return y
        w.begin = p
    room = <Py_ssize_t> sizeof(Sink) - w.held
    n[0] = min(n[0], room // size)
    target = <real*> (w.sink.bytes + w.held)
    w.held += n[0] * size
    return target
