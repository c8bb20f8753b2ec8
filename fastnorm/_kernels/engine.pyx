# cython: boundscheck=False, wraparound=False
"""The engines for rows and for channels, which most kernels use: a module of its own, because the
code of every module that took them up from their .pxd files would be twice or thrice as large."""

from fastnorm._kernels cimport group_norm_rows, rows_backward, rows_forward
from fastnorm._kernels.channels cimport run


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
