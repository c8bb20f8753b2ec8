"""What goes wrong leaves everything as it was: no memory, an interrupt; and nothing leaks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NO_MEMORY = """
import ctypes, sys
import numpy as np
import fastnorm as fn
from fastnorm._registry import LAYOUTS, OPERATIONS, PASSES, differing

fail = ctypes.CDLL(None)
fail.fail_after.argtypes = ctypes.c_long, ctypes.c_size_t
operation = next(o for o in OPERATIONS if o.name == sys.argv[1])
fn.set_num_threads(2)

def bits(arrays):
    return [a.tobytes() for a in arrays.values() if a is not None]

def cases():
    yield operation.typical
    kinds = {}
    for case in operation.cases:
        if np.prod(case.shape) > 30_000 and case.layout == "contiguous" and not case.without:
            kinds.setdefault((len(case.shape), str(case.options)), case)
    yield from kinds.values()

failed = 0
for case in cases():
    for dtype, layout in ((np.float32, "contiguous"), (np.float16, "transposed")):
        arrays = operation.draw(case, dtype)
        for name in (operation.inputs[0], "dy"):
            arrays[name] = LAYOUTS[layout](arrays[name])
        for pass_ in PASSES:
            expected = operation.run(fn, pass_, case, arrays)
            for n in range(100):
                out = operation.blank(pass_, arrays)
                used = arrays | {k: a.copy() for k, a in arrays.items() if k in operation.state}
                call = operation.bind(fn, pass_, case, used, out=out)
                before = bits(used | {"out": out})
                fail.fail_after(n, 520)  # what is smaller is Python's
                try:
                    result = call()
                except MemoryError:
                    assert fail.has_failed()
                    assert bits(used | {"out": out}) == before, f"{case} {pass_}: traces of {n}"
                    failed += 1
                else:  # or one may do without
                    done_without = fail.has_failed()
                    first = next(iter(expected.values()))
                    assert np.array_equal(out, first, equal_nan=True), f"{case} {pass_}: {n}"
                    if not done_without:
                        break
            else:
                raise AssertionError("a hundred allocations")
print(failed)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is replaced by preloading")
def test_no_memory(run_python, tmp_path, operation):
    """Each of the allocations of each pass fails once: a MemoryError, and all arrays as before."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "no_memory.so"
    source = Path(__file__).with_name("no_memory.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-w", str(source), "-o", str(library)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs glibc")
    done = run_python("-c", NO_MEMORY, operation.name, timeout=300, LD_PRELOAD=library)
    assert int(done.stdout) > 3


INTERRUPT = """
import os, signal, threading, time
import numpy as np
import fastnorm as fn

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
fn.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((1 << 15, 2048), np.float32)
out = np.zeros_like(x)
running = {"running_mean": np.zeros(2048), "running_var": np.ones(2048)}
for _ in range(3):
    out[...] = 0
    entered = time.perf_counter()
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        while time.perf_counter() - entered < 20:
            fn.batch_norm_forward(x, decay=0.0, out=out, **running)
        raise AssertionError("no KeyboardInterrupt")
    except KeyboardInterrupt:
        pass
    left = time.perf_counter()
    y, cache = fn.batch_norm_forward(x, decay=0.0)
    assert np.array_equal(out, y), "out was left incomplete"
    assert np.array_equal(running["running_mean"], cache.mean), "state was left incomplete"
    assert left - entered < 5
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_interrupt(run_python):
    """Ctrl-C during a long call is honoured right after it; what it wrote is complete."""
    run_python("-c", INTERRUPT)


LEAKS = """
import gc, sys
import numpy as np
import fastnorm as fn
from fastnorm._registry import OPERATIONS, PASSES

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def calls():
    for operation in OPERATIONS:
        case = operation.typical
        for dtype in (np.float32, np.float16):
            arrays = operation.draw(case, dtype)
            first = operation.inputs[0]
            wrong = arrays | {first: arrays[first].astype(int)}
            kept.append(arrays)
            for pass_ in PASSES:
                yield operation.bind(fn, pass_, case, arrays), False
                yield operation.bind(fn, pass_, case, arrays, out=np.zeros(3)), True
                if pass_ != "backward":
                    yield operation.bind(fn, pass_, case, wrong), True
        yield lambda operation=operation: getattr(fn, operation.function("backward"))(0, None), True

def run(call, raises):
    try:
        call()
    except (TypeError, ValueError):
        assert raises
    else:
        assert not raises

kept = []
bound = list(calls())
rounds = int(sys.argv[1]) // len(bound) + 1

def all_rounds(n):
    for _ in range(n):
        for call, raises in bound:
            run(call, raises)
    gc.collect()

def references():
    return [sys.getrefcount(a) for arrays in kept for a in arrays.values() if a is not None]

all_rounds(20)
counts, blocks, memory = references(), sys.getallocatedblocks(), resident()
all_rounds(rounds)
assert references() == counts, "references to arguments are left"
more = sys.getallocatedblocks() - blocks
assert more < rounds, f"{more} objects are left of {rounds} calls of each kind"
grown = resident() - memory
assert grown < 32 * rounds * len(bound) / 10 + 2e6, f"the process has grown by {grown} bytes"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_leaks(run_python):
    """Of references and memory, over 100,000 calls, of which half raise."""
    run_python("-c", LEAKS, "100000", timeout=300)
