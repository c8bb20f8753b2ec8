/* Sums over a run of elements, in LANES lanes that take turns: element i goes to lane i % LANES. What is left of the
   run goes to TAIL lanes of its own, and what is left of that to one. The order of the additions is thus the same for
   any width of vectors. Lanes live in vectors that are named here, because compilers keep an array of lanes in memory
   at times, where each addition waits for the one before to be stored. */
#ifndef FASTNORM_LANES_H
#define FASTNORM_LANES_H

#include <stddef.h>
#include <string.h>

#include "convert.h"
#include "memory.h"

enum {
    FASTNORM_LANES = 32,
    FASTNORM_TAIL = 8,
    FASTNORM_ALL_LANES = FASTNORM_LANES + FASTNORM_TAIL + 1,
    FASTNORM_SHORT = 512, /* elements: 16 additions to a lane */
    FASTNORM_GUESSED = 32,
    FASTNORM_SIDE = 16,   /* of the tiles in which rows and columns change places */
    FASTNORM_STREAMS = 8, /* elements of a lane at once, of x and of dy: processors follow 32 streams of memory */
    FASTNORM_EVENLY = 64, /* elements between two requests for memory */
    FASTNORM_ROW_NUMBERS = 5, /* that gradients need of a row (run_maps.h), each side by side for all rows of a group */
    FASTNORM_MAX_GROUP = 256,
    FASTNORM_FOLDED = 5,  /* numbers that are left of a row's lanes, */
    FASTNORM_TOGETHER = 8 /* and rows that a vector then holds one of each of */
};

#if defined(__AVX512F__)
#define FASTNORM_VECTOR 64 /* bytes */
#elif defined(__AVX__)
#define FASTNORM_VECTOR 32
#else
#define FASTNORM_VECTOR 16
#endif

#if defined(__GNUC__) || defined(__clang__)
#define FASTNORM_VECTOR_OF(real, num_bytes) \
    real __attribute__((vector_size(num_bytes), aligned(sizeof(real)), may_alias))
#define FASTNORM_HAS_VECTORS
typedef FASTNORM_VECTOR_OF(double, 32) fastnorm_four;
typedef FASTNORM_VECTOR_OF(double, 16) fastnorm_two;
#define FASTNORM_UNROLL FASTNORM_UNROLL_BY(32)
#define FASTNORM_ROLLED _Pragma("GCC unroll 1") /* where code is larger than it is worth */
#define FASTNORM_INLINE static inline __attribute__((always_inline))
#else /* vectors of one element, which the compiler may put together */
#define FASTNORM_VECTOR_OF(real, num_bytes) real
#define FASTNORM_UNROLL
#define FASTNORM_ROLLED
#define FASTNORM_INLINE static inline
#endif

/* Of a run of n elements, what a lane adds up. */
typedef struct {
    ptrdiff_t first, stop, step;
} fastnorm_share;

static inline fastnorm_share fastnorm_share_of(ptrdiff_t lane, ptrdiff_t n)
{
    const ptrdiff_t whole = n - n % FASTNORM_LANES, eights = n - n % FASTNORM_TAIL;
    const fastnorm_share main = {lane, whole, FASTNORM_LANES}, rest = {eights, n, 1};
    const fastnorm_share tail = {whole + lane - FASTNORM_LANES, eights, FASTNORM_TAIL};
    return lane < FASTNORM_LANES ? main : lane < FASTNORM_LANES + FASTNORM_TAIL ? tail : rest;
}

/* Above 0 where the centre of these sums, Σ(x - centre) and Σ(x - centre)², is more than a standard deviation from the
   mean. */
static inline double fastnorm_how_far_off(double total, double squares, ptrdiff_t n)
{
    return total * (total / n) - squares / 2;
}

static inline int fastnorm_is_off(double total, double squares, ptrdiff_t n)
{
    return fastnorm_how_far_off(total, squares, n) > 0;
}

/* From Σ(x - centre), and Σ(x - centre)² in m2, the mean, and Σ(x - mean)², which is less than 0 by rounding in a constant
   row. NaN stays NaN. */
static inline void fastnorm_settle(double centre, double total, ptrdiff_t n, double *mean, double *m2)
{
    *mean = centre + total / n;
    *m2 -= total * (total / n);
    if (*m2 < 0) *m2 = 0;
}

/* Of FASTNORM_TOGETHER numbers, those of so many rows. */
static inline void fastnorm_copy_some(const double *all, ptrdiff_t rows, double *to)
{
    ptrdiff_t k;
    if (rows == FASTNORM_TOGETHER) {
        memcpy(to, all, FASTNORM_TOGETHER * sizeof *all);
        return;
    }
    FASTNORM_ROLLED
    for (k = 0; k < rows; ++k) to[k] = all[k];
}

#define real float
#define FASTNORM_NAME(name) fastnorm_##name##_float
#define FASTNORM_OF_16_BITS FASTNORM_TAKES_16_BITS
#include "sums.h"
#undef FASTNORM_OF_16_BITS
#undef real
#undef FASTNORM_NAME

#define real double
#define FASTNORM_NAME(name) fastnorm_##name##_double
#define FASTNORM_OF_16_BITS 0
#include "sums.h"
#undef FASTNORM_OF_16_BITS
#undef real
#undef FASTNORM_NAME

/* Of runs of 16 bits, float16 or bfloat16. */
#if FASTNORM_TAKES_16_BITS
#define FASTNORM_EITHER(name, ...) (is_half ? fastnorm_##name##_half(__VA_ARGS__) : fastnorm_##name##_bfloat(__VA_ARGS__))
#else
#define FASTNORM_EITHER(name, ...) 0 /* nobody asks */
#endif

static inline double fastnorm_sum_sixteen(int is_half, const uint16_t *x, ptrdiff_t n)
{
    return FASTNORM_EITHER(sum, x, n);
}

static inline void fastnorm_add_centred_sixteen(
    int is_half, const uint16_t *x, ptrdiff_t n, float centre, ptrdiff_t ahead, float *sums, float *squares)
{
    (void)FASTNORM_EITHER(add_centred, x, n, centre, ahead, sums, squares);
}

static inline void fastnorm_few_moments_sixteen(
    int is_half, const uint16_t *x, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t n, ptrdiff_t ahead, double *mean, double *m2)
{
    (void)FASTNORM_EITHER(few_moments, x, step, rows, n, ahead, mean, m2);
}

static inline void fastnorm_add_squares_sixteen(
    int is_half, const uint16_t *x, ptrdiff_t n, ptrdiff_t ahead, float *squares)
{
    (void)FASTNORM_EITHER(add_squares, x, n, ahead, squares);
}

static inline void fastnorm_few_squares_sixteen(
    int is_half, const uint16_t *x, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t n, ptrdiff_t ahead, double *squares)
{
    (void)FASTNORM_EITHER(few_squares, x, step, rows, n, ahead, squares);
}

static inline void fastnorm_add_gradients_sixteen(
    int is_half, const uint16_t *dy, const uint16_t *x, ptrdiff_t n, float centre, float inverse, int centred,
    ptrdiff_t ahead, float *sums, float *products)
{
    (void)FASTNORM_EITHER(add_gradients, dy, x, n, centre, inverse, centred, ahead, sums, products);
}

static inline void fastnorm_few_gradients_sixteen(
    int is_half, const uint16_t *dy, ptrdiff_t dy_step, const uint16_t *x, ptrdiff_t x_step, ptrdiff_t rows, ptrdiff_t n,
    const float *gamma, ptrdiff_t gamma_step, const float *centre, const float *inverse, int centred, ptrdiff_t ahead,
    double *sums, double *products)
{
    (void)FASTNORM_EITHER(
        few_gradients, dy, dy_step, x, x_step, rows, n, gamma, gamma_step, centre, inverse, centred, ahead, sums, products);
}

#endif
