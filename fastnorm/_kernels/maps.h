/* Elementwise maps of runs: of float and double, and of 16 bits, which become float as they are loaded and are rounded as
   they are stored. y may be x or dy. */
#ifndef FASTNORM_MAPS_H
#define FASTNORM_MAPS_H

#include "lanes.h"
#include "pairs.h"

typedef enum {
    FASTNORM_SCALE,             /* x·scale */
    FASTNORM_SCALE_SHIFT,       /* (x - centre)·scale + shift */
    FASTNORM_SLOPE,             /* (dy + x·slope)·scale */
    FASTNORM_GRADIENT,          /* (dy + ((x - centre)·slope + shift))·scale */
    FASTNORM_WEIGHTED_GRADIENT, /* (dy·weight + ((x - centre)·slope + shift))·scale */
    FASTNORM_AFFINE             /* ((x - centre)·scale + shift)·gamma + beta */
} fastnorm_map;

#define FASTNORM_IS_CENTRED(map) ((map) != FASTNORM_SCALE && (map) != FASTNORM_SLOPE)
#define FASTNORM_IS_GRADIENT(map) ((map) != FASTNORM_SCALE && (map) != FASTNORM_SCALE_SHIFT)

/* Of one element, or of a vector of any type. NUMBER(name, ...) is what it is mapped by. */
#define FASTNORM_MAPPED(map, dy, x, NUMBER, ...)                                                                       \
    ((map) == FASTNORM_SCALE      ? (x) * NUMBER(scale, __VA_ARGS__)                                                   \
     : (map) == FASTNORM_SLOPE    ? ((dy) + (x) * NUMBER(slope, __VA_ARGS__)) * NUMBER(scale, __VA_ARGS__)             \
     : (map) == FASTNORM_GRADIENT ? ((dy) + FASTNORM_SLOPED(x, NUMBER, __VA_ARGS__)) * NUMBER(scale, __VA_ARGS__)      \
     : (map) == FASTNORM_WEIGHTED_GRADIENT                                                                             \
         ? ((dy) * NUMBER(weight, __VA_ARGS__) + FASTNORM_SLOPED(x, NUMBER, __VA_ARGS__)) * NUMBER(scale, __VA_ARGS__) \
         : ((x) - NUMBER(centre, __VA_ARGS__)) * NUMBER(scale, __VA_ARGS__) + NUMBER(shift, __VA_ARGS__))
#define FASTNORM_SLOPED(x, NUMBER, ...) \
    (((x) - NUMBER(centre, __VA_ARGS__)) * NUMBER(slope, __VA_ARGS__) + NUMBER(shift, __VA_ARGS__))

/* Those of a run by numbers alone. */
#define FASTNORM_MAPS(DO)                 \
    DO(scale, FASTNORM_SCALE)             \
    DO(scale_shift, FASTNORM_SCALE_SHIFT) \
    DO(slope, FASTNORM_SLOPE)             \
    DO(gradient, FASTNORM_GRADIENT)       \
    DO(weighted_gradient, FASTNORM_WEIGHTED_GRADIENT)

#define real float
#define FASTNORM_NAME(name) fastnorm_##name##_float
#include "run_maps.h"
#undef real
#undef FASTNORM_NAME

#define real double
#define FASTNORM_NAME(name) fastnorm_##name##_double
#include "run_maps.h"
#undef real
#undef FASTNORM_NAME

#if FASTNORM_TAKES_16_BITS
/* The numbers of each element. */
typedef struct {
    fastnorm_wide centre, slope, shift, scale, weight;
} fastnorm_wide_numbers;

FASTNORM_INLINE fastnorm_wide fastnorm_mapped(
    fastnorm_map map, fastnorm_wide dy, fastnorm_wide x, const fastnorm_wide_numbers *m)
{
#define NUMBER(name, _) m->name
    return FASTNORM_MAPPED(map, dy, x, NUMBER, );
#undef NUMBER
}

/* From element i on, whose dy and x these are. gamma and beta, either of which may be NULL, are those of FASTNORM_AFFINE
   alone. */
FASTNORM_INLINE fastnorm_pair fastnorm_mapped_pair(
    int is_half, fastnorm_map map, fastnorm_pair dy, fastnorm_pair x, const fastnorm_wide_numbers *m, const float *gamma,
    const float *beta, ptrdiff_t i)
{
    fastnorm_pair y = {fastnorm_mapped(map, dy.a, x.a, m), fastnorm_mapped(map, dy.b, x.b, m)};
    if (map != FASTNORM_AFFINE) return y;
    y = FASTNORM_PAIR(*, y, fastnorm_floats_or(is_half, gamma, i, 1));
    return FASTNORM_PAIR(+, y, fastnorm_floats_or(is_half, beta, i, -0.0f)); /* adding 0 changes the sign of -0 */
}

/* What the last elements share with those before them is done twice, so they are loaded before anything is stored; a
   shorter run is done in a copy. */
FASTNORM_INLINE void fastnorm_map_run(
    int is_half, fastnorm_map map, const uint16_t *dy, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers_float m,
    const float *gamma, const float *beta)
{
    const fastnorm_wide zero = {0};
    const fastnorm_wide_numbers w = {m.centre - zero, m.slope - zero, m.shift - zero, m.scale - zero, m.weight - zero};
    uint16_t a[FASTNORM_AT_ONCE] = {0}, b[FASTNORM_AT_ONCE] = {0};
    float gammas[FASTNORM_AT_ONCE] = {0}, betas[FASTNORM_AT_ONCE] = {0};
    const ptrdiff_t last = n - FASTNORM_AT_ONCE;
    fastnorm_pair last_dy, last_x;
    ptrdiff_t i;
    if (last < 0) {
        memcpy(a, dy, n * sizeof *a), memcpy(b, x, n * sizeof *b);
        if (gamma) gamma = memcpy(gammas, gamma, n * sizeof *gamma);
        if (beta) beta = memcpy(betas, beta, n * sizeof *beta);
        last_dy = fastnorm_load(is_half, a), last_x = fastnorm_load(is_half, b);
        fastnorm_store(is_half, a, fastnorm_mapped_pair(is_half, map, last_dy, last_x, &w, gamma, beta, 0));
        memcpy(y, a, n * sizeof *a);
        return;
    }
    last_dy = fastnorm_load(is_half, dy + last), last_x = fastnorm_load(is_half, x + last);
    for (i = 0; i < last; i += FASTNORM_AT_ONCE) {
        fastnorm_pair some_dy = fastnorm_load(is_half, dy + i), some_x = fastnorm_load(is_half, x + i);
        fastnorm_store(is_half, y + i, fastnorm_mapped_pair(is_half, map, some_dy, some_x, &w, gamma, beta, i));
    }
    fastnorm_store(is_half, y + last, fastnorm_mapped_pair(is_half, map, last_dy, last_x, &w, gamma, beta, last));
}

#define FASTNORM_MAP_ONCE(name, map)                                                                                 \
    FASTNORM_ONCE void fastnorm_##name##_half(                                                                       \
        const uint16_t *dy, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers_float m, const float *gamma,     \
        const float *beta)                                                                                           \
    {                                                                                                                \
        fastnorm_map_run(1, map, dy, x, y, n, m, gamma, beta);                                                       \
    }                                                                                                                \
    FASTNORM_ONCE void fastnorm_##name##_bfloat(                                                                     \
        const uint16_t *dy, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers_float m, const float *gamma,     \
        const float *beta)                                                                                           \
    {                                                                                                                \
        fastnorm_map_run(0, map, dy, x, y, n, m, gamma, beta);                                                       \
    }

FASTNORM_MAPS(FASTNORM_MAP_ONCE)
FASTNORM_MAP_ONCE(affine, FASTNORM_AFFINE)
#undef FASTNORM_MAP_ONCE
#endif

/* What kernels call. */
static inline void fastnorm_map_sixteen(
    int is_half, fastnorm_map map, const uint16_t *dy, const uint16_t *x, uint16_t *y, ptrdiff_t n,
    fastnorm_numbers_float m)
{
#define FASTNORM_CASE(name, map_) if (map == map_) (void)FASTNORM_EITHER(name, dy, x, y, n, m, NULL, NULL);
    FASTNORM_MAPS(FASTNORM_CASE)
#undef FASTNORM_CASE
}

static inline void fastnorm_affine_sixteen(
    int is_half, const uint16_t *x, uint16_t *y, ptrdiff_t n, fastnorm_numbers_float m, const float *gamma, const float *beta)
{
    (void)FASTNORM_EITHER(affine, x, x, y, n, m, gamma, beta);
}

#endif
