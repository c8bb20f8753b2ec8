"""Rows that are shorter than a few vectors: SIDE_BY_SIDE of them become the columns of a tile, and
a vector holds one element of many rows. Nothing has to be folded, a row's numbers are vectors.

tile[i, j] is element i of row j. Rows that are not there are zeros.
"""

from libc.string cimport memcpy, memset

from fastnorm._kernels.arrays cimport real
from fastnorm._kernels.memory cimport IN_CACHE, Writer, at_line, place
from fastnorm._kernels.moments cimport settle
from fastnorm._kernels.operands cimport Operand, load_block, result_block, store_block, transpose
from fastnorm._kernels.rows cimport ask, standard
from fastnorm._kernels.rows_numbers cimport keep_lengths, load_statistics, split_means
from fastnorm._kernels.rows_task cimport NARROW, SIDE_BY_SIDE, Task, elements_ahead
from fastnorm._kernels.rows_task cimport finish_statistics

cdef extern from "lanes.h" nogil:
    void tile_sums_float "fastnorm_tile_sums_float"(
        const float* tile, Py_ssize_t n, float* sums)
    void tile_sums_double "fastnorm_tile_sums_double"(
        const double* tile, Py_ssize_t n, double* sums)
    void tile_centred_sums_float "fastnorm_tile_centred_sums_float"(
        const float* tile, Py_ssize_t n, const float* centre, float* sums, float* squares)
    void tile_centred_sums_double "fastnorm_tile_centred_sums_double"(
        const double* tile, Py_ssize_t n, const double* centre, double* sums, double* squares)
    void tile_products_float "fastnorm_tile_products_float"(
        const float* dy, const float* x, const float* gamma, Py_ssize_t n, const float* high,
        const float* scale, const float* shift, bint centred, float* sums, float* products)
    void tile_products_double "fastnorm_tile_products_double"(
        const double* dy, const double* x, const double* gamma, Py_ssize_t n,
        const double* high, const double* scale, const double* shift, bint centred, double* sums,
        double* products)

cdef enum:
    TILE = 1536                 # NARROW·SIDE_BY_SIDE
    PAD = 16                    # elements, for it to begin with a line
    FLUSH_TILES = 32            # whose parameter gradients are added up in the type of x


cdef inline void load_tile(
    Task* t, const Operand* o, Py_ssize_t index, Py_ssize_t count, real* scratch, real* tile
) noexcept nogil:
    cdef Py_ssize_t stride
    cdef const real* x = load_block(o, index * t.n, t.n, count, t.n, scratch, &stride)
    if t.route != IN_CACHE:
        ask(x, t.dtype, count * t.n, elements_ahead(t, index, count))
    if count < SIDE_BY_SIDE:
        memset(tile, 0, t.n * SIDE_BY_SIDE * sizeof(real))
    transpose(x, stride, count, t.n, tile, <Py_ssize_t> SIDE_BY_SIDE)


cdef inline void store_tile(
    Task* t, Py_ssize_t index, Py_ssize_t count, const real* tile, real* scratch, Writer* writer
) noexcept nogil:
    cdef Py_ssize_t stride, i = 0, length, n = count * t.n
    cdef real* y = result_block(&t.y, index * t.n, t.n, t.n, scratch, &stride)
    cdef real* target
    if not (t.y.direct and writer.streams):
        transpose(tile, <Py_ssize_t> SIDE_BY_SIDE, t.n, count, y, stride)
        store_block(&t.y, index * t.n, t.n, count, t.n, y, stride, writer)
        return
    transpose(tile, <Py_ssize_t> SIDE_BY_SIDE, t.n, count, scratch, t.n)
    while i < n:
        length = n - i
        target = place(writer, y + i, &length)
        memcpy(target, scratch + i, length * sizeof(real))
        i += length


cdef inline void tile_sums(const real* tile, Py_ssize_t n, real* sums) noexcept nogil:
    """Σx of each row"""
    if real is float:
        tile_sums_float(tile, n, sums)
    else:
        tile_sums_double(tile, n, sums)


cdef inline void tile_centred_sums(
    const real* tile, Py_ssize_t n, const real* centre, real* sums, real* squares
) noexcept nogil:
    """Σ(x - centre) and Σ(x - centre)² of each row"""
    if real is float:
        tile_centred_sums_float(tile, n, centre, sums, squares)
    else:
        tile_centred_sums_double(tile, n, centre, sums, squares)


cdef inline void tile_row_sums(
    const real* x, const real* dy, Py_ssize_t n, const real* high, const real* scale,
    const real* shift, bint centred, const real* gamma, real* sums, real* products,
) noexcept nogil:
    """Σh and Σ(h·x̂) of each row, with h = dy·gamma, or dy where gamma is NULL"""
    if real is float:
        tile_products_float(dy, x, gamma, n, high, scale, shift, centred, sums, products)
    else:
        tile_products_double(dy, x, gamma, n, high, scale, shift, centred, sums, products)


cdef inline void tile_statistics(
    Task* t, const real* tile, Py_ssize_t index, Py_ssize_t count, double* mean, double* rstd
) noexcept nogil:
    """As for rows that are longer (rows_forward.pxd)."""
    cdef real centre[SIDE_BY_SIDE]
    cdef real sums[SIDE_BY_SIDE]
    cdef real squares[SIDE_BY_SIDE]
    cdef double m2[SIDE_BY_SIDE]
    cdef Py_ssize_t j
    tile_sums(tile, t.n, centre)
    for j in range(SIDE_BY_SIDE):
        centre[j] = centre[j] / t.n if t.centred else 0
    tile_centred_sums(tile, t.n, centre, sums, squares)
    for j in range(SIDE_BY_SIDE):
        m2[j] = squares[j]
        settle(centre[j], sums[j] if t.centred else 0, t.n, &mean[j], &m2[j])
    finish_statistics(t, index, count, mean, m2, rstd)


cdef inline void split(
    Task* t, Py_ssize_t count, const double* mean, const double* rstd,
    real* restrict high, real* restrict scale, real* restrict shift,
) noexcept nogil:
    """The maps of all rows (rows_numbers.pxd), those of absent ones being 0."""
    cdef Py_ssize_t j
    for j in range(count, SIDE_BY_SIDE):
        high[j], scale[j], shift[j] = 0, 0, 0
    split_means(t, count, mean, rstd, high, scale, shift)


cdef inline void tile_affine(
    real* tile, Py_ssize_t n, const real* high, const real* scale, const real* shift, bint centred,
    const real* gamma, const real* beta,
) noexcept nogil:
    """In place."""
    cdef Py_ssize_t i, j
    cdef real* row
    for i in range(n):
        row = tile + i * SIDE_BY_SIDE
        for j in range(SIDE_BY_SIDE):
            row[j] = standard(row[j], high[j], scale[j], shift[j], centred)
        if gamma != NULL:
            for j in range(SIDE_BY_SIDE):
                row[j] *= gamma[i]
        if beta != NULL:
            for j in range(SIDE_BY_SIDE):
                row[j] += beta[i]


cdef inline void forward_narrow(
    Task* t, Py_ssize_t index, Py_ssize_t last, real* x_scratch, real* y_scratch, Writer* writer
) noexcept nogil:
    cdef real memory[TILE + PAD]
    cdef real* tile = <real*> at_line(memory)
    cdef real high[SIDE_BY_SIDE]
    cdef real scale[SIDE_BY_SIDE]
    cdef real shift[SIDE_BY_SIDE]
    cdef double mean[SIDE_BY_SIDE]
    cdef double rstd[SIDE_BY_SIDE]
    cdef Py_ssize_t count
    while index < last:
        count = min(last - index, <Py_ssize_t> SIDE_BY_SIDE)
        load_tile(t, &t.x, index, count, x_scratch, tile)
        tile_statistics(t, tile, index, count, mean, rstd)
        split(t, count, mean, rstd, high, scale, shift)
        tile_affine(
            tile, t.n, high, scale, shift, t.centred, <const real*> t.gamma, <const real*> t.beta
        )
        store_tile(t, index, count, tile, y_scratch, writer)
        index += count


cdef inline void tile_gradients(
    real* x, const real* dy, Py_ssize_t n, const real* high, const real* scale,
    const real* shift, bint centred, const real* gamma, const real* mean_h, const real* mean_hx,
    const real* factor, real* restrict dgamma, real* restrict dbeta,
) noexcept nogil:
    """dx = factor·(h - Σh/n - x̂·Σ(h·x̂)/n), in place of x;  dgamma += dy·x̂;  dbeta += dy"""
    cdef Py_ssize_t i, j, k
    cdef real x_hat, weight
    for i in range(n):
        weight = 1 if gamma == NULL else gamma[i]
        for j in range(SIDE_BY_SIDE):
            k = i * SIDE_BY_SIDE + j
            x_hat = standard(x[k], high[j], scale[j], shift[j], centred)
            dgamma[k] += dy[k] * x_hat
            dbeta[k] += dy[k]
            x[k] = ((dy[k] * weight - mean_h[j]) - x_hat * mean_hx[j]) * factor[j]


cdef inline void tile_length_gradients(
    real* restrict x, const real* dy, Py_ssize_t n, const real* scale, const real* dg,
    const real* factor,
) noexcept nogil:
    """Of weight norm, which adds up nothing over rows: dx = factor·(dy - x̂·dg), in place of x."""
    cdef Py_ssize_t i, j, k
    for i in range(n):
        for j in range(SIDE_BY_SIDE):
            k = i * SIDE_BY_SIDE + j
            x[k] = (dy[k] - x[k] * scale[j] * dg[j]) * factor[j]


cdef inline void fold_tile(
    real* restrict tile, Py_ssize_t n, real* restrict scratch, double* restrict sums
) noexcept nogil:
    """sums += Σ_rows tile;  tile = 0. Turned first: sums of many elements at a time, in vectors."""
    cdef double totals[NARROW]
    cdef Py_ssize_t i, j
    transpose(tile, <Py_ssize_t> SIDE_BY_SIDE, n, <Py_ssize_t> SIDE_BY_SIDE, scratch, n)
    memset(tile, 0, n * SIDE_BY_SIDE * sizeof(real))
    for i in range(n):
        totals[i] = 0
    for j in range(SIDE_BY_SIDE):
        for i in range(n):
            totals[i] += scratch[j * n + i]
    for i in range(n):
        sums[i] += totals[i]


cdef inline void load_maps(
    Task* t, Py_ssize_t index, Py_ssize_t count, real* restrict high, real* restrict scale,
    real* restrict shift, real* restrict factor,
) noexcept nogil:
    """From what the forward pass kept of the rows; 0 for those that are not there."""
    cdef double mean[SIDE_BY_SIDE]
    cdef double rstd[SIDE_BY_SIDE]
    cdef double scales[SIDE_BY_SIDE]
    cdef Py_ssize_t j
    load_statistics(t, index, count, mean, rstd, scales)
    split(t, count, mean, rstd, high, scale, shift)
    for j in range(count):
        factor[j] = <real> scales[j]
    for j in range(count, SIDE_BY_SIDE):
        factor[j] = 0


cdef inline void backward_narrow(
    Task* t, Py_ssize_t index, Py_ssize_t last, double* partial,
    real* x_scratch, real* y_scratch, Writer* writer,
) noexcept nogil:
    cdef real memory[4 * TILE + PAD]
    cdef real* x = <real*> at_line(memory)
    cdef real* dy = x + TILE
    cdef real* dgamma = dy + TILE
    cdef real* dbeta = dgamma + TILE
    cdef real high[SIDE_BY_SIDE]
    cdef real scale[SIDE_BY_SIDE]
    cdef real shift[SIDE_BY_SIDE]
    cdef real factor[SIDE_BY_SIDE]
    cdef real mean_h[SIDE_BY_SIDE]
    cdef real mean_hx[SIDE_BY_SIDE]
    cdef double dg[SIDE_BY_SIDE]
    cdef Py_ssize_t count, j, unflushed = 0
    cdef const real* gamma = <const real*> t.gamma
    memset(dgamma, 0, t.n * SIDE_BY_SIDE * sizeof(real))
    memset(dbeta, 0, t.n * SIDE_BY_SIDE * sizeof(real))
    while index < last:
        count = min(last - index, <Py_ssize_t> SIDE_BY_SIDE)
        load_tile(t, &t.x, index, count, x_scratch, x)
        load_tile(t, &t.dy, index, count, x_scratch, dy)
        load_maps(t, index, count, high, scale, shift, factor)
        tile_row_sums(x, dy, t.n, high, scale, shift, t.centred, gamma, mean_h, mean_hx)
        if t.by_length:
            for j in range(SIDE_BY_SIDE):
                dg[j] = mean_hx[j]
            keep_lengths(t, index, count, dg)
            tile_length_gradients(x, dy, t.n, scale, mean_hx, factor)
        else:
            for j in range(SIDE_BY_SIDE):
                mean_h[j] = mean_h[j] / t.n if t.centred else 0
                mean_hx[j] = mean_hx[j] / t.n
            tile_gradients(
                x, dy, t.n, high, scale, shift, t.centred, gamma, mean_h, mean_hx, factor,
                dgamma, dbeta,
            )
        store_tile(t, index, count, x, y_scratch, writer)
        index += count
        unflushed += 1
        if partial != NULL and (unflushed == FLUSH_TILES or index == last):
            fold_tile(dgamma, t.n, x, partial)
            fold_tile(dbeta, t.n, x, partial + t.n)
            unflushed = 0
