# cython: boundscheck=False, wraparound=False
"""The affine layer over the rows of x: y = x·weight + bias, and its gradients.

    y = x·weight + bias        dx = dy·weightᵀ        dweight = xᵀ·dy        dbias = Σ_rows dy

The three products are tiles that the pool's threads claim, each a few calls of SciPy's BLAS on one
thread: affine_tiles.pxd. BLAS's own threads would fight with the pool's: the caller has them off
(_blas.py). Products with a thin side, and dbias, are our own: affine_thin.pxd, affine_sums.pxd.

16-bit arrays, and those whose strides BLAS does not take, are converted and gathered tile by tile.
Sums are taken in the type that x is computed in, and rounded to that of the result at the end.
"""

cimport numpy as cnp

from fastnorm._kernels.affine_sums cimport SUM_COLUMNS, ColumnSums, sum_block
from fastnorm._kernels.affine_thin cimport FEW, THIN, ThinGradient, ThinWeight, gradient_block
from fastnorm._kernels.affine_thin cimport gradient_bytes, gradient_columns, weight_block
from fastnorm._kernels.affine_tiles cimport Product, run_product, set_matrix
from fastnorm._kernels.arrays cimport FLOAT32, FLOAT64, Dtype, data_of, itemsize_of
from fastnorm._kernels.blocks cimport ceil_div, rows_per_block, threads_for
from fastnorm._kernels.engine cimport cast
from fastnorm._kernels.memory cimport choose_route
from fastnorm._kernels.operands cimport BLOCK, release, reserve, set_operand
from fastnorm._kernels.vectors cimport vector_of
from fastnorm._pool cimport parallel_for

cnp.import_array()

MAX_THIN, MAX_FEW = THIN, FEW


cdef inline Dtype dtype_from(cnp.dtype working) noexcept:
    return FLOAT64 if working.type_num == cnp.NPY_DOUBLE else FLOAT32


def matmul(
    cnp.ndarray a,              # IN (m, k), or any axes that make these rows
    bint a_transposed,          # or (k, m)
    cnp.ndarray b,              # IN (k, n)
    bint b_transposed,          # or (n, k)
    cnp.ndarray bias,           # IN (n,) contiguous, or None
    cnp.ndarray c,              # OUT (m, n), may be a
    Py_ssize_t m,
    Py_ssize_t n,
    Py_ssize_t k,
    cnp.dtype working,          # what is computed in: float32 or float64
    int num_threads,
):
    """C = A·B + bias. False if there was no memory."""
    cdef Product t
    cdef bint done
    t.dtype = dtype_from(working)
    t.m, t.n, t.k = m, n, k
    set_matrix(&t.a, a, a_transposed, m if a_transposed else k, t.dtype)
    set_matrix(&t.b, b, b_transposed, k if b_transposed else n, t.dtype)
    set_matrix(&t.c, c, False, n, t.dtype)
    t.in_place = data_of(a) == data_of(c)
    bias = cast(bias, t.dtype)
    t.bias = data_of(bias)
    with nogil:
        done = run_product(&t, num_threads)
    return done


def sum_rows(
    cnp.ndarray x,              # IN (rows, n), or any axes that make these rows
    Py_ssize_t rows,
    Py_ssize_t n,
    cnp.ndarray sums,           # OUT (n,)
    cnp.dtype working,          # what is computed in: float32 or float64
    int num_threads,
):
    """The sum of the rows: dbias of dy. False if there was no memory."""
    cdef ColumnSums t
    cdef bint done
    t.dtype = dtype_from(working)
    set_operand(&t.x, x, t.dtype)
    t.rows, t.n, t.sums = rows, n, vector_of(sums)
    num_threads = threads_for(rows * n * itemsize_of(t.x.dtype), num_threads)
    with nogil:
        done = reserve(&t.scratch, 0 if t.x.direct else BLOCK, num_threads)
        if done:
            parallel_for(sum_block, &t, ceil_div(n, SUM_COLUMNS), num_threads)
        release(&t.scratch)
    return done


def times_thin(
    cnp.ndarray a,              # IN (rows, k), or any axes that make these rows
    cnp.ndarray weight,         # IN (n, k) if n is at most k, else (k, n), contiguous, of `working`
    cnp.ndarray bias,           # IN (n,) contiguous, or None
    cnp.ndarray c,              # OUT (rows, n), likewise
    Py_ssize_t rows,
    Py_ssize_t k,
    Py_ssize_t n,               # at most FEW, or k is
    cnp.dtype working,          # what is computed in: float32 or float64
    int num_threads,
):
    """C = A·W + bias for a thin W. False if there was no memory."""
    cdef ThinWeight t
    cdef bint done
    cdef Py_ssize_t wide = max(k, n), num_bytes
    t.dtype = dtype_from(working)
    t.rows, t.k, t.n = rows, k, n
    set_operand(&t.a, a, t.dtype)
    set_operand(&t.c, c, t.dtype)
    bias = cast(bias, t.dtype)
    t.w, t.bias = data_of(weight), data_of(bias)
    num_bytes = rows * wide * itemsize_of(t.dtype)
    t.rows_per_block = rows_per_block(rows, wide * itemsize_of(t.dtype))
    num_threads = threads_for(num_bytes, num_threads)
    t.route = choose_route(num_bytes, 1, num_threads, False)
    with nogil:
        done = reserve(&t.scratch, 0 if t.a.direct and t.c.direct else BLOCK, num_threads)
        if done:
            parallel_for(weight_block, &t, ceil_div(rows, t.rows_per_block), num_threads)
        release(&t.scratch)
    return done


def thin_gradient(
    cnp.ndarray a,              # IN (rows, thin), or any axes that make these rows
    cnp.ndarray b,              # IN (rows, wide), likewise
    cnp.ndarray c,              # OUT (thin, wide), any strides
    Py_ssize_t rows,
    Py_ssize_t thin,            # at most THIN
    Py_ssize_t wide,
    cnp.dtype working,          # what is computed in: float32 or float64
    int num_threads,
):
    """C = Aᵀ·B for a thin A. False if there was no memory."""
    cdef ThinGradient t
    cdef bint done
    t.dtype = dtype_from(working)
    set_operand(&t.a, a, t.dtype)
    set_operand(&t.b, b, t.dtype)
    t.rows, t.thin, t.wide = rows, thin, wide
    t.c = vector_of(c)
    t.c_step, t.c.stride = cnp.PyArray_STRIDE(c, 0), cnp.PyArray_STRIDE(c, 1)
    num_threads = threads_for(rows * wide * itemsize_of(t.b.dtype), num_threads)
    t.columns = gradient_columns(&t, num_threads)
    with nogil:
        done = reserve(&t.scratch, gradient_bytes(&t), num_threads)
        if done:
            parallel_for(gradient_block, &t, ceil_div(wide, t.columns), num_threads)
        release(&t.scratch)
    return done
