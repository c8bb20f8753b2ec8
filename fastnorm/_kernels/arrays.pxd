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


cdef inline void load_typed(
    const real* p, Py_ssize_t stride, Py_ssize_t n, double* restrict values
) noexcept nogil:
    cdef Py_ssize_t i
    if stride == sizeof(real):  # a loop that becomes vector instructions
        for i in range(n):
            values[i] = p[i]
    else:
        for i in range(n):
            values[i] = (<const real*> (<const char*> p + i * stride))[0]


cdef inline void load(
    Vector vector, Py_ssize_t start, Py_ssize_t n, double absent, double* restrict values
) noexcept nogil:
    """n elements from `start` on, or `absent` where the vector is."""
    cdef const char* p = vector.data + start * vector.stride
    cdef Py_ssize_t i
    if vector.dtype == FLOAT32:
        load_typed(<const float*> p, vector.stride, n, values)
    elif vector.dtype == FLOAT64:
        load_typed(<const double*> p, vector.stride, n, values)
    else:
        for i in range(n):
            values[i] = absent


cdef inline void store_typed(
    real* restrict p, Py_ssize_t stride, Py_ssize_t n, const double* values
) noexcept nogil:
    cdef Py_ssize_t i
    if stride == sizeof(real):
        for i in range(n):
            p[i] = <real> values[i]
    else:
        for i in range(n):
            (<real*> (<char*> p + i * stride))[0] = <real> values[i]


cdef inline void store(
    Vector vector, Py_ssize_t start, Py_ssize_t n, const double* values
) noexcept nogil:
    """n elements from `start` on, rounded to the vector's dtype; nothing where it is absent."""
    cdef char* p = vector.data + start * vector.stride
    if vector.dtype == FLOAT32:
        store_typed(<float*> p, vector.stride, n, values)
    elif vector.dtype == FLOAT64:
        store_typed(<double*> p, vector.stride, n, values)
