"""How work is cut. Blocks whose sums are combined are fixed by the problem, never by the threads:
so are these."""

cdef enum:
    BLOCK_BYTES = 32768         # of input: fits L1; claiming a block is cheap beside it
    SERIAL_BYTES = 131072       # of input: below, waking a thread costs more than it gains
    MAX_BLOCKS = 1048576
    MAX_PARTIALS = 128          # blocks that keep a partial sum: feeds as many threads
    BLOCKS_PER_THREAD = 4       # of large ones, at least: none waits long for the last


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t rows_per_block(Py_ssize_t rows, Py_ssize_t row_bytes) noexcept nogil:
    return max(
        max(BLOCK_BYTES // max(row_bytes, 1), <Py_ssize_t> 1), ceil_div(rows, MAX_BLOCKS)
    )


cdef inline int threads_for(Py_ssize_t num_bytes, int num_threads) noexcept nogil:
    """Threads that a call over so many bytes of input is worth."""
    return 1 if num_bytes < SERIAL_BYTES else num_threads
