"""Count, mean and sum of squared deviations: two passes in cache, combined in double.

Chunks are combined by Chan's formula (Chan, Golub and LeVeque, The American Statistician 37, 1983).
Σx² - (Σx)²/n is never formed: it loses all digits where the mean is large.
"""

from libc.math cimport fabs, frexp, isfinite, ldexp, sqrt

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, real
from fastnorm._kernels.rows cimport ALL_LANES, CHUNK, add_centred_sums, clear, fold, row_sum


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
    b.count = count
    b.mean = centre + total / count
    b.m2 = squares - total * (total / count)
    if b.m2 < 0:  # by rounding, in a constant sample; NaN stays NaN
        b.m2 = 0
    merge(a, b)


cdef inline real chunk_centre(const real* x, Py_ssize_t n) noexcept nogil:
    """The first pass over a chunk: its mean, to the digits of the type."""
    return <real> (row_sum(x, n) / n)


cdef inline void merge_chunk(
    Moments* a, const real* x, Py_ssize_t n, real centre, Py_ssize_t ahead
) noexcept nogil:
    """The second pass. Σ(x - centre) is what the rounding of the centre left over of the mean."""
    cdef real lanes[ALL_LANES]
    cdef real squares[ALL_LANES]
    clear(lanes)
    clear(squares)
    add_centred_sums(x, n, centre, lanes, squares, ahead)
    merge_centred(a, n, centre, fold(lanes), fold(squares))


cdef inline Moments row_moments(
    const real* x, Py_ssize_t n, Py_ssize_t available
) noexcept nogil:
    """Moments of a piece of a row, chunk by chunk. After it come elements that are wanted next:
    `available` says how many there are from x on."""
    cdef Moments m = no_moments()
    cdef Py_ssize_t i = 0, length
    while i < n:
        length = min(n - i, <Py_ssize_t> CHUNK)
        merge_chunk(
            &m, x + i, length, chunk_centre(x + i, length),
            length if i + 2 * length <= available else 0,
        )
        i += length
    return m


# A mean in two parts: `high` has the digits of the type, `low` is what they leave over. x - high is
# exact or nearly so, and low folds into the shift that follows.


cdef inline double low_part(double mean, real high) noexcept nogil:
    return mean - high


cdef inline double reciprocal_std(double var, double eps) noexcept nogil:
    return 1 / sqrt(var + eps)


cdef inline bint is_usable(double var, Dtype dtype) noexcept nogil:
    """False where squares overflowed, or underflowed to less than a few digits: see `rescue`."""
    return (1e-30 if dtype == FLOAT32 else 1e-290) < var < 1e+300


cdef inline bint rescue(
    const real* x, Py_ssize_t n, Py_ssize_t stride, Py_ssize_t s, bint centred, double eps,
    double* mean, double* var, double* rstd,
) noexcept nogil:
    """The second path, rare and slow: moments of n planes of s elements, computed in double on
    values scaled by a power of two, which is exact. Returns False, having stored nothing, where a
    value is NaN or infinite or all of them are equal: then the first path's answer stands.

    centred false takes the mean as 0: var is then the mean square, and rstd its reciprocal root."""
    cdef Py_ssize_t i, j, count = n * s
    cdef double largest = 0, total = 0, m2 = 0, left_over = 0, centre, scale, d
    cdef int exponent = 0
    for i in range(n):
        for j in range(s):
            d = fabs(<double> x[i * stride + j])
            if not isfinite(d):
                return False
            largest = max(largest, d)
    if largest == 0:
        return False
    frexp(largest, &exponent)
    exponent = max(exponent, -1000)  # 2**1000 is still finite where the values are subnormal
    scale = ldexp(1, -exponent)
    if centred:
        for i in range(n):
            for j in range(s):
                total += x[i * stride + j] * scale
    centre = total / count
    for i in range(n):
        for j in range(s):
            d = x[i * stride + j] * scale - centre
            left_over += d
            m2 += d * d
    if centred:
        m2 -= left_over * (left_over / count)
        centre += left_over / count
    if m2 <= 0:
        return False
    mean[0] = ldexp(centre, exponent)
    var[0] = ldexp(m2 / count, 2 * exponent)
    rstd[0] = ldexp(1 / sqrt(m2 / count + ldexp(eps, -2 * exponent)), -exponent)
    return True
