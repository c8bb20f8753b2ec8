"""Primitives over a contiguous row: sums in a fixed number of lanes, and elementwise maps.

A sum that runs through one accumulator is a chain of dependent additions; spread over LANES
accumulators it is a few independent vectors on every instruction set, and since the order of the
additions is written here, every instruction set rounds alike. Lanes are folded as a tree.

A row is summed in lanes for at most CHUNK elements, so that it is still in L1 for the second sweep
and float32 loses nothing; chunks are combined in double (moments.pxd).
"""

from fastnorm._kernels.arrays cimport real
from fastnorm._kernels.memory cimport prefetch

cdef extern from "lanes.h" nogil:
    double fold_float "fastnorm_fold_float"(const float* lanes)
    double fold_double "fastnorm_fold_double"(const double* lanes)
    void eight_products_float "fastnorm_eight_products_float"(
        const float* dy, const float* x, float centre, float inverse, float* sums, float* products
    )
    void eight_products_double "fastnorm_eight_products_double"(
        const double* dy, const double* x, double centre, double inverse, double* sums,
        double* products
    )

cdef enum:
    LANES = 32
    TAIL = 8            # lanes that go on with what is left of a row
    ALL_LANES = 33      # and one for what is left then
    SHORT = 512         # 16 additions to a lane
    CHUNK = 4096


cdef inline double fold(const real* lanes) noexcept nogil:
    """Sum of the lanes."""
    if real is float:
        return fold_float(lanes) + lanes[LANES]
    else:
        return fold_double(lanes) + lanes[LANES]


cdef inline void clear(real* restrict lanes) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(ALL_LANES):
        lanes[j] = 0


cdef inline void add_lanes(real* restrict lanes, const real* restrict more) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(LANES):
        lanes[j] += more[j]
    lanes[LANES] += more[LANES]


# The accumulating forms: lanes live on from one piece of a row, or from one plane, to the next, but
# are kept in lanes of the piece's own meanwhile, which stay in registers. Each adds LANES elements
# at a time, then TAIL, then one, so that a lane is always part of a whole vector: one that is
# written alone and read with others stalls the processor.
#
# The last sweep that only reads asks for what comes next: `ahead` is how many elements further on
# that lies, or 0.


cdef inline void add_sum(const real* x, Py_ssize_t n, real* restrict lanes) noexcept nogil:
    """lanes += x"""
    cdef Py_ssize_t i = 0, j
    while i + LANES <= n:
        for j in range(LANES):
            lanes[j] += x[i + j]
        i += LANES
    while i + TAIL <= n:
        for j in range(TAIL):
            lanes[j] += x[i + j]
        i += TAIL
    while i < n:
        lanes[LANES] += x[i]
        i += 1


cdef inline void add_centred(
    const real* x, Py_ssize_t n, real centre, real* restrict lanes, real* restrict squares,
    Py_ssize_t ahead,
) noexcept nogil:
    cdef Py_ssize_t i = 0, j
    cdef real d
    while i + LANES <= n:
        if ahead:
            prefetch(x + i + ahead, LANES * sizeof(real))
        for j in range(LANES):
            d = x[i + j] - centre
            lanes[j] += d
            squares[j] += d * d
        i += LANES
    while i + TAIL <= n:
        for j in range(TAIL):
            d = x[i + j] - centre
            lanes[j] += d
            squares[j] += d * d
        i += TAIL
    while i < n:
        d = x[i] - centre
        lanes[LANES] += d
        squares[LANES] += d * d
        i += 1


cdef inline void add_centred_sums(
    const real* x, Py_ssize_t n, real centre, real* restrict lanes, real* restrict squares,
    Py_ssize_t ahead,
) noexcept nogil:
    """lanes += x - centre;  squares += (x - centre)²

    Short sums are added to long ones. Where the mean is large, x - centre is a small multiple k of
    the last digit of x, and k² mod 8 is 0, 1 or 4: added one by one to a large sum, squares round
    down more often than up. Sums of 16 do not.
    """
    cdef real a[ALL_LANES]
    cdef real b[ALL_LANES]
    cdef Py_ssize_t i = 0
    while i < n:
        clear(a)
        clear(b)
        add_centred(x + i, min(n - i, <Py_ssize_t> SHORT), centre, a, b, ahead)
        add_lanes(lanes, a)
        add_lanes(squares, b)
        i += SHORT


cdef inline void add_short_squares(
    const real* x, Py_ssize_t n, real* restrict lanes, Py_ssize_t ahead
) noexcept nogil:
    cdef Py_ssize_t i = 0, j
    while i + LANES <= n:
        if ahead:
            prefetch(x + i + ahead, LANES * sizeof(real))
        for j in range(LANES):
            lanes[j] += x[i + j] * x[i + j]
        i += LANES
    while i + TAIL <= n:
        for j in range(TAIL):
            lanes[j] += x[i + j] * x[i + j]
        i += TAIL
    while i < n:
        lanes[LANES] += x[i] * x[i]
        i += 1


cdef inline void add_squares(
    const real* x, Py_ssize_t n, real* restrict lanes, Py_ssize_t ahead
) noexcept nogil:
    """lanes += x²

    Short sums are added to long ones: equal terms, such as those of a constant row, round the same
    way at every addition to a long one.
    """
    cdef real a[ALL_LANES]
    cdef Py_ssize_t i = 0
    while i < n:
        clear(a)
        add_short_squares(x + i, min(n - i, <Py_ssize_t> SHORT), a, ahead)
        add_lanes(lanes, a)
        i += SHORT


cdef inline void gradient_sums(
    const real* dy, const real* x, Py_ssize_t n, real centre, real inverse, bint centred,
    real* restrict a, real* restrict b, Py_ssize_t ahead,
) noexcept nogil:
    """a = dy;  b = dy·x̂  with x̂ = (x - centre)·inverse, in lanes. Not centred: the centre is 0,
    and the sum of dy is not wanted."""
    cdef Py_ssize_t i = 0, j
    clear(a)
    clear(b)
    while i + LANES <= n:
        if ahead:
            prefetch(x + i + ahead, LANES * sizeof(real))
            prefetch(dy + i + ahead, LANES * sizeof(real))
        for j in range(LANES):
            if centred:
                a[j] += dy[i + j]
                b[j] += dy[i + j] * ((x[i + j] - centre) * inverse)
            else:
                b[j] += dy[i + j] * (x[i + j] * inverse)
        i += LANES
    while i + TAIL <= n:
        if real is float:
            eight_products_float(dy + i, x + i, centre, inverse, a, b)
        else:
            eight_products_double(dy + i, x + i, centre, inverse, a, b)
        i += TAIL
    while i < n:
        a[LANES] += dy[i]
        b[LANES] += dy[i] * ((x[i] - centre) * inverse)
        i += 1


cdef inline void add_gradient_sums(
    const real* dy, const real* x, Py_ssize_t n, real centre, real inverse, bint centred,
    real* restrict lanes, real* restrict products, Py_ssize_t ahead,
) noexcept nogil:
    """lanes += dy;  products += dy·x̂"""
    cdef real a[ALL_LANES]
    cdef real b[ALL_LANES]
    gradient_sums(dy, x, n, centre, inverse, centred, a, b, ahead)
    if centred:
        add_lanes(lanes, a)
    add_lanes(products, b)


cdef inline void row_gradient_sums(
    const real* dy, const real* x, Py_ssize_t n, real centre, real inverse, bint centred,
    double* sum_dy, double* sum_products,
) noexcept nogil:
    cdef real a[ALL_LANES]
    cdef real b[ALL_LANES]
    gradient_sums(dy, x, n, centre, inverse, centred, a, b, 0)
    sum_dy[0], sum_products[0] = fold(a), fold(b)


cdef inline double row_sum(const real* x, Py_ssize_t n) noexcept nogil:
    cdef real lanes[ALL_LANES]
    clear(lanes)
    add_sum(x, n, lanes)
    return fold(lanes)


# The maps write y while x is at hand; y may be x itself.


cdef inline void row_scale_shift(
    const real* x, real* restrict y, Py_ssize_t n, real centre, real scale, real shift,
    Py_ssize_t ahead,
) noexcept nogil:
    """y = (x - centre)·scale + shift"""
    cdef Py_ssize_t i
    if ahead:
        prefetch(x + ahead, n * sizeof(real))
    for i in range(n):
        y[i] = (x[i] - centre) * scale + shift


cdef inline real standard(
    real x, real centre, real rstd, real shift, bint centred
) noexcept nogil:
    """x̂"""
    return (x - centre) * rstd + shift if centred else x * rstd


cdef inline void row_affine(
    const real* x, real* restrict y, Py_ssize_t n, real centre, real rstd, real shift,
    bint centred, const real* gamma, const real* beta,
) noexcept nogil:
    """y = x̂·gamma + beta, where gamma, beta or both may be NULL."""
    cdef Py_ssize_t i
    if gamma == NULL and beta == NULL:
        for i in range(n):
            y[i] = standard(x[i], centre, rstd, shift, centred)
    elif beta == NULL:
        for i in range(n):
            y[i] = standard(x[i], centre, rstd, shift, centred) * gamma[i]
    elif gamma == NULL:
        for i in range(n):
            y[i] = standard(x[i], centre, rstd, shift, centred) + beta[i]
    else:
        for i in range(n):
            y[i] = standard(x[i], centre, rstd, shift, centred) * gamma[i] + beta[i]


cdef inline void row_gradient(
    const real* dy, const real* x, real* restrict dx, Py_ssize_t n,
    real centre, real slope, real shift, real scale, Py_ssize_t ahead,
) noexcept nogil:
    """dx = (dy + ((x - centre)·slope + shift))·scale"""
    cdef Py_ssize_t i
    if ahead:
        prefetch(x + ahead, n * sizeof(real))
        prefetch(dy + ahead, n * sizeof(real))
    for i in range(n):
        dx[i] = (dy[i] + ((x[i] - centre) * slope + shift)) * scale


cdef inline void row_weighted_gradient(
    const real* dy, const real* x, real* restrict dx, Py_ssize_t n,
    real weight, real centre, real slope, real shift, real scale, Py_ssize_t ahead,
) noexcept nogil:
    """dx = (dy·weight + ((x - centre)·slope + shift))·scale"""
    cdef Py_ssize_t i
    if ahead:
        prefetch(x + ahead, n * sizeof(real))
        prefetch(dy + ahead, n * sizeof(real))
    for i in range(n):
        dx[i] = (dy[i] * weight + ((x[i] - centre) * slope + shift)) * scale
