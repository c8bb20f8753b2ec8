# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""The affine layer: y = x·weight + bias, its gradients, by SciPy's BLAS.

    y = x·weight + bias        dx = dy·weightᵀ        dweight = xᵀ·dy        dbias = Σ_rows dy

All three products are C = A·B (+ bias), cut into tiles of C that the pool's threads claim; each is
one call of a single-threaded gemm (or gemv) over the whole depth, so bits do not depend on the
threads. BLAS's own threads would fight with the pool's: the caller has them off (_blas.py). A thin
dweight is not left to BLAS: see the end.

BLAS is column-major: what is row-major here is its transpose there, and C = A·B is Cᵀ = Bᵀ·Aᵀ.
"""

cimport numpy as cnp
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, data_of, dtype_of, itemsize_of, real
from fastnorm._kernels.blocks cimport MAX_PARTIALS, ceil_div, threads_for
from fastnorm._kernels.columns cimport FLUSH, STRIP, column_sums, column_weighted_sums
from fastnorm._kernels.vectors cimport Vector, store, vector_of
from fastnorm._pool cimport parallel_for

cnp.import_array()

cdef enum:
    TILE_STEP = 32              # tiles are cut at multiples of this
    MIN_TILE = 128              # rows, or columns: below, packing takes more than a tenth
    MAX_TILE_ROWS = 1024        # above, what is packed of few columns falls out of cache
    TILE_WORK = 8000000         # floating-point operations of a tile, some 100 µs
    SMALL_WORK = 2000000        # of a product: from here on, two tiles are worth a second packing
    TILE_BYTES = 262144         # or bytes of all three matrices, where these take longer
    THIN = 16                   # columns of a thin matrix, at most; the sums of a strip fill L1
    THIN_COLUMNS = 256


MAX_THIN = THIN


cdef struct Matrix:
    const char* data
    int stride                  # elements from one row to the next, of the memory as it lies
    bint transposed             # its memory holds the transpose, row-major


cdef struct Product:
    Dtype dtype
    Py_ssize_t m, n, k          # C (m, n) = A (m, k)·B (k, n)
    Matrix a, b
    const void* bias            # (n,) or NULL
    void* c
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


cdef inline void outer_product(
    real* c, Py_ssize_t m, Py_ssize_t n, Py_ssize_t stride, const real* a, const real* b, bint add
) noexcept nogil:
    """C = a·b, or C += a·b, for a column a and a row b"""
    cdef Py_ssize_t i, j
    cdef real* row
    for i in range(m):
        row = c + i * stride
        if add:
            for j in range(n):
                row[j] += a[i] * b[j]
        else:
            for j in range(n):
                row[j] = a[i] * b[j]


cdef inline char op(bint transposed) noexcept nogil:
    return b"T" if transposed else b"N"


cdef inline void multiply(
    real* c, int m, int n, int k, int stride, Matrix a, Matrix b, bint add
) noexcept nogil:
    """C = A·B, or C += A·B, row-major. Vectors do not go to gemm, which packs what is used once. A
    matrix of one row or one column is contiguous."""
    cdef char op_a = op(a.transposed), op_b = op(b.transposed)
    cdef char not_op_a = op(not a.transposed)
    cdef real one = 1, beta = 1 if add else 0
    cdef real* p = <real*> a.data
    cdef real* q = <real*> b.data
    cdef int unit = 1, a_step = a.stride if a.transposed else 1
    cdef int b_step = 1 if b.transposed else b.stride
    # The sizes of the operands as they lie in memory.
    cdef int a_rows = m if a.transposed else k, a_columns = k if a.transposed else m
    cdef int b_rows = k if b.transposed else n, b_columns = n if b.transposed else k
    if k == 1:
        outer_product(c, m, n, stride, p, q, add)
    elif m == 1:
        if real is float:
            sgemv(&op_b, &b_rows, &b_columns, &one, q, &b.stride, p, &a_step, &beta, c, &unit)
        else:
            dgemv(&op_b, &b_rows, &b_columns, &one, q, &b.stride, p, &a_step, &beta, c, &unit)
    elif n == 1:
        if real is float:
            sgemv(
                &not_op_a, &a_rows, &a_columns, &one, p, &a.stride, q, &b_step, &beta, c, &stride
            )
        else:
            dgemv(
                &not_op_a, &a_rows, &a_columns, &one, p, &a.stride, q, &b_step, &beta, c, &stride
            )
    elif real is float:
        sgemm(
            &op_b, &op_a, &n, &m, &k, &one, q, &b.stride, p, &a.stride, &beta, c, &stride
        )
    else:
        dgemm(
            &op_b, &op_a, &n, &m, &k, &one, q, &b.stride, p, &a.stride, &beta, c, &stride
        )


cdef inline void product_tile(
    Product* t, real* c, const real* bias, Py_ssize_t row, Py_ssize_t column
) noexcept nogil:
    cdef Py_ssize_t size = sizeof(real)
    cdef Py_ssize_t m = min(t.tile_m, t.m - row), n = min(t.tile_n, t.n - column)
    cdef Matrix a = t.a, b = t.b
    a.data = at(t.a, row, 0, size)
    b.data = at(t.b, 0, column, size)
    c += row * t.n + column
    if bias != NULL:
        fill_rows(c, m, n, t.n, bias + column)
    multiply(c, <int> m, <int> n, <int> t.k, <int> t.n, a, b, bias != NULL)


cdef void product_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Product* t = <Product*> task
    cdef Py_ssize_t row = block // t.tiles_n * t.tile_m, column = block % t.tiles_n * t.tile_n
    if t.dtype == FLOAT32:
        product_tile(t, <float*> t.c, <const float*> t.bias, row, column)
    else:
        product_tile(t, <double*> t.c, <const double*> t.bias, row, column)


cdef inline Py_ssize_t half(Py_ssize_t length) noexcept nogil:
    return ceil_div(ceil_div(length, 2), TILE_STEP) * TILE_STEP


cdef inline void cut_tiles(Product* t) noexcept nogil:
    """Tiles enough to feed the threads, but large ones: each packs its share of A and of B."""
    cdef double work = 2.0 * t.m * t.n * t.k
    cdef double num_bytes = 1.0 * (t.m * t.k + t.k * t.n + t.m * t.n) * itemsize_of(t.dtype)
    cdef double wanted = min(max(work / TILE_WORK, num_bytes / TILE_BYTES), <double> MAX_PARTIALS)
    t.tile_m, t.tile_n = t.m, t.n
    if wanted < 2 and work >= SMALL_WORK:
        t.tile_m = max(half(t.m), <Py_ssize_t> MIN_TILE // 2)
    while t.tile_m > MAX_TILE_ROWS:
        t.tile_m = half(t.tile_m)
    while ceil_div(t.m, t.tile_m) * ceil_div(t.n, t.tile_n) < wanted:
        if t.tile_n > MIN_TILE and (t.tile_n >= t.tile_m or t.tile_m <= MIN_TILE):
            t.tile_n = half(t.tile_n)
        elif t.tile_m > MIN_TILE:
            t.tile_m = half(t.tile_m)
        else:
            break
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
    t.bias, t.c = data_of(bias), data_of(c)
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
    store(t.sums, column, n, totals)


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


# dweight where one of its sides is thin: gemm would pack all of the other operand for a few columns
# of output. Here every row of the wide operand is read once, and added to each thin one's sums.


cdef struct ThinProduct:
    Dtype dtype
    Py_ssize_t rows, thin, wide
    const void* a               # (rows, thin)
    const void* b               # (rows, wide)
    void* c                     # (thin, wide), any strides
    Py_ssize_t thin_step, wide_step
    Py_ssize_t columns          # of a block


cdef inline void thin_strip(
    ThinProduct* t, const real* a, const real* b, real* c, Py_ssize_t start
) noexcept nogil:
    cdef real sums[THIN * THIN_COLUMNS]
    cdef double totals[THIN * THIN_COLUMNS]
    cdef Py_ssize_t n = min(t.columns, t.wide - start), row = 0, more, i, j
    for j in range(t.thin * n):
        totals[j] = 0
    while row < t.rows:
        more = min(t.rows - row, <Py_ssize_t> FLUSH)
        for j in range(t.thin * n):
            sums[j] = 0
        # Eight rows at a time, so that they stay in L1 for all of the sums.
        for i in range(0, more, 8):
            for j in range(t.thin):
                column_weighted_sums(
                    b + (row + i) * t.wide + start, t.wide, min(more - i, <Py_ssize_t> 8), n,
                    a + (row + i) * t.thin + j, t.thin, sums + j * n,
                )
        for j in range(t.thin * n):
            totals[j] += sums[j]
        row += more
    for j in range(t.thin):
        for i in range(n):
            c[j * t.thin_step + (start + i) * t.wide_step] = <real> totals[j * n + i]


cdef void thin_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef ThinProduct* t = <ThinProduct*> task
    cdef Py_ssize_t start = block * t.columns
    if t.dtype == FLOAT32:
        thin_strip(t, <const float*> t.a, <const float*> t.b, <float*> t.c, start)
    else:
        thin_strip(t, <const double*> t.a, <const double*> t.b, <double*> t.c, start)


def thin_matmul(
    cnp.ndarray a,              # IN (rows, thin)
    cnp.ndarray b,              # IN (rows, wide)
    cnp.ndarray c,              # OUT (thin, wide), any strides
    Py_ssize_t rows,
    Py_ssize_t thin,            # at most THIN
    Py_ssize_t wide,
    int num_threads,
):
    """C = Aᵀ·B for a thin A."""
    cdef ThinProduct t
    t.dtype = dtype_of(c)
    t.rows, t.thin, t.wide = rows, thin, wide
    t.a, t.b, t.c = data_of(a), data_of(b), data_of(c)
    t.thin_step = cnp.PyArray_STRIDE(c, 0) // itemsize_of(t.dtype)
    t.wide_step = cnp.PyArray_STRIDE(c, 1) // itemsize_of(t.dtype)
    t.columns = min(ceil_div(ceil_div(wide, 4), TILE_STEP) * TILE_STEP, <Py_ssize_t> THIN_COLUMNS)
    num_threads = threads_for(rows * wide * itemsize_of(t.dtype), num_threads)
    with nogil:
        parallel_for(thin_block, &t, ceil_div(wide, t.columns), num_threads)
