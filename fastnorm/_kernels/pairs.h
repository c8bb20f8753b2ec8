/* Two vectors of elements of 16 bits, which become float as they are loaded and are rounded as they are stored. Of bfloat16
   every second is in the one, and the others are in the other, since that takes no instruction that moves elements about,
   of which many CPUs do one at a time; so are the floats that go with them. */
#ifndef FASTNORM_PAIRS_H
#define FASTNORM_PAIRS_H

#include "lanes.h"

/* Rows of elements, `stride` of them apart. */
typedef struct {
    const uint16_t *data;
    ptrdiff_t stride;
} fastnorm_rows;

#if FASTNORM_TAKES_16_BITS
enum { FASTNORM_AT_ONCE = 2 * FASTNORM_WIDE };

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define fastnorm_load_floats _mm512_loadu_ps
#define fastnorm_store_floats _mm512_storeu_ps
typedef __m512 fastnorm_wide;
typedef struct {
    fastnorm_wide a, b;
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

static inline fastnorm_pair fastnorm_floats_of_bfloats(const float *p)
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    __m512 lower = _mm512_loadu_ps(p), upper = _mm512_loadu_ps(p + FASTNORM_WIDE);
    fastnorm_pair x = {_mm512_permutex2var_ps(lower, even, upper), _mm512_permutex2var_ps(lower, odd, upper)};
    return x;
}

static inline void fastnorm_keep_floats_of_bfloats(float *p, fastnorm_pair x)
{
    const __m512i lower = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
    _mm512_storeu_ps(p, _mm512_permutex2var_ps(x.a, lower, x.b));
    _mm512_storeu_ps(p + FASTNORM_WIDE, _mm512_permutex2var_ps(x.a, upper, x.b));
}
#else
#define fastnorm_load_floats _mm256_loadu_ps
#define fastnorm_store_floats _mm256_storeu_ps
typedef __m256 fastnorm_wide;
typedef struct {
    fastnorm_wide a, b;
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

static inline fastnorm_wide fastnorm_quarters_in_order(__m256 x)
{
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8));
}

static inline fastnorm_pair fastnorm_floats_of_bfloats(const float *p)
{
    __m256 lower = _mm256_loadu_ps(p), upper = _mm256_loadu_ps(p + FASTNORM_WIDE);
    fastnorm_pair x = {
        fastnorm_quarters_in_order(_mm256_shuffle_ps(lower, upper, 0x88)),
        fastnorm_quarters_in_order(_mm256_shuffle_ps(lower, upper, 0xdd)),
    };
    return x;
}

static inline void fastnorm_keep_floats_of_bfloats(float *p, fastnorm_pair x)
{
    __m256 a = _mm256_unpacklo_ps(x.a, x.b), b = _mm256_unpackhi_ps(x.a, x.b);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(a, b, 0x20));
    _mm256_storeu_ps(p + FASTNORM_WIDE, _mm256_permute2f128_ps(a, b, 0x31));
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

static inline fastnorm_pair fastnorm_floats_of_halves(const float *p)
{
    fastnorm_pair x = {fastnorm_load_floats(p), fastnorm_load_floats(p + FASTNORM_WIDE)};
    return x;
}

static inline void fastnorm_keep_floats_of_halves(float *p, fastnorm_pair x)
{
    fastnorm_store_floats(p, x.a), fastnorm_store_floats(p + FASTNORM_WIDE, x.b);
}

#define FASTNORM_PAIR(operation, x, y) ((fastnorm_pair){(x).a operation (y).a, (x).b operation (y).b})

FASTNORM_INLINE fastnorm_pair fastnorm_load(int is_half, const uint16_t *p)
{
    return is_half ? fastnorm_load_half(p) : fastnorm_load_bfloat(p);
}

FASTNORM_INLINE fastnorm_pair fastnorm_elements(int is_half, fastnorm_rows x, ptrdiff_t row, ptrdiff_t column)
{
    return fastnorm_load(is_half, x.data + row * x.stride + column);
}

FASTNORM_INLINE void fastnorm_store(int is_half, uint16_t *p, fastnorm_pair x)
{
    is_half ? fastnorm_store_half(p, x) : fastnorm_store_bfloat(p, x);
}

FASTNORM_INLINE fastnorm_pair fastnorm_floats(int is_half, const float *p)
{
    return is_half ? fastnorm_floats_of_halves(p) : fastnorm_floats_of_bfloats(p);
}

FASTNORM_INLINE void fastnorm_keep_floats(int is_half, float *p, fastnorm_pair x)
{
    is_half ? fastnorm_keep_floats_of_halves(p, x) : fastnorm_keep_floats_of_bfloats(p, x);
}

/* From element i on, or `absent` where there are none. */
FASTNORM_INLINE fastnorm_pair fastnorm_floats_or(int is_half, const float *p, ptrdiff_t i, float absent)
{
    const fastnorm_wide wide = absent - (fastnorm_wide){0};
    const fastnorm_pair pair = {wide, wide};
    return p ? fastnorm_floats(is_half, p + i) : pair;
}
#endif

#endif
