/* Preloaded: lets one allocation fail. Those of NumPy and Python come here too. */

#include <errno.h>
#include <stddef.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static long left = -1; /* allocations until one fails; negative: none does */
static size_t least;

void fail_after(long allocations, size_t least_bytes) { least = least_bytes, left = allocations; }

/* Whether it has failed; none will from now on. */
int has_failed(void)
{
    int failed = left < 0;
    left = -1;
    return failed;
}

static int fails(size_t size)
{
    if (left < 0 || size < least || left-- > 0) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) { return fails(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return fails(count * size) ? NULL : __libc_calloc(count, size); }
void *realloc(void *memory, size_t size) { return fails(size) ? NULL : __libc_realloc(memory, size); }
void *aligned_alloc(size_t alignment, size_t size) { return fails(size) ? NULL : __libc_memalign(alignment, size); }
