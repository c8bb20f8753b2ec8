/* The sums over a run, for sums.h, which includes this for each `element` that a run may have. FASTNORM_ENTRY: what
   kernels call. FASTNORM_HAS_EFFECT: else compilers make vectors of a rest, which is fewer than eight elements. */

/* Σx */
FASTNORM_ENTRY double FASTNORM_RUN(sum)(const element *x, ptrdiff_t n)
{
    lanes a = FASTNORM_NAME(no_lanes)();
    ptrdiff_t i = 0, k;
    for (; i + FASTNORM_LANES <= n; i += FASTNORM_LANES)
        EACH(k, VECTORS) a.main[k] += VECTOR_AT(x + i + k * WIDTH);
    for (; i + FASTNORM_TAIL <= n; i += FASTNORM_TAIL) EACH(k, EIGHTS) a.tail[k] += EIGHT_AT(x + i + k * IN_EIGHT);
    for (; i < n; ++i) {
        a.rest += ONE_AT(x + i);
        FASTNORM_HAS_EFFECT();
    }
    return FASTNORM_NAME(fold_lanes)(a);
}

/* sums += x - centre;  squares += (x - centre)² */
FASTNORM_INLINE void FASTNORM_RUN(add_short_centred)(
    const element *x, ptrdiff_t n, real centre, ptrdiff_t ahead, lanes *sums, lanes *squares)
{
    lanes a = *sums, b = *squares;
    ptrdiff_t i = 0, k;
    for (; i + FASTNORM_LANES <= n; i += FASTNORM_LANES) {
        if (ahead) fastnorm_prefetch_far(x + i + ahead, FASTNORM_LANES * sizeof(element));
        EACH(k, VECTORS) {
            vector d = VECTOR_AT(x + i + k * WIDTH) - centre;
            a.main[k] += d, b.main[k] += d * d;
        }
    }
    for (; i + FASTNORM_TAIL <= n; i += FASTNORM_TAIL) {
        EACH(k, EIGHTS) {
            eight d = EIGHT_AT(x + i + k * IN_EIGHT) - centre;
            a.tail[k] += d, b.tail[k] += d * d;
        }
    }
    for (; i < n; ++i) {
        real d = ONE_AT(x + i) - centre;
        a.rest += d, b.rest += d * d;
        FASTNORM_HAS_EFFECT();
    }
    *sums = a, *squares = b;
}

/* The same by short sums, which are added to long ones. Where the mean is large, x - centre is a small multiple k of
   the last digit of x, and k² mod 8 is 0, 1 or 4: added one by one to a large sum, squares round down more often than
   up. Sums of 16 do not. */
FASTNORM_INLINE void FASTNORM_RUN(add_centred_lanes)(
    const element *x, ptrdiff_t n, real centre, ptrdiff_t ahead, lanes *sums, lanes *squares)
{
    ptrdiff_t i;
    for (i = 0; i < n; i += FASTNORM_SHORT) {
        lanes a = FASTNORM_NAME(no_lanes)(), b = a;
        FASTNORM_RUN(add_short_centred)(x + i, n - i < FASTNORM_SHORT ? n - i : FASTNORM_SHORT, centre, ahead, &a, &b);
        FASTNORM_NAME(add_lanes)(sums, &a), FASTNORM_NAME(add_lanes)(squares, &b);
    }
}

FASTNORM_ENTRY void FASTNORM_RUN(add_centred)(
    const element *x, ptrdiff_t n, real centre, ptrdiff_t ahead, real *sums, real *squares)
{
    FASTNORM_RUN(add_centred_lanes)(x, n, centre, ahead, (lanes *)sums, (lanes *)squares);
}

/* A mean of FASTNORM_GUESSED elements, eight at each of four places. n is at least as many. */
FASTNORM_INLINE real FASTNORM_RUN(guess_centre)(const element *x, ptrdiff_t n)
{
    const element *a = x, *b = x + n / 4, *c = x + n / 2, *d = x + n - 8;
    eight e[8 * sizeof(real) / sizeof(eight)];
    quad q[8 * sizeof(real) / sizeof(quad)];
    real last[4];
    ptrdiff_t k;
    EACH(k, EIGHTS) {
        ptrdiff_t j = k * IN_EIGHT;
        e[k] = (EIGHT_AT(a + j) + EIGHT_AT(b + j)) + (EIGHT_AT(c + j) + EIGHT_AT(d + j));
    }
    memcpy(q, e, sizeof q);
    EACH(k, QUADS) q[k] += q[QUADS + k];
    memcpy(last, q, sizeof last);
    return ((last[0] + last[2]) + (last[1] + last[3])) / FASTNORM_GUESSED;
}

/* Of a very short row, its mean. */
FASTNORM_INLINE real FASTNORM_RUN(first_centre)(const element *x, ptrdiff_t n)
{
    return n < FASTNORM_GUESSED ? (real)(FASTNORM_RUN(sum)(x, n) / n) : FASTNORM_RUN(guess_centre)(x, n);
}

/* Σ(x - centre) and Σ(x - centre)², but for the last step. */
FASTNORM_ONCE void FASTNORM_RUN(centred_sums)(
    const element *x, ptrdiff_t n, real centre, ptrdiff_t ahead, real *sums, real *squares)
{
    lanes a = FASTNORM_NAME(no_lanes)(), b = a;
    if (n <= FASTNORM_SHORT)
        FASTNORM_RUN(add_short_centred)(x, n, centre, ahead, &a, &b);
    else
        FASTNORM_RUN(add_centred_lanes)(x, n, centre, ahead, &a, &b);
    FASTNORM_NAME(fold_partly)(a, sums), FASTNORM_NAME(fold_partly)(b, squares);
}

/* The mean of FASTNORM_TOGETHER rows, at most, and Σ(x - mean)². From one row to the next it is `step` elements. One sweep,
   about a guess at the mean: what that is off by, squared, is part of the sum of squares. Where it is more than a standard
   deviation, there is another sweep, about the mean. The next row's guess is made before this row is added up, which
   would wait for its own. */
FASTNORM_ONCE void FASTNORM_RUN(few_moments)(
    const element *x, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t n, ptrdiff_t ahead, double *mean, double *m2)
{
    real sums[FASTNORM_FOLDED * FASTNORM_TOGETHER], squares[FASTNORM_FOLDED * FASTNORM_TOGETHER];
    real centre[FASTNORM_TOGETHER] = {0};
    unsigned off = ~0u;
    ptrdiff_t k;
    int sweep;
    FASTNORM_NAME(clear_folds)(sums), FASTNORM_NAME(clear_folds)(squares);
    for (sweep = 0; off && sweep < 2; ++sweep) {
        for (k = 0; k <= rows; ++k) {
            if (k < rows && off >> k & 1) centre[k] = sweep ? (real)mean[k] : FASTNORM_RUN(first_centre)(x + k * step, n);
            if (k > 0 && off >> (k - 1) & 1)
                FASTNORM_RUN(centred_sums)(x + (k - 1) * step, n, centre[k - 1], ahead, sums + k - 1, squares + k - 1);
        }
        off = FASTNORM_NAME(end_moments)(sums, squares, centre, rows, n, mean, m2);
    }
}

/* squares += x². Short sums are added to long ones: equal terms, such as those of a constant row, round the same way
   at every addition to a long one. */
FASTNORM_INLINE void FASTNORM_RUN(add_square_lanes)(const element *x, ptrdiff_t n, ptrdiff_t ahead, lanes *squares)
{
    ptrdiff_t i = 0, k, stop;
    while (i < n) {
        lanes a = FASTNORM_NAME(no_lanes)();
        stop = n - i < FASTNORM_SHORT ? n : i + FASTNORM_SHORT;
        for (; i + FASTNORM_LANES <= stop; i += FASTNORM_LANES) {
            if (ahead) fastnorm_prefetch_far(x + i + ahead, FASTNORM_LANES * sizeof(element));
            EACH(k, VECTORS) {
                vector v = VECTOR_AT(x + i + k * WIDTH);
                a.main[k] += v * v;
            }
        }
        for (; i + FASTNORM_TAIL <= stop; i += FASTNORM_TAIL) {
            EACH(k, EIGHTS) {
                eight v = EIGHT_AT(x + i + k * IN_EIGHT);
                a.tail[k] += v * v;
            }
        }
        for (; i < stop; ++i) {
            real v = ONE_AT(x + i);
            a.rest += v * v;
            FASTNORM_HAS_EFFECT();
        }
        FASTNORM_NAME(add_lanes)(squares, &a);
    }
}

FASTNORM_ENTRY void FASTNORM_RUN(add_squares)(const element *x, ptrdiff_t n, ptrdiff_t ahead, real *squares)
{
    FASTNORM_RUN(add_square_lanes)(x, n, ahead, (lanes *)squares);
}

/* Σx² of so many rows. */
FASTNORM_ONCE void FASTNORM_RUN(few_squares)(
    const element *x, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t n, ptrdiff_t ahead, double *squares)
{
    real folded[FASTNORM_FOLDED * FASTNORM_TOGETHER];
    ptrdiff_t k;
    FASTNORM_NAME(clear_folds)(folded);
    for (k = 0; k < rows; ++k) {
        lanes a = FASTNORM_NAME(no_lanes)();
        FASTNORM_RUN(add_square_lanes)(x + k * step, n, ahead, &a);
        FASTNORM_NAME(fold_partly)(a, folded + k);
    }
    FASTNORM_NAME(end_folds)(folded, rows, squares);
}

/* Σh and Σh·(x - centre)·inverse  with h = dy·gamma, or dy where there is no gamma. Not centred: the centre is 0, and the
   sums are not wanted. x_ahead: the same for x. */
FASTNORM_INLINE void FASTNORM_RUN(products_of)(
    const element *dy, const element *x, const real *gamma, ptrdiff_t n, real centre, real inverse, int centred,
    ptrdiff_t ahead, ptrdiff_t x_ahead, lanes *sums, lanes *products)
{
    lanes a = FASTNORM_NAME(no_lanes)(), b = a;
    ptrdiff_t i = 0, k;
    for (; i + FASTNORM_LANES <= n; i += FASTNORM_LANES) {
        if (ahead) fastnorm_prefetch_far(dy + i + ahead, FASTNORM_LANES * sizeof(element));
        if (x_ahead) fastnorm_prefetch_far(x + i + x_ahead, FASTNORM_LANES * sizeof(element));
        EACH(k, VECTORS) {
            vector h = VECTOR_AT(dy + i + k * WIDTH), v = VECTOR_AT(x + i + k * WIDTH);
            if (gamma) h *= *(const vector *)(gamma + i + k * WIDTH);
            if (centred) v -= centre, a.main[k] += h;
            b.main[k] += h * (v * inverse);
        }
    }
    for (; i + FASTNORM_TAIL <= n; i += FASTNORM_TAIL) {
        EACH(k, EIGHTS) {
            eight h = EIGHT_AT(dy + i + k * IN_EIGHT), v = EIGHT_AT(x + i + k * IN_EIGHT);
            if (gamma) h *= ((const eight *)(gamma + i))[k];
            if (centred) v -= centre, a.tail[k] += h;
            b.tail[k] += h * (v * inverse);
        }
    }
    for (; i < n; ++i) {
        real h = gamma ? ONE_AT(dy + i) * gamma[i] : ONE_AT(dy + i);
        real v = centred ? ONE_AT(x + i) - centre : ONE_AT(x + i);
        a.rest += h, b.rest += h * (v * inverse);
        FASTNORM_HAS_EFFECT();
    }
    *sums = a, *products = b;
}

FASTNORM_ENTRY void FASTNORM_RUN(add_gradients)(
    const element *dy, const element *x, ptrdiff_t n, real centre, real inverse, int centred, ptrdiff_t ahead, real *sums,
    real *products)
{
    lanes a, b;
    if (centred) FASTNORM_RUN(products_of)(dy, x, NULL, n, centre, inverse, 1, ahead, ahead, &a, &b);
    else FASTNORM_RUN(products_of)(dy, x, NULL, n, 0, inverse, 0, ahead, ahead, &a, &b);
    FASTNORM_NAME(add_lanes)((lanes *)sums, &a), FASTNORM_NAME(add_lanes)((lanes *)products, &b);
}

/* Of FASTNORM_TOGETHER rows, at most, each with a centre and an inverse of its own, and with parameters gamma_step after
   those of the row before; one loop for each kind. Memory is asked for of dy alone: x is swept once more. */
FASTNORM_ONCE void FASTNORM_RUN(few_gradients)(
    const element *dy, ptrdiff_t dy_step, const element *x, ptrdiff_t x_step, ptrdiff_t rows, ptrdiff_t n, const real *gamma,
    ptrdiff_t gamma_step, const real *centre, const real *inverse, int centred, ptrdiff_t ahead, double *sums,
    double *products)
{
    ptrdiff_t k;
#define ROWS(gamma, centred)                                                                                               \
    for (k = 0; k < rows; ++k, dy += dy_step, x += x_step) {                                                               \
        lanes a, b;                                                                                                        \
        FASTNORM_RUN(products_of)(dy, x, gamma, n, (centred) ? centre[k] : 0, inverse[k], centred, ahead, 0, &a, &b);      \
        if (centred) sums[k] = FASTNORM_NAME(fold_lanes)(a);                                                               \
        products[k] = FASTNORM_NAME(fold_lanes)(b);                                                                        \
    }
    if (gamma && centred) ROWS(gamma + k * gamma_step, 1)
    else if (gamma) ROWS(gamma + k * gamma_step, 0)
    else if (centred) ROWS(NULL, 1)
    else ROWS(NULL, 0)
#undef ROWS
}

#undef element
#undef FASTNORM_ENTRY
#undef FASTNORM_RUN
#undef VECTOR_AT
#undef EIGHT_AT
#undef ONE_AT
