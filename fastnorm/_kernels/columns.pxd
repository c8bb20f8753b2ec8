"""Primitives over a strip of columns of a row-major matrix: one accumulator, one coefficient a
column.

The columns are the vector; sums take eight rows (or four) at a time, so that the accumulators are
loaded and stored once for all of them. Eight rows are added up among themselves first: a short
sum, see `add_centred_sums` in rows.pxd. The order of the additions is the same for any width of
vectors.
"""

from fastnorm._kernels.arrays cimport real
from fastnorm._kernels.memory cimport prefetch_far
from fastnorm._kernels.sixteen cimport RunMap

cdef extern from "maps.h" nogil:
    void map_columns_float "fastnorm_map_columns_float"(
        RunMap map, const float* dy, const float* x, float* y, Py_ssize_t n, Py_ssize_t column,
        Py_ssize_t width, const float* centre, const float* slope, const float* shift,
        const float* scale, const float* weight, Py_ssize_t ahead)
    void map_columns_double "fastnorm_map_columns_double"(
        RunMap map, const double* dy, const double* x, double* y, Py_ssize_t n, Py_ssize_t column,
        Py_ssize_t width, const double* centre, const double* slope, const double* shift,
        const double* scale, const double* weight, Py_ssize_t ahead)

cdef enum:
    STRIP = 1024        # columns whose accumulators live on the stack
    FLUSH = 64          # rows added in the type of x before they go into double
    FOUR = 4
    EIGHT = 8
    STEP = 32           # elements of a row between two requests for memory


cdef inline real tree(
    real a, real b, real c, real d, real e, real f, real g, real h
) noexcept nogil:
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


cdef inline void column_sums(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, real* restrict sums
) noexcept nogil:
    """sums += Σ_rows x"""
    cdef Py_ssize_t i = 0, j
    cdef const real* r
    while i + 8 <= rows:
        r = x + i * stride
        for j in range(n):
            sums[j] += tree(
                r[j], r[j + stride], r[j + 2 * stride], r[j + 3 * stride],
                r[j + 4 * stride], r[j + 5 * stride], r[j + 6 * stride], r[j + 7 * stride],
            )
        i += 8
    while i < rows:
        r = x + i * stride
        for j in range(n):
            sums[j] += r[j]
        i += 1


cdef inline const real* from_column(const real* coefficients, Py_ssize_t j) noexcept nogil:
    return NULL if coefficients == NULL else coefficients + j


cdef inline void prefetch_rows(
    const real* x, Py_ssize_t stride, Py_ssize_t rows
) noexcept nogil:
    """STEP columns of each."""
    cdef Py_ssize_t i
    for i in range(rows):
        prefetch_far(x + i * stride, STEP * sizeof(real))


cdef inline void eight_squares(
    const real* r, Py_ssize_t stride, Py_ssize_t n, real* restrict squares
) noexcept nogil:
    cdef Py_ssize_t j
    cdef real a, b, c, d, e, f, g, h
    for j in range(n):
        a = r[j]
        b = r[j + stride]
        c = r[j + 2 * stride]
        d = r[j + 3 * stride]
        e = r[j + 4 * stride]
        f = r[j + 5 * stride]
        g = r[j + 6 * stride]
        h = r[j + 7 * stride]
        squares[j] += tree(a * a, b * b, c * c, d * d, e * e, f * f, g * g, h * h)


cdef inline void column_squares(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, real* restrict squares,
    Py_ssize_t ahead,
) noexcept nogil:
    """squares += Σ_rows x²"""
    cdef Py_ssize_t i = 0, j
    cdef const real* r
    while i + 8 <= rows:
        r = x + i * stride
        j = 0
        while ahead and j + STEP <= n:
            prefetch_rows(r + j + ahead, stride, 8)
            eight_squares(r + j, stride, STEP, squares + j)
            j += STEP
        eight_squares(r + j, stride, n - j, squares + j)
        i += 8
    while i < rows:
        r = x + i * stride
        for j in range(n):
            squares[j] += r[j] * r[j]
        i += 1


cdef inline void eight_centred(
    const real* r, Py_ssize_t stride, Py_ssize_t n, const real* centre,
    real* restrict sums, real* restrict squares,
) noexcept nogil:
    cdef Py_ssize_t j
    cdef real a, b, c, d, e, f, g, h
    for j in range(n):
        a = r[j] - centre[j]
        b = r[j + stride] - centre[j]
        c = r[j + 2 * stride] - centre[j]
        d = r[j + 3 * stride] - centre[j]
        e = r[j + 4 * stride] - centre[j]
        f = r[j + 5 * stride] - centre[j]
        g = r[j + 6 * stride] - centre[j]
        h = r[j + 7 * stride] - centre[j]
        sums[j] += tree(a, b, c, d, e, f, g, h)
        squares[j] += tree(a * a, b * b, c * c, d * d, e * e, f * f, g * g, h * h)


cdef inline void column_centred_sums(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, const real* centre,
    real* restrict sums, real* restrict squares, Py_ssize_t ahead,
) noexcept nogil:
    """sums += Σ_rows (x - centre);  squares += Σ_rows (x - centre)²"""
    cdef Py_ssize_t i = 0, j
    cdef real a
    cdef const real* r
    while i + 8 <= rows:
        r = x + i * stride
        j = 0
        while ahead and j + STEP <= n:
            prefetch_rows(r + j + ahead, stride, 8)
            eight_centred(r + j, stride, STEP, centre + j, sums + j, squares + j)
            j += STEP
        eight_centred(r + j, stride, n - j, centre + j, sums + j, squares + j)
        i += 8
    while i < rows:
        r = x + i * stride
        for j in range(n):
            a = r[j] - centre[j]
            sums[j] += a
            squares[j] += a * a
        i += 1


cdef inline void four_gradients(
    const real* b, Py_ssize_t b_stride, const real* a, Py_ssize_t stride, Py_ssize_t n,
    const real* centre, const real* inverse, real* restrict sums, real* restrict products,
) noexcept nogil:
    cdef Py_ssize_t j
    cdef real p, q, r, s
    if centre == NULL:
        for j in range(n):
            p = b[j] * (a[j] * inverse[j])
            q = b[j + b_stride] * (a[j + stride] * inverse[j])
            r = b[j + 2 * b_stride] * (a[j + 2 * stride] * inverse[j])
            s = b[j + 3 * b_stride] * (a[j + 3 * stride] * inverse[j])
            products[j] += (p + q) + (r + s)
        return
    for j in range(n):
        p = (a[j] - centre[j]) * inverse[j]
        q = (a[j + stride] - centre[j]) * inverse[j]
        r = (a[j + 2 * stride] - centre[j]) * inverse[j]
        s = (a[j + 3 * stride] - centre[j]) * inverse[j]
        sums[j] += (b[j] + b[j + b_stride]) + (b[j + 2 * b_stride] + b[j + 3 * b_stride])
        products[j] += (b[j] * p + b[j + b_stride] * q) + (
            b[j + 2 * b_stride] * r + b[j + 3 * b_stride] * s
        )


cdef inline void one_gradient(
    const real* b, const real* a, Py_ssize_t n, const real* centre, const real* inverse,
    real* restrict sums, real* restrict products,
) noexcept nogil:
    cdef Py_ssize_t j
    if centre == NULL:
        for j in range(n):
            products[j] += b[j] * (a[j] * inverse[j])
        return
    for j in range(n):
        sums[j] += b[j]
        products[j] += b[j] * ((a[j] - centre[j]) * inverse[j])


cdef inline void column_gradient_sums(
    const real* dy, Py_ssize_t dy_stride, const real* x, Py_ssize_t stride, Py_ssize_t rows,
    Py_ssize_t n, const real* centre, const real* inverse,
    real* restrict sums, real* restrict products, Py_ssize_t ahead,
) noexcept nogil:
    """sums += Σ_rows dy;  products += Σ_rows dy·x̂  with x̂ = (x - centre)·inverse. Where centre is
    NULL, x̂ = x·inverse, and the sums of dy are not wanted."""
    cdef Py_ssize_t i = 0, j
    cdef const real* a
    cdef const real* b
    while i + 4 <= rows:
        a = x + i * stride
        b = dy + i * dy_stride
        j = 0
        while ahead and j + STEP <= n:
            prefetch_rows(a + j + ahead, stride, 4)
            prefetch_rows(b + j + ahead, dy_stride, 4)
            four_gradients(
                b + j, dy_stride, a + j, stride, STEP, from_column(centre, j), inverse + j,
                sums + j, products + j,
            )
            j += STEP
        four_gradients(
            b + j, dy_stride, a + j, stride, n - j, from_column(centre, j), inverse + j,
            sums + j, products + j,
        )
        i += 4
    while i < rows:
        one_gradient(
            dy + i * dy_stride, x + i * stride, n, centre, inverse, sums, products
        )
        i += 1


cdef inline void column_weighted_sums(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n,
    const real* weights, Py_ssize_t weights_stride, real* restrict sums,
) noexcept nogil:
    """sums += Σ_rows weight·x, one weight a row"""
    cdef Py_ssize_t i = 0, j
    cdef const real* r
    cdef real a, b, c, d, e, f, g, h
    while i + 8 <= rows:
        r = x + i * stride
        a = weights[i * weights_stride]
        b = weights[(i + 1) * weights_stride]
        c = weights[(i + 2) * weights_stride]
        d = weights[(i + 3) * weights_stride]
        e = weights[(i + 4) * weights_stride]
        f = weights[(i + 5) * weights_stride]
        g = weights[(i + 6) * weights_stride]
        h = weights[(i + 7) * weights_stride]
        for j in range(n):
            sums[j] += tree(
                a * r[j], b * r[j + stride], c * r[j + 2 * stride], d * r[j + 3 * stride],
                e * r[j + 4 * stride], f * r[j + 5 * stride], g * r[j + 6 * stride],
                h * r[j + 7 * stride],
            )
        i += 8
    while i < rows:
        r = x + i * stride
        a = weights[i * weights_stride]
        for j in range(n):
            sums[j] += a * r[j]
        i += 1


cdef inline void columns_map(
    RunMap map, const real* dy, const real* x, real* y, Py_ssize_t n, Py_ssize_t column,
    Py_ssize_t width, const real* centre, const real* slope, const real* shift, const real* scale,
    const real* weight, Py_ssize_t ahead,
) noexcept nogil:
    """n elements of rows that follow upon one another, from this column on, by the numbers of their
    columns."""
    if real is float:
        map_columns_float(
            map, dy, x, y, n, column, width, centre, slope, shift, scale, weight, ahead
        )
    else:
        map_columns_double(
            map, dy, x, y, n, column, width, centre, slope, shift, scale, weight, ahead
        )
