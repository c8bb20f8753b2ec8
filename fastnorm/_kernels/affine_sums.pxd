"""The sums over rows that are not left to BLAS: dbias, and a dweight of which one side is thin, for
which gemm would pack all of the other operand for a few columns of output.

Every column is added up on its own, FLUSH rows in the type that is computed in, then in double. The
thin dweight reads every row of the wide operand once, and adds it to each thin one's sums.
"""

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, real
from fastnorm._kernels.blocks cimport ceil_div
from fastnorm._kernels.columns cimport FLUSH, column_sums, column_weighted_sums
from fastnorm._kernels.convert cimport write_run
from fastnorm._kernels.engine cimport store
from fastnorm._kernels.operands cimport ROOM, Operand, Scratch, load_block, of_this_thread
from fastnorm._kernels.operands cimport padded, nth, room
from fastnorm._kernels.vectors cimport Vector

cdef enum:
    EIGHT = 8                   # rows that are added up among themselves
    SUM_COLUMNS = ROOM // EIGHT
    THIN = 16                   # columns of a thin matrix, at most; the sums of a strip fill L1
    THIN_COLUMNS = 256


cdef struct ColumnSums:
    Dtype dtype                 # that is computed in
    Py_ssize_t rows, n
    Operand x                   # (rows, n)
    Scratch scratch
    Vector sums                 # (n,)


cdef inline void sum_strip(ColumnSums* t, Py_ssize_t column, real* scratch) noexcept nogil:
    cdef real sums[SUM_COLUMNS]
    cdef double totals[SUM_COLUMNS]
    cdef Py_ssize_t n = min(t.n - column, <Py_ssize_t> SUM_COLUMNS)
    cdef Py_ssize_t row = 0, j, more, stride, width = padded(n)
    cdef Py_ssize_t eights = max(room(t.x.turned, t.dtype) // width // EIGHT, <Py_ssize_t> 1)
    cdef const real* x
    for j in range(n):
        totals[j], sums[j] = 0, 0
    while row < t.rows:
        more = min(t.rows - row, FLUSH - row % FLUSH)
        if not t.x.direct:
            more = min(more, EIGHT * eights)
        x = load_block(&t.x, row * t.n + column, t.n, more, n, scratch, &stride)
        column_sums(x, stride, more, n, sums)
        row += more
        if row % FLUSH == 0 or row == t.rows:
            for j in range(n):
                totals[j] += sums[j]
                sums[j] = 0
    store(t.sums, column, n, totals)


cdef inline void sum_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef ColumnSums* t = <ColumnSums*> task
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        sum_strip(t, block * SUM_COLUMNS, <float*> nth(scratch, 0))
    else:
        sum_strip(t, block * SUM_COLUMNS, <double*> nth(scratch, 0))


cdef struct ThinProduct:
    Dtype dtype                 # that is computed in
    Py_ssize_t rows, thin, wide
    Operand a                   # (rows, thin)
    Operand b                   # (rows, wide)
    Scratch scratch
    Vector c                    # (thin, wide): the first row,
    Py_ssize_t c_step           # and bytes from it to the next
    Py_ssize_t columns          # of a block


cdef inline void thin_strip(
    ThinProduct* t, Py_ssize_t start, real* a_scratch, real* b_scratch
) noexcept nogil:
    cdef real sums[THIN * THIN_COLUMNS]
    cdef double totals[THIN * THIN_COLUMNS]
    cdef Py_ssize_t n = min(t.columns, t.wide - start), row = 0, more, some, i, j
    cdef Py_ssize_t a_stride, b_stride
    cdef const real* a
    cdef const real* b
    for j in range(t.thin * n):
        totals[j] = 0
    while row < t.rows:
        more = min(t.rows - row, <Py_ssize_t> FLUSH)
        a = load_block(&t.a, row * t.thin, t.thin, more, t.thin, a_scratch, &a_stride)
        for j in range(t.thin * n):
            sums[j] = 0
        # Eight rows at a time, so that they stay in L1 for all of the sums.
        i = 0
        while i < more:
            some = min(more - i, <Py_ssize_t> EIGHT)
            b = load_block(
                &t.b, (row + i) * t.wide + start, t.wide, some, n, b_scratch, &b_stride
            )
            for j in range(t.thin):
                column_weighted_sums(
                    b, b_stride, some, n, a + i * a_stride + j, a_stride, sums + j * n
                )
            i += EIGHT
        for j in range(t.thin * n):
            totals[j] += sums[j]
        row += more
    for j in range(t.thin):
        write_run(
            t.c.dtype, totals + j * n, n, t.c.data + j * t.c_step + start * t.c.stride, t.c.stride
        )


cdef inline void thin_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef ThinProduct* t = <ThinProduct*> task
    cdef Scratch scratch = of_this_thread(t.scratch)
    if t.dtype == FLOAT32:
        thin_strip(t, block * t.columns, <float*> nth(scratch, 0), <float*> nth(scratch, 1))
    else:
        thin_strip(t, block * t.columns, <double*> nth(scratch, 0), <double*> nth(scratch, 1))
