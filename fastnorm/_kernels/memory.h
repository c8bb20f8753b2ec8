/* How bytes travel: asked for ahead of their use, and written past the cache where they would not stay in it. */
#ifndef FASTNORM_MEMORY_H
#define FASTNORM_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define FASTNORM_CAN_STREAM 1
#else
#define FASTNORM_CAN_STREAM 0
#endif

#define FASTNORM_LINE 64   /* bytes in a cache line */
#define FASTNORM_ASKED 512 /* of a row that maps of columns ask for at a time: more wait for each other */

#if defined(__GNUC__) || defined(__clang__)
#define FASTNORM_PREFETCH(p, level) __builtin_prefetch(p, 0, level)
/* GCC removes calls of a function that does nothing but ask for memory, as if it did nothing. This it keeps. */
#define FASTNORM_HAS_EFFECT() __asm__ volatile("")
#define FASTNORM_PRAGMA(text) _Pragma(#text)
#define FASTNORM_UNROLL_BY(times) FASTNORM_PRAGMA(GCC unroll times)
/* Large, and called from several places. */
#ifdef __clang__
#define FASTNORM_ONCE static __attribute__((noinline, unused))
#else
#define FASTNORM_ONCE static __attribute__((noinline, noclone, unused))
#endif
#else
#define FASTNORM_PREFETCH(p, level) ((void)(p))
#define FASTNORM_HAS_EFFECT() ((void)0)
#define FASTNORM_UNROLL_BY(times)
#define FASTNORM_ONCE static inline
#endif

/* A Zen 3 fetches short rows sooner if it is not asked: requests seem to take the few places where loads from L2 wait. On a
   Zen 4 and a Granite Rapids, which have AVX-512, they gain. */
#if defined(__AVX512F__)
#define FASTNORM_FETCHES_ALONE 0
#else
#define FASTNORM_FETCHES_ALONE 1
#endif

/* What is wanted next. */
static inline void fastnorm_prefetch(const void *memory, ptrdiff_t num_bytes)
{
    const char *p = (const char *)memory;
    ptrdiff_t i;
    for (i = 0; i < num_bytes; i += FASTNORM_LINE) FASTNORM_PREFETCH(p + i, 3);
    FASTNORM_HAS_EFFECT();
}

/* What is wanted after something that fills L1: into L2. */
static inline void fastnorm_prefetch_far(const void *memory, ptrdiff_t num_bytes)
{
    const char *p = (const char *)memory;
    ptrdiff_t i;
    for (i = 0; i < num_bytes; i += FASTNORM_LINE) FASTNORM_PREFETCH(p + i, 2);
    FASTNORM_HAS_EFFECT();
}

#if FASTNORM_CAN_STREAM
static inline void fastnorm_stream_line(char *to, const char *from)
{
    int i;
#if defined(__AVX__)
    for (i = 0; i < FASTNORM_LINE; i += 32)
        _mm256_stream_si256((__m256i *)(to + i), _mm256_loadu_si256((const __m256i *)(from + i)));
#else
    for (i = 0; i < FASTNORM_LINE; i += 16)
        _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
#endif
}
#endif

/* Where a piece of a result is computed that is then streamed: it stays in L1. A store that crosses a page waits until
   all streaming stores before it are done, which halves the speed; so what is computed in the sink either stays in its
   first page or begins with a line, and then in whole lines. */
#define FASTNORM_PAGE 4096
#define FASTNORM_SINK 8192
typedef struct {
    _Alignas(FASTNORM_PAGE) char bytes[FASTNORM_PAGE + FASTNORM_SINK];
} fastnorm_sink;

/* From where p is in its page to where y is, bytes: half a page or less, either way. Arrays of whole pages that are
   allocated one after another are some bytes apart, and so are their rows, all along. */
static inline ptrdiff_t fastnorm_apart(const void *p, const void *y)
{
    return (ptrdiff_t)(((uintptr_t)y - (uintptr_t)p + FASTNORM_PAGE / 2) % FASTNORM_PAGE) - FASTNORM_PAGE / 2;
}

#define FASTNORM_NEAR 256 /* bytes */
static inline ptrdiff_t fastnorm_nearest(const void *dy, const void *x, const void *y)
{
    const ptrdiff_t a = fastnorm_apart(dy, y), b = fastnorm_apart(x, y);
    return (a < 0 ? -a : a) < (b < 0 ? -b : b) ? a : b;
}

/* Whether a run that goes from two places to y is better gone through from its end. Where y begins soon after one of them
   in its page, each load waits for the store before it, as if it were to the same place. */
static inline int fastnorm_from_end(const void *dy, const void *x, const void *y)
{
    const ptrdiff_t nearest = fastnorm_nearest(dy, x, y);
    return nearest > 0 && nearest < FASTNORM_NEAR;
}

/* Of 32 bytes and more: a loop over shorter ones waits for its instructions, not for L1. */
#if defined(__AVX__)
#define FASTNORM_HAS_WIDE_VECTORS 1
#else
#define FASTNORM_HAS_WIDE_VECTORS 0
#endif

/* How many rows a loop goes through together. If they are whole pages apart they share a set of lines in L1, which has
   eight or so; four rows of three arrays that are near each other in their pages need twelve. */
static inline ptrdiff_t fastnorm_rows_abreast(const void *dy, const void *x, const void *y, ptrdiff_t row_bytes)
{
    const ptrdiff_t nearest = fastnorm_nearest(dy, x, y);
    const int is_near = nearest > -FASTNORM_NEAR && nearest < FASTNORM_NEAR;
    return FASTNORM_HAS_WIDE_VECTORS && row_bytes % FASTNORM_PAGE == 0 && is_near ? 2 : 4;
}

/* A copy whose whole lines go to memory without being read first. The pool issues the fence. */
FASTNORM_ONCE void fastnorm_stream(char *to, const char *from, ptrdiff_t num_bytes)
{
    ptrdiff_t begun = (ptrdiff_t)((uintptr_t)to % FASTNORM_LINE), head = begun ? FASTNORM_LINE - begun : 0;
    if (head > num_bytes) head = num_bytes;
    if (head) memcpy(to, from, head);
    to += head, from += head, num_bytes -= head;
#if FASTNORM_CAN_STREAM
    FASTNORM_UNROLL_BY(4)
    for (; num_bytes >= FASTNORM_LINE; num_bytes -= FASTNORM_LINE) {
        fastnorm_stream_line(to, from);
        to += FASTNORM_LINE, from += FASTNORM_LINE;
    }
#endif
    if (num_bytes) memcpy(to, from, num_bytes);
}

#endif
