/* Which of the instruction sets that the kernels are compiled for this CPU and its operating system can run. */
#ifndef FASTNORM_CPU_H
#define FASTNORM_CPU_H

/* x86-64-v3: what compilers may use under -march=x86-64-v3. The builtin asks the operating system too,
   which must save the wide registers when it switches tasks. */
static int fastnorm_cpu_has_avx2(void)
{
#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi")
        && __builtin_cpu_supports("bmi2");
#else
    return 0;
#endif
}

/* x86-64-v4. */
static int fastnorm_cpu_has_avx512(void)
{
#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
    return fastnorm_cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

#endif
