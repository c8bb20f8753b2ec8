"""What this CPU can run, how much its last cache holds, and how many there are. Compiled for the
baseline, and imported before any kernel is."""

import os
from pathlib import Path

cdef extern from "_cpu.h":
    bint fastnorm_cpu_has_avx2()
    bint fastnorm_cpu_has_avx512()
    bint fastnorm_cpu_streams_well()
    bint fastnorm_cpu_sees_ahead()
    bint fastnorm_cpu_has_far_cache()


def has_avx2():
    """True where code compiled for x86-64-v3 (AVX2) runs."""
    return fastnorm_cpu_has_avx2()


def has_avx512():
    """True where code compiled for x86-64-v4 (AVX-512) runs."""
    return fastnorm_cpu_has_avx512()


# Where the system does not say, and the limits of what is believed: a virtual machine may report a
# cache that it shares with many others, or those of several dies, one of which is near.
_USUAL_CACHE, _LEAST_CACHE, _LARGEST_CACHE = 32 << 20, 8 << 20, 160 << 20


def _find_last_cache():
    try:
        caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
        _, size = max((int((c / "level").read_text()), (c / "size").read_text()) for c in caches)
        return min(max(int(size.rstrip("K\n")) << 10, _LEAST_CACHE), _LARGEST_CACHE)
    except (OSError, ValueError):
        return _USUAL_CACHE


cdef Py_ssize_t _last_cache = _find_last_cache()


cdef Py_ssize_t last_cache_bytes() noexcept nogil:
    """Size of the last cache of a CPU. It decides which results are written past it."""
    return _last_cache


cdef bint _streams_well = fastnorm_cpu_streams_well()


cdef bint streams_well() noexcept nogil:
    """Whether a few cores write past the cache as fast as through it."""
    return _streams_well


cdef bint _sees_ahead = fastnorm_cpu_sees_ahead()
cdef bint _has_far_cache = fastnorm_cpu_has_far_cache()


cdef bint sees_ahead() noexcept nogil:
    """Whether maps of planes that stream find what they read without having asked for it."""
    return _sees_ahead


cdef bint has_far_cache() noexcept nogil:
    """Whether it pays to ask for lines of the last cache before they are written to."""
    return _has_far_cache


cdef int _cpu_count = os.cpu_count() or 1


cdef int cpu_count() noexcept nogil:
    """Of the machine, whoever may use them: it decides about bits, which do not depend on that."""
    return _cpu_count


def last_cache():
    return _last_cache


def assume_last_cache(num_bytes):
    """Plan as if the last cache had this size; returns what it was."""
    global _last_cache
    before = _last_cache
    _last_cache = num_bytes
    return before


def assume_streams_well(well):
    """Plan as if the CPU did, or not; returns what it was. Where it does, and the last cache has no
    bytes, every call streams."""
    global _streams_well
    before = _streams_well
    _streams_well = well
    return before


def assume_cpu_count(count):
    """Plan as if the machine had so many CPUs; returns how many it had."""
    global _cpu_count
    before = _cpu_count
    _cpu_count = count
    return before
