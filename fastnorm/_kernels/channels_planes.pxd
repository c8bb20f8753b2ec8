"""Channels that are planes: each is N runs of S elements, summed in lanes (rows.pxd)."""

from fastnorm._kernels.arrays cimport real
from fastnorm._kernels.channels_task cimport CENTRE, GRADIENT, GRADIENT_SUMS, INVERSE, MAX_TILE
from fastnorm._kernels.channels_task cimport MOMENTS, PIECE, SCALE, SCALE_SHIFT, SHIFT, SLOPE
from fastnorm._kernels.channels_task cimport SQUARES, Block, Channels
from fastnorm._kernels.memory cimport Writer, flush, open_writer, place, prefetch
from fastnorm._kernels.moments cimport Moments, chunk_centre, merge_centred, merge_chunk, no_moments
from fastnorm._kernels.rows cimport ALL_LANES, CHUNK, add_centred_sums, add_gradient_sums
from fastnorm._kernels.rows cimport add_squares, clear, fold, row_gradient, row_gradient_sums
from fastnorm._kernels.rows cimport row_scale_shift, row_sum, row_weighted_gradient

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


cdef inline void reduce_rows(Channels* t, const real* x, const real* dy, Block b) noexcept nogil:
    """Channels of one piece each: one sweep over all of them, then the other, for those of a
    channel wait for one another."""
    cdef real centre[MAX_TILE]
    cdef Moments moments
    cdef const real* coefficients = <const real*> t.coefficients
    cdef double* first = t.first + b.first_channel
    cdef double* second = t.second + b.first_channel
    cdef Py_ssize_t k, channel, channels = b.last_channel - b.first_channel
    x += b.first_channel * t.s
    if t.reduction == GRADIENT_SUMS:
        dy += b.first_channel * t.s
        for k in range(channels):
            channel = b.first_channel + k
            row_gradient_sums(
                dy + k * t.s, x + k * t.s, t.s, coefficients[channel],
                coefficients[INVERSE * t.width + channel], &first[k], &second[k],
            )
        return
    for k in range(channels):
        centre[k] = chunk_centre(x + k * t.s, t.s)
    for k in range(channels):
        moments = no_moments()
        merge_chunk(&moments, x + k * t.s, t.s, centre[k], 0)
        first[k], second[k] = moments.mean, moments.m2


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
        elif t.map == GRADIENT:
            row_gradient(
                dy + offset, x + offset, target, length, centre, slope, shift, scale, t.ahead
            )
        else:
            row_weighted_gradient(
                dy + offset, x + offset, target, length, scale, centre, slope, shift,
                coefficients[INVERSE * t.width], t.ahead,
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
            # The next plane of y is far away, and a store reads the line that it writes to.
            if not t.streams and t.whole_tiles and (sample + 1) * t.pieces < b.last_unit:
                prefetch(y + ((sample + 1) * t.c + i) * t.s + start, (stop - start) * sizeof(real))
            map_run(
                t, x, dy, source, y, (sample * t.c + i) * t.s + start, stop - start, i, &writer
            )
        sample += 1
    flush(&writer)
