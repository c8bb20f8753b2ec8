"""One value per channel or column: a parameter, a statistic, a gradient. Kernels take some of them
at a time, in double."""

cimport numpy as cnp

from fastnorm._kernels.arrays cimport NONE, Dtype, data_of, dtype_of, itemsize_of
from fastnorm._kernels.convert cimport read_run, write_run


cdef struct Vector:
    char* data
    Dtype dtype
    Py_ssize_t stride           # in bytes


cdef inline Vector vector_of(cnp.ndarray array) noexcept:
    """Of an array of one axis, any strides, or of a contiguous one."""
    cdef Vector vector
    vector.data = <char*> data_of(array)
    vector.dtype = dtype_of(array)
    vector.stride = itemsize_of(vector.dtype)
    if array is not None and cnp.PyArray_NDIM(array) == 1:
        vector.stride = cnp.PyArray_STRIDE(array, 0)
    return vector


cdef inline void load(
    Vector vector, Py_ssize_t start, Py_ssize_t n, double absent, double* restrict values
) noexcept nogil:
    """n elements from `start` on, or `absent` where the vector is."""
    cdef Py_ssize_t i
    if vector.dtype != NONE:
        read_run(vector.dtype, vector.data + start * vector.stride, vector.stride, n, 0, values)
    else:
        for i in range(n):
            values[i] = absent


cdef inline void store(
    Vector vector, Py_ssize_t start, Py_ssize_t n, const double* values
) noexcept nogil:
    """n elements from `start` on, rounded to the vector's dtype; nothing where it is absent."""
    if vector.dtype != NONE:
        write_run(vector.dtype, values, n, vector.data + start * vector.stride, vector.stride)
