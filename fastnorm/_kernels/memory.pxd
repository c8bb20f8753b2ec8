"""How bytes travel. Nothing here changes a result.

A call that moves more than the last cache holds is large: it goes through memory in its order, and
asks for what comes next. What it writes will not be found in the cache, yet an ordinary store reads
the line that it writes to. Where the CPU does that well, such calls stream: they compute into a
sink, which stays in L1, and write whole lines from there past the cache. Elsewhere they ask for the
lines that they are going to write.
"""

from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from fastnorm._cpu cimport has_far_cache, last_cache_bytes, sees_ahead, streams_well
from fastnorm._kernels.arrays cimport real

cdef extern from "memory.h" nogil:
    enum:
        LINE "FASTNORM_LINE"            # bytes in a line of the cache
        PAGE "FASTNORM_PAGE"
        SINK "FASTNORM_SINK"            # bytes of a result that is computed elsewhere
    ctypedef struct Sink "fastnorm_sink":
        char bytes[12288]
    void prefetch "fastnorm_prefetch"(const void* memory, Py_ssize_t num_bytes)
    void prefetch_far "fastnorm_prefetch_far"(const void* memory, Py_ssize_t num_bytes)
    void stream "fastnorm_stream"(char* to, const char* from_, Py_ssize_t num_bytes)
    Py_ssize_t rows_abreast "fastnorm_rows_abreast"(
        const void* dy, const void* x, const void* y, Py_ssize_t row_bytes)
    bint CAN_STREAM "FASTNORM_CAN_STREAM"
    bint FETCHES_ALONE "FASTNORM_FETCHES_ALONE"     # short rows in order, best without being asked


cdef enum:
    AHEAD = 4096                    # bytes further on memory is asked for, if nothing is said,
    FAR_AHEAD = 8192                # or beside streaming stores
    RUN_BYTES = 1024                # of one run of a result in the sink: half a store queue
    DISTANCE = 512                  # bytes
    ASKED_BYTES = 1024              # of a result at a time,
    ASKED_AHEAD = 2048              # and how much further on
    A_FEW = 8                       # threads that leave some of a server's bandwidth
    RUN_AT_ONCE = 4194304           # bytes that a second sweep takes in the order of memory


cdef enum Route:
    IN_CACHE
    THROUGH_CACHE                   # of a large call: ordinary stores,
    PAST_CACHE                      # or streaming ones


cdef inline Route choose_route(
    Py_ssize_t num_bytes, int operands, int team, bint jumps
) noexcept nogil:
    """Of a call with so many threads and so many arrays of so many bytes, y among them. It is large
    where it finds them no longer in the cache, of which a virtual machine has less than it says,
    and one core alone has the use of less yet; but what jumps from plane to plane loses more by
    streaming. Several find a forward pass's y there for longer.
    To ask for memory when it is in the cache after all costs less than to stream. Threads that have
    all of memory's bandwidth in use should always stream: nothing is read that is only written."""
    cdef Py_ssize_t part = last_cache_bytes() // (8 if streams_well() else 16), parts = 4
    if team == 1 and not jumps:
        parts = 3
    elif team > 1 and operands == 2:
        parts = 8
    if operands * num_bytes < parts * part:
        return IN_CACHE
    return PAST_CACHE if CAN_STREAM and (streams_well() or team > A_FEW) else THROUGH_CACHE


cdef inline Py_ssize_t bytes_ahead(
    Route route, Py_ssize_t num_bytes, bint planes
) noexcept nogil:
    """How far ahead a map that is a phase of its own, and so in the order of memory, asks for what
    it reads in a call that moves so many bytes, or 0. Beside streaming stores most processors see
    less of what comes next. One that sees it still loses sight of it where several coefficients are
    read for each element, of columns, and no part of these is in the last cache."""
    if route == PAST_CACHE and (not sees_ahead() or not planes and num_bytes >= last_cache_bytes()):
        return FAR_AHEAD
    return AHEAD if route == THROUGH_CACHE and not planes else 0


cdef inline Py_ssize_t last_first(
    Py_ssize_t index, Py_ssize_t blocks, Py_ssize_t num_bytes
) noexcept nogil:
    """Which block of so many bytes in all a second sweep takes in this one's turn: what the first
    sweep, of a large call, has read last is in the cache still. Runs of blocks change places, long
    enough for it not to count that each begins anew."""
    cdef Py_ssize_t run = max(RUN_AT_ONCE * blocks // num_bytes, <Py_ssize_t> 1)
    cdef Py_ssize_t first = index // run * run
    return max(blocks - first - run, <Py_ssize_t> 0) + index - first


cdef struct Writer:
    Sink sink
    bint streams
    bint asks                   # for lines ahead that an ordinary store will read
    bint direct                 # results are computed where they belong, or in the sink
    char* begin                 # where the content of the sink belongs
    char* content               # and where that is now
    Py_ssize_t held             # bytes of it


cdef inline void open_writer(Writer* w, Route route, bint direct) noexcept nogil:
    """Not direct: results are computed elsewhere, and come here as bytes."""
    w.streams, w.direct, w.begin, w.held = route == PAST_CACHE, direct, NULL, 0
    # Other CPUs than x86-64 see by themselves that whole lines are written, and do not read them.
    w.asks = CAN_STREAM and route == THROUGH_CACHE
    w.content = w.sink.bytes


cdef inline bint asks_in_groups(Writer* w, Route route) noexcept nogil:
    """Whether those who write several rows at a time ask for the next ones."""
    return w.direct and (w.asks or route == IN_CACHE and has_far_cache())


cdef inline char* at_line(void* p) noexcept nogil:
    """The first line from p on, which is less than LINE bytes further."""
    return <char*> p + (LINE - <Py_ssize_t> (<uintptr_t> p % LINE)) % LINE


cdef inline char* apart_from(const char* y, void* p) noexcept nogil:
    """The first address from p on, which is less than a page further, that is half a page from
    where y is in its page: it has lines where y has them, and nobody who loads from there waits for
    stores to y. A load waits for a store that is whole pages away, as if it were to the same place.
    """
    return <char*> p + (<uintptr_t> y + PAGE // 2 - <uintptr_t> p) % PAGE


cdef inline Py_ssize_t line_offset(const char* p) noexcept nogil:
    return <Py_ssize_t> (<uintptr_t> p % LINE)


cdef inline void flush(Writer* w) noexcept nogil:
    if w.held:
        stream(w.begin, w.content, w.held)
        w.held = 0


cdef inline void flush_lines(Writer* w) noexcept nogil:
    """All that is held, which ends a line at least, but what begins the next: what follows
    continues that."""
    cdef Py_ssize_t rest = (line_offset(w.begin) + w.held) % LINE, whole = w.held - rest
    stream(w.begin, w.content, whole)
    memcpy(w.sink.bytes, w.content + whole, LINE)
    w.begin, w.content, w.held = w.begin + whole, w.sink.bytes, rest


cdef inline char* place_bytes(
    Writer* w, char* p, Py_ssize_t size, Py_ssize_t* n
) noexcept nogil:
    """Where to compute what belongs to p, n elements of `size` bytes, and in n, how many of them.
    The writer must be flushed after the last."""
    cdef char* target
    if w.asks:
        if n[0] * size > ASKED_BYTES:  # a division takes as long as a short row
            n[0] = ASKED_BYTES // size
        prefetch_far(p + ASKED_AHEAD, n[0] * size)
    if not w.streams:
        return p
    if n[0] * size > RUN_BYTES:
        n[0] = RUN_BYTES // size
    if p != w.begin + w.held:
        flush(w)
        w.begin, w.content = p, w.sink.bytes + line_offset(p)
    elif line_offset(w.begin) + w.held + n[0] * size > RUN_BYTES + LINE:
        flush_lines(w)
    target = w.content + w.held
    w.held += n[0] * size
    return target


cdef inline char* place_stored(
    Writer* w, char* y, Py_ssize_t size, Py_ssize_t* n
) noexcept nogil:
    """The same for a result that is computed where it belongs."""
    return place_bytes(w, y, size, n) if w.direct else y


cdef inline real* place(Writer* w, real* y, Py_ssize_t* n) noexcept nogil:
    return <real*> place_stored(w, <char*> y, sizeof(real), n)


cdef inline Py_ssize_t first_run(
    Writer* w, const char* p, Py_ssize_t size, Py_ssize_t n
) noexcept nogil:
    """Of n elements of `size` bytes, how many to place first so that all runs but the last end with
    lines, and no vector lies in two."""
    return min(n, (RUN_BYTES - line_offset(p)) // size) if w.streams else n


cdef inline bint fits_rows(Py_ssize_t rows, Py_ssize_t row_bytes) noexcept nogil:
    """Whether `place_rows` takes them."""
    return rows * row_bytes <= (SINK if row_bytes % LINE == 0 else PAGE)


cdef inline char* place_rows(
    Writer* w, char* y, Py_ssize_t rows, Py_ssize_t row_bytes
) noexcept nogil:
    """The same for all of some rows."""
    if not (w.streams and w.direct):
        return y
    flush(w)
    w.begin, w.content, w.held = y, w.sink.bytes, rows * row_bytes
    if row_bytes % LINE == 0:
        # Away from where x, most often, is in its page: a load waits for a store that is whole
        # pages away, as if it were to the same place.
        w.content += (<uintptr_t> y - DISTANCE) % PAGE // LINE * LINE
    return w.content
