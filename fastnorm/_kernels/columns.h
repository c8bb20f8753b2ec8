/* Columns of 16 bits: what columns.pxd has for float and double, bit by bit as of a copy in float. */
#ifndef FASTNORM_COLUMNS_H
#define FASTNORM_COLUMNS_H

#include "lanes.h"
#include "maps.h"
#include "pairs.h"

enum { FASTNORM_ROWS = 64 }; /* at a time, at most */

/* One of each for every column; or NULL, for what changes nothing. */
typedef struct {
    const float *centre, *slope, *shift, *scale, *weight;
} fastnorm_column_numbers;

#if FASTNORM_TAKES_16_BITS
FASTNORM_INLINE void fastnorm_add_floats(int is_half, float *p, fastnorm_pair x)
{
    fastnorm_keep_floats(is_half, p, FASTNORM_PAIR(+, fastnorm_floats(is_half, p), x));
}

/* The sum of four or of eight pairs, by twos. */
FASTNORM_INLINE fastnorm_pair fastnorm_sum_of_four(const fastnorm_pair *x)
{
    return FASTNORM_PAIR(+, FASTNORM_PAIR(+, x[0], x[1]), FASTNORM_PAIR(+, x[2], x[3]));
}

FASTNORM_INLINE fastnorm_pair fastnorm_sum_of(int rows, const fastnorm_pair *x)
{
    if (rows == 1) return x[0];
    if (rows == 4) return fastnorm_sum_of_four(x);
    return FASTNORM_PAIR(+, fastnorm_sum_of_four(x), fastnorm_sum_of_four(x + 4));
}

/* A few rows, 8 or 4, or a single one, of whole pairs of columns. */

FASTNORM_INLINE void fastnorm_add_some_columns(
    int is_half, int centred, int rows, fastnorm_rows x, ptrdiff_t n, const float *centre, float *sums, float *squares,
    ptrdiff_t ahead)
{
    fastnorm_pair value[8], square[8], c = {0};
    ptrdiff_t j;
    int i;
    for (j = 0; j < n; j += FASTNORM_AT_ONCE) {
        if (centred) c = fastnorm_floats_or(is_half, centre, j, 0);
        FASTNORM_UNROLL
        for (i = 0; i < rows; ++i) {
            if (ahead) fastnorm_prefetch_far(x.data + i * x.stride + j + ahead, FASTNORM_LINE);
            value[i] = fastnorm_elements(is_half, x, i, j);
            if (centred) value[i] = FASTNORM_PAIR(-, value[i], c);
            square[i] = FASTNORM_PAIR(*, value[i], value[i]);
        }
        if (centred) fastnorm_add_floats(is_half, sums + j, fastnorm_sum_of(rows, value));
        fastnorm_add_floats(is_half, squares + j, fastnorm_sum_of(rows, square));
    }
}

FASTNORM_INLINE void fastnorm_add_some_gradients(
    int is_half, int centred, int rows, fastnorm_rows dy, fastnorm_rows x, ptrdiff_t n, const float *centre,
    const float *inverse, float *sums, float *products, ptrdiff_t ahead)
{
    fastnorm_pair gradient[4], product[4], c = {0}, k;
    ptrdiff_t j;
    int i;
    for (j = 0; j < n; j += FASTNORM_AT_ONCE) {
        if (centred) c = fastnorm_floats(is_half, centre + j);
        k = fastnorm_floats(is_half, inverse + j);
        FASTNORM_UNROLL
        for (i = 0; i < rows; ++i) {
            if (ahead) fastnorm_prefetch_far(x.data + i * x.stride + j + ahead, FASTNORM_LINE);
            if (ahead) fastnorm_prefetch_far(dy.data + i * dy.stride + j + ahead, FASTNORM_LINE);
            gradient[i] = fastnorm_elements(is_half, dy, i, j);
            product[i] = fastnorm_elements(is_half, x, i, j);
            if (centred) product[i] = FASTNORM_PAIR(-, product[i], c);
            product[i] = FASTNORM_PAIR(*, product[i], k), product[i] = FASTNORM_PAIR(*, gradient[i], product[i]);
        }
        if (centred) fastnorm_add_floats(is_half, sums + j, fastnorm_sum_of(rows, gradient));
        fastnorm_add_floats(is_half, products + j, fastnorm_sum_of(rows, product));
    }
}

/* Of some rows: what goes with their columns is loaded once. y may be x or dy. */
FASTNORM_INLINE void fastnorm_map_columns(
    int is_half, fastnorm_map map, fastnorm_rows dy, fastnorm_rows x, uint16_t *y, ptrdiff_t y_stride, ptrdiff_t rows,
    ptrdiff_t n, fastnorm_column_numbers m)
{
    const int is_gradient = map == FASTNORM_SLOPE || map == FASTNORM_WEIGHTED_GRADIENT;
    const int is_centred = map == FASTNORM_SCALE_SHIFT || map == FASTNORM_WEIGHTED_GRADIENT;
    fastnorm_pair centre = {0}, shift = {0}, scale, slope = {0}, weight = {0}, v, d;
    ptrdiff_t i, j;
    for (j = 0; j < n; j += FASTNORM_AT_ONCE) {
        if (is_centred) centre = fastnorm_floats(is_half, m.centre + j);
        if (is_centred) shift = fastnorm_floats(is_half, m.shift + j);
        scale = fastnorm_floats(is_half, m.scale + j);
        if (is_gradient) slope = fastnorm_floats(is_half, m.slope + j);
        if (is_gradient && is_centred) weight = fastnorm_floats_or(is_half, m.weight, j, 1);
        for (i = 0; i < rows; ++i) {
            const fastnorm_wide_numbers a = {centre.a, slope.a, shift.a, scale.a, weight.a};
            const fastnorm_wide_numbers b = {centre.b, slope.b, shift.b, scale.b, weight.b};
            v = fastnorm_elements(is_half, x, i, j), d = is_gradient ? fastnorm_elements(is_half, dy, i, j) : v;
            v.a = fastnorm_mapped(map, d.a, v.a, &a), v.b = fastnorm_mapped(map, d.b, v.b, &b);
            fastnorm_store(is_half, y + i * y_stride + j, v);
        }
    }
}

FASTNORM_INLINE fastnorm_rows fastnorm_from_row(fastnorm_rows x, ptrdiff_t row)
{
    x.data += row * x.stride;
    return x;
}

FASTNORM_INLINE void fastnorm_add_columns(
    int is_half, int centred, fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, const float *centre, float *sums,
    float *squares, ptrdiff_t ahead)
{
    ptrdiff_t i = 0;
    for (; i + 8 <= rows; i += 8)
        fastnorm_add_some_columns(
            is_half, centred, 8, fastnorm_from_row(x, i), n, centre, sums, squares, ahead);
    for (; i < rows; ++i)
        fastnorm_add_some_columns(is_half, centred, 1, fastnorm_from_row(x, i), n, centre, sums, squares, 0);
}

FASTNORM_INLINE void fastnorm_add_column_gradients(
    int is_half, int centred, fastnorm_rows dy, fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, const float *centre,
    const float *inverse, float *sums, float *products, ptrdiff_t ahead)
{
    ptrdiff_t i = 0;
    for (; i + 4 <= rows; i += 4)
        fastnorm_add_some_gradients(
            is_half, centred, 4, fastnorm_from_row(dy, i), fastnorm_from_row(x, i), n, centre, inverse, sums, products,
            ahead);
    for (; i < rows; ++i)
        fastnorm_add_some_gradients(
            is_half, centred, 1, fastnorm_from_row(dy, i), fastnorm_from_row(x, i), n, centre, inverse, sums, products,
            0);
}

/* Of either type. Where sums is NULL, the centre is 0 and its sum is not wanted. */
#define FASTNORM_COLUMNS_OF(name, is_half)                                                                           \
    FASTNORM_ONCE void fastnorm_column_sums_##name(                                                                  \
        fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, const float *centre, float *sums, float *squares,              \
        ptrdiff_t ahead)                                                                                             \
    {                                                                                                                \
        if (sums)                                                                                                    \
            fastnorm_add_columns(is_half, 1, x, rows, n, centre, sums, squares, ahead);                              \
        else                                                                                                         \
            fastnorm_add_columns(is_half, 0, x, rows, n, NULL, NULL, squares, ahead);                                \
    }                                                                                                                \
    FASTNORM_ONCE void fastnorm_column_gradient_sums_##name(                                                         \
        fastnorm_rows dy, fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, const float *centre, const float *inverse,   \
        float *sums, float *products, ptrdiff_t ahead)                                                               \
    {                                                                                                                \
        if (centre)                                                                                                  \
            fastnorm_add_column_gradients(is_half, 1, dy, x, rows, n, centre, inverse, sums, products, ahead);       \
        else                                                                                                         \
            fastnorm_add_column_gradients(is_half, 0, dy, x, rows, n, NULL, inverse, NULL, products, ahead);         \
    }                                                                                                                \
    FASTNORM_ONCE void fastnorm_column_map_##name(                                                                   \
        int is_gradient, fastnorm_rows dy, fastnorm_rows x, uint16_t *y, ptrdiff_t y_stride, ptrdiff_t rows,         \
        ptrdiff_t n, fastnorm_column_numbers m)                                                                      \
    {                                                                                                                \
        if (is_gradient && m.shift)                                                                                  \
            fastnorm_map_columns(is_half, FASTNORM_WEIGHTED_GRADIENT, dy, x, y, y_stride, rows, n, m);               \
        else if (is_gradient)                                                                                        \
            fastnorm_map_columns(is_half, FASTNORM_SLOPE, dy, x, y, y_stride, rows, n, m);                           \
        else if (m.shift)                                                                                            \
            fastnorm_map_columns(is_half, FASTNORM_SCALE_SHIFT, dy, x, y, y_stride, rows, n, m);                     \
        else                                                                                                         \
            fastnorm_map_columns(is_half, FASTNORM_SCALE, dy, x, y, y_stride, rows, n, m);                           \
    }

FASTNORM_COLUMNS_OF(half, 1)
FASTNORM_COLUMNS_OF(bfloat, 0)

/* Columns at the end that do not fill a pair are part of a last pair, which has some again, or are in a copy if that is
   all there are. */
static inline ptrdiff_t fastnorm_last(ptrdiff_t n) { return n < FASTNORM_AT_ONCE ? n : FASTNORM_AT_ONCE; }

static inline fastnorm_rows fastnorm_last_columns(fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, uint16_t *copy)
{
    fastnorm_rows last = {x.data + n - fastnorm_last(n), x.stride}, copied = {copy, FASTNORM_AT_ONCE};
    ptrdiff_t i;
    if (n >= FASTNORM_AT_ONCE) return last;
    for (i = 0; i < rows; ++i) memcpy(copy + i * FASTNORM_AT_ONCE, x.data + i * x.stride, n * sizeof *copy);
    return copied;
}

static inline const float *fastnorm_last_floats(const float *x, ptrdiff_t n, float *copy)
{
    if (!x || n >= FASTNORM_AT_ONCE) return x ? x + n - FASTNORM_AT_ONCE : NULL;
    memcpy(copy, x, n * sizeof *x);
    return copy;
}

/* A sum of columns that do not fill a pair, in a copy of the last pair's. */
static inline void fastnorm_last_sums(const float *sums, ptrdiff_t n, float *copy)
{
    memset(copy, 0, FASTNORM_AT_ONCE * sizeof *copy);
    memcpy(copy, sums + n - fastnorm_last(n), fastnorm_last(n) * sizeof *copy);
}

static inline void fastnorm_keep_last_sums(float *sums, ptrdiff_t n, const float *copy)
{
    const ptrdiff_t rest = n % FASTNORM_AT_ONCE;
    memcpy(sums + n - rest, copy + fastnorm_last(n) - rest, rest * sizeof *sums);
}

FASTNORM_ONCE void fastnorm_column_sums_of_rest(
    int is_half, fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, const float *centre, float *sums, float *squares)
{
    uint16_t x_copy[FASTNORM_ROWS * FASTNORM_AT_ONCE];
    float c[FASTNORM_AT_ONCE] = {0}, s[FASTNORM_AT_ONCE], q[FASTNORM_AT_ONCE];
    x = fastnorm_last_columns(x, rows, n, x_copy);
    centre = fastnorm_last_floats(centre, n, c);
    if (sums) fastnorm_last_sums(sums, n, s);
    fastnorm_last_sums(squares, n, q);
    FASTNORM_EITHER(column_sums, x, rows, FASTNORM_AT_ONCE, centre, sums ? s : NULL, q, 0);
    if (sums) fastnorm_keep_last_sums(sums, n, s);
    fastnorm_keep_last_sums(squares, n, q);
}

FASTNORM_ONCE void fastnorm_column_gradient_sums_of_rest(
    int is_half, fastnorm_rows dy, fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, const float *centre, const float *inverse,
    float *sums, float *products)
{
    uint16_t dy_copy[FASTNORM_ROWS * FASTNORM_AT_ONCE], x_copy[FASTNORM_ROWS * FASTNORM_AT_ONCE];
    float c[FASTNORM_AT_ONCE] = {0}, k[FASTNORM_AT_ONCE] = {0}, s[FASTNORM_AT_ONCE], p[FASTNORM_AT_ONCE];
    dy = fastnorm_last_columns(dy, rows, n, dy_copy), x = fastnorm_last_columns(x, rows, n, x_copy);
    centre = fastnorm_last_floats(centre, n, c);
    inverse = fastnorm_last_floats(inverse, n, k);
    fastnorm_last_sums(sums, n, s), fastnorm_last_sums(products, n, p);
    FASTNORM_EITHER(column_gradient_sums, dy, x, rows, FASTNORM_AT_ONCE, centre, inverse, s, p, 0);
    fastnorm_keep_last_sums(sums, n, s), fastnorm_keep_last_sums(products, n, p);
}

FASTNORM_ONCE void fastnorm_column_map_of_rest(
    int is_half, int is_gradient, fastnorm_rows dy, fastnorm_rows x, uint16_t *y, ptrdiff_t y_stride, ptrdiff_t rows,
    ptrdiff_t n, fastnorm_column_numbers m)
{
    enum { ROWS = 4 };
    uint16_t dy_copy[ROWS * FASTNORM_AT_ONCE], x_copy[ROWS * FASTNORM_AT_ONCE], result[ROWS * FASTNORM_AT_ONCE];
    float copies[5][FASTNORM_AT_ONCE] = {{0}};
    const ptrdiff_t last = fastnorm_last(n), rest = n % FASTNORM_AT_ONCE;
    ptrdiff_t i;
    m.centre = fastnorm_last_floats(m.centre, n, copies[0]);
    m.slope = fastnorm_last_floats(m.slope, n, copies[1]);
    m.shift = fastnorm_last_floats(m.shift, n, copies[2]);
    m.scale = fastnorm_last_floats(m.scale, n, copies[3]);
    m.weight = fastnorm_last_floats(m.weight, n, copies[4]);
    dy = fastnorm_last_columns(dy, rows, n, dy_copy), x = fastnorm_last_columns(x, rows, n, x_copy);
    FASTNORM_EITHER(column_map, is_gradient, dy, x, result, FASTNORM_AT_ONCE, rows, FASTNORM_AT_ONCE, m);
    for (i = 0; i < rows; ++i)
        memcpy(y + i * y_stride + n - rest, result + i * FASTNORM_AT_ONCE + last - rest, rest * sizeof *y);
}
#endif

/* What kernels call. */

/* sums += Σ_rows (x - centre);  squares += Σ_rows (x - centre)². Where sums is NULL it is not wanted. */
static inline void fastnorm_column_sums_sixteen(
    int is_half, fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, const float *centre, float *sums, float *squares,
    ptrdiff_t ahead)
{
#if FASTNORM_TAKES_16_BITS
    const ptrdiff_t rest = n % FASTNORM_AT_ONCE;
    FASTNORM_EITHER(column_sums, x, rows, n - rest, centre, sums, squares, ahead);
    if (rest) fastnorm_column_sums_of_rest(is_half, x, rows, n, centre, sums, squares);
#endif
}

/* sums += Σ_rows dy;  products += Σ_rows dy·x̂  with x̂ = (x - centre)·inverse. Where centre is NULL, the sums of dy are not
   wanted. */
static inline void fastnorm_column_gradient_sums_sixteen(
    int is_half, fastnorm_rows dy, fastnorm_rows x, ptrdiff_t rows, ptrdiff_t n, const float *centre,
    const float *inverse, float *sums, float *products, ptrdiff_t ahead)
{
#if FASTNORM_TAKES_16_BITS
    const ptrdiff_t rest = n % FASTNORM_AT_ONCE;
    FASTNORM_EITHER(column_gradient_sums, dy, x, rows, n - rest, centre, inverse, sums, products, ahead);
    if (rest) fastnorm_column_gradient_sums_of_rest(is_half, dy, x, rows, n, centre, inverse, sums, products);
#endif
}

/* y = (x - centre)·scale + shift, or the gradient y = (dy·weight + ((x - centre)·slope + shift))·scale, of four rows or
   fewer. y may be x or dy. */
static inline void fastnorm_column_map_sixteen(
    int is_half, int is_gradient, fastnorm_rows dy, fastnorm_rows x, uint16_t *y, ptrdiff_t y_stride, ptrdiff_t rows,
    ptrdiff_t n, fastnorm_column_numbers m)
{
#if FASTNORM_TAKES_16_BITS
    const ptrdiff_t rest = n % FASTNORM_AT_ONCE;
    FASTNORM_EITHER(column_map, is_gradient, dy, x, y, y_stride, rows, n - rest, m);
    if (rest) fastnorm_column_map_of_rest(is_half, is_gradient, dy, x, y, y_stride, rows, n, m);
#endif
}

#endif
