"""Rows of 64 elements and more that lie side by side in memory, as those over axis 1 of NCHW do.

A block is a tile: tile[i, j] is element i of row j, and a vector holds one element of many rows.
Nothing is transposed but what is added to dgamma and dbeta, which rows share. The bits are those of
rows one by one (rows_forward.pxd, rows_backward.pxd): sums have the same lanes (turned_sums.h).
"""

from libc.string cimport memset

from fastnorm._kernels.arrays cimport real
from fastnorm._kernels.memory cimport Writer
from fastnorm._kernels.moments cimport is_off, settle
from fastnorm._kernels.operands cimport SIDE, Operand, address, adjacent_rows, read_across
from fastnorm._kernels.operands cimport transpose, write_across
from fastnorm._kernels.rows_task cimport FLUSH_ROWS, MAX_GROUP, SIDE_BY_SIDE, RowMap, Task
from fastnorm._kernels.rows_task cimport finish_statistics, kept_map, row_map, tile_step

cdef extern from "lanes.h" nogil:
    enum:
        ROW_NUMBERS "FASTNORM_ROW_NUMBERS"
    void guess_float "fastnorm_turned_guess_float"(
        const float* x, Py_ssize_t step, Py_ssize_t n, float* centre)
    void guess_double "fastnorm_turned_guess_double"(
        const double* x, Py_ssize_t step, Py_ssize_t n, double* centre)
    void centred_sums_float "fastnorm_turned_centred_sums_float"(
        const float* x, Py_ssize_t step, Py_ssize_t n, const float* centre, double* sums,
        double* squares)
    void centred_sums_double "fastnorm_turned_centred_sums_double"(
        const double* x, Py_ssize_t step, Py_ssize_t n, const double* centre, double* sums,
        double* squares)
    void gradient_sums_float "fastnorm_turned_gradient_sums_float"(
        const float* dy, const float* x, Py_ssize_t step, const float* gamma, Py_ssize_t n,
        const float* centre, const float* inverse, double* sums, double* products)
    void gradient_sums_double "fastnorm_turned_gradient_sums_double"(
        const double* dy, const double* x, Py_ssize_t step, const double* gamma, Py_ssize_t n,
        const double* centre, const double* inverse, double* sums, double* products)
    void add_rows_float "fastnorm_add_rows_float"(
        const float* tile, Py_ssize_t rows, float* sums)
    void add_rows_double "fastnorm_add_rows_double"(
        const double* tile, Py_ssize_t rows, double* sums)


# Rows of a block that are equally far apart in memory.
cdef struct Neighbours:
    char* data                  # of the first,
    Py_ssize_t first            # which is so many rows after the block's,
    Py_ssize_t rows, stride     # how many there are, and bytes from one to the next


cdef inline Py_ssize_t find_neighbours(
    const Operand* o, Py_ssize_t index, Py_ssize_t count, Py_ssize_t n, Neighbours* found
) noexcept nogil:
    """All rows of a block, in their order; and how many groups of them there are."""
    cdef Py_ssize_t k = 0, groups = 0, run
    while k < count:
        found[groups].data = address(o, (index + k) * n, &run)
        found[groups].first, found[groups].stride = k, 0
        found[groups].rows = adjacent_rows(
            o, (index + k) * n, n, count - k, &found[groups].stride
        )
        k += found[groups].rows
        groups += 1
    return groups


cdef inline void load_tile(
    Task* t, const Operand* o, Py_ssize_t index, Py_ssize_t count, real* tile
) noexcept nogil:
    """Columns up to whole vectors are zeros."""
    cdef Neighbours found[MAX_GROUP]
    cdef Py_ssize_t groups = find_neighbours(o, index, count, t.n, found), i, k
    cdef Py_ssize_t rest = (SIDE_BY_SIDE - count % SIDE_BY_SIDE) % SIDE_BY_SIDE
    for i in range(t.n):
        for k in range(groups):
            read_across(
                o, found[k].data, found[k].stride, found[k].rows, i, t.n, tile + found[k].first
            )
        memset(tile + count, 0, rest * sizeof(real))
        tile += tile_step(t)


cdef inline void store_across(
    Task* t, const real* values, Py_ssize_t i, const Neighbours* found, Py_ssize_t groups,
    Writer* writer,
) noexcept nogil:
    """Element i of all rows of a block."""
    cdef Py_ssize_t k
    for k in range(groups):
        write_across(
            &t.y, values + found[k].first, found[k].rows, found[k].data, found[k].stride, i, t.n,
            writer,
        )


cdef inline void centred_sums(
    const real* x, Py_ssize_t step, Py_ssize_t n, const real* centre, double* sums, double* squares
) noexcept nogil:
    """Σ(x - centre) and Σ(x - centre)² of SIDE_BY_SIDE rows"""
    if real is float:
        centred_sums_float(x, step, n, centre, sums, squares)
    else:
        centred_sums_double(x, step, n, centre, sums, squares)


cdef inline void gradient_sums(
    const real* dy, const real* x, Py_ssize_t step, const real* gamma, Py_ssize_t n,
    const real* centre, const real* inverse, double* h, double* hx,
) noexcept nogil:
    """Σh and Σ(h·(x - centre)·inverse), likewise, with h = dy·gamma, or dy where gamma is NULL"""
    if real is float:
        gradient_sums_float(dy, x, step, gamma, n, centre, inverse, h, hx)
    else:
        gradient_sums_double(dy, x, step, gamma, n, centre, inverse, h, hx)


cdef inline void moments_across(
    const real* x, Py_ssize_t step, Py_ssize_t n, double* mean, double* m2
) noexcept nogil:
    """`chunk_moments` of SIDE_BY_SIDE rows."""
    cdef real centre[SIDE_BY_SIDE]
    cdef double total[SIDE_BY_SIDE]
    cdef Py_ssize_t j
    cdef bint again = False
    if real is float:
        guess_float(x, step, n, centre)
    else:
        guess_double(x, step, n, centre)
    centred_sums(x, step, n, centre, total, m2)
    for j in range(SIDE_BY_SIDE):
        if is_off(total[j], m2[j], n):
            centre[j] = <real> (centre[j] + total[j] / n)
            again = True
    if again:
        centred_sums(x, step, n, centre, total, m2)
    for j in range(SIDE_BY_SIDE):
        settle(centre[j], total[j], n, &mean[j], &m2[j])


cdef inline void squares_across(
    const real* x, Py_ssize_t step, Py_ssize_t n, double* mean, double* m2
) noexcept nogil:
    """`row_squares`, likewise; the mean is taken as 0."""
    cdef real centre[SIDE_BY_SIDE]
    cdef Py_ssize_t j
    for j in range(SIDE_BY_SIDE):
        centre[j] = 0
    centred_sums(x, step, n, centre, mean, m2)
    for j in range(SIDE_BY_SIDE):
        mean[j] = 0


cdef inline void statistics_across(
    Task* t, const real* tile, Py_ssize_t index, Py_ssize_t count, double* mean, double* rstd
) noexcept nogil:
    cdef double m2[MAX_GROUP]
    cdef Py_ssize_t j = 0
    while j < count:
        if t.centred:
            moments_across(tile + j, tile_step(t), t.n, mean + j, m2 + j)
        else:
            squares_across(tile + j, tile_step(t), t.n, mean + j, m2 + j)
        j += SIDE_BY_SIDE
    finish_statistics(t, index, count, mean, m2, rstd)


cdef inline void affine_across(
    const real* restrict x, real* restrict y, Py_ssize_t count, const real* restrict centre,
    const real* restrict scale, const real* restrict shift, real gamma, real beta,
) noexcept nogil:
    """One element of each row."""
    cdef Py_ssize_t j
    for j in range(count):
        y[j] = ((x[j] - centre[j]) * scale[j] + shift[j]) * gamma + beta


cdef inline void forward_side_by_side(
    Task* t, Py_ssize_t index, Py_ssize_t last, real* tile, Writer* writer
) noexcept nogil:
    cdef Neighbours found[MAX_GROUP]
    cdef double mean[MAX_GROUP]
    cdef double rstd[MAX_GROUP]
    cdef real centre[MAX_GROUP]
    cdef real scale[MAX_GROUP]
    cdef real shift[MAX_GROUP]
    cdef real y[MAX_GROUP]
    cdef const real* gamma = <const real*> t.gamma
    cdef const real* beta = <const real*> t.beta
    cdef Py_ssize_t count, groups, i, j
    cdef RowMap m
    while index < last:
        count = min(t.group, last - index)
        load_tile(t, &t.x, index, count, tile)
        statistics_across(t, tile, index, count, mean, rstd)
        for j in range(count):
            m = row_map(t, mean[j], rstd[j])
            # Adding -0 changes nothing, not even a zero's sign.
            centre[j], scale[j] = <real> m.high, <real> m.rstd
            shift[j] = <real> m.shift if t.centred else -0.0
        groups = find_neighbours(&t.y, index, count, t.n, found)
        for i in range(t.n):
            affine_across(
                tile + i * tile_step(t), y, count, centre, scale, shift,
                1 if gamma == NULL else gamma[i], -0.0 if beta == NULL else beta[i],
            )
            store_across(t, y, i, found, groups, writer)
        index += count


cdef inline void numbers_across(
    Task* t, const real* x, const real* dy, Py_ssize_t index, Py_ssize_t count,
    real* restrict numbers,
) noexcept nogil:
    """The six numbers of each row (lanes.h), which take MAX_GROUP places each: as `row_numbers`."""
    cdef double h[MAX_GROUP]
    cdef double hx[MAX_GROUP]
    cdef double shift[MAX_GROUP]
    cdef RowMap m
    cdef Py_ssize_t j
    memset(numbers, 0, ROW_NUMBERS * MAX_GROUP * sizeof(real))
    for j in range(count):
        m = kept_map(t, index + j)
        # Adding -0 changes nothing, not even a zero's sign.
        shift[j] = m.shift if t.centred else -0.0
        numbers[j], numbers[MAX_GROUP + j] = <real> m.high, <real> m.rstd
        numbers[2 * MAX_GROUP + j] = <real> shift[j]
        numbers[3 * MAX_GROUP + j] = <real> m.scale
    j = 0
    while j < count:
        gradient_sums(
            dy + j, x + j, tile_step(t), <const real*> t.gamma, t.n, numbers + j,
            numbers + MAX_GROUP + j, h + j, hx + j,
        )
        j += SIDE_BY_SIDE
    for j in range(count):
        if t.centred:
            hx[j] += shift[j] * h[j]
            numbers[4 * MAX_GROUP + j] = <real> (h[j] / t.n)
        numbers[5 * MAX_GROUP + j] = <real> (hx[j] / t.n)


cdef inline void gradients_across(
    const real* restrict dy, real* restrict x, real* restrict dx, Py_ssize_t count,
    const real* restrict numbers, real gamma,
) noexcept nogil:
    """dx of one element of each row; x becomes dy·x̂"""
    cdef Py_ssize_t j
    cdef real x_hat, h
    for j in range(count):
        x_hat = (x[j] - numbers[j]) * numbers[MAX_GROUP + j] + numbers[2 * MAX_GROUP + j]
        x[j] = dy[j] * x_hat
        h = dy[j] * gamma - numbers[4 * MAX_GROUP + j]
        dx[j] = (h - x_hat * numbers[5 * MAX_GROUP + j]) * numbers[3 * MAX_GROUP + j]


cdef inline void backward_side_by_side(
    Task* t, Py_ssize_t index, Py_ssize_t count, real* x, real* dy, Writer* writer
) noexcept nogil:
    """dx of a block. The tiles are left with dy·x̂ and dy, whose sums over rows are the gradients
    of the parameters."""
    cdef Neighbours found[MAX_GROUP]
    cdef real numbers[ROW_NUMBERS * MAX_GROUP]
    cdef real dx[MAX_GROUP]
    cdef const real* gamma = <const real*> t.gamma
    cdef Py_ssize_t i, start, groups = find_neighbours(&t.y, index, count, t.n, found)
    load_tile(t, &t.x, index, count, x)
    load_tile(t, &t.dy, index, count, dy)
    numbers_across(t, x, dy, index, count, numbers)
    for i in range(t.n):
        start = i * tile_step(t)
        gradients_across(
            dy + start, x + start, dx, count, numbers, 1 if gamma == NULL else gamma[i]
        )
        store_across(t, dx, i, found, groups, writer)


cdef inline void add_rows(
    Task* t, const real* tile, Py_ssize_t rows, real* restrict sums
) noexcept nogil:
    """sums += rows of a tile, which are its columns, one after another"""
    cdef real turned[FLUSH_ROWS * SIDE]
    cdef Py_ssize_t i = 0, j, k, width
    while i < t.n:
        width = min(t.n - i, <Py_ssize_t> SIDE)
        transpose(tile + i * tile_step(t), tile_step(t), width, rows, turned, <Py_ssize_t> SIDE)
        if width < SIDE:
            for j in range(rows):
                for k in range(width):
                    sums[i + k] += turned[j * SIDE + k]
        elif real is float:
            add_rows_float(turned, rows, sums + i)
        else:
            add_rows_double(turned, rows, sums + i)
        i += width
