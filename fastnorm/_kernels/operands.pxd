"""The large arrays of a call as a kernel sees them: any strides, any dtype, one order of elements.

An element has an index, which counts in C order through the axes of the view. A kernel asks for a
block, `rows` runs of n elements whose indices begin `step` apart, in the type that it computes in.
Where the array is contiguous and of that type, a block is a pointer into it; else it is a copy in
scratch memory, which stays in cache. A result goes the other way.

What is computed from a block does not depend on which of the two it is.
"""

cimport numpy as cnp
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, llabs, malloc

from fastnorm._kernels.arrays cimport FLOAT32, FLOAT64, NONE, Dtype, data_of, dtype_of
from fastnorm._kernels.arrays cimport itemsize_of, real
from fastnorm._kernels.convert cimport read_run, write_run
from fastnorm._kernels.memory cimport AHEAD, LINE, Writer, at_line, place_bytes, prefetch_far
from fastnorm._kernels.sixteen cimport TAKES_16_BITS
from fastnorm._pool cimport participant

cdef extern from "transpose.h" nogil:
    void transpose_float "fastnorm_transpose_float"(
        const float*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*, Py_ssize_t)
    void transpose_double "fastnorm_transpose_double"(
        const double*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*, Py_ssize_t)

cdef extern from "lanes.h" nogil:
    enum:
        SIDE "FASTNORM_SIDE"

cdef enum:
    MAX_AXES = 64               # NumPy's limit
    ROOM = 2048                 # elements of a block that stays in L1
    BLOCK = 65536               # bytes of one of a turned array, at most,
    WIDE_BLOCK = 262144         # or of many rows
    SCRATCH_ROWS = 256          # that either has, at most
    PADDING = 256               # bytes for each, to begin on a line
    WIDE = 512                  # bytes side by side that are worth streaming


# Memory for blocks of three arrays, which every thread has for itself. It is not on the stack: a
# thread's may be small.
cdef struct Scratch:
    char* memory
    char* first                 # of the first thread; NULL where nobody needs it
    Py_ssize_t num_bytes        # of an array


cdef struct Operand:
    char* data
    Dtype dtype
    bint contiguous             # and aligned
    # Blocks are pointers into it: the type is that which is computed in, or one that the kernel
    # takes as it is (`take_as_stored`).
    bint direct
    bint turned                 # the elements of a row are further apart than those of a column
    int axes
    Py_ssize_t size[MAX_AXES]   # without axes of one element, and adjacent ones as one where they
    Py_ssize_t stride[MAX_AXES]  # are so in memory; in bytes


cdef inline Dtype working_dtype(cnp.ndarray x) noexcept:
    """What is computed in."""
    return FLOAT64 if dtype_of(x) == FLOAT64 else FLOAT32


cdef inline bint reserve(Scratch* scratch, Py_ssize_t num_bytes, int num_threads) noexcept nogil:
    """For blocks of so many bytes, or 0 for none. False: no memory. It is to be released."""
    scratch.memory = scratch.first = NULL
    if num_bytes:
        scratch.num_bytes = num_bytes + SCRATCH_ROWS * PADDING
        scratch.memory = <char*> malloc(num_threads * 3 * scratch.num_bytes + LINE)
        if scratch.memory == NULL:
            return False
        scratch.first = at_line(scratch.memory)
    return True


cdef inline void release(Scratch* scratch) noexcept nogil:
    free(scratch.memory)


cdef inline Scratch of_this_thread(Scratch scratch) noexcept nogil:
    """In a block: that of the thread which runs it."""
    if scratch.first != NULL:
        scratch.first += participant() * 3 * scratch.num_bytes
    return scratch


cdef inline char* nth(Scratch scratch, int array) noexcept nogil:
    """The memory for the first (0), second or third array of a kernel."""
    return NULL if scratch.first == NULL else scratch.first + array * scratch.num_bytes


cdef inline bint is_turned(const Operand* o) noexcept nogil:
    cdef int i
    for i in range(o.axes - 1):
        if llabs(o.stride[i]) < llabs(o.stride[o.axes - 1]):
            return True
    return False


cdef inline Py_ssize_t room(bint turned, Dtype dtype) noexcept nogil:
    """Elements of a block of a certain type. In a turned array it has to be wide to be read, and
    written, by more than single cache lines."""
    return BLOCK // itemsize_of(dtype) if turned else <Py_ssize_t> ROOM


cdef inline void set_operand(Operand* o, cnp.ndarray array, Dtype working) noexcept:
    """An array with its axes in the order of the view, or None."""
    cdef int i, last = -1
    cdef Py_ssize_t size, stride
    o.data, o.dtype = <char*> data_of(array), dtype_of(array)
    o.contiguous = o.direct = True
    o.turned = False
    o.axes, o.size[0], o.stride[0] = 1, 1, itemsize_of(o.dtype)
    if array is None:
        return
    for i in range(cnp.PyArray_NDIM(array)):
        size, stride = cnp.PyArray_DIM(array, i), cnp.PyArray_STRIDE(array, i)
        if size == 1:
            continue
        if last >= 0 and o.stride[last] == size * stride:
            o.size[last] *= size
        else:
            last += 1
            o.size[last] = size
        o.stride[last] = stride
    o.axes = max(last + 1, 1)
    o.turned = is_turned(o)
    o.contiguous = (
        o.axes == 1 and o.stride[0] == itemsize_of(o.dtype)
        and <uintptr_t> o.data % itemsize_of(o.dtype) == 0
    )
    o.direct = o.contiguous and o.dtype == working


cdef inline void take_as_stored(
    Operand* x, Operand* dy, Operand* y, Dtype working
) noexcept nogil:
    """For a kernel whose primitives take runs of 16 bits: where all that there are have the same
    ones, and are contiguous, blocks are pointers into them."""
    if (
        TAKES_16_BITS and working == FLOAT32 and itemsize_of(x.dtype) == 2
        and x.contiguous and dy.contiguous and y.contiguous
        and (dy.dtype == x.dtype or dy.dtype == NONE)
        and (y.dtype == x.dtype or y.dtype == NONE)
    ):
        x.direct = dy.direct = y.direct = True


cdef inline char* address(const Operand* o, Py_ssize_t index, Py_ssize_t* run) noexcept nogil:
    """Of an element; and how many there are from it to the end of its last axis."""
    cdef int i
    cdef Py_ssize_t others
    cdef char* p = o.data
    run[0] = o.size[o.axes - 1]
    for i in range(o.axes - 1, 0, -1):
        others = index // o.size[i]
        index -= others * o.size[i]
        p += index * o.stride[i]
        if i == o.axes - 1:
            run[0] -= index
        index = others
    if o.axes == 1:
        run[0] -= index
    return p + index * o.stride[0]


cdef inline void transpose(
    const real* x, Py_ssize_t x_stride, Py_ssize_t rows, Py_ssize_t n, real* y, Py_ssize_t y_stride
) noexcept nogil:
    """y[j, i] = x[i, j] for x of shape (rows, n)"""
    if real is float:
        transpose_float(x, x_stride, rows, n, y, y_stride)
    else:
        transpose_double(x, x_stride, rows, n, y, y_stride)


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    """Elements from one row of n to the next, so that rows begin on cache lines, an odd number of
    them apart: an even one lets the columns of a block fall into a few sets of the cache."""
    return ((n + SIDE - 1) // SIDE | 1) * SIDE


cdef inline bint are_adjacent(const Operand* o, Py_ssize_t n) noexcept nogil:
    """Whether rows of n elements, all of the last axis, are nearer to each other than the elements
    of a row, which are not side by side."""
    cdef int last = o.axes - 1
    return (
        last > 0 and o.size[last] == n and o.stride[last] != itemsize_of(o.dtype)
        and llabs(o.stride[last - 1]) < llabs(o.stride[last])
    )


cdef inline Py_ssize_t rows_beside(
    const Operand* o, Py_ssize_t row, Py_ssize_t rows
) noexcept nogil:
    """How many of these rows, from this one on, are of one run of the axis before the last."""
    cdef Py_ssize_t size
    if o.dtype == NONE:
        return rows
    size = o.size[o.axes - 2]
    return min(rows, size - row % size)


cdef inline Py_ssize_t adjacent_rows(
    const Operand* o, Py_ssize_t index, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t* stride
) noexcept nogil:
    """How many rows of a block, from that of element `index` on, are adjacent and equally far apart
    in memory; and how far, in bytes."""
    cdef int last = o.axes - 1
    if rows == 1 or not are_adjacent(o, step):
        return 1
    stride[0] = o.stride[last - 1]
    return rows_beside(o, index // step, min(rows, <Py_ssize_t> SCRATCH_ROWS))


cdef inline void ask_run(
    const char* p, Py_ssize_t step, Py_ssize_t num_bytes, Py_ssize_t i, Py_ssize_t n
) noexcept nogil:
    """For what adjacent rows, the first of which begins at p, have SIDE elements after element i;
    at their end, for the first elements of the rows that follow."""
    i += SIDE
    prefetch_far(p + (i * step if i < n else (i - n) * step + num_bytes), num_bytes)


cdef inline void read_across(
    const Operand* o, const char* p, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t i, Py_ssize_t n,
    real* to,
) noexcept nogil:
    """Element i of rows that are `stride` bytes apart from p on, and have n elements."""
    cdef Py_ssize_t step = o.stride[o.axes - 1]
    if stride == itemsize_of(o.dtype):
        ask_run(p, step, rows * stride, i, n)
    read_run(o.dtype, p + i * step, stride, rows, 0, to)


cdef inline void read_turned(
    const Operand* o, const char* p, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n,
    real* to, Py_ssize_t to_stride,
) noexcept nogil:
    """At most SCRATCH_ROWS rows that are `stride` bytes apart: SIDE elements of all of them at a
    time, since rows are nearer to each other than the elements of a row."""
    cdef real tile[SIDE * (SCRATCH_ROWS + SIDE)]
    cdef Py_ssize_t j = 0, k, width, apart = padded(rows)
    while j < n:
        width = min(n - j, <Py_ssize_t> SIDE)
        for k in range(width):
            read_across(o, p, stride, rows, j + k, n, tile + k * apart)
        transpose(tile, apart, width, rows, to + j, to_stride)
        j += width


cdef inline void write_strided(
    const Operand* o, const real* values, Py_ssize_t n, char* p, Py_ssize_t stride, Writer* writer
) noexcept nogil:
    """n elements from p on, past the cache where they lie side by side and the writer streams."""
    cdef Py_ssize_t length, size = itemsize_of(o.dtype)
    cdef char* target
    while n > 0:
        length = n
        target = place_bytes(writer, p, size, &length) if stride == size else p
        write_run(o.dtype, values, length, target, stride)
        values += length
        p += length * stride
        n -= length


cdef inline void write_across(
    const Operand* o, const real* values, Py_ssize_t rows, char* p, Py_ssize_t stride, Py_ssize_t i,
    Py_ssize_t n, Writer* writer,
) noexcept nogil:
    """The reverse of `read_across`. The values may be there already."""
    cdef Py_ssize_t step = o.stride[o.axes - 1], size = itemsize_of(o.dtype)
    if stride == size and rows * size >= WIDE and writer.streams:
        write_strided(o, values, rows, p + i * step, stride, writer)
        return
    if stride == size:
        ask_run(p, step, rows * size, i, n)
    if <const char*> values != p + i * step:
        write_run(o.dtype, values, rows, p + i * step, stride)


cdef inline void write_turned(
    const Operand* o, const real* values, Py_ssize_t values_stride, Py_ssize_t rows, Py_ssize_t n,
    char* p, Py_ssize_t stride, Writer* writer,
) noexcept nogil:
    cdef real tile[SIDE * (SCRATCH_ROWS + SIDE)]
    cdef Py_ssize_t j = 0, k, width, apart = padded(rows)
    while j < n:
        width = min(n - j, <Py_ssize_t> SIDE)
        transpose(values + j, values_stride, rows, width, tile, apart)
        for k in range(width):
            write_across(o, tile + k * apart, rows, p, stride, j + k, n, writer)
        j += width


cdef inline void read_elements(
    const Operand* o, Py_ssize_t index, Py_ssize_t n, real* to
) noexcept nogil:
    cdef Py_ssize_t run, stride = o.stride[o.axes - 1]
    cdef char* p
    while n > 0:
        p = address(o, index, &run)
        run = min(run, n)
        read_run(o.dtype, p, stride, run, AHEAD, to)
        to += run
        index += run
        n -= run


cdef inline void write_elements(
    const Operand* o, Py_ssize_t index, Py_ssize_t n, const real* values, Writer* writer
) noexcept nogil:
    cdef Py_ssize_t run, stride = o.stride[o.axes - 1]
    cdef char* p
    while n > 0:
        p = address(o, index, &run)
        run = min(run, n)
        write_strided(o, values, run, p, stride, writer)
        values += run
        index += run
        n -= run


cdef inline bint is_one_run(const Operand* o, Py_ssize_t step, Py_ssize_t n) noexcept nogil:
    """Whether rows follow upon one another, in the array and then in scratch memory too."""
    return o.axes == 1 and step == n


cdef inline Py_ssize_t scratch_stride(
    const Operand* o, Py_ssize_t step, Py_ssize_t n
) noexcept nogil:
    """From one row to the next in scratch memory."""
    return n if is_one_run(o, step, n) else padded(n)


cdef inline void read_rows(
    const Operand* o, Py_ssize_t index, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
    Py_ssize_t ahead, real* scratch, Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t i = 0, count, run, apart = 0, last = o.stride[o.axes - 1]
    cdef char* p
    if is_one_run(o, step, n):
        rows, n = 1, rows * n
    while i < rows and o.axes == 1:
        p = o.data + (index + i * step) * last
        read_run(o.dtype, p, last, n, ahead, scratch + i * stride)
        i += 1
    while i < rows:
        p = address(o, index + i * step, &run)
        if run < n:
            read_elements(o, index + i * step, n, scratch + i * stride)
            count = 1
        else:
            count = adjacent_rows(o, index + i * step, step, rows - i, &apart)
            if count > 1:
                read_turned(o, p, apart, count, n, scratch + i * stride, stride)
            else:
                read_run(o.dtype, p, last, n, ahead, scratch + i * stride)
        i += count


cdef inline const real* load_rows(
    const Operand* o, Py_ssize_t index, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
    Py_ssize_t ahead, real* scratch, Py_ssize_t* stride,
) noexcept nogil:
    """The block, and how many elements its rows are apart where it is now. The next one is expected
    `ahead` bytes further on."""
    if o.direct:
        stride[0] = step
        return <const real*> (o.data + index * itemsize_of(o.dtype))
    stride[0] = scratch_stride(o, step, n)
    read_rows(o, index, step, rows, n, ahead, scratch, stride[0])
    return scratch


cdef inline const real* load_block(
    const Operand* o, Py_ssize_t index, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
    real* scratch, Py_ssize_t* stride,
) noexcept nogil:
    """The same where memory is most often read in its order."""
    return load_rows(o, index, step, rows, n, AHEAD, scratch, stride)


cdef inline real* result_block(
    const Operand* o, Py_ssize_t index, Py_ssize_t step, Py_ssize_t n,
    real* scratch, Py_ssize_t* stride,
) noexcept nogil:
    """Where to compute a block of a result. `store_block` brings it to its place."""
    if o.direct:
        stride[0] = step
        return <real*> (o.data + index * itemsize_of(o.dtype))
    stride[0] = scratch_stride(o, step, n)
    return scratch


cdef inline void write_rows(
    const Operand* o, Py_ssize_t index, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
    const real* values, Py_ssize_t stride, Writer* writer,
) noexcept nogil:
    cdef Py_ssize_t i = 0, count, run, apart = 0, last = o.stride[o.axes - 1]
    cdef char* p
    if is_one_run(o, step, n):
        rows, n = 1, rows * n
    while i < rows and o.axes == 1:
        p = o.data + (index + i * step) * last
        write_strided(o, values + i * stride, n, p, last, writer)
        i += 1
    while i < rows:
        p = address(o, index + i * step, &run)
        count = 1
        if run >= n:
            count = adjacent_rows(o, index + i * step, step, rows - i, &apart)
        if count > 1:
            write_turned(o, values + i * stride, stride, count, n, p, apart, writer)
        else:
            write_elements(o, index + i * step, n, values + i * stride, writer)
        i += count


cdef inline void store_block(
    const Operand* o, Py_ssize_t index, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
    const real* values, Py_ssize_t stride, Writer* writer,
) noexcept nogil:
    """The writer must be flushed after the last block."""
    if not o.direct:
        write_rows(o, index, step, rows, n, values, stride, writer)
