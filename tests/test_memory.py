"""Memory: no copy of x, dy or out, whatever their strides and dtypes; more than 2**31 elements."""

import sys
import tracemalloc
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
from checks import over

import fastnorm as fn
from fastnorm._registry import (
    AFFINE,
    BATCH_NORM,
    GROUP_NORM,
    LAYER_NORM,
    LAYOUTS,
    OPERATIONS,
    PASSES,
    WEIGHT_NORM,
    Case,
)

# What is timed, an eighth of it.
MEGABYTES = [
    (operation, replace(case, shape=(case.shape[0] // 8, *case.shape[1:])))
    for operation in OPERATIONS
    for case in operation.bench_cases
    if prod(case.shape) >= 2**20
]

# ---- during a call -------------------------------------------------------------------------------


@cache
def drawn(operation, case):
    return operation.draw(case, np.float32)


def beside_results(call):
    """Bytes that NumPy allocates during a call and frees again; not during the first."""
    call()
    tracemalloc.start()
    try:
        results = call()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert results is not None
    return peak - kept


# Layouts of x, dy and out, and the dtypes of x and dy.
CHEAP = {
    "transposed x": ({"x": "transposed"}, "float32", "float32"),
    "sliced x": ({"x": "sliced"}, "float32", "float32"),
    "transposed dy": ({"dy": "transposed"}, "float32", "float32"),
    "transposed out": ({"out": "transposed"}, "float32", "float32"),
    "all of them": ({"x": "transposed", "dy": "sliced", "out": "reversed"}, "float32", "float32"),
    "half x": ({}, "float16", "float32"),
    "half dy": ({}, "float32", "float16"),
    "double dy": ({}, "float32", "float64"),
    "strided and mixed": ({"x": "sliced", "dy": "transposed"}, "float16", "float64"),
}


def concerns(pass_, what):
    """Whether a pass has the arrays that are special: dy has no part in the others."""
    layouts, x_dtype, _ = CHEAP[what]
    return pass_ == "backward" or {"x", "out"} & set(layouts) or x_dtype != "float32"


@over(MEGABYTES)
@pytest.mark.parametrize(
    ("pass_", "what"), [(p, what) for p in PASSES for what in CHEAP if concerns(p, what)]
)
def test_no_hidden_copy(operation, case, pass_, what):
    """Nothing near the size of x is allocated during a call that has `out`."""
    layouts, x_dtype, dy_dtype = CHEAP[what]
    arrays = dict(drawn(operation, case))
    first = operation.inputs[0]
    for name, role, dtype in ((first, "x", x_dtype), ("dy", "dy", dy_dtype)):
        lay_out = LAYOUTS[layouts.get(role, "contiguous")]
        arrays[name] = lay_out(arrays[name].astype(dtype))
    out = LAYOUTS[layouts.get("out", "contiguous")](operation.blank(pass_, arrays))
    call = operation.bind(fn, pass_, case, arrays, out=out)
    assert beside_results(call) <= arrays[first].nbytes / 8


@over(MEGABYTES)
def test_the_cache_keeps_no_copy(operation, case):
    """It refers to x, strided as it is, and adds a few numbers a row or channel."""
    arrays = dict(drawn(operation, case))
    first = operation.inputs[0]
    arrays[first] = LAYOUTS["transposed"](arrays[first])
    out = operation.blank("forward", arrays)
    call = operation.bind(fn, "forward", case, arrays, out=out)
    tracemalloc.start()
    try:
        _, kept = call()
        assert tracemalloc.get_traced_memory()[0] <= arrays[first].nbytes / 8
    finally:
        tracemalloc.stop()
    assert np.may_share_memory(getattr(kept, first), arrays[first])


RESIDENT = """
import resource, sys
import numpy as np
import fastnorm as fn
from fastnorm._registry import LAYOUTS, OPERATIONS

fn.set_num_threads(2)
operation = next(o for o in OPERATIONS if o.name == sys.argv[1])
case = max(operation.bench_cases, key=lambda case: np.prod(case.shape))
arrays = operation.draw(case, np.float32)
first = operation.inputs[0]
small = next(c for c in operation.cases if np.prod(c.shape) > 100_000)
operation.run(fn, "forward", small, operation.draw(small, np.float32))  # code, threads, BLAS
for name in (first, "dy"):
    arrays[name] = LAYOUTS["sliced"](arrays[name].astype(np.float16))
for pass_ in ("inference", "backward"):
    out = LAYOUTS["sliced"](operation.blank(pass_, arrays))
    call = operation.bind(fn, pass_, case, arrays, out=out)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < out.nbytes / 4, f"{pass_} took {grown} bytes beside {out.nbytes} of out"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset through /proc")
def test_no_hidden_copy_in_the_kernels(operation, run_python):
    """Nor is it malloc'd."""
    run_python("-c", RESIDENT, operation.name)


SMALL_STACK = """
import sys, threading
import numpy as np
import fastnorm as fn
from fastnorm._registry import LAYOUTS, OPERATIONS

def call_all():
    for operation in OPERATIONS:
        for case in operation.cases:
            arrays = operation.draw(case, np.float32)
            first = operation.inputs[0]
            for name in (first, "dy"):
                if case.layout == "contiguous":
                    arrays[name] = LAYOUTS["transposed"](arrays[name].astype(np.float16))
            for pass_ in ("inference", "forward", "backward"):
                operation.bind(fn, pass_, case, arrays)()
    finished.append(True)

finished = []
threading.stack_size(int(sys.argv[1]))
thread = threading.Thread(target=call_all)
thread.start()
thread.join()
assert finished
"""


def test_small_stack(run_python):
    """A thread of Python may have little stack: blocks in scratch memory are not on it."""
    run_python("-c", SMALL_STACK, str(160 * 1024))


# ---- more than 2**31 elements --------------------------------------------------------------------

REPEATS = 2**16 + 1  # of an array of 2**15 elements

# Each engine, over rows, columns and planes. Repeated along axis 0, their input has the results
# that it has once.
HUGE = [
    (LAYER_NORM, Case("rows", (1, 8, 4096))),
    (LAYER_NORM, Case("middle axis", (1, 8, 4096), {"axis": 1})),
    (LAYER_NORM, Case("one row", (1, 8, 4096), {"axis": (0, 1, 2)}, without=("gamma", "beta"))),
    (GROUP_NORM, Case("channels-first", (1, 8, 4096), {"num_groups": 2})),
    (BATCH_NORM, Case("channels-last", (1, 8, 4096), {"axis": -1})),
    (BATCH_NORM, Case("channels-first", (1, 8, 4096), {"axis": 1})),
    (WEIGHT_NORM, Case("whole", (1, 8, 4096), {"axis": None})),
    (AFFINE, Case("rows", (1, 512, 64), data={"outputs": 64})),
]


def available():
    """Bytes of memory that can be had."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return 0


def assert_repeated(array, expected, what):
    """Some of the array's repetitions, and those at its end, are the expected ones."""
    assert array.size > 2**31
    for part in (array[::97], array[-3:]):
        difference = np.abs(part - expected.astype(np.float32))
        assert (difference <= 2**-10 * np.abs(expected.astype(np.float32)) + 1e-5).all(), what


@pytest.mark.slow
@pytest.mark.skipif(available() < 7e9, reason="needs 7 GB of memory")
@over(HUGE)
def test_more_than_2_to_the_31_elements(operation, case):
    """Contiguous and in place at inference; forward and backward of what is repeated by a stride.

    One array of 4.3 GB, in float16, serves all of it.
    """
    first = operation.inputs[0]
    dtypes = dict.fromkeys(operation.draw(case, np.float32), np.float32)
    small = operation.draw(case, dtypes | {first: np.float16, "dy": np.float16})
    small |= dict.fromkeys(operation.state)
    expected = operation.run(fn, "forward", case, small) | operation.run(
        fn, "backward", case, small
    )

    shape = (REPEATS, *case.shape[1:])
    big = small | {
        n: np.broadcast_to(small[n], (REPEATS, *small[n].shape[1:])) for n in (first, "dy")
    }
    if operation is WEIGHT_NORM:  # whose norm grows
        big["g"] = small["g"] * np.float32(REPEATS**0.5)
    memory = np.empty(shape, np.float16)

    memory[...] = small[first]
    inference = operation.run(fn, "inference", case, small)["y"]
    operation.run(fn, "inference", case, big | {first: memory}, out=memory)
    assert_repeated(memory, inference, "inference")

    forward = operation.bind(fn, "forward", case, big, out=memory)
    _, kept = forward()
    assert_repeated(memory, expected["y"], "forward")
    backward = getattr(fn, operation.function("backward"))
    gradients = dict(zip(operation.gradients, backward(big["dy"], kept, out=memory), strict=True))
    assert_repeated(memory, expected[operation.gradients[0]], "backward")
    for name in operation.gradients[1:]:
        if expected[name] is not None:
            times = REPEATS**0.5 if operation is WEIGHT_NORM else REPEATS
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(gradients[name] / times, expected[name], 1e-5, 1e-5 * scale)


# ---- files -----------------------------------------------------------------------------------


NORMALISE_A_FILE = """
import resource, sys
from pathlib import Path

sys.path.insert(0, {bench!r})
import larger_than_memory as program

gigabytes, limit = {gigabytes}, {limit}
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (int(limit * 2**30),) * 2)
shape = int(gigabytes * 2**30) // 4 // program.CHANNELS, program.CHANNELS
path, out = Path("x.npy"), Path("y.npy")
program.create(path, shape)
program.create(out, shape)
block, parts = program.fill(path)
moments = program.statistics(path)
assert moments.count == shape[0]
program.normalise(path, out, moments)
program.check(out, block, parts, moments)
"""


@pytest.mark.parametrize(
    ("gigabytes", "limit"),
    [(0.05, None), pytest.param(2, 0.5, marks=pytest.mark.slow)],
)
def test_files_larger_than_the_address_space(gigabytes, limit, run_python, tmp_path):
    """Which is limited to a quarter of the file's size.

    A process takes 0.2 GB with two chunks mapped, and each thread's malloc may reserve 64 or 128 MB
    more, as addresses fall.
    """
    pytest.importorskip("resource")
    bench = str(Path(__file__).parents[1] / "bench")
    code = NORMALISE_A_FILE.format(bench=bench, gigabytes=gigabytes, limit=limit)
    try:
        run_python(code, timeout=300, OPENBLAS_NUM_THREADS=1, FASTNORM_NUM_THREADS=2)
    finally:
        for name in ("x.npy", "y.npy"):
            (tmp_path / name).unlink(missing_ok=True)
