"""Channels that are columns: rows of C·S of them are reduced over N (columns.pxd)."""

from libc.string cimport memset

from fastnorm._kernels.arrays cimport real
from fastnorm._kernels.channels_task cimport GRADIENT_SUMS, INVERSE, MOMENTS, SCALE, SCALE_SHIFT
from fastnorm._kernels.channels_task cimport SHIFT, SLOPE, SQUARES, Block, Channels
from fastnorm._kernels.columns cimport FLUSH, FOUR, STRIP, column_centred_sums
from fastnorm._kernels.columns cimport column_gradient_sums, column_squares, column_sums
from fastnorm._kernels.columns cimport columns_gradient, columns_scale_shift
from fastnorm._kernels.columns cimport four_columns_gradient, four_columns_scale_shift
from fastnorm._kernels.memory cimport Writer, flush, open_writer, place

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
    cdef const real* coefficients = <const real*> t.coefficients + column
    cdef Py_ssize_t offset = row * t.width + column, end = offset + n, length
    cdef real* target
    while offset < end:
        length = end - offset
        target = place(writer, y + offset, &length)
        if t.map == SCALE_SHIFT:
            columns_scale_shift(
                source + offset, target, length, NULL if t.linear else coefficients,
                coefficients + SCALE * t.width, coefficients + SHIFT * t.width, t.ahead,
            )
        else:
            columns_gradient(
                dy + offset, x + offset, target, length, NULL if t.linear else coefficients,
                coefficients + SLOPE * t.width, coefficients + SHIFT * t.width,
                coefficients + SCALE * t.width, t.ahead,
            )
        coefficients += length
        offset += length


cdef inline void map_four_rows(
    Channels* t, const real* x, const real* dy, const real* source, real* y,
    Py_ssize_t row, Py_ssize_t column, Py_ssize_t n,
) noexcept nogil:
    cdef const real* coefficients = <const real*> t.coefficients + column
    cdef const real* centre = NULL if t.linear else coefficients
    cdef Py_ssize_t offset = row * t.width + column, stride = t.width
    cdef real* target = y + offset
    if t.map == SCALE_SHIFT:
        four_columns_scale_shift(
            source + offset, stride,
            target, target + stride, target + 2 * stride, target + 3 * stride, n,
            centre, coefficients + SCALE * t.width, coefficients + SHIFT * t.width,
        )
    else:
        four_columns_gradient(
            dy + offset, x + offset, stride,
            target, target + stride, target + 2 * stride, target + 3 * stride, n,
            centre, coefficients + SLOPE * t.width, coefficients + SHIFT * t.width,
            coefficients + SCALE * t.width,
        )


cdef inline void map_columns(
    Channels* t, const real* x, const real* dy, const real* source, real* y, Block b
) noexcept nogil:
    """Streaming goes through memory in its order; in cache the coefficients, of which there are as
    many as elements in a row, are what costs time."""
    cdef Py_ssize_t row, column = b.first_column, n
    cdef Writer writer
    open_writer(&writer, t.streams, True)
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
