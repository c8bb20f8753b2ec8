"""Primitives over a strip of columns of a row-major matrix: one accumulator, one coefficient a column.

The columns are the vector; rows are taken four at a time, so that the accumulators are loaded and stored
once for four of them. Each column adds its rows in their order, whatever the vectors' width.
"""

from fastnorm._kernels.arrays cimport real

cdef enum:
    STRIP = 256         # columns whose accumulators live on the stack
    FLUSH = 32          # rows added in the type of x before they go into double


cdef inline void column_sums(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, real* restrict sums
) noexcept nogil:
    """sums += Σ_rows x"""
    cdef Py_ssize_t i = 0, j
    cdef const real *a
    cdef const real *b
    cdef const real *c
    cdef const real *d
    while i + 4 <= rows:
        a = x + i * stride
        b = a + stride
        c = b + stride
        d = c + stride
        for j in range(n):
            sums[j] = (((sums[j] + a[j]) + b[j]) + c[j]) + d[j]
        i += 4
    while i < rows:
        a = x + i * stride
        for j in range(n):
            sums[j] += a[j]
        i += 1


cdef inline void column_centred_sums(
    const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, const real* centre,
    real* restrict sums, real* restrict squares,
) noexcept nogil:
    """sums += Σ_rows (x - centre);  squares += Σ_rows (x - centre)²"""
    cdef Py_ssize_t i = 0, j
    cdef real p, q, r, s
    cdef const real *a
    cdef const real *b
    cdef const real *c
    cdef const real *d
    while i + 4 <= rows:
        a = x + i * stride
        b = a + stride
        c = b + stride
        d = c + stride
        for j in range(n):
            p = a[j] - centre[j]
            q = b[j] - centre[j]
            r = c[j] - centre[j]
            s = d[j] - centre[j]
            sums[j] = (((sums[j] + p) + q) + r) + s
            squares[j] = (((squares[j] + p * p) + q * q) + r * r) + s * s
        i += 4
    while i < rows:
        a = x + i * stride
        for j in range(n):
            p = a[j] - centre[j]
            sums[j] += p
            squares[j] += p * p
        i += 1


cdef inline void column_gradient_sums(
    const real* dy, const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n,
    const real* centre, const real* inverse, real* restrict sums, real* restrict products,
) noexcept nogil:
    """sums += Σ_rows dy;  products += Σ_rows dy·x̂  with x̂ = (x - centre)·inverse"""
    cdef Py_ssize_t i = 0, j
    cdef real p, q
    cdef const real *a
    cdef const real *b
    cdef const real *c
    cdef const real *d
    while i + 2 <= rows:
        a = x + i * stride
        b = a + stride
        c = dy + i * stride
        d = c + stride
        for j in range(n):
            p = (a[j] - centre[j]) * inverse[j]
            q = (b[j] - centre[j]) * inverse[j]
            sums[j] = (sums[j] + c[j]) + d[j]
            products[j] = (products[j] + c[j] * p) + d[j] * q
        i += 2
    if i < rows:
        a = x + i * stride
        c = dy + i * stride
        for j in range(n):
            sums[j] += c[j]
            products[j] += c[j] * ((a[j] - centre[j]) * inverse[j])


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
