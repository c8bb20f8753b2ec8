"""dbias, the sum of the rows of dy. Every column is added up on its own, FLUSH rows in the type
that is computed in, then in double."""

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, real
from fastnorm._kernels.columns cimport FLUSH, column_sums
from fastnorm._kernels.engine cimport store
from fastnorm._kernels.operands cimport ROOM, Operand, Scratch, load_block, of_this_thread
from fastnorm._kernels.operands cimport padded, nth, room
from fastnorm._kernels.vectors cimport Vector

cdef enum:
    EIGHT = 8                   # rows that are added up among themselves
    SUM_COLUMNS = ROOM // EIGHT


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
