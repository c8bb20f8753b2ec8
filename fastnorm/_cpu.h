/* Which of the instruction sets that the kernels are compiled for this CPU and its operating system can run. */
#ifndef FASTNORM_CPU_H
#define FASTNORM_CPU_H

#include <string.h>

#if defined(_WIN32) && (defined(__x86_64__) || defined(_M_X64))
#include <intrin.h>
#include <windows.h>
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#include <cpuid.h>
#endif

/* x86-64-v3: what compilers may use under -march=x86-64-v3. The operating system is asked too, which must save the wide
   registers when it switches tasks. */
static int fastnorm_cpu_has_avx2(void)
{
#if defined(_WIN32) && (defined(__x86_64__) || defined(_M_X64)) /* where Clang has no library for its builtin */
    int one[4], seven[4];
    const int fma = 1 << 12, bmi = 1 << 3, bmi2 = 1 << 8;
    if (!IsProcessorFeaturePresent(40 /* PF_AVX2_INSTRUCTIONS_AVAILABLE */)) return 0;
    __cpuid(one, 1), __cpuidex(seven, 7, 0);
    return (one[2] & fma) && (seven[1] & bmi) && (seven[1] & bmi2);
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
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
#if defined(_WIN32) && (defined(__x86_64__) || defined(_M_X64))
    int seven[4];
    const unsigned f = 1u << 16, dq = 1u << 17, cd = 1u << 28, bw = 1u << 30, vl = 1u << 31, all = f | dq | cd | bw | vl;
    if (!fastnorm_cpu_has_avx2() || !IsProcessorFeaturePresent(41 /* PF_AVX512F_INSTRUCTIONS_AVAILABLE */)) return 0;
    __cpuidex(seven, 7, 0);
    return ((unsigned)seven[1] & all) == all;
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
    return fastnorm_cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

/* Twelve letters, such as "GenuineIntel". */
static int fastnorm_cpu_is_made_by(const char *vendor)
{
#if defined(_WIN32) && (defined(__x86_64__) || defined(_M_X64))
    int zero[4];
    __cpuid(zero, 0);
    return memcmp(zero + 1, vendor, 4) == 0 && memcmp(zero + 3, vendor + 4, 4) == 0
        && memcmp(zero + 2, vendor + 8, 4) == 0;
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && memcmp(&b, vendor, 4) == 0 && memcmp(&d, vendor + 4, 4) == 0
        && memcmp(&c, vendor + 8, 4) == 0;
#else
    (void)vendor;
    return 0;
#endif
}

/* Most of Intel's CPUs with AVX-512 are servers. */
static int fastnorm_cpu_is_intels_server(void)
{
    return fastnorm_cpu_has_avx512() && fastnorm_cpu_is_made_by("GenuineIntel");
}

/* Arithmetic in float16, which came with Sapphire Rapids. */
static int fastnorm_cpu_has_avx512_fp16(void)
{
    const unsigned fp16 = 1u << 23;
#if defined(_WIN32) && (defined(__x86_64__) || defined(_M_X64))
    int seven[4];
    if (!fastnorm_cpu_has_avx512()) return 0;
    __cpuidex(seven, 7, 0);
    return ((unsigned)seven[3] & fp16) != 0;
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
    unsigned a, b, c, d;
    return fastnorm_cpu_has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & fp16);
#else
    (void)fp16;
    return 0;
#endif
}

/* Whether a few cores write past the cache at least as fast as through it. Those of Intel's servers before Sapphire Rapids
   do not: a copy of 32 MB took a Cascade Lake's core 1.1 times as long, one of 8 MB 1.2 times. */
static int fastnorm_cpu_streams_well(void)
{
    return !fastnorm_cpu_is_intels_server() || fastnorm_cpu_has_avx512_fp16();
}

/* Whether what a map of planes reads next is on its way without being asked for, beside streaming stores: on a Zen 4, the
   first of AMD's CPUs with AVX-512, but neither on a Zen 3 nor on a Granite Rapids. */
static int fastnorm_cpu_sees_ahead(void)
{
    return fastnorm_cpu_has_avx512() && fastnorm_cpu_is_made_by("AuthenticAMD");
}

/* Whether an ordinary store gains by asking for its line even if that is in the last cache. A Zen 3 does not. */
static int fastnorm_cpu_has_far_cache(void)
{
    return fastnorm_cpu_is_intels_server();
}

#endif
