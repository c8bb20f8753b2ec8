/* The products of thin.h, which includes this for each `real`. */

#define vector FASTNORM_NAME(vector)
#define eight FASTNORM_NAME(eight)
#define lanes FASTNORM_NAME(lanes)
#define WIDTH ((ptrdiff_t)(sizeof(vector) / sizeof(real)))
#define VECTORS ((ptrdiff_t)(FASTNORM_LANES * sizeof(real) / sizeof(vector)))
#define EIGHTS ((ptrdiff_t)(8 * sizeof(real) / sizeof(eight)))
#define IN_EIGHT ((ptrdiff_t)(sizeof(eight) / sizeof(real)))
#define EACH(k, count) FASTNORM_UNROLL for (k = 0; k < (count); ++k)

#define EACH_ROW(r) EACH(r, FASTNORM_DOT_ROWS)

/* Products of a row at once, whose lanes fit the registers. */
#define DOTS (FASTNORM_VECTOR == 64 && VECTORS == 2 ? 5 : 1)

/* sums[r, j] += Σ x[r]·w[j] of so many products, a constant, DOTS at most. x is asked for `ahead` elements further on. */
FASTNORM_INLINE void FASTNORM_NAME(add_some_dots)(
    ptrdiff_t products, const real *x, ptrdiff_t x_step, const real *w, ptrdiff_t w_step, ptrdiff_t n, ptrdiff_t ahead,
    double *sums)
{
    lanes a[FASTNORM_DOT_ROWS][DOTS];
    ptrdiff_t i = 0, k, r, j;
    EACH_ROW(r) EACH(j, products) a[r][j] = FASTNORM_NAME(no_lanes)();
    for (; i + FASTNORM_LANES <= n; i += FASTNORM_LANES) {
        EACH_ROW(r) if (ahead) fastnorm_prefetch_far(x + r * x_step + i + ahead, FASTNORM_LANES * sizeof(real));
        EACH(k, VECTORS) EACH(j, products) {
            const vector v = *(const vector *)(w + j * w_step + i + k * WIDTH);
            EACH_ROW(r) a[r][j].main[k] += *(const vector *)(x + r * x_step + i + k * WIDTH) * v;
        }
    }
    for (; i + FASTNORM_TAIL <= n; i += FASTNORM_TAIL) {
        EACH(k, EIGHTS) EACH(j, products) {
            const eight v = *(const eight *)(w + j * w_step + i + k * IN_EIGHT);
            EACH_ROW(r) a[r][j].tail[k] += *(const eight *)(x + r * x_step + i + k * IN_EIGHT) * v;
        }
    }
    for (; i < n; ++i) {
        EACH_ROW(r) EACH(j, products) a[r][j].rest += x[r * x_step + i] * w[j * w_step + i];
        FASTNORM_HAS_EFFECT();
    }
    EACH_ROW(r) EACH(j, products) sums[r * FASTNORM_THIN + j] += FASTNORM_NAME(fold_lanes)(a[r][j]);
}

/* sums[r, j] += Σ x[r]·w[j] of all products of FASTNORM_DOT_ROWS rows; the sums of a row are FASTNORM_THIN after those of the
   one before. */
FASTNORM_ONCE void FASTNORM_NAME(add_dots_of_rows)(
    const real *x, ptrdiff_t x_step, const real *w, ptrdiff_t w_step, ptrdiff_t products, ptrdiff_t n, ptrdiff_t ahead,
    double *sums)
{
    for (; products >= DOTS; products -= DOTS, w += DOTS * w_step, sums += DOTS, ahead = 0)
        FASTNORM_NAME(add_some_dots)(DOTS, x, x_step, w, w_step, n, ahead, sums);
    if (DOTS == 1) return; /* compilers do not see that none are left */
    for (; products; --products, w += w_step, ++sums, ahead = 0)
        FASTNORM_NAME(add_some_dots)(1, x, x_step, w, w_step, n, ahead, sums);
}

/* The same of any number of rows. What is one too many for another two is taken twice. */
static inline void FASTNORM_NAME(add_dots)(
    const real *x, ptrdiff_t x_step, ptrdiff_t rows, const real *w, ptrdiff_t w_step, ptrdiff_t products, ptrdiff_t n,
    ptrdiff_t ahead, double *sums)
{
    double twice[FASTNORM_DOT_ROWS * FASTNORM_THIN] = {0};
    ptrdiff_t j;
    for (; rows >= FASTNORM_DOT_ROWS; rows -= FASTNORM_DOT_ROWS) {
        FASTNORM_NAME(add_dots_of_rows)(x, x_step, w, w_step, products, n, ahead, sums);
        x += FASTNORM_DOT_ROWS * x_step, sums += FASTNORM_DOT_ROWS * FASTNORM_THIN;
    }
    if (rows == 0) return;
    FASTNORM_NAME(add_dots_of_rows)(x, 0, w, w_step, products, n, 0, twice);
    for (j = 0; j < products; ++j) sums[j] += twice[j];
}

/* y = bias + Σ_j a[j]·w[j], from j = 0 on, of `count` vectors at y. */
FASTNORM_INLINE void FASTNORM_NAME(combine)(
    ptrdiff_t count, const real *a, ptrdiff_t rows, const real *w, ptrdiff_t w_step, const real *bias, real *y)
{
    vector s[4];
    ptrdiff_t j, k;
    EACH(k, count) {
        const vector zero = {0};
        s[k] = bias ? *(const vector *)(bias + k * WIDTH) : zero;
    }
    for (j = 0; j < rows; ++j) {
        EACH(k, count) s[k] += a[j] * *(const vector *)(w + j * w_step + k * WIDTH);
    }
    EACH(k, count) *(vector *)(y + k * WIDTH) = s[k];
}

/* The same of n elements. bias may be NULL. */
FASTNORM_ONCE void FASTNORM_NAME(combine_rows)(
    const real *a, ptrdiff_t rows, const real *w, ptrdiff_t w_step, const real *bias, real *y, ptrdiff_t n)
{
    ptrdiff_t i = 0, j;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
        FASTNORM_NAME(combine)(4, a, rows, w + i, w_step, bias ? bias + i : NULL, y + i);
    for (; i + WIDTH <= n; i += WIDTH) FASTNORM_NAME(combine)(1, a, rows, w + i, w_step, bias ? bias + i : NULL, y + i);
    for (; i < n; ++i) {
        real s = bias ? bias[i] : 0;
        for (j = 0; j < rows; ++j) {
            s += a[j] * w[j * w_step + i];
            FASTNORM_HAS_EFFECT();
        }
        y[i] = s;
    }
}

#undef DOTS
#undef EACH_ROW
#undef EACH
#undef IN_EIGHT
#undef EIGHTS
#undef VECTORS
#undef WIDTH
#undef lanes
#undef eight
#undef vector
