/* Gradients of rows of 16 bits: what run_maps.h has as `row_gradients` for float and double, bit by bit as of a copy in
   float. */
#ifndef FASTNORM_ROW_GRADIENTS_H
#define FASTNORM_ROW_GRADIENTS_H

#include "lanes.h"
#include "pairs.h"

/* Of some rows, what `row_gradients` takes beside their elements: gamma may be NULL. Not centred: there is no dbeta. */
typedef struct {
    const float *gamma, *numbers;
    float *dgamma, *dbeta;
    ptrdiff_t gamma_step; /* 0 where all have the same; it need not be set */
} fastnorm_gradient_parameters;

#if FASTNORM_TAKES_16_BITS
typedef struct {
    fastnorm_pair gamma, dgamma, dbeta;
} fastnorm_parameter_pairs;

FASTNORM_INLINE fastnorm_parameter_pairs fastnorm_parameters_at(
    int is_half, int centred, fastnorm_gradient_parameters p, ptrdiff_t i)
{
    fastnorm_parameter_pairs at = {{0}};
    at.gamma = fastnorm_floats(is_half, p.gamma + i * p.gamma_step);
    at.dgamma = fastnorm_floats(is_half, p.dgamma + i);
    if (centred) at.dbeta = fastnorm_floats(is_half, p.dbeta + i);
    return at;
}

/* The numbers of up to four rows, as LOAD_NUMBERS of run_maps.h has them. */
typedef struct {
    fastnorm_wide of[FASTNORM_ROW_NUMBERS][4];
} fastnorm_rows_numbers;

FASTNORM_INLINE fastnorm_rows_numbers fastnorm_load_numbers(int rows, const float *numbers)
{
    fastnorm_rows_numbers m;
    ptrdiff_t j, k;
    FASTNORM_UNROLL
    for (j = 0; j < FASTNORM_ROW_NUMBERS; ++j) {
        FASTNORM_UNROLL
        for (k = 0; k < rows; ++k) m.of[j][k] = numbers[j * FASTNORM_MAX_GROUP + k] - (fastnorm_wide){0};
    }
    return m;
}

/* dx of one vector of row k. */
FASTNORM_INLINE fastnorm_wide fastnorm_row_gradient(
    int centred, fastnorm_wide dy, fastnorm_wide x, fastnorm_wide gamma, const fastnorm_rows_numbers *m, ptrdiff_t k,
    fastnorm_wide *dgamma, fastnorm_wide *dbeta)
{
    const fastnorm_wide centre = m->of[0][k], rstd = m->of[1][k], shift = m->of[2][k];
    const fastnorm_wide mean_h = m->of[3][k], mean_hx = m->of[4][k];
    fastnorm_wide x_hat = centred ? (x - centre) * rstd + shift : x * rstd, h = dy * gamma;
    *dgamma += dy * x_hat;
    if (centred) *dbeta += dy, h -= mean_h;
    return (h - x_hat * mean_hx) * rstd;
}

/* A pair of columns from i on, whose parameters are `at`. All is loaded before anything is stored: see COLUMN of run_maps.h. */
FASTNORM_INLINE void fastnorm_pair_gradients(
    int is_half, int rows, int centred, fastnorm_rows dy, fastnorm_rows x, uint16_t *dx, ptrdiff_t dx_stride,
    ptrdiff_t i, const fastnorm_rows_numbers *m, fastnorm_gradient_parameters p, fastnorm_parameter_pairs at)
{
    fastnorm_pair d[4];
    ptrdiff_t k;
    FASTNORM_UNROLL
    for (k = 0; k < rows; ++k) {
        const fastnorm_pair v = fastnorm_elements(is_half, x, k, i);
        d[k] = fastnorm_elements(is_half, dy, k, i);
        d[k].a = fastnorm_row_gradient(centred, d[k].a, v.a, at.gamma.a, m, k, &at.dgamma.a, &at.dbeta.a);
        d[k].b = fastnorm_row_gradient(centred, d[k].b, v.b, at.gamma.b, m, k, &at.dgamma.b, &at.dbeta.b);
    }
    FASTNORM_UNROLL
    for (k = 0; k < rows; ++k) fastnorm_store(is_half, dx + k * dx_stride + i, d[k]);
    fastnorm_keep_floats(is_half, p.dgamma + i, at.dgamma);
    if (centred) fastnorm_keep_floats(is_half, p.dbeta + i, at.dbeta);
}

/* Of n elements, a whole pair at least. What the last share with those before them is done twice, from the same sums. */
FASTNORM_INLINE void fastnorm_run_gradients(
    int is_half, int rows, int centred, fastnorm_rows dy, fastnorm_rows x, uint16_t *dx, ptrdiff_t dx_stride,
    ptrdiff_t n, fastnorm_gradient_parameters p, ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
    const ptrdiff_t last = n - FASTNORM_AT_ONCE;
    const fastnorm_parameter_pairs at_last = fastnorm_parameters_at(is_half, centred, p, last);
    const fastnorm_rows_numbers m = fastnorm_load_numbers(rows, p.numbers);
    ptrdiff_t i = 0, k;
    while (i < last) {
        const ptrdiff_t stop = last - i < FASTNORM_EVENLY ? last : i + FASTNORM_EVENLY;
        for (k = 0; ahead && k < rows; ++k)
            fastnorm_prefetch_far(x.data + k * x.stride + i + ahead, (stop - i) * sizeof *x.data);
        for (k = 0; dx_ahead && k < rows; ++k)
            fastnorm_prefetch_far(dx + k * dx_stride + i + dx_ahead, (stop - i) * sizeof *dx);
        for (; i < stop; i += FASTNORM_AT_ONCE)
            fastnorm_pair_gradients(
                is_half, rows, centred, dy, x, dx, dx_stride, i, &m, p, fastnorm_parameters_at(is_half, centred, p, i));
    }
    fastnorm_pair_gradients(is_half, rows, centred, dy, x, dx, dx_stride, last, &m, p, at_last);
}

/* One loop for each kind. Where there is no gamma it is 1. */
FASTNORM_INLINE void fastnorm_gradients(
    int is_half, ptrdiff_t rows, int centred, fastnorm_rows dy, fastnorm_rows x, uint16_t *dx, ptrdiff_t dx_stride,
    ptrdiff_t n, fastnorm_gradient_parameters p, ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
#define KIND(rows, centred) \
    fastnorm_run_gradients(is_half, rows, centred, dy, x, dx, dx_stride, n, p, ahead, dx_ahead)
    const fastnorm_wide one = 1 - (fastnorm_wide){0}, ones[2] = {one, one};
    p.gamma_step = p.gamma ? 1 : 0;
    if (!p.gamma) p.gamma = (const float *)ones;
    if (rows == 4) centred ? KIND(4, 1) : KIND(4, 0);
    else if (rows == 2) centred ? KIND(2, 1) : KIND(2, 0);
    else centred ? KIND(1, 1) : KIND(1, 0);
#undef KIND
}

FASTNORM_ONCE void fastnorm_row_gradients_half(
    ptrdiff_t rows, int centred, fastnorm_rows dy, fastnorm_rows x, uint16_t *dx, ptrdiff_t dx_stride, ptrdiff_t n,
    fastnorm_gradient_parameters p, ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
    fastnorm_gradients(1, rows, centred, dy, x, dx, dx_stride, n, p, ahead, dx_ahead);
}

FASTNORM_ONCE void fastnorm_row_gradients_bfloat(
    ptrdiff_t rows, int centred, fastnorm_rows dy, fastnorm_rows x, uint16_t *dx, ptrdiff_t dx_stride, ptrdiff_t n,
    fastnorm_gradient_parameters p, ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
    fastnorm_gradients(0, rows, centred, dy, x, dx, dx_stride, n, p, ahead, dx_ahead);
}

/* Of one row of less than a pair, in copies. */
FASTNORM_ONCE void fastnorm_short_gradients(
    int is_half, int centred, const uint16_t *dy, const uint16_t *x, uint16_t *dx, ptrdiff_t n,
    fastnorm_gradient_parameters p)
{
    uint16_t from[2][FASTNORM_AT_ONCE] = {{0}}, to[FASTNORM_AT_ONCE];
    float floats[3][FASTNORM_AT_ONCE] = {{0}};
    const fastnorm_rows dy_copy = {memcpy(from[0], dy, n * sizeof *dy), 0}, x_copy = {memcpy(from[1], x, n * sizeof *x), 0};
    fastnorm_gradient_parameters copy = {NULL, p.numbers, memcpy(floats[0], p.dgamma, n * sizeof *p.dgamma), NULL, 0};
    if (p.gamma) copy.gamma = memcpy(floats[1], p.gamma, n * sizeof *p.gamma);
    if (centred) copy.dbeta = memcpy(floats[2], p.dbeta, n * sizeof *p.dbeta);
    FASTNORM_EITHER(row_gradients, 1, centred, dy_copy, x_copy, to, 0, FASTNORM_AT_ONCE, copy, 0, 0);
    memcpy(dx, to, n * sizeof *dx), memcpy(p.dgamma, copy.dgamma, n * sizeof *p.dgamma);
    if (centred) memcpy(p.dbeta, copy.dbeta, n * sizeof *p.dbeta);
}
#endif

/* Of 1, 2 or 4 rows, or fewer elements than a pair of one. */
static inline void fastnorm_row_gradients_sixteen(
    int is_half, ptrdiff_t rows, int centred, fastnorm_rows dy, fastnorm_rows x, uint16_t *dx, ptrdiff_t dx_stride,
    ptrdiff_t n, fastnorm_gradient_parameters p, ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
#if FASTNORM_TAKES_16_BITS
    if (n < FASTNORM_AT_ONCE) fastnorm_short_gradients(is_half, centred, dy.data, x.data, dx, n, p);
    else FASTNORM_EITHER(row_gradients, rows, centred, dy, x, dx, dx_stride, n, p, ahead, dx_ahead);
#endif
}

#endif
