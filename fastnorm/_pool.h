/* The thread pool of fastnorm. _pool.cpp explains how it works. */

#ifndef FASTNORM_POOL_H
#define FASTNORM_POOL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Threads of a call at most, the caller included. */
#define FASTNORM_MAX_TEAM 512

/* Computes one block of a task. Must not throw, and must not need the Python API. */
typedef void (*fastnorm_block_function)(void *task, ptrdiff_t block);

/* Calls function(task, block) once for each block in [0, num_blocks), on at most num_threads
   threads, of which the calling thread is one, and returns when all calls have returned.
   The order of the calls and the thread of each are not specified. */
void fastnorm_parallel_for(fastnorm_block_function function, void *task, ptrdiff_t num_blocks,
                           int num_threads);

/* In a block: which of its job's threads runs it, from 0 to num_threads - 1. Blocks that run at the
   same time have different ones. */
int fastnorm_participant(void);

/* What the library shows to the outside, for threadpoolctl to know it by. */
#if defined(_WIN32)
#define FASTNORM_SHOWN __declspec(dllexport)
#else
#define FASTNORM_SHOWN __attribute__((visibility("default")))
#endif

/* The number of worker threads that this process has now (the callers do not count). */
FASTNORM_SHOWN int fastnorm_pool_size(void);

#ifdef __cplusplus
}
#endif

#endif
