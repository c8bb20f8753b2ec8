"""The forward pass of layer, RMS and weight norm, row by row: y = x̂·gamma + beta with
x̂ = (x - mean)·rstd, or x·rstd, or x·g/‖x‖."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastnorm._kernels.arrays cimport FLOAT32, itemsize_of, real
from fastnorm._kernels.blocks cimport BLOCKS_PER_THREAD, ceil_div
from fastnorm._kernels.memory cimport PAGE, PAST_CACHE, Writer, apart_from, flush
from fastnorm._kernels.memory cimport open_writer, place_stored
from fastnorm._kernels.moments cimport Moments, merge, merge_chunk, no_moments
from fastnorm._kernels.operands cimport Scratch, load_block, of_this_thread, release
from fastnorm._kernels.operands cimport nth, result_block, store_block
from fastnorm._kernels.rows cimport CHUNK, TOGETHER, affine_rows, ask, element, row_moments
from fastnorm._kernels.rows cimport row_squares
from fastnorm._kernels.rows_narrow cimport forward_narrow
from fastnorm._kernels.rows_numbers cimport split_means
from fastnorm._kernels.rows_task cimport MAX_GROUP, NARROW, PIECE, RowStatistics, Task
from fastnorm._kernels.rows_task cimport begin, elements_ahead, finish_statistics, goes_by_tiles
from fastnorm._kernels.rows_task cimport is_cut, is_direct, lines_of_y, parameters_of, piece_length
from fastnorm._kernels.rows_task cimport rows_at_once, rows_together, shifted
from fastnorm._kernels.rows_turned cimport forward_side_by_side
from fastnorm._pool cimport parallel_for

cdef enum:
    MANY_ROWS = 32              # which share parameters: worth a copy of these


cdef inline void group_statistics(
    Task* t, const real* x, Py_ssize_t stride, Py_ssize_t index, Py_ssize_t count,
    Py_ssize_t ahead, double* restrict mean, double* restrict rstd,
) noexcept nogil:
    """Of rows of a chunk at most."""
    cdef double m2[MAX_GROUP]
    cdef Py_ssize_t k = 0, some
    cdef const real* row
    while k < count:
        row, some = element(x, t.stored, k * stride), min(count - k, <Py_ssize_t> TOGETHER)
        if t.centred:
            row_moments(row, t.stored, stride, some, t.n, ahead, mean + k, m2 + k)
        else:
            row_squares(row, t.stored, stride, some, t.n, ahead, m2 + k)
        k += some
    if not t.centred:
        for k in range(count):
            mean[k] = 0
    finish_statistics(t, index, count, mean, m2, rstd)


cdef inline Moments piece_moments(
    Task* t, Py_ssize_t index, Py_ssize_t start, Py_ssize_t n, real* scratch
) noexcept nogil:
    """Of n elements of a row, chunk by chunk."""
    cdef Moments m = no_moments()
    cdef Py_ssize_t stop = start + n, offset, length, stride
    cdef const real* x
    while start < stop:
        length = min(stop - start, <Py_ssize_t> CHUNK)
        offset = index * t.n + start
        x = load_block(&t.x, offset, t.n, 1, length, scratch, &stride)
        merge_chunk(
            &m, x, t.stored, length, t.centred,
            length if is_direct(t) and offset + 2 * length <= t.rows * t.n else 0,
        )
        start += length
    return m


cdef inline void normalize(
    Task* t, const real* x, real* y, Py_ssize_t start, Py_ssize_t n, const real* high,
    const real* scale, const real* shift, Writer* writer, Py_ssize_t ahead,
) noexcept nogil:
    """n elements of a row, whose parameters begin at `start`. x is asked for `ahead` elements
    further on."""
    cdef Py_ssize_t i = 0, length, size = itemsize_of(t.stored)
    cdef char* target
    while i < n:
        length = n - i
        target = place_stored(writer, <char*> y + i * size, size, &length)
        ask(element(x, t.stored, i), t.stored, length, ahead)
        affine_rows(
            1, element(x, t.stored, i), 0, t.stored, <real*> target, 0, length, t.centred,
            high, scale, shift, shifted(<const real*> t.gamma, start + i),
            shifted(<const real*> t.beta, start + i),
        )
        i += length


cdef inline void normalize_group(
    Task* t, Py_ssize_t index, Py_ssize_t count, const real* x, Py_ssize_t x_stride, real* y,
    Py_ssize_t y_stride, const double* mean, const double* rstd, Writer* writer, Py_ssize_t ahead,
) noexcept nogil:
    """All of some rows."""
    cdef real high[MAX_GROUP]
    cdef real scale[MAX_GROUP]
    cdef real shift[MAX_GROUP]
    cdef Py_ssize_t at_once = rows_at_once(t), k = 0, some, length
    cdef const real* row
    cdef real* target
    split_means(t, count, mean, rstd, high, scale, shift)
    while k < count:
        some = min(count - k, at_once)
        row = element(x, t.stored, k * x_stride)
        target = <real*> element(y, t.stored, k * y_stride)
        if some > 1:
            length = some * t.n
            ask(row, t.stored, length, ahead)
            affine_rows(
                some, row, x_stride, t.stored,
                <real*> place_stored(writer, <char*> target, itemsize_of(t.stored), &length),
                y_stride, t.n, t.centred, high + k, scale + k, shift + k,
                <const real*> t.gamma, <const real*> t.beta,
            )
        else:
            normalize(
                t, row, target, parameters_of(t, index + k), t.n, high + k, scale + k, shift + k,
                writer, ahead,
            )
        k += some


cdef inline void forward_rows(
    Task* t, Py_ssize_t index, Py_ssize_t last, real* x_scratch, real* y_scratch, Writer* writer
) noexcept nogil:
    """Rows of a chunk at most, a group at a time. Beside streaming stores it is the map that asks
    for the next group: sums would wait for memory, which then had nothing to do."""
    cdef bint map_asks = t.route == PAST_CACHE
    cdef double mean[MAX_GROUP]
    cdef double rstd[MAX_GROUP]
    cdef Py_ssize_t offset, count, ahead, x_stride, y_stride
    cdef const real* x
    cdef real* y
    while index < last:
        count = min(t.group, last - index)
        offset = index * t.n
        ahead = elements_ahead(t, index, count)
        x = load_block(&t.x, offset, t.n, count, t.n, x_scratch, &x_stride)
        y = result_block(&t.y, offset, t.n, t.n, y_scratch, &y_stride)
        group_statistics(
            t, x, x_stride, index, count, 0 if map_asks else ahead, mean, rstd
        )
        normalize_group(
            t, index, count, x, x_stride, y, y_stride, mean, rstd, writer,
            ahead if map_asks else 0,
        )
        store_block(&t.y, offset, t.n, count, t.n, y, y_stride, writer)
        index += count


cdef inline void normalize_long(
    Task* t, Py_ssize_t index, Py_ssize_t start, Py_ssize_t n, RowStatistics row,
    real* x_scratch, real* y_scratch, Writer* writer,
) noexcept nogil:
    """n elements of a row, chunk by chunk."""
    cdef Py_ssize_t stop = start + n, length, offset, stride
    cdef real high, scale, shift
    cdef const real* x
    cdef real* y
    split_means(t, 1, &row.mean, &row.rstd, &high, &scale, &shift)
    while start < stop:
        length = min(stop - start, <Py_ssize_t> CHUNK)
        offset = index * t.n + start
        x = load_block(&t.x, offset, t.n, 1, length, x_scratch, &stride)
        y = result_block(&t.y, offset, t.n, length, y_scratch, &stride)
        normalize(
            t, x, y, parameters_of(t, index) + start, length, &high, &scale, &shift, writer, 0
        )
        store_block(&t.y, offset, t.n, 1, length, y, stride, writer)
        start += length


cdef inline void forward_long_rows(
    Task* t, Py_ssize_t index, Py_ssize_t last, real* x_scratch, real* y_scratch, Writer* writer
) noexcept nogil:
    cdef Moments m
    cdef RowStatistics row
    cdef Py_ssize_t piece
    while index < last:
        m = no_moments()
        for piece in range(t.pieces):
            merge(&m, piece_moments(t, index, piece * PIECE, piece_length(t, piece), x_scratch))
        row.mean = m.mean
        finish_statistics(t, index, 1, &row.mean, &m.m2, &row.rstd)
        normalize_long(t, index, 0, t.n, row, x_scratch, y_scratch, writer)
        index += 1


cdef inline void forward_typed(
    Task* t, Py_ssize_t first, Py_ssize_t last, real* x_scratch, real* y_scratch
) noexcept nogil:
    cdef Writer writer
    open_writer(&writer, t.route, t.y.direct)
    if t.n < NARROW and t.period == 1:
        forward_narrow(t, first, last, x_scratch, y_scratch, &writer)
    elif goes_by_tiles(t):
        forward_side_by_side(t, first, last, x_scratch, y_scratch, &writer)
    elif t.n <= CHUNK:
        forward_rows(t, first, last, x_scratch, y_scratch, &writer)
    else:
        forward_long_rows(t, first, last, x_scratch, y_scratch, &writer)
    flush(&writer)


cdef inline void forward_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    cdef Py_ssize_t first = block * t.rows_per_block
    cdef Py_ssize_t last = min(first + t.rows_per_block, t.rows)
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        forward_typed(t, first, last, <float*> nth(scratch, 0), <float*> nth(scratch, 2))
    else:
        forward_typed(t, first, last, <double*> nth(scratch, 0), <double*> nth(scratch, 2))


cdef inline void moments_block(void* task, Py_ssize_t block) noexcept nogil:
    """The moments of one piece."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t index = block // t.pieces, piece = block % t.pieces
    cdef Py_ssize_t start = piece * PIECE, length = piece_length(t, piece)
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        t.moments[block] = piece_moments(t, index, start, length, <float*> nth(scratch, 0))
    else:
        t.moments[block] = piece_moments(t, index, start, length, <double*> nth(scratch, 0))


cdef inline void normalize_block(void* task, Py_ssize_t block) noexcept nogil:
    """One piece."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t index = block // t.pieces, piece = block % t.pieces
    cdef Py_ssize_t start = piece * PIECE, length = piece_length(t, piece)
    cdef RowStatistics row = t.statistics[index]
    cdef Scratch scratch = of_this_thread(t.scratch)
    cdef Writer writer
    open_writer(&writer, t.route, t.y.direct)
    if t.dtype == FLOAT32:
        normalize_long(
            t, index, start, length, row,
            <float*> nth(scratch, 0), <float*> nth(scratch, 2), &writer,
        )
    else:
        normalize_long(
            t, index, start, length, row,
            <double*> nth(scratch, 0), <double*> nth(scratch, 2), &writer,
        )
    flush(&writer)


cdef inline bint forward_pieces(Task* t, int num_threads) noexcept nogil:
    """Few long rows: the moments of all pieces, then each piece with its row's. False: no
    memory."""
    cdef Py_ssize_t index, piece, blocks = t.rows * t.pieces
    cdef Moments m
    cdef RowStatistics* row
    t.moments = <Moments*> malloc(blocks * sizeof(Moments))
    t.statistics = <RowStatistics*> malloc(t.rows * sizeof(RowStatistics))
    cdef bint has_memory = t.moments != NULL and t.statistics != NULL
    if has_memory:
        parallel_for(moments_block, t, blocks, num_threads)
        for index in range(t.rows):
            m = no_moments()
            for piece in range(t.pieces):
                merge(&m, t.moments[index * t.pieces + piece])
            row = t.statistics + index
            row.mean = m.mean
            finish_statistics(t, index, 1, &row.mean, &m.m2, &row.rstd)
        parallel_for(normalize_block, t, blocks, num_threads)
    free(t.moments)
    free(t.statistics)
    return has_memory


cdef inline const void* copied(
    const void* parameter, Py_ssize_t num_bytes, const char* y, char** to
) noexcept nogil:
    cdef char* copy = apart_from(y, to[0])
    if parameter == NULL:
        return NULL
    memcpy(copy, parameter, num_bytes)
    to[0] = copy + num_bytes
    return copy


cdef inline bint align_parameters(Task* t, void** memory) noexcept nogil:
    """Those that many rows share are copied to where they have lines where y has them: they are
    half of all loads. False: no memory."""
    cdef Py_ssize_t num_bytes = t.n * itemsize_of(t.dtype)
    cdef char* to
    if t.gamma == NULL and t.beta == NULL or t.n < NARROW or t.n > CHUNK or (
        t.rows < MANY_ROWS or t.period > 1
    ):
        return True
    memory[0] = malloc(2 * (num_bytes + PAGE))
    if memory[0] == NULL:
        return False
    to = <char*> memory[0]
    t.gamma = copied(t.gamma, num_bytes, lines_of_y(t), &to)
    t.beta = copied(t.beta, num_bytes, lines_of_y(t), &to)
    return True


cdef inline bint run_forward(Task* t, int num_threads) noexcept nogil:
    """False: no memory, and nothing was written."""
    cdef int team = begin(t, num_threads)
    cdef void* parameters = NULL
    cdef bint has_memory = team and align_parameters(t, &parameters)
    if has_memory and is_cut(t, team):
        has_memory = forward_pieces(t, team)
    elif has_memory:
        t.rows_per_block = max(
            t.rows_per_block, min(rows_together(t), t.rows // (BLOCKS_PER_THREAD * team))
        )
        parallel_for(forward_block, t, ceil_div(t.rows, t.rows_per_block), team)
    release(&t.scratch)
    free(parameters)
    return has_memory
