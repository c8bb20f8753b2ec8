# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""The affine layer: y = x·weight + bias, its gradients, by SciPy's BLAS.

    y = x·weight + bias        dx = dy·weightᵀ        dweight = xᵀ·dy        dbias = Σ_rows dy

All three products are C = A·B (+ bias), cut into tiles of C that the pool's threads claim; each is
one call of a single-threaded gemm over the whole depth, so bits do not depend on the threads.
BLAS's own threads would fight with the pool's, and the caller has switched them off (_blas.py).

BLAS is column-major: what is row-major here is its transpose there, and C = A·B is Cᵀ = Bᵀ·Aᵀ.
"""

cimport numpy as cnp
from scipy.linalg.cython_blas cimport dgemm, sgemm

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, Vector, data_of, dtype_of, itemsize_of, put
from fastnorm._kernels.arrays cimport real, vector_of
from fastnorm._kernels.blocks cimport ceil_div, threads_for
from fastnorm._kernels.columns cimport FLUSH, STRIP, column_sums
from fastnorm._pool cimport parallel_for

cnp.import_array()

cdef enum:
    TILE_ROWS = 16              # tiles are cut at multiples of these
    TILE_COLUMNS = 64


cdef struct Matrix:
    const char* data
    int stride                  # elements from one row to the next, of the memory as it lies
    bint transposed             # its memory holds the transpose, row-major


cdef struct Product:
    Dtype dtype
    Py_ssize_t m, n, k          # C (m, n) = A (m, k)·B (k, n)
    Matrix a, b
    const void* bias            # (n,) or NULL
    char* c
    Py_ssize_t tile_m, tile_n, tiles_n


cdef inline const char* at(
    Matrix matrix, Py_ssize_t row, Py_ssize_t column, Py_ssize_t size
) noexcept nogil:
    if matrix.transposed:
        return matrix.data + (column * matrix.stride + row) * size
    return matrix.data + (row * matrix.stride + column) * size


cdef inline void fill_rows(
    real* c, Py_ssize_t m, Py_ssize_t n, Py_ssize_t stride, const real* bias
) noexcept nogil:
    cdef Py_ssize_t i, j
    for i in range(m):
        for j in range(n):
            c[i * stride + j] = bias[j]


cdef void product_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Product* t = <Product*> task
    cdef Py_ssize_t size = itemsize_of(t.dtype)
    cdef Py_ssize_t row = block // t.tiles_n * t.tile_m, column = block % t.tiles_n * t.tile_n
    cdef int m = <int> min(t.tile_m, t.m - row), n = <int> min(t.tile_n, t.n - column)
    cdef int k = <int> t.k, stride = <int> t.n
    cdef char* c = t.c + (row * t.n + column) * size
    cdef char* a = <char*> at(t.a, row, 0, size)
    cdef char* b = <char*> at(t.b, 0, column, size)
    cdef char op_a = b"T" if t.a.transposed else b"N"
    cdef char op_b = b"T" if t.b.transposed else b"N"
    cdef float one = 1, beta = 0 if t.bias == NULL else 1
    cdef double one_d = 1, beta_d = beta
    if t.dtype == FLOAT32:
        if t.bias != NULL:
            fill_rows(<float*> c, m, n, t.n, <const float*> t.bias + column)
        sgemm(
            &op_b, &op_a, &n, &m, &k, &one, <float*> b, &t.b.stride, <float*> a, &t.a.stride,
            &beta, <float*> c, &stride,
        )
    else:
        if t.bias != NULL:
            fill_rows(<double*> c, m, n, t.n, <const double*> t.bias + column)
        dgemm(
            &op_b, &op_a, &n, &m, &k, &one_d, <double*> b, &t.b.stride, <double*> a, &t.a.stride,
            &beta_d, <double*> c, &stride,
        )


cdef inline void cut_tiles(Product* t) noexcept nogil:
    """Enough tiles to feed the threads, near-square since a tile packs its share of A and of B."""
    cdef double work = 2.0 * t.m * t.n * t.k
    cdef Py_ssize_t wanted = <Py_ssize_t> min(work / 1e6, max(8.0, work / 256e6))
    cdef Py_ssize_t tiles = 1
    t.tile_m, t.tile_n = t.m, t.n
    while tiles < wanted:
        if t.tile_m >= t.tile_n and t.tile_m > TILE_ROWS:
            t.tile_m = ceil_div(ceil_div(t.tile_m, 2), TILE_ROWS) * TILE_ROWS
        elif t.tile_n > TILE_COLUMNS:
            t.tile_n = ceil_div(ceil_div(t.tile_n, 2), TILE_COLUMNS) * TILE_COLUMNS
        elif t.tile_m > TILE_ROWS:
            t.tile_m = ceil_div(ceil_div(t.tile_m, 2), TILE_ROWS) * TILE_ROWS
        else:
            break
        tiles = ceil_div(t.m, t.tile_m) * ceil_div(t.n, t.tile_n)
    t.tiles_n = ceil_div(t.n, t.tile_n)


def matmul(
    cnp.ndarray a,              # IN (m, k)
    int a_stride,
    bint a_transposed,
    cnp.ndarray b,              # IN (k, n)
    int b_stride,
    bint b_transposed,
    cnp.ndarray bias,           # IN (n,) or None
    cnp.ndarray c,              # OUT (m, n), C-contiguous
    int m,
    int n,
    int k,
    int num_threads,
):
    """C = A·B + bias. A transposed operand is given by its memory: (k, m) or (n, k), row-major."""
    cdef Product t
    t.dtype = dtype_of(c)
    t.m, t.n, t.k = m, n, k
    t.a.data, t.a.stride, t.a.transposed = <const char*> data_of(a), max(a_stride, 1), a_transposed
    t.b.data, t.b.stride, t.b.transposed = <const char*> data_of(b), max(b_stride, 1), b_transposed
    t.bias, t.c = data_of(bias), <char*> data_of(c)
    with nogil:
        cut_tiles(&t)
        parallel_for(product_block, &t, ceil_div(t.m, t.tile_m) * t.tiles_n, num_threads)


cdef struct ColumnSums:
    Dtype dtype
    Py_ssize_t rows, n
    const void* x
    Vector sums


cdef inline void sum_strip(ColumnSums* t, const real* x, Py_ssize_t column) noexcept nogil:
    cdef real sums[STRIP]
    cdef double totals[STRIP]
    cdef Py_ssize_t j, more, row = 0, n = min(t.n - column, <Py_ssize_t> STRIP)
    for j in range(n):
        totals[j] = 0
    while row < t.rows:
        more = min(t.rows - row, <Py_ssize_t> FLUSH)
        for j in range(n):
            sums[j] = 0
        column_sums(x + row * t.n + column, t.n, more, n, sums)
        for j in range(n):
            totals[j] += sums[j]
        row += more
    for j in range(n):
        put(t.sums, column + j, totals[j])


cdef void sum_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef ColumnSums* t = <ColumnSums*> task
    if t.dtype == FLOAT32:
        sum_strip(t, <const float*> t.x, block * STRIP)
    else:
        sum_strip(t, <const double*> t.x, block * STRIP)


def sum_rows(
    cnp.ndarray x,              # IN (rows, n)
    Py_ssize_t rows,
    Py_ssize_t n,
    cnp.ndarray sums,           # OUT (n,)
    int num_threads,
):
    """The sum of the rows: dbias of dy."""
    cdef ColumnSums t
    t.dtype = dtype_of(x)
    t.rows, t.n, t.x, t.sums = rows, n, data_of(x), vector_of(sums)
    num_threads = threads_for(rows * n * itemsize_of(t.dtype), num_threads)
    with nogil:
        parallel_for(sum_block, &t, ceil_div(n, <Py_ssize_t> STRIP), num_threads)
