"""What this CPU can run. Compiled for the baseline, and imported before any kernel is."""

cdef extern from "_cpu.h":
    bint fastnorm_cpu_has_avx2()


def has_avx2():
    """True where code compiled for x86-64-v3 (AVX2) runs."""
    return fastnorm_cpu_has_avx2()
