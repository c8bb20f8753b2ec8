"""The engines, compiled once per instruction set, for the kernels to cimport: see engine.pyx."""

cimport numpy as cnp

from fastnorm._kernels.arrays cimport Dtype
from fastnorm._kernels.channels_task cimport Channels, Operands, Reduction
from fastnorm._kernels.group_norm_task cimport GroupRows
from fastnorm._kernels.rows_task cimport Task
from fastnorm._kernels.vectors cimport Vector

# A contiguous array, or None, in the type that is computed in: `a` itself where it is so.
cdef cnp.ndarray cast(cnp.ndarray a, Dtype dtype)

# The arrays of a view, or None: over channels, and over rows.
cdef void set_operands(
    Operands* o, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y, Dtype dtype) noexcept
cdef void set_rows(
    Task* t, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y, bint takes_16_bits) noexcept

cdef void plan(
    Channels* t, Reduction reduction, Dtype dtype, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s
) noexcept nogil

# Elements of a vector, in double.
cdef void load(
    Vector vector, Py_ssize_t start, Py_ssize_t n, double absent, double* values) noexcept nogil
cdef void store(
    Vector vector, Py_ssize_t start, Py_ssize_t n, const double* values) noexcept nogil

# False: no memory, and nothing is done.
cdef bint forward_rows(Task* t, int num_threads) noexcept nogil
cdef bint backward_rows(Task* t, int num_threads) noexcept nogil
cdef bint backward_groups(GroupRows* g, int num_threads) noexcept nogil
cdef bint run_channels(Channels* t, int num_threads) noexcept nogil
