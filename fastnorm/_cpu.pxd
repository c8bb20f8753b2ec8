cdef Py_ssize_t last_cache_bytes() noexcept nogil
cdef bint streams_well() noexcept nogil
