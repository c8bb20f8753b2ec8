"""The engine of batch and weight norm, which keep statistics per channel of an (N, C, S) view.

Every contiguous array with a channel axis is such a view: N is what stands before the axis, S what
stands after it. A pass reduces each channel over N and S to two numbers, turns them into
coefficients, and maps each element with its channel's coefficients. The elements lie in one of two
ways:

    planes      S is long: a channel is N runs of S elements, summed in lanes (rows.pxd)
    columns     S is short or 1: rows of C·S columns are reduced over N (columns.pxd), then the
                columns of each channel are folded; very narrow rows are taken several at a time

The work is a grid of ranges (of planes or rows) by tiles (of channels). Where there are tiles
enough, a block takes all ranges of its tile and does everything to it while that is in cache; else
there are two phases. The grid depends on the shape alone, and partial results are combined in its
order: any number of threads gives the same bits. Of planes, the ranges depend on N and S only: a
channel's result does not depend on how many there are.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, itemsize_of, real
from fastnorm._kernels.blocks cimport BLOCK_BYTES, MAX_PARTIALS, ceil_div, threads_for
from fastnorm._kernels.columns cimport FLUSH, STRIP, column_centred_sums, column_gradient_sums
from fastnorm._kernels.columns cimport column_squares, column_sums, columns_gradient
from fastnorm._kernels.columns cimport FOUR, columns_scale_shift, four_columns_gradient
from fastnorm._kernels.columns cimport four_columns_scale_shift
from fastnorm._kernels.memory cimport Writer, flush, open_writer, place, prefetch, streams
from fastnorm._kernels.moments cimport Moments, merge_centred, no_moments, rescue
from fastnorm._kernels.rows cimport ALL_LANES, CHUNK, add_centred_sums, add_gradient_sums
from fastnorm._kernels.rows cimport add_squares, clear, fold
from fastnorm._kernels.rows cimport row_gradient, row_scale_shift, row_sum
from fastnorm._pool cimport parallel_for

cdef enum:
    MIN_PLANE = 128             # elements: shorter planes are columns
    MIN_RUN = 16                # elements: shorter planes are mapped as columns
    MIN_COLUMNS = 64            # narrower rows are taken several at a time
    WIDE_COLUMNS = 512          # as wide as that where there are MANY_ROWS
    MANY_ROWS = 4096
    TILE_BYTES = 4096           # of a row in a tile of columns: no more, and no less than half
    CACHED_BYTES = 524288       # of a tile that a block finds again in cache
    MAX_TILE = 16               # channels in a tile of planes
    PIECE = 1024                # elements of a plane: how far ahead memory is asked for
    RANGE_ROWS = 256            # keeps a range's partial results small beside its rows
    RANGE_ELEMENTS = 32768      # of a channel in a range of planes, at least
    AHEAD = 1024                # elements: how far a map that is a phase of its own asks for memory
    FEW = 256                   # channels that are prepared or finished at a time

cdef enum Reduction:
    NO_REDUCTION                # the coefficients are given
    MOMENTS                     # mean and Σ(x - mean)²
    SQUARES                     # 0 and Σx²
    GRADIENT_SUMS               # Σdy and Σdy·x̂, x̂ = (x - centre)·inverse

cdef enum Map:
    SCALE_SHIFT                 # y = (source - centre)·scale + shift
    GRADIENT                    # dx = (dy + ((x - centre)·slope + shift))·scale

# The rows of `coefficients`.
cdef enum Coefficient:
    CENTRE
    INVERSE
    SCALE
    SHIFT
    SLOPE
    COEFFICIENTS

# What a norm does to a few channels, at most FEW, from `channel` on.
ctypedef void (*prepare_function)(Channels* t, Py_ssize_t channel, Py_ssize_t n) noexcept nogil
ctypedef void (*finish_function)(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* first, double* second
) noexcept nogil


# How the work is cut: ranges of units by tiles of channels.
cdef struct Grid:
    Py_ssize_t ranges, units_per_range
    Py_ssize_t tiles, channels_per_tile


cdef struct Channels:
    Reduction reduction
    Map map
    prepare_function prepare    # sets the coefficients that the reduction needs, or NULL
    finish_function finish      # takes two numbers a channel, sets the coefficients of the map
    void* norm                  # what these two need to know

    Dtype dtype
    Py_ssize_t n, c, s          # the view
    const void* x
    const void* dy
    const void* source          # of SCALE_SHIFT: x or dy
    void* y

    bint planes
    Py_ssize_t repeats          # rows of the view in a row of columns
    Py_ssize_t width            # columns in a row, or channels
    Py_ssize_t inner            # columns of a channel that lie side by side
    Py_ssize_t units            # rows of columns, or pieces of a channel's planes
    Py_ssize_t pieces           # of a plane
    Py_ssize_t tail             # columns of the incomplete last row, where there is one
    Grid grid                   # of the reduction
    Grid map_grid
    bint whole_tiles            # a block takes all ranges of its tile
    bint streams                # see memory.pxd
    Py_ssize_t ahead            # elements: how far the map asks for memory in advance

    double* first               # (ranges, width)
    double* second              # (ranges, width)
    void* coefficients          # (COEFFICIENTS, width), in x's type


# The grid


cdef inline void plan_columns(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    cdef Py_ssize_t width = t.c * t.s, tile
    cdef Py_ssize_t least = WIDE_COLUMNS if t.n >= MANY_ROWS else MIN_COLUMNS
    t.planes = False
    t.inner, t.pieces, t.repeats = t.s, 1, 1
    if width < least and t.s < MIN_RUN:
        # A number of rows whose columns fill whole vectors.
        while t.repeats * width % 16 and t.repeats < 16:
            t.repeats *= 2
        while t.repeats * width < least:
            t.repeats *= 2
        if t.repeats > t.n:
            t.repeats = 1
    t.width = width * t.repeats
    t.units = t.n // t.repeats
    t.tail = width * (t.n % t.repeats)
    tile = CACHED_BYTES // (t.n * itemsize * (2 if t.reduction == GRADIENT_SUMS else 1))
    t.whole_tiles = t.repeats == 1 and (t.n <= MANY_ROWS // 8 or t.c * t.s <= tile)
    t.grid.ranges, t.grid.units_per_range = 1, t.units
    if t.whole_tiles:
        tile = max(min(tile, TILE_BYTES // itemsize), TILE_BYTES // 2 // itemsize)
        tile = min(tile, max(ceil_div(width, 2), TILE_BYTES // 4 // itemsize))
        t.grid.channels_per_tile = min(t.c, ceil_div(tile, t.s))
        return
    t.grid.units_per_range = max(<Py_ssize_t> RANGE_ROWS, ceil_div(t.units, MAX_PARTIALS))
    t.grid.ranges = ceil_div(t.units, t.grid.units_per_range)
    t.grid.channels_per_tile = t.c
    if t.repeats == 1:
        tile = ceil_div(t.c, max(MAX_PARTIALS // t.grid.ranges, <Py_ssize_t> 1))
        t.grid.channels_per_tile = max(min(t.c, ceil_div(STRIP, t.s)), tile)
    if t.tail:
        t.grid.ranges += 1


cdef inline void plan_planes(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    cdef Py_ssize_t plane = t.s * itemsize, channel = t.n * plane, tile
    t.planes = True
    t.repeats, t.inner, t.tail = 1, 1, 0
    t.width = t.c
    t.pieces = ceil_div(t.s, PIECE)
    t.units = t.n * t.pieces
    t.grid.units_per_range = max(
        ceil_div(RANGE_ELEMENTS, min(t.s, <Py_ssize_t> PIECE)), ceil_div(t.units, MAX_PARTIALS)
    )
    t.grid.ranges = ceil_div(t.units, t.grid.units_per_range)
    t.whole_tiles = t.grid.ranges == 1 or t.c >= MAX_PARTIALS // 2
    t.grid.channels_per_tile = 1
    if t.whole_tiles:
        tile = max(BLOCK_BYTES // channel, BLOCK_BYTES // 8 // plane)
        t.grid.channels_per_tile = max(min(min(tile, t.c), <Py_ssize_t> MAX_TILE), <Py_ssize_t> 1)


cdef inline void plan_map(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    """Where the map is a phase of its own, the best blocks are whole pieces of memory."""
    cdef Py_ssize_t plane = t.s * itemsize
    t.map_grid.channels_per_tile = t.c
    if t.planes:
        t.map_grid.channels_per_tile = max(
            min(t.c, 2 * BLOCK_BYTES // plane), <Py_ssize_t> 1
        )
    t.map_grid.units_per_range = t.pieces * max(
        2 * BLOCK_BYTES // (t.repeats * t.map_grid.channels_per_tile * plane),
        <Py_ssize_t> (1 if t.s >= MIN_RUN else FOUR)
    )
    if plane > CACHED_BYTES:
        t.map_grid.units_per_range = CACHED_BYTES // itemsize // PIECE
    t.map_grid.ranges = ceil_div(t.units, t.map_grid.units_per_range) + (1 if t.tail else 0)


cdef inline void plan(
    Channels* t, Reduction reduction, Dtype dtype, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s
) noexcept nogil:
    t.reduction, t.dtype = reduction, dtype
    t.n, t.c, t.s = n, c, s
    if s < MIN_PLANE:
        plan_columns(t, itemsize_of(dtype))
    else:
        plan_planes(t, itemsize_of(dtype))
    plan_map(t, itemsize_of(dtype))
    if reduction == NO_REDUCTION:
        t.whole_tiles = False
        t.grid = t.map_grid
    t.grid.tiles = ceil_div(t.c, t.grid.channels_per_tile)
    t.map_grid.tiles = ceil_div(t.c, t.map_grid.channels_per_tile)


cdef struct Block:
    Py_ssize_t range
    Py_ssize_t first_unit, last_unit
    Py_ssize_t first_channel, last_channel
    Py_ssize_t first_column, last_column


cdef inline Block block_at(
    Channels* t, const Grid* grid, Py_ssize_t range_, Py_ssize_t tile
) noexcept nogil:
    cdef Block b
    b.range = range_
    b.first_channel = tile * grid.channels_per_tile
    b.last_channel = min(b.first_channel + grid.channels_per_tile, t.c)
    b.first_unit = b.range * grid.units_per_range
    b.last_unit = min(b.first_unit + grid.units_per_range, t.units)
    b.first_column = b.first_channel * t.inner
    b.last_column = b.last_channel * t.inner
    if t.repeats > 1:
        b.last_column = t.width
        if t.tail and b.range == grid.ranges - 1:
            b.first_unit, b.last_unit, b.last_column = t.units, t.units + 1, t.tail
    return b


cdef inline Py_ssize_t range_count(Channels* t, Py_ssize_t index) noexcept nogil:
    """Elements that a range adds to a channel (planes) or to a column."""
    cdef Block b = block_at(t, &t.grid, index, 0)
    cdef Py_ssize_t count = b.last_unit - b.first_unit
    if not t.planes:
        return count
    # Of a plane's pieces the last may be shorter.
    count *= min(t.s, <Py_ssize_t> PIECE)
    count -= (b.last_unit // t.pieces - b.first_unit // t.pieces) * (
        t.pieces * min(t.s, <Py_ssize_t> PIECE) - t.s
    )
    return count


cdef inline Py_ssize_t range_width(Channels* t, Py_ssize_t index) noexcept nogil:
    return t.tail if t.tail and index == t.grid.ranges - 1 else t.width


# Coefficients


cdef inline void set_typed(
    Channels* t, real* row, Py_ssize_t channel, Py_ssize_t n, const double* values
) noexcept nogil:
    cdef Py_ssize_t repeat, i, j
    for repeat in range(t.repeats):
        if t.inner == 1:
            for i in range(n):
                row[repeat * t.c + channel + i] = <real> values[i]
        else:
            for i in range(n):
                for j in range(t.inner):
                    row[(repeat * t.c + channel + i) * t.inner + j] = <real> values[i]


cdef inline void set_coefficients(
    Channels* t, Coefficient row, Py_ssize_t channel, Py_ssize_t n, const double* values
) noexcept nogil:
    """The same for all columns of a channel."""
    if t.dtype == FLOAT32:
        set_typed(t, <float*> t.coefficients + row * t.width, channel, n, values)
    else:
        set_typed(t, <double*> t.coefficients + row * t.width, channel, n, values)


cdef inline void set_all(
    Channels* t, Coefficient row, Py_ssize_t channel, Py_ssize_t n, double value
) noexcept nogil:
    cdef double values[FEW]
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = value
    set_coefficients(t, row, channel, n, values)


cdef inline void high_parts(
    Channels* t, Py_ssize_t n, const double* mean, double* restrict high
) noexcept nogil:
    """The means to the digits of x's type."""
    cdef Py_ssize_t i
    for i in range(n):
        high[i] = <double> <float> mean[i] if t.dtype == FLOAT32 else mean[i]


# Planes


cdef inline Py_ssize_t piece_length(Channels* t, Py_ssize_t unit) noexcept nogil:
    return min(<Py_ssize_t> PIECE, t.s - unit % t.pieces * PIECE)


cdef inline Py_ssize_t piece_offset(
    Channels* t, Py_ssize_t unit, Py_ssize_t channel
) noexcept nogil:
    return (unit // t.pieces * t.c + channel) * t.s + unit % t.pieces * PIECE


cdef inline void reduce_planes(Channels* t, const real* x, const real* dy, Block b) noexcept nogil:
    """Lanes live on from plane to plane until a chunk is full; the first chunk is centred on the
    mean of its first piece, a later one on the mean so far, which is as good as two sweeps over
    it: what the centre is off by, squared, is part of the sum of squares anyhow."""
    cdef real lanes[MAX_TILE][ALL_LANES]
    cdef real others[MAX_TILE][ALL_LANES]
    cdef real centre[MAX_TILE]
    cdef Moments moments[MAX_TILE]
    cdef const real* coefficients = <const real*> t.coefficients
    cdef Py_ssize_t unit, channel, length, offset, ahead, k, pending = 0
    cdef Py_ssize_t channels = b.last_channel - b.first_channel
    for k in range(channels):
        moments[k] = no_moments()
        centre[k] = 0
        clear(lanes[k])
        clear(others[k])
    for unit in range(b.first_unit, b.last_unit):
        length = piece_length(t, unit)
        pending += length
        for k in range(channels):
            channel = b.first_channel + k
            offset = piece_offset(t, unit, channel)
            ahead = 0
            if unit + 1 < b.last_unit:
                ahead = piece_offset(t, unit + 1, channel) - offset
            if t.reduction == GRADIENT_SUMS:
                add_gradient_sums(
                    dy + offset, x + offset, length, coefficients[channel],
                    coefficients[INVERSE * t.width + channel], lanes[k], others[k], ahead,
                )
            elif t.reduction == SQUARES:
                add_squares(x + offset, length, others[k], ahead)
            else:
                if unit == b.first_unit:
                    centre[k] = <real> (row_sum(x + offset, length) / length)
                add_centred_sums(x + offset, length, centre[k], lanes[k], others[k], ahead)
        if pending < CHUNK and unit + 1 < b.last_unit:
            continue
        for k in range(channels):
            if t.reduction == MOMENTS:
                merge_centred(&moments[k], pending, centre[k], fold(lanes[k]), fold(others[k]))
                centre[k] = <real> moments[k].mean
            else:
                moments[k].mean += fold(lanes[k])
                moments[k].m2 += fold(others[k])
            clear(lanes[k])
            clear(others[k])
        pending = 0
    for k in range(channels):
        t.first[b.range * t.width + b.first_channel + k] = moments[k].mean
        t.second[b.range * t.width + b.first_channel + k] = moments[k].m2


cdef inline void map_run(
    Channels* t, const real* x, const real* dy, const real* source, real* y,
    Py_ssize_t offset, Py_ssize_t n, Py_ssize_t channel, Writer* writer,
) noexcept nogil:
    """n elements of one channel."""
    cdef const real* coefficients = <const real*> t.coefficients + channel * t.inner
    cdef real centre = coefficients[CENTRE * t.width]
    cdef real scale = coefficients[SCALE * t.width]
    cdef real shift = coefficients[SHIFT * t.width]
    cdef real slope = coefficients[SLOPE * t.width]
    cdef Py_ssize_t end = offset + n, length
    cdef real* target
    while offset < end:
        length = end - offset
        target = place(writer, y + offset, &length)
        if t.map == SCALE_SHIFT:
            row_scale_shift(source + offset, target, length, centre, scale, shift, t.ahead)
        else:
            row_gradient(
                dy + offset, x + offset, target, length, centre, slope, shift, scale, t.ahead
            )
        offset += length


cdef inline void map_planes(
    Channels* t, const real* x, const real* dy, const real* source, real* y, Block b
) noexcept nogil:
    cdef Py_ssize_t sample = b.first_unit // t.pieces, start, stop, i
    cdef Writer writer
    open_writer(&writer, t.streams)
    while sample * t.pieces < b.last_unit:
        start = max(b.first_unit - sample * t.pieces, <Py_ssize_t> 0) * PIECE
        stop = min((b.last_unit - sample * t.pieces) * PIECE, t.s)
        for i in range(b.first_channel, b.last_channel):
            if not t.streams and t.whole_tiles and (sample + 1) * t.pieces < b.last_unit:
                prefetch(y + ((sample + 1) * t.c + i) * t.s + start, (stop - start) * sizeof(real))
            map_run(
                t, x, dy, source, y, (sample * t.c + i) * t.s + start, stop - start, i, &writer
            )
        sample += 1
    flush(&writer)


# Columns


cdef inline void merge_columns(
    double* mean, double* m2, Py_ssize_t n, Py_ssize_t count, Py_ssize_t more,
    const real* centre, const real* sums, const real* squares,
) noexcept nogil:
    """Chan's formula for each column: `count` rows before, `more` rows given by their centred
    sums."""
    cdef Py_ssize_t j
    cdef double total, delta, deviation
    cdef double inverse = 1.0 / more
    cdef double share = <double> more / (count + more)
    cdef double weight = <double> count * more / (count + more)
    for j in range(n):
        total = sums[j]
        deviation = squares[j] - total * (total * inverse)
        deviation = 0 if deviation < 0 else deviation
        delta = (centre[j] + total * inverse) - mean[j]
        mean[j] += delta * share
        m2[j] += deviation + delta * delta * weight


cdef inline void reduce_strip(
    Channels* t, const real* x, const real* dy, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t n,
    double* first, double* second,
) noexcept nogil:
    """`rows` rows of n columns. Centred as planes are: see there."""
    cdef real sums[STRIP]
    cdef real others[STRIP]
    cdef real centre[STRIP]
    cdef const real* coefficients = <const real*> t.coefficients + column
    cdef Py_ssize_t row = 0, more, j
    cdef Py_ssize_t ahead = 8 * t.width if t.ahead and n == t.width else 0
    for j in range(n):
        first[j] = 0
        second[j] = 0
        centre[j] = 0
    if t.reduction == MOMENTS:
        more = min(rows, <Py_ssize_t> FLUSH)
        column_sums(x, t.width, more, n, centre)
        for j in range(n):
            centre[j] = centre[j] / more
            first[j] = centre[j]
    while row < rows:
        more = min(rows - row, <Py_ssize_t> FLUSH)
        memset(sums, 0, n * sizeof(real))
        memset(others, 0, n * sizeof(real))
        if t.reduction == GRADIENT_SUMS:
            column_gradient_sums(
                dy + row * t.width, x + row * t.width, t.width, more, n,
                coefficients, coefficients + INVERSE * t.width, sums, others, ahead,
            )
        elif t.reduction == SQUARES:
            column_squares(x + row * t.width, t.width, more, n, others, ahead)
        else:
            column_centred_sums(
                x + row * t.width, t.width, more, n, centre, sums, others, ahead
            )
        if t.reduction == MOMENTS:
            merge_columns(first, second, n, row, more, centre, sums, others)
            for j in range(n):
                centre[j] = <real> first[j]
        else:
            for j in range(n):
                first[j] += sums[j]
                second[j] += others[j]
        row += more


cdef inline void reduce_columns(Channels* t, const real* x, const real* dy, Block b) noexcept nogil:
    cdef Py_ssize_t column = b.first_column, n, offset
    while column < b.last_column:
        n = min(b.last_column - column, <Py_ssize_t> STRIP)
        offset = b.first_unit * t.width + column
        reduce_strip(
            t, x + offset, dy + offset, b.last_unit - b.first_unit, column, n,
            t.first + b.range * t.width + column, t.second + b.range * t.width + column,
        )
        column += n


cdef inline void map_row(
    Channels* t, const real* x, const real* dy, const real* source, real* y,
    Py_ssize_t row, Py_ssize_t column, Py_ssize_t n, Writer* writer,
) noexcept nogil:
    """n columns of a row."""
    cdef const real* centre = <const real*> t.coefficients + column
    cdef Py_ssize_t offset = row * t.width + column, end = offset + n, length
    cdef real* target
    while offset < end:
        length = end - offset
        target = place(writer, y + offset, &length)
        if t.map == SCALE_SHIFT:
            columns_scale_shift(
                source + offset, target, length,
                centre, centre + SCALE * t.width, centre + SHIFT * t.width, t.ahead,
            )
        else:
            columns_gradient(
                dy + offset, x + offset, target, length, centre,
                centre + SLOPE * t.width, centre + SHIFT * t.width, centre + SCALE * t.width,
                t.ahead,
            )
        centre += length
        offset += length


cdef inline void map_four_rows(
    Channels* t, const real* x, const real* dy, const real* source, real* y,
    Py_ssize_t row, Py_ssize_t column, Py_ssize_t n,
) noexcept nogil:
    cdef const real* centre = <const real*> t.coefficients + column
    cdef Py_ssize_t offset = row * t.width + column, stride = t.width
    cdef real* target = y + offset
    if t.map == SCALE_SHIFT:
        four_columns_scale_shift(
            source + offset, stride,
            target, target + stride, target + 2 * stride, target + 3 * stride, n,
            centre, centre + SCALE * t.width, centre + SHIFT * t.width,
        )
    else:
        four_columns_gradient(
            dy + offset, x + offset, stride,
            target, target + stride, target + 2 * stride, target + 3 * stride, n,
            centre, centre + SLOPE * t.width, centre + SHIFT * t.width, centre + SCALE * t.width,
        )


cdef inline void map_columns(
    Channels* t, const real* x, const real* dy, const real* source, real* y, Block b
) noexcept nogil:
    """Streaming goes through memory in its order; in cache the coefficients, of which there are as
    many as elements in a row, are what costs time."""
    cdef Py_ssize_t row, column = b.first_column, n
    cdef Writer writer
    open_writer(&writer, t.streams)
    if t.streams:
        for row in range(b.first_unit, b.last_unit):
            map_row(t, x, dy, source, y, row, column, b.last_column - column, &writer)
    while column < b.last_column and not t.streams:
        n = min(b.last_column - column, <Py_ssize_t> STRIP)
        row = b.first_unit
        while row + FOUR <= b.last_unit:
            map_four_rows(t, x, dy, source, y, row, column, n)
            row += FOUR
        while row < b.last_unit:
            map_row(t, x, dy, source, y, row, column, n, &writer)
            row += 1
        column += n
    flush(&writer)


# From the partial results to the channels' two numbers


cdef inline void combine_ranges(Channels* t, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Fold all ranges of these columns into the first one; Chan's formula, for all parts at
    once."""
    cdef double mean[STRIP]
    cdef double* first = t.first
    cdef double* second = t.second
    cdef Py_ssize_t r, j, count, whole = 0, last, base
    cdef double weight, tail_weight, delta
    if t.reduction != MOMENTS:
        for r in range(1, t.grid.ranges):
            base = r * t.width
            for j in range(start, min(stop, range_width(t, r))):
                first[j] += first[base + j]
                second[j] += second[base + j]
        return
    for r in range(t.grid.ranges):
        if range_width(t, r) == t.width:
            whole += range_count(t, r)
    while start < stop:
        last = min(stop, start + STRIP)
        memset(mean, 0, sizeof(mean))
        for r in range(t.grid.ranges):
            base = r * t.width
            count = range_count(t, r)
            weight = <double> count / whole
            tail_weight = <double> count / (whole + 1)
            for j in range(start, min(last, range_width(t, r))):
                # Relative to the first: equal means have that mean exactly.
                mean[j - start] += (first[base + j] - first[j]) * (
                    tail_weight if j < t.tail else weight
                )
        for j in range(start, last):
            mean[j - start] += first[j]
        for r in range(t.grid.ranges):
            base = r * t.width
            count = range_count(t, r)
            for j in range(start, min(last, range_width(t, r))):
                delta = first[base + j] - mean[j - start]
                second[j] = (second[j] if r else 0) + (second[base + j] + count * (delta * delta))
        for j in range(start, last):
            first[j] = mean[j - start]
        start = last


cdef inline Py_ssize_t column_count(Channels* t, Py_ssize_t column) noexcept nogil:
    return t.units + 1 if column < t.tail else t.units


cdef inline void fold_channel(
    Channels* t, Py_ssize_t channel, double* first, double* second
) noexcept nogil:
    """The two numbers of a channel from those of its columns."""
    cdef Py_ssize_t repeat, j, start, stop
    cdef double delta, base = t.first[channel * t.inner]
    cdef double total = <double> t.n * t.s
    if t.planes or t.repeats * t.inner == 1:
        first[0], second[0] = t.first[channel], t.second[channel]
        return
    first[0], second[0] = 0, 0
    for repeat in range(t.repeats):
        start = (repeat * t.c + channel) * t.inner
        stop = start + t.inner
        for j in range(start, stop):
            if t.reduction == MOMENTS:  # relative to one of them: see `combine_ranges`
                first[0] += (t.first[j] - base) * (column_count(t, j) / total)
            else:
                first[0] += t.first[j]
            second[0] += t.second[j]
    if t.reduction == MOMENTS:
        first[0] += base
        for repeat in range(t.repeats):
            start = (repeat * t.c + channel) * t.inner
            stop = start + t.inner
            for j in range(start, stop):
                delta = t.first[j] - first[0]
                second[0] += column_count(t, j) * (delta * delta)


cdef inline bint rescue_channel(
    Channels* t, Py_ssize_t channel, bint centred, double eps,
    double* mean, double* var, double* rstd,
) noexcept nogil:
    """`rescue` for the n planes of a channel."""
    cdef Py_ssize_t offset = channel * t.s, stride = t.c * t.s
    if t.dtype == FLOAT32:
        return rescue(
            <const float*> t.x + offset, t.n, stride, t.s, centred, eps, mean, var, rstd
        )
    return rescue(<const double*> t.x + offset, t.n, stride, t.s, centred, eps, mean, var, rstd)


# The phases


cdef inline void prepare_channels(Channels* t, Block b) noexcept nogil:
    cdef Py_ssize_t channel = b.first_channel
    while t.prepare != NULL and channel < b.last_channel:
        t.prepare(t, channel, min(b.last_channel - channel, <Py_ssize_t> FEW))
        channel += FEW


cdef inline void reduce_typed(Channels* t, const real* x, const real* dy, Block b) noexcept nogil:
    if t.planes:
        reduce_planes(t, x, dy, b)
    else:
        reduce_columns(t, x, dy, b)


cdef inline void reduce_tile(Channels* t, Block b) noexcept nogil:
    if t.dtype == FLOAT32:
        reduce_typed(t, <const float*> t.x, <const float*> t.dy, b)
    else:
        reduce_typed(t, <const double*> t.x, <const double*> t.dy, b)


cdef inline void finish_channels(Channels* t, Block b) noexcept nogil:
    cdef double first[FEW]
    cdef double second[FEW]
    cdef Py_ssize_t channel = b.first_channel, n, i
    if t.grid.ranges > 1:
        combine_ranges(t, b.first_column, b.last_column)
    while channel < b.last_channel:
        n = min(b.last_channel - channel, <Py_ssize_t> FEW)
        for i in range(n):
            fold_channel(t, channel + i, &first[i], &second[i])
        t.finish(t, channel, n, first, second)
        channel += n


cdef inline void map_typed(
    Channels* t, const real* x, const real* dy, const real* source, real* y, Block b
) noexcept nogil:
    if t.s >= MIN_RUN:
        map_planes(t, x, dy, source, y, b)
    else:
        map_columns(t, x, dy, source, y, b)


cdef inline void map_tile(Channels* t, Block b) noexcept nogil:
    if t.dtype == FLOAT32:
        map_typed(
            t, <const float*> t.x, <const float*> t.dy, <const float*> t.source, <float*> t.y, b
        )
    else:
        map_typed(
            t, <const double*> t.x, <const double*> t.dy, <const double*> t.source, <double*> t.y, b
        )


cdef inline void whole_block(void* task, Py_ssize_t tile) noexcept nogil:
    cdef Channels* t = <Channels*> task
    cdef Py_ssize_t r
    prepare_channels(t, block_at(t, &t.grid, 0, tile))
    for r in range(t.grid.ranges):
        reduce_tile(t, block_at(t, &t.grid, r, tile))
    finish_channels(t, block_at(t, &t.grid, 0, tile))
    for r in range(t.grid.ranges - 1, -1, -1):
        map_tile(t, block_at(t, &t.grid, r, tile))


cdef inline void prepare_block(void* task, Py_ssize_t tile) noexcept nogil:
    cdef Channels* t = <Channels*> task
    prepare_channels(t, block_at(t, &t.grid, 0, tile))


cdef inline void reduce_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels* t = <Channels*> task
    reduce_tile(t, block_at(t, &t.grid, index // t.grid.tiles, index % t.grid.tiles))


cdef inline void finish_block(void* task, Py_ssize_t tile) noexcept nogil:
    cdef Channels* t = <Channels*> task
    finish_channels(t, block_at(t, &t.grid, 0, tile))


cdef inline void map_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels* t = <Channels*> task
    cdef Grid* grid = &t.map_grid
    map_tile(t, block_at(t, grid, index // grid.tiles, index % grid.tiles))


cdef inline bint run(Channels* t, int num_threads) noexcept nogil:
    """All phases over all channels. False where there was no memory, and then nothing is done."""
    cdef Py_ssize_t partials = t.grid.ranges * t.width * sizeof(double)
    cdef Py_ssize_t num_bytes = t.n * t.c * t.s * itemsize_of(t.dtype)
    cdef int team = threads_for(num_bytes, num_threads)
    cdef char* memory
    t.streams = streams((3 if t.dy != NULL else 2) * num_bytes)
    if t.reduction == NO_REDUCTION and team > 1:
        t.streams = streams(num_bytes)  # until then, the cache takes more than memory does
    t.ahead = 0
    if t.streams and not t.whole_tiles:
        t.ahead = AHEAD
    elif t.streams and t.planes and t.n == 1:
        t.ahead = t.grid.channels_per_tile * t.s  # the next tile
    if t.reduction == NO_REDUCTION:
        partials = 0
    memory = <char*> malloc(2 * partials + COEFFICIENTS * t.width * itemsize_of(t.dtype))
    if memory == NULL:
        return False
    t.first = <double*> memory
    t.second = <double*> (memory + partials)
    t.coefficients = memory + 2 * partials
    if t.whole_tiles:
        parallel_for(whole_block, t, t.grid.tiles, team)
    else:
        parallel_for(prepare_block, t, t.grid.tiles, team)
        if t.reduction != NO_REDUCTION:
            parallel_for(reduce_block, t, t.grid.ranges * t.grid.tiles, team)
            parallel_for(finish_block, t, t.grid.tiles, team)
        parallel_for(map_block, t, t.map_grid.ranges * t.map_grid.tiles, team)
    free(memory)
    return True
