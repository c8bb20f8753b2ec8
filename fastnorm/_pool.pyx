"""The one thread pool of the process, for kernels to cimport; `_pool.cpp` is the pool itself."""

cdef extern from "_pool.h" nogil:
    ctypedef void (*fastnorm_block_function)(void* task, Py_ssize_t block) noexcept
    void fastnorm_parallel_for(
        fastnorm_block_function function, void* task, Py_ssize_t num_blocks, int num_threads
    ) noexcept
    int fastnorm_participant() noexcept
    int fastnorm_pool_size() noexcept
    enum:
        FASTNORM_MAX_TEAM


MAX_THREADS = FASTNORM_MAX_TEAM  # of a call


cdef void parallel_for(
    block_function function, void* task, Py_ssize_t num_blocks, int num_threads
) noexcept nogil:
    """Call function(task, block) once for each of the blocks, on at most num_threads threads.

    The caller is one of them. Nested calls, and calls while another thread is inside one, are
    serial: a task must give the same result in any order of its blocks.
    """
    fastnorm_parallel_for(<fastnorm_block_function> function, task, num_blocks, num_threads)


cdef int participant() noexcept nogil:
    """Which of the threads of its call a block runs on: from 0 to num_threads - 1.

    Blocks that run at the same time have different ones: scratch memory may be had for each.
    """
    return fastnorm_participant()


def workers():
    """Return the number of worker threads that this process has now."""
    return fastnorm_pool_size()
