# cython: boundscheck=False, wraparound=False
"""Group norm (Wu and He, arXiv:1803.08494) of a (B, N, C, S) view: B samples, D adjacent channels
a group, m = N·D·S. With D = 1 it is instance norm (Ulyanov et al., arXiv:1607.08022).

    x̂ = (x - mean)·rstd,  rstd = 1 / sqrt(var + eps)        y = x̂·gamma + beta

    dgamma = Σdy·x̂        dbeta = Σdy                       sums over B, N and S
    h = dy·gamma
    dx = rstd·(h - Σh/m - x̂·Σ(h·x̂)/m)                       sums over N, the group and S

Kept for the backward pass: mean and rstd, two numbers a group, in double. channels.pxd walks the
view of each sample, or that of all of them, (1, B·C, S), where N = 1. Backward, and forward where a
group does not lie in one piece (N > 1), reduce it by channels, and what is said of a group follows
from its channels' numbers; else forward reduces a group as one channel of D·S elements. Groups of
short planes are rows of layer norm: group_norm_rows.pxd.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cimport numpy as cnp

from fastnorm._kernels.arrays cimport FLOAT32, NONE, Dtype, data_of, itemsize_of, real
from fastnorm._kernels.blocks cimport ceil_div, threads_for
from fastnorm._kernels.channels_task cimport CENTRE, FEW, GRADIENT_SUMS, INVERSE, MOMENTS
from fastnorm._kernels.channels_task cimport NO_REDUCTION, SCALE, SCALE_SHIFT, SHIFT, SLOPE
from fastnorm._kernels.channels_task cimport WEIGHTED_GRADIENT, Channels, Operands, Reduction
from fastnorm._kernels.channels_task cimport high_parts, plan_groups, rescue_channels
from fastnorm._kernels.channels_task cimport set_coefficients, set_of_groups, use_operands
from fastnorm._kernels.engine cimport backward_groups, forward_rows, load, run_channels
from fastnorm._kernels.engine cimport set_operands, set_rows, store
from fastnorm._kernels.group_norm_task cimport GroupRows, are_rows
from fastnorm._kernels.moments cimport is_usable, reciprocal_std
from fastnorm._kernels.operands cimport working_dtype
from fastnorm._kernels.rows_task cimport Task, set_view
from fastnorm._kernels.vectors cimport Vector, vector_of
from fastnorm._pool cimport parallel_for

cnp.import_array()


cdef struct GroupNorm:
    Operands operands
    Channels channels           # (N, C, S) of each sample, or (1, B·C, S)
    Channels groups             # (1, B·C / D, D·S): what forward reduces where N is 1
    Py_ssize_t batch, c         # B, C
    Py_ssize_t group            # D
    Vector gamma                # (C,) or absent, as beta
    Vector beta
    Vector mean                 # (B, C / D) float64
    Vector rstd
    double eps
    double* first               # (B, C): two numbers for each channel of each sample
    double* second
    Vector dgamma
    Vector dbeta


cdef inline void load_parameter(
    GroupNorm* norm, Vector parameter, Py_ssize_t channel, Py_ssize_t n, double absent,
    double* values,
) noexcept nogil:
    """For n channels, which may belong to several samples."""
    cdef Py_ssize_t i = 0, start, length
    while i < n:
        start = (channel + i) % norm.c
        length = min(n - i, norm.c - start)
        load(parameter, start, length, absent, values + i)
        i += length


cdef inline void load_groups(
    GroupNorm* norm, Vector vector, Py_ssize_t sample, Py_ssize_t channel, Py_ssize_t n,
    double* restrict values,
) noexcept nogil:
    """For n channels, at most FEW, what `vector` has for their groups."""
    cdef double of_groups[FEW]
    cdef double value
    cdef Py_ssize_t first = sample * norm.c + channel, i = 0, group = 0, stop
    if norm.group == 1:
        load(vector, first, n, 0, values)
        return
    stop = norm.group - channel % norm.group
    load(vector, first // norm.group, ceil_div(n - min(stop, n), norm.group) + 1, 0, of_groups)
    while i < n:
        value = of_groups[group]
        while i < min(stop, n):
            values[i] = value
            i += 1
        group += 1
        stop += norm.group


# Forward


cdef inline void finish_group(
    Channels* t, Py_ssize_t group, Py_ssize_t channel, Py_ssize_t channels, double mean, double m2
) noexcept nogil:
    """Store the statistics of a group, which is these channels of the view t."""
    cdef GroupNorm* norm = <GroupNorm*> t.norm
    cdef double var = m2 / (<double> t.n * channels * t.s)
    cdef double rstd = reciprocal_std(var, norm.eps)
    if not is_usable(var + norm.eps, t.dtype):
        rescue_channels(t, channel, channels, True, norm.eps, &mean, &var, &rstd)
    group += t.sample * (norm.c // norm.group)
    store(norm.mean, group, 1, &mean)
    store(norm.rstd, group, 1, &rstd)


cdef inline void set_normalize(
    Channels* t, Py_ssize_t channel, Py_ssize_t last_channel
) noexcept nogil:
    """y = (x - high)·scale + shift, where mean = high + low"""
    cdef GroupNorm* norm = <GroupNorm*> t.norm
    cdef double mean[FEW]
    cdef double rstd[FEW]
    cdef double high[FEW]
    cdef double scale[FEW]
    cdef double shift[FEW]
    cdef double low
    cdef Py_ssize_t n, i
    while channel < last_channel:
        n = min(last_channel - channel, <Py_ssize_t> FEW)
        load_groups(norm, norm.mean, t.sample, channel, n, mean)
        load_groups(norm, norm.rstd, t.sample, channel, n, rstd)
        high_parts(t, n, mean, high)
        load_parameter(norm, norm.gamma, channel, n, 1, scale)
        load_parameter(norm, norm.beta, channel, n, 0, shift)
        for i in range(n):
            scale[i] = scale[i] * rstd[i]
            low = mean[i] - high[i]
            shift[i] = shift[i] - (low * scale[i] if low != 0 else 0)  # the scale may be infinite
        set_coefficients(t, CENTRE, channel, n, high)
        set_coefficients(t, SCALE, channel, n, scale)
        set_coefficients(t, SHIFT, channel, n, shift)
        channel += n


cdef void finish_forward(
    Channels* t, Py_ssize_t group, Py_ssize_t n, double* mean, double* m2
) noexcept nogil:
    """Of groups that were reduced as channels."""
    cdef GroupNorm* norm = <GroupNorm*> t.norm
    cdef Py_ssize_t i
    for i in range(n):
        finish_group(t, group + i, group + i, 1, mean[i], m2[i])
    set_normalize(t.mapped, group * norm.group, (group + n) * norm.group)


cdef void keep(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* first, double* second
) noexcept nogil:
    """The numbers of n channels."""
    cdef GroupNorm* norm = <GroupNorm*> t.norm
    memcpy(norm.first + t.sample * t.c + channel, first, n * sizeof(double))
    memcpy(norm.second + t.sample * t.c + channel, second, n * sizeof(double))


cdef void conclude_forward(
    Channels* t, Py_ssize_t channel, Py_ssize_t last_channel
) noexcept nogil:
    """Of groups whose channels were reduced: Chan's formula for all of a group at once."""
    cdef GroupNorm* norm = <GroupNorm*> t.norm
    cdef double count = <double> t.n * t.s
    cdef double* mean
    cdef double* m2
    cdef double group_mean, group_m2, delta
    cdef Py_ssize_t first = channel, i
    while first < last_channel:
        mean = norm.first + t.sample * t.c + first
        m2 = norm.second + t.sample * t.c + first
        group_mean, group_m2 = 0, 0
        for i in range(norm.group):
            # Relative to the first: equal means have that mean exactly.
            group_mean += (mean[i] - mean[0]) / norm.group
        group_mean += mean[0]
        for i in range(norm.group):
            delta = mean[i] - group_mean
            group_m2 += m2[i] + count * (delta * delta)
        finish_group(t, first // norm.group, first, norm.group, group_mean, group_m2)
        first += norm.group
    set_normalize(t, channel, last_channel)


# Backward


cdef void prepare_backward(Channels* t, Py_ssize_t channel, Py_ssize_t n) noexcept nogil:
    cdef GroupNorm* norm = <GroupNorm*> t.norm
    cdef double values[FEW]
    load_groups(norm, norm.mean, t.sample, channel, n, values)
    high_parts(t, n, values, values)
    set_coefficients(t, CENTRE, channel, n, values)
    load_groups(norm, norm.rstd, t.sample, channel, n, values)
    set_coefficients(t, INVERSE, channel, n, values)


cdef inline void add_weighted(
    Py_ssize_t n, const double* gamma, const double* sum_dy, double* sum_products,
    double left_over, double* sum_h, double* sum_h_xhat,
) noexcept nogil:
    """Σh and Σ(h·x̂) of n channels of a group. Their sums of products become terms of dgamma: of
    x̂ = (x - high)·rstd - low·rstd they have the first term."""
    cdef double h = sum_h[0], h_xhat = sum_h_xhat[0]
    cdef Py_ssize_t i
    for i in range(n):
        sum_products[i] -= left_over * sum_dy[i]
        h += gamma[i] * sum_dy[i]
        h_xhat += gamma[i] * sum_products[i]
    sum_h[0], sum_h_xhat[0] = h, h_xhat


cdef inline void conclude_groups(Channels* t, Py_ssize_t channel, Py_ssize_t groups) noexcept nogil:
    """Of groups with FEW channels in all, or one with more, from `channel` on."""
    cdef GroupNorm* norm = <GroupNorm*> t.norm
    cdef double* sum_dy = norm.first + t.sample * t.c + channel
    cdef double* sum_products = norm.second + t.sample * t.c + channel
    cdef double gamma[FEW]
    cdef double mean[FEW]
    cdef double rstd[FEW]
    cdef double left_over[FEW]
    cdef double sum_h[FEW]
    cdef double sum_h_xhat[FEW]
    cdef double slope[FEW]
    cdef double shift[FEW]
    cdef double count = <double> t.n * norm.group * t.s
    cdef Py_ssize_t group = channel // norm.group
    cdef Py_ssize_t first = t.sample * (norm.c // norm.group) + group
    cdef Py_ssize_t all_channels = groups * norm.group, start = 0, n, i, k
    load(norm.mean, first, groups, 0, mean)
    load(norm.rstd, first, groups, 0, rstd)
    high_parts(t, groups, mean, left_over)
    for k in range(groups):
        left_over[k] = (mean[k] - left_over[k]) * rstd[k]
        sum_h[k], sum_h_xhat[k] = 0, 0
    while start < all_channels:
        n = min(all_channels - start, <Py_ssize_t> FEW)
        load_parameter(norm, norm.gamma, channel + start, n, 1, gamma)
        set_coefficients(t, SCALE, channel + start, n, gamma)
        for k in range(groups):
            i = k * norm.group
            add_weighted(
                min(n - i, norm.group), gamma + i, sum_dy + start + i, sum_products + start + i,
                left_over[k], sum_h + k, sum_h_xhat + k,
            )
        start += n
    for k in range(groups):
        slope[k] = -sum_h_xhat[k] / count * rstd[k]
        shift[k] = (sum_h_xhat[k] * left_over[k] - sum_h[k]) / count
    set_of_groups(t, SLOPE, group, groups, norm.group, slope)
    set_of_groups(t, SHIFT, group, groups, norm.group, shift)


cdef void conclude_backward(
    Channels* t, Py_ssize_t channel, Py_ssize_t last_channel
) noexcept nogil:
    """dx = (dy·gamma + ((x - high)·slope + shift))·rstd"""
    cdef GroupNorm* norm = <GroupNorm*> t.norm
    cdef Py_ssize_t at_once = max(FEW // norm.group, <Py_ssize_t> 1), groups
    while channel < last_channel:
        groups = min(at_once, (last_channel - channel) // norm.group)
        conclude_groups(t, channel, groups)
        channel += groups * norm.group


cdef void sum_samples(void* task, Py_ssize_t block) noexcept nogil:
    """dgamma and dbeta of a few channels."""
    cdef GroupNorm* norm = <GroupNorm*> task
    cdef Py_ssize_t channel = block * FEW, c = norm.c, sample, i
    cdef Py_ssize_t n = min(c - channel, <Py_ssize_t> FEW)
    cdef double dgamma[FEW]
    cdef double dbeta[FEW]
    for i in range(n):
        dgamma[i], dbeta[i] = 0, 0
    for sample in range(norm.batch):
        for i in range(n):
            dgamma[i] += norm.second[sample * c + channel + i]
            dbeta[i] += norm.first[sample * c + channel + i]
    store(norm.dgamma, channel, n, dgamma)
    store(norm.dbeta, channel, n, dbeta)


# Entry points


cdef inline void plan_group_norm(
    GroupNorm* norm, Reduction reduction, Dtype dtype, Py_ssize_t batch, Py_ssize_t n,
    Py_ssize_t c, Py_ssize_t s, Py_ssize_t num_groups,
) noexcept nogil:
    norm.batch, norm.c, norm.group = batch, c, c // num_groups
    if n == 1:
        batch, c = 1, batch * c
    plan_groups(&norm.channels, reduction, dtype, batch, n, c, s, norm.group)


cdef int run_group_norm(
    GroupNorm* norm, Channels* t, str function, int num_threads
) except -1:
    cdef Py_ssize_t num_bytes = norm.batch * norm.c * sizeof(double)
    cdef bint done = False
    use_operands(&norm.channels, &norm.operands)
    use_operands(&norm.groups, &norm.operands)
    with nogil:
        norm.first = <double*> malloc(2 * num_bytes)
        if norm.first != NULL:
            norm.second = norm.first + norm.batch * norm.c
            norm.channels.norm = norm.groups.norm = norm
            done = run_channels(t, num_threads)
        if done and t.reduction == GRADIENT_SUMS:
            parallel_for(
                sum_samples, norm, ceil_div(norm.c, FEW), threads_for(2 * num_bytes, num_threads)
            )
        free(norm.first)
    if not done:
        raise MemoryError(f"{function}: no memory for the statistics")
    return 0


cdef inline void expand_typed(
    Vector parameter, Py_ssize_t c, Py_ssize_t s, real* restrict values
) noexcept nogil:
    cdef double value
    cdef Py_ssize_t i, j
    for i in range(c):
        load(parameter, i, 1, 0, &value)
        for j in range(s):
            values[i * s + j] = <real> value


cdef inline void* expanded(Vector parameter, Dtype dtype, Py_ssize_t c, Py_ssize_t s) except? NULL:
    """A value for each element of a channel, in x's type; NULL where the parameter is absent."""
    cdef void* values
    if parameter.dtype == NONE:
        return NULL
    values = malloc(c * s * itemsize_of(dtype))
    if values == NULL:
        raise MemoryError
    if dtype == FLOAT32:
        expand_typed(parameter, c, s, <float*> values)
    else:
        expand_typed(parameter, c, s, <double*> values)
    return values


cdef int run_rows(
    GroupRows* rows, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y, Py_ssize_t batch,
    Py_ssize_t num_groups, Py_ssize_t group, Py_ssize_t s, Vector gamma, Vector beta,
    str function, int num_threads,
) except -1:
    """Forward, or backward where there is dy."""
    cdef Task* t = &rows.task
    cdef bint done
    cdef void* scale = NULL
    cdef void* shift = NULL
    set_view(t, working_dtype(x), True, batch * num_groups, group * s)
    rows.s, t.period = s, num_groups
    set_rows(t, x, dy, y, False)
    try:
        scale = expanded(gamma, t.dtype, num_groups * group, s)
        shift = expanded(beta, t.dtype, num_groups * group, s)
        t.gamma, t.beta = scale, shift
        with nogil:
            if t.dy.data == NULL:
                done = forward_rows(t, num_threads)
            else:
                done = backward_groups(rows, num_threads)
        if not done:
            raise MemoryError
    except MemoryError:
        raise MemoryError(f"{function}: no memory for the parameters") from None
    finally:
        free(scale)
        free(shift)
    return 0


def forward(
    str function,
    cnp.ndarray x,              # IN (B, N, C, S)
    cnp.ndarray gamma,          # IN (C,) or None
    cnp.ndarray beta,           # IN (C,) or None
    Py_ssize_t batch,
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    Py_ssize_t num_groups,
    double eps,
    cnp.ndarray y,              # OUT (B, N, C, S), may be x
    cnp.ndarray mean,           # OUT (B, num_groups) float64
    cnp.ndarray rstd,           # OUT (B, num_groups) float64
    int num_threads,
):
    cdef GroupRows rows
    cdef GroupNorm norm
    cdef Channels* t = &norm.channels
    cdef Dtype dtype = working_dtype(x)
    if are_rows(n, s, c // num_groups):
        rows.task.mean, rows.task.rstd = <double*> data_of(mean), <double*> data_of(rstd)
        rows.task.eps = eps
        run_rows(
            &rows, x, None, y, batch, num_groups, c // num_groups, s, vector_of(gamma),
            vector_of(beta), function, num_threads,
        )
        return
    plan_group_norm(
        &norm, NO_REDUCTION if n == 1 else MOMENTS, dtype, batch, n, c, s, num_groups
    )
    t.map, t.linear = SCALE_SHIFT, False
    t.prepare, t.finish, t.conclude = NULL, keep, conclude_forward
    set_operands(&norm.operands, x, None, y, dtype)
    if n == 1:
        t = &norm.groups
        plan_groups(t, MOMENTS, dtype, 1, 1, batch * num_groups, norm.group * s, 1)
        t.prepare, t.finish, t.mapped = NULL, finish_forward, &norm.channels
    norm.gamma, norm.beta, norm.eps = vector_of(gamma), vector_of(beta), eps
    norm.mean, norm.rstd = vector_of(mean), vector_of(rstd)
    run_group_norm(&norm, t, function, num_threads)


def backward(
    str function,
    cnp.ndarray dy,             # IN (B, N, C, S)
    cnp.ndarray x,              # IN (B, N, C, S)
    cnp.ndarray gamma,          # IN (C,) or None
    cnp.ndarray mean,           # IN (B, num_groups) float64
    cnp.ndarray rstd,           # IN (B, num_groups) float64
    Py_ssize_t batch,
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    Py_ssize_t num_groups,
    cnp.ndarray dx,             # OUT (B, N, C, S)
    cnp.ndarray dgamma,         # OUT (C,) or None
    cnp.ndarray dbeta,          # OUT (C,) or None
    int num_threads,
):
    cdef GroupRows rows
    cdef GroupNorm norm
    cdef Channels* t = &norm.channels
    if are_rows(n, s, c // num_groups):
        rows.task.mean, rows.task.rstd = <double*> data_of(mean), <double*> data_of(rstd)
        rows.task.dgamma, rows.task.dbeta = vector_of(dgamma), vector_of(dbeta)
        run_rows(
            &rows, x, dy, dx, batch, num_groups, c // num_groups, s, vector_of(gamma),
            vector_of(None), function, num_threads,
        )
        return
    plan_group_norm(&norm, GRADIENT_SUMS, working_dtype(x), batch, n, c, s, num_groups)
    t.map, t.linear = WEIGHTED_GRADIENT, False
    t.prepare, t.finish, t.conclude = prepare_backward, keep, conclude_backward
    set_operands(&norm.operands, x, dy, dx, t.dtype)
    norm.gamma, norm.mean, norm.rstd = vector_of(gamma), vector_of(mean), vector_of(rstd)
    norm.dgamma, norm.dbeta = vector_of(dgamma), vector_of(dbeta)
    run_group_norm(&norm, t, function, num_threads)
