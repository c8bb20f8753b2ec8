"""The backward pass of layer, RMS and weight norm over rows. With h = dy·gamma, sums over a row:

    dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N)        dgamma = Σ_rows dy·x̂        dbeta = Σ_rows dy

RMS norm has no Σh/N, which is what flows through the mean. Weight norm has neither that nor gamma,
and with x̂ = x/‖x‖ sums instead of means: dx = g/‖x‖·(dy - x̂·Σ(dy·x̂)).
"""

from libc.stdint cimport uint16_t
from libc.stdlib cimport free, malloc

from fastnorm._kernels cimport sixteen
from fastnorm._kernels.arrays cimport FLOAT16, FLOAT32, Dtype, itemsize_of, real
from fastnorm._kernels.blocks cimport BLOCKS_PER_THREAD, MAX_PARTIALS, ceil_div, threads_for
from fastnorm._kernels.memory cimport FETCHES_ALONE, IN_CACHE, PAST_CACHE, Writer
from fastnorm._kernels.memory cimport asks_in_groups, fits_rows, flush, open_writer
from fastnorm._kernels.memory cimport place_rows, place_stored, rows_abreast
from fastnorm._kernels.operands cimport Scratch, load_block, of_this_thread, release
from fastnorm._kernels.operands cimport nth, result_block, store_block
from fastnorm._kernels.rows cimport CHUNK, TOGETHER, ask, element, is_sixteen, map_rows
from fastnorm._kernels.rows cimport row_gradient_sums
from fastnorm._kernels.rows_narrow cimport backward_narrow
from fastnorm._kernels.rows_numbers cimport HIGH, LENGTH_SCALE, LENGTH_SLOPE, ROW_NUMBERS, RSTD
from fastnorm._kernels.rows_numbers cimport Group, finish_rows, keep_lengths, load_group
from fastnorm._kernels.rows_numbers cimport settle_sums
from fastnorm._kernels.rows_task cimport FLUSH_ROWS, MAX_GROUP, NARROW, PIECE, TURN_BYTES
from fastnorm._kernels.rows_task cimport RowSums, Task
from fastnorm._kernels.rows_task cimport allocate_partials, are_flushed, begin, clear_sums
from fastnorm._kernels.rows_task cimport elements_ahead, flush_sums, goes_by_tiles, is_cut
from fastnorm._kernels.rows_task cimport lines_of_y, parameters_of, piece_length, rows_at_once
from fastnorm._kernels.rows_task cimport rows_together, shifted, unflushed_rows
from fastnorm._kernels.rows_turned cimport backward_side_by_side
from fastnorm._kernels.sixteen cimport SLOPE, GradientParameters, Rows
from fastnorm._kernels.vectors cimport store
from fastnorm._pool cimport parallel_for

cdef extern from "maps.h" nogil:
    void row_gradients_float "fastnorm_row_gradients_float"(
        Py_ssize_t rows, bint centred, const float* dy, Py_ssize_t dy_step, const float* x,
        Py_ssize_t x_step, const float* gamma, float* dx, Py_ssize_t dx_step, float* dgamma,
        float* dbeta, Py_ssize_t n, const float* numbers, Py_ssize_t ahead,
        Py_ssize_t dx_ahead)
    void row_gradients_double "fastnorm_row_gradients_double"(
        Py_ssize_t rows, bint centred, const double* dy, Py_ssize_t dy_step, const double* x,
        Py_ssize_t x_step, const double* gamma, double* dx, Py_ssize_t dx_step, double* dgamma,
        double* dbeta, Py_ssize_t n, const double* numbers, Py_ssize_t ahead,
        Py_ssize_t dx_ahead)

cdef enum:
    # Of a block, whose sums of rows are written to memory once and read once; or FLUSH_ROWS, where
    # there would be fewer blocks than FEW.
    PARTIAL_ROWS = 64
    FEW = 4
    STRIP = 256                 # columns of these sums that a thread adds up at a time


cdef inline void chunk_sums(
    Task* t, const real* x, Py_ssize_t x_step, const real* dy, Py_ssize_t dy_step,
    Py_ssize_t start, Py_ssize_t step, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n,
    Py_ssize_t ahead, const real* numbers, Group* rows,
) noexcept nogil:
    """Σh and Σ(h·x̂), with h = dy·gamma, of n elements of some rows of a group. The parameters of
    the group begin at `start`, and those of a row `step` elements after those of the row before."""
    cdef Py_ssize_t k = first
    while k < last:
        row_gradient_sums(
            element(dy, t.stored, k * dy_step), dy_step, element(x, t.stored, k * x_step), x_step,
            t.stored, min(last - k, <Py_ssize_t> TOGETHER), n,
            shifted(<const real*> t.gamma, start + k * step), step, numbers + HIGH + k,
            numbers + RSTD + k, t.centred, ahead, rows.h + k, rows.hx + k,
        )
        k += TOGETHER
    settle_sums(t, first, last, rows, numbers)


cdef inline RowSums piece_sums(
    Task* t, Py_ssize_t index, Py_ssize_t piece, real* x_scratch, real* dy_scratch
) noexcept nogil:
    """Of a piece of a row, chunk by chunk in double."""
    cdef Group row
    cdef real numbers[ROW_NUMBERS * MAX_GROUP]
    cdef Py_ssize_t start = piece * PIECE, stop = start + piece_length(t, piece)
    cdef Py_ssize_t offset, length, stride
    cdef const real* x
    cdef const real* dy
    cdef RowSums total
    total.h, total.hx = 0, 0
    load_group(t, index, 1, &row, numbers)
    while start < stop:
        offset, length = index * t.n + start, min(stop - start, <Py_ssize_t> CHUNK)
        x = load_block(&t.x, offset, t.n, 1, length, x_scratch, &stride)
        dy = load_block(&t.dy, offset, t.n, 1, length, dy_scratch, &stride)
        chunk_sums(
            t, x, length, dy, length, parameters_of(t, index) + start, 0, 0, 1, length, 0, numbers,
            &row,
        )
        if t.centred:
            total.h += row.h[0]
        total.hx += row.hx[0]
        start += length
    return total


cdef inline void numbers_of_row(
    Task* t, Py_ssize_t index, RowSums sums, real* numbers
) noexcept nogil:
    cdef Group row
    load_group(t, index, 1, &row, numbers)
    row.h[0], row.hx[0] = sums.h, sums.hx
    finish_rows(t, 0, 1, &row, numbers)


cdef inline real* further(real* sums, Py_ssize_t n) noexcept nogil:
    return NULL if sums == NULL else sums + n


cdef inline void row_gradients(
    Py_ssize_t rows, bint centred, const real* dy, Py_ssize_t dy_step, const real* x,
    Py_ssize_t x_step, Dtype stored, const real* gamma, real* dx, Py_ssize_t dx_step,
    real* dgamma, real* dbeta, Py_ssize_t n, const real* numbers, Py_ssize_t ahead,
    Py_ssize_t dx_ahead,
) noexcept nogil:
    """dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N);  dgamma += dy·x̂;  dbeta += dy, for 1, 2 or 4 rows.
    Their numbers begin at `numbers`. x is asked for `ahead` elements further on, dx likewise."""
    cdef GradientParameters p
    cdef Rows dy_rows, x_rows
    if real is float and (is_sixteen(stored)):
        p.gamma, p.numbers, p.dgamma, p.dbeta = gamma, numbers, dgamma, dbeta
        dy_rows.data, dy_rows.stride = <const uint16_t*> dy, dy_step
        x_rows.data, x_rows.stride = <const uint16_t*> x, x_step
        sixteen.row_gradients(
            stored == FLOAT16, rows, centred, dy_rows, x_rows, <uint16_t*> dx, dx_step, n, p,
            ahead, dx_ahead,
        )
    elif real is float:
        row_gradients_float(
            rows, centred, dy, dy_step, x, x_step, gamma, dx, dx_step, dgamma, dbeta, n, numbers,
            ahead, dx_ahead,
        )
    else:
        row_gradients_double(
            rows, centred, dy, dy_step, x, x_step, gamma, dx, dx_step, dgamma, dbeta, n, numbers,
            ahead, dx_ahead,
        )


cdef inline void length_gradients(
    Task* t, const real* x, const real* dy, real* dx, Py_ssize_t n, const real* numbers,
    Writer* writer, Py_ssize_t ahead,
) noexcept nogil:
    """Of weight norm, for n elements of one row: dx = (dy + x·slope)·scale. x is asked for: for dy
    the sums have asked."""
    cdef Py_ssize_t i = 0, length
    cdef char* target
    while i < n:
        length = n - i
        target = place_stored(
            writer, <char*> element(dx, t.stored, i), itemsize_of(t.stored), &length
        )
        ask(element(x, t.stored, i), t.stored, length, ahead)
        map_rows(
            SLOPE, 1, element(dy, t.stored, i), 0, element(x, t.stored, i), 0, t.stored,
            <real*> target, 0, length, NULL, numbers + LENGTH_SLOPE, NULL,
            numbers + LENGTH_SCALE, NULL, 1, 0,
        )
        i += length


cdef inline void group_length_gradients(
    Task* t, Py_ssize_t count, const real* x, Py_ssize_t x_stride, const real* dy,
    Py_ssize_t dy_stride, real* dx, Py_ssize_t dx_stride, const real* numbers, Writer* writer,
    Py_ssize_t ahead,
) noexcept nogil:
    """The same of all of some rows."""
    cdef Py_ssize_t at_once = rows_at_once(t), k = 0, some, length
    cdef const real* x_row
    cdef const real* dy_row
    cdef real* target
    while k < count:
        some = min(count - k, at_once)
        x_row, dy_row = element(x, t.stored, k * x_stride), element(dy, t.stored, k * dy_stride)
        target = <real*> element(dx, t.stored, k * dx_stride)
        if some > 1:
            length = some * t.n
            ask(x_row, t.stored, length, ahead)
            map_rows(
                SLOPE, some, dy_row, dy_stride, x_row, x_stride, t.stored,
                <real*> place_stored(writer, <char*> target, itemsize_of(t.stored), &length),
                dx_stride, t.n, NULL, numbers + LENGTH_SLOPE + k, NULL, numbers + LENGTH_SCALE + k,
                NULL, 1, 0,
            )
        else:
            length_gradients(t, x_row, dy_row, target, t.n, numbers + k, writer, ahead)
        k += some


cdef inline void gradients(
    Task* t, const real* x, const real* dy, real* dx, real* dgamma, real* dbeta,
    Py_ssize_t start, Py_ssize_t n, const real* numbers, Writer* writer, Py_ssize_t ahead,
) noexcept nogil:
    """The same for n elements of one row, whose parameters begin at `start`."""
    cdef Py_ssize_t i = 0, length
    cdef char* target
    if t.by_length:
        length_gradients(t, x, dy, dx, n, numbers, writer, ahead)
        return
    while i < n:
        length = n - i
        target = place_stored(
            writer, <char*> element(dx, t.stored, i), itemsize_of(t.stored), &length
        )
        row_gradients(
            1, t.centred, element(dy, t.stored, i), 0, element(x, t.stored, i), 0, t.stored,
            shifted(<const real*> t.gamma, start + i), <real*> target, 0, further(dgamma, i),
            further(dbeta, i), length, numbers, ahead, <Py_ssize_t> 0,
        )
        i += length


cdef inline Py_ssize_t gradient_rows(
    Task* t, Py_ssize_t index, Py_ssize_t count, Py_ssize_t step, const real* x, const real* dy,
    const real* dx,
) noexcept nogil:
    """So many rows, of the next `count`, that share their parameters, go through `row_gradients`
    together."""
    cdef Py_ssize_t rows
    if step or t.period > 1:
        return 1
    count = min(count, FLUSH_ROWS - unflushed_rows(t, index))
    rows = rows_abreast(dy, x, dx, t.n * itemsize_of(t.stored))
    while rows > count:
        rows //= 2
    while t.route == PAST_CACHE and rows > 1 and not fits_rows(
        rows, t.n * itemsize_of(t.stored)
    ):
        rows //= 2
    return rows


cdef inline void chunk_gradients(
    Task* t, Py_ssize_t index, Py_ssize_t start, Py_ssize_t n, const real* numbers,
    real* dgamma, real* dbeta, real* x_scratch, real* dy_scratch, real* dx_scratch,
    Writer* writer,
) noexcept nogil:
    """Of at most a chunk of a row."""
    cdef Py_ssize_t offset = index * t.n + start, stride
    cdef const real* x = load_block(&t.x, offset, t.n, 1, n, x_scratch, &stride)
    cdef const real* dy = load_block(&t.dy, offset, t.n, 1, n, dy_scratch, &stride)
    cdef real* dx = result_block(&t.y, offset, t.n, n, dx_scratch, &stride)
    gradients(
        t, x, dy, dx, dgamma, dbeta, parameters_of(t, index) + start, n, numbers, writer, 0
    )
    store_block(&t.y, offset, t.n, 1, n, dx, stride, writer)


cdef inline void group_gradients(
    Task* t, Py_ssize_t index, Py_ssize_t rows, const real* x, Py_ssize_t x_step, const real* dy,
    Py_ssize_t dy_step, real* dx, Py_ssize_t dx_step, real* dgamma, real* dbeta,
    const real* numbers, Writer* writer, Py_ssize_t ahead,
) noexcept nogil:
    """Of `gradient_rows` rows."""
    if rows == 1:
        gradients(
            t, x, dy, dx, dgamma, dbeta, parameters_of(t, index), t.n, numbers, writer, ahead
        )
        return
    row_gradients(
        rows, t.centred, dy, dy_step, x, x_step, t.stored, <const real*> t.gamma,
        <real*> place_rows(writer, <char*> dx, rows, t.n * itemsize_of(t.stored)), dx_step,
        dgamma, dbeta, t.n, numbers, ahead,
        rows * t.n if asks_in_groups(writer, t.route) else 0,
    )


cdef inline void flush_rows(
    Task* t, Py_ssize_t index, double* partial, real* sums
) noexcept nogil:
    """Where enough rows, or all of the block, are before this one. partial is NULL where there are
    no sums, or they are not those of all rows."""
    if partial != NULL and are_flushed(t, index):
        flush_sums(partial, sums, 2 * t.n)


cdef inline Py_ssize_t rows_in_turn(Task* t, Py_ssize_t count) noexcept nogil:
    """After the sums of so many rows, of a group's `count`, come their gradients."""
    cdef Py_ssize_t row_bytes = t.n * itemsize_of(t.stored)
    if (
        FETCHES_ALONE and t.route == PAST_CACHE and not t.by_length
        and TURN_BYTES // 2 <= row_bytes <= TURN_BYTES + TURN_BYTES // 2
    ):
        return max(TURN_BYTES // row_bytes, <Py_ssize_t> 1)
    return count


cdef inline void backward_group(
    Task* t, Py_ssize_t index, Py_ssize_t count, double* partial, real* dgamma, real* dbeta,
    Py_ssize_t step, real* x_scratch, real* dy_scratch, real* dx_scratch, Writer* writer,
) noexcept nogil:
    """`count` rows of a chunk at most. From one row's parameter gradients to the next it is `step`
    elements."""
    cdef Group rows
    cdef real numbers[ROW_NUMBERS * MAX_GROUP]
    cdef Py_ssize_t offset = index * t.n, ahead = 0, k = 0, last, together
    cdef Py_ssize_t x_stride, dy_stride, dx_stride, in_turn = rows_in_turn(t, count)
    cdef const real* x = load_block(&t.x, offset, t.n, count, t.n, x_scratch, &x_stride)
    cdef const real* dy = load_block(&t.dy, offset, t.n, count, t.n, dy_scratch, &dy_stride)
    cdef real* dx = result_block(&t.y, offset, t.n, t.n, dx_scratch, &dx_stride)
    if t.route != IN_CACHE and in_turn == count:
        ahead = elements_ahead(t, index, count)
    load_group(t, index, count, &rows, numbers)
    while k < count:
        last = min(k + in_turn, count)
        chunk_sums(
            t, x, x_stride, dy, dy_stride, parameters_of(t, index), step, k, last, t.n, ahead,
            numbers, &rows,
        )
        finish_rows(t, k, last, &rows, numbers)
        if t.by_length:  # nothing is added up over rows
            keep_lengths(t, index, count, rows.hx)
            group_length_gradients(
                t, count, x, x_stride, dy, dy_stride, dx, dx_stride, numbers, writer, ahead
            )
            k = count
        while k < last:
            together = gradient_rows(t, index + k, last - k, step, x, dy, dx)
            group_gradients(
                t, index + k, together, element(x, t.stored, k * x_stride), x_stride,
                element(dy, t.stored, k * dy_stride), dy_stride,
                <real*> element(dx, t.stored, k * dx_stride), dx_stride,
                further(dgamma, k * step), further(dbeta, k * step), numbers + k, writer, ahead,
            )
            k += together
            flush_rows(t, index + k, partial, dgamma)
    store_block(&t.y, offset, t.n, count, t.n, dx, dx_stride, writer)


cdef inline void backward_long_row(
    Task* t, Py_ssize_t index, real* dgamma, real* dbeta,
    real* x_scratch, real* dy_scratch, real* dx_scratch, Writer* writer,
) noexcept nogil:
    cdef RowSums total, part
    cdef real numbers[ROW_NUMBERS * MAX_GROUP]
    cdef Py_ssize_t piece, start = 0, length
    total.h, total.hx = 0, 0
    for piece in range(t.pieces):
        part = piece_sums(t, index, piece, x_scratch, dy_scratch)
        total.h += part.h
        total.hx += part.hx
    keep_lengths(t, index, 1, &total.hx)
    numbers_of_row(t, index, total, numbers)
    while start < t.n:
        length = min(t.n - start, <Py_ssize_t> CHUNK)
        chunk_gradients(
            t, index, start, length, numbers, further(dgamma, start), further(dbeta, start),
            x_scratch, dy_scratch, dx_scratch, writer,
        )
        start += length


cdef inline void backward_rows(
    Task* t, Py_ssize_t index, Py_ssize_t last, double* partial, real* sums,
    real* x_scratch, real* dy_scratch, real* dx_scratch, Writer* writer,
) noexcept nogil:
    cdef Py_ssize_t count
    cdef real* dbeta = further(sums, t.n)
    while index < last:
        count = min(t.group, last - index)
        if t.n <= CHUNK:
            backward_group(
                t, index, count, partial, sums, dbeta, 0, x_scratch, dy_scratch, dx_scratch, writer
            )
        else:
            backward_long_row(t, index, sums, dbeta, x_scratch, dy_scratch, dx_scratch, writer)
            flush_rows(t, index + 1, partial, sums)
        index += count


cdef inline void backward_typed(
    Task* t, Py_ssize_t first, Py_ssize_t last, double* partial, real* sums,
    real* x_scratch, real* dy_scratch, real* dx_scratch,
) noexcept nogil:
    cdef Writer writer
    open_writer(&writer, t.route, t.y.direct)
    if partial != NULL:
        clear_sums(partial, sums, 2 * t.n)
    if t.n < NARROW:
        backward_narrow(t, first, last, partial, x_scratch, dx_scratch, &writer)
    else:
        backward_rows(
            t, first, last, partial, sums, x_scratch, dy_scratch, dx_scratch, &writer
        )
    flush(&writer)


cdef inline void backward_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    cdef Py_ssize_t first = block * t.rows_per_block
    cdef Py_ssize_t last = min(first + t.rows_per_block, t.rows)
    cdef Py_ssize_t offset = 0 if t.by_length else 2 * block * t.n
    cdef double* partial = t.partials + offset
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        backward_typed(
            t, first, last, partial, <float*> t.sums + offset,
            <float*> nth(scratch, 0), <float*> nth(scratch, 1), <float*> nth(scratch, 2),
        )
    else:
        backward_typed(
            t, first, last, partial, <double*> t.sums + offset,
            <double*> nth(scratch, 0), <double*> nth(scratch, 1), <double*> nth(scratch, 2),
        )


cdef inline void tiles_typed(
    Task* t, Py_ssize_t first, Py_ssize_t last, real* sums, real* x_scratch, real* dy_scratch,
    real* lanes,
) noexcept nogil:
    """Rows that lie side by side, of some blocks."""
    cdef Py_ssize_t offset = first // t.rows_per_block * 2 * t.n
    cdef Py_ssize_t blocks = ceil_div(last - first, t.rows_per_block)
    cdef Writer writer
    open_writer(&writer, t.route, t.y.direct)
    clear_sums(t.partials + offset, sums + offset, blocks * 2 * t.n)
    backward_side_by_side(t, first, last, sums, x_scratch, dy_scratch, lanes, &writer)
    flush(&writer)


cdef inline void tiles_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    cdef Py_ssize_t first = block * t.blocks_together * t.rows_per_block
    cdef Py_ssize_t last = min(first + t.blocks_together * t.rows_per_block, t.rows)
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        tiles_typed(
            t, first, last, <float*> t.sums,
            <float*> nth(scratch, 0), <float*> nth(scratch, 1), <float*> nth(scratch, 2),
        )
    else:
        tiles_typed(
            t, first, last, <double*> t.sums,
            <double*> nth(scratch, 0), <double*> nth(scratch, 1), <double*> nth(scratch, 2),
        )


cdef inline void sum_strip(void* task, Py_ssize_t strip) noexcept nogil:
    """Some columns of the partial sums of the blocks, added in their order."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t blocks = ceil_div(t.rows, t.rows_per_block), block, which, i
    cdef Py_ssize_t start = strip * STRIP, n = min(<Py_ssize_t> STRIP, t.n - start)
    cdef double* total
    cdef const double* partial
    for which in range(2 if t.centred else 1):
        total = t.partials + which * t.n + start
        for block in range(1, blocks):
            partial = total + block * 2 * t.n
            for i in range(n):
                total[i] += partial[i]
        store(t.dbeta if which else t.dgamma, start, n, total)


cdef inline bint backward_whole_rows(Task* t, int num_threads) noexcept nogil:
    """Each block adds up its rows' parameter gradients for itself. False: no memory."""
    cdef Py_ssize_t blocks
    cdef bint are_many = t.rows >= FEW * PARTIAL_ROWS
    if t.by_length:  # dg is a row's own
        t.partials, t.sums = NULL, NULL
        parallel_for(backward_block, t, ceil_div(t.rows, t.rows_per_block), num_threads)
        return True
    t.rows_per_block = max(
        max(t.rows_per_block, <Py_ssize_t> (PARTIAL_ROWS if are_many else FLUSH_ROWS)),
        ceil_div(t.rows, MAX_PARTIALS),
    )
    blocks = ceil_div(t.rows, t.rows_per_block)
    # In the sink, rows of whole lines begin with one.
    t.partials = allocate_partials(
        blocks, t.n, t.dtype, NULL if t.route == PAST_CACHE else lines_of_y(t), &t.sums
    )
    if t.partials == NULL:
        return False
    if goes_by_tiles(t):
        t.blocks_together = max(
            min(rows_together(t), t.rows // (BLOCKS_PER_THREAD * num_threads)) // t.rows_per_block,
            <Py_ssize_t> 1,
        )
        parallel_for(tiles_block, t, ceil_div(blocks, t.blocks_together), num_threads)
    else:
        parallel_for(backward_block, t, blocks, num_threads)
    parallel_for(
        sum_strip, t, ceil_div(t.n, STRIP),
        threads_for(blocks * 2 * t.n * sizeof(double), num_threads),
    )
    free(t.partials)
    return True


cdef inline void sums_block(void* task, Py_ssize_t block) noexcept nogil:
    """The row sums of one piece."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t index = block // t.pieces, piece = block % t.pieces
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        t.row_sums[block] = piece_sums(
            t, index, piece, <float*> nth(scratch, 0), <float*> nth(scratch, 1)
        )
    else:
        t.row_sums[block] = piece_sums(
            t, index, piece, <double*> nth(scratch, 0), <double*> nth(scratch, 1)
        )


cdef inline void column_gradients(
    Task* t, Py_ssize_t start, real* x_scratch, real* dy_scratch, real* dx_scratch
) noexcept nogil:
    """A chunk of columns in all rows, of which there are few: their parameter gradients end
    here."""
    cdef real dgamma[CHUNK]
    cdef real dbeta[CHUNK]
    cdef double totals[2 * CHUNK]
    cdef real numbers[ROW_NUMBERS * MAX_GROUP]
    cdef bint has_sums = not t.by_length
    cdef Py_ssize_t i, index, n = min(t.n - start, <Py_ssize_t> CHUNK)
    cdef Writer writer
    for i in range(n if has_sums else 0):
        dgamma[i], dbeta[i] = 0, 0
        totals[i], totals[n + i] = 0, 0
    open_writer(&writer, t.route, t.y.direct)
    for index in range(t.rows):
        numbers_of_row(t, index, t.row_sums[index * t.pieces], numbers)
        chunk_gradients(
            t, index, start, n, numbers, dgamma, dbeta,
            x_scratch, dy_scratch, dx_scratch, &writer,
        )
        if has_sums and ((index + 1) % FLUSH_ROWS == 0 or index + 1 == t.rows):
            flush_sums(totals, dgamma, n)
            flush_sums(totals + n, dbeta, n)
    flush(&writer)
    if has_sums:
        store(t.dgamma, start, n, totals)
        store(t.dbeta, start, n, totals + n)


cdef inline void columns_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        column_gradients(
            t, block * CHUNK,
            <float*> nth(scratch, 0), <float*> nth(scratch, 1), <float*> nth(scratch, 2),
        )
    else:
        column_gradients(
            t, block * CHUNK,
            <double*> nth(scratch, 0), <double*> nth(scratch, 1), <double*> nth(scratch, 2),
        )


cdef inline bint backward_pieces(Task* t, int num_threads) noexcept nogil:
    """Few long rows: the sums of all pieces, then chunks of columns. False: no memory."""
    cdef Py_ssize_t index, piece
    cdef RowSums* row
    t.row_sums = <RowSums*> malloc(t.rows * t.pieces * sizeof(RowSums))
    if t.row_sums == NULL:
        return False
    parallel_for(sums_block, t, t.rows * t.pieces, num_threads)
    for index in range(t.rows):
        row = t.row_sums + index * t.pieces
        for piece in range(1, t.pieces):
            row.h += row[piece].h
            row.hx += row[piece].hx
        keep_lengths(t, index, 1, &row.hx)
    parallel_for(columns_block, t, ceil_div(t.n, CHUNK), num_threads)
    free(t.row_sums)
    return True


cdef inline bint run_backward(Task* t, int num_threads) noexcept nogil:
    """False: no memory, and nothing was written."""
    cdef int team = begin(t, num_threads)
    cdef bint has_memory = team > 0
    if has_memory:
        has_memory = backward_pieces(t, team) if is_cut(t, team) else backward_whole_rows(t, team)
    release(&t.scratch)
    return has_memory
