/* Sums over rows that lie side by side, for sums.h: element i of row j is x[i * step + j]. Each row is added as run_sums.h
   does it, bit by bit, but a vector holds one element, and one lane, of as many rows as it has elements: there is nothing
   to transpose. They are taken FASTNORM_LANES at a time, of which there are whole ones in `rows`.

   `lanes`: memory for two sums in all lanes of all rows. A lane is added up in all rows before the next one is, so that
   memory is read by runs as long as there are rows. */
#define across FASTNORM_NAME(across)
#define AT(p, i) (*(vector *)((p) + (i)))

/* A number for each of the rows. */
typedef struct {
    vector of[FASTNORM_LANES * sizeof(real) / sizeof(vector)];
} across;

FASTNORM_INLINE across FASTNORM_NAME(load_across)(const real *x)
{
    across a;
    ptrdiff_t k;
    EACH(k, VECTORS) a.of[k] = *(const vector *)(x + k * WIDTH);
    return a;
}

FASTNORM_INLINE across FASTNORM_NAME(load_across_or_zero)(const real *x, int loads)
{
    const across zero = {{{0}}};
    return loads ? FASTNORM_NAME(load_across)(x) : zero;
}

FASTNORM_INLINE void FASTNORM_NAME(add_across)(across *to, across more)
{
    ptrdiff_t k;
    EACH(k, VECTORS) to->of[k] += more.of[k];
}

FASTNORM_INLINE void FASTNORM_NAME(store_across)(real *x, across a)
{
    ptrdiff_t k;
    EACH(k, VECTORS) *(vector *)(x + k * WIDTH) = a.of[k];
}

FASTNORM_INLINE void FASTNORM_NAME(add_lane_across)(real *to, const real *more)
{
    across a = FASTNORM_NAME(load_across)(to);
    FASTNORM_NAME(add_across)(&a, FASTNORM_NAME(load_across)(more));
    FASTNORM_NAME(store_across)(to, a);
}

/* Both sums of each row: the tree of fold_lanes. */
FASTNORM_ONCE void FASTNORM_NAME(fold_across)(real *lanes, ptrdiff_t rows, double *sums, double *others)
{
    const ptrdiff_t apart = 2 * rows;
    ptrdiff_t half, j, k;
    for (j = 0; j < apart; j += FASTNORM_LANES) {
        real *a = lanes + j, *rest = a + (FASTNORM_ALL_LANES - 1) * apart;
        double *to = j < rows ? sums + j : others + j - rows;
        FASTNORM_ROLLED
        for (half = FASTNORM_LANES / 2; half >= FASTNORM_TAIL; half /= 2)
            FASTNORM_ROLLED for (k = 0; k < half; ++k) FASTNORM_NAME(add_lane_across)(a + k * apart, a + (half + k) * apart);
        FASTNORM_ROLLED for (k = 0; k < FASTNORM_TAIL; ++k)
            FASTNORM_NAME(add_lane_across)(a + k * apart, a + (FASTNORM_LANES + k) * apart);
        for (k = 0; k < 4; ++k) FASTNORM_NAME(add_lane_across)(a + k * apart, a + (4 + k) * apart);
        for (k = 0; k < FASTNORM_LANES; ++k)
            to[k] = (((double)a[k] + a[2 * apart + k]) + ((double)a[apart + k] + a[3 * apart + k])) + rest[k];
    }
}

/* guess_centre */
FASTNORM_ONCE void FASTNORM_NAME(turned_guess)(
    const real *x, ptrdiff_t step, ptrdiff_t n, ptrdiff_t rows, real *centre)
{
    const ptrdiff_t places[4] = {0, n / 4, n / 2, n - 8};
    across e[8], other;
    ptrdiff_t i, j, k;
    for (j = 0; j < rows; j += FASTNORM_LANES, x += FASTNORM_LANES) {
        for (i = 0; i < 8; ++i) {
            e[i] = FASTNORM_NAME(load_across)(x + (places[0] + i) * step);
            FASTNORM_NAME(add_across)(&e[i], FASTNORM_NAME(load_across)(x + (places[1] + i) * step));
            other = FASTNORM_NAME(load_across)(x + (places[2] + i) * step);
            FASTNORM_NAME(add_across)(&other, FASTNORM_NAME(load_across)(x + (places[3] + i) * step));
            FASTNORM_NAME(add_across)(&e[i], other);
        }
        for (i = 0; i < 4; ++i) FASTNORM_NAME(add_across)(&e[i], e[4 + i]);
        EACH(k, VECTORS) e[0].of[k] = ((e[0].of[k] + e[2].of[k]) + (e[1].of[k] + e[3].of[k])) / FASTNORM_GUESSED;
        FASTNORM_NAME(store_across)(centre + j, e[0]);
    }
}

/* Σ(x - centre) and Σ(x - centre)², as centred_sums; or Σx² as add_squares, where the centre is 0. */
FASTNORM_ONCE void FASTNORM_NAME(turned_centred_sums)(
    const real *x, ptrdiff_t step, ptrdiff_t n, ptrdiff_t rows, const real *centre, real *lanes, double *sums,
    double *squares)
{
    const ptrdiff_t apart = 2 * rows;
    ptrdiff_t start, length, lane, i, j, k;
    for (start = 0; start < n; start += FASTNORM_SHORT) {
        length = n - start < FASTNORM_SHORT ? n - start : FASTNORM_SHORT;
        for (lane = 0; lane < FASTNORM_ALL_LANES; ++lane) {
            const fastnorm_share share = fastnorm_share_of(lane, length);
            for (j = 0; j < rows; j += FASTNORM_LANES) {
                const across c = FASTNORM_NAME(load_across)(centre + j);
                real *a = lanes + lane * apart + j, *b = a + rows;
                across s = {{{0}}}, q = {{{0}}};
                for (i = share.first; i < share.stop; i += share.step) {
                    EACH(k, VECTORS) {
                        vector d = *(const vector *)(x + (start + i) * step + j + k * WIDTH) - c.of[k];
                        s.of[k] += d, q.of[k] += d * d;
                    }
                }
                FASTNORM_NAME(add_across)(&s, FASTNORM_NAME(load_across_or_zero)(a, start > 0));
                FASTNORM_NAME(add_across)(&q, FASTNORM_NAME(load_across_or_zero)(b, start > 0));
                FASTNORM_NAME(store_across)(a, s), FASTNORM_NAME(store_across)(b, q);
            }
        }
    }
    FASTNORM_NAME(fold_across)(lanes, rows, sums, squares);
}

/* Σh and Σ(h·(x - centre)·inverse), as gradient_sums. */
FASTNORM_ONCE void FASTNORM_NAME(turned_gradient_sums)(
    const real *dy, ptrdiff_t dy_step, const real *x, ptrdiff_t step, const real *gamma, ptrdiff_t n, ptrdiff_t rows,
    const real *centre, const real *inverse, real *lanes, double *sums, double *products)
{
    const ptrdiff_t apart = 2 * rows;
    ptrdiff_t lane, first, stop, i, j, k;
    for (lane = 0; lane < FASTNORM_ALL_LANES; ++lane) {
        const fastnorm_share share = fastnorm_share_of(lane, n);
        first = share.first;
        do {
            stop = first + FASTNORM_STREAMS * share.step;
            if (stop > share.stop) stop = share.stop;
            for (j = 0; j < rows; j += FASTNORM_LANES) {
                const across c = FASTNORM_NAME(load_across)(centre + j), r = FASTNORM_NAME(load_across)(inverse + j);
                real *a = lanes + lane * apart + j, *b = a + rows;
                across s = FASTNORM_NAME(load_across_or_zero)(a, first > share.first);
                across p = FASTNORM_NAME(load_across_or_zero)(b, first > share.first);
                for (i = first; i < stop; i += share.step) {
                    const real weight = gamma ? gamma[i] : 1;
                    EACH(k, VECTORS) {
                        vector h = *(const vector *)(dy + i * dy_step + j + k * WIDTH) * weight;
                        vector v = *(const vector *)(x + i * step + j + k * WIDTH) - c.of[k];
                        s.of[k] += h, p.of[k] += h * (v * r.of[k]);
                    }
                }
                FASTNORM_NAME(store_across)(a, s), FASTNORM_NAME(store_across)(b, p);
            }
            first = stop;
        } while (first < share.stop);
    }
    FASTNORM_NAME(fold_across)(lanes, rows, sums, products);
}

/* y = ((x - centre)·scale + shift)·gamma + beta, of one element of each row. y may be x. */
FASTNORM_INLINE void FASTNORM_NAME(turned_affine)(
    const real *x, real *y, ptrdiff_t rows, const real *centre, const real *scale, const real *shift, real gamma,
    real beta)
{
    ptrdiff_t j;
    for (j = 0; j < rows; j += WIDTH)
        AT(y, j) = ((AT(x, j) - AT(centre, j)) * AT(scale, j) + AT(shift, j)) * gamma + beta;
}

/* dx and dy·x̂ of one element of each row, from its numbers (run_maps.h). products may be x. */
FASTNORM_INLINE void FASTNORM_NAME(turned_gradients)(
    const real *dy, const real *x, real *dx, real *products, ptrdiff_t rows, const real *numbers, real gamma)
{
    const ptrdiff_t apart = FASTNORM_MAX_GROUP;
    ptrdiff_t j;
    for (j = 0; j < rows; j += WIDTH) {
        const real *number = numbers + j;
        vector g = AT(dy, j), h = g * gamma - AT(number, 3 * apart), rstd = AT(number, apart);
        vector x_hat = (AT(x, j) - AT(number, 0)) * rstd + AT(number, 2 * apart);
        AT(products, j) = g * x_hat;
        AT(dx, j) = (h - x_hat * AT(number, 4 * apart)) * rstd;
    }
}

/* sums += the rows of a tile of FASTNORM_SIDE columns, one after another */
FASTNORM_INLINE void FASTNORM_NAME(add_rows)(const real *tile, ptrdiff_t rows, real *sums)
{
    vector a[FASTNORM_SIDE * sizeof(real) / sizeof(vector)];
    ptrdiff_t j, k;
    memcpy(a, sums, sizeof a);
    for (j = 0; j < rows; ++j)
        EACH(k, FASTNORM_SIDE / WIDTH) a[k] += *(const vector *)(tile + j * FASTNORM_SIDE + k * WIDTH);
    memcpy(sums, a, sizeof a);
}

#undef AT
#undef across
