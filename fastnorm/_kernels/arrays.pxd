"""What crosses the boundary between Python and the kernels: arrays become pointers and dtype
codes. Large ones are operands (operands.pxd), small ones vectors (vectors.pxd)."""

cimport numpy as cnp

# What the loops compute in.
ctypedef fused real:
    float
    double

cdef enum Dtype:
    NONE        # an optional array that is absent
    FLOAT32
    FLOAT64
    FLOAT16
    BFLOAT16


cdef inline Dtype dtype_of(cnp.ndarray array) noexcept:
    """Of an array that `_arrays` has let through, or of None."""
    cdef int kind
    if array is None:
        return NONE
    kind = cnp.PyArray_TYPE(array)
    if kind == cnp.NPY_FLOAT:
        return FLOAT32
    if kind == cnp.NPY_FLOAT16:
        return FLOAT16
    return BFLOAT16 if cnp.PyArray_ITEMSIZE(array) == 2 else FLOAT64


cdef inline void* data_of(cnp.ndarray array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(array)


cdef inline Py_ssize_t itemsize_of(Dtype dtype) noexcept nogil:
    if dtype == FLOAT32:
        return 4
    return 8 if dtype == FLOAT64 else 2
