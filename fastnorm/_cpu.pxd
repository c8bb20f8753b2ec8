cdef Py_ssize_t last_cache_bytes() noexcept nogil
cdef bint streams_well() noexcept nogil
cdef bint sees_ahead() noexcept nogil
cdef bint has_far_cache() noexcept nogil
cdef int cpu_count() noexcept nogil
