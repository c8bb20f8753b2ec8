"""Products with a thin matrix, of 16 columns or rows at most, that are not left to BLAS: gemm packs
all of the wide operand for a few columns of output, or a few rows of depth. All of them read the
wide operand once, in the order of memory.

    thin output     C = A·W + bias: a row of C is the products of a row of A and the columns of W,
                    in lanes (thin.h), a chunk at a time, which are added up in double
    thin depth      C = A·W + bias: a row of C is the bias and a few rows of W
    thin gradient   C = Aᵀ·B for a thin A. Every element is added up on its own, FLUSH rows in the
                    type that is computed in, then in double

The weight of the first two is a panel (few, n) that the caller has filled. Where it is x that has
few rows, it takes the weight's part.
"""

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, itemsize_of, real
from fastnorm._kernels.blocks cimport ceil_div
from fastnorm._kernels.columns cimport FLUSH, column_weighted_sums
from fastnorm._kernels.convert cimport write_run
from fastnorm._kernels.memory cimport Route, Writer, flush, open_writer, place
from fastnorm._kernels.memory cimport prefetch_far
from fastnorm._kernels.operands cimport BLOCK, Operand, Scratch, load_block, nth
from fastnorm._kernels.operands cimport of_this_thread, result_block, room, store_block
from fastnorm._kernels.vectors cimport Vector

cdef extern from "thin.h" nogil:
    enum:
        THIN "FASTNORM_THIN"    # columns of a thin matrix, at most,
        FEW "FASTNORM_FEW"      # or of a weight, or its rows
    void add_dots_float "fastnorm_add_dots_float"(
        const float* x, Py_ssize_t x_step, Py_ssize_t rows, const float* w, Py_ssize_t w_step,
        Py_ssize_t products, Py_ssize_t n, Py_ssize_t ahead, double* sums)
    void add_dots_double "fastnorm_add_dots_double"(
        const double* x, Py_ssize_t x_step, Py_ssize_t rows, const double* w, Py_ssize_t w_step,
        Py_ssize_t products, Py_ssize_t n, Py_ssize_t ahead, double* sums)
    void combine_rows_float "fastnorm_combine_rows_float"(
        const float* a, Py_ssize_t rows, const float* w, Py_ssize_t w_step, const float* bias,
        float* y, Py_ssize_t n)
    void combine_rows_double "fastnorm_combine_rows_double"(
        const double* a, Py_ssize_t rows, const double* w, Py_ssize_t w_step, const double* bias,
        double* y, Py_ssize_t n)

cdef enum:
    DOT_CHUNK = 1024            # elements that are summed in lanes before double takes over
    GROUP = 16                  # rows of an array that is not read, or written, row by row
    EIGHT = 8                   # rows whose gradients are added up among themselves
    ROWS_AHEAD = 16             # further on they are asked for
    STRIP = 256                 # columns of these
    STRIP_STEP = 32             # strips begin at multiples of this
    MIN_COLUMNS = 64            # of a thread's share of a row
    MAX_SUMS = 16384            # of a block


cdef struct ThinWeight:
    Dtype dtype                 # that is computed in
    Py_ssize_t rows, k, n       # C (rows, n) = A (rows, k)·W (k, n); k or n is thin
    Operand a
    Operand c
    Scratch scratch
    const void* w               # (n, k) if n is thin, else (k, n), in this dtype
    const void* bias            # (n,), likewise, or NULL
    Py_ssize_t rows_per_block
    Route route


cdef inline void add_dots(
    ThinWeight* t, const real* x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t start,
    Py_ssize_t length, Py_ssize_t ahead, double* sums,
) noexcept nogil:
    """Of a part of each row, from column `start` on."""
    if real is float:
        add_dots_float(x, stride, rows, <float*> t.w + start, t.k, t.n, length, ahead, sums)
    else:
        add_dots_double(x, stride, rows, <double*> t.w + start, t.k, t.n, length, ahead, sums)


cdef inline void thin_output(
    ThinWeight* t, Py_ssize_t first, Py_ssize_t last, real* a_scratch, real* c_scratch
) noexcept nogil:
    cdef double sums[GROUP * THIN]  # the group is as many rows at most
    cdef Py_ssize_t group = room(t.a.turned, t.dtype) // DOT_CHUNK
    cdef Py_ssize_t rows, start, length, stride, j, r
    cdef const real* x
    cdef const real* bias = <const real*> t.bias
    cdef real* y
    cdef Writer writer
    open_writer(&writer, t.route, t.c.direct)
    if t.a.direct and not t.c.direct:  # a few rows of x: C is turned
        group = GROUP
    while first < last:
        rows, start = min(last - first, group), 0
        for j in range(rows * THIN):
            sums[j] = 0
        while start < t.k:
            length = min(t.k - start, <Py_ssize_t> DOT_CHUNK)
            x = load_block(
                &t.a, first * t.k + start, t.k, rows, length, a_scratch, &stride
            )
            add_dots(t, x, stride, rows, start, length, rows * t.k if t.a.direct else 0, sums)
            start += length
        y = result_block(&t.c, first * t.n, t.n, t.n, c_scratch, &stride)
        for r in range(rows):
            for j in range(t.n):
                y[r * stride + j] = <real> (sums[r * THIN + j] + (0 if bias == NULL else bias[j]))
        store_block(&t.c, first * t.n, t.n, rows, t.n, y, stride, &writer)
        first += rows
    flush(&writer)


cdef inline void combine_rows(
    ThinWeight* t, const real* a, Py_ssize_t start, Py_ssize_t n, real* y
) noexcept nogil:
    """n elements of a row of C, from column `start` on."""
    if real is float:
        combine_rows_float(
            a, t.k, <float*> t.w + start, t.n,
            NULL if t.bias == NULL else <float*> t.bias + start, y, n,
        )
    else:
        combine_rows_double(
            a, t.k, <double*> t.w + start, t.n,
            NULL if t.bias == NULL else <double*> t.bias + start, y, n,
        )


cdef inline void thin_depth(
    ThinWeight* t, Py_ssize_t first, Py_ssize_t last, real* a_scratch, real* c_scratch
) noexcept nogil:
    """Row by row, in the order of memory; or more of them, where they are not stored so."""
    cdef Py_ssize_t group = 1 if t.c.direct else GROUP
    cdef Py_ssize_t most = t.n if t.c.direct else room(t.c.turned, t.dtype) // group
    cdef Py_ssize_t rows, start, length, stride, a_stride, r
    cdef const real* a
    cdef real* y
    cdef real* target
    cdef Writer writer
    open_writer(&writer, t.route, t.c.direct)
    while first < last:
        rows, start = min(last - first, group), 0
        a = load_block(&t.a, first * t.k, t.k, rows, t.k, a_scratch, &a_stride)
        while start < t.n:
            length = min(t.n - start, most)
            y = result_block(&t.c, first * t.n + start, t.n, length, c_scratch, &stride)
            for r in range(rows):
                target = place(&writer, y + r * stride, &length)
                combine_rows(t, a + r * a_stride, start, length, target)
            store_block(&t.c, first * t.n + start, t.n, rows, length, y, stride, &writer)
            start += length
        first += rows
    flush(&writer)


cdef inline void weight_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef ThinWeight* t = <ThinWeight*> task
    cdef Py_ssize_t first = block * t.rows_per_block, last = min(first + t.rows_per_block, t.rows)
    cdef Scratch scratch = of_this_thread(t.scratch)
    if FEW == 0:  # nobody asks, and the compiler leaves it all out
        return
    if t.dtype == FLOAT32 and t.n <= t.k:
        thin_output(t, first, last, <float*> nth(scratch, 0), <float*> nth(scratch, 1))
    elif t.dtype == FLOAT32:
        thin_depth(t, first, last, <float*> nth(scratch, 0), <float*> nth(scratch, 1))
    elif t.n <= t.k:
        thin_output(t, first, last, <double*> nth(scratch, 0), <double*> nth(scratch, 1))
    else:
        thin_depth(t, first, last, <double*> nth(scratch, 0), <double*> nth(scratch, 1))


cdef struct ThinGradient:
    Dtype dtype                 # that is computed in
    Py_ssize_t rows, thin, wide
    Operand a                   # (rows, thin)
    Operand b                   # (rows, wide)
    Scratch scratch
    Vector c                    # (thin, wide): the first row,
    Py_ssize_t c_step           # and bytes from it to the next
    Py_ssize_t columns          # of a block


cdef inline Py_ssize_t gradient_columns(ThinGradient* t, int team) noexcept nogil:
    """Of a block: as much of each row as can be, so that memory is read in its order. It does not
    show in the result."""
    cdef Py_ssize_t share = ceil_div(ceil_div(t.wide, team), STRIP_STEP) * STRIP_STEP
    return min(max(share, <Py_ssize_t> MIN_COLUMNS), MAX_SUMS // t.thin)


cdef inline Py_ssize_t gradient_bytes(ThinGradient* t) noexcept nogil:
    """Of scratch memory: for a block of an operand, or the sums of a block."""
    return max(
        <Py_ssize_t> BLOCK,
        t.thin * t.columns * (<Py_ssize_t> sizeof(double) + itemsize_of(t.dtype)),
    )


cdef inline void ask_for_rows(
    ThinGradient* t, const real* b, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n
) noexcept nogil:
    """For n elements of these rows, ROWS_AHEAD further on. Few at a time, lest the sums wait."""
    cdef Py_ssize_t i
    if t.b.direct:
        for i in range(first, last):
            prefetch_far(b + (ROWS_AHEAD + i) * t.wide, n * <Py_ssize_t> sizeof(real))


cdef inline void add_rows_of_b(
    ThinGradient* t, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
    const real* a, Py_ssize_t a_stride, real* sums, real* b_scratch,
) noexcept nogil:
    """Of EIGHT rows at most, strip by strip, each of which stays in L1 for all of its sums."""
    cdef Py_ssize_t column = 0, width, j, stride
    cdef const real* b
    while column < n:
        width = min(n - column, <Py_ssize_t> STRIP)
        b = load_block(
            &t.b, row * t.wide + start + column, t.wide, rows, width, b_scratch, &stride
        )
        for j in range(t.thin):
            ask_for_rows(t, b, j * rows // t.thin, (j + 1) * rows // t.thin, width)
            column_weighted_sums(
                b, stride, rows, width, a + j, a_stride, sums + j * n + column
            )
        column += width


cdef inline void gradient_strip(
    ThinGradient* t, Py_ssize_t start, real* a_scratch, real* b_scratch, double* totals
) noexcept nogil:
    cdef Py_ssize_t n = min(t.columns, t.wide - start), row = 0, more, i, j, stride
    cdef real* sums = <real*> (totals + t.thin * n)
    cdef const real* a
    for j in range(t.thin * n):
        totals[j] = 0
    while row < t.rows:
        more = min(t.rows - row, <Py_ssize_t> FLUSH)
        a = load_block(&t.a, row * t.thin, t.thin, more, t.thin, a_scratch, &stride)
        for j in range(t.thin * n):
            sums[j] = 0
        i = 0
        while i < more:
            add_rows_of_b(
                t, row + i, min(more - i, <Py_ssize_t> EIGHT), start, n, a + i * stride, stride,
                sums, b_scratch,
            )
            i += EIGHT
        for j in range(t.thin * n):
            totals[j] += sums[j]
        row += more
    for j in range(t.thin):
        write_run(
            t.c.dtype, totals + j * n, n, t.c.data + j * t.c_step + start * t.c.stride, t.c.stride
        )


cdef inline void gradient_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef ThinGradient* t = <ThinGradient*> task
    cdef Scratch scratch = of_this_thread(t.scratch)
    cdef Py_ssize_t start = block * t.columns
    cdef double* totals = <double*> nth(scratch, 2)
    if t.dtype == FLOAT32:
        gradient_strip(t, start, <float*> nth(scratch, 0), <float*> nth(scratch, 1), totals)
    else:
        gradient_strip(t, start, <double*> nth(scratch, 0), <double*> nth(scratch, 1), totals)
