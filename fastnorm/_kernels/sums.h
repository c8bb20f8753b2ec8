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

/* A tree: halves are added until four lanes are left, which end in double. */
FASTNORM_INLINE double FASTNORM_NAME(fold_lanes)(lanes a)
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
    return (((double)last[0] + last[2]) + ((double)last[1] + last[3])) + a.rest;
}

FASTNORM_INLINE double FASTNORM_NAME(fold)(const real *a)
{
    lanes copy;
    memcpy(&copy, a, sizeof copy);
    return FASTNORM_NAME(fold_lanes)(copy);
}

/* Σx */
FASTNORM_INLINE double FASTNORM_NAME(sum)(const real *x, ptrdiff_t n)
{
    lanes a = FASTNORM_NAME(no_lanes)();
    ptrdiff_t i = 0, k;
    for (; i + FASTNORM_LANES <= n; i += FASTNORM_LANES)
        EACH(k, VECTORS) a.main[k] += *(const vector *)(x + i + k * WIDTH);
    for (; i + FASTNORM_TAIL <= n; i += FASTNORM_TAIL) EACH(k, EIGHTS) a.tail[k] += ((const eight *)(x + i))[k];
    for (; i < n; ++i) a.rest += x[i];
    return FASTNORM_NAME(fold_lanes)(a);
}

/* sums += x - centre;  squares += (x - centre)² */
FASTNORM_INLINE void FASTNORM_NAME(add_short_centred)(
    const real *x, ptrdiff_t n, real centre, ptrdiff_t ahead, lanes *sums, lanes *squares)
{
    lanes a = *sums, b = *squares;
    ptrdiff_t i = 0, k;
    for (; i + FASTNORM_LANES <= n; i += FASTNORM_LANES) {
        if (ahead) fastnorm_prefetch_far(x + i + ahead, FASTNORM_LANES * sizeof(real));
        EACH(k, VECTORS) {
            vector d = *(const vector *)(x + i + k * WIDTH) - centre;
            a.main[k] += d, b.main[k] += d * d;
        }
    }
    for (; i + FASTNORM_TAIL <= n; i += FASTNORM_TAIL) {
        EACH(k, EIGHTS) {
            eight d = ((const eight *)(x + i))[k] - centre;
            a.tail[k] += d, b.tail[k] += d * d;
        }
    }
    for (; i < n; ++i) {
        real d = x[i] - centre;
        a.rest += d, b.rest += d * d;
    }
    *sums = a, *squares = b;
}

/* The same by short sums, which are added to long ones. Where the mean is large, x - centre is a small multiple k of
   the last digit of x, and k² mod 8 is 0, 1 or 4: added one by one to a large sum, squares round down more often than
   up. Sums of 16 do not. */
FASTNORM_INLINE void FASTNORM_NAME(add_centred_lanes)(
    const real *x, ptrdiff_t n, real centre, ptrdiff_t ahead, lanes *sums, lanes *squares)
{
    ptrdiff_t i;
    for (i = 0; i < n; i += FASTNORM_SHORT) {
        lanes a = FASTNORM_NAME(no_lanes)(), b = a;
        FASTNORM_NAME(add_short_centred)(x + i, n - i < FASTNORM_SHORT ? n - i : FASTNORM_SHORT, centre, ahead, &a, &b);
        FASTNORM_NAME(add_lanes)(sums, &a), FASTNORM_NAME(add_lanes)(squares, &b);
    }
}

FASTNORM_INLINE void FASTNORM_NAME(add_centred)(
    const real *x, ptrdiff_t n, real centre, ptrdiff_t ahead, real *sums, real *squares)
{
    FASTNORM_NAME(add_centred_lanes)(x, n, centre, ahead, (lanes *)sums, (lanes *)squares);
}

FASTNORM_INLINE void FASTNORM_NAME(centred_sums)(
    const real *x, ptrdiff_t n, real centre, ptrdiff_t ahead, double *sum, double *squares)
{
    lanes a = FASTNORM_NAME(no_lanes)(), b = a;
    if (n <= FASTNORM_SHORT)
        FASTNORM_NAME(add_short_centred)(x, n, centre, ahead, &a, &b);
    else
        FASTNORM_NAME(add_centred_lanes)(x, n, centre, ahead, &a, &b);
    *sum = FASTNORM_NAME(fold_lanes)(a), *squares = FASTNORM_NAME(fold_lanes)(b);
}

/* squares += x². Short sums are added to long ones: equal terms, such as those of a constant row, round the same way
   at every addition to a long one. */
FASTNORM_INLINE void FASTNORM_NAME(add_squares)(const real *x, ptrdiff_t n, ptrdiff_t ahead, real *squares)
{
    ptrdiff_t i = 0, k, stop;
    while (i < n) {
        lanes a = FASTNORM_NAME(no_lanes)();
        stop = n - i < FASTNORM_SHORT ? n : i + FASTNORM_SHORT;
        for (; i + FASTNORM_LANES <= stop; i += FASTNORM_LANES) {
            if (ahead) fastnorm_prefetch_far(x + i + ahead, FASTNORM_LANES * sizeof(real));
            EACH(k, VECTORS) {
                vector v = *(const vector *)(x + i + k * WIDTH);
                a.main[k] += v * v;
            }
        }
        for (; i + FASTNORM_TAIL <= stop; i += FASTNORM_TAIL) {
            EACH(k, EIGHTS) {
                eight v = ((const eight *)(x + i))[k];
                a.tail[k] += v * v;
            }
        }
        for (; i < stop; ++i) a.rest += x[i] * x[i];
        FASTNORM_NAME(add_lanes)((lanes *)squares, &a);
    }
}

/* sums += h;  products += h·(x - centre)·inverse  with h = dy·gamma, or dy where there is no gamma. Not centred: the
   centre is 0, and the sums are not wanted. x_ahead: the same for x. */
FASTNORM_INLINE void FASTNORM_NAME(add_products)(
    const real *dy, const real *x, const real *gamma, ptrdiff_t n, real centre, real inverse, int centred,
    ptrdiff_t ahead, ptrdiff_t x_ahead, lanes *sums, lanes *products)
{
    lanes a = FASTNORM_NAME(no_lanes)(), b = a;
    ptrdiff_t i = 0, k;
    for (; i + FASTNORM_LANES <= n; i += FASTNORM_LANES) {
        if (ahead) fastnorm_prefetch_far(dy + i + ahead, FASTNORM_LANES * sizeof(real));
        if (x_ahead) fastnorm_prefetch_far(x + i + x_ahead, FASTNORM_LANES * sizeof(real));
        EACH(k, VECTORS) {
            vector h = *(const vector *)(dy + i + k * WIDTH), v = *(const vector *)(x + i + k * WIDTH);
            if (gamma) h *= *(const vector *)(gamma + i + k * WIDTH);
            if (centred) v -= centre, a.main[k] += h;
            b.main[k] += h * (v * inverse);
        }
    }
    for (; i + FASTNORM_TAIL <= n; i += FASTNORM_TAIL) {
        EACH(k, EIGHTS) {
            eight h = ((const eight *)(dy + i))[k], v = ((const eight *)(x + i))[k];
            if (gamma) h *= ((const eight *)(gamma + i))[k];
            if (centred) v -= centre, a.tail[k] += h;
            b.tail[k] += h * (v * inverse);
        }
    }
    for (; i < n; ++i) {
        real h = gamma ? dy[i] * gamma[i] : dy[i];
        real v = centred ? x[i] - centre : x[i];
        a.rest += h, b.rest += h * (v * inverse);
    }
    FASTNORM_NAME(add_lanes)(sums, &a), FASTNORM_NAME(add_lanes)(products, &b);
}

/* One loop for each kind. */
FASTNORM_INLINE void FASTNORM_NAME(add_gradient_lanes)(
    const real *dy, const real *x, const real *gamma, ptrdiff_t n, real centre, real inverse, int centred,
    ptrdiff_t ahead, ptrdiff_t x_ahead, lanes *sums, lanes *products)
{
    if (gamma && centred)
        FASTNORM_NAME(add_products)(dy, x, gamma, n, centre, inverse, 1, ahead, x_ahead, sums, products);
    else if (gamma)
        FASTNORM_NAME(add_products)(dy, x, gamma, n, 0, inverse, 0, ahead, x_ahead, sums, products);
    else if (centred)
        FASTNORM_NAME(add_products)(dy, x, NULL, n, centre, inverse, 1, ahead, x_ahead, sums, products);
    else
        FASTNORM_NAME(add_products)(dy, x, NULL, n, 0, inverse, 0, ahead, x_ahead, sums, products);
}

FASTNORM_INLINE void FASTNORM_NAME(add_gradients)(
    const real *dy, const real *x, ptrdiff_t n, real centre, real inverse, int centred, ptrdiff_t ahead, real *sums,
    real *products)
{
    FASTNORM_NAME(add_gradient_lanes)(
        dy, x, NULL, n, centre, inverse, centred, ahead, ahead, (lanes *)sums, (lanes *)products);
}

/* Memory is asked for of dy alone: x is swept once more. */
FASTNORM_INLINE void FASTNORM_NAME(gradient_sums)(
    const real *dy, const real *x, const real *gamma, ptrdiff_t n, real centre, real inverse, int centred,
    ptrdiff_t ahead, double *sum, double *products)
{
    lanes a = FASTNORM_NAME(no_lanes)(), b = a;
    FASTNORM_NAME(add_gradient_lanes)(dy, x, gamma, n, centre, inverse, centred, ahead, 0, &a, &b);
    *sum = FASTNORM_NAME(fold_lanes)(a), *products = FASTNORM_NAME(fold_lanes)(b);
}

/* A mean of FASTNORM_GUESSED elements, eight at each of four places. n is at least as many. */
FASTNORM_INLINE real FASTNORM_NAME(guess_centre)(const real *x, ptrdiff_t n)
{
    const eight *a = (const eight *)x, *b = (const eight *)(x + n / 4);
    const eight *c = (const eight *)(x + n / 2), *d = (const eight *)(x + n - 8);
    eight e[8 * sizeof(real) / sizeof(eight)];
    quad q[8 * sizeof(real) / sizeof(quad)];
    real last[4];
    ptrdiff_t k;
    EACH(k, EIGHTS) e[k] = (a[k] + b[k]) + (c[k] + d[k]);
    memcpy(q, e, sizeof q);
    EACH(k, QUADS) q[k] += q[QUADS + k];
    memcpy(last, q, sizeof last);
    return ((last[0] + last[2]) + (last[1] + last[3])) / FASTNORM_GUESSED;
}

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

       dx = scale·(h - mean_h - x̂·mean_hx)  with  h = dy·gamma, or dy where there is no gamma,
       dgamma += dy·x̂,  dbeta += dy         and   x̂ = (x - centre)·rstd + shift

   The rows are added one after another, but their sums are loaded and stored once. Not centred: x̂ = x·rstd, mean_h is 0,
   and there is no dbeta. */
#define GRADIENTS(type, i)                                                   \
    do {                                                                     \
        type a = *(const type *)(dgamma + i), b, g;                          \
        if (centred) b = *(const type *)(dbeta + i);                         \
        if (gamma) g = *(const type *)(gamma + i);                           \
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
            if (gamma) h *= g;                                               \
            if (centred) h -= mean_h;                                        \
            *(type *)(dx + k * dx_step + i) = (h - x_hat * mean_hx) * scale; \
        }                                                                    \
        *(type *)(dgamma + i) = a;                                           \
        if (centred) *(type *)(dbeta + i) = b;                               \
    } while (0)

FASTNORM_INLINE void FASTNORM_NAME(gradients_of)(
    const ptrdiff_t rows, const int centred, const real *dy, ptrdiff_t dy_step, const real *x, ptrdiff_t x_step,
    const real *gamma, real *dx, ptrdiff_t dx_step, real *dgamma, real *dbeta, ptrdiff_t n, const real *numbers,
    ptrdiff_t ahead)
{
    const ptrdiff_t whole = n - n % WIDTH;
    ptrdiff_t i = 0, k;
    while (i < whole) {
        const ptrdiff_t stop = whole - i < FASTNORM_EVENLY ? whole : i + FASTNORM_EVENLY;
        for (k = 0; ahead && k < rows; ++k)
            fastnorm_prefetch_far(x + k * x_step + i + ahead, (stop - i) * sizeof(real));
        for (; i < stop; i += WIDTH) GRADIENTS(vector, i);
    }
    for (; WIDTH > 1 && i + WIDTH / 2 <= n; i += WIDTH / 2) GRADIENTS(half, i);
    for (; i < n; ++i) GRADIENTS(real, i);
}

#undef GRADIENTS

/* Of 1, 2 or 4 rows; one loop for each kind. From a row to the next it is dy_step, x_step, dx_step elements. */
FASTNORM_ONCE void FASTNORM_NAME(row_gradients)(
    ptrdiff_t rows, int centred, const real *dy, ptrdiff_t dy_step, const real *x, ptrdiff_t x_step,
    const real *gamma, real *dx, ptrdiff_t dx_step, real *dgamma, real *dbeta, ptrdiff_t n,
    const real *numbers, ptrdiff_t ahead)
{
#define KIND(rows, centred, gamma) \
    FASTNORM_NAME(gradients_of)(   \
        rows, centred, dy, dy_step, x, x_step, gamma, dx, dx_step, dgamma, dbeta, n, numbers, ahead)
#define KINDS(rows)                                 \
    do {                                            \
        if (centred && gamma) KIND(rows, 1, gamma); \
        else if (centred) KIND(rows, 1, NULL);      \
        else if (gamma) KIND(rows, 0, gamma);       \
        else KIND(rows, 0, NULL);                   \
    } while (0)
    if (rows == 4) KINDS(4);
    else if (rows == 2) KINDS(2);
    else KINDS(1);
#undef KINDS
#undef KIND
}

#undef EACH
#undef QUADS
#undef EIGHTS
#undef VECTORS
#undef WIDTH
#undef lanes
#undef quad
#undef eight
#undef half
#undef vector
