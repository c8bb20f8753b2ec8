"""What the benchmarks say beside their times: bytes per second, threads, speed-up."""

import pytest

import fastnorm as fn


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastnorm"] = fn.show_config(mode="dicts")


@pytest.fixture(scope="session")
def reference_times():
    """Least time of the reference by group, for the speed-up of what runs after it."""
    return {}


@pytest.fixture
def measure(benchmark, reference_times):
    """A function that times a call: one of a group, which all move the same bytes."""

    def run(call, library, group, bytes_moved):
        benchmark.group = group
        benchmark.extra_info["num_threads"] = fn.get_num_threads()
        call()  # warm: first calls make threads, choose algorithms, touch memory
        benchmark(call)
        if not benchmark.stats:  # --benchmark-disable
            return
        least = benchmark.stats.stats.min
        benchmark.extra_info["gb_per_s"] = round(bytes_moved / least / 1e9, 2)
        if library == "reference":
            reference_times[group] = least
        elif group in reference_times:
            benchmark.extra_info["speedup"] = round(reference_times[group] / least, 2)

    return run
