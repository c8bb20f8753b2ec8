# cython: boundscheck=False, wraparound=False, freethreading_compatible=True
"""Layer norm (Ba, Kiros and Hinton, arXiv:1607.06450) over the rows of an (M, N) view.

    x̂ = (x - mean)·rstd,  rstd = 1 / sqrt(var + eps)        y = x̂·gamma + beta

    dgamma = Σ_rows dy·x̂        dbeta = Σ_rows dy
    dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N),  h = dy·gamma         sums over the row

Kept for the backward pass: mean and rstd, two numbers a row, in double. x̂ is computed again from
x, since reading it back would move more bytes than x does already.

A block is a few whole rows. Rows that are long and few are cut into pieces instead, and the work
is done in two phases, as in `forward_pieces`. A row's sums are always taken piece by piece: its
result does not depend on which of the two it is, hence not on the other rows.
"""

cimport numpy as cnp

from fastnorm._kernels.arrays cimport data_of, dtype_of, itemsize_of, vector_of
from fastnorm._kernels.blocks cimport ceil_div, threads_for
from fastnorm._kernels.layer_norm_backward cimport backward_pieces, backward_whole_rows
from fastnorm._kernels.layer_norm_forward cimport forward_block, forward_pieces
from fastnorm._kernels.layer_norm_task cimport Task, is_cut, set_view
from fastnorm._kernels.memory cimport streams
from fastnorm._pool cimport parallel_for

cnp.import_array()


def forward(
    cnp.ndarray x,              # IN (M, N)
    cnp.ndarray gamma,          # IN (N,) or None
    cnp.ndarray beta,           # IN (N,) or None
    Py_ssize_t rows,            # M
    Py_ssize_t n,               # N
    double eps,
    cnp.ndarray y,              # OUT (M, N), may be x
    cnp.ndarray mean,           # OUT (M,) float64, or None
    cnp.ndarray rstd,           # OUT (M,) float64, or None
    int num_threads,
):
    cdef Task t
    cdef Py_ssize_t num_bytes
    cdef bint has_memory = True
    set_view(&t, dtype_of(x), rows, n)
    t.eps = eps
    t.x, t.y, t.gamma, t.beta = data_of(x), data_of(y), data_of(gamma), data_of(beta)
    t.mean, t.rstd = <double*> data_of(mean), <double*> data_of(rstd)
    num_bytes = rows * n * itemsize_of(t.dtype)
    num_threads = threads_for(num_bytes, num_threads)
    t.streams = streams(2 * num_bytes)
    with nogil:
        if is_cut(&t):
            has_memory = forward_pieces(&t, num_threads)
        else:
            parallel_for(forward_block, &t, ceil_div(rows, t.rows_per_block), num_threads)
    if not has_memory:
        raise MemoryError("layer_norm: no memory for the statistics")


def backward(
    cnp.ndarray dy,             # IN (M, N)
    cnp.ndarray x,              # IN (M, N)
    cnp.ndarray gamma,          # IN (N,) or None
    cnp.ndarray mean,           # IN (M,) float64
    cnp.ndarray rstd,           # IN (M,) float64
    Py_ssize_t rows,            # M
    Py_ssize_t n,               # N
    cnp.ndarray dx,             # OUT (M, N)
    cnp.ndarray dgamma,         # OUT (N,) or None
    cnp.ndarray dbeta,          # OUT (N,) or None
    int num_threads,
):
    cdef Task t
    cdef Py_ssize_t num_bytes
    cdef bint has_memory
    set_view(&t, dtype_of(x), rows, n)
    t.x, t.dy, t.y, t.gamma = data_of(x), data_of(dy), data_of(dx), data_of(gamma)
    t.mean, t.rstd = <double*> data_of(mean), <double*> data_of(rstd)
    t.dgamma, t.dbeta = vector_of(dgamma), vector_of(dbeta)
    num_bytes = rows * n * itemsize_of(t.dtype)
    num_threads = threads_for(num_bytes, num_threads)
    t.streams = streams(3 * num_bytes)
    with nogil:
        if is_cut(&t):
            has_memory = backward_pieces(&t, num_threads)
        else:
            has_memory = backward_whole_rows(&t, num_threads)
    if not has_memory:
        raise MemoryError("layer_norm_backward: no memory for the sums")
