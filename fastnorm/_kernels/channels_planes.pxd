"""Channels that are planes: each is N runs of S elements, summed in lanes (rows.pxd)."""

from fastnorm._kernels.arrays cimport itemsize_of, real
from fastnorm._kernels.channels_task cimport CENTRE, CENTRED_SUMS, GRADIENT_SUMS, INVERSE, MAX_TILE
from fastnorm._kernels.channels_task cimport MOMENTS, PIECE, SCALE, SCALE_SHIFT, SHIFT, SLOPE
from fastnorm._kernels.channels_task cimport SQUARES, Block, Channels, run_map, run_scale
from fastnorm._kernels.memory cimport IN_CACHE, PAST_CACHE, RUN_BYTES, Writer, flush, open_writer
from fastnorm._kernels.memory cimport place_stored
from fastnorm._kernels.moments cimport Moments, merge_centred, merge_chunk, no_moments
from fastnorm._kernels.operands cimport SCRATCH_ROWS, load_block, result_block, store_block
from fastnorm._kernels.rows cimport ALL_LANES, CHUNK, TOGETHER, add_centred_sums
from fastnorm._kernels.rows cimport add_gradient_sums, add_squares, ask, clear, element, fold
from fastnorm._kernels.rows cimport map_rows, row_gradient_sums, row_moments, row_sum

cdef inline Py_ssize_t piece_length(Channels* t, Py_ssize_t unit) noexcept nogil:
    return min(<Py_ssize_t> PIECE, t.s - unit % t.pieces * PIECE)


cdef inline Py_ssize_t piece_offset(
    Channels* t, Py_ssize_t unit, Py_ssize_t channel
) noexcept nogil:
    """Where it is in x and dy."""
    return (
        t.origin + unit // t.pieces * t.plane_step + channel * t.s + unit % t.pieces * PIECE
    )


cdef inline Py_ssize_t planes_at_once(
    Channels* t, Py_ssize_t channels, Py_ssize_t n
) noexcept nogil:
    """Channels of which n elements each fit in scratch memory."""
    return min(min(channels, t.room // n), <Py_ssize_t> SCRATCH_ROWS)


cdef inline void reduce_planes(
    Channels* t, Block b, real* x_scratch, real* dy_scratch
) noexcept nogil:
    """Lanes live on from plane to plane until a chunk is full; the first chunk is centred on the
    mean of its first piece, a later one on the mean so far, which is as good as two sweeps over
    it: what the centre is off by, squared, is part of the sum of squares anyhow."""
    cdef real lanes[MAX_TILE][ALL_LANES]
    cdef real others[MAX_TILE][ALL_LANES]
    cdef real centre[MAX_TILE]
    cdef Moments moments[MAX_TILE]
    cdef const real* coefficients = <const real*> t.coefficients + b.first_channel
    cdef const real* x
    cdef const real* dy = NULL
    cdef Py_ssize_t unit, length, offset, ahead, first, k, pending = 0
    cdef Py_ssize_t channels = b.last_channel - b.first_channel, stride, dy_stride = 0, some = 0
    for k in range(channels):
        moments[k] = no_moments()
        centre[k] = 0
        clear(lanes[k])
        clear(others[k])
    for unit in range(b.first_unit, b.last_unit):
        length = piece_length(t, unit)
        offset = piece_offset(t, unit, b.first_channel)
        ahead = 0
        if unit + 1 < b.last_unit and t.direct:
            ahead = piece_offset(t, unit + 1, b.first_channel) - offset
        pending += length
        first = 0
        while first < channels:
            some = planes_at_once(t, channels - first, length)
            x = load_block(t.x, offset + first * t.s, t.s, some, length, x_scratch, &stride)
            if t.reduction == GRADIENT_SUMS:
                dy = load_block(
                    t.dy, offset + first * t.s, t.s, some, length, dy_scratch, &dy_stride
                )
            for k in range(first, first + some):
                if t.reduction == GRADIENT_SUMS:
                    add_gradient_sums(
                        dy, x, t.stored, length, coefficients[k],
                        coefficients[INVERSE * t.apart + k], t.centred, lanes[k], others[k], ahead,
                    )
                elif t.reduction == SQUARES:
                    add_squares(x, t.stored, length, others[k], ahead)
                elif t.reduction == CENTRED_SUMS:
                    add_centred_sums(
                        x, t.stored, length, coefficients[k], lanes[k], others[k], ahead
                    )
                else:
                    if unit == b.first_unit:
                        centre[k] = <real> (row_sum(x, t.stored, length) / length)
                    add_centred_sums(x, t.stored, length, centre[k], lanes[k], others[k], ahead)
                x = element(x, t.stored, stride)
                dy = element(dy, t.stored, dy_stride)
            first += some
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


cdef inline void row_numbers(
    Channels* t, Py_ssize_t start, Py_ssize_t channel, Py_ssize_t count, Py_ssize_t n,
    real* x_scratch, real* dy_scratch, double* first, double* second,
) noexcept nogil:
    """The two numbers of n elements, a chunk at most, of some channels, from `start` on."""
    cdef Py_ssize_t index = t.origin + channel * t.s + start, stride, dy_stride
    cdef const real* x = load_block(t.x, index, t.s, count, n, x_scratch, &stride)
    cdef const real* coefficients = <const real*> t.coefficients + channel
    cdef const real* dy
    if t.reduction == GRADIENT_SUMS:
        dy = load_block(t.dy, index, t.s, count, n, dy_scratch, &dy_stride)
        row_gradient_sums(
            dy, dy_stride, x, stride, t.stored, count, n, <const real*> NULL, 0, coefficients,
            coefficients + INVERSE * t.apart, t.centred, <Py_ssize_t> 0, first, second,
        )
    else:
        row_moments(x, t.stored, stride, count, n, <Py_ssize_t> 0, first, second)


cdef inline void long_row_moments(
    Channels* t, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t channel, real* x_scratch,
    double* mean, double* m2,
) noexcept nogil:
    """Of a channel that is more than a chunk."""
    cdef Moments all = no_moments()
    cdef Py_ssize_t length, stride
    cdef bint asks = t.direct and t.route != IN_CACHE
    cdef const real* x
    while start < stop:
        length = min(stop - start, <Py_ssize_t> CHUNK)
        x = load_block(t.x, t.origin + channel * t.s + start, t.s, 1, length, x_scratch, &stride)
        merge_chunk(&all, x, t.stored, length, True, length if asks else 0)
        start += length
    mean[0], m2[0] = all.mean, all.m2


cdef inline bint sums_rows(Channels* t) noexcept nogil:
    """Whether `reduce_rows` takes the channels: those of one sample. Sums of gradients over several
    pieces have no guess to make and few last steps to share."""
    return t.n == 1 and (
        t.reduction == MOMENTS or t.reduction == GRADIENT_SUMS and t.units == 1
    )


cdef inline void reduce_rows(
    Channels* t, Block b, real* x_scratch, real* dy_scratch
) noexcept nogil:
    """What a block has of each channel lies in one piece."""
    cdef Py_ssize_t start = b.first_unit * PIECE, stop = min(b.last_unit * PIECE, t.s)
    cdef Py_ssize_t channel = b.first_channel, n = stop - start, some
    cdef double* first = t.first + b.range * t.width
    cdef double* second = t.second + b.range * t.width
    while channel < b.last_channel:
        if n <= CHUNK:
            some = max(planes_at_once(t, b.last_channel - channel, n), <Py_ssize_t> 1)
            some = min(some, <Py_ssize_t> TOGETHER)
            row_numbers(
                t, start, channel, some, n, x_scratch, dy_scratch, first + channel,
                second + channel,
            )
        else:
            some = 1
            long_row_moments(
                t, start, stop, channel, x_scratch, first + channel, second + channel
            )
        channel += some


cdef inline void map_runs(
    Channels* t, Py_ssize_t channels, const real* x, Py_ssize_t x_stride, const real* source,
    Py_ssize_t stride, real* y, Py_ssize_t y_stride, Py_ssize_t n, Py_ssize_t channel,
    Py_ssize_t next_plane,
) noexcept nogil:
    """n elements of each of these channels."""
    cdef const real* numbers = <const real*> t.coefficients + channel * t.inner
    cdef const real* centre = NULL if t.linear else numbers + CENTRE * t.apart
    cdef const real* shift = NULL if t.linear else numbers + SHIFT * t.apart
    if t.map == SCALE_SHIFT:
        x, x_stride = source, stride
    map_rows(
        run_map(t), channels, source, stride, x, x_stride, t.stored, y, y_stride, n, centre,
        numbers + SLOPE * t.apart, shift, numbers + run_scale(t) * t.apart,
        numbers + SCALE * t.apart, t.inner, next_plane,
    )


cdef inline void map_placed(
    Channels* t, Py_ssize_t channels, const real* x, Py_ssize_t x_stride, const real* source,
    Py_ssize_t stride, real* y, Py_ssize_t n, Py_ssize_t channel, Py_ssize_t next_plane,
    Writer* writer,
) noexcept nogil:
    """n elements of one channel, by pieces that the writer takes; or of several, which it takes as
    one, and which lie side by side in y."""
    cdef Py_ssize_t length, run, size = itemsize_of(t.stored)
    cdef real* target
    while n > 0:
        length = channels * n
        target = <real*> place_stored(writer, <char*> y, size, &length)
        ask(source, t.stored, length, t.ahead)
        if t.map != SCALE_SHIFT:
            ask(x, t.stored, length, t.ahead)
        run = length // channels
        map_runs(t, channels, x, x_stride, source, stride, target, n, run, channel, next_plane)
        source = element(source, t.stored, run)
        x = element(x, t.stored, run)
        y = <real*> element(y, t.stored, run)
        n -= run


cdef inline void map_block_of_planes(
    Channels* t, Py_ssize_t sample, Py_ssize_t start, Py_ssize_t channel, Py_ssize_t channels,
    Py_ssize_t n, Py_ssize_t next_plane, real* x_scratch, real* source_scratch, real* y_scratch,
    Writer* writer,
) noexcept nogil:
    """n elements of each of these channels, from `start` on in their planes. The next plane of y is
    far away, and a store reads the line that it writes to: next_plane says how far, or 0."""
    cdef Py_ssize_t index = t.base + (sample * t.c + channel) * t.s + start
    cdef Py_ssize_t source_index = t.origin + sample * t.plane_step + channel * t.s + start
    cdef Py_ssize_t x_stride = 0, stride, y_stride, at_once, k = 0
    cdef const real* x = NULL
    cdef const real* source = load_block(
        t.source, source_index, t.s, channels, n, source_scratch, &stride
    )
    cdef real* y = result_block(t.y, index, t.s, n, y_scratch, &y_stride)
    if t.map != SCALE_SHIFT:
        x = load_block(t.x, source_index, t.s, channels, n, x_scratch, &x_stride)
    if t.route == IN_CACHE:
        map_runs(t, channels, x, x_stride, source, stride, y, y_stride, n, channel, next_plane)
    else:
        at_once = max(<Py_ssize_t> RUN_BYTES // (n * itemsize_of(t.stored)), <Py_ssize_t> 1)
        at_once = at_once if y_stride == n else 1
        while k < channels:
            map_placed(
                t, min(at_once, channels - k), element(x, t.stored, k * x_stride), x_stride,
                element(source, t.stored, k * stride), stride,
                <real*> element(y, t.stored, k * y_stride), n, channel + k, next_plane, writer,
            )
            k += at_once
    store_block(t.y, index, t.s, channels, n, y, y_stride, writer)


cdef inline void map_planes(
    Channels* t, Block b, real* x_scratch, real* source_scratch, real* y_scratch
) noexcept nogil:
    cdef Py_ssize_t sample = b.first_unit // t.pieces, next_plane, start, stop, channel, some, n
    cdef bint asks = t.direct and t.whole_tiles and t.route != PAST_CACHE
    cdef Writer writer
    open_writer(&writer, t.route, t.y.direct)
    while sample * t.pieces < b.last_unit:
        start = max(b.first_unit - sample * t.pieces, <Py_ssize_t> 0) * PIECE
        stop = min((b.last_unit - sample * t.pieces) * PIECE, t.s)
        next_plane = t.c * t.s if asks and (sample + 1) * t.pieces < b.last_unit else 0
        while start < stop:
            n = stop - start if t.direct else min(stop - start, t.room)
            channel = b.first_channel
            while channel < b.last_channel:
                some = b.last_channel - channel
                some = some if t.direct else planes_at_once(t, some, n)
                map_block_of_planes(
                    t, sample, start, channel, some, n, next_plane,
                    x_scratch, source_scratch, y_scratch, &writer,
                )
                channel += some
            start += n
        sample += 1
    flush(&writer)
