/* to[j][i] = from[i][j]: four by four, in registers where the compiler has a name for that. */
#ifndef FASTNORM_TRANSPOSE_H
#define FASTNORM_TRANSPOSE_H

#include <stddef.h>
#include <string.h>

#if defined(__clang__) || __GNUC__ >= 12
#define FASTNORM_SHUFFLES 1
#else
#define FASTNORM_SHUFFLES 0
#endif

static inline void fastnorm_four_by_four_float(const float *from, ptrdiff_t step, float *to, ptrdiff_t to_step)
{
#if FASTNORM_SHUFFLES
    typedef float quad __attribute__((vector_size(16)));
    quad a, b, c, d, low, high, other_low, other_high;
    memcpy(&a, from, sizeof a), memcpy(&b, from + step, sizeof b);
    memcpy(&c, from + 2 * step, sizeof c), memcpy(&d, from + 3 * step, sizeof d);
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5), high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    other_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), other_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    a = __builtin_shufflevector(low, other_low, 0, 1, 4, 5);
    b = __builtin_shufflevector(low, other_low, 2, 3, 6, 7);
    c = __builtin_shufflevector(high, other_high, 0, 1, 4, 5);
    d = __builtin_shufflevector(high, other_high, 2, 3, 6, 7);
    memcpy(to, &a, sizeof a), memcpy(to + to_step, &b, sizeof b);
    memcpy(to + 2 * to_step, &c, sizeof c), memcpy(to + 3 * to_step, &d, sizeof d);
#else
    int i, j;
    for (j = 0; j < 4; ++j)
        for (i = 0; i < 4; ++i) to[j * to_step + i] = from[i * step + j];
#endif
}

static inline void fastnorm_four_by_four_double(const double *from, ptrdiff_t step, double *to, ptrdiff_t to_step)
{
    int i, j;
    for (j = 0; j < 4; ++j)
        for (i = 0; i < 4; ++i) to[j * to_step + i] = from[i * step + j];
}

#define FASTNORM_TRANSPOSE(real)                                                                                     \
    static inline void fastnorm_transpose_##real(                                                                    \
        const real *from, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t columns, real *to, ptrdiff_t to_step)            \
    {                                                                                                                \
        ptrdiff_t i = 0, j;                                                                                          \
        for (; i + 4 <= rows; i += 4) {                                                                              \
            for (j = 0; j + 4 <= columns; j += 4)                                                                    \
                fastnorm_four_by_four_##real(from + i * step + j, step, to + j * to_step + i, to_step);              \
            for (; j < columns; ++j) {                                                                               \
                to[j * to_step + i] = from[i * step + j];                                                            \
                to[j * to_step + i + 1] = from[(i + 1) * step + j];                                                  \
                to[j * to_step + i + 2] = from[(i + 2) * step + j];                                                  \
                to[j * to_step + i + 3] = from[(i + 3) * step + j];                                                  \
            }                                                                                                        \
        }                                                                                                            \
        for (; i < rows; ++i)                                                                                        \
            for (j = 0; j < columns; ++j) to[j * to_step + i] = from[i * step + j];                                  \
    }

FASTNORM_TRANSPOSE(float)
FASTNORM_TRANSPOSE(double)

#endif
