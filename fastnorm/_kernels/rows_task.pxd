"""The task of layer, RMS and weight norm over rows, the parts that these are cut into, and a row's
two numbers."""

cimport numpy as cnp
from libc.math cimport sqrt
from libc.stdint cimport uintptr_t
from libc.stdlib cimport malloc
from libc.string cimport memset

from fastnorm._kernels.arrays cimport NONE, Dtype, itemsize_of, real
from fastnorm._kernels.blocks cimport BLOCKS_PER_THREAD, ceil_div, rows_per_block, threads_for
from fastnorm._kernels.memory cimport ASKED_BYTES, IN_CACHE, LINE, PAGE, PAST_CACHE, RUN_BYTES
from fastnorm._kernels.memory cimport Route, apart_from, choose_route
from fastnorm._kernels.moments cimport Extent, Moments, are_usable, is_usable, rescue
from fastnorm._kernels.operands cimport BLOCK, SIDE, WIDE_BLOCK, Operand, Scratch, reserve
from fastnorm._kernels.operands cimport are_adjacent, set_operand, take_as_stored
from fastnorm._kernels.rows cimport CHUNK
from fastnorm._kernels.vectors cimport Vector, load, store

cdef extern from "lanes.h" nogil:
    enum:
        ALL_LANES "FASTNORM_ALL_LANES"
        # A turned array is read by runs of so many elements: the longer, the better.
        MAX_GROUP "FASTNORM_MAX_GROUP"

cdef enum:
    # Rows that go through the passes together, MAX_GROUP at most, of arrays that are not turned so
    GROUP = 16                  # many,
    GROUP_BYTES = 16384         # and bytes: half of L1.
    LARGE_GROUP = 32            # Passes that compute much take more of them from memory, to hide
    LARGE_GROUP_BYTES = 65536   # its pauses, and find them again in L2
    ABREAST = 4                 # rows whose gradients are taken together
    AHEAD_BYTES = 16384         # further on, at least, memory is asked for
    # Rows near that long, by memory that is fetched best unasked, go through the backward passes as
    # few as are as long together: while they are stored, what the CPU has fetched ahead suffices.
    TURN_BYTES = 1024
    NARROW = 48                 # shorter rows become columns,
    SIDE_BY_SIDE = 32           # so many of them,
    TILE_ROW_BYTES = 4096       # and so do longer ones that lie side by side,
    TILE_COLUMNS = 128          # so many at least: by shorter runs memory is slow
    IN_PLACE = 128              # Rows as long as that are not copied where they need not be: then
    TILES = 8                   # so many tiles are a block, the last of which may be narrow
    PIECE = 16384               # elements of a long row
    FEW_ROWS = 64               # fewer rows than this, if they are long, are cut into pieces
    # Rows whose parameter gradients are added up in the type of x before they go into double.
    FLUSH_ROWS = 32


# Two sums over a row, or a piece of it: Σh and Σ(h·x̂).
cdef struct RowSums:
    double h, hx


# Of a row.
cdef struct RowStatistics:
    double mean, rstd


cdef struct Task:
    Dtype dtype                 # that is computed in
    bint centred                # layer norm; the others take the mean as 0
    bint by_length              # weight norm: x̂ = x/‖x‖, and y = x̂·g
    Py_ssize_t rows, n          # the view (M, N)
    Py_ssize_t rows_per_block
    Py_ssize_t blocks_together  # of rows that lie side by side, in a backward pass
    Py_ssize_t group            # rows that go through the passes together
    bint in_place               # where they lie side by side: tiles are parts of the arrays
    Py_ssize_t pieces           # of a row
    Route route                 # see memory.pxd
    Operand x                   # (M, N)
    Operand dy                  # (M, N)
    Operand y                   # (M, N), y or dx
    Dtype stored                # what the elements of their blocks are
    Scratch scratch             # for blocks of these
    Py_ssize_t period           # rows with parameters of their own, which the next rows share
    const void* gamma           # (period, N) or NULL
    const void* beta            # (period, N) or NULL
    double eps
    double* mean                # (M,) or NULL
    double* rstd                # (M,) or NULL
    Moments* moments            # (M, pieces)
    RowStatistics* statistics   # (M,)
    RowSums* row_sums           # (M, pieces)
    double* partials            # (blocks, 2, N): dgamma and dbeta of a block
    void* sums                  # (blocks, 2, N): the same of at most FLUSH_ROWS rows, in `dtype`
    Vector dgamma
    Vector dbeta
    Vector g                    # (M,), of weight norm, as below
    Vector norm                 # (M,) float64
    Vector dg                   # (M,)


cdef inline void set_view(
    Task* t, Dtype dtype, bint centred, Py_ssize_t rows, Py_ssize_t n
) noexcept nogil:
    t.dtype, t.centred, t.by_length = dtype, centred, False
    t.rows, t.n, t.period = rows, n, 1
    t.gamma = t.beta = NULL
    t.pieces, t.stored = ceil_div(n, PIECE), dtype
    t.rows_per_block = rows_per_block(rows, n * itemsize_of(dtype))


cdef inline bint is_direct(Task* t) noexcept nogil:
    return t.x.direct and t.y.direct and t.dy.direct


cdef inline void use_as_stored(Task* t) noexcept nogil:
    """Of passes whose primitives take 16 bits: all but those over narrow rows."""
    if t.n >= NARROW:
        take_as_stored(&t.x, &t.dy, &t.y, t.dtype)
    t.stored = t.x.dtype if is_direct(t) else t.dtype


cdef inline bint any_turned(Task* t) noexcept nogil:
    return t.x.turned or t.y.turned or t.dy.turned


cdef inline bint goes_by_tiles(Task* t) noexcept nogil:
    """Whether rows are not transposed: rows_turned.pxd."""
    return (
        t.n >= NARROW and t.n * itemsize_of(t.dtype) <= TILE_ROW_BYTES and t.period == 1
        and not (t.by_length and t.dy.dtype != NONE)
        and are_adjacent(&t.x, t.n) and are_adjacent(&t.y, t.n)
        and (t.dy.dtype == NONE or are_adjacent(&t.dy, t.n))
    )


cdef inline bint is_plain(const Operand* o, Dtype dtype) noexcept nogil:
    """Whether rows that lie side by side are of this type, and many of them next to each other. No
    array is plain too."""
    cdef int last = o.axes - 1, i
    if o.dtype == NONE:
        return True
    for i in range(o.axes):
        if o.stride[i] % itemsize_of(dtype):
            return False
    return (
        o.dtype == dtype and <uintptr_t> o.data % itemsize_of(dtype) == 0
        and o.stride[last - 1] == itemsize_of(dtype) and o.size[last - 1] >= MAX_GROUP
    )


cdef inline Py_ssize_t tile_step(Task* t) noexcept nogil:
    """Elements from one row of a tile to the next: an odd number of lines."""
    return t.group + SIDE


cdef inline void set_group(Task* t) noexcept nogil:
    """What is in a group does not show in the result."""
    cdef bint is_forward = t.dy.data == NULL
    cdef Py_ssize_t row_bytes = (1 if is_forward else 2) * t.n * itemsize_of(t.stored)
    t.in_place = (
        goes_by_tiles(t) and t.n >= IN_PLACE and is_plain(&t.x, t.dtype) and is_plain(&t.y, t.dtype)
        and is_plain(&t.dy, t.dtype)
    )
    if t.in_place:
        t.group = MAX_GROUP
    elif goes_by_tiles(t):
        t.group = max(2 * WIDE_BLOCK // row_bytes, <Py_ssize_t> TILE_COLUMNS)
        t.group = min(t.group, <Py_ssize_t> MAX_GROUP)
        t.group -= t.group % SIDE_BY_SIDE
    elif any_turned(t):
        t.group = min(WIDE_BLOCK // (t.n * itemsize_of(t.dtype)), <Py_ssize_t> MAX_GROUP)
    elif is_forward or t.by_length or not is_direct(t):  # blocks in scratch memory stay in L1
        t.group = min(GROUP_BYTES // row_bytes, <Py_ssize_t> GROUP)
    else:
        t.group = min(LARGE_GROUP_BYTES // row_bytes, <Py_ssize_t> LARGE_GROUP)
        if t.route == IN_CACHE:
            t.group = min(t.group, max(GROUP_BYTES // row_bytes, <Py_ssize_t> ABREAST))
    if t.n > CHUNK:  # rows that go through the passes chunk by chunk
        t.group = 1
    t.group = max(t.group, <Py_ssize_t> 1)


cdef inline void set_rows(
    Task* t, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y, bint takes_16_bits
) noexcept:
    """The arrays of the view, or None. takes_16_bits: so do the primitives of its passes."""
    set_operand(&t.x, x, t.dtype)
    set_operand(&t.dy, dy, t.dtype)
    set_operand(&t.y, y, t.dtype)
    if takes_16_bits:
        use_as_stored(t)


cdef inline Py_ssize_t elements_ahead(
    Task* t, Py_ssize_t index, Py_ssize_t count
) noexcept nogil:
    """How much further on memory is asked for while `count` rows go through the passes: that of
    the next ones, or further where these are done sooner than memory has it."""
    if not is_direct(t) or index + 2 * count > t.rows:
        return 0
    return max(count * t.n, AHEAD_BYTES // itemsize_of(t.stored))


cdef inline Py_ssize_t rows_at_once(Task* t) noexcept nogil:
    """So many whole rows are mapped by one call: as many as a writer places at once. Those of which
    each has parameters of its own go one by one."""
    cdef Py_ssize_t num_bytes = RUN_BYTES if t.route == PAST_CACHE else ASKED_BYTES
    if t.period > 1:
        return 1
    if t.route == IN_CACHE:
        return t.group
    return max(num_bytes // (t.n * itemsize_of(t.stored)), <Py_ssize_t> 1)


cdef inline Py_ssize_t rows_together(Task* t) noexcept nogil:
    """Of a block of a turned array, which is read, and written, by runs as long as it has rows."""
    return t.group * (TILES if t.in_place else 1)


cdef inline bint reserve_scratch(Task* t, int num_threads) noexcept nogil:
    """False: no memory."""
    cdef Py_ssize_t elements
    if is_direct(t) and t.n >= NARROW:
        return reserve(&t.scratch, 0, num_threads)
    if goes_by_tiles(t):
        elements = max(t.n * tile_step(t), 2 * <Py_ssize_t> ALL_LANES * MAX_GROUP)
        return reserve(&t.scratch, elements * itemsize_of(t.dtype), num_threads)
    return reserve(&t.scratch, WIDE_BLOCK if any_turned(t) else BLOCK, num_threads)


cdef inline int begin(Task* t, int num_threads) noexcept nogil:
    """How many threads the call is worth, and what follows from that. 0: no memory. The scratch is
    to be released."""
    cdef Py_ssize_t num_bytes = t.rows * t.n * itemsize_of(t.x.dtype)
    cdef int team = threads_for(num_bytes, num_threads)
    t.route = choose_route(num_bytes, 2 if t.dy.dtype == NONE else 3, team, False)
    set_group(t)
    return team if reserve_scratch(t, team) else 0


cdef inline const char* lines_of_y(Task* t) noexcept nogil:
    """Where parameters, and their gradients, have lines if they are `apart_from` this: where all
    rows of y have them, if they have them alike. A vector that lies in two takes twice as long to
    load or to store."""
    cdef bint is_alike = (
        t.y.direct and t.y.dtype == t.dtype and t.n * itemsize_of(t.dtype) % LINE == 0
    )
    return t.y.data if is_alike else NULL


cdef inline double* allocate_partials(
    Py_ssize_t blocks, Py_ssize_t n, Dtype dtype, const char* y, void** sums
) noexcept nogil:
    """(blocks, 2, n) of double, and in the same memory, apart from y, as many in the type that is
    computed in: what a block adds up of dgamma and dbeta. Each block clears its own, so that
    threads share that work, too. NULL: no memory."""
    cdef Py_ssize_t count = 2 * blocks * n, num_bytes = count * sizeof(double)
    cdef char* memory = <char*> malloc(num_bytes + count * itemsize_of(dtype) + PAGE)
    if memory != NULL:
        sums[0] = apart_from(y, memory + num_bytes)
    return <double*> memory


cdef inline void clear_sums(double* partial, real* sums, Py_ssize_t n) noexcept nogil:
    memset(partial, 0, n * sizeof(double))
    memset(sums, 0, n * sizeof(real))


cdef inline void flush_sums(
    double* restrict partial, real* restrict sums, Py_ssize_t n
) noexcept nogil:
    """partial += sums;  sums = 0"""
    cdef Py_ssize_t i
    for i in range(n):
        partial[i] += sums[i]
        sums[i] = 0


cdef inline Py_ssize_t unflushed_rows(Task* t, Py_ssize_t index) noexcept nogil:
    """Rows of the block before this one whose parameter gradients are not yet in double."""
    return index % t.rows_per_block % FLUSH_ROWS


cdef inline Py_ssize_t rows_left(Task* t, Py_ssize_t index) noexcept nogil:
    """Of the block."""
    return t.rows_per_block - index % t.rows_per_block


cdef inline bint are_flushed(Task* t, Py_ssize_t index) noexcept nogil:
    """Whether those of the rows before this one are, all of them."""
    return unflushed_rows(t, index) == 0 or index == t.rows


cdef inline bint is_cut(Task* t, int team) noexcept nogil:
    """Whether long rows are cut into pieces, because they are too few for the threads, or for the
    parameter gradients that a block of whole rows adds up. It does not show in the result."""
    if t.pieces == 1:
        return False
    if t.dy.dtype != NONE and not t.by_length:
        return t.rows < FEW_ROWS
    return team > 1 and t.rows < BLOCKS_PER_THREAD * team


cdef inline Py_ssize_t piece_length(Task* t, Py_ssize_t piece) noexcept nogil:
    return min(<Py_ssize_t> PIECE, t.n - piece * PIECE)


cdef inline Py_ssize_t parameters_of(Task* t, Py_ssize_t index) noexcept nogil:
    """Where those of a row begin."""
    return 0 if t.period == 1 else index % t.period * t.n


cdef inline const real* shifted(const real* parameter, Py_ssize_t offset) noexcept nogil:
    return NULL if parameter == NULL else parameter + offset


cdef inline double inverse_or_zero(double norm) noexcept nogil:
    return 0 if norm == 0 else 1 / norm


cdef inline void finish_lengths(
    Task* t, Py_ssize_t index, Py_ssize_t count, const double* squares, double* restrict scale
) noexcept nogil:
    """w = v·scale, with scale = g/‖v‖"""
    cdef double norm[MAX_GROUP]
    cdef double mean, var, inverse_rms
    cdef Extent row
    cdef Py_ssize_t k
    for k in range(count):
        norm[k] = sqrt(squares[k])
    if not are_usable(squares, 0, count, t.dtype):
        for k in range(count):
            row.first, row.step, row.planes, row.s = (index + k) * t.n, t.n, 1, t.n
            if not is_usable(squares[k], t.dtype) and rescue(
                &t.x, row, False, 0, &mean, &var, &inverse_rms
            ):
                norm[k] = sqrt(<double> t.n) / inverse_rms
    store(t.norm, index, count, norm)
    load(t.g, index, count, 1, scale)
    for k in range(count):
        scale[k] = scale[k] * inverse_or_zero(norm[k])


cdef inline void finish_statistics(
    Task* t, Py_ssize_t index, Py_ssize_t count, double* mean, const double* m2,
    double* restrict rstd,
) noexcept nogil:
    """Of `count` rows at once, so that roots and quotients are those of vectors."""
    cdef double var[MAX_GROUP]
    cdef Extent row
    cdef Py_ssize_t k
    if t.by_length:
        finish_lengths(t, index, count, m2, rstd)
        return
    for k in range(count):
        var[k] = m2[k] / t.n
        rstd[k] = 1 / sqrt(var[k] + t.eps)
    if not are_usable(var, t.eps, count, t.dtype):
        for k in range(count):
            if not is_usable(var[k] + t.eps, t.dtype):
                row.first, row.step, row.planes, row.s = (index + k) * t.n, t.n, 1, t.n
                rescue(&t.x, row, t.centred, t.eps, &mean[k], &var[k], &rstd[k])
    if t.rstd != NULL:
        for k in range(count):
            t.rstd[index + k] = rstd[k]
    if t.mean != NULL:
        for k in range(count):
            t.mean[index + k] = mean[k]
