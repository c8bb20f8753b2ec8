"""Primitives over a contiguous row: sums in a fixed number of lanes, and elementwise maps.

A sum that runs through one accumulator is a chain of dependent additions; spread over many lanes
it is a few independent vectors on every instruction set, and since the order of the additions is
written down (sums.h), every instruction set rounds alike. Lanes are folded as a tree.

A row is summed in lanes for at most CHUNK elements, so that it is still in L1 for the second sweep
and float32 loses nothing; chunks are combined in double (moments.pxd).
"""

from libc.stdint cimport uint16_t

from fastnorm._kernels cimport sixteen
from fastnorm._kernels.arrays cimport BFLOAT16, FLOAT16, Dtype, itemsize_of, real
from fastnorm._kernels.memory cimport prefetch, prefetch_far
from fastnorm._kernels.sixteen cimport SCALE, SCALE_SHIFT, TAKES_16_BITS, Numbers, RunMap

cdef extern from "lanes.h" nogil:
    enum:
        ALL_LANES "FASTNORM_ALL_LANES"
        TOGETHER "FASTNORM_TOGETHER"
    double fold_float "fastnorm_fold_float"(const float* lanes)
    double fold_double "fastnorm_fold_double"(const double* lanes)
    double sum_float "fastnorm_sum_float"(const float* x, Py_ssize_t n)
    double sum_double "fastnorm_sum_double"(const double* x, Py_ssize_t n)
    void add_centred_float "fastnorm_add_centred_float"(
        const float* x, Py_ssize_t n, float centre, Py_ssize_t ahead, float* sums, float* squares)
    void add_centred_double "fastnorm_add_centred_double"(
        const double* x, Py_ssize_t n, double centre, Py_ssize_t ahead, double* sums,
        double* squares)
    void few_moments_float "fastnorm_few_moments_float"(
        const float* x, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t ahead,
        double* mean, double* m2)
    void few_moments_double "fastnorm_few_moments_double"(
        const double* x, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t ahead,
        double* mean, double* m2)
    void add_squares_float "fastnorm_add_squares_float"(
        const float* x, Py_ssize_t n, Py_ssize_t ahead, float* squares)
    void add_squares_double "fastnorm_add_squares_double"(
        const double* x, Py_ssize_t n, Py_ssize_t ahead, double* squares)
    void few_squares_float "fastnorm_few_squares_float"(
        const float* x, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t ahead,
        double* squares)
    void few_squares_double "fastnorm_few_squares_double"(
        const double* x, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t ahead,
        double* squares)
    void add_gradients_float "fastnorm_add_gradients_float"(
        const float* dy, const float* x, Py_ssize_t n, float centre, float inverse, bint centred,
        Py_ssize_t ahead, float* sums, float* products)
    void add_gradients_double "fastnorm_add_gradients_double"(
        const double* dy, const double* x, Py_ssize_t n, double centre, double inverse,
        bint centred, Py_ssize_t ahead, double* sums, double* products)
    void few_gradients_float "fastnorm_few_gradients_float"(
        const float* dy, Py_ssize_t dy_step, const float* x, Py_ssize_t x_step, Py_ssize_t rows,
        Py_ssize_t n, const float* gamma, Py_ssize_t gamma_step, const float* centre,
        const float* inverse, bint centred, Py_ssize_t ahead, double* sums, double* products)
    void few_gradients_double "fastnorm_few_gradients_double"(
        const double* dy, Py_ssize_t dy_step, const double* x, Py_ssize_t x_step, Py_ssize_t rows,
        Py_ssize_t n, const double* gamma, Py_ssize_t gamma_step, const double* centre,
        const double* inverse, bint centred, Py_ssize_t ahead, double* sums, double* products)

cdef extern from "maps.h" nogil:
    void map_rows_float "fastnorm_map_rows_float"(
        RunMap map, Py_ssize_t rows, const float* dy, Py_ssize_t dy_step, const float* x,
        Py_ssize_t x_step, float* y, Py_ssize_t y_step, Py_ssize_t n, const float* centre,
        const float* slope, const float* shift, const float* scale, const float* weight,
        Py_ssize_t apart, Py_ssize_t y_ahead)
    void map_rows_double "fastnorm_map_rows_double"(
        RunMap map, Py_ssize_t rows, const double* dy, Py_ssize_t dy_step, const double* x,
        Py_ssize_t x_step, double* y, Py_ssize_t y_step, Py_ssize_t n, const double* centre,
        const double* slope, const double* shift, const double* scale, const double* weight,
        Py_ssize_t apart, Py_ssize_t y_ahead)
    void affine_rows_float "fastnorm_affine_rows_float"(
        Py_ssize_t rows, const float* x, Py_ssize_t x_step, float* y, Py_ssize_t y_step,
        Py_ssize_t n, bint centred, const float* centre, const float* scale, const float* shift,
        const float* gamma, const float* beta)
    void affine_rows_double "fastnorm_affine_rows_double"(
        Py_ssize_t rows, const double* x, Py_ssize_t x_step, double* y, Py_ssize_t y_step,
        Py_ssize_t n, bint centred, const double* centre, const double* scale,
        const double* shift, const double* gamma, const double* beta)

cdef enum:
    CHUNK = 4096


# A run's elements are of the type that is computed in, or of 16 bits and a float's part in a
# float kernel (sixteen.pxd): `stored` says so, and its pointer is only an address.


cdef inline bint is_sixteen(Dtype stored) noexcept nogil:
    return TAKES_16_BITS and (stored == FLOAT16 or stored == BFLOAT16)


cdef inline const real* element(const real* x, Dtype stored, Py_ssize_t i) noexcept nogil:
    """The address of element i of a run."""
    return <const real*> (<const char*> x + i * itemsize_of(stored))


# Lanes that live on from one piece of a row, or from one plane, to the next are an array of
# ALL_LANES. `ahead` is how many elements further on memory is asked for in passing, or 0.


cdef inline void clear(real* restrict lanes) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(ALL_LANES):
        lanes[j] = 0


cdef inline double fold(const real* lanes) noexcept nogil:
    """Sum of the lanes."""
    if real is float:
        return fold_float(lanes)
    else:
        return fold_double(lanes)


cdef inline double row_sum(const real* x, Dtype stored, Py_ssize_t n) noexcept nogil:
    """Σx"""
    if real is float:
        if is_sixteen(stored):
            return sixteen.sum(stored == FLOAT16, <const uint16_t*> x, n)
        return sum_float(x, n)
    else:
        return sum_double(x, n)


cdef inline void add_centred_sums(
    const real* x, Dtype stored, Py_ssize_t n, real centre, real* lanes, real* squares,
    Py_ssize_t ahead,
) noexcept nogil:
    """lanes += x - centre;  squares += (x - centre)²"""
    if real is float:
        if is_sixteen(stored):
            sixteen.add_centred(
                stored == FLOAT16, <const uint16_t*> x, n, centre, ahead, lanes, squares
            )
        else:
            add_centred_float(x, n, centre, ahead, lanes, squares)
    else:
        add_centred_double(x, n, centre, ahead, lanes, squares)


cdef inline void row_moments(
    const real* x, Dtype stored, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
    Py_ssize_t ahead, double* mean, double* m2,
) noexcept nogil:
    """The mean of TOGETHER rows, at most, of a chunk at most, and Σ(x - mean)². From one to the
    next it is `step` elements."""
    if real is float:
        if is_sixteen(stored):
            sixteen.few_moments(
                stored == FLOAT16, <const uint16_t*> x, step, rows, n, ahead, mean, m2
            )
        else:
            few_moments_float(x, step, rows, n, ahead, mean, m2)
    else:
        few_moments_double(x, step, rows, n, ahead, mean, m2)


cdef inline void add_squares(
    const real* x, Dtype stored, Py_ssize_t n, real* lanes, Py_ssize_t ahead
) noexcept nogil:
    """lanes += x²"""
    if real is float:
        if is_sixteen(stored):
            sixteen.add_squares(stored == FLOAT16, <const uint16_t*> x, n, ahead, lanes)
        else:
            add_squares_float(x, n, ahead, lanes)
    else:
        add_squares_double(x, n, ahead, lanes)


cdef inline void row_squares(
    const real* x, Dtype stored, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t n,
    Py_ssize_t ahead, double* squares,
) noexcept nogil:
    """Σx² of each, likewise"""
    if real is float:
        if is_sixteen(stored):
            sixteen.few_squares(
                stored == FLOAT16, <const uint16_t*> x, step, rows, n, ahead, squares
            )
        else:
            few_squares_float(x, step, rows, n, ahead, squares)
    else:
        few_squares_double(x, step, rows, n, ahead, squares)


cdef inline void add_gradient_sums(
    const real* dy, const real* x, Dtype stored, Py_ssize_t n, real centre, real inverse,
    bint centred, real* lanes, real* products, Py_ssize_t ahead,
) noexcept nogil:
    """lanes += dy;  products += dy·x̂  with x̂ = (x - centre)·inverse. Not centred: the centre is
    0, and the sum of dy is not wanted."""
    if real is float:
        if is_sixteen(stored):
            sixteen.add_gradients(
                stored == FLOAT16, <const uint16_t*> dy, <const uint16_t*> x, n, centre, inverse,
                centred, ahead, lanes, products,
            )
        else:
            add_gradients_float(dy, x, n, centre, inverse, centred, ahead, lanes, products)
    else:
        add_gradients_double(dy, x, n, centre, inverse, centred, ahead, lanes, products)


cdef inline void row_gradient_sums(
    const real* dy, Py_ssize_t dy_step, const real* x, Py_ssize_t x_step, Dtype stored,
    Py_ssize_t rows, Py_ssize_t n, const real* gamma, Py_ssize_t gamma_step, const real* centre,
    const real* inverse, bint centred, Py_ssize_t ahead, double* sums, double* products,
) noexcept nogil:
    """Σh and Σ(h·x̂) of each of TOGETHER rows, at most, likewise, with h = dy·gamma, or dy where
    gamma is NULL. From a row's gamma to the next it is gamma_step elements."""
    if real is float:
        if is_sixteen(stored):
            sixteen.few_gradients(
                stored == FLOAT16, <const uint16_t*> dy, dy_step, <const uint16_t*> x, x_step,
                rows, n, gamma, gamma_step, centre, inverse, centred, ahead, sums, products,
            )
        else:
            few_gradients_float(
                dy, dy_step, x, x_step, rows, n, gamma, gamma_step, centre, inverse, centred,
                ahead, sums, products,
            )
    else:
        few_gradients_double(
            dy, dy_step, x, x_step, rows, n, gamma, gamma_step, centre, inverse, centred, ahead,
            sums, products,
        )


# The maps write y while x is at hand; y may be x itself.


cdef inline void ask(const real* x, Dtype stored, Py_ssize_t n, Py_ssize_t ahead) noexcept nogil:
    """For n elements, `ahead` further on."""
    if ahead:
        prefetch_far(element(x, stored, ahead), n * itemsize_of(stored))


cdef inline real standard(
    real x, real centre, real rstd, real shift, bint centred
) noexcept nogil:
    """x̂"""
    return (x - centre) * rstd + shift if centred else x * rstd


cdef inline void map_rows(
    RunMap map, Py_ssize_t rows, const real* dy, Py_ssize_t dy_step, const real* x,
    Py_ssize_t x_step, Dtype stored, real* y, Py_ssize_t y_step, Py_ssize_t n, const real* centre,
    const real* slope, const real* shift, const real* scale, const real* weight, Py_ssize_t apart,
    Py_ssize_t y_ahead,
) noexcept nogil:
    """A map (maps.h) of some rows. They have numbers of their own, `apart` from one another, NULL
    where the map has none. One of x alone has it as dy too. What is y_ahead elements further on
    than y, if that is not 0, is asked for."""
    cdef Py_ssize_t k
    cdef Numbers m
    if real is float:
        if not is_sixteen(stored):
            map_rows_float(
                map, rows, dy, dy_step, x, x_step, y, y_step, n, centre, slope, shift, scale,
                weight, apart, y_ahead,
            )
            return
        for k in range(rows):
            m.scale = scale[k * apart]
            m.centre = 0 if centre == NULL else centre[k * apart]
            m.slope = 0 if slope == NULL else slope[k * apart]
            m.shift = 0 if shift == NULL else shift[k * apart]
            m.weight = 0 if weight == NULL else weight[k * apart]
            if y_ahead:
                prefetch(<uint16_t*> y + k * y_step + y_ahead, n * sizeof(uint16_t))
            sixteen.map(
                stored == FLOAT16, map, <const uint16_t*> dy + k * dy_step,
                <const uint16_t*> x + k * x_step, <uint16_t*> y + k * y_step, n, m,
            )
    else:
        map_rows_double(
            map, rows, dy, dy_step, x, x_step, y, y_step, n, centre, slope, shift, scale, weight,
            apart, y_ahead,
        )


cdef inline void affine_rows(
    Py_ssize_t rows, const real* x, Py_ssize_t x_step, Dtype stored, real* y, Py_ssize_t y_step,
    Py_ssize_t n, bint centred, const real* centre, const real* scale, const real* shift,
    const real* gamma, const real* beta,
) noexcept nogil:
    """y = x̂·gamma + beta of some rows, where gamma, beta or both may be NULL, with
    x̂ = (x - centre)·scale + shift; or, not centred, x·scale, and then there is no beta."""
    cdef Py_ssize_t k
    cdef Numbers m
    if gamma == NULL and beta == NULL:
        map_rows(
            SCALE_SHIFT if centred else SCALE, rows, x, x_step, x, x_step, stored, y, y_step, n,
            centre if centred else NULL, NULL, shift if centred else NULL, scale, NULL, 1, 0,
        )
        return
    if real is float:
        if not is_sixteen(stored):
            affine_rows_float(
                rows, x, x_step, y, y_step, n, centred, centre, scale, shift, gamma, beta
            )
            return
        for k in range(rows):
            m.scale = scale[k]
            m.centre, m.shift = centre[k] if centred else 0, shift[k] if centred else -0.0
            sixteen.affine(
                stored == FLOAT16, <const uint16_t*> x + k * x_step, <uint16_t*> y + k * y_step,
                n, m, gamma, beta,
            )
    else:
        affine_rows_double(
            rows, x, x_step, y, y_step, n, centred, centre, scale, shift, gamma, beta
        )
