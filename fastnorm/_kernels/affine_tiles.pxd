"""A matrix product C = A·B + bias in tiles of C, each a few calls of a single-threaded BLAS.

A tile's sum over the depth is taken chunk by chunk: C = A₀·B₀, C += A₁·B₁, ... Where the memory of
A, B or C is what BLAS takes (rows of the type that is computed in, one element after the other, any
distance apart), it is used as it lies, B with an exception (`choose_panels`). Else the tile's part
of a chunk is brought into a panel, or the tile computed in one, through the blocks of operands.pxd:
a panel is all the memory it takes.
Many chunks in float are added up in double: over a million rows, a chain of them loses digits.
Where the depth is long beside C, it is cut rather than C, into ranges whose sums are then added in
their order: BLAS packs its share of A and of B for every tile, which for a small one is much.

Tiles and chunks depend on the shape and the machine's CPUs alone, and BLAS gets a panel in the form
in which it gets the array itself. So the bits depend neither on the threads nor on strides, and a
16-bit array gives those of its copy in float32. BLAS may add up a transposed operand in another
order, hence which operand is so depends on the product, not on the array; except for a weight.

BLAS is column-major: what is row-major here is its transpose there, and C = A·B is Cᵀ = Bᵀ·Aᵀ.
"""

from libc.limits cimport INT_MAX
from libc.math cimport cbrt, sqrt
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

cimport numpy as cnp
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

from fastnorm._cpu cimport cpu_count
from fastnorm._kernels.arrays cimport FLOAT32, Dtype, itemsize_of, real
from fastnorm._kernels.blocks cimport MAX_PARTIALS, ceil_div
from fastnorm._kernels.memory cimport IN_CACHE, PAGE, Writer, open_writer
from fastnorm._kernels.operands cimport Operand, load_block, padded, result_block, set_operand
from fastnorm._kernels.operands cimport store_block
from fastnorm._pool cimport parallel_for, participant

cdef enum:
    TILE_STEP = 32              # tiles are cut at multiples of this
    MIN_TILE = 128              # rows, or columns: BLAS packs (1 / rows + 1 / columns) of the work
    GOOD_ROWS = 256             # from here on, cut columns
    PANEL_ROWS = 64             # from here on, B may be better in a panel
    MAX_TILE_ROWS = 2048        # above, what is packed of few columns falls out of cache
    MAX_TILE_COLUMNS = 4096     # a panel of C has so many
    TILES_OF_WORK = 65          # tiles for 10^12 floating-point operations; as their cube root
    SMALL_WORK = 2000000        # of a product: from here on, two tiles are worth a second packing
    LARGE_WORK = 1000000000     # and from here on, two for each CPU, lest all wait for one of them
    TILE_BYTES = 4194304        # or bytes of all three matrices, where these take longer,
    VECTOR_BYTES = 524288       # and if one of them is a vector, which costs nothing to pack
    DEPTH = 512                 # of a chunk: below, C is read too often; above, BLAS loses digits
    PANEL = 65536               # elements of a matrix that a vector is multiplied with, at once
    FLUSH = 16                  # chunks added in float before they go into double
    MIN_RANGE = 512             # elements of a range of the depth
    SUM_BYTES = 25165824        # of all ranges: 32 MB would be new pages in every call
    ADDED = 512                 # columns of these at a time
    STRIP_BYTES = 65536         # of sums of ranges that are added up together
    GROUP = 4                   # tiles beside each other that share a panel of A,
    ENOUGH = 32                 # if there are so many blocks nevertheless


cdef struct Matrix:
    Operand memory              # (rows, columns): the matrix, or its transpose
    Py_ssize_t columns
    bint transposed
    Py_ssize_t stride           # elements between rows, if BLAS takes these as they lie; else 0


# A part of a matrix as BLAS takes it.
cdef struct Part:
    const char* data
    int stride                  # elements from one row to the next, of the memory as it lies
    bint transposed


cdef struct Product:
    Dtype dtype                 # that is computed in
    Py_ssize_t m, n, k          # C (m, n) = A (m, k)·B (k, n)
    Matrix a, b, c
    bint in_place               # C is A: it gets its rows when nobody needs those of A any more
    const void* bias            # (n,), in this dtype, or NULL
    Py_ssize_t tile_m, tile_n, depth
    bint is_deep                # C is added up in double
    Py_ssize_t ranges, range    # of the depth; elements of one
    char* sums                  # (ranges, m, n), if there are several: then C is here first,
    Operand result              # and goes there
    Py_ssize_t strip            # rows of it at a time
    Py_ssize_t width            # columns of a block: a group of tiles
    Py_ssize_t blocks_n
    char* scratch               # of all threads, and the sums
    Py_ssize_t scratch_bytes    # of one


cdef inline void set_matrix(
    Matrix* x, cnp.ndarray memory, bint transposed, Py_ssize_t columns, Dtype dtype
) noexcept:
    cdef Operand* o = &x.memory
    cdef Py_ssize_t size = itemsize_of(dtype)
    set_operand(o, memory, dtype)
    x.columns, x.transposed, x.stride = columns, transposed, 0
    if o.direct:
        x.stride = columns
    elif (
        o.dtype == dtype and o.axes == 2 and o.size[1] == columns and o.stride[1] == size
        and columns * size <= o.stride[0] <= INT_MAX * size and o.stride[0] % size == 0
        and <uintptr_t> o.data % size == 0
    ):
        x.stride = o.stride[0] // size


cdef inline Py_ssize_t half(Py_ssize_t length) noexcept nogil:
    return ceil_div(ceil_div(length, 2), TILE_STEP) * TILE_STEP


cdef inline void cut_tiles(Product* t) noexcept nogil:
    """Tiles enough to feed the threads, but large ones: each packs its share of A and of B."""
    cdef double work = 2.0 * t.m * t.n * t.k
    cdef double num_bytes = 1.0 * (t.m * t.k + t.k * t.n + t.m * t.n) * itemsize_of(t.dtype)
    cdef Py_ssize_t longest, range_bytes = t.m * t.n * itemsize_of(t.dtype)
    cdef double tile_bytes = VECTOR_BYTES if min(min(t.m, t.n), t.k) == 1 else TILE_BYTES
    # More of a larger product, and larger ones, but no more than the machine has CPUs for.
    cdef double wanted = max(TILES_OF_WORK * cbrt(work / 1e12), num_bytes / tile_bytes)
    wanted = min(wanted, (2.0 if work >= LARGE_WORK else 1.0) * cpu_count())
    wanted = min(wanted, <double> MAX_PARTIALS) / sqrt(2.0)  # tiles are halved: the nearest number
    t.tile_m, t.tile_n, t.ranges = t.m, t.n, 1
    if wanted < 2 and work >= SMALL_WORK:
        t.tile_m = max(half(t.m), <Py_ssize_t> MIN_TILE // 2)
    while t.tile_m > MAX_TILE_ROWS:
        t.tile_m = half(t.tile_m)
    while t.tile_n > MAX_TILE_COLUMNS:
        t.tile_n = half(t.tile_n)
    while t.ranges * ceil_div(t.m, t.tile_m) * ceil_div(t.n, t.tile_n) < wanted:
        longest = max(max(t.tile_m, t.tile_n), 2 * <Py_ssize_t> MIN_RANGE)
        if (
            min(t.m, t.n) >= MIN_TILE and t.k > t.ranges * longest
            and 2 * t.ranges * range_bytes <= SUM_BYTES
        ):
            t.ranges *= 2
        elif t.tile_n > MIN_TILE and (t.tile_n >= 2 * t.tile_m or t.tile_m <= GOOD_ROWS):
            t.tile_n = half(t.tile_n)
        elif t.tile_m > MIN_TILE:
            t.tile_m = half(t.tile_m)
        else:
            break


cdef inline void cut_depth(Product* t) noexcept nogil:
    """Into chunks of almost the same length. Of a small product BLAS adds up a chunk in one chain;
    not of a vector's, which it would only have to begin more often."""
    cdef Py_ssize_t most = DEPTH if min(t.m, t.n) > 1 else max(PANEL // t.tile_m, DEPTH)
    cdef Py_ssize_t k = ceil_div(t.k, t.ranges)
    t.depth = ceil_div(ceil_div(k, ceil_div(k, most)), TILE_STEP) * TILE_STEP
    t.range = ceil_div(k, t.depth) * t.depth
    t.ranges = ceil_div(t.k, t.range)
    t.is_deep = t.dtype == FLOAT32 and t.range > FLUSH * t.depth


cdef inline void choose_panels(Product* t) noexcept nogil:
    """B as it lies, of which BLAS packs a line of each row at a time. Where rows are whole pages
    apart, their lines meet in the same sets of the cache: a panel is better, even with the copy."""
    cdef Py_ssize_t row_bytes = t.b.stride * itemsize_of(t.dtype)
    if t.m >= PANEL_ROWS and not t.b.transposed and row_bytes % PAGE == 0:
        t.b.stride, t.b.memory.direct = 0, False


cdef inline void group_tiles(Product* t) noexcept nogil:
    """Into blocks. What is in a block does not show in the result."""
    cdef Py_ssize_t tiles_n = ceil_div(t.n, t.tile_n), tiles = ceil_div(t.m, t.tile_m) * tiles_n
    cdef Py_ssize_t group = 1
    if t.in_place:
        group = tiles_n
    elif t.a.stride == 0:
        group = min(GROUP, MAX_TILE_COLUMNS // t.tile_n)
        group = max(min(tiles // ENOUGH, group), <Py_ssize_t> 1)
    t.width = min(group * t.tile_n, t.n)
    t.blocks_n = ceil_div(t.n, t.width)


cdef inline Py_ssize_t panel_size(
    const Matrix* x, Py_ssize_t rows, Py_ssize_t columns
) noexcept nogil:
    """Elements of a panel for so many rows and columns of the matrix, if it needs one."""
    if x.stride:
        return 0
    if x.transposed:
        rows, columns = columns, rows
    return rows * padded(columns)


cdef inline Py_ssize_t a_size(const Product* t) noexcept nogil:
    return panel_size(&t.a, t.tile_m, min(t.depth, t.k))


cdef inline Py_ssize_t b_size(const Product* t) noexcept nogil:
    return panel_size(&t.b, min(t.depth, t.k), t.tile_n)


cdef inline Py_ssize_t scratch_bytes(const Product* t) noexcept nogil:
    """Of a thread, whole lines of the cache."""
    cdef Py_ssize_t c_size = panel_size(&t.c, t.tile_m, t.width)
    cdef Py_ssize_t num_bytes = (a_size(t) + b_size(t) + c_size) * itemsize_of(t.dtype)
    return num_bytes + c_size * <Py_ssize_t> sizeof(double) if t.is_deep else num_bytes


cdef inline Part part_of(
    const Matrix* x, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t columns,
    real* panel,
) noexcept nogil:
    """Rows and columns of the matrix, which its memory may hold the other way round."""
    cdef Part part
    cdef Py_ssize_t stride = x.stride
    if x.transposed:
        row, rows, column, columns = column, columns, row, rows
    if stride:
        part.data = x.memory.data + (row * stride + column) * <Py_ssize_t> sizeof(real)
    else:
        part.data = <const char*> load_block(
            &x.memory, row * x.columns + column, x.columns, rows, columns, panel, &stride
        )
    part.stride, part.transposed = <int> stride, x.transposed
    return part


cdef inline void fill_rows(
    real* c, Py_ssize_t m, Py_ssize_t n, Py_ssize_t stride, const real* bias
) noexcept nogil:
    cdef Py_ssize_t i, j
    for i in range(m):
        for j in range(n):
            c[i * stride + j] = bias[j]


cdef inline void outer_product(
    real* c, Py_ssize_t m, Py_ssize_t n, Py_ssize_t stride,
    const real* a, Py_ssize_t a_step, const real* b, Py_ssize_t b_step, bint add,
) noexcept nogil:
    """C = a·b, or C += a·b, for a column a and a row b"""
    cdef Py_ssize_t i, j
    cdef real factor
    cdef real* row
    for i in range(m):
        factor = a[i * a_step]
        row = c + i * stride
        if add:
            for j in range(n):
                row[j] += factor * b[j * b_step]
        elif b_step == 1:
            for j in range(n):
                row[j] = factor * b[j]
        else:
            for j in range(n):
                row[j] = factor * b[j * b_step]


cdef inline char op(bint transposed) noexcept nogil:
    return b"T" if transposed else b"N"


cdef inline void times_vector(
    const real* matrix, int stride, bint transposed, int rows, int columns,
    const real* vector, int step, real* result, bint add,
) noexcept nogil:
    """The product of a matrix, or its transpose, of so many rows in memory, and a vector."""
    cdef char op_matrix = op(not transposed)
    cdef real one = 1, beta = 1 if add else 0
    cdef int unit = 1
    if real is float:
        sgemv(
            &op_matrix, &columns, &rows, &one, <float*> matrix, &stride, <float*> vector, &step,
            &beta, result, &unit,
        )
    else:
        dgemv(
            &op_matrix, &columns, &rows, &one, <double*> matrix, &stride, <double*> vector, &step,
            &beta, result, &unit,
        )


cdef inline void times_column(
    real* c, int m, int k, Py_ssize_t stride, Part a, const real* b, int b_step, bint add
) noexcept nogil:
    """Where C is one column. BLAS writes it without gaps, lest it see where it lies."""
    cdef real column[MAX_TILE_ROWS]
    cdef Py_ssize_t i
    if add:
        for i in range(m):
            column[i] = c[i * stride]
    times_vector(
        <const real*> a.data, a.stride, a.transposed,
        k if a.transposed else m, m if a.transposed else k, b, b_step, column, add,
    )
    for i in range(m):
        c[i * stride] = column[i]


cdef inline void multiply(
    real* c, int m, int n, int k, int stride, Part a, Part b, bint add
) noexcept nogil:
    """C = A·B, or C += A·B, row-major. Vectors do not go to gemm, which packs what is used once."""
    cdef char op_a = op(a.transposed), op_b = op(b.transposed)
    cdef real one = 1, beta = 1 if add else 0
    cdef real* p = <real*> a.data
    cdef real* q = <real*> b.data
    # Of the only row of A, and the only column of B.
    cdef int a_step = a.stride if a.transposed else 1, b_step = 1 if b.transposed else b.stride
    if k == 1:
        outer_product(
            c, m, n, stride, p, 1 if a.transposed else a.stride,
            q, b.stride if b.transposed else 1, add,
        )
    elif m == 1:
        times_vector(
            q, b.stride, not b.transposed, n if b.transposed else k, k if b.transposed else n,
            p, a_step, c, add,
        )
    elif n == 1:
        times_column(c, m, k, stride, a, q, b_step, add)
    elif real is float:
        sgemm(&op_b, &op_a, &n, &m, &k, &one, q, &b.stride, p, &a.stride, &beta, c, &stride)
    else:
        dgemm(&op_b, &op_a, &n, &m, &k, &one, q, &b.stride, p, &a.stride, &beta, c, &stride)


cdef inline void add_chunk(
    Product* t, Py_ssize_t row, Py_ssize_t m, Py_ssize_t column, Py_ssize_t width,
    Py_ssize_t start, bint add, real* c, Py_ssize_t stride, real* a_panel, real* b_panel,
) noexcept nogil:
    """The tiles of a group: those that begin at `column` in C, and at c."""
    cdef Py_ssize_t k = min(t.depth, t.k - start), last = column + width, n
    cdef Part a = part_of(&t.a, row, m, start, k, a_panel), b
    cdef const real* bias = <const real*> t.bias if start == 0 else NULL
    while column < last:
        n = min(t.tile_n, last - column)
        b = part_of(&t.b, start, k, column, n, b_panel)
        if bias != NULL:
            fill_rows(c, m, n, stride, bias + column)
        multiply(c, <int> m, <int> n, <int> k, <int> stride, a, b, add or bias != NULL)
        c += n
        column += n


cdef inline void add_rows(
    double* totals, const real* c, Py_ssize_t m, Py_ssize_t n, Py_ssize_t stride, bint add
) noexcept nogil:
    """totals += C, or totals = C"""
    cdef Py_ssize_t i, j
    for i in range(m):
        for j in range(n):
            totals[i * stride + j] = c[i * stride + j] + (totals[i * stride + j] if add else 0)


cdef inline void compute_block(Product* t, Py_ssize_t block, real* scratch) noexcept nogil:
    """A group of tiles, or a range of the depth of these."""
    cdef Py_ssize_t r = block % t.ranges, start = r * t.range, stop = min(start + t.range, t.k)
    cdef Py_ssize_t group = block // t.ranges
    cdef Py_ssize_t row = group // t.blocks_n * t.tile_m, m = min(t.tile_m, t.m - row)
    cdef Py_ssize_t column = group % t.blocks_n * t.width, width = min(t.width, t.n - column)
    cdef Py_ssize_t index = (r * t.m + row) * t.n + column, stride = t.c.stride, chunk = 0
    cdef real* b_panel = scratch + a_size(t)
    cdef real* c = <real*> t.c.memory.data + (r * t.m + row) * stride + column
    cdef double* totals = NULL
    cdef bint add = False
    cdef Writer writer
    if t.c.stride == 0:
        c = result_block(&t.c.memory, index, t.n, width, b_panel + b_size(t), &stride)
        totals = <double*> (b_panel + b_size(t) + panel_size(&t.c, t.tile_m, t.width))
        open_writer(&writer, IN_CACHE, False)
    while start < stop:
        add_chunk(
            t, row, m, column, width, start, chunk > 0, c, stride, scratch, b_panel
        )
        start += t.depth
        chunk += 1
        if t.is_deep and (chunk == FLUSH or start >= stop):
            add_rows(totals, c, m, width, stride, add)
            chunk, add = 0, True
    if t.is_deep:
        store_block(&t.c.memory, index, t.n, m, width, totals, stride, &writer)
    elif t.c.stride == 0:
        store_block(&t.c.memory, index, t.n, m, width, c, stride, &writer)


cdef inline void product_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Product* t = <Product*> task
    cdef char* scratch = t.scratch + participant() * t.scratch_bytes
    if t.dtype == FLOAT32:
        compute_block(t, block, <float*> scratch)
    else:
        compute_block(t, block, <double*> scratch)


cdef inline void add_strip(Product* t, Py_ssize_t row, const real* sums) noexcept nogil:
    """The sums of all ranges, for some rows of C, a few columns at a time. Rounded to the type that
    is computed in, as without ranges, and then to that of the result."""
    cdef double totals[ADDED]
    cdef real row_of_c[ADDED]
    cdef Py_ssize_t m = min(t.strip, t.m - row), i, column, width, r, j
    cdef const real* c
    cdef Writer writer
    open_writer(&writer, IN_CACHE, False)
    for i in range(row, row + m):
        column = 0
        while column < t.n:
            width = min(t.n - column, <Py_ssize_t> ADDED)
            for r in range(t.ranges):
                c = sums + (r * t.m + i) * t.n + column
                add_rows(totals, c, 1, width, width, r > 0)
            for j in range(width):
                row_of_c[j] = <real> totals[j]
            store_block(&t.result, i * t.n + column, t.n, 1, width, row_of_c, width, &writer)
            column += width


cdef inline void strip_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Product* t = <Product*> task
    if t.dtype == FLOAT32:
        add_strip(t, block * t.strip, <const float*> t.sums)
    else:
        add_strip(t, block * t.strip, <const double*> t.sums)


cdef inline void direct_to_sums(Product* t) noexcept nogil:
    """The ranges, one below the other, are the rows of a matrix, whose memory is still to come."""
    cdef Operand* o = &t.c.memory
    t.result, t.result.direct = o[0], False
    o.dtype, o.direct, o.turned, o.axes = t.dtype, not t.is_deep, False, 1
    o.size[0], o.stride[0] = t.ranges * t.m * t.n, itemsize_of(t.dtype)
    t.c.stride = 0 if t.is_deep else t.n


cdef inline bint run_product(Product* t, int num_threads) noexcept nogil:
    """False: no memory."""
    cdef Py_ssize_t blocks, scratch, sum_bytes = 0
    cut_tiles(t)
    cut_depth(t)
    choose_panels(t)
    t.scratch = NULL
    if t.ranges > 1:
        sum_bytes = t.ranges * t.m * t.n * itemsize_of(t.dtype)
        direct_to_sums(t)
    elif t.in_place or t.is_deep:  # C is stored when it is done, and not before
        t.c.stride, t.c.memory.direct = 0, False
    group_tiles(t)
    blocks = t.ranges * ceil_div(t.m, t.tile_m) * t.blocks_n
    t.scratch_bytes = scratch_bytes(t)
    num_threads = <int> min(<Py_ssize_t> num_threads, blocks)
    scratch = num_threads * t.scratch_bytes
    if scratch + sum_bytes:
        t.scratch = <char*> malloc(scratch + sum_bytes)
        if t.scratch == NULL:
            return False
    if t.ranges > 1:
        t.sums = t.c.memory.data = t.scratch + scratch
    parallel_for(product_block, t, blocks, num_threads)
    if t.ranges > 1:
        t.strip = max(STRIP_BYTES * t.m // sum_bytes, <Py_ssize_t> 1)
        parallel_for(strip_block, t, ceil_div(t.m, t.strip), num_threads)
    free(t.scratch)
    return True
