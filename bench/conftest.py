"""What the benchmarks say beside their times: bytes per second, copies, threads, speed-up."""

from functools import partial

import numpy as np
import pytest

import fastnorm as fn
from fastnorm import _cpu
from fastnorm._cli import least_time


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastnorm"] = fn.show_config(mode="dicts")
    machine_info["last_cache"] = _cpu.last_cache()


def pytest_collection_modifyitems(items):
    """PyTorch last: its idle threads spin for a while, and disturb what runs after it."""
    items.sort(key=lambda item: "pytorch" in item.name)


ROWS = pytest.StashKey[list]()
BETWEEN_OTHERS = 500  # rounds of a call that follows another one each time


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_terminal_summary(terminalreporter, config):
    """The numbers that pytest-benchmark keeps for its JSON."""
    if config.stash[ROWS]:
        terminalreporter.section("beside their times")
    for name, info in config.stash[ROWS]:
        terminalreporter.line(f"{name}: " + ", ".join(f"{k} {v}" for k, v in info.items()))


@pytest.fixture(scope="session")
def least_times():
    """Least time, and bytes moved, of what ran so far, by group and name."""
    return {}


def time_of_copy(array):
    """Of one into memory that is there already; asked before and after: machines are noisy."""
    if array is None:
        return None
    return least_time(partial(np.copyto, np.empty_like(array), array), 0.02)


@pytest.fixture
def measure(benchmark, least_times, request):
    """A function that times a call and fills ``extra_info``.

    `name` says what is timed, one of a group. What follows `baseline` in its group is compared
    with it: ``speedup``, per byte where the two move different numbers of bytes. `copied` is the
    array whose copy by NumPy is the unit of ``copies``. `before` is called before each of the
    timed calls.
    """

    def run(call, name, group, bytes_moved=None, *, baseline="reference", copied=None, before=None):
        info = benchmark.extra_info
        benchmark.group = group
        info["num_threads"] = fn.get_num_threads()
        if not benchmark.enabled:  # --benchmark-disable
            benchmark(call)
            return
        call()  # warm: first calls make threads, choose algorithms, touch memory
        time_before = time_of_copy(copied)
        if before is None:
            benchmark(call)
        else:
            benchmark.pedantic(call, setup=before, rounds=BETWEEN_OTHERS)
        least = benchmark.stats.stats.min
        least_times[group, name] = least, bytes_moved or 1
        if bytes_moved:
            info["gb_per_s"] = round(bytes_moved / least / 1e9, 2)
            info["ns_per_byte"] = round(least / bytes_moved * 1e9, 4)
            info["from"] = "cache" if bytes_moved < _cpu.last_cache() else "memory"
        if copied is not None:
            info["copies"] = round(least / min(time_before, time_of_copy(copied)), 3)
        if name != baseline and (group, baseline) in least_times:
            time, moved = least_times[group, baseline]
            info["baseline"] = baseline
            info["speedup"] = round(time / moved / least * (bytes_moved or 1), 3)
        request.config.stash[ROWS].append((request.node.name, info))

    return run
