/* Elementwise maps of runs of 16 bits, which become float as they are loaded and are rounded as they are stored: y may
   be x or dy. Those of float and double are loops of rows.pxd. */
#ifndef FASTNORM_MAPS_H
#define FASTNORM_MAPS_H

#include "lanes.h"
#include "pairs.h"

typedef struct {
    float centre, slope, shift, scale, weight;
} fastnorm_numbers;

#if FASTNORM_TAKES_16_BITS
#define FASTNORM_SCALE_SHIFT(dy, x) (((x) - m.centre) * m.scale + m.shift)
#define FASTNORM_GRADIENT(dy, x) (((dy) + (((x) - m.centre) * m.slope + m.shift)) * m.scale)
#define FASTNORM_WEIGHTED_GRADIENT(dy, x) (((dy) * m.weight + (((x) - m.centre) * m.slope + m.shift)) * m.scale)

#define FASTNORM_MAP(map, MAP)                                                                                       \
    static inline fastnorm_pair fastnorm_##map(fastnorm_pair dy, fastnorm_pair x, fastnorm_numbers m)                \
    {                                                                                                                \
        fastnorm_pair y = {MAP(dy.a, x.a), MAP(dy.b, x.b)};                                                          \
        return y;                                                                                                    \
    }

FASTNORM_MAP(scale_shift, FASTNORM_SCALE_SHIFT)
FASTNORM_MAP(gradient, FASTNORM_GRADIENT)
FASTNORM_MAP(weighted_gradient, FASTNORM_WEIGHTED_GRADIENT)

/* Of a run. What the last elements share with those before them is done twice, so they are loaded before anything is
   stored; a shorter run is done in a copy. */
#define FASTNORM_MAP_RUN(map, name)                                                                                  \
    static inline void fastnorm_##map##_##name(                                                                      \
        const fastnorm_##name *dy, const fastnorm_##name *x, fastnorm_##name *y, ptrdiff_t n, fastnorm_numbers m)    \
    {                                                                                                                \
        fastnorm_##name a[FASTNORM_AT_ONCE] = {0}, b[FASTNORM_AT_ONCE] = {0};                                        \
        const ptrdiff_t last = n - FASTNORM_AT_ONCE;                                                                 \
        ptrdiff_t i;                                                                                                 \
        if (last >= 0) {                                                                                             \
            fastnorm_pair last_dy = fastnorm_load_##name(dy + last), last_x = fastnorm_load_##name(x + last);        \
            for (i = 0; i < last; i += FASTNORM_AT_ONCE) {                                                           \
                fastnorm_pair from = fastnorm_load_##name(x + i);                                                    \
                fastnorm_store_##name(y + i, fastnorm_##map(fastnorm_load_##name(dy + i), from, m));                 \
            }                                                                                                        \
            fastnorm_store_##name(y + last, fastnorm_##map(last_dy, last_x, m));                                     \
            return;                                                                                                  \
        }                                                                                                            \
        memcpy(a, dy, n * sizeof *a), memcpy(b, x, n * sizeof *b);                                                   \
        fastnorm_store_##name(a, fastnorm_##map(fastnorm_load_##name(a), fastnorm_load_##name(b), m));               \
        memcpy(y, a, n * sizeof *a);                                                                                 \
    }

FASTNORM_MAP_RUN(scale_shift, half)
FASTNORM_MAP_RUN(scale_shift, bfloat)
FASTNORM_MAP_RUN(gradient, half)
FASTNORM_MAP_RUN(gradient, bfloat)
FASTNORM_MAP_RUN(weighted_gradient, half)
FASTNORM_MAP_RUN(weighted_gradient, bfloat)

/* A row of layer norm: y = ((x - centre)·scale + shift)·gamma + beta. */
FASTNORM_INLINE fastnorm_pair fastnorm_affine(
    int is_half, fastnorm_pair x, fastnorm_numbers m, const float *gamma, const float *beta, ptrdiff_t i)
{
    x = fastnorm_scale_shift(x, x, m);
    x = FASTNORM_PAIR(*, x, fastnorm_floats_or(is_half, gamma, i, 1));
    return FASTNORM_PAIR(+, x, fastnorm_floats_or(is_half, beta, i, -0.0f)); /* adding 0 changes the sign of -0 */
}

FASTNORM_INLINE void fastnorm_affine_run(
    int is_half, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers m, const float *gamma, const float *beta)
{
    uint16_t copy[FASTNORM_AT_ONCE] = {0};
    float gammas[FASTNORM_AT_ONCE] = {0}, betas[FASTNORM_AT_ONCE] = {0};
    const ptrdiff_t last = n - FASTNORM_AT_ONCE;
    ptrdiff_t i;
    if (last >= 0) {
        fastnorm_pair last_x = fastnorm_load(is_half, x + last);
        for (i = 0; i < last; i += FASTNORM_AT_ONCE)
            fastnorm_store(is_half, y + i, fastnorm_affine(is_half, fastnorm_load(is_half, x + i), m, gamma, beta, i));
        fastnorm_store(is_half, y + last, fastnorm_affine(is_half, last_x, m, gamma, beta, last));
        return;
    }
    memcpy(copy, x, n * sizeof *copy);
    if (gamma) gamma = memcpy(gammas, gamma, n * sizeof *gamma);
    if (beta) beta = memcpy(betas, beta, n * sizeof *beta);
    fastnorm_store(is_half, copy, fastnorm_affine(is_half, fastnorm_load(is_half, copy), m, gamma, beta, 0));
    memcpy(y, copy, n * sizeof *copy);
}

FASTNORM_ONCE void fastnorm_affine_half(
    const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers m, const float *gamma, const float *beta)
{
    fastnorm_affine_run(1, x, y, n, m, gamma, beta);
}

FASTNORM_ONCE void fastnorm_affine_bfloat(
    const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers m, const float *gamma, const float *beta)
{
    fastnorm_affine_run(0, x, y, n, m, gamma, beta);
}
#endif

static inline void fastnorm_scale_shift_sixteen(
    int is_half, const uint16_t *dy, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers m)
{
    (void)FASTNORM_EITHER(scale_shift, dy, x, y, n, m);
}

static inline void fastnorm_gradient_sixteen(
    int is_half, const uint16_t *dy, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers m)
{
    (void)FASTNORM_EITHER(gradient, dy, x, y, n, m);
}

static inline void fastnorm_weighted_gradient_sixteen(
    int is_half, const uint16_t *dy, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers m)
{
    (void)FASTNORM_EITHER(weighted_gradient, dy, x, y, n, m);
}

static inline void fastnorm_affine_sixteen(
    int is_half, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers m, const float *gamma, const float *beta)
{
    (void)FASTNORM_EITHER(affine, x, y, n, m, gamma, beta);
}

#endif
