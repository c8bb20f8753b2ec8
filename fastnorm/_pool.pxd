ctypedef void (*block_function)(void* task, Py_ssize_t block) noexcept nogil

cdef void parallel_for(
    block_function function, void* task, Py_ssize_t num_blocks, int num_threads
) noexcept nogil

cdef int participant() noexcept nogil
