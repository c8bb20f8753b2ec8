# cython: boundscheck=False, wraparound=False
"""Batch norm (Ioffe and Szegedy, arXiv:1502.03167) over the channels of an (N, C, S) view, m = N·S.

    x̂ = (x - mean)·rstd,  rstd = 1 / sqrt(var + eps)        y = x̂·gamma + beta

    dgamma = Σdy·x̂        dbeta = Σdy                       sums over N and S
    dx = gamma·rstd·(dy - dbeta/m - x̂·dgamma/m)             statistics of the batch
    dx = gamma·rstd·dy                                      given (frozen) statistics

Where the batch is spread over the members of a group, each pass is two calls, with an exchange
between them: `moments` and `infer` are forward, `gradient_sums` and `map_gradient` backward.

Kept for the backward pass: mean and rstd, two numbers a channel, in double. channels.pxd walks the
view; here is what happens to the two numbers of a channel.
"""

cimport numpy as cnp

from fastnorm._kernels.arrays cimport NONE
from fastnorm._kernels.channels_task cimport CENTRE, FEW, GRADIENT, GRADIENT_SUMS, INVERSE
from fastnorm._kernels.channels_task cimport MOMENTS, NO_MAP, NO_REDUCTION, SCALE, SCALE_SHIFT
from fastnorm._kernels.channels_task cimport SHIFT, SLOPE, Channels, Operands, high_parts
from fastnorm._kernels.channels_task cimport rescue_channel, set_coefficients
from fastnorm._kernels.channels_task cimport use_operands
from fastnorm._kernels.engine cimport load, plan, run_channels, set_operands, store
from fastnorm._kernels.moments cimport is_usable, reciprocal_std
from fastnorm._kernels.operands cimport working_dtype
from fastnorm._kernels.pooled cimport add_up_rows, merge_rows, pool
from fastnorm._kernels.vectors cimport Vector, vector_of

cnp.import_array()


cdef struct BatchNorm:
    Operands operands
    Channels channels
    Vector gamma                # (C,) or absent, as all below
    Vector beta
    Vector mean                 # float64
    Vector var
    Vector rstd                 # float64
    Vector running_mean
    Vector running_var
    double decay
    double correction           # from the biased variance to that which is kept
    Vector dgamma
    Vector dbeta
    Vector sum_dy               # float64; of the whole batch, as count is
    Vector sum_products
    double count
    double eps


cdef inline void set_normalize(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, const double* mean, const double* rstd
) noexcept nogil:
    """y = (x - high)·scale + shift, where mean = high + low"""
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double high[FEW]
    cdef double scale[FEW]
    cdef double shift[FEW]
    cdef double low
    cdef Py_ssize_t i
    high_parts(t, n, mean, high)
    load(norm.gamma, channel, n, 1, scale)
    load(norm.beta, channel, n, 0, shift)
    for i in range(n):
        scale[i] = scale[i] * rstd[i]
        low = mean[i] - high[i]
        shift[i] = shift[i] - (low * scale[i] if low != 0 else 0)  # the scale may be infinite
    set_coefficients(t, CENTRE, channel, n, high)
    set_coefficients(t, SCALE, channel, n, scale)
    set_coefficients(t, SHIFT, channel, n, shift)


cdef inline void move(
    Vector running, Py_ssize_t channel, Py_ssize_t n, double decay, double correction,
    const double* batch,
) noexcept nogil:
    """running = decay·running + (1 - decay)·correction·batch"""
    cdef double values[FEW]
    cdef Py_ssize_t i
    if running.dtype != NONE:
        load(running, channel, n, 0, values)
        for i in range(n):
            values[i] = decay * values[i] + (1 - decay) * (correction * batch[i])
        store(running, channel, n, values)


cdef void finish_forward(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* mean, double* m2
) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double var[FEW]
    cdef double rstd[FEW]
    cdef double count = <double> t.n * t.s
    cdef Py_ssize_t i
    for i in range(n):
        var[i] = m2[i] / count
        rstd[i] = reciprocal_std(var[i], norm.eps)
    for i in range(n):
        if not is_usable(var[i] + norm.eps, t.dtype):
            rescue_channel(t, channel + i, True, norm.eps, &mean[i], &var[i], &rstd[i])
    store(norm.mean, channel, n, mean)
    store(norm.rstd, channel, n, rstd)
    move(norm.running_mean, channel, n, norm.decay, 1, mean)
    move(norm.running_var, channel, n, norm.decay, norm.correction, var)
    set_normalize(t, channel, n, mean, rstd)


cdef void prepare_inference(Channels* t, Py_ssize_t channel, Py_ssize_t n) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double mean[FEW]
    cdef double rstd[FEW]
    cdef Py_ssize_t i
    load(norm.mean, channel, n, 0, mean)
    load(norm.var, channel, n, 1, rstd)
    for i in range(n):
        rstd[i] = reciprocal_std(rstd[i], norm.eps)
    store(norm.rstd, channel, n, rstd)
    set_normalize(t, channel, n, mean, rstd)


cdef void prepare_backward(Channels* t, Py_ssize_t channel, Py_ssize_t n) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double mean[FEW]
    cdef double rstd[FEW]
    load(norm.mean, channel, n, 0, mean)
    load(norm.rstd, channel, n, 1, rstd)
    high_parts(t, n, mean, mean)
    set_coefficients(t, CENTRE, channel, n, mean)
    set_coefficients(t, INVERSE, channel, n, rstd)


cdef inline void finish_gradients(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* sum_dy, double* sum_products,
    double* restrict left_over, double* restrict scale,
) noexcept nogil:
    """Store dgamma and dbeta. left_over = low·rstd, scale = gamma·rstd. sum_products becomes
    dgamma: of x̂ = (x - high)·rstd - low·rstd it has the first term."""
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double mean[FEW]
    cdef double rstd[FEW]
    cdef double high[FEW]
    cdef Py_ssize_t i
    load(norm.mean, channel, n, 0, mean)
    load(norm.rstd, channel, n, 1, rstd)
    load(norm.gamma, channel, n, 1, scale)
    high_parts(t, n, mean, high)
    for i in range(n):
        scale[i] = scale[i] * rstd[i]
        left_over[i] = (mean[i] - high[i]) * rstd[i]
        sum_products[i] -= left_over[i] * sum_dy[i]
    store(norm.dgamma, channel, n, sum_products)
    store(norm.dbeta, channel, n, sum_dy)


cdef inline void set_gradient(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, const double* sum_dy,
    const double* sum_products, double count, const double* left_over, const double* scale,
) noexcept nogil:
    """dx = (dy + (x - high)·slope + shift)·scale"""
    cdef double rstd[FEW]
    cdef double slope[FEW]
    cdef double shift[FEW]
    cdef Py_ssize_t i
    load((<BatchNorm*> t.norm).rstd, channel, n, 1, rstd)
    for i in range(n):
        slope[i] = -sum_products[i] / count * rstd[i]
        shift[i] = (sum_products[i] * left_over[i] - sum_dy[i]) / count
    set_coefficients(t, SCALE, channel, n, scale)
    set_coefficients(t, SLOPE, channel, n, slope)
    set_coefficients(t, SHIFT, channel, n, shift)


cdef void finish_backward(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* sum_dy, double* sum_products
) noexcept nogil:
    cdef double left_over[FEW]
    cdef double scale[FEW]
    cdef double count = <double> t.n * t.s
    finish_gradients(t, channel, n, sum_dy, sum_products, left_over, scale)
    set_gradient(t, channel, n, sum_dy, sum_products, count, left_over, scale)


cdef void finish_sums(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* sum_dy, double* sum_products
) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double left_over[FEW]
    cdef double scale[FEW]
    finish_gradients(t, channel, n, sum_dy, sum_products, left_over, scale)
    store(norm.sum_dy, channel, n, sum_dy)
    store(norm.sum_products, channel, n, sum_products)


cdef void prepare_gradient(Channels* t, Py_ssize_t channel, Py_ssize_t n) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double mean[FEW]
    cdef double high[FEW]
    cdef double rstd[FEW]
    cdef double scale[FEW]
    cdef double left_over[FEW]
    cdef double sum_dy[FEW]
    cdef double sum_products[FEW]
    cdef Py_ssize_t i
    load(norm.mean, channel, n, 0, mean)
    load(norm.rstd, channel, n, 1, rstd)
    load(norm.gamma, channel, n, 1, scale)
    load(norm.sum_dy, channel, n, 0, sum_dy)
    load(norm.sum_products, channel, n, 0, sum_products)
    high_parts(t, n, mean, high)
    for i in range(n):
        scale[i] = scale[i] * rstd[i]
        left_over[i] = (mean[i] - high[i]) * rstd[i]
    set_coefficients(t, CENTRE, channel, n, high)
    set_gradient(t, channel, n, sum_dy, sum_products, norm.count, left_over, scale)


cdef void finish_frozen_backward(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* sum_dy, double* sum_products
) noexcept nogil:
    """dx = dy·scale"""
    cdef double left_over[FEW]
    cdef double scale[FEW]
    finish_gradients(t, channel, n, sum_dy, sum_products, left_over, scale)
    set_coefficients(t, SCALE, channel, n, scale)


cdef int run_batch_norm(BatchNorm* norm, str function, int num_threads) except -1:
    cdef bint done
    norm.channels.norm = norm
    use_operands(&norm.channels, &norm.operands)
    with nogil:
        done = run_channels(&norm.channels, num_threads)
    if not done:
        raise MemoryError(f"{function}: no memory for the statistics")
    return 0


def forward(
    cnp.ndarray x,              # IN (N, C, S)
    cnp.ndarray gamma,          # IN (C,) or None
    cnp.ndarray beta,           # IN (C,) or None
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    double eps,
    double decay,
    double correction,          # of the variance that goes into running_var
    cnp.ndarray y,              # OUT (N, C, S)
    cnp.ndarray mean,           # OUT (C,) float64
    cnp.ndarray rstd,           # OUT (C,) float64
    cnp.ndarray running_mean,   # INOUT (C,) or None
    cnp.ndarray running_var,    # INOUT (C,) or None
    int num_threads,
):
    """Training: normalise with the statistics of the batch."""
    cdef BatchNorm norm
    plan(&norm.channels, MOMENTS, working_dtype(x), n, c, s)
    norm.channels.map, norm.channels.linear = SCALE_SHIFT, False
    norm.channels.prepare, norm.channels.finish = NULL, finish_forward
    set_operands(&norm.operands, x, None, y, norm.channels.dtype)
    norm.gamma, norm.beta, norm.eps = vector_of(gamma), vector_of(beta), eps
    norm.mean, norm.rstd = vector_of(mean), vector_of(rstd)
    norm.running_mean, norm.running_var = vector_of(running_mean), vector_of(running_var)
    norm.decay, norm.correction = decay, correction
    run_batch_norm(&norm, "batch_norm_forward", num_threads)


def moments(
    cnp.ndarray x,              # IN (N, C, S), not empty
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    cnp.ndarray state,          # OUT (1 + 3·C,) float64: see pooled.pxd
    int num_threads,
):
    """Count, mean and M2 of each channel, to the digits of a double whatever x is."""
    if not pool(x, n, c, s, <double*> cnp.PyArray_DATA(state), num_threads):
        raise MemoryError("Moments.of: no memory for the statistics")


def merge_moments(
    cnp.ndarray parts,          # IN (P, 1 + 3·C) float64, rows contiguous
    cnp.ndarray state,          # OUT (1 + 3·C,) float64
):
    """Those of all parts together, in their order."""
    cdef Py_ssize_t c = (cnp.PyArray_DIM(state, 0) - 1) // 3
    merge_rows(
        <const double*> cnp.PyArray_DATA(parts), cnp.PyArray_DIM(parts, 0),
        cnp.PyArray_STRIDE(parts, 0) // <Py_ssize_t> sizeof(double), c,
        <double*> cnp.PyArray_DATA(state),
    )


def infer(
    cnp.ndarray x,              # IN (N, C, S)
    cnp.ndarray mean,           # IN (C,)
    cnp.ndarray var,            # IN (C,)
    cnp.ndarray gamma,          # IN (C,) or None
    cnp.ndarray beta,           # IN (C,) or None
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    double eps,
    cnp.ndarray y,              # OUT (N, C, S), may be x
    cnp.ndarray rstd,           # OUT (C,) float64, or None
    int num_threads,
):
    """Normalise with given statistics."""
    cdef BatchNorm norm
    plan(&norm.channels, NO_REDUCTION, working_dtype(x), n, c, s)
    norm.channels.map, norm.channels.linear = SCALE_SHIFT, False
    norm.channels.prepare, norm.channels.finish = prepare_inference, NULL
    set_operands(&norm.operands, x, None, y, norm.channels.dtype)
    norm.gamma, norm.beta, norm.eps = vector_of(gamma), vector_of(beta), eps
    norm.mean, norm.var, norm.rstd = vector_of(mean), vector_of(var), vector_of(rstd)
    run_batch_norm(&norm, "batch_norm", num_threads)


def backward(
    cnp.ndarray dy,             # IN (N, C, S)
    cnp.ndarray x,              # IN (N, C, S)
    cnp.ndarray gamma,          # IN (C,) or None
    cnp.ndarray mean,           # IN (C,) float64
    cnp.ndarray rstd,           # IN (C,) float64
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    bint frozen,                # the statistics were given
    cnp.ndarray dx,             # OUT (N, C, S)
    cnp.ndarray dgamma,         # OUT (C,) or None
    cnp.ndarray dbeta,          # OUT (C,) or None
    int num_threads,
):
    cdef BatchNorm norm
    plan(&norm.channels, GRADIENT_SUMS, working_dtype(x), n, c, s)
    norm.channels.map, norm.channels.linear = SCALE_SHIFT if frozen else GRADIENT, frozen
    norm.channels.prepare = prepare_backward
    norm.channels.finish = finish_frozen_backward if frozen else finish_backward
    set_operands(&norm.operands, x, dy, dx, norm.channels.dtype)
    norm.gamma, norm.mean, norm.rstd = vector_of(gamma), vector_of(mean), vector_of(rstd)
    norm.dgamma, norm.dbeta = vector_of(dgamma), vector_of(dbeta)
    run_batch_norm(&norm, "batch_norm_backward", num_threads)


def gradient_sums(
    cnp.ndarray dy,             # IN (N, C, S), not empty
    cnp.ndarray x,              # IN (N, C, S)
    cnp.ndarray mean,           # IN (C,) float64
    cnp.ndarray rstd,           # IN (C,) float64
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    cnp.ndarray sum_dy,         # OUT (C,) float64
    cnp.ndarray sum_products,   # OUT (C,) float64
    cnp.ndarray dgamma,         # OUT (C,) or None
    cnp.ndarray dbeta,          # OUT (C,) or None
    int num_threads,
):
    """The sums of `backward` over these elements, and no more."""
    cdef BatchNorm norm
    plan(&norm.channels, GRADIENT_SUMS, working_dtype(x), n, c, s)
    norm.channels.map, norm.channels.linear = NO_MAP, False
    norm.channels.prepare, norm.channels.finish = prepare_backward, finish_sums
    set_operands(&norm.operands, x, dy, None, norm.channels.dtype)
    norm.gamma, norm.mean, norm.rstd = vector_of(None), vector_of(mean), vector_of(rstd)
    norm.dgamma, norm.dbeta = vector_of(dgamma), vector_of(dbeta)
    norm.sum_dy, norm.sum_products = vector_of(sum_dy), vector_of(sum_products)
    run_batch_norm(&norm, "batch_norm_backward", num_threads)


def add_rows(
    cnp.ndarray rows,           # IN (P, L) float64, rows contiguous
    cnp.ndarray sums,           # OUT (L,) float64
):
    """One after another, in their order."""
    add_up_rows(
        <const double*> cnp.PyArray_DATA(rows), cnp.PyArray_DIM(rows, 0),
        cnp.PyArray_STRIDE(rows, 0) // <Py_ssize_t> sizeof(double), cnp.PyArray_DIM(sums, 0),
        <double*> cnp.PyArray_DATA(sums),
    )


def map_gradient(
    cnp.ndarray dy,             # IN (N, C, S), not empty
    cnp.ndarray x,              # IN (N, C, S)
    cnp.ndarray gamma,          # IN (C,) or None
    cnp.ndarray mean,           # IN (C,) float64
    cnp.ndarray rstd,           # IN (C,) float64
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    cnp.ndarray sum_dy,         # IN (C,) float64, over the whole batch
    cnp.ndarray sum_products,   # IN (C,) float64
    double count,               # of the whole batch
    cnp.ndarray dx,             # OUT (N, C, S)
    int num_threads,
):
    """dx, given the sums."""
    cdef BatchNorm norm
    plan(&norm.channels, NO_REDUCTION, working_dtype(x), n, c, s)
    norm.channels.map, norm.channels.linear = GRADIENT, False
    norm.channels.prepare, norm.channels.finish = prepare_gradient, NULL
    set_operands(&norm.operands, x, dy, dx, norm.channels.dtype)
    norm.gamma, norm.mean, norm.rstd = vector_of(gamma), vector_of(mean), vector_of(rstd)
    norm.sum_dy, norm.sum_products = vector_of(sum_dy), vector_of(sum_products)
    norm.count = count
    run_batch_norm(&norm, "batch_norm_backward", num_threads)
