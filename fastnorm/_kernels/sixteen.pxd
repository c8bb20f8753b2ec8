"""What lanes.h and maps.h have for runs of 16 bits, which become float as they are loaded and are
rounded as they are stored. The sums are, bit by bit, those of a copy in float."""

cdef extern from "convert.h" nogil:
    bint TAKES_16_BITS "FASTNORM_TAKES_16_BITS"

cdef extern from "lanes.h" nogil:
    ctypedef unsigned short half "fastnorm_half"
    ctypedef unsigned short bfloat "fastnorm_bfloat"
    double sum_half "fastnorm_sum_half"(const half* x, Py_ssize_t n)
    float guess_half "fastnorm_guess_centre_half"(const half* x, Py_ssize_t n)
    void add_centred_half "fastnorm_add_centred_half"(
        const half* x, Py_ssize_t n, float centre, Py_ssize_t ahead, float* sums, float* squares)
    void centred_sums_half "fastnorm_centred_sums_half"(
        const half* x, Py_ssize_t n, float centre, Py_ssize_t ahead, double* sum, double* squares)
    void add_squares_half "fastnorm_add_squares_half"(
        const half* x, Py_ssize_t n, Py_ssize_t ahead, float* squares)
    void add_gradients_half "fastnorm_add_gradients_half"(
        const half* dy, const half* x, Py_ssize_t n, float centre, float inverse, bint centred,
        Py_ssize_t ahead, float* sums, float* products)
    void gradient_sums_half "fastnorm_gradient_sums_half"(
        const half* dy, const half* x, const float* gamma, Py_ssize_t n, float centre,
        float inverse, bint centred, Py_ssize_t ahead, double* sum, double* products)
    double sum_bfloat "fastnorm_sum_bfloat"(const bfloat* x, Py_ssize_t n)
    float guess_bfloat "fastnorm_guess_centre_bfloat"(const bfloat* x, Py_ssize_t n)
    void add_centred_bfloat "fastnorm_add_centred_bfloat"(
        const bfloat* x, Py_ssize_t n, float centre, Py_ssize_t ahead, float* sums, float* squares)
    void centred_sums_bfloat "fastnorm_centred_sums_bfloat"(
        const bfloat* x, Py_ssize_t n, float centre, Py_ssize_t ahead, double* sum, double* squares)
    void add_squares_bfloat "fastnorm_add_squares_bfloat"(
        const bfloat* x, Py_ssize_t n, Py_ssize_t ahead, float* squares)
    void add_gradients_bfloat "fastnorm_add_gradients_bfloat"(
        const bfloat* dy, const bfloat* x, Py_ssize_t n, float centre, float inverse, bint centred,
        Py_ssize_t ahead, float* sums, float* products)
    void gradient_sums_bfloat "fastnorm_gradient_sums_bfloat"(
        const bfloat* dy, const bfloat* x, const float* gamma, Py_ssize_t n, float centre,
        float inverse, bint centred, Py_ssize_t ahead, double* sum, double* products)

cdef extern from "maps.h" nogil:
    ctypedef struct Numbers "fastnorm_numbers":
        float centre, slope, shift, scale, weight
    void scale_shift_half "fastnorm_scale_shift_half"(
        const half* dy, const half* x, half* y, Py_ssize_t n, Numbers numbers)
    void scale_shift_bfloat "fastnorm_scale_shift_bfloat"(
        const bfloat* dy, const bfloat* x, bfloat* y, Py_ssize_t n, Numbers numbers)
    void gradient_half "fastnorm_gradient_half"(
        const half* dy, const half* x, half* y, Py_ssize_t n, Numbers numbers)
    void gradient_bfloat "fastnorm_gradient_bfloat"(
        const bfloat* dy, const bfloat* x, bfloat* y, Py_ssize_t n, Numbers numbers)
    void weighted_gradient_half "fastnorm_weighted_gradient_half"(
        const half* dy, const half* x, half* y, Py_ssize_t n, Numbers numbers)
    void weighted_gradient_bfloat "fastnorm_weighted_gradient_bfloat"(
        const bfloat* dy, const bfloat* x, bfloat* y, Py_ssize_t n, Numbers numbers)
