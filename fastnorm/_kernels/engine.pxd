"""The engines, compiled once per instruction set, for the kernels to cimport: see engine.pyx."""

cimport numpy as cnp

from fastnorm._kernels.arrays cimport Dtype
from fastnorm._kernels.channels_task cimport Channels
from fastnorm._kernels.group_norm_rows cimport GroupRows
from fastnorm._kernels.rows_task cimport Task

# A contiguous array, or None, in the type that is computed in: `a` itself where it is so.
cdef cnp.ndarray cast(cnp.ndarray a, Dtype dtype)

# False: no memory, and nothing is done.
cdef bint forward_rows(Task* t, int num_threads) noexcept nogil
cdef bint backward_rows(Task* t, int num_threads) noexcept nogil
cdef bint forward_groups(GroupRows* g, int num_threads) noexcept nogil
cdef bint backward_groups(GroupRows* g, int num_threads) noexcept nogil
cdef bint run_channels(Channels* t, int num_threads) noexcept nogil
