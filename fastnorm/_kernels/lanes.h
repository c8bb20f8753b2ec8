/* The sum of 32 lanes as a tree: halves are added until four are left, which end in double. Compilers turn the loops
   of the fallback into chains of single additions through memory; quads of lanes stay in registers. And one step of a
   sum of products over eight lanes, which they would put together from single loads. */
#ifndef FASTNORM_LANES_H
#define FASTNORM_LANES_H

#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define FASTNORM_FOLD(real, name)                                                                                    \
    static inline double name(const real *lanes)                                                                     \
    {                                                                                                                \
        typedef real quad __attribute__((vector_size(4 * sizeof(real))));                                            \
        quad q[8];                                                                                                   \
        int j;                                                                                                       \
        memcpy(q, lanes, sizeof q);                                                                                  \
        for (j = 0; j < 4; ++j) q[j] += q[4 + j];                                                                    \
        q[0] = (q[0] + q[2]) + (q[1] + q[3]);                                                                        \
        return ((double)q[0][0] + q[0][2]) + ((double)q[0][1] + q[0][3]);                                            \
    }
/* sums += dy;  products += dy*((x - centre)*inverse) */
#define FASTNORM_EIGHT(real, name)                                                                                   \
    static inline void name(const real *dy, const real *x, real centre, real inverse, real *sums, real *products)    \
    {                                                                                                                \
        typedef real eight __attribute__((vector_size(8 * sizeof(real))));                                           \
        eight a, b, d, v;                                                                                            \
        memcpy(&d, dy, sizeof d), memcpy(&v, x, sizeof v);                                                           \
        memcpy(&a, sums, sizeof a), memcpy(&b, products, sizeof b);                                                  \
        a += d;                                                                                                      \
        b += d * ((v - centre) * inverse);                                                                           \
        memcpy(sums, &a, sizeof a), memcpy(products, &b, sizeof b);                                                  \
    }
#else
#define FASTNORM_FOLD(real, name)                                                                                    \
    static inline double name(const real *lanes)                                                                     \
    {                                                                                                                \
        real q[4];                                                                                                   \
        int j;                                                                                                       \
        for (j = 0; j < 4; ++j)                                                                                      \
            q[j] = ((lanes[j] + lanes[16 + j]) + (lanes[8 + j] + lanes[24 + j]))                                     \
                + ((lanes[4 + j] + lanes[20 + j]) + (lanes[12 + j] + lanes[28 + j]));                                \
        return ((double)q[0] + q[2]) + ((double)q[1] + q[3]);                                                        \
    }
#define FASTNORM_EIGHT(real, name)                                                                                   \
    static inline void name(const real *dy, const real *x, real centre, real inverse, real *sums, real *products)    \
    {                                                                                                                \
        int j;                                                                                                       \
        for (j = 0; j < 8; ++j) sums[j] += dy[j], products[j] += dy[j] * ((x[j] - centre) * inverse);                \
    }
#endif

FASTNORM_FOLD(float, fastnorm_fold_float)
FASTNORM_FOLD(double, fastnorm_fold_double)
FASTNORM_EIGHT(float, fastnorm_eight_products_float)
FASTNORM_EIGHT(double, fastnorm_eight_products_double)

#endif
