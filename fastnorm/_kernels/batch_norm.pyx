# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Batch norm (Ioffe and Szegedy, arXiv:1502.03167) over the channels of an (N, C, S) view, m = N·S.

    x̂ = (x - mean)·rstd,  rstd = 1 / sqrt(var + eps)        y = x̂·gamma + beta

    dgamma = Σdy·x̂        dbeta = Σdy                       sums over N and S
    dx = gamma·rstd·(dy - dbeta/m - x̂·dgamma/m)             statistics of the batch
    dx = gamma·rstd·dy                                      given (frozen) statistics

Kept for the backward pass: mean and rstd, two numbers a channel, in double. channels.pxd walks the
view; here is what happens to the two numbers of a channel.
"""

cimport numpy as cnp

from fastnorm._kernels.arrays cimport Vector, data_of, dtype_of, get, put, vector_of
from fastnorm._kernels.channels cimport CENTRE, GRADIENT, GRADIENT_SUMS, INVERSE, MOMENTS
from fastnorm._kernels.channels cimport NO_REDUCTION, SCALE, SCALE_SHIFT, SHIFT, SLOPE, Channels
from fastnorm._kernels.channels cimport plan, rescue_channel, round_to_dtype, run, set_coefficient
from fastnorm._kernels.moments cimport is_usable, low_part, reciprocal_std

cnp.import_array()


cdef struct BatchNorm:
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
    double eps


cdef void normalize_channel(
    Channels* t, Py_ssize_t channel, double mean, double rstd
) noexcept nogil:
    """y = (x - high)·scale + shift, where mean = high + low"""
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double high = round_to_dtype(t, mean)
    cdef double scale = rstd * get(norm.gamma, channel, 1)
    set_coefficient(t, CENTRE, channel, high)
    set_coefficient(t, SCALE, channel, scale)
    set_coefficient(
        t, SHIFT, channel, get(norm.beta, channel, 0) - low_part(mean, high) * scale
    )


cdef inline void move(Vector running, Py_ssize_t channel, double decay, double batch) noexcept nogil:
    """running = decay·running + (1 - decay)·batch"""
    put(running, channel, decay * get(running, channel, 0) + (1 - decay) * batch)


cdef void finish_forward(Channels* t, Py_ssize_t channel, double mean, double m2) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef Py_ssize_t count = t.n * t.s
    cdef double var = m2 / count
    cdef double rstd = reciprocal_std(var, norm.eps)
    if not is_usable(var + norm.eps, t.dtype):
        rescue_channel(t, channel, True, norm.eps, &mean, &var, &rstd)
    put(norm.mean, channel, mean)
    put(norm.rstd, channel, rstd)
    move(norm.running_mean, channel, norm.decay, mean)
    move(norm.running_var, channel, norm.decay, var * norm.correction)
    normalize_channel(t, channel, mean, rstd)


cdef void prepare_inference(Channels* t, Py_ssize_t channel) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double rstd = reciprocal_std(get(norm.var, channel, 1), norm.eps)
    put(norm.rstd, channel, rstd)
    normalize_channel(t, channel, get(norm.mean, channel, 0), rstd)


cdef void prepare_backward(Channels* t, Py_ssize_t channel) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    set_coefficient(t, CENTRE, channel, round_to_dtype(t, get(norm.mean, channel, 0)))
    set_coefficient(t, INVERSE, channel, get(norm.rstd, channel, 1))


cdef double store_parameter_gradients(
    Channels* t, Py_ssize_t channel, double sum_dy, double sum_products
) noexcept nogil:
    """Returns dgamma: x̂ = (x - high)·rstd - low·rstd, of which the sum has the first term."""
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double mean = get(norm.mean, channel, 0), rstd = get(norm.rstd, channel, 1)
    cdef double low = low_part(mean, round_to_dtype(t, mean))
    cdef double dgamma = sum_products - low * rstd * sum_dy
    put(norm.dgamma, channel, dgamma)
    put(norm.dbeta, channel, sum_dy)
    return dgamma


cdef void finish_backward(
    Channels* t, Py_ssize_t channel, double sum_dy, double sum_products
) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double dgamma = store_parameter_gradients(t, channel, sum_dy, sum_products)
    cdef double mean = get(norm.mean, channel, 0), rstd = get(norm.rstd, channel, 1)
    cdef double low = low_part(mean, round_to_dtype(t, mean))
    cdef double count = <double> t.n * t.s
    set_coefficient(t, SCALE, channel, rstd * get(norm.gamma, channel, 1))
    set_coefficient(t, SLOPE, channel, -dgamma / count)
    set_coefficient(t, SHIFT, channel, (dgamma * (low * rstd) - sum_dy) / count)


cdef void finish_frozen_backward(
    Channels* t, Py_ssize_t channel, double sum_dy, double sum_products
) noexcept nogil:
    cdef BatchNorm* norm = <BatchNorm*> t.norm
    cdef double rstd = get(norm.rstd, channel, 1)
    store_parameter_gradients(t, channel, sum_dy, sum_products)
    set_coefficient(t, CENTRE, channel, 0)
    set_coefficient(t, SCALE, channel, rstd * get(norm.gamma, channel, 1))
    set_coefficient(t, SHIFT, channel, -0.0)  # adding it changes nothing, not even a zero's sign


cdef int run_batch_norm(BatchNorm* norm, str function, int num_threads) except -1:
    cdef bint done
    norm.channels.norm = norm
    with nogil:
        done = run(&norm.channels, num_threads)
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
    plan(&norm.channels, MOMENTS, dtype_of(x), n, c, s)
    norm.channels.map = SCALE_SHIFT
    norm.channels.prepare, norm.channels.finish = NULL, finish_forward
    norm.channels.x, norm.channels.dy, norm.channels.source = data_of(x), NULL, data_of(x)
    norm.channels.y = data_of(y)
    norm.gamma, norm.beta, norm.eps = vector_of(gamma), vector_of(beta), eps
    norm.mean, norm.rstd = vector_of(mean), vector_of(rstd)
    norm.running_mean, norm.running_var = vector_of(running_mean), vector_of(running_var)
    norm.decay, norm.correction = decay, correction
    run_batch_norm(&norm, "batch_norm_forward", num_threads)


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
    plan(&norm.channels, NO_REDUCTION, dtype_of(x), n, c, s)
    norm.channels.map = SCALE_SHIFT
    norm.channels.prepare, norm.channels.finish = prepare_inference, NULL
    norm.channels.x, norm.channels.dy, norm.channels.source = data_of(x), NULL, data_of(x)
    norm.channels.y = data_of(y)
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
    plan(&norm.channels, GRADIENT_SUMS, dtype_of(x), n, c, s)
    norm.channels.map = SCALE_SHIFT if frozen else GRADIENT
    norm.channels.prepare = prepare_backward
    norm.channels.finish = finish_frozen_backward if frozen else finish_backward
    norm.channels.x, norm.channels.dy = data_of(x), data_of(dy)
    norm.channels.source, norm.channels.y = data_of(dy), data_of(dx)
    norm.gamma, norm.mean, norm.rstd = vector_of(gamma), vector_of(mean), vector_of(rstd)
    norm.dgamma, norm.dbeta = vector_of(dgamma), vector_of(dbeta)
    run_batch_norm(&norm, "batch_norm_backward", num_threads)
