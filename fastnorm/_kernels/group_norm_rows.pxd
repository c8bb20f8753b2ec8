"""Groups that lie in one piece and whose planes are short: rows of D·S elements, normalised as
layer norm does it, where gamma and beta, a value for each element, come again with every sample.

Backward is cut into ranges of samples by tiles of groups. A block adds up the parameter gradients
of its tile over its samples; the ranges depend on the shape alone and are added in their order.
"""

from libc.stdlib cimport free

from fastnorm._kernels.arrays cimport FLOAT32, real
from fastnorm._kernels.blocks cimport MAX_PARTIALS, ceil_div, threads_for
from fastnorm._kernels.group_norm_task cimport GroupRows
from fastnorm._kernels.memory cimport Writer, flush, open_writer
from fastnorm._kernels.operands cimport Scratch, nth, of_this_thread, release
from fastnorm._kernels.rows cimport CHUNK
from fastnorm._kernels.rows_backward cimport backward_group, backward_long_row
from fastnorm._kernels.rows_task cimport FLUSH_ROWS, Task, allocate_partials, begin, clear_sums
from fastnorm._kernels.rows_task cimport flush_sums
from fastnorm._kernels.vectors cimport Vector, store
from fastnorm._pool cimport parallel_for

cdef enum:
    TILE = 1024                 # elements of a sample that a block takes at least
    ABREAST = 16                # channels whose gradients are added up together


cdef inline void add_samples(
    GroupRows* g, Py_ssize_t range_, Py_ssize_t tile, real* sums,
    real* x_scratch, real* dy_scratch, real* dx_scratch,
) noexcept nogil:
    cdef Task* t = &g.task
    cdef Py_ssize_t width = t.period * t.n
    cdef Py_ssize_t first = tile * g.groups_per_tile
    cdef Py_ssize_t last = min(first + g.groups_per_tile, t.period)
    cdef Py_ssize_t sample = range_ * g.samples_per_range, unflushed = 0
    cdef Py_ssize_t stop = min(sample + g.samples_per_range, t.rows // t.period)
    cdef Py_ssize_t group, count, index
    cdef double* partial = g.partials + 2 * range_ * width
    cdef real* dgamma = sums + 2 * range_ * width
    cdef real* dbeta = dgamma + width
    cdef Writer writer
    open_writer(&writer, t.route, t.y.direct)
    clear_sums(partial + first * t.n, dgamma + first * t.n, (last - first) * t.n)
    clear_sums(partial + width + first * t.n, dbeta + first * t.n, (last - first) * t.n)
    while sample < stop:
        group = first
        while group < last:
            count = min(last - group, t.group)
            index = sample * t.period + group
            if t.n <= CHUNK:
                backward_group(
                    t, index, count, NULL, dgamma + group * t.n, dbeta + group * t.n, t.n,
                    x_scratch, dy_scratch, dx_scratch, &writer,
                )
            else:
                backward_long_row(
                    t, index, dgamma + group * t.n, dbeta + group * t.n,
                    x_scratch, dy_scratch, dx_scratch, &writer,
                )
            group += count
        sample += 1
        unflushed += 1
        if unflushed == FLUSH_ROWS or sample == stop:
            flush_sums(partial + first * t.n, dgamma + first * t.n, (last - first) * t.n)
            flush_sums(partial + width + first * t.n, dbeta + first * t.n, (last - first) * t.n)
            unflushed = 0
    flush(&writer)


cdef inline void samples_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef GroupRows* g = <GroupRows*> task
    cdef Py_ssize_t range_ = block // g.tiles, tile = block % g.tiles
    cdef Scratch scratch = of_this_thread(g.task.scratch)
    if g.task.dtype == FLOAT32:
        add_samples(
            g, range_, tile, <float*> g.sums,
            <float*> nth(scratch, 0), <float*> nth(scratch, 1), <float*> nth(scratch, 2),
        )
    else:
        add_samples(
            g, range_, tile, <double*> g.sums,
            <double*> nth(scratch, 0), <double*> nth(scratch, 1), <double*> nth(scratch, 2),
        )


cdef inline void store_gradients(
    GroupRows* g, Vector gradient, Py_ssize_t channel, Py_ssize_t n, const double* partials
) noexcept nogil:
    """Of n channels, at most ABREAST: the elements of each in all ranges. One after another each
    addition would wait for the one before."""
    cdef double totals[ABREAST]
    cdef Py_ssize_t _range, i, k
    for k in range(n):
        totals[k] = 0
    partials += channel * g.s
    for _range in range(g.ranges):
        for i in range(g.s):
            for k in range(n):
                totals[k] += partials[k * g.s + i]
        partials += 2 * g.task.period * g.task.n
    store(gradient, channel, n, totals)


cdef inline void gradients_block(void* task, Py_ssize_t tile) noexcept nogil:
    cdef GroupRows* g = <GroupRows*> task
    cdef Task* t = &g.task
    cdef Py_ssize_t group = t.n // g.s, channel = tile * g.groups_per_tile * group, n
    cdef Py_ssize_t last = min((tile + 1) * g.groups_per_tile, t.period) * group, which
    while channel < last:
        n = min(last - channel, <Py_ssize_t> ABREAST)
        for which in range(2):
            store_gradients(
                g, t.dbeta if which else t.dgamma, channel, n, g.partials + which * t.period * t.n
            )
        channel += n


cdef inline bint backward_rows_of_groups(GroupRows* g, int num_threads) noexcept nogil:
    """False: no memory, and nothing was written."""
    cdef Task* t = &g.task
    cdef int team = begin(t, num_threads)
    cdef Py_ssize_t samples = t.rows // t.period, width = t.period * t.n
    g.groups_per_tile = min(ceil_div(TILE, t.n), t.period)
    g.tiles = ceil_div(t.period, g.groups_per_tile)
    g.samples_per_range = max(
        <Py_ssize_t> FLUSH_ROWS,
        ceil_div(samples, max(MAX_PARTIALS // g.tiles, <Py_ssize_t> 1)),
    )
    g.ranges = ceil_div(samples, g.samples_per_range)
    g.partials = NULL
    if team:
        g.partials = allocate_partials(g.ranges, width, t.dtype, NULL, &g.sums)
    cdef bint has_memory = g.partials != NULL
    if has_memory:
        parallel_for(samples_block, g, g.ranges * g.tiles, team)
        parallel_for(
            gradients_block, g, g.tiles,
            threads_for(g.ranges * 2 * width * sizeof(double), team),
        )
    release(&t.scratch)
    free(g.partials)
    return has_memory
