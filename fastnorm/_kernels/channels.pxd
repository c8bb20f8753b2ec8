"""The engine of batch and weight norm, which keep statistics per channel of an (N, C, S) view.

Every contiguous array with a channel axis is such a view: N is what stands before the axis, S what
stands after it. A pass reduces each channel over N and S to two numbers, turns them into
coefficients, and maps each element with its channel's coefficients. The elements lie in one of two
ways:

    planes      S is long: a channel is N runs of S elements, summed in lanes (rows.pxd)
    columns     S is short or 1: rows of C·S columns are reduced over N (columns.pxd), then the
                columns of each channel are folded; very narrow rows are taken several at a time

The work is a grid of ranges (of planes or rows) by tiles (of channels). Where there are tiles
enough, a block takes all ranges of its tile and does everything to it while that is in cache; else
there are two phases. The grid depends on the shape alone, and partial results are combined in its
order: any number of threads gives the same bits. Of planes, the ranges depend on N and S only: a
channel's result does not depend on how many there are.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastnorm._kernels.arrays cimport FLOAT32, itemsize_of, real
from fastnorm._kernels.blocks cimport BLOCKS_PER_THREAD, ceil_div, threads_for
from fastnorm._kernels.channels_columns cimport map_columns, reduce_columns
from fastnorm._kernels.channels_planes cimport map_planes, reduce_planes, reduce_rows, sums_rows
from fastnorm._kernels.channels_task cimport COEFFICIENTS, FEW, MAX_TILE
from fastnorm._kernels.channels_task cimport MIN_RUN, MOMENTS, NO_MAP, NO_REDUCTION, Block, Channels
from fastnorm._kernels.channels_task cimport Grid, Tile, at_sample, block_at, is_read_whole
from fastnorm._kernels.channels_task cimport mapped_view, plan_whole_tiles, range_count
from fastnorm._kernels.channels_task cimport range_width, read_tile, widen_tiles
from fastnorm._kernels.columns cimport STRIP
from fastnorm._kernels.memory cimport IN_CACHE, PAGE, apart_from, bytes_ahead
from fastnorm._kernels.memory cimport choose_route, last_first
from fastnorm._kernels.operands cimport BLOCK, Scratch, nth, of_this_thread, release, reserve
from fastnorm._pool cimport parallel_for


# From the partial results to the channels' two numbers


cdef inline void combine_ranges(Channels* t, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Fold all ranges of these columns into the first one; Chan's formula, for all parts at
    once."""
    cdef double mean[STRIP]
    cdef double* first = t.first
    cdef double* second = t.second
    cdef Py_ssize_t r, j, count, whole = 0, last, base
    cdef double weight, tail_weight, delta
    if t.reduction != MOMENTS:
        for r in range(1, t.grid.ranges):
            base = r * t.width
            for j in range(start, min(stop, range_width(t, r))):
                first[j] += first[base + j]
                second[j] += second[base + j]
        return
    for r in range(t.grid.ranges):
        if range_width(t, r) == t.width:
            whole += range_count(t, r)
    while start < stop:
        last = min(stop, start + STRIP)
        memset(mean, 0, sizeof(mean))
        for r in range(t.grid.ranges):
            base = r * t.width
            count = range_count(t, r)
            weight = <double> count / whole
            tail_weight = <double> count / (whole + 1)
            for j in range(start, min(last, range_width(t, r))):
                # Relative to the first: equal means have that mean exactly.
                mean[j - start] += (first[base + j] - first[j]) * (
                    tail_weight if j < t.tail else weight
                )
        for j in range(start, last):
            mean[j - start] += first[j]
        for r in range(t.grid.ranges):
            base = r * t.width
            count = range_count(t, r)
            for j in range(start, min(last, range_width(t, r))):
                delta = first[base + j] - mean[j - start]
                second[j] = (second[j] if r else 0) + (second[base + j] + count * (delta * delta))
        for j in range(start, last):
            first[j] = mean[j - start]
        start = last


cdef inline Py_ssize_t column_count(Channels* t, Py_ssize_t column) noexcept nogil:
    return t.units + 1 if column < t.tail else t.units


cdef inline void fold_channel(
    Channels* t, Py_ssize_t channel, double* first, double* second
) noexcept nogil:
    """The two numbers of a channel from those of its columns."""
    cdef Py_ssize_t repeat, j, start, stop
    cdef double delta, base = t.first[channel * t.inner]
    cdef double total = <double> t.n * t.s
    first[0], second[0] = 0, 0
    for repeat in range(t.repeats):
        start = (repeat * t.c + channel) * t.inner
        stop = start + t.inner
        for j in range(start, stop):
            if t.reduction == MOMENTS:  # relative to one of them: see `combine_ranges`
                first[0] += (t.first[j] - base) * (column_count(t, j) / total)
            else:
                first[0] += t.first[j]
            second[0] += t.second[j]
    if t.reduction == MOMENTS:
        first[0] += base
        for repeat in range(t.repeats):
            start = (repeat * t.c + channel) * t.inner
            stop = start + t.inner
            for j in range(start, stop):
                delta = t.first[j] - first[0]
                second[0] += column_count(t, j) * (delta * delta)


# The phases


cdef inline void prepare_channels(Channels* t, Block b) noexcept nogil:
    cdef Py_ssize_t channel = b.first_channel
    while t.prepare != NULL and channel < b.last_channel:
        t.prepare(t, channel, min(b.last_channel - channel, <Py_ssize_t> FEW))
        channel += FEW


cdef inline void reduce_typed(
    Channels* t, Block b, real* x_scratch, real* dy_scratch
) noexcept nogil:
    cdef Py_ssize_t last = b.last_channel
    if t.planes:
        while b.first_channel < last:
            b.last_channel = min(b.first_channel + MAX_TILE, last)
            if sums_rows(t):
                reduce_rows(t, b, x_scratch, dy_scratch)
            else:
                reduce_planes(t, b, x_scratch, dy_scratch)
            b.first_channel = b.last_channel
    else:
        reduce_columns(t, b, x_scratch, dy_scratch)


cdef inline void reduce_tile(Channels* t, Block b) noexcept nogil:
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        reduce_typed(t, b, <float*> nth(scratch, 0), <float*> nth(scratch, 1))
    else:
        reduce_typed(t, b, <double*> nth(scratch, 0), <double*> nth(scratch, 1))


cdef inline void finish_channels(Channels* t, Block b) noexcept nogil:
    cdef double first[FEW]
    cdef double second[FEW]
    cdef Py_ssize_t channel = b.first_channel, n, i
    if t.grid.ranges > 1:
        combine_ranges(t, b.first_column, b.last_column)
    while channel < b.last_channel:
        n = min(b.last_channel - channel, <Py_ssize_t> FEW)
        if t.planes or t.repeats * t.inner == 1:
            t.finish(t, channel, n, t.first + channel, t.second + channel)
        else:
            for i in range(n):
                fold_channel(t, channel + i, &first[i], &second[i])
            t.finish(t, channel, n, first, second)
        channel += n


cdef inline void map_typed(
    Channels* t, Block b, real* x_scratch, real* source_scratch, real* y_scratch
) noexcept nogil:
    if t.planes or t.s >= MIN_RUN:
        map_planes(t, b, x_scratch, source_scratch, y_scratch)
    else:
        map_columns(t, b, x_scratch, source_scratch, y_scratch)


cdef inline void map_tile(Channels* t, Block b) noexcept nogil:
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        map_typed(
            t, b,
            <float*> nth(scratch, 0), <float*> nth(scratch, 1), <float*> nth(scratch, 2),
        )
    else:
        map_typed(
            t, b,
            <double*> nth(scratch, 0), <double*> nth(scratch, 1), <double*> nth(scratch, 2),
        )


# The blocks of the phases: of all samples one after another.


cdef inline void whole_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels copies[2]
    cdef Channels* t = <Channels*> task
    cdef Py_ssize_t tile = index % t.grid.tiles, r
    cdef Channels* reduced
    cdef Channels* mapped
    cdef Tile whole
    cdef Block b
    t = at_sample(t, index // t.grid.tiles, copies)
    b = block_at(t, &t.grid, 0, tile)
    reduced, mapped = t, mapped_view(t)
    if is_read_whole(t, b):
        read_tile(t, b, &whole)
        reduced, mapped = &whole.reduced, &whole.mapped
    prepare_channels(t, b)
    for r in range(t.grid.ranges):
        reduce_tile(reduced, block_at(t, &t.grid, r, tile))
    finish_channels(t, b)
    if t.conclude != NULL:
        t.conclude(t, b.first_channel, b.last_channel)
    if mapped.map == NO_MAP:
        return
    for r in range(mapped.grid.ranges - 1, -1, -1):
        map_tile(mapped, block_at(mapped, &mapped.grid, r, tile))


cdef inline void prepare_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels copies[2]
    cdef Channels* t = <Channels*> task
    t = at_sample(t, index // t.grid.tiles, copies)
    prepare_channels(t, block_at(t, &t.grid, 0, index % t.grid.tiles))


cdef inline void reduce_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels copies[2]
    cdef Channels* t = <Channels*> task
    cdef Py_ssize_t tile = index % t.grid.tiles
    index //= t.grid.tiles
    t = at_sample(t, index // t.grid.ranges, copies)
    reduce_tile(t, block_at(t, &t.grid, index % t.grid.ranges, tile))


cdef inline void finish_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels copies[2]
    cdef Channels* t = <Channels*> task
    t = at_sample(t, index // t.grid.tiles, copies)
    finish_channels(t, block_at(t, &t.grid, 0, index % t.grid.tiles))


cdef inline Py_ssize_t channels_per_conclusion(Channels* t) noexcept nogil:
    return max(FEW // t.group, <Py_ssize_t> 1) * t.group


cdef inline void conclude_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels copies[2]
    cdef Channels* t = <Channels*> task
    cdef Py_ssize_t channels = channels_per_conclusion(t)
    cdef Py_ssize_t blocks = ceil_div(t.c, channels)
    cdef Py_ssize_t channel = index % blocks * channels
    t = at_sample(t, index // blocks, copies)
    t.conclude(t, channel, min(channel + channels, t.c))


cdef inline void map_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels copies[2]
    cdef Channels* t = <Channels*> task
    cdef Grid* grid = &t.map_grid
    cdef Py_ssize_t tile
    if t.route != IN_CACHE and t.reduction != NO_REDUCTION:
        index = last_first(
            index, t.batch * grid.ranges * grid.tiles,
            t.batch * t.n * t.c * t.s * itemsize_of(t.x.dtype),
        )
    tile = index % grid.tiles
    index //= grid.tiles
    t = at_sample(t, index // grid.ranges, copies)
    map_tile(t, block_at(t, grid, index % grid.ranges, tile))


cdef inline const char* vectors_begin(Channels* t) noexcept nogil:
    """Where the coefficients of columns have lines, if they are `apart_from` this."""
    return t.y.data if t.direct and t.stored == t.dtype else NULL


cdef inline bint run(Channels* t, int num_threads) noexcept nogil:
    """All phases over all channels. False where there was no memory, and then nothing is done."""
    cdef Channels* mapped = mapped_view(t)
    cdef Py_ssize_t partials = t.batch * t.grid.ranges * t.width * sizeof(double)
    cdef Py_ssize_t num_bytes = t.batch * t.n * t.c * t.s * itemsize_of(t.x.dtype)
    cdef int team = threads_for(num_bytes, num_threads)
    cdef char* memory
    cdef int operands = 3 if t.dy != NULL else 2
    t.route = choose_route(num_bytes, operands, team, t.planes and t.n > 1)
    if t.conclude != NULL or t.mapped != NULL:
        plan_whole_tiles(t, team)
    elif t.planes:
        # Fewer channels than are enough for any number of threads may be so for these.
        if t.reduction != NO_REDUCTION and t.c >= BLOCKS_PER_THREAD * team:
            t.whole_tiles = True
    elif t.route == IN_CACHE:
        # A block that maps its columns too loses more in cache than it gains: processors fetch the
        # lines beside its own ahead, which another thread may be writing.
        t.whole_tiles = False
        if team == 1:
            widen_tiles(t)
    t.ahead = 0
    if t.direct and t.route != IN_CACHE:
        if not (t.planes and t.whole_tiles):
            t.ahead = bytes_ahead(t.route, operands * num_bytes, t.planes) // itemsize_of(t.stored)
        elif t.n == 1:
            t.ahead = t.grid.channels_per_tile * t.s  # the next tile
    if t.reduction == NO_REDUCTION:
        partials = 0
    memory = <char*> malloc(
        2 * partials + t.batch * COEFFICIENTS * mapped.apart * itemsize_of(t.dtype) + PAGE
    )
    if memory == NULL:
        return False
    if not reserve(&t.scratch, 0 if t.direct else BLOCK, team):
        free(memory)
        return False
    mapped.scratch = t.scratch
    t.first = mapped.first = <double*> memory
    t.second = mapped.second = <double*> (memory + partials)
    t.coefficients = mapped.coefficients = apart_from(vectors_begin(t), memory + 2 * partials)
    mapped.route, mapped.ahead = t.route, t.ahead
    if t.whole_tiles:
        parallel_for(whole_block, t, t.batch * t.grid.tiles, team)
    else:
        parallel_for(prepare_block, t, t.batch * t.grid.tiles, team)
        if t.reduction != NO_REDUCTION:
            parallel_for(reduce_block, t, t.batch * t.grid.ranges * t.grid.tiles, team)
            parallel_for(finish_block, t, t.batch * t.grid.tiles, team)
        if t.conclude != NULL:
            parallel_for(
                conclude_block, t, t.batch * ceil_div(t.c, channels_per_conclusion(t)), team
            )
        if mapped.map != NO_MAP:
            parallel_for(
                map_block, mapped, t.batch * mapped.map_grid.ranges * mapped.map_grid.tiles, team
            )
    release(&t.scratch)
    free(memory)
    return True
