"""What lanes.h and maps.h have for runs of 16 bits, float16 or bfloat16, row_gradients.h for rows
and columns.h for columns of them, which become float as they are loaded and are rounded as they
are stored. The sums are, bit by bit, those of a copy in float.
"""

from libc.stdint cimport uint16_t

cdef extern from "convert.h" nogil:
    bint TAKES_16_BITS "FASTNORM_TAKES_16_BITS"

cdef extern from "lanes.h" nogil:
    double sum "fastnorm_sum_sixteen"(bint is_half, const uint16_t* x, Py_ssize_t n)
    void add_centred "fastnorm_add_centred_sixteen"(
        bint is_half, const uint16_t* x, Py_ssize_t n, float centre, Py_ssize_t ahead, float* sums,
        float* squares)
    void few_moments "fastnorm_few_moments_sixteen"(
        bint is_half, const uint16_t* x, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
        Py_ssize_t ahead, double* mean, double* m2)
    void add_squares "fastnorm_add_squares_sixteen"(
        bint is_half, const uint16_t* x, Py_ssize_t n, Py_ssize_t ahead, float* squares)
    void few_squares "fastnorm_few_squares_sixteen"(
        bint is_half, const uint16_t* x, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
        Py_ssize_t ahead, double* squares)
    void add_gradients "fastnorm_add_gradients_sixteen"(
        bint is_half, const uint16_t* dy, const uint16_t* x, Py_ssize_t n, float centre,
        float inverse, bint centred, Py_ssize_t ahead, float* sums, float* products)
    void few_gradients "fastnorm_few_gradients_sixteen"(
        bint is_half, const uint16_t* dy, Py_ssize_t dy_step, const uint16_t* x,
        Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t n, const float* gamma,
        Py_ssize_t gamma_step, const float* centre, const float* inverse, bint centred,
        Py_ssize_t ahead, double* sums, double* products)

cdef extern from "maps.h" nogil:
    ctypedef enum RunMap "fastnorm_map":
        SCALE "FASTNORM_SCALE"
        SCALE_SHIFT "FASTNORM_SCALE_SHIFT"
        SLOPE "FASTNORM_SLOPE"
        GRADIENT "FASTNORM_GRADIENT"
        WEIGHTED_GRADIENT "FASTNORM_WEIGHTED_GRADIENT"
    ctypedef struct Numbers "fastnorm_numbers_float":
        float centre, slope, shift, scale, weight
    void map "fastnorm_map_sixteen"(
        bint is_half, RunMap map, const uint16_t* dy, const uint16_t* x, uint16_t* y, Py_ssize_t n,
        Numbers numbers)
    void affine "fastnorm_affine_sixteen"(
        bint is_half, const uint16_t* x, uint16_t* y, Py_ssize_t n, Numbers numbers,
        const float* gamma, const float* beta)

cdef extern from "pairs.h" nogil:
    ctypedef struct Rows "fastnorm_rows":
        const uint16_t* data
        Py_ssize_t stride

cdef extern from "row_gradients.h" nogil:
    ctypedef struct GradientParameters "fastnorm_gradient_parameters":
        const float* gamma
        const float* numbers
        float* dgamma
        float* dbeta
    void row_gradients "fastnorm_row_gradients_sixteen"(
        bint is_half, Py_ssize_t rows, bint centred, Rows dy, Rows x, uint16_t* dx,
        Py_ssize_t dx_stride, Py_ssize_t n, GradientParameters parameters, Py_ssize_t ahead,
        Py_ssize_t dx_ahead)

cdef extern from "columns.h" nogil:
    ctypedef struct ColumnNumbers "fastnorm_column_numbers":
        const float* centre
        const float* slope
        const float* shift
        const float* scale
        const float* weight
    void column_sums "fastnorm_column_sums_sixteen"(
        bint is_half, Rows x, Py_ssize_t rows, Py_ssize_t n, const float* centre,
        float* sums, float* squares, Py_ssize_t ahead)
    void column_gradient_sums "fastnorm_column_gradient_sums_sixteen"(
        bint is_half, Rows dy, Rows x, Py_ssize_t rows, Py_ssize_t n, const float* centre,
        const float* inverse, float* sums, float* products, Py_ssize_t ahead)
    void column_map "fastnorm_column_map_sixteen"(
        bint is_half, bint is_gradient, Rows dy, Rows x, uint16_t* y, Py_ssize_t y_stride,
        Py_ssize_t rows, Py_ssize_t n, ColumnNumbers numbers)
