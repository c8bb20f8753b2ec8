"""Rows of 48 elements and more that lie side by side in memory, as those over axis 1 of NCHW do.

A block is a tile: tile[i, j] is element i of row j, and a vector holds one element of many rows.
Where the array's elements are of the type that is computed in, a tile is a part of the array, as
wide as it takes for memory to be fast; else it is a copy. Nothing is transposed but what is added
to dgamma and dbeta, which rows share. The bits are those of rows one by one (rows_forward.pxd,
rows_backward.pxd): sums have the same lanes (turned_sums.h).
"""

from libc.string cimport memcpy, memset

from fastnorm._kernels.arrays cimport real
from fastnorm._kernels.blocks cimport ceil_div
from fastnorm._kernels.memory cimport Writer
from fastnorm._kernels.moments cimport is_off, settle
from fastnorm._kernels.operands cimport SIDE, Operand, address, adjacent_rows, read_across
from fastnorm._kernels.operands cimport rows_beside, transpose, write_across
from fastnorm._kernels.rows_numbers cimport HIGH, ROW_NUMBERS, RSTD, Group, finish_rows, load_group
from fastnorm._kernels.rows_numbers cimport settle_sums, split_means
from fastnorm._kernels.rows_task cimport FLUSH_ROWS, MAX_GROUP, SIDE_BY_SIDE, Task, are_flushed
from fastnorm._kernels.rows_task cimport finish_statistics, flush_sums, rows_left, tile_step
from fastnorm._kernels.rows_task cimport unflushed_rows

cdef extern from "lanes.h" nogil:
    void guess_float "fastnorm_turned_guess_float"(
        const float* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t rows, float* centre)
    void guess_double "fastnorm_turned_guess_double"(
        const double* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t rows, double* centre)
    void centred_sums_float "fastnorm_turned_centred_sums_float"(
        const float* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t rows, const float* centre,
        float* lanes, double* sums, double* squares)
    void centred_sums_double "fastnorm_turned_centred_sums_double"(
        const double* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t rows, const double* centre,
        double* lanes, double* sums, double* squares)
    void gradient_sums_float "fastnorm_turned_gradient_sums_float"(
        const float* dy, Py_ssize_t dy_step, const float* x, Py_ssize_t step, const float* gamma,
        Py_ssize_t n, Py_ssize_t rows, const float* centre, const float* inverse, float* lanes,
        double* sums, double* products)
    void gradient_sums_double "fastnorm_turned_gradient_sums_double"(
        const double* dy, Py_ssize_t dy_step, const double* x, Py_ssize_t step,
        const double* gamma, Py_ssize_t n, Py_ssize_t rows, const double* centre,
        const double* inverse, double* lanes, double* sums, double* products)
    void affine_float "fastnorm_turned_affine_float"(
        const float* x, float* y, Py_ssize_t rows, const float* centre, const float* scale,
        const float* shift, float gamma, float beta)
    void affine_double "fastnorm_turned_affine_double"(
        const double* x, double* y, Py_ssize_t rows, const double* centre, const double* scale,
        const double* shift, double gamma, double beta)
    void gradients_float "fastnorm_turned_gradients_float"(
        const float* dy, const float* x, float* dx, float* products, Py_ssize_t rows,
        const float* numbers, float gamma)
    void gradients_double "fastnorm_turned_gradients_double"(
        const double* dy, const double* x, double* dx, double* products, Py_ssize_t rows,
        const double* numbers, double gamma)
    void add_rows_float "fastnorm_add_rows_float"(
        const float* tile, Py_ssize_t rows, float* sums)
    void add_rows_double "fastnorm_add_rows_double"(
        const double* tile, Py_ssize_t rows, double* sums)


cdef enum:
    MAX_PARTS = 2 * MAX_GROUP // FLUSH_ROWS + 2  # a block has FLUSH_ROWS at least


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


cdef inline Py_ssize_t up_to_whole(Py_ssize_t rows) noexcept nogil:
    """As many as the sums take."""
    return ceil_div(rows, SIDE_BY_SIDE) * SIDE_BY_SIDE


cdef inline Py_ssize_t rows_of_tile(
    Task* t, Py_ssize_t index, Py_ssize_t rows, bint* in_place
) noexcept nogil:
    """How many of these make the next tile."""
    cdef Py_ssize_t beside
    in_place[0] = False
    if not t.in_place:
        return min(rows, t.group)
    beside = min(rows_beside(&t.x, index, rows), rows_beside(&t.y, index, rows))
    beside = min(beside, rows_beside(&t.dy, index, rows))
    if beside < SIDE_BY_SIDE:
        return beside
    in_place[0] = True
    beside //= ceil_div(beside, t.group)  # of equal widths, where one is not enough
    return beside - beside % SIDE_BY_SIDE


cdef inline void load_tile(
    Task* t, const Operand* o, Py_ssize_t index, Py_ssize_t count, real* tile
) noexcept nogil:
    """Columns up to whole vectors are zeros."""
    cdef Neighbours found[MAX_GROUP]
    cdef Py_ssize_t groups = find_neighbours(o, index, count, t.n, found), i, k
    cdef Py_ssize_t rest = up_to_whole(count) - count
    for i in range(t.n):
        for k in range(groups):
            read_across(
                o, found[k].data, found[k].stride, found[k].rows, i, t.n, tile + found[k].first
            )
        memset(tile + count, 0, rest * sizeof(real))
        tile += tile_step(t)


cdef inline const real* take_tile(
    Task* t, const Operand* o, Py_ssize_t index, Py_ssize_t count, bint in_place, real* scratch,
    Py_ssize_t* step,
) noexcept nogil:
    """And how many elements it is from one row of the tile to the next."""
    cdef Py_ssize_t run
    if in_place:
        step[0] = o.stride[o.axes - 1] // <Py_ssize_t> sizeof(real)
        return <const real*> address(o, index * t.n, &run)
    step[0] = tile_step(t)
    load_tile(t, o, index, count, scratch)
    return scratch


cdef inline real* result_across(
    Task* t, Py_ssize_t i, const Neighbours* found, bint in_place, real* scratch, Writer* writer
) noexcept nogil:
    """Where to compute element i of all rows of a block; `store_across` follows."""
    if in_place and not writer.streams:
        return <real*> (found.data + i * t.y.stride[t.y.axes - 1])
    return scratch


cdef inline void store_across(
    Task* t, const real* values, Py_ssize_t i, const Neighbours* found, Py_ssize_t groups,
    Writer* writer,
) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(groups):
        write_across(
            &t.y, values + found[k].first, found[k].rows, found[k].data, found[k].stride, i, t.n,
            writer,
        )


cdef inline void centred_sums(
    const real* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t rows, const real* centre, real* lanes,
    double* sums, double* squares,
) noexcept nogil:
    """Σ(x - centre) and Σ(x - centre)²"""
    if real is float:
        centred_sums_float(x, step, n, rows, centre, lanes, sums, squares)
    else:
        centred_sums_double(x, step, n, rows, centre, lanes, sums, squares)


cdef inline void gradient_sums(
    const real* dy, Py_ssize_t dy_step, const real* x, Py_ssize_t step, const real* gamma,
    Py_ssize_t n, Py_ssize_t rows, const real* centre, const real* inverse, real* lanes,
    double* h, double* hx,
) noexcept nogil:
    """Σh and Σ(h·(x - centre)·inverse), with h = dy·gamma, or dy where gamma is NULL"""
    if real is float:
        gradient_sums_float(
            dy, dy_step, x, step, gamma, n, rows, centre, inverse, lanes, h, hx
        )
    else:
        gradient_sums_double(
            dy, dy_step, x, step, gamma, n, rows, centre, inverse, lanes, h, hx
        )


cdef inline void moments_across(
    const real* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t rows, real* lanes, double* mean,
    double* m2,
) noexcept nogil:
    """`chunk_moments` of each row."""
    cdef real centre[MAX_GROUP]
    cdef Py_ssize_t j
    cdef bint again = False
    if real is float:
        guess_float(x, step, n, rows, centre)
    else:
        guess_double(x, step, n, rows, centre)
    centred_sums(x, step, n, rows, centre, lanes, mean, m2)
    for j in range(rows):
        if is_off(mean[j], m2[j], n):
            centre[j] = <real> (centre[j] + mean[j] / n)
            again = True
    if again:
        centred_sums(x, step, n, rows, centre, lanes, mean, m2)
    for j in range(rows):
        settle(centre[j], mean[j], n, &mean[j], &m2[j])


cdef inline void squares_across(
    const real* x, Py_ssize_t step, Py_ssize_t n, Py_ssize_t rows, real* lanes, double* mean,
    double* m2,
) noexcept nogil:
    """`row_squares`, likewise; the mean is taken as 0."""
    cdef real centre[MAX_GROUP]
    memset(centre, 0, rows * sizeof(real))
    centred_sums(x, step, n, rows, centre, lanes, mean, m2)
    memset(mean, 0, rows * sizeof(double))


cdef inline void affine_across(
    const real* x, real* y, Py_ssize_t rows, const real* centre, const real* scale,
    const real* shift, real gamma, real beta,
) noexcept nogil:
    """One element of each row."""
    if real is float:
        affine_float(x, y, rows, centre, scale, shift, gamma, beta)
    else:
        affine_double(x, y, rows, centre, scale, shift, gamma, beta)


cdef inline void forward_side_by_side(
    Task* t, Py_ssize_t index, Py_ssize_t last, real* scratch, real* lanes, Writer* writer
) noexcept nogil:
    cdef Neighbours found[MAX_GROUP]
    cdef double mean[MAX_GROUP]
    cdef double m2[MAX_GROUP]
    cdef double rstd[MAX_GROUP]
    cdef real numbers[3 * MAX_GROUP]
    cdef real* centre = numbers
    cdef real* scale = numbers + MAX_GROUP
    cdef real* shift = numbers + 2 * MAX_GROUP
    cdef real y_scratch[MAX_GROUP]
    cdef real* y
    cdef const real* x
    cdef const real* gamma = <const real*> t.gamma
    cdef const real* beta = <const real*> t.beta
    cdef Py_ssize_t count, at_once, step, groups, i, j
    cdef bint in_place
    memset(numbers, 0, sizeof(numbers))  # of columns up to whole vectors too
    while index < last:
        count = rows_of_tile(t, index, last - index, &in_place)
        x = take_tile(t, &t.x, index, count, in_place, scratch, &step)
        at_once = count if in_place else <Py_ssize_t> SIDE_BY_SIDE
        j = 0
        while j < count:
            if t.centred:
                moments_across(x + j, step, t.n, at_once, lanes, mean + j, m2 + j)
            else:
                squares_across(x + j, step, t.n, at_once, lanes, mean + j, m2 + j)
            j += at_once
        finish_statistics(t, index, count, mean, m2, rstd)
        split_means(t, count, mean, rstd, centre, scale, shift)
        groups = find_neighbours(&t.y, index, count, t.n, found)
        for i in range(t.n):
            y = result_across(t, i, found, in_place, y_scratch, writer)
            affine_across(
                x + i * step, y, up_to_whole(count), centre, scale, shift,
                1 if gamma == NULL else gamma[i], -0.0 if beta == NULL else beta[i],
            )
            store_across(t, y, i, found, groups, writer)
        index += count


cdef inline void numbers_across(
    Task* t, const real* x, Py_ssize_t step, const real* dy, Py_ssize_t dy_step, Py_ssize_t index,
    Py_ssize_t count, Py_ssize_t at_once, real* lanes, real* restrict numbers,
) noexcept nogil:
    """Of each row, and 0 of columns up to whole vectors."""
    cdef Group rows
    cdef Py_ssize_t j = 0
    memset(numbers, 0, ROW_NUMBERS * MAX_GROUP * sizeof(real))
    load_group(t, index, count, &rows, numbers)
    while j < count:
        gradient_sums(
            dy + j, dy_step, x + j, step, <const real*> t.gamma, t.n, at_once,
            numbers + HIGH + j, numbers + RSTD + j, lanes, rows.h + j, rows.hx + j,
        )
        j += at_once
    settle_sums(t, 0, count, &rows, numbers)
    finish_rows(t, 0, count, &rows, numbers)


cdef inline void gradients_across(
    const real* dy, const real* x, real* dx, real* products, Py_ssize_t rows, const real* numbers,
    real gamma,
) noexcept nogil:
    """dx and dy·x̂ of one element of each row."""
    if real is float:
        gradients_float(dy, x, dx, products, rows, numbers, gamma)
    else:
        gradients_double(dy, x, dx, products, rows, numbers, gamma)


cdef inline void add_rows(
    const real* tile, Py_ssize_t step, Py_ssize_t width, Py_ssize_t rows, real* sums
) noexcept nogil:
    """sums += rows of a tile, at most FLUSH_ROWS, which are its columns, one after another"""
    cdef real turned[FLUSH_ROWS * SIDE]
    cdef real few[SIDE]
    cdef real* to = sums if width == SIDE else few
    if width < SIDE:
        memset(turned, 0, sizeof(turned))
        memcpy(few, sums, width * sizeof(real))
    transpose(tile, step, width, rows, turned, <Py_ssize_t> SIDE)
    if real is float:
        add_rows_float(turned, rows, to)
    else:
        add_rows_double(turned, rows, to)
    if width < SIDE:
        memcpy(sums, few, width * sizeof(real))


# Rows of a tile whose parameter gradients are added up together.
cdef struct Part:
    Py_ssize_t first, rows
    Py_ssize_t offset           # of the sums of their block
    bint is_last                # of those that are added up before the sums go into double


cdef inline Py_ssize_t find_parts(
    Task* t, Py_ssize_t index, Py_ssize_t count, Part* parts
) noexcept nogil:
    """And how many there are. A tile may be of more rows than a block."""
    cdef Py_ssize_t j = 0, k = 0, rows
    while j < count:
        rows = min(FLUSH_ROWS - unflushed_rows(t, index + j), rows_left(t, index + j))
        parts[k].first, parts[k].rows = j, min(rows, count - j)
        parts[k].offset = (index + j) // t.rows_per_block * 2 * t.n
        j += parts[k].rows
        parts[k].is_last = are_flushed(t, index + j)
        k += 1
    return k


cdef inline void add_parameter_gradients(
    Task* t, const Part* parts, Py_ssize_t count, Py_ssize_t i, Py_ssize_t width,
    const real* products, const real* dy, Py_ssize_t dy_step, real* all_sums,
) noexcept nogil:
    """Elements i to i + width of dgamma and dbeta."""
    cdef const real* tiles[2]
    cdef Py_ssize_t steps[2]
    cdef Py_ssize_t k, j, offset
    tiles[0], tiles[1] = products, dy
    steps[0], steps[1] = tile_step(t), dy_step
    for k in range(count):
        for j in range(2 if t.centred else 1):
            offset = parts[k].offset + j * t.n + i
            add_rows(
                tiles[j] + parts[k].first, steps[j], width, parts[k].rows, all_sums + offset
            )
            if parts[k].is_last:
                flush_sums(t.partials + offset, all_sums + offset, width)


cdef inline void backward_side_by_side(
    Task* t, Py_ssize_t index, Py_ssize_t last, real* sums, real* x_scratch, real* dy_scratch,
    real* lanes, Writer* writer,
) noexcept nogil:
    """SIDE elements of each row at a time. Their dy·x̂ take the place of x where that is a copy,
    else of the lanes."""
    cdef Neighbours found[MAX_GROUP]
    cdef real numbers[ROW_NUMBERS * MAX_GROUP]
    cdef real dx_scratch[MAX_GROUP]
    cdef real* dx
    cdef real* products
    cdef const real* gamma = <const real*> t.gamma
    cdef const real* x
    cdef const real* dy
    cdef Part parts[MAX_PARTS]
    cdef Py_ssize_t count, part_count, step, dy_step, groups, i, k, width
    cdef bint in_place
    while index < last:
        count = rows_of_tile(t, index, last - index, &in_place)
        x = take_tile(t, &t.x, index, count, in_place, x_scratch, &step)
        dy = take_tile(t, &t.dy, index, count, in_place, dy_scratch, &dy_step)
        numbers_across(
            t, x, step, dy, dy_step, index, count, count if in_place else SIDE_BY_SIDE, lanes,
            numbers,
        )
        groups = find_neighbours(&t.y, index, count, t.n, found)
        part_count = find_parts(t, index, count, parts)
        i = 0
        while i < t.n:
            width = min(t.n - i, <Py_ssize_t> SIDE)
            products = lanes if in_place else x_scratch + i * tile_step(t)
            for k in range(width):
                dx = result_across(t, i + k, found, in_place, dx_scratch, writer)
                gradients_across(
                    dy + (i + k) * dy_step, x + (i + k) * step, dx, products + k * tile_step(t),
                    up_to_whole(count), numbers, 1 if gamma == NULL else gamma[i + k],
                )
                store_across(t, dx, i + k, found, groups, writer)
            add_parameter_gradients(
                t, parts, part_count, i, width, products, dy + i * dy_step, dy_step, sums
            )
            i += width
        index += count
