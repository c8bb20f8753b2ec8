# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Layer norm (Ba, Kiros and Hinton, arXiv:1607.06450) over the rows of an (M, N) view.

    x̂ = (x - mean)·rstd,  rstd = 1 / sqrt(var + eps)        y = x̂·gamma + beta

    dgamma = Σ_rows dy·x̂        dbeta = Σ_rows dy
    dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N),  h = dy·gamma         sums over the row

Kept for the backward pass: mean and rstd, two numbers a row, in double. x̂ is computed again from x, since
reading it back would move more bytes than x does already.
"""

from libc.stdlib cimport calloc, free

cimport numpy as cnp

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, Vector, data_of, dtype_of, itemsize_of, put
from fastnorm._kernels.arrays cimport real, vector_of
from fastnorm._kernels.blocks cimport MAX_PARTIALS, ceil_div, rows_per_block, threads_for
from fastnorm._kernels.moments cimport Moments, is_usable, low_part, reciprocal_std, rescue
from fastnorm._kernels.moments cimport row_moments
from fastnorm._kernels.rows cimport LANES, fold, row_affine
from fastnorm._pool cimport parallel_for

cnp.import_array()

cdef enum:
    # Rows whose parameter gradients are added up in the type of x before they go into double.
    FLUSH_ROWS = 32


cdef struct Task:
    Dtype dtype
    Py_ssize_t rows, n          # the view (M, N)
    Py_ssize_t rows_per_block
    const void* x               # (M, N)
    const void* dy              # (M, N)
    void* y                     # (M, N), y or dx
    const void* gamma           # (N,) or NULL
    const void* beta            # (N,) or NULL
    double eps
    double* mean                # (M,) or NULL
    double* rstd                # (M,) or NULL
    double* partials            # (blocks, 2, N): dgamma and dbeta of a block
    void* sums                  # (blocks, 2, N): the same of at most FLUSH_ROWS rows, in x's type


# Forward


cdef inline void forward_row(
    const real* x, real* y, const real* gamma, const real* beta, Py_ssize_t n, double eps,
    double* mean, double* rstd,
) noexcept nogil:
    cdef Moments m = row_moments(x, n)
    cdef double var = m.m2 / n
    cdef real high
    mean[0] = m.mean
    rstd[0] = reciprocal_std(var, eps)
    if not is_usable(m.m2, n, eps, <real*> x):
        rescue(x, 1, n, n, True, eps, mean, &var, rstd)
    high = <real> mean[0]
    row_affine(
        x, y, n, high, <real> rstd[0], <real> (-low_part(mean[0], high) * rstd[0]), gamma, beta
    )


cdef inline void forward_rows(
    Task* t, const real* x, real* y, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Py_ssize_t row
    cdef double mean, rstd
    for row in range(first, last):
        forward_row(
            x + row * t.n, y + row * t.n, <const real*> t.gamma, <const real*> t.beta, t.n, t.eps,
            &mean, &rstd,
        )
        if t.mean != NULL:
            t.mean[row] = mean
            t.rstd[row] = rstd


cdef void forward_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    cdef Py_ssize_t first = block * t.rows_per_block
    cdef Py_ssize_t last = min(first + t.rows_per_block, t.rows)
    if t.dtype == FLOAT32:
        forward_rows(t, <const float*> t.x, <float*> t.y, first, last)
    else:
        forward_rows(t, <const double*> t.x, <double*> t.y, first, last)


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
    cdef Py_ssize_t row_bytes
    t.dtype = dtype_of(x)
    t.rows, t.n, t.eps = rows, n, eps
    t.x, t.y = data_of(x), data_of(y)
    t.gamma, t.beta = data_of(gamma), data_of(beta)
    t.mean, t.rstd = <double*> data_of(mean), <double*> data_of(rstd)
    row_bytes = n * itemsize_of(t.dtype)
    t.rows_per_block = rows_per_block(rows, row_bytes)
    num_threads = threads_for(rows * row_bytes, num_threads)
    with nogil:
        parallel_for(forward_block, &t, ceil_div(rows, t.rows_per_block), num_threads)


# Backward


cdef inline void row_sums(
    const real* dy, const real* x, const real* gamma, Py_ssize_t n,
    real centre, real scale, real shift, double* sum_h, double* sum_hx,
) noexcept nogil:
    """Σh and Σ(h·x̂) with h = dy·gamma and x̂ = (x - centre)·scale + shift"""
    cdef real h_lanes[LANES]
    cdef real hx_lanes[LANES]
    cdef Py_ssize_t i = 0, j
    cdef real h
    for j in range(LANES):
        h_lanes[j] = 0
        hx_lanes[j] = 0
    while i + LANES <= n:
        for j in range(LANES):
            h = dy[i + j] if gamma == NULL else dy[i + j] * gamma[i + j]
            h_lanes[j] += h
            hx_lanes[j] += h * ((x[i + j] - centre) * scale + shift)
        i += LANES
    for j in range(n - i):
        h = dy[i + j] if gamma == NULL else dy[i + j] * gamma[i + j]
        h_lanes[j] += h
        hx_lanes[j] += h * ((x[i + j] - centre) * scale + shift)
    sum_h[0] = fold(h_lanes)
    sum_hx[0] = fold(hx_lanes)


cdef inline void row_gradients(
    const real* dy, const real* x, const real* gamma, real* restrict dx,
    real* restrict dgamma, real* restrict dbeta, Py_ssize_t n,
    real centre, real scale, real shift, real mean_h, real mean_hx,
) noexcept nogil:
    """dx = scale·(h - mean_h - x̂·mean_hx);  dgamma += dy·x̂;  dbeta += dy"""
    cdef Py_ssize_t i
    cdef real h, x_hat
    for i in range(n):
        x_hat = (x[i] - centre) * scale + shift
        h = dy[i] if gamma == NULL else dy[i] * gamma[i]
        dgamma[i] += dy[i] * x_hat
        dbeta[i] += dy[i]
        dx[i] = ((h - mean_h) - x_hat * mean_hx) * scale


cdef inline void flush(double* partial, real* sums, Py_ssize_t n) noexcept nogil:
    """partial += sums;  sums = 0"""
    cdef Py_ssize_t i
    for i in range(n):
        partial[i] += sums[i]
        sums[i] = 0


cdef inline void backward_rows(
    Task* t, const real* x, const real* dy, real* dx, double* partial, real* sums,
    Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef const real* gamma = <const real*> t.gamma
    cdef Py_ssize_t row, offset, n = t.n
    cdef double sum_h, sum_hx
    cdef real high, scale, shift
    for row in range(first, last):
        offset = row * n
        high = <real> t.mean[row]
        scale = <real> t.rstd[row]
        shift = <real> (-low_part(t.mean[row], high) * t.rstd[row])
        row_sums(dy + offset, x + offset, gamma, n, high, scale, shift, &sum_h, &sum_hx)
        row_gradients(
            dy + offset, x + offset, gamma, dx + offset, sums, sums + n, n,
            high, scale, shift, <real> (sum_h / n), <real> (sum_hx / n),
        )
        if (row + 1 - first) % FLUSH_ROWS == 0 or row + 1 == last:
            flush(partial, sums, 2 * n)


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


cdef void sum_partials(Task* t, Py_ssize_t blocks, Vector dgamma, Vector dbeta) noexcept nogil:
    """The partial sums of the blocks, added in their order."""
    cdef Py_ssize_t block, i, width = 2 * t.n
    cdef double* total = t.partials
    for block in range(1, blocks):
        for i in range(width):
            total[i] += t.partials[block * width + i]
    for i in range(t.n):
        put(dgamma, i, total[i])
        put(dbeta, i, total[t.n + i])


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
    cdef Py_ssize_t row_bytes, blocks
    cdef Vector dgamma_vector = vector_of(dgamma), dbeta_vector = vector_of(dbeta)
    t.dtype = dtype_of(x)
    t.rows, t.n = rows, n
    t.x, t.dy, t.y, t.gamma = data_of(x), data_of(dy), data_of(dx), data_of(gamma)
    t.mean, t.rstd = <double*> data_of(mean), <double*> data_of(rstd)
    row_bytes = n * itemsize_of(t.dtype)
    t.rows_per_block = max(
        max(rows_per_block(rows, row_bytes), <Py_ssize_t> FLUSH_ROWS), ceil_div(rows, MAX_PARTIALS)
    )
    blocks = ceil_div(rows, t.rows_per_block)
    num_threads = threads_for(rows * row_bytes, num_threads)
    t.partials = <double*> calloc(max(blocks, 1) * 2 * n, sizeof(double))
    t.sums = calloc(max(blocks, 1) * 2 * n, itemsize_of(t.dtype))
    try:
        if t.partials == NULL or t.sums == NULL:
            raise MemoryError("layer_norm_backward: no memory for the parameters' gradients")
        with nogil:
            parallel_for(backward_block, &t, blocks, num_threads)
            sum_partials(&t, blocks, dgamma_vector, dbeta_vector)
    finally:
        free(t.partials)
        free(t.sums)
