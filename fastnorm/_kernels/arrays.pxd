"""What crosses the boundary between Python and the kernels: arrays become pointers and dtype
codes."""

cimport numpy as cnp

# What the loops compute in.
ctypedef fused real:
    float
    double

cdef enum Dtype:
    NONE        # an optional array that is absent
    FLOAT32
    FLOAT64


# One value per channel, of any of the dtypes: a parameter, a statistic, a gradient.
cdef struct Vector:
    char* data
    Dtype dtype
    Py_ssize_t stride           # in bytes


cdef inline Dtype dtype_of(cnp.ndarray array) noexcept:
    if array is None:
        return NONE
    return FLOAT32 if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT else FLOAT64


cdef inline void* data_of(cnp.ndarray array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(array)


cdef inline Py_ssize_t itemsize_of(Dtype dtype) noexcept nogil:
    return 4 if dtype == FLOAT32 else 8


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
    cdef const char* p = vector.data + start * vector.stride
    cdef Py_ssize_t i
    if vector.dtype == FLOAT32:
        for i in range(n):
            values[i] = (<const float*> (p + i * vector.stride))[0]
    elif vector.dtype == FLOAT64:
        for i in range(n):
            values[i] = (<const double*> (p + i * vector.stride))[0]
    else:
        for i in range(n):
            values[i] = absent


cdef inline void store(
    Vector vector, Py_ssize_t start, Py_ssize_t n, const double* values
) noexcept nogil:
    """n elements from `start` on, rounded to the vector's dtype; nothing where it is absent."""
    cdef char* p = vector.data + start * vector.stride
    cdef Py_ssize_t i
    if vector.dtype == FLOAT32:
        for i in range(n):
            (<float*> (p + i * vector.stride))[0] = <float> values[i]
    elif vector.dtype == FLOAT64:
        for i in range(n):
            (<double*> (p + i * vector.stride))[0] = values[i]
