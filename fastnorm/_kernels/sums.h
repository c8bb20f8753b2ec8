/* The sums of lanes.h, which includes this for each `real`.

   `ahead`: how many elements further on memory is asked for meanwhile, or 0. */

#define vector FASTNORM_NAME(vector)
#define eight FASTNORM_NAME(eight)
#define quad FASTNORM_NAME(quad)
#define lanes FASTNORM_NAME(lanes)

typedef FASTNORM_VECTOR_OF(real, FASTNORM_VECTOR) vector;
typedef FASTNORM_VECTOR_OF(real, 8 * sizeof(real)) eight;
typedef FASTNORM_VECTOR_OF(real, 4 * sizeof(real)) quad;

#define WIDTH ((ptrdiff_t)(sizeof(vector) / sizeof(real)))
#define VECTORS ((ptrdiff_t)(FASTNORM_LANES * sizeof(real) / sizeof(vector)))
#define EIGHTS ((ptrdiff_t)(8 * sizeof(real) / sizeof(eight)))
#define IN_EIGHT ((ptrdiff_t)(sizeof(eight) / sizeof(real)))
#define QUADS ((ptrdiff_t)(4 * sizeof(real) / sizeof(quad)))

#define EACH(k, count) FASTNORM_UNROLL for (k = 0; k < (count); ++k)

/* As FASTNORM_ALL_LANES elements of `real`. */
typedef struct {
    vector main[FASTNORM_LANES * sizeof(real) / sizeof(vector)];
    eight tail[FASTNORM_TAIL * sizeof(real) / sizeof(eight)];
    real rest;
} lanes;

FASTNORM_INLINE lanes FASTNORM_NAME(no_lanes)(void)
{
    lanes zero;
    memset(&zero, 0, sizeof zero);
    return zero;
}

FASTNORM_INLINE void FASTNORM_NAME(add_lanes)(lanes *to, const lanes *more)
{
    ptrdiff_t k;
    EACH(k, VECTORS) to->main[k] += more->main[k];
    EACH(k, EIGHTS) to->tail[k] += more->tail[k];
    to->rest += more->rest;
}

/* A tree: halves are added until four lanes are left, which end in double, and the rest. */
FASTNORM_INLINE void FASTNORM_NAME(halve_lanes)(lanes a, quad *last)
{
    ptrdiff_t k, half;
    eight e[16 * sizeof(real) / sizeof(eight)];
    quad q[8 * sizeof(real) / sizeof(quad)];
    FASTNORM_UNROLL
    for (half = VECTORS / 2; half * WIDTH >= 8; half /= 2) {
        EACH(k, half) a.main[k] += a.main[half + k];
    }
    memcpy(e, a.main, WIDTH == 16 ? sizeof e : sizeof e / 2);
    if (WIDTH == 16) {
        EACH(k, EIGHTS) e[k] += e[EIGHTS + k];
    }
    EACH(k, EIGHTS) e[k] += a.tail[k];
    memcpy(q, e, sizeof q);
    EACH(k, QUADS) last[k] = q[k] + q[QUADS + k];
}

/* In registers: a vector that is loaded from what several stores have written waits until all of them are done, and behind
   streaming stores that is long. */
FASTNORM_INLINE double FASTNORM_NAME(fold_lanes)(lanes a)
{
    quad last[QUADS];
    FASTNORM_NAME(halve_lanes)(a, last);
#ifdef FASTNORM_HAS_VECTORS
    {
        const fastnorm_four four = __builtin_convertvector(*last, fastnorm_four);
        fastnorm_two two[2];
        memcpy(two, &four, sizeof two);
        two[0] += two[1];
        return (two[0][0] + two[0][1]) + a.rest;
    }
#else
    return (((double)last[0] + last[2]) + ((double)last[1] + last[3])) + a.rest;
#endif
}

/* Of FASTNORM_TOGETHER rows what is left of their lanes, FASTNORM_FOLDED numbers, is kept side by side, so that what follows
   is done to all of the rows at once. */
FASTNORM_INLINE void FASTNORM_NAME(fold_partly)(lanes a, real *folded)
{
    quad last[QUADS];
    real each[4];
    ptrdiff_t k;
    FASTNORM_NAME(halve_lanes)(a, last);
    memcpy(each, last, sizeof each);
    for (k = 0; k < 4; ++k) folded[k * FASTNORM_TOGETHER] = each[k];
    folded[4 * FASTNORM_TOGETHER] = a.rest;
}

/* By vectors: `rep stos`, which compilers set so many bytes with, is slow to begin: a sixth of the sums of short rows. */
FASTNORM_INLINE void FASTNORM_NAME(clear_folds)(real *folded)
{
    const eight zero = {0};
    ptrdiff_t k;
    for (k = 0; k < FASTNORM_FOLDED * FASTNORM_TOGETHER; k += IN_EIGHT) *(eight *)(folded + k) = zero;
}

FASTNORM_INLINE double FASTNORM_NAME(end_fold)(const real *folded)
{
    const real *a = folded, *b = a + FASTNORM_TOGETHER, *c = b + FASTNORM_TOGETHER, *d = c + FASTNORM_TOGETHER;
    return (((double)*a + *c) + ((double)*b + *d)) + d[FASTNORM_TOGETHER];
}

FASTNORM_ONCE void FASTNORM_NAME(end_folds)(const real *folded, ptrdiff_t rows, double *sums)
{
    double all[FASTNORM_TOGETHER];
    ptrdiff_t k;
    for (k = 0; k < FASTNORM_TOGETHER; ++k) all[k] = FASTNORM_NAME(end_fold)(folded + k);
    fastnorm_copy_some(all, rows, sums);
}

/* The mean of each row and Σ(x - mean)² from folded Σ(x - centre) and Σ(x - centre)². Returns a set: bit k says that the
   centre of row k is more than a standard deviation from its mean. */
FASTNORM_ONCE unsigned FASTNORM_NAME(end_moments)(
    const real *sums, const real *squares, const real *centre, ptrdiff_t rows, ptrdiff_t n, double *mean, double *m2)
{
    double all[FASTNORM_TOGETHER], m[FASTNORM_TOGETHER], far[FASTNORM_TOGETHER];
    unsigned off = 0;
    ptrdiff_t k;
    for (k = 0; k < FASTNORM_TOGETHER; ++k) {
        const double total = FASTNORM_NAME(end_fold)(sums + k);
        m[k] = FASTNORM_NAME(end_fold)(squares + k);
        far[k] = fastnorm_how_far_off(total, m[k], n);
        fastnorm_settle(centre[k], total, n, all + k, m + k);
    }
    for (k = 0; k < rows; ++k) off |= (unsigned)(far[k] > 0) << k;
    fastnorm_copy_some(all, rows, mean), fastnorm_copy_some(m, rows, m2);
    return off;
}

FASTNORM_INLINE double FASTNORM_NAME(fold)(const real *a)
{
    lanes copy = FASTNORM_NAME(no_lanes)(); /* a memcpy would become `rep movs`: see clear_folds */
    FASTNORM_NAME(add_lanes)(&copy, (const lanes *)a);
    return FASTNORM_NAME(fold_lanes)(copy);
}

/* Sums over a run of `real`, */
#define element real
#define FASTNORM_ENTRY FASTNORM_INLINE
#define FASTNORM_RUN FASTNORM_NAME
#define VECTOR_AT(p) (*(const vector *)(p))
#define EIGHT_AT(p) (*(const eight *)(p))
#define ONE_AT(p) (*(p))
#include "run_sums.h"

/* and of 16 bits, which become `real` as they are loaded. */
#if FASTNORM_OF_16_BITS
#define element fastnorm_half
#define FASTNORM_ENTRY FASTNORM_ONCE
#define FASTNORM_RUN(name) fastnorm_##name##_half
#define VECTOR_AT(p) ((vector)fastnorm_wide_from_half(p))
#define EIGHT_AT(p) ((eight)fastnorm_eight_from_half(p))
#define ONE_AT(p) fastnorm_from_half(*(p))
#include "run_sums.h"

#define element fastnorm_bfloat
#define FASTNORM_ENTRY FASTNORM_ONCE
#define FASTNORM_RUN(name) fastnorm_##name##_bfloat
#define VECTOR_AT(p) ((vector)fastnorm_wide_from_bfloat(p))
#define EIGHT_AT(p) ((eight)fastnorm_eight_from_bfloat(p))
#define ONE_AT(p) fastnorm_from_bfloat(*(p))
#include "run_sums.h"
#endif

#include "turned_sums.h"

/* Rows of a tile, side by side: element i of row j is tile[i * FASTNORM_LANES + j]. Short sums of eight are added to
   long ones, which for n < 48 leaves no more roundings than the lanes of a longer row. */

#define EACH_SHORT(i, start, stop, n) \
    for (i = start, stop = n - start < FASTNORM_TAIL ? n : start + FASTNORM_TAIL; i < stop; ++i)

/* Σx of each row */
FASTNORM_INLINE void FASTNORM_NAME(tile_sums)(const real *tile, ptrdiff_t n, real *sums)
{
    vector a[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}};
    ptrdiff_t start, stop, i, k;
    for (start = 0; start < n; start += FASTNORM_TAIL) {
        vector s[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}};
        EACH_SHORT(i, start, stop, n)
        EACH(k, VECTORS) s[k] += ((const vector *)(tile + i * FASTNORM_LANES))[k];
        EACH(k, VECTORS) a[k] += s[k];
    }
    memcpy(sums, a, sizeof a);
}

/* Σ(x - centre) and Σ(x - centre)² of each row, which has a centre of its own */
FASTNORM_INLINE void FASTNORM_NAME(tile_centred_sums)(
    const real *tile, ptrdiff_t n, const real *centre, real *sums, real *squares)
{
    vector a[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}}, b[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}}, c[FASTNORM_LANES * sizeof(real) / sizeof(vector)];
    ptrdiff_t start, stop, i, k;
    memcpy(c, centre, sizeof c);
    for (start = 0; start < n; start += FASTNORM_TAIL) {
        vector s[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}}, q[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}};
        EACH_SHORT(i, start, stop, n)
        EACH(k, VECTORS) {
            vector d = ((const vector *)(tile + i * FASTNORM_LANES))[k] - c[k];
            s[k] += d, q[k] += d * d;
        }
        EACH(k, VECTORS) a[k] += s[k], b[k] += q[k];
    }
    memcpy(sums, a, sizeof a), memcpy(squares, b, sizeof b);
}

/* Σh and Σ(h·x̂) of each row, with h = dy·gamma, or dy where there is no gamma, and x̂ = (x - high)·scale + shift, or
   x·scale where it is not centred */
FASTNORM_INLINE void FASTNORM_NAME(tile_products)(
    const real *dy, const real *x, const real *gamma, ptrdiff_t n, const real *high, const real *scale,
    const real *shift, int centred, real *sums, real *products)
{
    vector a[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}}, b[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}};
    vector centre[FASTNORM_LANES * sizeof(real) / sizeof(vector)], slope[FASTNORM_LANES * sizeof(real) / sizeof(vector)], offset[FASTNORM_LANES * sizeof(real) / sizeof(vector)];
    ptrdiff_t start, stop, i, k;
    memcpy(centre, high, sizeof centre), memcpy(slope, scale, sizeof slope), memcpy(offset, shift, sizeof offset);
    for (start = 0; start < n; start += FASTNORM_TAIL) {
        vector s[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}}, q[FASTNORM_LANES * sizeof(real) / sizeof(vector)] = {{0}};
        EACH_SHORT(i, start, stop, n)
        EACH(k, VECTORS) {
            vector h = ((const vector *)(dy + i * FASTNORM_LANES))[k];
            vector v = ((const vector *)(x + i * FASTNORM_LANES))[k];
            v = centred ? (v - centre[k]) * slope[k] + offset[k] : v * slope[k];
            if (gamma) h *= gamma[i];
            s[k] += h, q[k] += h * v;
        }
        EACH(k, VECTORS) a[k] += s[k], b[k] += q[k];
    }
    memcpy(sums, a, sizeof a), memcpy(products, b, sizeof b);
}

#undef EACH_SHORT

#undef EACH
#undef QUADS
#undef IN_EIGHT
#undef EIGHTS
#undef VECTORS
#undef WIDTH
#undef lanes
#undef quad
#undef eight
#undef vector
