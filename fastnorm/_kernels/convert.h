/* Between the types that arrays have and those that kernels compute in. Every rounding is to nearest even, and the same
   on every instruction set. Elements may lie at any address. */
#ifndef FASTNORM_CONVERT_H
#define FASTNORM_CONVERT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "memory.h"

typedef uint16_t fastnorm_half, fastnorm_bfloat;

static inline uint32_t fastnorm_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float fastnorm_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* float16: 1 sign, 5 exponent, 10 fraction bits. Its exponents are 112 below float's, which a product with a power of
   two makes good, subnormal numbers included. */
static inline float fastnorm_from_half(fastnorm_half h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    uint32_t finite = fastnorm_bits(fastnorm_float(rest) * 0x1p112f), special = rest | 0x7f800000;
    uint32_t quiet = rest > 0x0f800000 ? 0x400000 : 0; /* what the processor's instruction does to a NaN */
    return fastnorm_float(sign | (rest >= 0x0f800000 ? special | quiet : finite));
}

static inline fastnorm_half fastnorm_to_half(float x)
{
    uint32_t bits = fastnorm_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    /* Below 2^-14 the last digit is worth 2^-24: that of a float between 0.5 and 1. */
    uint32_t tiny = fastnorm_bits(fastnorm_float(rest) + 0.5f) - 0x3f000000;
    uint32_t normal = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
    uint32_t nan = 0x7e00 | (rest >> 13 & 0x3ff);
    uint32_t magnitude = rest < 0x38800000 ? tiny : normal;
    magnitude = rest >= 0x47800000 ? 0x7c00 : magnitude; /* 2^16 and more; what rounds up to that is infinite too */
    return (fastnorm_half)(sign | (rest > 0x7f800000 ? nan : magnitude));
}

/* bfloat16: the upper half of a float. */
static inline float fastnorm_from_bfloat(fastnorm_bfloat b)
{
    return fastnorm_float((uint32_t)b << 16);
}

static inline fastnorm_bfloat fastnorm_to_bfloat(float x)
{
    uint32_t bits = fastnorm_bits(x);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1), nan = bits | 0x400000;
    return (fastnorm_bfloat)(((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded) >> 16);
}

/* A double to a float that rounds to a shorter type as the double would: of the two floats next to it the odd one. */
static inline float fastnorm_to_odd(double x)
{
    float nearest = (float)x;
    uint32_t bits = fastnorm_bits(nearest);
    if ((double)nearest != x && !(bits & 1) && nearest - nearest == 0)
        bits += (x > 0 ? x > nearest : x < nearest) ? 1 : -1;
    return fastnorm_float(bits);
}

static inline fastnorm_half fastnorm_double_to_half(double x) { return fastnorm_to_half(fastnorm_to_odd(x)); }

static inline fastnorm_bfloat fastnorm_double_to_bfloat(double x) { return fastnorm_to_bfloat(fastnorm_to_odd(x)); }

/* n elements, `stride` bytes apart in an array, beside each other in a kernel. Where they are so in the array too, those
   `ahead` bytes further on are asked for in passing: they come while these are computed. */
#define FASTNORM_READ(name, stored, real, decode)                                                                    \
    FASTNORM_ONCE void fastnorm_read_##name##_##real(                                                                \
        const void *from, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t ahead, real *restrict to)                         \
    {                                                                                                                \
        enum { SIZE = sizeof(stored), SOME = 256 };                                                                  \
        const char *p = (const char *)from;                                                                          \
        ptrdiff_t i = 0;                                                                                             \
        stored s;                                                                                                    \
        if (stride == SIZE)                                                                                          \
            while (i < n) {                                                                                          \
                const ptrdiff_t stop = n - i < SOME ? n : i + SOME;                                                  \
                if (ahead) fastnorm_prefetch(p + i * SIZE + ahead, (stop - i) * SIZE);                               \
                for (; i < stop; ++i) memcpy(&s, p + i * SIZE, SIZE), to[i] = decode(s);                             \
            }                                                                                                        \
        else                                                                                                         \
            for (; i < n; ++i) memcpy(&s, p + i * stride, SIZE), to[i] = decode(s);                                  \
    }

#define FASTNORM_WRITE(name, stored, real, encode)                                                                   \
    FASTNORM_ONCE void fastnorm_write_##name##_##real(                                                               \
        const real *restrict from, ptrdiff_t n, void *to, ptrdiff_t stride)                                          \
    {                                                                                                                \
        char *p = (char *)to;                                                                                        \
        ptrdiff_t i;                                                                                                 \
        stored s;                                                                                                    \
        if (stride == sizeof s)                                                                                      \
            for (i = 0; i < n; ++i) s = encode(from[i]), memcpy(p + i * (ptrdiff_t)sizeof s, &s, sizeof s);          \
        else                                                                                                         \
            for (i = 0; i < n; ++i) s = encode(from[i]), memcpy(p + i * stride, &s, sizeof s);                       \
    }

/* The same where nothing changes. */
#define FASTNORM_COPY(real)                                                                                          \
    FASTNORM_ONCE void fastnorm_read_##real##_##real(                                                                \
        const void *from, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t ahead, real *restrict to)                         \
    {                                                                                                                \
        const char *p = (const char *)from;                                                                          \
        ptrdiff_t i;                                                                                                 \
        if (stride == sizeof *to && ahead) fastnorm_prefetch(p + ahead, n * sizeof *to);                             \
        if (stride == sizeof *to) memcpy(to, p, n * sizeof *to);                                                     \
        else                                                                                                         \
            for (i = 0; i < n; ++i) memcpy(to + i, p + i * stride, sizeof *to);                                      \
    }                                                                                                                \
    FASTNORM_ONCE void fastnorm_write_##real##_##real(                                                               \
        const real *restrict from, ptrdiff_t n, void *to, ptrdiff_t stride)                                          \
    {                                                                                                                \
        char *p = (char *)to;                                                                                        \
        ptrdiff_t i;                                                                                                 \
        if (stride == sizeof *from) memcpy(p, from, n * sizeof *from);                                               \
        else                                                                                                         \
            for (i = 0; i < n; ++i) memcpy(p + i * stride, from + i, sizeof *from);                                  \
    }

FASTNORM_COPY(float)
FASTNORM_COPY(double)
FASTNORM_READ(float, float, double, )
FASTNORM_READ(double, double, float, (float))
FASTNORM_READ(bfloat, fastnorm_bfloat, double, fastnorm_from_bfloat)
FASTNORM_READ(half, fastnorm_half, double, fastnorm_from_half)

FASTNORM_WRITE(float, float, double, (float))
FASTNORM_WRITE(double, double, float, )
FASTNORM_WRITE(bfloat, fastnorm_bfloat, double, fastnorm_double_to_bfloat)
FASTNORM_WRITE(half, fastnorm_half, double, fastnorm_double_to_half)

/* Compilers do not turn the functions for float16 into the instructions that do the same, and make heavy weather of
   rounding to bfloat16: there, upper and lower halves are taken apart, and the upper is 1 more where the lower is above
   a half, or is a half and the upper odd. That makes something else of a NaN; whether there is one is to be seen. */
#if defined(__AVX2__) && defined(__F16C__)
static inline __m256 fastnorm_eight_from_half(const void *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

static inline __m256 fastnorm_eight_from_bfloat(const void *from)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* In turns of x and of y. What arithmetic makes of a NaN is quiet: where that is all there can be, not to round it up is
   enough. */
static inline __m256i fastnorm_bfloats_in_turn(__m256 x, __m256 y, int are_quiet)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i a = _mm256_castps_si256(x), b = _mm256_castps_si256(y);
    __m256i lower = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
    __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
    __m256i above = _mm256_subs_epu16(lower, _mm256_andnot_si256(upper, one)); /* its sign says so */
    __m256i up = _mm256_srli_epi16(above, 15), size = _mm256_and_si256(upper, _mm256_set1_epi16(0x7fff));
    if (are_quiet) up = _mm256_andnot_si256(_mm256_cmpgt_epi16(size, _mm256_set1_epi16(0x7f80)), up);
    return _mm256_add_epi16(upper, up);
}
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define FASTNORM_IS_WIDE 1
enum { FASTNORM_WIDE = 16 }; /* elements at a time; twice as many to bfloat16 */

static inline __m512 fastnorm_wide_from_half(const void *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

static inline __m512 fastnorm_wide_from_bfloat(const void *from)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void fastnorm_read_halves(const void *from, float *to)
{
    _mm512_storeu_ps(to, fastnorm_wide_from_half(from));
}

static inline void fastnorm_read_bfloats(const void *from, float *to)
{
    _mm512_storeu_ps(to, fastnorm_wide_from_bfloat(from));
}

static inline void fastnorm_wide_to_half(__m512 x, void *to)
{
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline void fastnorm_write_halves(const float *from, void *to)
{
    fastnorm_wide_to_half(_mm512_loadu_ps(from), to);
}

typedef __mmask16 fastnorm_nans;

static inline int fastnorm_any(fastnorm_nans seen) { return seen != 0; }

static inline void fastnorm_write_bfloats(const float *from, void *to, fastnorm_nans *seen)
{
    const __m512i one = _mm512_set1_epi16(1), even = _mm512_set_epi16(
        62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32,
        30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512 x = _mm512_loadu_ps(from), y = _mm512_loadu_ps(from + FASTNORM_WIDE);
    __m512i a = _mm512_castps_si512(x), b = _mm512_castps_si512(y);
    __m512i lower = _mm512_permutex2var_epi16(a, even, b);
    __m512i upper = _mm512_permutex2var_epi16(a, _mm512_or_si512(even, one), b);
    __m512i remainder = _mm512_adds_epu16(lower, _mm512_and_si512(upper, one));
    __mmask32 up = _mm512_cmpgt_epu16_mask(remainder, _mm512_set1_epi16((short)0x8000));
    _mm512_storeu_si512(to, _mm512_mask_add_epi16(upper, up, upper, one));
    *seen |= _mm512_cmp_ps_mask(x, y, _CMP_UNORD_Q);
}
#elif defined(__AVX2__) && defined(__F16C__)
#define FASTNORM_IS_WIDE 1
enum { FASTNORM_WIDE = 8 }; /* elements at a time; twice as many to bfloat16 */

#define fastnorm_wide_from_half fastnorm_eight_from_half
#define fastnorm_wide_from_bfloat fastnorm_eight_from_bfloat

static inline void fastnorm_read_halves(const void *from, float *to)
{
    _mm256_storeu_ps(to, fastnorm_eight_from_half(from));
}

static inline void fastnorm_read_bfloats(const void *from, float *to)
{
    _mm256_storeu_ps(to, fastnorm_eight_from_bfloat(from));
}

static inline void fastnorm_wide_to_half(__m256 x, void *to)
{
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline void fastnorm_write_halves(const float *from, void *to)
{
    fastnorm_wide_to_half(_mm256_loadu_ps(from), to);
}

typedef __m256 fastnorm_nans;

static inline int fastnorm_any(fastnorm_nans seen) { return _mm256_movemask_ps(seen); }

static inline void fastnorm_write_bfloats(const float *from, void *to, fastnorm_nans *seen)
{
    const __m256i order = _mm256_setr_epi8(
        0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256 x = _mm256_loadu_ps(from), y = _mm256_loadu_ps(from + FASTNORM_WIDE);
    __m256i in_order = _mm256_shuffle_epi8(fastnorm_bfloats_in_turn(x, y, 0), order);
    _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(in_order, 0xd8));
    *seen = _mm256_or_ps(*seen, _mm256_cmp_ps(x, y, _CMP_UNORD_Q));
}
#else
#define FASTNORM_IS_WIDE 0
#endif

/* Whether kernels may take runs of 16 bits as they are: run_sums.h, maps.h. */
#if defined(__GNUC__)
#define FASTNORM_TAKES_16_BITS FASTNORM_IS_WIDE
#else
#define FASTNORM_TAKES_16_BITS 0
#endif

/* A loop of one vector would spend half of its time on counting. What is left over is part of a last vector, which does
   some elements again. */
#if defined(__GNUC__)
#define FASTNORM_UNROLL_FOUR _Pragma("GCC unroll 4")
#else
#define FASTNORM_UNROLL_FOUR
#endif

#if FASTNORM_IS_WIDE
#define FASTNORM_READ_WIDE(name, vector)                                                                             \
    FASTNORM_ONCE void fastnorm_read_##name##_float(                                                                 \
        const void *from, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t ahead, float *restrict to)                        \
    {                                                                                                                \
        enum { SIZE = 2, IN_LINE = FASTNORM_LINE / SIZE };                                                           \
        const char *p = (const char *)from;                                                                          \
        ptrdiff_t i = 0, j;                                                                                          \
        fastnorm_##name stored;                                                                                      \
        if (stride == SIZE) {                                                                                        \
            for (; i <= n - IN_LINE; i += IN_LINE) {                                                                 \
                FASTNORM_PREFETCH(p + i * SIZE + ahead, 3);                                                          \
                for (j = i; j < i + IN_LINE; j += FASTNORM_WIDE) vector(p + j * SIZE, to + j);                       \
            }                                                                                                        \
            for (; i <= n - FASTNORM_WIDE; i += FASTNORM_WIDE) vector(p + i * SIZE, to + i);                         \
            if (i < n && n >= FASTNORM_WIDE) i = n, vector(p + (n - FASTNORM_WIDE) * SIZE, to + n - FASTNORM_WIDE);   \
        }                                                                                                            \
        for (; i < n; ++i) memcpy(&stored, p + i * stride, SIZE), to[i] = fastnorm_from_##name(stored);              \
    }

FASTNORM_READ_WIDE(half, fastnorm_read_halves)
FASTNORM_READ_WIDE(bfloat, fastnorm_read_bfloats)

FASTNORM_ONCE void fastnorm_write_half_float(const float *restrict from, ptrdiff_t n, void *to, ptrdiff_t stride)
{
    char *p = (char *)to;
    ptrdiff_t i = 0;
    fastnorm_half stored;
    if (stride == sizeof stored) {
        FASTNORM_UNROLL_FOUR
        for (; i <= n - FASTNORM_WIDE; i += FASTNORM_WIDE) fastnorm_write_halves(from + i, p + 2 * i);
        if (i < n && n >= FASTNORM_WIDE)
            i = n, fastnorm_write_halves(from + n - FASTNORM_WIDE, p + 2 * (n - FASTNORM_WIDE));
    }
    for (; i < n; ++i) stored = fastnorm_to_half(from[i]), memcpy(p + i * stride, &stored, sizeof stored);
}

FASTNORM_ONCE void fastnorm_write_bfloat_float(const float *restrict from, ptrdiff_t n, void *to, ptrdiff_t stride)
{
    enum { STEP = 2 * FASTNORM_WIDE };
    char *p = (char *)to;
    ptrdiff_t i = 0;
    fastnorm_bfloat stored;
    fastnorm_nans seen = {0};
    if (stride == sizeof stored) {
        FASTNORM_UNROLL_FOUR
        for (; i <= n - STEP; i += STEP) fastnorm_write_bfloats(from + i, p + 2 * i, &seen);
        if (i < n && n >= STEP) i = n, fastnorm_write_bfloats(from + n - STEP, p + 2 * (n - STEP), &seen);
    }
    if (fastnorm_any(seen)) i = 0; /* all again */
    for (; i < n; ++i) stored = fastnorm_to_bfloat(from[i]), memcpy(p + i * stride, &stored, sizeof stored);
}
#else
FASTNORM_READ(half, fastnorm_half, float, fastnorm_from_half)
FASTNORM_READ(bfloat, fastnorm_bfloat, float, fastnorm_from_bfloat)
FASTNORM_WRITE(half, fastnorm_half, float, fastnorm_to_half)
FASTNORM_WRITE(bfloat, fastnorm_bfloat, float, fastnorm_to_bfloat)
#endif

#endif
