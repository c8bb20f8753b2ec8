"""Which groups are rows, and their task: apart from the passes over them (group_norm_rows.pxd),
which those who set it have no use for."""

from fastnorm._kernels.rows_task cimport PIECE, Task

cdef enum:
    MIN_SINGLE_PLANE = 16       # elements: a sum over fewer is mostly overhead
    MIN_GROUP_PLANE = 24        # the same where several planes make a row


cdef inline bint are_rows(Py_ssize_t n, Py_ssize_t s, Py_ssize_t group) noexcept nogil:
    """Of the shape of a sample alone, which says what its bits are."""
    cdef Py_ssize_t least = MIN_SINGLE_PLANE if group == 1 else MIN_GROUP_PLANE
    return n == 1 and s < least and group * s <= PIECE


cdef struct GroupRows:
    Task task                   # rows are groups: period of them in a sample
    Py_ssize_t s                # elements of a channel
    Py_ssize_t groups_per_tile, tiles
    Py_ssize_t samples_per_range, ranges
    double* partials            # (ranges, 2, C·S): dgamma and dbeta by element
    void* sums                  # the same of at most FLUSH_ROWS samples, in x's type
