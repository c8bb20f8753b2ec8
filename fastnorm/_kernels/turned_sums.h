/* Sums over FASTNORM_LANES rows that lie side by side, for sums.h: element i of row j is x[i * step + j]. Each row is
   added as run_sums.h does it, bit by bit, but a vector holds one element, and one lane, of as many rows as it has
   elements: there is nothing to transpose. */
#define across FASTNORM_NAME(across)
#define all_lanes_across FASTNORM_NAME(all_lanes_across)

/* A number for each of the rows. */
typedef struct {
    vector of[FASTNORM_LANES * sizeof(real) / sizeof(vector)];
} across;

typedef struct {
    across of[FASTNORM_ALL_LANES];
} all_lanes_across;

FASTNORM_INLINE across FASTNORM_NAME(load_across)(const real *x)
{
    across a;
    ptrdiff_t k;
    EACH(k, VECTORS) a.of[k] = *(const vector *)(x + k * WIDTH);
    return a;
}

FASTNORM_INLINE void FASTNORM_NAME(add_across)(across *to, across more)
{
    ptrdiff_t k;
    EACH(k, VECTORS) to->of[k] += more.of[k];
}

/* The tree of fold_lanes. */
FASTNORM_INLINE void FASTNORM_NAME(fold_across)(all_lanes_across *a, double *sums)
{
    const real *quarter[4], *rest = (const real *)&a->of[FASTNORM_ALL_LANES - 1];
    ptrdiff_t k, half;
    for (half = FASTNORM_LANES / 2; half >= FASTNORM_TAIL; half /= 2)
        for (k = 0; k < half; ++k) FASTNORM_NAME(add_across)(&a->of[k], a->of[half + k]);
    for (k = 0; k < FASTNORM_TAIL; ++k) FASTNORM_NAME(add_across)(&a->of[k], a->of[FASTNORM_LANES + k]);
    for (k = 0; k < 4; ++k) {
        FASTNORM_NAME(add_across)(&a->of[k], a->of[4 + k]);
        quarter[k] = (const real *)&a->of[k];
    }
    for (k = 0; k < FASTNORM_LANES; ++k)
        sums[k] = (((double)quarter[0][k] + quarter[2][k]) + ((double)quarter[1][k] + quarter[3][k])) + rest[k];
}

/* guess_centre */
FASTNORM_ONCE void FASTNORM_NAME(turned_guess)(const real *x, ptrdiff_t step, ptrdiff_t n, real *centre)
{
    const ptrdiff_t places[4] = {0, n / 4, n / 2, n - 8};
    across e[8], other;
    ptrdiff_t i, k;
    for (i = 0; i < 8; ++i) {
        e[i] = FASTNORM_NAME(load_across)(x + (places[0] + i) * step);
        FASTNORM_NAME(add_across)(&e[i], FASTNORM_NAME(load_across)(x + (places[1] + i) * step));
        other = FASTNORM_NAME(load_across)(x + (places[2] + i) * step);
        FASTNORM_NAME(add_across)(&other, FASTNORM_NAME(load_across)(x + (places[3] + i) * step));
        FASTNORM_NAME(add_across)(&e[i], other);
    }
    for (i = 0; i < 4; ++i) FASTNORM_NAME(add_across)(&e[i], e[4 + i]);
    EACH(k, VECTORS) e[0].of[k] = ((e[0].of[k] + e[2].of[k]) + (e[1].of[k] + e[3].of[k])) / FASTNORM_GUESSED;
    memcpy(centre, &e[0], sizeof e[0]);
}

/* Σ(x - centre) and Σ(x - centre)², as centred_sums; or Σx² as add_squares, where the centre is 0. */
FASTNORM_ONCE void FASTNORM_NAME(turned_centred_sums)(
    const real *x, ptrdiff_t step, ptrdiff_t n, const real *centre, double *sums, double *squares)
{
    const across c = FASTNORM_NAME(load_across)(centre);
    all_lanes_across a, b;
    ptrdiff_t start, length, lane, i, k;
    memset(&a, 0, sizeof a), memset(&b, 0, sizeof b);
    for (start = 0; start < n; start += FASTNORM_SHORT) {
        length = n - start < FASTNORM_SHORT ? n - start : FASTNORM_SHORT;
        for (lane = 0; lane < FASTNORM_ALL_LANES; ++lane) {
            const fastnorm_share share = fastnorm_share_of(lane, length);
            across s = {{{0}}}, q = {{{0}}};
            for (i = share.first; i < share.stop; i += share.step) {
                EACH(k, VECTORS) {
                    vector d = *(const vector *)(x + (start + i) * step + k * WIDTH) - c.of[k];
                    s.of[k] += d, q.of[k] += d * d;
                }
            }
            FASTNORM_NAME(add_across)(&a.of[lane], s), FASTNORM_NAME(add_across)(&b.of[lane], q);
        }
    }
    FASTNORM_NAME(fold_across)(&a, sums), FASTNORM_NAME(fold_across)(&b, squares);
}

/* Σh and Σ(h·(x - centre)·inverse), as gradient_sums. */
FASTNORM_ONCE void FASTNORM_NAME(turned_gradient_sums)(
    const real *dy, const real *x, ptrdiff_t step, const real *gamma, ptrdiff_t n, const real *centre,
    const real *inverse, double *sums, double *products)
{
    const across c = FASTNORM_NAME(load_across)(centre), r = FASTNORM_NAME(load_across)(inverse);
    all_lanes_across a, b;
    ptrdiff_t lane, i, k;
    for (lane = 0; lane < FASTNORM_ALL_LANES; ++lane) {
        const fastnorm_share share = fastnorm_share_of(lane, n);
        across s = {{{0}}}, p = {{{0}}};
        for (i = share.first; i < share.stop; i += share.step) {
            const real weight = gamma ? gamma[i] : 1;
            EACH(k, VECTORS) {
                vector h = *(const vector *)(dy + i * step + k * WIDTH) * weight;
                vector v = *(const vector *)(x + i * step + k * WIDTH) - c.of[k];
                s.of[k] += h, p.of[k] += h * (v * r.of[k]);
            }
        }
        a.of[lane] = s, b.of[lane] = p;
    }
    FASTNORM_NAME(fold_across)(&a, sums), FASTNORM_NAME(fold_across)(&b, products);
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

#undef all_lanes_across
#undef across
