"""The numbers of a row, those of all rows of a group side by side, so that they are computed by
vectors.

In x̂ = (x - high)·rstd + shift the mean is high + low: `high` has the digits of the type, so that
x - high is exact or nearly so, and `low`, what they leave over, goes into the shift.
"""

from fastnorm._kernels.arrays cimport real
from fastnorm._kernels.rows_task cimport MAX_GROUP, Task, inverse_or_zero
from fastnorm._kernels.vectors cimport load, store

cdef extern from "lanes.h" nogil:
    enum:
        ROW_NUMBERS "FASTNORM_ROW_NUMBERS"

# What gradients need of a row (run_maps.h): `numbers` has MAX_GROUP of each.
cdef enum:
    HIGH = 0
    RSTD = MAX_GROUP
    SHIFT = 2 * MAX_GROUP
    MEAN_H = 3 * MAX_GROUP      # Σh/N
    MEAN_HX = 4 * MAX_GROUP     # Σ(h·x̂)/N
    # Instead of these two, what those of weight norm need.
    LENGTH_SCALE = MEAN_H
    LENGTH_SLOPE = MEAN_HX


# What these come from, in double.
cdef struct Group:
    double mean[MAX_GROUP]
    double rstd[MAX_GROUP]
    double scale[MAX_GROUP]     # of the gradients
    double h[MAX_GROUP]         # Σh
    double hx[MAX_GROUP]        # Σ(h·x̂)


cdef inline double shift_of(double mean, double high, double rstd) noexcept nogil:
    return -(mean - high) * rstd


cdef inline void split_means(
    Task* t, Py_ssize_t count, const double* mean, const double* rstd, real* restrict high,
    real* restrict scale, real* restrict shift,
) noexcept nogil:
    """x̂ = (x - high)·scale + shift of some rows. Not centred, the shift is -0, even where the
    scale is infinite: adding it changes nothing, not even a zero's sign."""
    cdef Py_ssize_t k
    for k in range(count):
        high[k], scale[k] = <real> mean[k], <real> rstd[k]
        shift[k] = <real> shift_of(mean[k], high[k], rstd[k]) if t.centred else -0.0


cdef inline void load_statistics(
    Task* t, Py_ssize_t index, Py_ssize_t count, double* restrict mean, double* restrict rstd,
    double* restrict scale,
) noexcept nogil:
    """What the forward pass kept of some rows, and the scale of their gradients."""
    cdef Py_ssize_t k
    if t.by_length:
        load(t.norm, index, count, 0, rstd)
        load(t.g, index, count, 1, scale)
        for k in range(count):
            mean[k], rstd[k] = 0, inverse_or_zero(rstd[k])
            scale[k] *= rstd[k]
        return
    for k in range(count):
        mean[k] = t.mean[index + k] if t.centred else 0
        rstd[k] = scale[k] = t.rstd[index + k]


cdef inline void load_group(
    Task* t, Py_ssize_t index, Py_ssize_t count, Group* rows, real* numbers
) noexcept nogil:
    """All but the sums."""
    load_statistics(t, index, count, rows.mean, rows.rstd, rows.scale)
    split_means(t, count, rows.mean, rows.rstd, numbers + HIGH, numbers + RSTD, numbers + SHIFT)


cdef inline void settle_sums(
    Task* t, Py_ssize_t first, Py_ssize_t last, Group* rows, const real* numbers
) noexcept nogil:
    """From Σ(h·(x - high)·rstd) in hx, Σ(h·x̂)."""
    cdef Py_ssize_t k
    if t.centred:
        for k in range(first, last):
            rows.hx[k] += shift_of(rows.mean[k], numbers[HIGH + k], rows.rstd[k]) * rows.h[k]


cdef inline void finish_rows(
    Task* t, Py_ssize_t first, Py_ssize_t last, const Group* rows, real* restrict numbers
) noexcept nogil:
    """The last two numbers, from the sums."""
    cdef Py_ssize_t k
    cdef double n = t.n
    for k in range(first, last):
        if t.by_length:
            numbers[LENGTH_SCALE + k] = <real> rows.scale[k]
            numbers[LENGTH_SLOPE + k] = <real> -(rows.rstd[k] * rows.hx[k])
        else:
            numbers[MEAN_H + k] = <real> (rows.h[k] / n) if t.centred else 0
            numbers[MEAN_HX + k] = <real> (rows.hx[k] / n)


cdef inline void keep_lengths(
    Task* t, Py_ssize_t index, Py_ssize_t count, const double* hx
) noexcept nogil:
    """dg of weight norm: Σdy·v/‖v‖"""
    if t.by_length:
        store(t.dg, index, count, hx)
