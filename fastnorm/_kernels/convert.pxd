"""Runs of elements between the dtypes that arrays have and the types that kernels compute in."""

from fastnorm._kernels.arrays cimport BFLOAT16, FLOAT16, FLOAT32, Dtype, real

# (where in the array, bytes from one element to the next, elements, bytes ahead,
# where in the kernel)
cdef extern from "convert.h" nogil:
    void read_float_float "fastnorm_read_float_float"(
        const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*)
    void read_float_double "fastnorm_read_float_double"(
        const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*)
    void read_double_float "fastnorm_read_double_float"(
        const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*)
    void read_double_double "fastnorm_read_double_double"(
        const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*)
    void read_half_float "fastnorm_read_half_float"(
        const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*)
    void read_half_double "fastnorm_read_half_double"(
        const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*)
    void read_bfloat_float "fastnorm_read_bfloat_float"(
        const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*)
    void read_bfloat_double "fastnorm_read_bfloat_double"(
        const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*)

# (where in the kernel, elements, where in the array, bytes from one element to the next)
cdef extern from "convert.h" nogil:
    void write_float_float "fastnorm_write_float_float"(
        const float*, Py_ssize_t, void*, Py_ssize_t)
    void write_float_double "fastnorm_write_float_double"(
        const double*, Py_ssize_t, void*, Py_ssize_t)
    void write_double_float "fastnorm_write_double_float"(
        const float*, Py_ssize_t, void*, Py_ssize_t)
    void write_double_double "fastnorm_write_double_double"(
        const double*, Py_ssize_t, void*, Py_ssize_t)
    void write_half_float "fastnorm_write_half_float"(
        const float*, Py_ssize_t, void*, Py_ssize_t)
    void write_half_double "fastnorm_write_half_double"(
        const double*, Py_ssize_t, void*, Py_ssize_t)
    void write_bfloat_float "fastnorm_write_bfloat_float"(
        const float*, Py_ssize_t, void*, Py_ssize_t)
    void write_bfloat_double "fastnorm_write_bfloat_double"(
        const double*, Py_ssize_t, void*, Py_ssize_t)


cdef inline void read_run(
    Dtype dtype, const void* p, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t ahead, real* to
) noexcept nogil:
    """n elements of an array, `stride` bytes apart from p on. Where they lie side by side, those
    `ahead` bytes further on are asked for in passing."""
    if real is float:
        if dtype == FLOAT32:
            read_float_float(p, stride, n, ahead, to)
        elif dtype == BFLOAT16:
            read_bfloat_float(p, stride, n, ahead, to)
        elif dtype == FLOAT16:
            read_half_float(p, stride, n, ahead, to)
        else:
            read_double_float(p, stride, n, ahead, to)
    else:
        if dtype == FLOAT32:
            read_float_double(p, stride, n, ahead, to)
        elif dtype == BFLOAT16:
            read_bfloat_double(p, stride, n, ahead, to)
        elif dtype == FLOAT16:
            read_half_double(p, stride, n, ahead, to)
        else:
            read_double_double(p, stride, n, ahead, to)


cdef inline void write_run(
    Dtype dtype, const real* values, Py_ssize_t n, void* p, Py_ssize_t stride
) noexcept nogil:
    """Rounded once."""
    if real is float:
        if dtype == FLOAT32:
            write_float_float(values, n, p, stride)
        elif dtype == BFLOAT16:
            write_bfloat_float(values, n, p, stride)
        elif dtype == FLOAT16:
            write_half_float(values, n, p, stride)
        else:
            write_double_float(values, n, p, stride)
    else:
        if dtype == FLOAT32:
            write_float_double(values, n, p, stride)
        elif dtype == BFLOAT16:
            write_bfloat_double(values, n, p, stride)
        elif dtype == FLOAT16:
            write_half_double(values, n, p, stride)
        else:
            write_double_double(values, n, p, stride)
