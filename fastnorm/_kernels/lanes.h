/* The sum of 32 lanes as a tree: halves are added until four are left, which end in double. Compilers turn the loops
   of the fallback into chains of single additions through memory; quads of lanes stay in registers. */
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
#endif

FASTNORM_FOLD(float, fastnorm_fold_float)
FASTNORM_FOLD(double, fastnorm_fold_double)

#endif
