"""Channels that are columns: rows of C·S of them are reduced over N (columns.pxd)."""

from libc.stdint cimport uint16_t
from libc.string cimport memset

from fastnorm._kernels cimport sixteen
from fastnorm._kernels.arrays cimport FLOAT16, itemsize_of, real
from fastnorm._kernels.channels_task cimport CENTRE, CENTRED_SUMS, GRADIENT, GRADIENT_SUMS, INVERSE
from fastnorm._kernels.channels_task cimport MOMENTS, SCALE, SCALE_SHIFT, SHIFT, SLOPE, SQUARES
from fastnorm._kernels.channels_task cimport Block, Channels, run_map, run_scale
from fastnorm._kernels.columns cimport EIGHT, FLUSH, FOUR, STRIP, column_centred_sums
from fastnorm._kernels.columns cimport column_gradient_sums, column_squares, column_sums
from fastnorm._kernels.columns cimport columns_map, from_column
from fastnorm._kernels.memory cimport IN_CACHE, Writer, first_run, flush, open_writer, place
from fastnorm._kernels.memory cimport place_stored
from fastnorm._kernels.operands cimport Operand, load_block, load_rows, padded, result_block
from fastnorm._kernels.operands cimport store_block
from fastnorm._kernels.rows cimport ask, element, is_sixteen

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


cdef inline Py_ssize_t columns_at_once(Channels* t, Py_ssize_t rows) noexcept nogil:
    """Columns of a block of so many rows."""
    return <Py_ssize_t> STRIP if t.direct else min(t.room // rows, <Py_ssize_t> STRIP)


cdef inline Py_ssize_t rows_at_once(Channels* t, Py_ssize_t n) noexcept nogil:
    """Rows of n columns in a block of the reduction: all of them, or what scratch memory holds. The
    primitives take eight or four."""
    cdef Py_ssize_t eights = max(t.room // padded(n) // EIGHT, <Py_ssize_t> 1)
    return <Py_ssize_t> FLUSH if t.direct else min(EIGHT * eights, <Py_ssize_t> FLUSH)


cdef inline sixteen.Rows rows_at(Channels* t, const Operand* o, Py_ssize_t index) noexcept nogil:
    """From an element of 16 bits on."""
    cdef sixteen.Rows rows
    rows.data, rows.stride = <const uint16_t*> o.data + index, t.width
    return rows


cdef inline void add_stored(
    Channels* t, Py_ssize_t index, Py_ssize_t rows, Py_ssize_t n, const float* coefficients,
    const float* centre, float* sums, float* others, Py_ssize_t ahead,
) noexcept nogil:
    """What `add_block` does to 16 bits as they are stored."""
    cdef bint is_half = t.stored == FLOAT16
    if t.reduction == GRADIENT_SUMS:
        sixteen.column_gradient_sums(
            is_half, rows_at(t, t.dy, index), rows_at(t, t.x, index), rows, n,
            coefficients if t.centred else NULL, coefficients + INVERSE * t.apart, sums, others,
            ahead,
        )
    else:
        sixteen.column_sums(
            is_half, rows_at(t, t.x, index), rows, n, centre,
            NULL if t.reduction == SQUARES else sums, others, ahead,
        )


cdef inline void add_block(
    Channels* t, Py_ssize_t index, Py_ssize_t rows, Py_ssize_t n, const real* coefficients,
    const real* centre, real* sums, real* others, real* x_scratch, real* dy_scratch,
) noexcept nogil:
    """What the reduction adds up of n columns in some rows; sums alone where there is no centre."""
    cdef bint asks = (
        t.direct and t.route != IN_CACHE and not t.whole_tiles and n == t.width
    )
    cdef Py_ssize_t ahead = EIGHT * t.width if asks else 0
    cdef Py_ssize_t next_rows = rows * t.width * itemsize_of(t.x.dtype)
    cdef Py_ssize_t x_stride, dy_stride
    cdef const real* x
    cdef const real* dy
    if real is float and (is_sixteen(t.stored)):
        add_stored(t, index, rows, n, coefficients, centre, sums, others, ahead)
        return
    x = load_rows(t.x, index, t.width, rows, n, next_rows, x_scratch, &x_stride)
    if t.reduction == GRADIENT_SUMS:
        dy = load_rows(t.dy, index, t.width, rows, n, next_rows, dy_scratch, &dy_stride)
        column_gradient_sums(
            dy, dy_stride, x, x_stride, rows, n, coefficients if t.centred else NULL,
            coefficients + INVERSE * t.apart, sums, others, ahead,
        )
    elif t.reduction == SQUARES:
        column_squares(x, x_stride, rows, n, others, ahead)
    elif centre == NULL:
        column_sums(x, x_stride, rows, n, sums)
    else:
        column_centred_sums(x, x_stride, rows, n, centre, sums, others, ahead)


cdef inline void add_rows(
    Channels* t, Py_ssize_t index, Py_ssize_t rows, Py_ssize_t n, const real* coefficients,
    const real* centre, real* sums, real* others, real* x_scratch, real* dy_scratch,
) noexcept nogil:
    """The same for a strip of columns, block by block."""
    cdef Py_ssize_t width = columns_at_once(t, EIGHT)
    cdef Py_ssize_t row = 0, more, column, some
    while row < rows:
        more = min(rows - row, rows_at_once(t, min(n, width)))
        column = 0
        while column < n:
            some = min(n - column, width)
            add_block(
                t, index + row * t.width + column, more, some, coefficients + column,
                from_column(centre, column), sums + column, others + column,
                x_scratch, dy_scratch,
            )
            column += some
        row += more


cdef inline void reduce_strip(
    Channels* t, Py_ssize_t index, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t n,
    real* x_scratch, real* dy_scratch, double* first, double* second,
) noexcept nogil:
    """`rows` rows of n columns. Centred as planes are: see there."""
    cdef real sums[STRIP]
    cdef real others[STRIP]
    cdef real centre[STRIP]
    cdef const real* coefficients = <const real*> t.coefficients + column
    cdef const real* about = coefficients if t.reduction == CENTRED_SUMS else centre
    cdef Py_ssize_t row = 0, more, j
    for j in range(n):
        first[j] = 0
        second[j] = 0
        centre[j] = 0
        others[j] = 0
    if t.reduction == MOMENTS:
        more = min(rows, <Py_ssize_t> FLUSH)
        add_rows(t, index, more, n, coefficients, NULL, centre, others, x_scratch, dy_scratch)
        for j in range(n):
            centre[j] = centre[j] / more
            first[j] = centre[j]
    while row < rows:
        more = min(rows - row, <Py_ssize_t> FLUSH)
        memset(sums, 0, n * sizeof(real))
        memset(others, 0, n * sizeof(real))
        add_rows(
            t, index + row * t.width, more, n, coefficients, about, sums, others,
            x_scratch, dy_scratch,
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


cdef inline void reduce_columns(
    Channels* t, Block b, real* x_scratch, real* dy_scratch
) noexcept nogil:
    cdef Py_ssize_t column = b.first_column, n
    while column < b.last_column:
        n = min(b.last_column - column, <Py_ssize_t> STRIP)
        reduce_strip(
            t, t.base + b.first_unit * t.width + column, b.last_unit - b.first_unit, column, n,
            x_scratch, dy_scratch,
            t.first + b.range * t.width + column, t.second + b.range * t.width + column,
        )
        column += n


cdef inline void map_stored(
    Channels* t, const void* x, const void* dy, void* y, Py_ssize_t y_stride, Py_ssize_t rows,
    Py_ssize_t column, Py_ssize_t n,
) noexcept nogil:
    """n columns of 16 bits as they are stored, of a few rows. dy: or what is scaled."""
    cdef const float* coefficients = <const float*> t.coefficients + column
    cdef sixteen.ColumnNumbers m
    cdef sixteen.Rows a, b
    a.data, a.stride = <const uint16_t*> x, t.width
    b.data, b.stride = <const uint16_t*> dy, t.width
    m.centre = NULL if t.linear else coefficients
    m.shift = NULL if t.linear else coefficients + SHIFT * t.apart
    m.slope, m.scale = coefficients + SLOPE * t.apart, coefficients + SCALE * t.apart
    m.weight = NULL
    if t.map == SCALE_SHIFT:
        a = b
    elif t.map != GRADIENT:
        m.weight, m.scale = m.scale, coefficients + INVERSE * t.apart
    sixteen.column_map(
        t.stored == FLOAT16, t.map != SCALE_SHIFT, b, a, <uint16_t*> y, y_stride, rows, n, m
    )


cdef inline void map_run(
    Channels* t, const real* x, const real* source, real* y, Py_ssize_t n, Py_ssize_t column,
    Writer* writer,
) noexcept nogil:
    """n elements of rows that follow upon one another, from this column on. source: of the
    gradient, dy."""
    cdef const real* numbers = <const real*> t.coefficients
    cdef const real* scale = numbers + run_scale(t) * t.apart
    cdef Py_ssize_t i = 0, length = first_run(writer, <char*> y, sizeof(real), n)
    cdef real* target
    while i < n:
        target = place(writer, y + i, &length)
        columns_map(
            run_map(t), source + i, x + i, target, length, column, t.width,
            numbers + CENTRE * t.apart, numbers + SLOPE * t.apart, numbers + SHIFT * t.apart,
            scale, numbers + SCALE * t.apart, t.ahead,
        )
        i += length
        column = (column + length) % t.width
        length = n - i


cdef inline void map_stored_row(
    Channels* t, const real* x, const real* source, real* y, Py_ssize_t column, Py_ssize_t n,
    Writer* writer,
) noexcept nogil:
    """The same of 16 bits."""
    cdef Py_ssize_t i = 0, length, size = itemsize_of(t.stored)
    cdef void* target
    while i < n:
        length = n - i
        target = place_stored(writer, <char*> y + i * size, size, &length)
        ask(element(source, t.stored, i), t.stored, length, t.ahead)
        if t.map != SCALE_SHIFT:
            ask(element(x, t.stored, i), t.stored, length, t.ahead)
        map_stored(
            t, element(x, t.stored, i), element(source, t.stored, i), target, <Py_ssize_t> 0,
            <Py_ssize_t> 1, column + i, length,
        )
        i += length


cdef inline void map_rows(
    Channels* t, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t n,
    real* x_scratch, real* source_scratch, real* y_scratch, Writer* writer,
) noexcept nogil:
    """n columns of some rows; of 16 bits, of FOUR in cache or else of one."""
    cdef Py_ssize_t index = t.base + row * t.width + column
    cdef Py_ssize_t x_stride, stride, y_stride, i
    cdef const real* source = load_block(
        t.source, index, t.width, rows, n, source_scratch, &stride
    )
    cdef const real* x = source
    cdef real* y = result_block(t.y, index, t.width, n, y_scratch, &y_stride)
    x_stride = stride
    if t.map != SCALE_SHIFT:
        x = load_block(t.x, index, t.width, rows, n, x_scratch, &x_stride)
    if is_sixteen(t.stored):
        if rows > 1:
            map_stored(t, x, source, y, y_stride, rows, column, n)
        else:
            map_stored_row(t, x, source, y, column, n, writer)
    elif n == t.width and x_stride == n and stride == n and y_stride == n:
        map_run(t, x, source, y, rows * n, column, writer)
    else:
        for i in range(rows):
            map_run(
                t, x + i * x_stride, source + i * stride, y + i * y_stride, n, column, writer
            )
    store_block(t.y, index, t.width, rows, n, y, y_stride, writer)


cdef inline void map_columns(
    Channels* t, Block b, real* x_scratch, real* source_scratch, real* y_scratch
) noexcept nogil:
    """A large call goes through memory in its order, and row by row where a row is more than one
    block; in cache a strip's coefficients, of which there are as many as elements in a row of it,
    stay in L1."""
    cdef Py_ssize_t row, rows, column = b.first_column, n
    cdef Py_ssize_t width = b.last_column - column
    # The primitive for 16 bits, and blocks of scratch memory, take FOUR.
    cdef bint takes_all = t.direct and not is_sixteen(t.stored)
    cdef Py_ssize_t few = b.last_unit - b.first_unit if takes_all else <Py_ssize_t> FOUR
    cdef Py_ssize_t at_once = columns_at_once(t, FOUR)
    cdef Writer writer
    open_writer(&writer, t.route, t.y.direct)
    if takes_all and t.route != IN_CACHE:
        at_once = width
    elif t.route != IN_CACHE and (t.direct or width > at_once):
        for row in range(b.first_unit, b.last_unit):
            column = b.first_column
            while column < b.last_column:
                n = b.last_column - column
                n = n if t.direct else min(n, t.room)
                map_rows(t, row, 1, column, n, x_scratch, source_scratch, y_scratch, &writer)
                column += n
    while column < b.last_column:
        n = min(b.last_column - column, at_once)
        row = b.first_unit
        while row < b.last_unit:
            rows = few if row + few <= b.last_unit else 1
            map_rows(t, row, rows, column, n, x_scratch, source_scratch, y_scratch, &writer)
            row += rows
        column += n
    flush(&writer)
