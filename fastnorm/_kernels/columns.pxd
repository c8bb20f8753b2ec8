"""Primitives over a strip of columns of a row-major matrix: one accumulator, one coefficient a
column.

The columns are the vector; rows are taken eight (or four) at a time, so that the accumulators are
loaded and stored once for all of them. Eight rows are added up among themselves first: a short
sum, see `add_centred_sums` in rows.pxd. The order of the additions is the same for any width of
vectors.
"""

from fastnorm._kernels.arrays cimport real

cdef enum:
    STRIP = 1024        # columns whose accumulators live on the stack
    FLUSH = 64          # rows added in the type of x before they go into double


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


cdef inline void column_squares(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, real* restrict squares
) noexcept nogil:
    """squares += Σ_rows x²"""
    cdef Py_ssize_t i = 0, j
    cdef const real* r
    cdef real a, b, c, d, e, f, g, h
    while i + 8 <= rows:
        r = x + i * stride
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
        i += 8
    while i < rows:
        r = x + i * stride
        for j in range(n):
            squares[j] += r[j] * r[j]
        i += 1


cdef inline void column_centred_sums(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, const real* centre,
    real* restrict sums, real* restrict squares,
) noexcept nogil:
    """sums += Σ_rows (x - centre);  squares += Σ_rows (x - centre)²"""
    cdef Py_ssize_t i = 0, j
    cdef real a, b, c, d, e, f, g, h
    cdef const real* r
    while i + 8 <= rows:
        r = x + i * stride
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
        i += 8
    while i < rows:
        r = x + i * stride
        for j in range(n):
            a = r[j] - centre[j]
            sums[j] += a
            squares[j] += a * a
        i += 1


cdef inline void column_gradient_sums(
    const real* dy, const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n,
    const real* centre, const real* inverse, real* restrict sums, real* restrict products,
) noexcept nogil:
    """sums += Σ_rows dy;  products += Σ_rows dy·x̂  with x̂ = (x - centre)·inverse"""
    cdef Py_ssize_t i = 0, j
    cdef real p, q, r, s
    cdef const real* a
    cdef const real* b
    while i + 4 <= rows:
        a = x + i * stride
        b = dy + i * stride
        for j in range(n):
            p = (a[j] - centre[j]) * inverse[j]
            q = (a[j + stride] - centre[j]) * inverse[j]
            r = (a[j + 2 * stride] - centre[j]) * inverse[j]
            s = (a[j + 3 * stride] - centre[j]) * inverse[j]
            sums[j] += (b[j] + b[j + stride]) + (b[j + 2 * stride] + b[j + 3 * stride])
            products[j] += (b[j] * p + b[j + stride] * q) + (
                b[j + 2 * stride] * r + b[j + 3 * stride] * s
            )
        i += 4
    while i < rows:
        a = x + i * stride
        b = dy + i * stride
        for j in range(n):
            sums[j] += b[j]
            products[j] += b[j] * ((a[j] - centre[j]) * inverse[j])
        i += 1


cdef inline void columns_scale_shift(
    const real* x, real* restrict y, Py_ssize_t n,
    const real* centre, const real* scale, const real* shift,
) noexcept nogil:
    """y = (x - centre)·scale + shift, one row"""
    cdef Py_ssize_t j
    for j in range(n):
        y[j] = (x[j] - centre[j]) * scale[j] + shift[j]


cdef inline void columns_gradient(
    const real* dy, const real* x, real* restrict dx, Py_ssize_t n,
    const real* centre, const real* inverse, const real* slope, const real* shift,
    const real* scale,
) noexcept nogil:
    """dx = (dy + (x̂·slope + shift))·scale  with x̂ = (x - centre)·inverse, one row"""
    cdef Py_ssize_t j
    cdef real x_hat
    for j in range(n):
        x_hat = (x[j] - centre[j]) * inverse[j]
        dx[j] = (dy[j] + (x_hat * slope[j] + shift[j])) * scale[j]
