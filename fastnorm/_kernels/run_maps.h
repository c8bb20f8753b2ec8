/* Maps of a run of `real`, for maps.h, which includes this for float and for double. */

#define vector FASTNORM_NAME(vector)
#define numbers FASTNORM_NAME(numbers)
#define numbers_of_each FASTNORM_NAME(numbers_of_each)
#define WIDTH ((ptrdiff_t)(sizeof(vector) / sizeof(real)))

typedef struct {
    real centre, slope, shift, scale, weight;
} numbers;

/* One of each for every column; those that a map does not have are not read. */
typedef struct {
    const real *centre, *slope, *shift, *scale, *weight;
} numbers_of_each;

/* Elements from the last place before p, or at it, where memory has a whole vector. */
FASTNORM_INLINE ptrdiff_t FASTNORM_NAME(before)(const real *p) { return (ptrdiff_t)((uintptr_t)p / sizeof(real) % WIDTH); }

#define EACH(k, count) FASTNORM_UNROLL for (k = 0; k < (count); ++k)
#define AT(type, p, i) (*(type *)((p) + (i)))
#define NUMBER(name, type) ((type)(m.name - (type){0}))
#define MAPPED(type, i) FASTNORM_MAPPED(map, AT(type, dy, i), AT(type, x, i), NUMBER, type)
#define WEIGHTED(type, i) (gamma ? MAPPED(type, i) * AT(type, gamma, i) : MAPPED(type, i))
#define VALUE(type, i) (beta ? WEIGHTED(type, i) + AT(type, beta, i) : WEIGHTED(type, i))

/* By the numbers m; and then times gamma, plus beta, where these are not NULL. A vector that lies in two lines takes twice as
   long to load or to store, and NumPy's large arrays begin 16 bytes after a line. So all vectors but the first and the last
   begin where y has a line, or gamma, whose lines are y's if a row is whole lines. Some elements are thus computed twice: as
   y may be x or dy, a vector is loaded before the one before it is stored. */
FASTNORM_INLINE void FASTNORM_NAME(map_run)(
    fastnorm_map map, const real *dy, const real *x, real *y, ptrdiff_t n, numbers m, const real *gamma, const real *beta)
{
    const real *lines = gamma ? gamma : beta ? beta : y;
    const ptrdiff_t last = n - WIDTH, stop = last < WIDTH ? 0 : last; /* or else the first and the last are all */
    ptrdiff_t i = 0, next = WIDTH - FASTNORM_NAME(before)(lines);
    vector value, next_value;
    if (last < 0) {
        FASTNORM_ROLLED
        for (; i < n; ++i) {
            y[i] = VALUE(real, i);
            FASTNORM_HAS_EFFECT(); /* else compilers make vectors of this too */
        }
        return;
    }
    value = VALUE(vector, 0);
    FASTNORM_UNROLL_BY(4)
    for (; next < stop; i = next, next += WIDTH) {
        next_value = VALUE(vector, next);
        AT(vector, y, i) = value;
        value = next_value;
    }
    next_value = VALUE(vector, last);
    AT(vector, y, i) = value, AT(vector, y, last) = next_value;
}

#undef VALUE
#undef WEIGHTED
#undef MAPPED
#undef NUMBER

/* Of some rows, which have numbers of their own, `apart` from those of the row before; one loop for each map. NULL stands
   for those that a map does not have. y_ahead: elements from a row of y to what will be written after these rows, and is
   asked for, or 0. */
FASTNORM_ONCE void FASTNORM_NAME(map_rows)(
    fastnorm_map map, ptrdiff_t rows, const real *dy, ptrdiff_t dy_step, const real *x, ptrdiff_t x_step, real *y,
    ptrdiff_t y_step, ptrdiff_t n, const real *centre, const real *slope, const real *shift, const real *scale,
    const real *weight, ptrdiff_t apart, ptrdiff_t y_ahead)
{
    ptrdiff_t k;
#define CASE(_, one)                                                                                 \
    if (map == one) {                                                                                \
        for (k = 0; rows > 0; --rows, dy += dy_step, x += x_step, y += y_step, k += apart) {         \
            numbers m = {0, 0, 0, scale[k], 0};                                                      \
            if (FASTNORM_IS_CENTRED(one)) m.centre = centre[k], m.shift = shift[k];                  \
            if (FASTNORM_IS_GRADIENT(one)) m.slope = slope[k];                                       \
            if (one == FASTNORM_WEIGHTED_GRADIENT) m.weight = weight[k];                             \
            if (y_ahead) fastnorm_prefetch(y + y_ahead, n * sizeof(real));                           \
            FASTNORM_NAME(map_run)(one, FASTNORM_IS_GRADIENT(one) ? dy : x, x, y, n, m, NULL, NULL); \
        }                                                                                            \
    }
    FASTNORM_MAPS(CASE)
#undef CASE
}

/* The same times gamma, plus beta, one of which may be NULL: x̂·gamma + beta with x̂ = (x - centre)·scale + shift, or x·scale
   where rows are not centred, and then there is no beta. */
FASTNORM_ONCE void FASTNORM_NAME(affine_rows)(
    ptrdiff_t rows, const real *x, ptrdiff_t x_step, real *y, ptrdiff_t y_step, ptrdiff_t n, int centred,
    const real *centre, const real *scale, const real *shift, const real *gamma, const real *beta)
{
#define ROWS(map, gamma, beta)                                   \
    for (; rows > 0; --rows, x += x_step, y += y_step) {         \
        const numbers m = {*centre++, 0, *shift++, *scale++, 0}; \
        FASTNORM_NAME(map_run)(map, x, x, y, n, m, gamma, beta); \
    }
    if (!centred) ROWS(FASTNORM_SCALE, gamma, NULL)
    else if (!gamma) ROWS(FASTNORM_SCALE_SHIFT, NULL, beta)
    else if (!beta) ROWS(FASTNORM_SCALE_SHIFT, gamma, NULL)
    else ROWS(FASTNORM_SCALE_SHIFT, gamma, beta)
#undef ROWS
}

/* A column that is less than a few rows away. */
FASTNORM_INLINE ptrdiff_t FASTNORM_NAME(column_of)(ptrdiff_t column, ptrdiff_t width)
{
    while (column < 0) column += width;
    while (column >= width) column -= width;
    return column;
}

#define NUMBER(name, type, j) AT(type, each->name, j)
#define VALUE(type, i, j) FASTNORM_MAPPED(map, AT(type, dy, i), AT(type, x, i), NUMBER, type, j)

/* By the numbers of columns, from `column` on. Vectors begin as in map_run, and may go on in the next row. Returns the
   column of element n. */
FASTNORM_INLINE ptrdiff_t FASTNORM_NAME(map_some_columns)(
    fastnorm_map map, const real *dy, const real *x, real *y, ptrdiff_t n, ptrdiff_t column, ptrdiff_t width,
    const numbers_of_each *each)
{
    const ptrdiff_t last = n - WIDTH, stop = last < WIDTH ? 0 : last;
    ptrdiff_t i = 0, next = WIDTH - FASTNORM_NAME(before)(y), j = column + next;
    vector value, next_value;
    if (last < 0) {
        FASTNORM_ROLLED
        for (; i < n; ++i) {
            y[i] = VALUE(real, i, column + i);
            FASTNORM_HAS_EFFECT();
        }
        return FASTNORM_NAME(column_of)(column + n, width);
    }
    value = VALUE(vector, 0, column);
    while (next < stop) {
        ptrdiff_t end, k;
        j = FASTNORM_NAME(column_of)(j, width);
        end = width - j < stop - next ? width - j : stop - next;
        FASTNORM_UNROLL_BY(4)
        for (k = 0; k < end; k += WIDTH) {
            next_value = VALUE(vector, next + k, j + k);
            AT(vector, y, i) = value;
            value = next_value;
            i = next + k;
        }
        next += k, j += k;
    }
    j = FASTNORM_NAME(column_of)(j + last - next, width);
    next_value = VALUE(vector, last, j);
    AT(vector, y, i) = value, AT(vector, y, last) = next_value;
    return FASTNORM_NAME(column_of)(j + WIDTH, width);
}

#undef VALUE
#undef NUMBER

/* A run of elements of rows that follow upon one another, by the numbers of their columns: the first element is of `column`,
   and the numbers of the first columns follow those of the last, as many as a vector has. One loop for each map. What comes
   `ahead` elements later is asked for, if that is not 0, a few lines at a time before they are mapped: loops take 1.3 times
   as long if they ask in passing. */
FASTNORM_ONCE void FASTNORM_NAME(map_columns)(
    fastnorm_map map, const real *dy, const real *x, real *y, ptrdiff_t n, ptrdiff_t column, ptrdiff_t width,
    const real *centre, const real *slope, const real *shift, const real *scale, const real *weight, ptrdiff_t ahead)
{
    const numbers_of_each each = {centre, slope, shift, scale, weight};
    const ptrdiff_t at_once = ahead ? FASTNORM_ASKED / (ptrdiff_t)sizeof(real) : n;
    ptrdiff_t some;
#define CASE(_, one)                                                                                        \
    if (map == one) {                                                                                       \
        for (; n > 0; dy += some, x += some, y += some, n -= some) {                                        \
            some = n < at_once ? n : at_once;                                                               \
            if (ahead) fastnorm_prefetch_far(x + ahead, some * sizeof(real));                               \
            if (ahead && FASTNORM_IS_GRADIENT(one)) fastnorm_prefetch_far(dy + ahead, some * sizeof(real)); \
            column = FASTNORM_NAME(map_some_columns)(                                                       \
                one, FASTNORM_IS_GRADIENT(one) ? dy : x, x, y, some, column, width, &each);                 \
        }                                                                                                   \
    }
    FASTNORM_MAPS(CASE)
#undef CASE
}

/* What the rows' numbers are, FASTNORM_MAX_GROUP apart, in m, once: in the loop each would be loaded for every vector, since
   it might be what a store there has changed. */
#define LOAD_NUMBERS(zero)        \
    EACH(j, FASTNORM_ROW_NUMBERS) \
    EACH(k, rows) m[j][k] = row_numbers[j * FASTNORM_MAX_GROUP + k] - (zero)

/* One vector of a few rows, or one element, which have the numbers m:

       dx = rstd·(h - mean_h - x̂·mean_hx)  with  h = dy·gamma,
       dgamma += dy·x̂,  dbeta += dy        and   x̂ = (x - centre)·rstd + shift

   The rows are added one after another, but their sums are loaded and stored once. All is loaded before anything is stored: a
   load waits for a store that is whole pages away, as rows of dx and of x often are, as if it were to the same place. Not
   centred: x̂ = x·rstd, mean_h is 0, and there is no dbeta. */
#define GRADIENTS(type, i, to, to_step)                                 \
    do {                                                                \
        type a = AT(type, dgamma, i), b, h[4], x_hat[4];                \
        const type g = AT(type, gamma, i * gamma_step);                 \
        if (centred) b = AT(type, dbeta, i);                            \
        EACH(k, rows) h[k] = AT(type, dy, k * dy_step + i);             \
        EACH(k, rows) x_hat[k] = AT(type, x, k * x_step + i);           \
        EACH(k, rows) {                                                 \
            const type centre = m[0][k], rstd = m[1][k];                \
            const type shift = m[2][k], mean_h = m[3][k];               \
            const type mean_hx = m[4][k];                               \
            if (centred) x_hat[k] = (x_hat[k] - centre) * rstd + shift; \
            else x_hat[k] *= rstd;                                      \
            a += h[k] * x_hat[k];                                       \
            if (centred) b += h[k];                                     \
            h[k] *= g;                                                  \
            if (centred) h[k] -= mean_h;                                \
            h[k] = (h[k] - x_hat[k] * mean_hx) * rstd;                  \
            AT(type, to, k * (to_step)) = h[k];                         \
        }                                                               \
        AT(type, dgamma, i) = a;                                        \
        if (centred) AT(type, dbeta, i) = b;                            \
    } while (0)

/* The first or the last vector, of which others have the elements from `kept` on too, and add them up. */
#define EDGE(i, kept, to)                                       \
    do {                                                        \
        const vector a = AT(vector, dgamma, kept);              \
        const vector b = centred ? AT(vector, dbeta, kept) : a; \
        GRADIENTS(vector, i, to, WIDTH);                        \
        AT(vector, dgamma, kept) = a;                           \
        if (centred) AT(vector, dbeta, kept) = b;               \
    } while (0)

/* At least two vectors of each row. They begin where dgamma has whole ones, as do those of dx if a row is whole lines. */
FASTNORM_INLINE void FASTNORM_NAME(gradients_of)(
    const ptrdiff_t rows, const int centred, const real *dy, ptrdiff_t dy_step, const real *x, ptrdiff_t x_step,
    const real *gamma, real *dx, ptrdiff_t dx_step, real *dgamma, real *dbeta, ptrdiff_t n, const real *row_numbers,
    ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
    const vector ones = 1 - (vector){0};
    const ptrdiff_t gamma_step = gamma ? 1 : 0, last = n - WIDTH;
    const ptrdiff_t first = (WIDTH - FASTNORM_NAME(before)(dgamma)) % WIDTH;
    const ptrdiff_t whole = n - (n - first) % WIDTH;
    const int from_end = !ahead && !dx_ahead && fastnorm_from_end(dy, x, dx);
    const ptrdiff_t step = from_end ? -WIDTH : WIDTH, end = from_end ? first - WIDTH : whole;
    const ptrdiff_t evenly = from_end ? -FASTNORM_EVENLY : FASTNORM_EVENLY;
    vector edges[2][4], m[FASTNORM_ROW_NUMBERS][4];
    ptrdiff_t i, j, k;
    LOAD_NUMBERS((vector){0});
    if (!gamma) gamma = (const real *)&ones;
    if (first > 0) EDGE(0, first, (real *)edges[0]);
    if (whole < n) EDGE(last, whole - WIDTH, (real *)edges[1]);
    i = from_end ? whole - WIDTH : first;
    while (i != end) {
        const ptrdiff_t stop = (from_end ? i - end : end - i) < FASTNORM_EVENLY ? end : i + evenly;
        for (k = 0; ahead && k < rows; ++k)
            fastnorm_prefetch_far(x + k * x_step + i + ahead, (stop - i) * sizeof(real));
        for (k = 0; dx_ahead && k < rows; ++k)
            fastnorm_prefetch_far(dx + k * dx_step + i + dx_ahead, (stop - i) * sizeof(real));
        for (; i != stop; i += step) GRADIENTS(vector, i, dx + i, dx_step);
    }
    for (k = 0; first > 0 && k < rows; ++k) AT(vector, dx, k * dx_step) = edges[0][k];
    for (k = 0; whole < n && k < rows; ++k) AT(vector, dx, k * dx_step + last) = edges[1][k];
}

/* Less of one row. */
FASTNORM_ONCE void FASTNORM_NAME(short_gradients)(
    int centred, const real *dy, const real *x, const real *gamma, real *dx, real *dgamma, real *dbeta, ptrdiff_t n,
    const real *row_numbers)
{
    const real one = 1;
    const ptrdiff_t rows = 1, dy_step = 0, x_step = 0, gamma_step = gamma ? 1 : 0;
    real m[FASTNORM_ROW_NUMBERS][1];
    ptrdiff_t i, j, k;
    LOAD_NUMBERS(0);
    if (!gamma) gamma = &one;
    FASTNORM_ROLLED
    for (i = 0; i < n; ++i) {
        GRADIENTS(real, i, dx + i, 0);
        FASTNORM_HAS_EFFECT();
    }
}

#undef EDGE
#undef GRADIENTS
#undef LOAD_NUMBERS

/* Of 1, 2 or 4 rows; one loop for each kind. gamma is 1 where it is NULL. From a row to the next it is dy_step, x_step,
   dx_step elements. */
FASTNORM_ONCE void FASTNORM_NAME(row_gradients)(
    ptrdiff_t rows, int centred, const real *dy, ptrdiff_t dy_step, const real *x, ptrdiff_t x_step,
    const real *gamma, real *dx, ptrdiff_t dx_step, real *dgamma, real *dbeta, ptrdiff_t n,
    const real *row_numbers, ptrdiff_t ahead, ptrdiff_t dx_ahead)
{
    if (n < 2 * WIDTH) {
        for (; rows > 0; --rows, dy += dy_step, x += x_step, dx += dx_step, ++row_numbers)
            FASTNORM_NAME(short_gradients)(centred, dy, x, gamma, dx, dgamma, dbeta, n, row_numbers);
        return;
    }
#define KIND(rows, centred)      \
    FASTNORM_NAME(gradients_of)( \
        rows, centred, dy, dy_step, x, x_step, gamma, dx, dx_step, dgamma, dbeta, n, row_numbers, ahead, dx_ahead)
    if (rows == 4) centred ? KIND(4, 1) : KIND(4, 0);
    else if (rows == 2) centred ? KIND(2, 1) : KIND(2, 0);
    else centred ? KIND(1, 1) : KIND(1, 0);
#undef KIND
}

#undef AT
#undef EACH
#undef WIDTH
#undef numbers_of_each
#undef numbers
#undef vector
