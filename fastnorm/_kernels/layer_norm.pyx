# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Layer norm (Ba, Kiros and Hinton, arXiv:1607.06450) over the rows of an (M, N) view.

    x̂ = (x - mean)·rstd,  rstd = 1 / sqrt(var + eps)        y = x̂·gamma + beta

    dgamma = Σ_rows dy·x̂        dbeta = Σ_rows dy
    dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N),  h = dy·gamma         sums over the row

Kept for the backward pass: mean and rstd, two numbers a row, in double. x̂ is computed again from
x, since reading it back would move more bytes than x does already.

A block is a few whole rows. Rows that are long and few are cut into pieces instead, and the work
is done in two phases, as in `forward_pieces`. A row's sums are always taken piece by piece: its
result does not depend on which of the two it is, hence not on the other rows.
"""

from libc.stdlib cimport calloc, free, malloc

cimport numpy as cnp

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, Vector, data_of, dtype_of, itemsize_of
from fastnorm._kernels.arrays cimport real, store, vector_of
from fastnorm._kernels.blocks cimport MAX_PARTIALS, ceil_div, rows_per_block, threads_for
from fastnorm._kernels.moments cimport Moments, chunk_centre, is_usable, low_part, merge
from fastnorm._kernels.moments cimport merge_chunk, no_moments
from fastnorm._kernels.moments cimport reciprocal_std, rescue, row_moments
from fastnorm._kernels.rows cimport ALL_LANES, CHUNK, LANES, TAIL, clear, fold, row_affine
from fastnorm._pool cimport parallel_for

cnp.import_array()

cdef enum:
    GROUP = 16                  # rows, at most, that go through the passes together
    GROUP_BYTES = 16384         # half of L1
    PIECE = 16384               # elements of a long row
    FEW_ROWS = 64               # fewer rows than this, if they are long, are cut into pieces
    # Rows whose parameter gradients are added up in the type of x before they go into double.
    FLUSH_ROWS = 32


cdef struct RowStatistics:
    double mean, rstd


# Two sums over a row, or a piece of it: Σh and Σ(h·x̂).
cdef struct RowSums:
    double h, hx


cdef struct Task:
    Dtype dtype
    Py_ssize_t rows, n          # the view (M, N)
    Py_ssize_t rows_per_block
    Py_ssize_t group            # rows that go through the passes together
    Py_ssize_t pieces           # of a row
    const void* x               # (M, N)
    const void* dy              # (M, N)
    void* y                     # (M, N), y or dx
    const void* gamma           # (N,) or NULL
    const void* beta            # (N,) or NULL
    double eps
    double* mean                # (M,) or NULL
    double* rstd                # (M,) or NULL
    Moments* moments            # (M, pieces)
    RowStatistics* statistics   # (M,)
    RowSums* row_sums           # (M, pieces)
    double* partials            # (blocks, 2, N): dgamma and dbeta of a block
    void* sums                  # (blocks, 2, N): the same of at most FLUSH_ROWS rows, in x's type
    Vector dgamma
    Vector dbeta


cdef inline void set_view(Task* t, Dtype dtype, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    t.dtype = dtype
    t.rows, t.n = rows, n
    t.pieces = ceil_div(n, PIECE)
    t.rows_per_block = rows_per_block(rows, n * itemsize_of(dtype))
    t.group = max(min(GROUP_BYTES // (n * itemsize_of(dtype)), <Py_ssize_t> GROUP), <Py_ssize_t> 1)


cdef inline bint is_cut(Task* t) noexcept nogil:
    return t.pieces > 1 and t.rows < FEW_ROWS


cdef inline Py_ssize_t piece_length(Task* t, Py_ssize_t piece) noexcept nogil:
    return min(<Py_ssize_t> PIECE, t.n - piece * PIECE)


# Forward


cdef inline RowStatistics finish_statistics(Task* t, const real* x, Moments m) noexcept nogil:
    cdef RowStatistics row
    cdef double var = m.m2 / t.n
    row.mean = m.mean
    row.rstd = reciprocal_std(var, t.eps)
    if not is_usable(var + t.eps, t.dtype):
        rescue(x, 1, t.n, t.n, True, t.eps, &row.mean, &var, &row.rstd)
    return row


cdef inline void keep_statistics(Task* t, Py_ssize_t index, RowStatistics row) noexcept nogil:
    if t.mean != NULL:
        t.mean[index] = row.mean
        t.rstd[index] = row.rstd


cdef inline void normalize(
    const real* x, real* y, const real* gamma, const real* beta, Py_ssize_t n, RowStatistics row
) noexcept nogil:
    """A row or a piece of it. The mean is high + low; the low part goes into the shift."""
    cdef real high = <real> row.mean
    cdef real shift = <real> (-low_part(row.mean, high) * row.rstd)
    row_affine(x, y, n, high, <real> row.rstd, shift, gamma, beta)


cdef inline void group_moments(
    Task* t, const real* x, Py_ssize_t count, Moments* moments
) noexcept nogil:
    """Of `count` adjacent rows. One pass over all of them, then the other: each row's passes wait
    for one another, those of different rows do not."""
    cdef real centres[GROUP]
    cdef Py_ssize_t k, piece
    for k in range(count):
        moments[k] = no_moments()
    if t.n <= CHUNK:
        for k in range(count):
            centres[k] = chunk_centre(x + k * t.n, t.n)
        for k in range(count):
            merge_chunk(&moments[k], x + k * t.n, t.n, centres[k])
    else:
        for k in range(count):
            for piece in range(t.pieces):
                merge(
                    &moments[k],
                    row_moments(x + k * t.n + piece * PIECE, piece_length(t, piece)),
                )


cdef inline void forward_rows(
    Task* t, const real* x, real* y, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Moments moments[GROUP]
    cdef RowStatistics rows[GROUP]
    cdef Py_ssize_t index = first, k, offset, count
    while index < last:
        count = min(t.group, last - index)
        offset = index * t.n
        group_moments(t, x + offset, count, moments)
        for k in range(count):
            rows[k] = finish_statistics(t, x + offset + k * t.n, moments[k])
            keep_statistics(t, index + k, rows[k])
        for k in range(count):
            normalize(
                x + offset + k * t.n, y + offset + k * t.n,
                <const real*> t.gamma, <const real*> t.beta, t.n, rows[k],
            )
        index += count


cdef void forward_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    cdef Py_ssize_t first = block * t.rows_per_block
    cdef Py_ssize_t last = min(first + t.rows_per_block, t.rows)
    if t.dtype == FLOAT32:
        forward_rows(t, <const float*> t.x, <float*> t.y, first, last)
    else:
        forward_rows(t, <const double*> t.x, <double*> t.y, first, last)


cdef void moments_block(void* task, Py_ssize_t block) noexcept nogil:
    """The moments of one piece."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t piece = block % t.pieces
    cdef Py_ssize_t offset = block // t.pieces * t.n + piece * PIECE
    if t.dtype == FLOAT32:
        t.moments[block] = row_moments(<const float*> t.x + offset, piece_length(t, piece))
    else:
        t.moments[block] = row_moments(<const double*> t.x + offset, piece_length(t, piece))


cdef inline const real* shifted(const real* parameter, Py_ssize_t offset) noexcept nogil:
    return NULL if parameter == NULL else parameter + offset


cdef inline void normalize_piece(
    Task* t, const real* x, real* y, Py_ssize_t index, Py_ssize_t piece
) noexcept nogil:
    cdef Py_ssize_t start = piece * PIECE, offset = index * t.n + start
    normalize(
        x + offset, y + offset, shifted(<const real*> t.gamma, start),
        shifted(<const real*> t.beta, start), piece_length(t, piece), t.statistics[index],
    )


cdef void normalize_block(void* task, Py_ssize_t block) noexcept nogil:
    """One piece; the last first, since it may still be in cache."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t reverse = t.rows * t.pieces - 1 - block
    cdef Py_ssize_t index = reverse // t.pieces, piece = reverse % t.pieces
    if t.dtype == FLOAT32:
        normalize_piece(t, <const float*> t.x, <float*> t.y, index, piece)
    else:
        normalize_piece(t, <const double*> t.x, <double*> t.y, index, piece)


cdef bint forward_pieces(Task* t, int num_threads) noexcept nogil:
    """Few long rows: the moments of all pieces, then each piece with its row's. False: no
    memory."""
    cdef Py_ssize_t index, piece, blocks = t.rows * t.pieces
    cdef Moments m
    t.moments = <Moments*> malloc(blocks * sizeof(Moments))
    t.statistics = <RowStatistics*> malloc(t.rows * sizeof(RowStatistics))
    cdef bint has_memory = t.moments != NULL and t.statistics != NULL
    if has_memory:
        parallel_for(moments_block, t, blocks, num_threads)
        for index in range(t.rows):
            m = no_moments()
            for piece in range(t.pieces):
                merge(&m, t.moments[index * t.pieces + piece])
            if t.dtype == FLOAT32:
                t.statistics[index] = finish_statistics(t, <const float*> t.x + index * t.n, m)
            else:
                t.statistics[index] = finish_statistics(t, <const double*> t.x + index * t.n, m)
            keep_statistics(t, index, t.statistics[index])
        parallel_for(normalize_block, t, blocks, num_threads)
    free(t.moments)
    free(t.statistics)
    return has_memory


def forward(
    cnp.ndarray x,              # IN (M, N)
    cnp.ndarray gamma,          # IN (N,) or None
    cnp.ndarray beta,           # IN (N,) or None
    Py_ssize_t rows,            # M
    Py_ssize_t n,               # N
    double eps,
    cnp.ndarray y,              # OUT (M, N), may be x
    cnp.ndarray mean,           # OUT (M,) float64, or None
    cnp.ndarray rstd,           # OUT (M,) float64, or None
    int num_threads,
):
    cdef Task t
    cdef bint has_memory = True
    set_view(&t, dtype_of(x), rows, n)
    t.eps = eps
    t.x, t.y, t.gamma, t.beta = data_of(x), data_of(y), data_of(gamma), data_of(beta)
    t.mean, t.rstd = <double*> data_of(mean), <double*> data_of(rstd)
    num_threads = threads_for(rows * n * itemsize_of(t.dtype), num_threads)
    with nogil:
        if is_cut(&t):
            has_memory = forward_pieces(&t, num_threads)
        else:
            parallel_for(forward_block, &t, ceil_div(rows, t.rows_per_block), num_threads)
    if not has_memory:
        raise MemoryError("layer_norm: no memory for the statistics")


# Backward


cdef inline RowSums row_sums(
    const real* dy, const real* x, const real* gamma, Py_ssize_t n,
    real centre, real rstd, real shift,
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
    Task* t, const real* x, const real* dy, Py_ssize_t index, Py_ssize_t piece
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
            dy + offset, x + offset, shifted(<const real*> t.gamma, start),
            min(stop - start, <Py_ssize_t> CHUNK), high, rstd, shift,
        )
        total.h += chunk.h
        total.hx += chunk.hx
        start += CHUNK
    return total


cdef inline void gradients(
    Task* t, const real* x, const real* dy, real* dx, real* dgamma, real* dbeta,
    Py_ssize_t index, Py_ssize_t start, Py_ssize_t n, RowSums sums,
) noexcept nogil:
    """dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N);  dgamma += dy·x̂;  dbeta += dy
    over n elements of a row from `start` on."""
    cdef Py_ssize_t offset = index * t.n + start
    cdef real high = <real> t.mean[index]
    cdef real rstd = <real> t.rstd[index]
    cdef real shift = <real> (-low_part(t.mean[index], high) * t.rstd[index])
    row_gradients(
        dy + offset, x + offset, shifted(<const real*> t.gamma, start), dx + offset, dgamma, dbeta,
        n, high, rstd, shift, <real> (sums.h / t.n), <real> (sums.hx / t.n),
    )


cdef inline void row_gradients(
    const real* dy, const real* x, const real* gamma, real* restrict dx,
    real* restrict dgamma, real* restrict dbeta, Py_ssize_t n,
    real centre, real rstd, real shift, real mean_h, real mean_hx,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef real h, x_hat
    for i in range(n):
        x_hat = (x[i] - centre) * rstd + shift
        h = dy[i] if gamma == NULL else dy[i] * gamma[i]
        dgamma[i] += dy[i] * x_hat
        dbeta[i] += dy[i]
        dx[i] = ((h - mean_h) - x_hat * mean_hx) * rstd


cdef inline void flush(double* restrict partial, real* restrict sums, Py_ssize_t n) noexcept nogil:
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
    cdef Py_ssize_t index = first, k, piece, count, unflushed = 0
    cdef RowSums part
    while index < last:
        count = min(max(t.group // 2, <Py_ssize_t> 1), last - index)  # of x and of dy
        for k in range(count):
            totals[k].h, totals[k].hx = 0, 0
            for piece in range(t.pieces):
                part = piece_sums(t, x, dy, index + k, piece)
                totals[k].h += part.h
                totals[k].hx += part.hx
        for k in range(count):
            gradients(t, x, dy, dx, sums, sums + t.n, index + k, 0, t.n, totals[k])
        index += count
        unflushed += count
        if unflushed >= FLUSH_ROWS or index == last:
            flush(partial, sums, 2 * t.n)
            unflushed = 0


cdef void backward_block(void* task, Py_ssize_t block) noexcept nogil:
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


cdef void sum_partials(Task* t, Py_ssize_t blocks) noexcept nogil:
    """The partial sums of the blocks, added in their order."""
    cdef Py_ssize_t block, i, width = 2 * t.n
    cdef double* total = t.partials
    for block in range(1, blocks):
        for i in range(width):
            total[i] += t.partials[block * width + i]
    store(t.dgamma, 0, t.n, total)
    store(t.dbeta, 0, t.n, total + t.n)


cdef bint backward_whole_rows(Task* t, int num_threads) noexcept nogil:
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


cdef void sums_block(void* task, Py_ssize_t block) noexcept nogil:
    """The row sums of one piece."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t index = block // t.pieces, piece = block % t.pieces
    if t.dtype == FLOAT32:
        t.row_sums[block] = piece_sums(t, <const float*> t.x, <const float*> t.dy, index, piece)
    else:
        t.row_sums[block] = piece_sums(t, <const double*> t.x, <const double*> t.dy, index, piece)


cdef inline void column_gradients(
    Task* t, const real* x, const real* dy, real* dx, Py_ssize_t start
) noexcept nogil:
    """A chunk of columns in all rows, of which there are few: their parameter gradients end
    here."""
    cdef real dgamma[CHUNK]
    cdef real dbeta[CHUNK]
    cdef double totals[2 * CHUNK]
    cdef Py_ssize_t i, index, n = min(t.n - start, <Py_ssize_t> CHUNK)
    for i in range(n):
        dgamma[i], dbeta[i] = 0, 0
        totals[i], totals[n + i] = 0, 0
    for index in range(t.rows):
        gradients(t, x, dy, dx, dgamma, dbeta, index, start, n, t.row_sums[index * t.pieces])
        if (index + 1) % FLUSH_ROWS == 0 or index + 1 == t.rows:
            flush(totals, dgamma, n)
            flush(totals + n, dbeta, n)
    store(t.dgamma, start, n, totals)
    store(t.dbeta, start, n, totals + n)


cdef void columns_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    if t.dtype == FLOAT32:
        column_gradients(
            t, <const float*> t.x, <const float*> t.dy, <float*> t.y, block * CHUNK
        )
    else:
        column_gradients(
            t, <const double*> t.x, <const double*> t.dy, <double*> t.y, block * CHUNK
        )


cdef bint backward_pieces(Task* t, int num_threads) noexcept nogil:
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


def backward(
    cnp.ndarray dy,             # IN (M, N)
    cnp.ndarray x,              # IN (M, N)
    cnp.ndarray gamma,          # IN (N,) or None
    cnp.ndarray mean,           # IN (M,) float64
    cnp.ndarray rstd,           # IN (M,) float64
    Py_ssize_t rows,            # M
    Py_ssize_t n,               # N
    cnp.ndarray dx,             # OUT (M, N)
    cnp.ndarray dgamma,         # OUT (N,) or None
    cnp.ndarray dbeta,          # OUT (N,) or None
    int num_threads,
):
    cdef Task t
    cdef bint has_memory
    set_view(&t, dtype_of(x), rows, n)
    t.x, t.dy, t.y, t.gamma = data_of(x), data_of(dy), data_of(dx), data_of(gamma)
    t.mean, t.rstd = <double*> data_of(mean), <double*> data_of(rstd)
    t.dgamma, t.dbeta = vector_of(dgamma), vector_of(dbeta)
    num_threads = threads_for(rows * n * itemsize_of(t.dtype), num_threads)
    with nogil:
        if is_cut(&t):
            has_memory = backward_pieces(&t, num_threads)
        else:
            has_memory = backward_whole_rows(&t, num_threads)
    if not has_memory:
        raise MemoryError("layer_norm_backward: no memory for the sums")
