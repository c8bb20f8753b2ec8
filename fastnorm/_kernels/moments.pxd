"""Count, mean and sum of squared deviations, of chunks that are combined in double.

A chunk's squares are taken about a value close to its mean. Chunks are combined by Chan's formula
(Chan, Golub and LeVeque, The American Statistician 37, 1983).
Σx² - (Σx)²/n is never formed: it loses all digits where the mean is large.
"""

from libc.math cimport INFINITY, fabs, frexp, isfinite, ldexp, sqrt

from fastnorm._kernels.arrays cimport FLOAT32, FLOAT64, Dtype, real
from fastnorm._kernels.operands cimport Operand, read_elements
from fastnorm._kernels.rows cimport row_moments, row_squares

cdef extern from "lanes.h" nogil:
    bint is_off "fastnorm_is_off"(double total, double squares, Py_ssize_t n)
    void settle "fastnorm_settle"(
        double centre, double total, Py_ssize_t n, double* mean, double* m2)


cdef struct Moments:
    Py_ssize_t count
    double mean
    double m2       # Σ(x - mean)²


cdef inline Moments no_moments() noexcept nogil:
    cdef Moments m
    m.count = 0
    m.mean = 0
    m.m2 = 0
    return m


cdef inline void merge(Moments* a, Moments b) noexcept nogil:
    """a becomes the moments of both samples."""
    cdef Py_ssize_t total = a.count + b.count
    cdef double delta = b.mean - a.mean
    if a.count == 0:
        a[0] = b
        return
    a.mean += delta * (<double> b.count / total)
    a.m2 += b.m2 + delta * delta * (<double> a.count * b.count / total)
    a.count = total


cdef inline void merge_centred(
    Moments* a, Py_ssize_t count, double centre, double total, double squares
) noexcept nogil:
    """Merge a sample given by Σ(x - centre) and Σ(x - centre)², centre being close to its mean."""
    cdef Moments b
    b.count, b.m2 = count, squares
    settle(centre, total, count, &b.mean, &b.m2)
    merge(a, b)


cdef inline void merge_chunk(
    Moments* a, const real* x, Dtype stored, Py_ssize_t n, bint centred, Py_ssize_t ahead
) noexcept nogil:
    """Not centred: about 0."""
    cdef Moments b
    b.count, b.mean = n, 0
    if centred:
        row_moments(x, stored, n, <Py_ssize_t> 1, n, ahead, &b.mean, &b.m2)
    else:
        row_squares(x, stored, n, <Py_ssize_t> 1, n, ahead, &b.m2)
    merge(a, b)


cdef inline double reciprocal_std(double var, double eps) noexcept nogil:
    return 1 / sqrt(var + eps)


cdef inline bint are_usable(
    const double* var, double eps, Py_ssize_t count, Dtype dtype
) noexcept nogil:
    """Whether no squares overflowed, nor underflowed to less than a few digits: see `rescue`. Of
    all at once."""
    cdef double least = 1e-290 if dtype == FLOAT64 else 1e-30, value
    cdef Py_ssize_t usable = 0, k
    for k in range(count):
        value = var[k] + eps
        usable += (least < value) & (value < 1e+300)
    return usable == count


cdef inline bint is_usable(double var, Dtype dtype) noexcept nogil:
    return are_usable(&var, 0, 1, dtype)


cdef enum:
    FEW_ELEMENTS = 256


cdef struct Extent:
    Py_ssize_t first, step      # index of the first plane, and from one to the next
    Py_ssize_t planes, s        # how many, and of how many elements


cdef inline double largest_of(const Operand* x, Extent e) noexcept nogil:
    """max |x|, or infinity where a value is NaN or infinite."""
    cdef double values[FEW_ELEMENTS]
    cdef double largest = 0
    cdef Py_ssize_t i, j, k, n
    for i in range(e.planes):
        j = 0
        while j < e.s:
            n = min(e.s - j, <Py_ssize_t> FEW_ELEMENTS)
            read_elements(x, e.first + i * e.step + j, n, values)
            for k in range(n):
                if not isfinite(values[k]):
                    return INFINITY
                largest = max(largest, fabs(values[k]))
            j += n
    return largest


cdef inline void scaled_sums(
    const Operand* x, Extent e, double scale, double centre, double* total, double* squares
) noexcept nogil:
    """Σd and Σd², d = x·scale - centre"""
    cdef double values[FEW_ELEMENTS]
    cdef double d, sum_of_few, squares_of_few
    cdef Py_ssize_t i, j, k, n
    total[0], squares[0] = 0, 0
    for i in range(e.planes):
        j = 0
        while j < e.s:
            n = min(e.s - j, <Py_ssize_t> FEW_ELEMENTS)
            read_elements(x, e.first + i * e.step + j, n, values)
            sum_of_few, squares_of_few = 0, 0
            for k in range(n):
                d = values[k] * scale - centre
                sum_of_few += d
                squares_of_few += d * d
            total[0] += sum_of_few
            squares[0] += squares_of_few
            j += n


cdef inline bint rescue(
    const Operand* x, Extent e, bint centred, double eps, double* mean, double* var, double* rstd
) noexcept nogil:
    """The second path, rare and slow: moments computed in double on values scaled by a power of
    two, which is exact. Returns False, having stored nothing, where a value is NaN or infinite or
    all of them are equal: then the first path's answer stands.

    centred false takes the mean as 0: var is then the mean square, and rstd its reciprocal root."""
    cdef Py_ssize_t count = e.planes * e.s
    cdef double largest = largest_of(x, e), total = 0, m2 = 0, centre = 0, scale
    cdef int exponent = 0
    if largest == 0 or largest == INFINITY:
        return False
    frexp(largest, &exponent)
    exponent = max(exponent, -1000)  # 2**1000 is still finite where the values are subnormal
    scale = ldexp(1, -exponent)
    if centred:
        scaled_sums(x, e, scale, 0, &total, &m2)
        centre = total / count
    scaled_sums(x, e, scale, centre, &total, &m2)
    if centred:
        m2 -= total * (total / count)
        centre += total / count
    if m2 <= 0:
        return False
    mean[0] = ldexp(centre, exponent)
    var[0] = ldexp(m2 / count, 2 * exponent)
    rstd[0] = ldexp(1 / sqrt(m2 / count + ldexp(eps, -2 * exponent)), -exponent)
    return True
