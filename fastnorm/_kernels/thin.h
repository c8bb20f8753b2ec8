/* Products of the rows of x with a weight of a few columns or rows, which lies as (few, n). BLAS would pack all of x for
   them. */
#ifndef FASTNORM_THIN_H
#define FASTNORM_THIN_H

#include "lanes.h"

#define FASTNORM_THIN 16 /* columns of a thin matrix, at most, */
#define FASTNORM_FEW (FASTNORM_HAS_WIDE_VECTORS ? 12 : 0) /* or columns or rows of a weight: beyond, BLAS is as fast */
#define FASTNORM_DOT_ROWS 2 /* that share what is loaded of the weight */

#if FASTNORM_HAS_WIDE_VECTORS
#define real float
#define FASTNORM_NAME(name) fastnorm_##name##_float
#include "thin_products.h"
#undef real
#undef FASTNORM_NAME

#define real double
#define FASTNORM_NAME(name) fastnorm_##name##_double
#include "thin_products.h"
#undef real
#undef FASTNORM_NAME

#else
#define FASTNORM_NOBODY_ASKS(...) ((void)0)
#define fastnorm_add_dots_float FASTNORM_NOBODY_ASKS
#define fastnorm_add_dots_double FASTNORM_NOBODY_ASKS
#define fastnorm_combine_rows_float FASTNORM_NOBODY_ASKS
#define fastnorm_combine_rows_double FASTNORM_NOBODY_ASKS
#endif

#endif
