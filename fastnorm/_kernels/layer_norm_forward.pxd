"""The forward pass of layer norm: y = (x - mean)·rstd·gamma + beta, row by row."""

from libc.stdlib cimport free, malloc

from fastnorm._kernels.arrays cimport FLOAT32, real
from fastnorm._kernels.layer_norm_task cimport GROUP, PIECE, RowStatistics, Task, elements_after
from fastnorm._kernels.layer_norm_task cimport parameters_of, piece_length, shifted
from fastnorm._kernels.memory cimport Writer, flush, open_writer, place
from fastnorm._kernels.moments cimport Moments, chunk_centre, is_usable, low_part, merge
from fastnorm._kernels.moments cimport merge_chunk, no_moments, reciprocal_std, rescue, row_moments
from fastnorm._kernels.rows cimport CHUNK, row_affine
from fastnorm._pool cimport parallel_for


cdef inline RowStatistics finish_statistics(Task* t, const real* x, Moments m) noexcept nogil:
    cdef RowStatistics row
    cdef double var = m.m2 / t.n
    row.mean = m.mean
    row.rstd = reciprocal_std(var, t.eps)
    if not is_usable(var + t.eps, t.dtype):
        rescue(x, 1, t.n, t.n, True, t.eps, &row.mean, &var, &row.rstd)
    return row


cdef inline void keep_statistics(Task* t, Py_ssize_t index, RowStatistics row) noexcept nogil:
    if t.mean != NULL:
        t.mean[index] = row.mean
        t.rstd[index] = row.rstd


cdef inline void normalize(
    const real* x, real* y, const real* gamma, const real* beta, Py_ssize_t n, RowStatistics row,
    Writer* writer,
) noexcept nogil:
    """A row or a piece of it. The mean is high + low; the low part goes into the shift."""
    cdef real high = <real> row.mean
    cdef real shift = <real> (-low_part(row.mean, high) * row.rstd)
    cdef Py_ssize_t i = 0, length
    cdef real* target
    while i < n:
        length = n - i
        target = place(writer, y + i, &length)
        row_affine(
            x + i, target, length, high, <real> row.rstd, shift,
            shifted(gamma, i), shifted(beta, i),
        )
        i += length


cdef inline void group_moments(
    Task* t, const real* x, Py_ssize_t count, Py_ssize_t available, Moments* moments
) noexcept nogil:
    """Of `count` adjacent rows. One pass over all of them, then the other: each row's passes wait
    for one another, those of different rows do not. `available`: elements from x on."""
    cdef real centres[GROUP]
    cdef Py_ssize_t k, piece, offset
    for k in range(count):
        moments[k] = no_moments()
    if t.n <= CHUNK:
        for k in range(count):
            centres[k] = chunk_centre(x + k * t.n, t.n)
        for k in range(count):
            offset = k * t.n
            merge_chunk(
                &moments[k], x + offset, t.n, centres[k],
                count * t.n if offset + (count + 1) * t.n <= available else 0,
            )
    else:
        for k in range(count):
            for piece in range(t.pieces):
                offset = k * t.n + piece * PIECE
                merge(
                    &moments[k],
                    row_moments(x + offset, piece_length(t, piece), available - offset),
                )


cdef inline void forward_rows(
    Task* t, const real* x, real* y, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Moments moments[GROUP]
    cdef RowStatistics rows[GROUP]
    cdef Py_ssize_t index = first, k, offset, count, start
    cdef Writer writer
    open_writer(&writer, t.streams)
    while index < last:
        count = min(t.group, last - index)
        offset = index * t.n
        group_moments(t, x + offset, count, elements_after(t, index), moments)
        for k in range(count):
            rows[k] = finish_statistics(t, x + offset + k * t.n, moments[k])
            keep_statistics(t, index + k, rows[k])
        for k in range(count):
            start = parameters_of(t, index + k)
            normalize(
                x + offset + k * t.n, y + offset + k * t.n,
                shifted(<const real*> t.gamma, start), shifted(<const real*> t.beta, start),
                t.n, rows[k], &writer,
            )
        index += count
    flush(&writer)


cdef inline void forward_block(void* task, Py_ssize_t block) noexcept nogil:
    cdef Task* t = <Task*> task
    cdef Py_ssize_t first = block * t.rows_per_block
    cdef Py_ssize_t last = min(first + t.rows_per_block, t.rows)
    if t.dtype == FLOAT32:
        forward_rows(t, <const float*> t.x, <float*> t.y, first, last)
    else:
        forward_rows(t, <const double*> t.x, <double*> t.y, first, last)


cdef inline void moments_block(void* task, Py_ssize_t block) noexcept nogil:
    """The moments of one piece."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t piece = block % t.pieces, length = piece_length(t, piece)
    cdef Py_ssize_t offset = block // t.pieces * t.n + piece * PIECE
    if t.dtype == FLOAT32:
        t.moments[block] = row_moments(<const float*> t.x + offset, length, length)
    else:
        t.moments[block] = row_moments(<const double*> t.x + offset, length, length)


cdef inline void normalize_piece(
    Task* t, const real* x, real* y, Py_ssize_t index, Py_ssize_t piece
) noexcept nogil:
    cdef Py_ssize_t start = piece * PIECE, offset = index * t.n + start
    cdef Writer writer
    open_writer(&writer, t.streams)
    normalize(
        x + offset, y + offset, shifted(<const real*> t.gamma, start),
        shifted(<const real*> t.beta, start), piece_length(t, piece), t.statistics[index],
        &writer,
    )
    flush(&writer)


cdef inline void normalize_block(void* task, Py_ssize_t block) noexcept nogil:
    """One piece."""
    cdef Task* t = <Task*> task
    cdef Py_ssize_t index = block // t.pieces, piece = block % t.pieces
    if t.dtype == FLOAT32:
        normalize_piece(t, <const float*> t.x, <float*> t.y, index, piece)
    else:
        normalize_piece(t, <const double*> t.x, <double*> t.y, index, piece)


cdef inline bint forward_pieces(Task* t, int num_threads) noexcept nogil:
    """Few long rows: the moments of all pieces, then each piece with its row's. False: no
    memory."""
    cdef Py_ssize_t index, piece, blocks = t.rows * t.pieces
    cdef Moments m
    t.moments = <Moments*> malloc(blocks * sizeof(Moments))
    t.statistics = <RowStatistics*> malloc(t.rows * sizeof(RowStatistics))
    cdef bint has_memory = t.moments != NULL and t.statistics != NULL
    if has_memory:
        parallel_for(moments_block, t, blocks, num_threads)
        for index in range(t.rows):
            m = no_moments()
            for piece in range(t.pieces):
                merge(&m, t.moments[index * t.pieces + piece])
            if t.dtype == FLOAT32:
                t.statistics[index] = finish_statistics(t, <const float*> t.x + index * t.n, m)
            else:
                t.statistics[index] = finish_statistics(t, <const double*> t.x + index * t.n, m)
            keep_statistics(t, index, t.statistics[index])
        parallel_for(normalize_block, t, blocks, num_threads)
    free(t.moments)
    free(t.statistics)
    return has_memory
