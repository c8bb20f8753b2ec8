"""The backward pass of layer norm. With h = dy·gamma, and the sums over a row:

    dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N)        dgamma = Σ_rows dy·x̂        dbeta = Σ_rows dy
"""

from libc.stdlib cimport calloc, free, malloc

from fastnorm._kernels.arrays cimport FLOAT32, itemsize_of, real, store
from fastnorm._kernels.blocks cimport MAX_PARTIALS, ceil_div
from fastnorm._kernels.layer_norm_task cimport FLUSH_ROWS, GROUP, PIECE, RowSums, Task
from fastnorm._kernels.layer_norm_task cimport parameters_of, piece_length, shifted
from fastnorm._kernels.memory cimport Writer, flush, open_writer, place, prefetch
from fastnorm._kernels.moments cimport low_part
from fastnorm._kernels.rows cimport ALL_LANES, CHUNK, LANES, TAIL, clear, fold
from fastnorm._pool cimport parallel_for


cdef inline RowSums row_sums(
    const real* dy, const real* x, const real* gamma, Py_ssize_t n,
    real centre, real rstd, real shift, Py_ssize_t ahead,
) noexcept nogil:
    """Σh and Σ(h·x̂) over a chunk, with h = dy·gamma and x̂ = (x - centre)·rstd + shift"""
    cdef real h_lanes[ALL_LANES]
    cdef real hx_lanes[ALL_LANES]
    cdef Py_ssize_t i = 0, j
    cdef real h
    cdef RowSums sums
    clear(h_lanes)
    clear(hx_lanes)
    while i + LANES <= n:
        if ahead:
            prefetch(dy + i + ahead, LANES * sizeof(real))  # and for x in `gradients`
        for j in range(LANES):
            h = dy[i + j] if gamma == NULL else dy[i + j] * gamma[i + j]
            h_lanes[j] += h
            hx_lanes[j] += h * ((x[i + j] - centre) * rstd + shift)
        i += LANES
    while i + TAIL <= n:
        for j in range(TAIL):
            h = dy[i + j] if gamma == NULL else dy[i + j] * gamma[i + j]
            h_lanes[j] += h
            hx_lanes[j] += h * ((x[i + j] - centre) * rstd + shift)
        i += TAIL
    while i < n:
        h = dy[i] if gamma == NULL else dy[i] * gamma[i]
        h_lanes[LANES] += h
        hx_lanes[LANES] += h * ((x[i] - centre) * rstd + shift)
        i += 1
    sums.h, sums.hx = fold(h_lanes), fold(hx_lanes)
    return sums


cdef inline RowSums piece_sums(
    Task* t, const real* x, const real* dy, Py_ssize_t index, Py_ssize_t piece, Py_ssize_t ahead
) noexcept nogil:
    """The same over a piece of a row, chunk by chunk in double."""
    cdef real high = <real> t.mean[index]
    cdef real rstd = <real> t.rstd[index]
    cdef real shift = <real> (-low_part(t.mean[index], high) * t.rstd[index])
    cdef Py_ssize_t start = piece * PIECE, stop = start + piece_length(t, piece), offset
    cdef RowSums total, chunk
    total.h, total.hx = 0, 0
    while start < stop:
        offset = index * t.n + start
        chunk = row_sums(
            dy + offset, x + offset,
            shifted(<const real*> t.gamma, parameters_of(t, index) + start),
            min(stop - start, <Py_ssize_t> CHUNK), high, rstd, shift, ahead,
        )
        total.h += chunk.h
        total.hx += chunk.hx
        start += CHUNK
    return total


cdef inline void row_gradients(
    const real* dy, const real* x, const real* gamma, real* restrict dx,
    real* restrict dgamma, real* restrict dbeta, Py_ssize_t n,
    real centre, real rstd, real shift, real mean_h, real mean_hx,
) noexcept nogil:
    """dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N);  dgamma += dy·x̂;  dbeta += dy"""
    cdef Py_ssize_t i
    cdef real h, x_hat
    for i in range(n):
        x_hat = (x[i] - centre) * rstd + shift
        h = dy[i] if gamma == NULL else dy[i] * gamma[i]
        dgamma[i] += dy[i] * x_hat
        dbeta[i] += dy[i]
        dx[i] = ((h - mean_h) - x_hat * mean_hx) * rstd


cdef inline void gradients(
    Task* t, const real* x, const real* dy, real* dx, real* dgamma, real* dbeta,
    Py_ssize_t index, Py_ssize_t start, Py_ssize_t n, RowSums sums, Writer* writer,
    Py_ssize_t ahead,
) noexcept nogil:
    """The same for n elements of a row from `start` on."""
    cdef Py_ssize_t offset = index * t.n + start, i = 0, length
    cdef const real* gamma = shifted(<const real*> t.gamma, parameters_of(t, index) + start)
    cdef real* target
    cdef real high = <real> t.mean[index]
    cdef real rstd = <real> t.rstd[index]
    cdef real shift = <real> (-low_part(t.mean[index], high) * t.rstd[index])
    cdef real mean_h = <real> (sums.h / t.n), mean_hx = <real> (sums.hx / t.n)
    while i < n:
        length = n - i
        target = place(writer, dx + offset + i, &length)
        if ahead:
            prefetch(x + offset + i + ahead, length * sizeof(real))
        row_gradients(
            dy + offset + i, x + offset + i, shifted(gamma, i), target,
            dgamma + i, dbeta + i, length, high, rstd, shift, mean_h, mean_hx,
        )
        i += length


cdef inline void flush_sums(
    double* restrict partial, real* restrict sums, Py_ssize_t n
) noexcept nogil:
    """partial += sums;  sums = 0"""
    cdef Py_ssize_t i
    for i in range(n):
        partial[i] += sums[i]
        sums[i] = 0


cdef inline void backward_rows(
    Task* t, const real* x, const real* dy, real* dx, double* partial, real* sums,
    Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef RowSums totals[GROUP]
    cdef Py_ssize_t index = first, k, piece, count, ahead, unflushed = 0
    cdef RowSums part
    cdef Writer writer
    open_writer(&writer, t.streams)
    while index < last:
        count = min(max(t.group // 2, <Py_ssize_t> 1), last - index)  # of x and of dy
        ahead = count * t.n if t.streams and index + 2 * count <= t.rows else 0
        for k in range(count):
            totals[k].h, totals[k].hx = 0, 0
            for piece in range(t.pieces):
                part = piece_sums(t, x, dy, index + k, piece, ahead)
                totals[k].h += part.h
                totals[k].hx += part.hx
        for k in range(count):
            gradients(t, x, dy, dx, sums, sums + t.n, index + k, 0, t.n, totals[k], &writer, ahead)
        index += count
        unflushed += count
        if unflushed >= FLUSH_ROWS or index == last:
            flush_sums(partial, sums, 2 * t.n)
            unflushed = 0
    flush(&writer)


cdef inline void backward_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    cdef Py_ssize_t first = block * t.rows_per_block
    cdef Py_ssize_t last = min(first + t.rows_per_block, t.rows)
    cdef Py_ssize_t offset = 2 * block * t.n
    if t.dtype == FLOAT32:
        backward_rows(
            t, <const float*> t.x, <const float*> t.dy, <float*> t.y,
            t.partials + offset, <float*> t.sums + offset, first, last,
        )
    else:
        backward_rows(
            t, <const double*> t.x, <const double*> t.dy, <double*> t.y,
            t.partials + offset, <double*> t.sums + offset, first, last,
        )


cdef inline void sum_partials(Task* t, Py_ssize_t blocks) noexcept nogil:
    """The partial sums of the blocks, added in their order."""
    cdef Py_ssize_t block, i, width = 2 * t.n
    cdef double* total = t.partials
    for block in range(1, blocks):
        for i in range(width):
            total[i] += t.partials[block * width + i]
    store(t.dgamma, 0, t.n, total)
    store(t.dbeta, 0, t.n, total + t.n)


cdef inline bint backward_whole_rows(Task* t, int num_threads) noexcept nogil:
    """Each block adds up its rows' parameter gradients for itself. False: no memory."""
    cdef Py_ssize_t blocks
    cdef bint has_memory
    t.rows_per_block = max(
        max(t.rows_per_block, <Py_ssize_t> FLUSH_ROWS), ceil_div(t.rows, MAX_PARTIALS)
    )
    blocks = ceil_div(t.rows, t.rows_per_block)
    t.partials = <double*> calloc(blocks * 2 * t.n, sizeof(double))
    t.sums = calloc(blocks * 2 * t.n, itemsize_of(t.dtype))
    has_memory = t.partials != NULL and t.sums != NULL
    if has_memory:
        parallel_for(backward_block, t, blocks, num_threads)
        sum_partials(t, blocks)
    free(t.partials)
    free(t.sums)
    return has_memory


cdef inline void sums_block(void* task, Py_ssize_t block) noexcept nogil:
    """The row sums of one piece."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t index = block // t.pieces, piece = block % t.pieces
    cdef RowSums* sums = &t.row_sums[block]
    if t.dtype == FLOAT32:
        sums[0] = piece_sums(t, <const float*> t.x, <const float*> t.dy, index, piece, 0)
    else:
        sums[0] = piece_sums(t, <const double*> t.x, <const double*> t.dy, index, piece, 0)


cdef inline void column_gradients(
    Task* t, const real* x, const real* dy, real* dx, Py_ssize_t start
) noexcept nogil:
    """A chunk of columns in all rows, of which there are few: their parameter gradients end
    here."""
    cdef real dgamma[CHUNK]
    cdef real dbeta[CHUNK]
    cdef double totals[2 * CHUNK]
    cdef Py_ssize_t i, index, n = min(t.n - start, <Py_ssize_t> CHUNK)
    cdef Writer writer
    for i in range(n):
        dgamma[i], dbeta[i] = 0, 0
        totals[i], totals[n + i] = 0, 0
    open_writer(&writer, t.streams)
    for index in range(t.rows):
        gradients(
            t, x, dy, dx, dgamma, dbeta, index, start, n, t.row_sums[index * t.pieces], &writer, 0
        )
        if (index + 1) % FLUSH_ROWS == 0 or index + 1 == t.rows:
            flush_sums(totals, dgamma, n)
            flush_sums(totals + n, dbeta, n)
    flush(&writer)
    store(t.dgamma, start, n, totals)
    store(t.dbeta, start, n, totals + n)


cdef inline void columns_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    if t.dtype == FLOAT32:
        column_gradients(
            t, <const float*> t.x, <const float*> t.dy, <float*> t.y, block * CHUNK
        )
    else:
        column_gradients(
            t, <const double*> t.x, <const double*> t.dy, <double*> t.y, block * CHUNK
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
    parallel_for(columns_block, t, ceil_div(t.n, CHUNK), num_threads)
    free(t.row_sums)
    return True
