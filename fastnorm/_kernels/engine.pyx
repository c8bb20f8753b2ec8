# cython: boundscheck=False, wraparound=False
"""The engines for rows and for channels, and what else most kernels use: a module of its own,
because the code of every module that took them up from their .pxd files would be twice or thrice as
large."""

cimport numpy as cnp

from fastnorm._kernels cimport channels_task, rows_task, vectors
from fastnorm._kernels.arrays cimport FLOAT32, dtype_of, itemsize_of
from fastnorm._kernels.channels cimport run
from fastnorm._kernels.convert cimport read_run
# By their names: of what a package is asked for, `cython -M` does not tell that it must be watched.
from fastnorm._kernels.group_norm_rows cimport backward_rows_of_groups
from fastnorm._kernels.rows_backward cimport run_backward
from fastnorm._kernels.rows_forward cimport run_forward

cnp.import_array()


cdef cnp.ndarray cast(cnp.ndarray a, Dtype dtype):
    cdef Dtype given = dtype_of(a)
    cdef Py_ssize_t size = itemsize_of(given), n
    cdef cnp.ndarray result
    cdef void* p
    cdef void* to
    if a is None or given == dtype:
        return a
    n, p = cnp.PyArray_SIZE(a), cnp.PyArray_DATA(a)
    result = cnp.PyArray_EMPTY(
        cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a),
        cnp.NPY_FLOAT if dtype == FLOAT32 else cnp.NPY_DOUBLE, False,
    )
    to = cnp.PyArray_DATA(result)
    if dtype == FLOAT32:
        read_run(given, p, size, n, 0, <float*> to)
    else:
        read_run(given, p, size, n, 0, <double*> to)
    return result


cdef void set_operands(
    Operands* o, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y, Dtype dtype
) noexcept:
    channels_task.set_operands(o, x, dy, y, dtype)


cdef void set_rows(
    Task* t, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y, bint takes_16_bits
) noexcept:
    rows_task.set_rows(t, x, dy, y, takes_16_bits)


cdef void plan(
    Channels* t, Reduction reduction, Dtype dtype, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s
) noexcept nogil:
    channels_task.plan(t, reduction, dtype, n, c, s)


cdef void load(
    Vector vector, Py_ssize_t start, Py_ssize_t n, double absent, double* values
) noexcept nogil:
    vectors.load(vector, start, n, absent, values)


cdef void store(
    Vector vector, Py_ssize_t start, Py_ssize_t n, const double* values
) noexcept nogil:
    vectors.store(vector, start, n, values)


cdef bint forward_rows(Task* t, int num_threads) noexcept nogil:
    return run_forward(t, num_threads)


cdef bint backward_rows(Task* t, int num_threads) noexcept nogil:
    return run_backward(t, num_threads)


cdef bint backward_groups(GroupRows* g, int num_threads) noexcept nogil:
    return backward_rows_of_groups(g, num_threads)


cdef bint run_channels(Channels* t, int num_threads) noexcept nogil:
    return run(t, num_threads)
