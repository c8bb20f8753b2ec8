"""The task of layer norm's passes, and the parts that rows are cut into."""

from fastnorm._kernels.arrays cimport Dtype, Vector, itemsize_of, real
from fastnorm._kernels.blocks cimport ceil_div, rows_per_block
from fastnorm._kernels.moments cimport Moments

cdef enum:
    GROUP = 16                  # rows, at most, that go through the passes together
    GROUP_BYTES = 16384         # half of L1
    PIECE = 16384               # elements of a long row
    FEW_ROWS = 64               # fewer rows than this, if they are long, are cut into pieces
    # Rows whose parameter gradients are added up in the type of x before they go into double.
    FLUSH_ROWS = 32


cdef struct RowStatistics:
    double mean, rstd


# Two sums over a row, or a piece of it: Σh and Σ(h·x̂).
cdef struct RowSums:
    double h, hx


cdef struct Task:
    Dtype dtype
    Py_ssize_t rows, n          # the view (M, N)
    Py_ssize_t rows_per_block
    Py_ssize_t group            # rows that go through the passes together
    Py_ssize_t pieces           # of a row
    bint streams                # see memory.pxd
    const void* x               # (M, N)
    const void* dy              # (M, N)
    void* y                     # (M, N), y or dx
    Py_ssize_t period           # rows with parameters of their own, which the next rows share
    const void* gamma           # (period, N) or NULL
    const void* beta            # (period, N) or NULL
    double eps
    double* mean                # (M,) or NULL
    double* rstd                # (M,) or NULL
    Moments* moments            # (M, pieces)
    RowStatistics* statistics   # (M,)
    RowSums* row_sums           # (M, pieces)
    double* partials            # (blocks, 2, N): dgamma and dbeta of a block
    void* sums                  # (blocks, 2, N): the same of at most FLUSH_ROWS rows, in x's type
    Vector dgamma
    Vector dbeta


cdef inline void set_view(Task* t, Dtype dtype, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    t.dtype = dtype
    t.rows, t.n, t.period = rows, n, 1
    t.pieces = ceil_div(n, PIECE)
    t.rows_per_block = rows_per_block(rows, n * itemsize_of(dtype))
    t.group = max(min(GROUP_BYTES // (n * itemsize_of(dtype)), <Py_ssize_t> GROUP), <Py_ssize_t> 1)


cdef inline Py_ssize_t elements_after(Task* t, Py_ssize_t index) noexcept nogil:
    """From the row `index` on."""
    return (t.rows - index) * t.n


cdef inline bint is_cut(Task* t) noexcept nogil:
    return t.pieces > 1 and t.rows < FEW_ROWS


cdef inline Py_ssize_t piece_length(Task* t, Py_ssize_t piece) noexcept nogil:
    return min(<Py_ssize_t> PIECE, t.n - piece * PIECE)


cdef inline Py_ssize_t parameters_of(Task* t, Py_ssize_t index) noexcept nogil:
    """Where those of a row begin."""
    return 0 if t.period == 1 else index % t.period * t.n


cdef inline const real* shifted(const real* parameter, Py_ssize_t offset) noexcept nogil:
    return NULL if parameter == NULL else parameter + offset
