/* Elementwise maps of runs of 16 bits, which become float as they are loaded and are rounded as they are stored: y may
   be x or dy. Those of float and double are loops of rows.pxd. */
#ifndef FASTNORM_MAPS_H
#define FASTNORM_MAPS_H

#include "lanes.h"

typedef struct {
    float centre, slope, shift, scale, weight;
} fastnorm_numbers;

#if FASTNORM_TAKES_16_BITS
/* Two vectors of elements. Their order is all one to a map: of bfloat16 every second is in the one, and the others are in
   the other, since that takes no instruction that moves elements about, of which many CPUs do one at a time. */
enum { FASTNORM_AT_ONCE = 2 * FASTNORM_WIDE };

#if defined(__AVX512F__) && defined(__AVX512BW__)
typedef struct {
    __m512 a, b;
} fastnorm_pair;

static inline fastnorm_pair fastnorm_load_bfloat(const fastnorm_bfloat *p)
{
    __m512i both = _mm512_loadu_si512(p), upper = _mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000));
    fastnorm_pair x = {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), _mm512_castsi512_ps(upper)};
    return x;
}

/* To nearest even: a half, and 1 more where the upper half is odd, carry into it. Not for a NaN, which would become
   something else. */
static inline __m512i fastnorm_rounded_to_bfloat(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __mmask16 is_number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
    __mmask16 is_odd = _mm512_mask_test_epi32_mask(is_number, bits, _mm512_set1_epi32(0x10000));
    bits = _mm512_mask_add_epi32(bits, is_number, bits, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(bits, is_odd, bits, _mm512_set1_epi32(1));
}

static inline void fastnorm_store_bfloat(fastnorm_bfloat *p, fastnorm_pair x)
{
    __m512i lower = _mm512_srli_epi32(fastnorm_rounded_to_bfloat(x.a), 16);
    _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaa, lower, fastnorm_rounded_to_bfloat(x.b)));
}
#else
typedef struct {
    __m256 a, b;
} fastnorm_pair;

static inline fastnorm_pair fastnorm_load_bfloat(const fastnorm_bfloat *p)
{
    __m256i both = _mm256_loadu_si256((const __m256i *)p);
    __m256i upper = _mm256_blend_epi16(_mm256_setzero_si256(), both, 0xaa);
    fastnorm_pair x = {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), _mm256_castsi256_ps(upper)};
    return x;
}

static inline void fastnorm_store_bfloat(fastnorm_bfloat *p, fastnorm_pair x)
{
    _mm256_storeu_si256((__m256i *)p, fastnorm_bfloats_in_turn(x.a, x.b, 1));
}
#endif

static inline fastnorm_pair fastnorm_load_half(const fastnorm_half *p)
{
    fastnorm_pair x = {fastnorm_wide_from_half(p), fastnorm_wide_from_half(p + FASTNORM_WIDE)};
    return x;
}

static inline void fastnorm_store_half(fastnorm_half *p, fastnorm_pair x)
{
    fastnorm_wide_to_half(x.a, p), fastnorm_wide_to_half(x.b, p + FASTNORM_WIDE);
}

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

#endif
