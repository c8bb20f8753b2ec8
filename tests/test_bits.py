"""Same bits: for any number of threads, wherever arrays begin, whatever else is in the batch."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
from checks import assert_same, over, run_blank

import fastnorm as fn
from fastnorm import _cpu
from fastnorm._registry import (
    AFFINE,
    BATCH_NORM,
    DTYPES,
    GROUP_NORM,
    INSTANCE_NORM,
    LAYER_NORM,
    OPERATIONS,
    PAGE,
    RMS_NORM,
    SIZES,
    WEIGHT_NORM,
    WIDE_DTYPES,
    Case,
    every_case,
    in_page,
)

THREADS = (2, 3, 7)

# Several blocks of 64 KB for each of seven threads, in float32.
LARGE = [
    *((operation, case) for operation, case in every_case() if prod(case.shape) > 100_000),
    # Results of a thin depth: y of one, dx of the other.
    (AFFINE, Case("4001x5 to 83", (4001, 5), data={"outputs": 83})),
    (AFFINE, Case("4001x83 to 5", (4001, 83), data={"outputs": 5})),
    (LAYER_NORM, Case("3000x128", (3000, 128))),
    (LAYER_NORM, Case("3000x259", (3000, 259))),
    (LAYER_NORM, Case("100003x7", (100_003, 7))),
    (LAYER_NORM, Case("3x300007", (3, 300_007))),
    (BATCH_NORM, Case("3000x259", (3000, 259))),
    (BATCH_NORM, Case("300x1031", (300, 1031))),
    (BATCH_NORM, Case("channels-first 8x67x39x39", (8, 67, 39, 39))),
    # Channels enough for six threads, which take one after another, but not for seven.
    (BATCH_NORM, Case("channels-first 17x24x45x47", (17, 24, 45, 47))),
    (BATCH_NORM, Case("channels-first 129x67x7x7", (129, 67, 7, 7))),
    (BATCH_NORM, Case("channels-first 129x67x4x4", (129, 67, 4, 4))),
    (BATCH_NORM, Case("channels-last 8x39x39x67", (8, 39, 39, 67), {"axis": -1})),
    # Maps that take several runs, of 4 MiB, the last of them first.
    (BATCH_NORM, Case("channels-last 5x83x83x67", (5, 83, 83, 67), {"axis": -1})),
    (BATCH_NORM, Case("channels-first 5x3x397x391", (5, 3, 397, 391))),
    (GROUP_NORM, Case("channels-first 8x66x39x39", (8, 66, 39, 39), {"num_groups": 6})),
    (GROUP_NORM, Case("one group 1x66x101x101", (1, 66, 101, 101), {"num_groups": 1})),
    (GROUP_NORM, Case("channels-first 129x66x7x7", (129, 66, 7, 7), {"num_groups": 6})),
    (GROUP_NORM, Case("channels-first 129x66x4x4", (129, 66, 4, 4), {"num_groups": 6})),
    (GROUP_NORM, Case("channels-last 8x39x39x66", (8, 39, 39, 66), {"num_groups": 6, "axis": -1})),
    (GROUP_NORM, Case("one sample 1x101x101x66", (1, 101, 101, 66), {"num_groups": 6, "axis": -1})),
    (GROUP_NORM, Case("600x1032", (600, 1032), {"num_groups": 8})),
    (INSTANCE_NORM, Case("channels-first 8x67x39x39", (8, 67, 39, 39))),
    (INSTANCE_NORM, Case("channels-last 8x39x39x67", (8, 39, 39, 67), {"axis": -1})),
    (WEIGHT_NORM, Case("600x1031", (600, 1031))),
    (WEIGHT_NORM, Case("600x1031 axis -1", (600, 1031), {"axis": -1})),
    (WEIGHT_NORM, Case("600x1031 axis None", (600, 1031), {"axis": None})),
    (AFFINE, Case("128x784 to 512", (128, 784), data={"outputs": 512})),
    (AFFINE, Case("4099x129 to 65", (4099, 129), data={"outputs": 65})),
    (AFFINE, Case("1x1024 to 1024", (1, 1024), data={"outputs": 1024})),
    (AFFINE, Case("20011x100 to 10", (20_011, 100), data={"outputs": 10})),
]


def assert_independent_of_threads(operation, pass_, case, arrays):
    with fn.num_threads(1):
        expected = run_blank(operation, pass_, case, arrays)
    assert not np.isnan(next(iter(expected.values()))).any()
    for n in THREADS:
        with fn.num_threads(n):
            for _ in range(2):
                assert_same(run_blank(operation, pass_, case, arrays), expected, f"{n} threads")


# ---- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", WIDE_DTYPES, ids=str)
def test_threads(operation, case, dtype, pass_):
    assert_independent_of_threads(operation, pass_, case, operation.draw(case, dtype))


@over(LARGE)
@pytest.mark.parametrize("dtype", [*WIDE_DTYPES, DTYPES[-1]], ids=str)
def test_threads_of_large_input(operation, case, dtype, pass_):
    assert_independent_of_threads(operation, pass_, case, operation.draw(case, dtype))


def test_python_threads_at_once(operation, pass_):
    """Callers that find the pool busy compute the same."""
    case = max((case for o, case in LARGE if o is operation), key=lambda case: prod(case.shape))
    arrays = operation.draw(case, np.float32)
    expected = run_blank(operation, pass_, case, arrays)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(run_blank, operation, pass_, case, arrays) for _ in range(12)]
        for future in futures:
            assert_same(future.result(timeout=60), expected)


# ---- large calls ---------------------------------------------------------------------------------


# Every call asks for memory ahead, and writes past the cache or through it, as those do that
# outgrow it; and `out` begins so many elements off the begin of a line of the cache, or a vector.
PAST, THROUGH = "past the cache", "through the cache"
LARGE_CALLS = {
    DTYPES[0]: ((PAST, 0), (PAST, 1), (PAST, 4), (PAST, 13), (THROUGH, 1)),
    DTYPES[1]: ((PAST, 3),),
    DTYPES[-1]: ((PAST, 3), (THROUGH, 3)),
}


@over(LARGE)
@pytest.mark.parametrize("dtype", LARGE_CALLS, ids=str)
def test_large_calls(operation, case, dtype, pass_, memory_route):
    arrays = operation.draw(case, dtype)
    memory_route("in cache")
    expected = run_blank(operation, pass_, case, arrays)
    blank = operation.blank(pass_, arrays)
    line = np.full(blank.size + 64, np.nan, blank.dtype)
    for (route, offset), n in product(LARGE_CALLS[dtype], (1, 3)):
        memory_route(route)
        start = -line.ctypes.data % 64 // blank.itemsize + offset
        out = line[start : start + blank.size].reshape(blank.shape)
        line[...] = np.nan
        with fn.num_threads(n):
            results = operation.run(fn, pass_, case, arrays, out=out)
        assert_same(results, expected, f"{route}, {offset} elements off, {n} threads")
        assert np.isnan(line[:start]).all()
        assert np.isnan(line[start + blank.size :]).all()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks Linux")
def test_who_streams():
    """All but Intel's CPUs with AVX-512 before Sapphire Rapids: docs/performance.md."""
    streams_well = _cpu.assume_streams_well(True)
    _cpu.assume_streams_well(streams_well)
    cpu = Path("/proc/cpuinfo").read_text()
    is_older = "GenuineIntel" in cpu and _cpu.has_avx512() and "avx512_fp16" not in cpu
    assert streams_well == (not is_older)


# ---- where arrays begin --------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o is not AFFINE], ids=repr)
def test_alignment(operation, dtype, pass_):
    """Where in a cache line an array begins does not matter."""
    case = operation.typical
    arrays = operation.draw(case, dtype)
    first = operation.inputs[0]
    size = arrays[first].size
    expected = run_blank(operation, pass_, case, arrays)
    for offset in range(1, 17):
        moved = dict(arrays)
        for name in (first, "dy"):
            moved[name] = np.empty(size + 16, dtype)[offset : offset + size].reshape(case.shape)
            moved[name][...] = arrays[name]
        assert_same(run_blank(operation, pass_, case, moved), expected, offset)


# Rows, planes and columns of n elements.
OF_LENGTH = {
    "rows": ((LAYER_NORM, WEIGHT_NORM), lambda n: Case("", (6, n))),
    "planes": ((BATCH_NORM, GROUP_NORM, INSTANCE_NORM), lambda n: Case("", (2, 4, n))),
    "columns": ((BATCH_NORM, WEIGHT_NORM), lambda n: Case("", (6, n), {"axis": -1})),
}


@pytest.mark.parametrize(
    ("operation", "case_of"),
    [(o, case_of) for operations, case_of in OF_LENGTH.values() for o in operations],
    ids=[f"{kind}-{o}" for kind, (operations, _) in OF_LENGTH.items() for o in operations],
)
def test_where_out_begins(operation, case_of, dtype, pass_):
    """Nor does it where out does, whatever its length: vectors are stored where it has whole ones,
    and what others share with the first and the last is the same; even where out is x."""
    for n in (*range(1, 70), 100, 127, 128, 255):
        case = case_of(n)
        if operation is GROUP_NORM:
            case = Case("", case.shape, {"num_groups": 2})
        arrays = operation.draw(case, dtype)
        first = operation.inputs[0]
        expected = run_blank(operation, pass_, case, arrays)
        for offset in (0, 1, 4, 7, 12):
            blank = operation.blank(pass_, arrays)
            memory = np.full(blank.size + 64, np.nan, dtype)
            start = -memory.ctypes.data % 64 // memory.itemsize + offset
            out = memory[start : start + blank.size].reshape(blank.shape)
            assert_same(operation.run(fn, pass_, case, arrays, out=out), expected, f"{n}, {offset}")
            assert np.isnan(memory[:start]).all()
            assert np.isnan(memory[start + blank.size :]).all()
            if pass_ == "inference":
                out[...] = arrays[first]
                operation.run(fn, pass_, case, arrays | {first: out}, out=out)
                assert_same({"y": out}, {"y": expected["y"]}, f"out is x, {n}, {offset}")


@pytest.mark.parametrize("length", [PAGE, 2 * PAGE, 1200], ids="{} bytes".format)
@pytest.mark.parametrize(
    ("operation", "options"),
    [
        (LAYER_NORM, {}),
        (RMS_NORM, {}),
        (WEIGHT_NORM, {}),
        (WEIGHT_NORM, {"axis": -1}),
        (BATCH_NORM, {}),
    ],
    ids=lambda value: str(value.get("axis", "")) if isinstance(value, dict) else None,
)
def test_where_in_its_page_out_begins(operation, options, length, dtype, pass_):
    """Nor does it where x and out are in their pages: that decides from which end a row is gone
    through, and how many rows together."""
    case = Case("", (11, length // np.dtype(dtype).itemsize), options)
    arrays = operation.draw(case, dtype)
    for name in (operation.inputs[0], "dy"):
        arrays[name] = in_page(arrays[name], 256)
    expected = run_blank(operation, pass_, case, arrays)
    for distance in (-256, -80, -16, 0, 16, 64, 80, 240, PAGE // 2):
        out = in_page(operation.blank(pass_, arrays), 256 + distance)
        assert_same(operation.run(fn, pass_, case, arrays, out=out), expected, distance)


# ---- rows ----------------------------------------------------------------------------------------

SOME_ROWS = (np.s_[:1], np.s_[3:5], np.s_[1:8], np.s_[8:])


@pytest.mark.parametrize("n", [*SIZES, 20_011, 100_003])
def test_rows_of_layer_norm(n, dtype, rng):
    """A row's result does not depend on the rows beside it, nor on their number."""
    x, dy = rng.standard_normal((2, 9, n)).astype(dtype)
    gamma, beta = rng.standard_normal((2, n)).astype(dtype)

    def both(rows):
        y, cache = fn.layer_norm_forward(x[rows], gamma, beta)
        return {"y": y, "dx": fn.layer_norm_backward(dy[rows], cache)[0]}

    whole = both(np.s_[:])
    for rows in SOME_ROWS:
        assert_same(both(rows), {name: np.ascontiguousarray(a[rows]) for name, a in whole.items()})
    assert_same({"y": fn.layer_norm(x[3], gamma, beta)}, {"y": whole["y"][3]})


@pytest.mark.parametrize("n", [*SIZES, 20_011, 100_003])
def test_rows_of_weight_norm(n, dtype, rng):
    v, dy = rng.standard_normal((2, 9, n)).astype(dtype)
    g = rng.standard_normal(9).astype(dtype)

    def all_of(rows):
        w, cache = fn.weight_norm_forward(v[rows], g[rows])
        dv, dg = fn.weight_norm_backward(dy[rows], cache)
        return {"w": w, "dv": dv, "dg": dg}

    whole = all_of(np.s_[:])
    for rows in SOME_ROWS:
        assert_same(all_of(rows), {name: a[rows].copy() for name, a in whole.items()})


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((9, 6), 1),
        ((9, 6, 5), 1),
        ((9, 6, 7, 7), 1),
        ((9, 6, 14, 14), 1),
        ((9, 6, 150, 150), 1),
        ((9, 7, 7, 6), -1),
        ((9, 70, 70, 6), -1),
        ((9, 25, 25, 60), -1),
        ((9, 5, 6, 40), 2),
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_samples_of_group_norm(shape, axis, groups, dtype, rng):
    """A sample's result does not depend on the samples beside it, nor on their number."""
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    gamma, beta = rng.standard_normal((2, shape[axis])).astype(dtype)

    def both(rows):
        y, cache = fn.group_norm_forward(x[rows], groups, gamma, beta, axis=axis)
        return {"y": y, "dx": fn.group_norm_backward(dy[rows], cache)[0]}

    whole = both(np.s_[:])
    for rows in SOME_ROWS:
        assert_same(both(rows), {name: a[rows].copy() for name, a in whole.items()})


@pytest.mark.parametrize(("shape", "axis"), [((5, 17, 40, 40), 1), ((5, 7, 7, 17), -1)])
def test_instance_norm_is_group_norm(shape, axis, dtype, rng):
    """With a group for every channel."""
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    gamma, beta = rng.standard_normal((2, 17)).astype(dtype)
    y, cache = fn.instance_norm_forward(x, gamma, beta, axis=axis)
    expected, group_cache = fn.group_norm_forward(x, 17, gamma, beta, axis=axis)
    gradients = fn.instance_norm_backward(dy, cache)
    expected = (expected, *fn.group_norm_backward(dy, group_cache))
    for a, b in zip((y, *gradients), expected, strict=True):
        assert_same({"": a}, {"": b})


def test_rows_of_batch_norm_inference(dtype, rng):
    """With given statistics every sample is on its own."""
    for shape, axis in (((9, 33), 1), ((9, 5, 7, 7), 1), ((9, 7, 7, 5), -1)):
        x = rng.standard_normal(shape).astype(dtype)
        mean, beta, gamma = rng.standard_normal((3, shape[axis])).astype(dtype)
        var = gamma**2 + 1
        whole = fn.batch_norm(x, mean, var, gamma, beta, axis=axis)
        for rows in SOME_ROWS:
            y = fn.batch_norm(x[rows], mean, var, gamma, beta, axis=axis)
            assert_same({"y": y}, {"y": whole[rows].copy()})


def test_a_thread_that_ends_takes_nothing_with_it(dtype):
    """The pool serves threads that come and go."""
    operation, case = LARGE[0]
    arrays = operation.draw(case, dtype)
    expected = run_blank(operation, "forward", case, arrays)
    for _ in range(5):
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(run_blank, operation, "forward", case, arrays)
            assert_same(future.result(timeout=60), expected)


def test_every_operation_has_large_cases():
    """What is said of threads is tested on several blocks of every operation."""
    assert {operation.name for operation, _ in LARGE} == {o.name for o in OPERATIONS}
