/* The sums of lanes.h, which includes this for each `real`.

   `ahead`: how many elements further on memory is asked for meanwhile, or 0. */

#define vector FASTNORM_NAME(vector)
#define half FASTNORM_NAME(half)
#define eight FASTNORM_NAME(eight)
#define quad FASTNORM_NAME(quad)
#define lanes FASTNORM_NAME(lanes)

typedef FASTNORM_VECTOR_OF(real, FASTNORM_VECTOR) vector;
typedef FASTNORM_VECTOR_OF(real, FASTNORM_VECTOR / 2) half;
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

/* A tree: halves are added until four lanes are left, which end in double, and the rest. Of FASTNORM_TOGETHER rows these
   FASTNORM_FOLDED numbers are kept side by side, so that what follows is done to all of the rows at once. */
FASTNORM_INLINE void FASTNORM_NAME(fold_partly)(lanes a, real *folded)
{
    ptrdiff_t k, half;
    eight e[16 * sizeof(real) / sizeof(eight)];
    quad q[8 * sizeof(real) / sizeof(quad)];
    real last[4];
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
    EACH(k, QUADS) q[k] += q[QUADS + k];
    memcpy(last, q, sizeof last);
    for (k = 0; k < 4; ++k) folded[k * FASTNORM_TOGETHER] = last[k];
    folded[4 * FASTNORM_TOGETHER] = a.rest;
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
    memcpy(sums, all, rows * sizeof *all);
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
    memcpy(mean, all, rows * sizeof *all), memcpy(m2, m, rows * sizeof *m);
    return off;
}

FASTNORM_INLINE double FASTNORM_NAME(fold_lanes)(lanes a)
{
    real folded[FASTNORM_FOLDED * FASTNORM_TOGETHER];
    FASTNORM_NAME(fold_partly)(a, folded);
    return FASTNORM_NAME(end_fold)(folded);
}

FASTNORM_INLINE double FASTNORM_NAME(fold)(const real *a)
{
    lanes copy;
    memcpy(&copy, a, sizeof copy);
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
   long ones, which for n < 64 leaves no more roundings than the lanes of a longer row. */

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
/* One vector, of any width, of a few rows, which have FASTNORM_ROW_NUMBERS numbers each:

       dx = scale·(h - mean_h - x̂·mean_hx)  with  h = dy·gamma,
       dgamma += dy·x̂,  dbeta += dy         and   x̂ = (x - centre)·rstd + shift

   The rows are added one after another, but their sums are loaded and stored once. Not centred: x̂ = x·rstd, mean_h is 0,
   and there is no dbeta. */
#define GRADIENTS(type, i)                                                   \
    do {                                                                     \
        type a = *(const type *)(dgamma + i), b;                             \
        const type g = *(const type *)(gamma + i * gamma_step);              \
        if (centred) b = *(const type *)(dbeta + i);                         \
        EACH(k, rows) {                                                      \
            const real *r = numbers + k * FASTNORM_ROW_NUMBERS;              \
            const real centre = r[0], rstd = r[1], shift = r[2];             \
            const real scale = r[3], mean_h = r[4], mean_hx = r[5];          \
            type h = *(const type *)(dy + k * dy_step + i);                  \
            type x_hat = *(const type *)(x + k * x_step + i);                \
            if (centred) x_hat = (x_hat - centre) * rstd + shift;            \
            else x_hat *= rstd;                                              \
            a += h * x_hat;                                                  \
            if (centred) b += h;                                             \
            h *= g;                                                          \
            if (centred) h -= mean_h;                                        \
            *(type *)(dx + k * dx_step + i) = (h - x_hat * mean_hx) * scale; \
        }                                                                    \
        *(type *)(dgamma + i) = a;                                           \
        if (centred) *(type *)(dbeta + i) = b;                               \
    } while (0)

FASTNORM_INLINE void FASTNORM_NAME(gradients_of)(
    const ptrdiff_t rows, const int centred, const real *dy, ptrdiff_t dy_step, const real *x, ptrdiff_t x_step,
    const real *gamma, real *dx, ptrdiff_t dx_step, real *dgamma, real *dbeta, ptrdiff_t n, const real *numbers,
    ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
    const ptrdiff_t whole = n - n % WIDTH, gamma_step = gamma ? 1 : 0;
    const vector ones = 1 - (vector){0};
    ptrdiff_t i = 0, k;
    if (!gamma) gamma = (const real *)&ones;
    while (i < whole) {
        const ptrdiff_t stop = whole - i < FASTNORM_EVENLY ? whole : i + FASTNORM_EVENLY;
        for (k = 0; ahead && k < rows; ++k)
            fastnorm_prefetch_far(x + k * x_step + i + ahead, (stop - i) * sizeof(real));
        for (k = 0; dx_ahead && k < rows; ++k)
            fastnorm_prefetch_far(dx + k * dx_step + i + dx_ahead, (stop - i) * sizeof(real));
        for (; i < stop; i += WIDTH) GRADIENTS(vector, i);
    }
    for (; WIDTH > 1 && i + WIDTH / 2 <= n; i += WIDTH / 2) GRADIENTS(half, i);
    for (; i < n; ++i) GRADIENTS(real, i);
}

#undef GRADIENTS

/* Of 1, 2 or 4 rows; one loop for each kind. gamma is 1 where it is NULL. From a row to the next it is dy_step, x_step, dx_step elements. */
FASTNORM_ONCE void FASTNORM_NAME(row_gradients)(
    ptrdiff_t rows, int centred, const real *dy, ptrdiff_t dy_step, const real *x, ptrdiff_t x_step,
    const real *gamma, real *dx, ptrdiff_t dx_step, real *dgamma, real *dbeta, ptrdiff_t n,
    const real *numbers, ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
#define KIND(rows, centred)      \
    FASTNORM_NAME(gradients_of)( \
        rows, centred, dy, dy_step, x, x_step, gamma, dx, dx_step, dgamma, dbeta, n, numbers, ahead, dx_ahead)
    if (rows == 4) centred ? KIND(4, 1) : KIND(4, 0);
    else if (rows == 2) centred ? KIND(2, 1) : KIND(2, 0);
    else centred ? KIND(1, 1) : KIND(1, 0);
#undef KIND
}

#undef EACH
#undef QUADS
#undef IN_EIGHT
#undef EIGHTS
#undef VECTORS
#undef WIDTH
#undef lanes
#undef quad
#undef eight
#undef half
#undef vector
