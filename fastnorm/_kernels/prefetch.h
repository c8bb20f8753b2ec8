/* Asks for memory ahead of its use, where the processor cannot guess it: at the end of a short run. */
#ifndef FASTNORM_PREFETCH_H
#define FASTNORM_PREFETCH_H

#include <stddef.h>

static inline void fastnorm_prefetch(const void *memory, ptrdiff_t num_bytes)
{
#if defined(__GNUC__) || defined(__clang__)
    const char *p = (const char *)memory;
    ptrdiff_t i;
    for (i = 0; i < num_bytes; i += 64) __builtin_prefetch(p + i);
#else
    (void)memory, (void)num_bytes;
#endif
}

#endif
