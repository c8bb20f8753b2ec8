# cython: boundscheck=False, wraparound=False
"""Layer norm (Ba, Kiros and Hinton, arXiv:1607.06450) and RMS norm (Zhang and Sennrich,
arXiv:1910.07467) over the rows of an (M, N) view.

    x̂ = (x - mean)·rstd,  rstd = 1 / sqrt(var + eps)        y = x̂·gamma + beta

    dgamma = Σ_rows dy·x̂        dbeta = Σ_rows dy
    dx = rstd·(h - Σh/N - x̂·Σ(h·x̂)/N),  h = dy·gamma         sums over the row

RMS norm takes the mean as 0, in both directions, and has no beta.

Kept for the backward pass: mean and rstd, two numbers a row, in double. x̂ is computed again from
x, since reading it back would move more bytes than x does already.

A block is a few whole rows. Rows that are long and few are cut into pieces instead, and the work
is done in two phases, as in `forward_pieces`. A row's sums are always taken piece by piece: its
result does not depend on which of the two it is, hence not on the other rows.
"""

cimport numpy as cnp

from fastnorm._kernels.arrays cimport data_of
from fastnorm._kernels.engine cimport backward_rows, cast, forward_rows, set_rows
from fastnorm._kernels.operands cimport working_dtype
from fastnorm._kernels.rows_task cimport Task, set_view
from fastnorm._kernels.vectors cimport vector_of

cnp.import_array()


def forward(
    cnp.ndarray x,              # IN (M, N), axes in this order, any strides
    cnp.ndarray gamma,          # IN (N,) contiguous, or None
    cnp.ndarray beta,           # IN (N,) contiguous, or None
    Py_ssize_t rows,            # M
    Py_ssize_t n,               # N
    bint centred,               # False: RMS norm
    double eps,
    cnp.ndarray y,              # OUT (M, N), as x, may be x
    cnp.ndarray mean,           # OUT (M,) float64, or None
    cnp.ndarray rstd,           # OUT (M,) float64, or None
    int num_threads,
):
    cdef Task t
    cdef bint has_memory
    set_view(&t, working_dtype(x), centred, rows, n)
    set_rows(&t, x, None, y, True)
    t.eps = eps
    gamma, beta = cast(gamma, t.dtype), cast(beta, t.dtype)
    t.gamma, t.beta = data_of(gamma), data_of(beta)
    t.mean, t.rstd = <double*> data_of(mean), <double*> data_of(rstd)
    with nogil:
        has_memory = forward_rows(&t, num_threads)
    if not has_memory:
        raise MemoryError(f"{'layer' if centred else 'rms'}_norm: no memory for the statistics")


def backward(
    cnp.ndarray dy,             # IN (M, N), axes in this order, any strides
    cnp.ndarray x,              # IN (M, N), likewise
    cnp.ndarray gamma,          # IN (N,) contiguous, or None
    cnp.ndarray mean,           # IN (M,) float64, or None for RMS norm
    cnp.ndarray rstd,           # IN (M,) float64
    Py_ssize_t rows,            # M
    Py_ssize_t n,               # N
    cnp.ndarray dx,             # OUT (M, N), as x
    cnp.ndarray dgamma,         # OUT (N,) or None
    cnp.ndarray dbeta,          # OUT (N,) or None
    int num_threads,
):
    cdef Task t
    cdef bint has_memory
    set_view(&t, working_dtype(x), mean is not None, rows, n)
    set_rows(&t, x, dy, dx, True)
    gamma = cast(gamma, t.dtype)
    t.gamma = data_of(gamma)
    t.mean, t.rstd = <double*> data_of(mean), <double*> data_of(rstd)
    t.dgamma, t.dbeta = vector_of(dgamma), vector_of(dbeta)
    with nogil:
        has_memory = backward_rows(&t, num_threads)
    if not has_memory:
        raise MemoryError(
            f"{'rms' if mean is None else 'layer'}_norm_backward: no memory for the sums"
        )
