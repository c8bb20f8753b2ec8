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
there are two phases, the second in the reverse order, so that it begins with what the first left
in cache. The grid depends on the shape alone, and partial results are combined in its order: any
number of threads gives the same bits. Of planes, the ranges depend on N and S only: a channel's
result does not depend on how many there are.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastnorm._kernels.arrays cimport FLOAT32, Dtype, itemsize_of, real
from fastnorm._kernels.blocks cimport BLOCK_BYTES, MAX_PARTIALS, ceil_div, prefetch
from fastnorm._kernels.blocks cimport threads_for
from fastnorm._kernels.columns cimport FLUSH, STRIP, column_centred_sums, column_gradient_sums
from fastnorm._kernels.columns cimport column_squares, column_sums, columns_gradient
from fastnorm._kernels.columns cimport columns_scale_shift
from fastnorm._kernels.moments cimport Moments, merge_centred, no_moments, rescue
from fastnorm._kernels.rows cimport ALL_LANES, CHUNK, add_centred_sums, add_gradient_sums
from fastnorm._kernels.rows cimport add_squares, clear, fold
from fastnorm._kernels.rows cimport row_gradient, row_scale_shift, row_sum
from fastnorm._pool cimport parallel_for

cdef enum:
    MIN_PLANE = 128             # elements: shorter planes are columns
    MIN_COLUMNS = 64            # narrower rows are taken several at a time
    TILE_BYTES = 1024           # of a row: a tile of columns takes no less, if there are more
    CACHED_BYTES = 524288       # of a tile that a block finds again in cache
    MAX_TILE = 16               # channels in a tile of planes
    PIECE = 1024                # elements of a plane: how far ahead memory is asked for
    RANGE_ROWS = 256            # keeps a range's partial results small beside its rows
    RANGE_ELEMENTS = 32768      # of a channel in a range of planes, at least
    FEW = 256                   # channels that are prepared or finished at a time

cdef enum Reduction:
    NO_REDUCTION                # the coefficients are given
    MOMENTS                     # mean and Σ(x - mean)²
    SQUARES                     # 0 and Σx²
    GRADIENT_SUMS               # Σdy and Σdy·x̂, x̂ = (x - centre)·inverse

cdef enum Map:
    SCALE_SHIFT                 # y = (source - centre)·scale + shift
    GRADIENT                    # dx = (dy + (x̂·slope + shift))·scale

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
    Py_ssize_t ranges, units_per_range
    Py_ssize_t tiles, channels_per_tile
    bint whole_tiles            # a block takes all ranges of its tile

    double* first               # (ranges, width)
    double* second              # (ranges, width)
    void* coefficients          # (COEFFICIENTS, width), in x's type


# The grid


cdef inline void plan_columns(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    cdef Py_ssize_t width = t.c * t.s, fewest, tile
    t.planes = False
    t.inner, t.pieces, t.repeats = t.s, 1, 1
    if width < MIN_COLUMNS:
        # A number of rows whose columns fill whole vectors.
        while t.repeats * width % 16 and t.repeats < 16:
            t.repeats *= 2
        while t.repeats * width < MIN_COLUMNS:
            t.repeats *= 2
        if t.repeats > t.n:
            t.repeats = 1
    t.width = width * t.repeats
    t.units = t.n // t.repeats
    t.tail = width * (t.n % t.repeats)
    t.channels_per_tile = t.c
    t.ranges, t.units_per_range = 1, t.units
    fewest = min(t.c, ceil_div(TILE_BYTES, t.s * itemsize))
    t.whole_tiles = t.repeats == 1 and t.n * fewest * t.s * itemsize <= CACHED_BYTES
    if t.whole_tiles:
        t.channels_per_tile = max(fewest, min(t.c, 2 * BLOCK_BYTES // (t.n * t.s * itemsize)))
    else:
        t.units_per_range = max(<Py_ssize_t> RANGE_ROWS, ceil_div(t.units, MAX_PARTIALS))
        t.ranges = ceil_div(t.units, t.units_per_range)
        if t.repeats == 1:
            tile = ceil_div(t.c, max(MAX_PARTIALS // t.ranges, <Py_ssize_t> 1))
            t.channels_per_tile = max(min(t.c, ceil_div(STRIP, t.s)), tile)
        if t.tail:
            t.ranges += 1


cdef inline void plan_planes(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    cdef Py_ssize_t plane = t.s * itemsize, channel = t.n * plane, tile
    t.planes = True
    t.repeats, t.inner, t.tail = 1, 1, 0
    t.width = t.c
    t.pieces = ceil_div(t.s, PIECE)
    t.units = t.n * t.pieces
    t.units_per_range = max(
        ceil_div(RANGE_ELEMENTS, min(t.s, <Py_ssize_t> PIECE)), ceil_div(t.units, MAX_PARTIALS)
    )
    t.ranges = ceil_div(t.units, t.units_per_range)
    t.whole_tiles = t.ranges == 1 or t.c >= MAX_PARTIALS // 2
    t.channels_per_tile = 1
    if t.whole_tiles:
        tile = max(BLOCK_BYTES // channel, BLOCK_BYTES // 8 // plane)
        t.channels_per_tile = max(min(min(tile, t.c), <Py_ssize_t> MAX_TILE), <Py_ssize_t> 1)


cdef inline void plan_map(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    """Without a reduction, blocks that lie in memory one after the other are the best ones."""
    cdef Py_ssize_t plane = t.s * itemsize, tile = 2 * BLOCK_BYTES, samples
    t.whole_tiles = False
    t.channels_per_tile = t.c
    if not t.planes:
        tile = STRIP * 2 * itemsize  # whose coefficients stay in L1 for some rows
    if t.repeats == 1:
        t.channels_per_tile = max(min(t.c, tile // plane), <Py_ssize_t> 1)
    samples = 2 * BLOCK_BYTES // (t.repeats * t.channels_per_tile * plane)
    if t.channels_per_tile < t.c and not t.planes:
        samples *= 4
    t.units_per_range = max(samples, <Py_ssize_t> 1) * t.pieces
    t.ranges = ceil_div(t.units, t.units_per_range) + (1 if t.tail else 0)


cdef inline void plan(
    Channels* t, Reduction reduction, Dtype dtype, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s
) noexcept nogil:
    t.reduction, t.dtype = reduction, dtype
    t.n, t.c, t.s = n, c, s
    if s < MIN_PLANE:
        plan_columns(t, itemsize_of(dtype))
    else:
        plan_planes(t, itemsize_of(dtype))
    if reduction == NO_REDUCTION:
        plan_map(t, itemsize_of(dtype))
    t.tiles = ceil_div(t.c, t.channels_per_tile)


cdef struct Block:
    Py_ssize_t range
    Py_ssize_t first_unit, last_unit
    Py_ssize_t first_channel, last_channel
    Py_ssize_t first_column, last_column


cdef inline Block block_at(Channels* t, Py_ssize_t range_, Py_ssize_t tile) noexcept nogil:
    cdef Block b
    b.range = range_
    b.first_channel = tile * t.channels_per_tile
    b.last_channel = min(b.first_channel + t.channels_per_tile, t.c)
    b.first_unit = b.range * t.units_per_range
    b.last_unit = min(b.first_unit + t.units_per_range, t.units)
    b.first_column = b.first_channel * t.inner
    b.last_column = b.last_channel * t.inner
    if t.repeats > 1:
        b.last_column = t.width
        if t.tail and b.range == t.ranges - 1:
            b.first_unit, b.last_unit, b.last_column = t.units, t.units + 1, t.tail
    return b


cdef inline Py_ssize_t range_count(Channels* t, Py_ssize_t index) noexcept nogil:
    """Elements that a range adds to a channel (planes) or to a column."""
    cdef Block b = block_at(t, index, 0)
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
    return t.tail if t.tail and index == t.ranges - 1 else t.width


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


cdef inline void prefetch_unit(
    Channels* t, const real* x, Py_ssize_t unit, Py_ssize_t channel
) noexcept nogil:
    prefetch(
        x + piece_offset(t, unit, channel), piece_length(t, unit) * <Py_ssize_t> sizeof(real)
    )


cdef inline void reduce_planes(Channels* t, const real* x, const real* dy, Block b) noexcept nogil:
    """Lanes live on from plane to plane until a chunk is full; the first chunk is centred on the
    mean of its first piece, a later one on the mean so far, which is as good as two sweeps over
    it: what the centre is off by, squared, is part of the sum of squares anyhow."""
    cdef real lanes[MAX_TILE][ALL_LANES]
    cdef real others[MAX_TILE][ALL_LANES]
    cdef real centre[MAX_TILE]
    cdef Moments moments[MAX_TILE]
    cdef const real* coefficients = <const real*> t.coefficients
    cdef Py_ssize_t unit, channel, length, offset, k, pending = 0
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
            if unit + 1 < b.last_unit:
                prefetch_unit(t, x, unit + 1, channel)
                if t.reduction == GRADIENT_SUMS:
                    prefetch_unit(t, dy, unit + 1, channel)
            if t.reduction == GRADIENT_SUMS:
                add_gradient_sums(
                    dy + offset, x + offset, length, coefficients[channel],
                    coefficients[INVERSE * t.width + channel], lanes[k], others[k],
                )
            elif t.reduction == SQUARES:
                add_squares(x + offset, length, others[k])
            else:
                if unit == b.first_unit:
                    centre[k] = <real> (row_sum(x + offset, length) / length)
                add_centred_sums(x + offset, length, centre[k], lanes[k], others[k])
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


cdef inline void map_planes(
    Channels* t, const real* x, const real* dy, const real* source, real* y, Block b
) noexcept nogil:
    cdef const real* centre = <const real*> t.coefficients
    cdef const real* inverse = centre + INVERSE * t.width
    cdef const real* scale = centre + SCALE * t.width
    cdef const real* shift = centre + SHIFT * t.width
    cdef const real* slope = centre + SLOPE * t.width
    cdef Py_ssize_t sample = b.first_unit // t.pieces, start, stop, i, offset
    while sample * t.pieces < b.last_unit:
        start = max(b.first_unit - sample * t.pieces, <Py_ssize_t> 0) * PIECE
        stop = min((b.last_unit - sample * t.pieces) * PIECE, t.s)
        for i in range(b.first_channel, b.last_channel):
            offset = (sample * t.c + i) * t.s + start
            if t.map == SCALE_SHIFT:
                row_scale_shift(
                    source + offset, y + offset, stop - start, centre[i], scale[i], shift[i]
                )
            else:
                row_gradient(
                    dy + offset, x + offset, y + offset, stop - start,
                    centre[i], inverse[i], slope[i], shift[i], scale[i],
                )
        sample += 1


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
        memset(sums, 0, sizeof(sums))
        memset(others, 0, sizeof(others))
        if t.reduction == GRADIENT_SUMS:
            column_gradient_sums(
                dy + row * t.width, x + row * t.width, t.width, more, n,
                coefficients, coefficients + INVERSE * t.width, sums, others,
            )
        elif t.reduction == SQUARES:
            column_squares(x + row * t.width, t.width, more, n, others)
        else:
            column_centred_sums(x + row * t.width, t.width, more, n, centre, sums, others)
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


cdef inline void map_columns(
    Channels* t, const real* x, const real* dy, const real* source, real* y, Block b
) noexcept nogil:
    cdef const real* centre = <const real*> t.coefficients + b.first_column
    cdef const real* inverse = centre + INVERSE * t.width
    cdef const real* scale = centre + SCALE * t.width
    cdef const real* shift = centre + SHIFT * t.width
    cdef const real* slope = centre + SLOPE * t.width
    cdef Py_ssize_t row, offset, n = b.last_column - b.first_column
    for row in range(b.first_unit, b.last_unit):
        offset = row * t.width + b.first_column
        if t.reduction == NO_REDUCTION and n < t.width and row + 1 < b.last_unit:
            # The next row does not follow this one, nor has it been read before.
            prefetch(source + offset + t.width, n * <Py_ssize_t> sizeof(real))
        if t.map == SCALE_SHIFT:
            columns_scale_shift(source + offset, y + offset, n, centre, scale, shift)
        else:
            columns_gradient(
                dy + offset, x + offset, y + offset, n, centre, inverse, slope, shift, scale
            )


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
        for r in range(1, t.ranges):
            base = r * t.width
            for j in range(start, min(stop, range_width(t, r))):
                first[j] += first[base + j]
                second[j] += second[base + j]
        return
    for r in range(t.ranges):
        if range_width(t, r) == t.width:
            whole += range_count(t, r)
    while start < stop:
        last = min(stop, start + STRIP)
        memset(mean, 0, sizeof(mean))
        for r in range(t.ranges):
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
        for r in range(t.ranges):
            base = r * t.width
            count = range_count(t, r)
            for j in range(start, min(last, range_width(t, r))):
                delta = first[base + j] - mean[j - start]
                second[j] = (second[j] if r else 0) + (second[base + j] + count * (delta * delta))
        for j in range(start, last):
            first[j] = mean[j - start]
        start = last


cdef inline void fold_channel(
    Channels* t, Py_ssize_t channel, double* first, double* second
) noexcept nogil:
    """The two numbers of a channel from those of its columns."""
    cdef Py_ssize_t repeat, j, start, count, total = 0
    cdef Py_ssize_t rows = t.units
    cdef double delta
    if t.planes or t.repeats * t.inner == 1:
        first[0], second[0] = t.first[channel], t.second[channel]
        return
    first[0], second[0] = 0, 0
    for repeat in range(t.repeats):
        start = (repeat * t.c + channel) * t.inner
        for j in range(start, start + t.inner):
            count = rows + 1 if j < t.tail else rows
            if t.reduction == MOMENTS:
                total += count
                first[0] += (t.first[j] - first[0]) * (<double> count / total)
            else:
                first[0] += t.first[j]
            second[0] += t.second[j]
    if t.reduction == MOMENTS:
        for repeat in range(t.repeats):
            start = (repeat * t.c + channel) * t.inner
            for j in range(start, start + t.inner):
                count = rows + 1 if j < t.tail else rows
                delta = t.first[j] - first[0]
                second[0] += count * (delta * delta)


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
    if t.ranges > 1:
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
    if t.planes:
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
    prepare_channels(t, block_at(t, 0, tile))
    for r in range(t.ranges):
        reduce_tile(t, block_at(t, r, tile))
    finish_channels(t, block_at(t, 0, tile))
    for r in range(t.ranges - 1, -1, -1):
        map_tile(t, block_at(t, r, tile))


cdef inline void prepare_block(void* task, Py_ssize_t tile) noexcept nogil:
    prepare_channels(<Channels*> task, block_at(<Channels*> task, 0, tile))


cdef inline void reduce_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels* t = <Channels*> task
    reduce_tile(t, block_at(t, index // t.tiles, index % t.tiles))


cdef inline void finish_block(void* task, Py_ssize_t tile) noexcept nogil:
    finish_channels(<Channels*> task, block_at(<Channels*> task, 0, tile))


cdef inline void map_block(void* task, Py_ssize_t index) noexcept nogil:
    cdef Channels* t = <Channels*> task
    if t.reduction != NO_REDUCTION:  # the last blocks may still be in cache
        index = t.ranges * t.tiles - 1 - index
    map_tile(t, block_at(t, index // t.tiles, index % t.tiles))


cdef inline bint run(Channels* t, int num_threads) noexcept nogil:
    """All phases over all channels. False where there was no memory, and then nothing is done."""
    cdef Py_ssize_t blocks = t.ranges * t.tiles
    cdef Py_ssize_t partials = t.ranges * t.width * sizeof(double)
    cdef char* memory
    cdef int team = threads_for(t.n * t.c * t.s * itemsize_of(t.dtype), num_threads)
    if t.reduction == NO_REDUCTION:
        partials = 0
    memory = <char*> malloc(2 * partials + COEFFICIENTS * t.width * itemsize_of(t.dtype))
    if memory == NULL:
        return False
    t.first = <double*> memory
    t.second = <double*> (memory + partials)
    t.coefficients = memory + 2 * partials
    if t.whole_tiles:
        parallel_for(whole_block, t, t.tiles, team)
    else:
        parallel_for(prepare_block, t, t.tiles, team)
        if t.reduction != NO_REDUCTION:
            parallel_for(reduce_block, t, blocks, team)
            parallel_for(finish_block, t, t.tiles, team)
        parallel_for(map_block, t, blocks, team)
    free(memory)
    return True
