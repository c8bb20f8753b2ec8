/* to[j][i] = from[i][j]: four columns of as many rows as a vector has elements, in registers where the compiler has a
   name for that. A vector is of lanes of 16 bytes. Each is loaded from a row, four rows after the one before it, so that
   nothing has to be moved from lane to lane. */
#ifndef FASTNORM_TRANSPOSE_H
#define FASTNORM_TRANSPOSE_H

#include <stddef.h>
#include <string.h>

#include "memory.h"

#if (defined(__clang__) || __GNUC__ >= 12) && defined(__AVX512F__)
#define FASTNORM_TRANSPOSED_LANES 4
#elif (defined(__clang__) || __GNUC__ >= 12) && defined(__AVX__)
#define FASTNORM_TRANSPOSED_LANES 2
#elif defined(__clang__) || __GNUC__ >= 12
#define FASTNORM_TRANSPOSED_LANES 1
#endif

#ifdef FASTNORM_TRANSPOSED_LANES
enum { FASTNORM_TRANSPOSED_FLOAT = 4 * FASTNORM_TRANSPOSED_LANES };
typedef float fastnorm_lane __attribute__((vector_size(16)));
typedef float fastnorm_lanes_of_rows __attribute__((vector_size(16 * FASTNORM_TRANSPOSED_LANES)));

/* Elements p, q, r and s of each lane of x and y, those of y from 4 on. */
#if FASTNORM_TRANSPOSED_LANES == 4
#define FASTNORM_IN_LANES(x, y, p, q, r, s)                                                                               \
    __builtin_shufflevector(                                                                                              \
        x, y, FASTNORM_OF_LANE(p, 0), FASTNORM_OF_LANE(q, 0), FASTNORM_OF_LANE(r, 0), FASTNORM_OF_LANE(s, 0),             \
        FASTNORM_OF_LANE(p, 1), FASTNORM_OF_LANE(q, 1), FASTNORM_OF_LANE(r, 1), FASTNORM_OF_LANE(s, 1),                   \
        FASTNORM_OF_LANE(p, 2), FASTNORM_OF_LANE(q, 2), FASTNORM_OF_LANE(r, 2), FASTNORM_OF_LANE(s, 2),                   \
        FASTNORM_OF_LANE(p, 3), FASTNORM_OF_LANE(q, 3), FASTNORM_OF_LANE(r, 3), FASTNORM_OF_LANE(s, 3))
#elif FASTNORM_TRANSPOSED_LANES == 2
#define FASTNORM_IN_LANES(x, y, p, q, r, s)                                                                               \
    __builtin_shufflevector(                                                                                              \
        x, y, FASTNORM_OF_LANE(p, 0), FASTNORM_OF_LANE(q, 0), FASTNORM_OF_LANE(r, 0), FASTNORM_OF_LANE(s, 0),             \
        FASTNORM_OF_LANE(p, 1), FASTNORM_OF_LANE(q, 1), FASTNORM_OF_LANE(r, 1), FASTNORM_OF_LANE(s, 1))
#else
#define FASTNORM_IN_LANES(x, y, p, q, r, s) __builtin_shufflevector(x, y, p, q, r, s)
#endif
#define FASTNORM_OF_LANE(k, lane) ((k) % 4 + 4 * (lane) + (k) / 4 * FASTNORM_TRANSPOSED_FLOAT)

static inline fastnorm_lane fastnorm_lane_at(const float *p)
{
    fastnorm_lane x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline fastnorm_lanes_of_rows fastnorm_every_fourth_row(const float *from, ptrdiff_t step)
{
#if FASTNORM_TRANSPOSED_LANES == 1
    (void)step;
    return fastnorm_lane_at(from);
#else
    typedef float two __attribute__((vector_size(32)));
    fastnorm_lane a = fastnorm_lane_at(from), b = fastnorm_lane_at(from + 4 * step);
    two low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#if FASTNORM_TRANSPOSED_LANES == 2
    return low;
#else
    fastnorm_lane c = fastnorm_lane_at(from + 8 * step), d = fastnorm_lane_at(from + 12 * step);
    two high = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
#endif
}

/* Of rows a, b, c and d the columns, lane by lane, to `to`. */
#define FASTNORM_IN_LANE(x, y, p, q, r, s) __builtin_shufflevector(x, y, p, q, r, s)
#define FASTNORM_STORE_TURNED(rows, IN)                                                 \
    do {                                                                                \
        rows low = IN(a, b, 0, 4, 1, 5), high = IN(a, b, 2, 6, 3, 7);                   \
        rows other_low = IN(c, d, 0, 4, 1, 5), other_high = IN(c, d, 2, 6, 3, 7);       \
        a = IN(low, other_low, 0, 1, 4, 5), b = IN(low, other_low, 2, 3, 6, 7);         \
        c = IN(high, other_high, 0, 1, 4, 5), d = IN(high, other_high, 2, 3, 6, 7);     \
        memcpy(to, &a, sizeof a), memcpy(to + to_step, &b, sizeof b);                   \
        memcpy(to + 2 * to_step, &c, sizeof c), memcpy(to + 3 * to_step, &d, sizeof d); \
    } while (0)

static inline void fastnorm_transpose_four_float(const float *from, ptrdiff_t step, float *to, ptrdiff_t to_step)
{
    typedef fastnorm_lanes_of_rows rows;
    rows a = fastnorm_every_fourth_row(from, step), b = fastnorm_every_fourth_row(from + step, step);
    rows c = fastnorm_every_fourth_row(from + 2 * step, step), d = fastnorm_every_fourth_row(from + 3 * step, step);
    FASTNORM_STORE_TURNED(rows, FASTNORM_IN_LANES);
}

/* Of four rows: what is left of rows that do not fill vectors. */
static inline void fastnorm_transpose_square_float(const float *from, ptrdiff_t step, float *to, ptrdiff_t to_step)
{
    fastnorm_lane a = fastnorm_lane_at(from), b = fastnorm_lane_at(from + step);
    fastnorm_lane c = fastnorm_lane_at(from + 2 * step), d = fastnorm_lane_at(from + 3 * step);
    FASTNORM_STORE_TURNED(fastnorm_lane, FASTNORM_IN_LANE);
}
#else
enum { FASTNORM_TRANSPOSED_FLOAT = 4 };

static inline void fastnorm_transpose_four_float(const float *from, ptrdiff_t step, float *to, ptrdiff_t to_step)
{
    int i, j;
    for (j = 0; j < 4; ++j)
        for (i = 0; i < 4; ++i) to[j * to_step + i] = from[i * step + j];
}
#define fastnorm_transpose_square_float fastnorm_transpose_four_float
#endif

enum { FASTNORM_TRANSPOSED_DOUBLE = 4 };

static inline void fastnorm_transpose_four_double(const double *from, ptrdiff_t step, double *to, ptrdiff_t to_step)
{
    int i, j;
    for (j = 0; j < 4; ++j)
        for (i = 0; i < 4; ++i) to[j * to_step + i] = from[i * step + j];
}

#define FASTNORM_TRANSPOSE(real, ROWS)                                                                               \
    FASTNORM_ONCE void fastnorm_transpose_##real(                                                                    \
        const real *from, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t columns, real *to, ptrdiff_t to_step)            \
    {                                                                                                                \
        ptrdiff_t i = 0, j, k;                                                                                       \
        for (; i + ROWS <= rows; i += ROWS) {                                                                        \
            for (j = 0; j + 4 <= columns; j += 4)                                                                    \
                fastnorm_transpose_four_##real(from + i * step + j, step, to + j * to_step + i, to_step);            \
            for (; j < columns; ++j)                                                                                 \
                for (k = i; k < i + ROWS; ++k) to[j * to_step + k] = from[k * step + j];                             \
        }                                                                                                            \
        for (; i + 4 <= rows; i += 4) {                                                                              \
            for (j = 0; j + 4 <= columns; j += 4)                                                                    \
                fastnorm_transpose_square_##real(from + i * step + j, step, to + j * to_step + i, to_step);          \
            for (; j < columns; ++j)                                                                                 \
                for (k = i; k < i + 4; ++k) to[j * to_step + k] = from[k * step + j];                                \
        }                                                                                                            \
        for (; i < rows; ++i)                                                                                        \
            for (j = 0; j < columns; ++j) to[j * to_step + i] = from[i * step + j];                                  \
    }

#define fastnorm_transpose_square_double fastnorm_transpose_four_double

FASTNORM_TRANSPOSE(float, FASTNORM_TRANSPOSED_FLOAT)
FASTNORM_TRANSPOSE(double, FASTNORM_TRANSPOSED_DOUBLE)

#endif
