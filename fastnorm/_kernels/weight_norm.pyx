# cython: boundscheck=False, wraparound=False
"""Weight norm (Salimans and Kingma, arXiv:1602.07868) over the channels of an (N, C, S) view.

    w = g·v/‖v‖,  the norm of a channel over N and S

    dg = Σdy·v/‖v‖
    dv = g/‖v‖·(dy - dg·v/‖v‖)

Kept for the backward pass: the norms. A channel of zeros has w = 0 and zero gradients.
Where N is 1 the channels are rows, which layer norm's passes walk (rows_task.pxd); else
channels.pxd walks the view, and here is what happens to the two numbers of a channel.
"""

from libc.math cimport sqrt

cimport numpy as cnp

from fastnorm._kernels.channels_task cimport FEW, GRADIENT, GRADIENT_SUMS, INVERSE, SCALE
from fastnorm._kernels.channels_task cimport SCALE_SHIFT, SLOPE, SQUARES, Channels, Operands
from fastnorm._kernels.channels_task cimport rescue_channel, set_coefficients, use_operands
from fastnorm._kernels.engine cimport backward_rows, forward_rows, load, plan, run_channels
from fastnorm._kernels.engine cimport set_operands, set_rows, store
from fastnorm._kernels.moments cimport is_usable
from fastnorm._kernels.operands cimport working_dtype
from fastnorm._kernels.rows_task cimport Task, inverse_or_zero, set_view
from fastnorm._kernels.vectors cimport Vector, vector_of

cnp.import_array()


cdef struct WeightNorm:
    Operands operands
    Channels channels
    Vector g                    # (C,)
    Vector norm                 # (C,) float64
    Vector dg                   # (C,)


cdef void finish_forward(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* norm, double* squares
) noexcept nogil:
    """w = v·scale"""
    cdef WeightNorm* task = <WeightNorm*> t.norm
    cdef double scale[FEW]
    cdef double mean, var, inverse_rms
    cdef Py_ssize_t i
    for i in range(n):
        norm[i] = sqrt(squares[i])
    for i in range(n):
        if not is_usable(squares[i], t.dtype) and rescue_channel(
            t, channel + i, False, 0, &mean, &var, &inverse_rms
        ):
            norm[i] = sqrt(<double> t.n * t.s) / inverse_rms
    store(task.norm, channel, n, norm)
    load(task.g, channel, n, 1, scale)
    for i in range(n):
        scale[i] = scale[i] * inverse_or_zero(norm[i])
    set_coefficients(t, SCALE, channel, n, scale)


cdef void prepare_backward(Channels* t, Py_ssize_t channel, Py_ssize_t n) noexcept nogil:
    cdef WeightNorm* task = <WeightNorm*> t.norm
    cdef double inverse[FEW]
    cdef Py_ssize_t i
    load(task.norm, channel, n, 1, inverse)
    for i in range(n):
        inverse[i] = inverse_or_zero(inverse[i])
    set_coefficients(t, INVERSE, channel, n, inverse)


cdef void finish_backward(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* _, double* dg
) noexcept nogil:
    """dv = (dy - v·inverse·dg)·scale"""
    cdef WeightNorm* task = <WeightNorm*> t.norm
    cdef double norm[FEW]
    cdef double scale[FEW]
    cdef Py_ssize_t i
    store(task.dg, channel, n, dg)
    load(task.norm, channel, n, 1, norm)
    load(task.g, channel, n, 1, scale)
    for i in range(n):
        norm[i] = inverse_or_zero(norm[i])
        scale[i] = scale[i] * norm[i]
        dg[i] = -dg[i] * norm[i]
    set_coefficients(t, SCALE, channel, n, scale)
    set_coefficients(t, SLOPE, channel, n, dg)


cdef int run_weight_norm(WeightNorm* task, str function, int num_threads) except -1:
    cdef bint done
    task.channels.norm = task
    task.channels.centred = False
    use_operands(&task.channels, &task.operands)
    with nogil:
        done = run_channels(&task.channels, num_threads)
    if not done:
        raise MemoryError(f"{function}: no memory for the norms")
    return 0


cdef int run_rows(
    Task* t, cnp.ndarray v, cnp.ndarray dy, cnp.ndarray result, cnp.ndarray g, cnp.ndarray norm,
    Py_ssize_t rows, Py_ssize_t n, int num_threads,
) except -1:
    """Forward, or backward where there is dy."""
    cdef bint has_memory
    set_view(t, working_dtype(v), False, rows, n)
    t.by_length, t.eps = True, 0
    set_rows(t, v, dy, result, True)
    t.g, t.norm = vector_of(g), vector_of(norm)
    t.mean = t.rstd = NULL
    t.dgamma = t.dbeta = vector_of(None)
    with nogil:
        if t.dy.data == NULL:
            has_memory = forward_rows(t, num_threads)
        else:
            has_memory = backward_rows(t, num_threads)
    if not has_memory:
        raise MemoryError(
            f"weight_norm{'' if dy is None else '_backward'}: no memory for the norms"
        )
    return 0


def forward(
    cnp.ndarray v,              # IN (N, C, S)
    cnp.ndarray g,              # IN (C,)
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    cnp.ndarray w,              # OUT (N, C, S), may be v
    cnp.ndarray norm,           # OUT (C,) float64, or None
    int num_threads,
):
    cdef WeightNorm task
    cdef Task rows
    if n == 1:
        run_rows(&rows, v, None, w, g, norm, c, s, num_threads)
        return
    plan(&task.channels, SQUARES, working_dtype(v), n, c, s)
    task.channels.map, task.channels.linear = SCALE_SHIFT, True
    task.channels.prepare, task.channels.finish = NULL, finish_forward
    set_operands(&task.operands, v, None, w, task.channels.dtype)
    task.g, task.norm = vector_of(g), vector_of(norm)
    run_weight_norm(&task, "weight_norm", num_threads)


def backward(
    cnp.ndarray dy,             # IN (N, C, S)
    cnp.ndarray v,              # IN (N, C, S)
    cnp.ndarray g,              # IN (C,)
    cnp.ndarray norm,           # IN (C,) float64
    Py_ssize_t n,
    Py_ssize_t c,
    Py_ssize_t s,
    cnp.ndarray dv,             # OUT (N, C, S)
    cnp.ndarray dg,             # OUT (C,)
    int num_threads,
):
    cdef WeightNorm task
    cdef Task rows
    if n == 1:
        rows.dg = vector_of(dg)
        run_rows(&rows, v, dy, dv, g, norm, c, s, num_threads)
        return
    plan(&task.channels, GRADIENT_SUMS, working_dtype(v), n, c, s)
    task.channels.map, task.channels.linear = GRADIENT, True
    task.channels.prepare, task.channels.finish = prepare_backward, finish_backward
    set_operands(&task.operands, v, dy, dv, task.channels.dtype)
    task.g, task.norm, task.dg = vector_of(g), vector_of(norm), vector_of(dg)
    run_weight_norm(&task, "weight_norm_backward", num_threads)
