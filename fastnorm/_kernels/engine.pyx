# cython: boundscheck=False, wraparound=False
"""The engines for rows and for channels, and what else most kernels use: a module of its own,
because the code of every module that took them up from their .pxd files would be twice or thrice as
large."""

cimport numpy as cnp

from fastnorm._kernels cimport group_norm_rows, rows_backward, rows_forward
from fastnorm._kernels.arrays cimport FLOAT32, dtype_of, itemsize_of
from fastnorm._kernels.channels cimport run
from fastnorm._kernels.convert cimport read_run

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


cdef bint forward_rows(Task* t, int num_threads) noexcept nogil:
    return rows_forward.run_forward(t, num_threads)


cdef bint backward_rows(Task* t, int num_threads) noexcept nogil:
    return rows_backward.run_backward(t, num_threads)


cdef bint forward_groups(GroupRows* g, int num_threads) noexcept nogil:
    return group_norm_rows.forward_rows_of_groups(g, num_threads)


cdef bint backward_groups(GroupRows* g, int num_threads) noexcept nogil:
    return group_norm_rows.backward_rows_of_groups(g, num_threads)


cdef bint run_channels(Channels* t, int num_threads) noexcept nogil:
    return run(t, num_threads)
