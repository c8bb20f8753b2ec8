"""Moments that are pooled: of the channels of an (N, C, S) view, or of several such, in double.

A channel's moments are its count, its mean to twice the digits of a double, and M2 = Σ(x - mean)².
They are rows of one array, (count, means, the means' low parts, M2s), 1 + 3·C doubles, which is
what travels. The low part is what keeps a pooled M2 right where the mean is large: it takes the
difference of two means, and of that a mean of 1e8 standard deviations leaves half of the digits.

The sums are taken about a guess at each channel's mean in one sweep; where one is far off, there is
another sweep, about the means that the first one found. Every x - centre is then small and, in
double, exact or nearly so, of whatever type x is.
"""

from libc.math cimport isfinite

from fastnorm._kernels.channels_task cimport CENTRE, CENTRED_SUMS, FEW, NO_MAP, Channels, Operands
from fastnorm._kernels.channels_task cimport set_coefficients, use_operands
from fastnorm._kernels.arrays cimport FLOAT64
from fastnorm._kernels.engine cimport plan, run_channels, set_operands
from fastnorm._kernels.operands cimport read_elements

cimport numpy as cnp

cdef enum:
    LOOKED_AT = 8               # elements of a channel, for the guess
    FAR_OFF = 16                # squares about the guess, to those about the mean: four bits lost


cdef struct Pooled:
    Operands operands
    Channels channels
    bint guesses                # else mean holds what is to be the centre
    double* mean                # (C,), as all below
    double* low                 # of the mean; at first Σ(x - centre)
    double* m2                  # at first Σ(x - centre)²


cdef inline double guess(Channels* t, Py_ssize_t channel) noexcept nogil:
    """The mean of a few elements, far from one another; of equal ones exactly that."""
    cdef Py_ssize_t total = t.n * t.s, count = min(total, <Py_ssize_t> LOOKED_AT), i, element
    cdef double value, first = 0, others = 0
    for i in range(count):
        element = total // count * i + total // count // 2
        read_elements(
            t.x, (element // t.s * t.c + channel) * t.s + element % t.s, <Py_ssize_t> 1, &value
        )
        if i == 0:
            first = value
        others += value - first
    first += others / count
    return first if isfinite(first) else 0


cdef inline void prepare_centres(Channels* t, Py_ssize_t channel, Py_ssize_t n) noexcept nogil:
    cdef Pooled* pooled = <Pooled*> t.norm
    cdef Py_ssize_t i
    if pooled.guesses:
        for i in range(channel, channel + n):
            pooled.mean[i] = guess(t, i)
    set_coefficients(t, CENTRE, channel, n, pooled.mean + channel)


cdef inline void keep_sums(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* sums, double* squares
) noexcept nogil:
    cdef Pooled* pooled = <Pooled*> t.norm
    cdef Py_ssize_t i
    for i in range(n):
        pooled.low[channel + i] = sums[i]
        pooled.m2[channel + i] = squares[i]


cdef inline void add_to_mean(double* mean, double* low, double shift) noexcept nogil:
    """(mean, low) += shift, as a pair whose first is the rounded sum of both."""
    cdef double high = mean[0] + shift
    cdef double back = high - mean[0]
    cdef double rest = (mean[0] - (high - back)) + (shift - back) + low[0]
    if not isfinite(high):
        mean[0], low[0] = high, 0
        return
    mean[0] = high + rest
    low[0] = rest - (mean[0] - high)


cdef inline bint settle(Pooled* pooled) noexcept nogil:
    """Mean and M2 from the sums. False: a centre was too far from its mean."""
    cdef Channels* t = &pooled.channels
    cdef double count = <double> t.n * t.s, shift, off
    cdef bint good = True
    cdef Py_ssize_t i
    for i in range(t.c):
        shift = pooled.low[i] / count
        off = pooled.low[i] * shift
        good = good and not off * FAR_OFF > pooled.m2[i] * (FAR_OFF - 1)
        pooled.m2[i] -= off
        if pooled.m2[i] < 0:    # by rounding, in a constant channel; NaN stays NaN
            pooled.m2[i] = 0
        pooled.low[i] = 0
        add_to_mean(&pooled.mean[i], &pooled.low[i], shift)
    return good


cdef inline bint pool(
    cnp.ndarray x, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, double* moments, int num_threads
) noexcept:
    """Of an array that is not empty. False: no memory."""
    cdef Pooled pooled
    cdef bint done
    plan(&pooled.channels, CENTRED_SUMS, FLOAT64, n, c, s)
    pooled.channels.map, pooled.channels.linear = NO_MAP, False
    pooled.channels.prepare, pooled.channels.finish = prepare_centres, keep_sums
    pooled.channels.norm = &pooled
    set_operands(&pooled.operands, x, None, None, FLOAT64)
    use_operands(&pooled.channels, &pooled.operands)
    moments[0] = <double> n * s
    pooled.mean, pooled.low, pooled.m2 = moments + 1, moments + 1 + c, moments + 1 + 2 * c
    pooled.guesses = True
    with nogil:
        done = run_channels(&pooled.channels, num_threads)
        if done and not settle(&pooled):
            pooled.guesses = False
            done = run_channels(&pooled.channels, num_threads)
            settle(&pooled)
    return done


# Rows of several members


cdef inline void add_up_rows(
    const double* rows, Py_ssize_t parts, Py_ssize_t stride, Py_ssize_t n, double* sums
) noexcept nogil:
    cdef Py_ssize_t part, i
    for i in range(n):
        sums[i] = 0
    for part in range(parts):
        for i in range(n):
            sums[i] += rows[part * stride + i]


# Chan's formula


cdef inline void merge_channel(
    double count, double more, double* mean, double* low, double* m2,
    double other_mean, double other_low, double other_m2,
) noexcept nogil:
    cdef double total = count + more
    cdef double delta = (other_mean - mean[0]) + (other_low - low[0])
    m2[0] = m2[0] + other_m2 + delta * delta * (count * (more / total))
    if isfinite(delta):
        add_to_mean(mean, low, delta * (more / total))
    else:                       # a mean is not finite, or they are more than a double apart
        mean[0] = mean[0] * (count / total) + other_mean * (more / total)
        low[0] = 0


cdef inline void merge_rows(
    const double* rows, Py_ssize_t parts, Py_ssize_t stride, Py_ssize_t c, double* moments
) noexcept nogil:
    """One part after another, each a row. Those that are empty change nothing."""
    cdef const double* row
    cdef Py_ssize_t part, i
    for i in range(1 + 3 * c):
        moments[i] = 0
    for part in range(parts):
        row = rows + part * stride
        if row[0] == 0:
            continue
        if moments[0] == 0:
            for i in range(1 + 3 * c):
                moments[i] = row[i]
            continue
        for i in range(c):
            merge_channel(
                moments[0], row[0], &moments[1 + i], &moments[1 + c + i], &moments[1 + 2 * c + i],
                row[1 + i], row[1 + c + i], row[1 + 2 * c + i],
            )
        moments[0] += row[0]
