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
        char bytes[2048]
    void prefetch "fastnorm_prefetch"(const void* memory, Py_ssize_t num_bytes)
    void prefetch_far "fastnorm_prefetch_far"(const void* memory, Py_ssize_t num_bytes)
    void stream "fastnorm_stream"(void* to, const Sink* sink, Py_ssize_t num_bytes)
    bint CAN_STREAM "FASTNORM_CAN_STREAM"


cdef enum:
    NEAR_BYTES = 8192               # that L1 can hold beside what is in use


cdef inline void prefetch_ahead(const real* x, Py_ssize_t ahead, Py_ssize_t n) noexcept nogil:
    """n elements, `ahead` elements further on."""
    if ahead * <Py_ssize_t> sizeof(real) > NEAR_BYTES:
        prefetch_far(x + ahead, n * sizeof(real))
    else:
        prefetch(x + ahead, n * sizeof(real))


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


cdef inline char* place_bytes(
    Writer* w, char* p, Py_ssize_t size, Py_ssize_t* n
) noexcept nogil:
    """Where to compute what belongs to p, n elements of `size` bytes, and in n, how many of them.
    The writer must be flushed after the last."""
    cdef Py_ssize_t begun, room
    cdef char* target
    if not w.streams:
        return p
    if w.held + size > <Py_ssize_t> sizeof(Sink) or p != w.begin + w.held:
        flush(w)
    if w.held == 0:
        begun = <Py_ssize_t> (<uintptr_t> p % LINE)
        if begun:  # in place, up to the next line
            n[0] = min(n[0], max((LINE - begun) // size, <Py_ssize_t> 1))
            return p
        w.begin = p
    room = <Py_ssize_t> sizeof(Sink) - w.held
    n[0] = min(n[0], room // size)
    target = w.sink.bytes + w.held
    w.held += n[0] * size
    return target


cdef inline real* place(Writer* w, real* y, Py_ssize_t* n) noexcept nogil:
    """The same for a result that is computed where it belongs."""
    if not w.direct:
        return y
    return <real*> place_bytes(w, <char*> y, sizeof(real), n)
