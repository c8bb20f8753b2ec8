"""In company: between the matrix products of NumPy, and eight processes on one machine.

`test_alternating`: ``x @ w``, then a layer norm of the result. BLAS has threads of its own, which
spin for a while after each product, so that a normalisation on several threads meets them.
``of_parts`` is the time beside the product alone and the serial normalisation alone; the promise is
1.05 at most, over what the serial one takes after a product ("with 1 thread").

`test_processes`: as many calls in all, from one process and from eight. The promise is no collapse:
eight take no longer than one does, but for the noise. With ``FASTNORM_NUM_THREADS=1`` there are no
threads to blame: if eight are as slow then, the machine was not idle.
"""

import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest

import fastnorm as fn

SHAPES = [(256, 512, 512), (512, 768, 768), (2048, 768, 3072)]  # rows, inputs, outputs
KINDS = ("product", "normalisation", "both, 1 thread", "both, 2 threads")


@pytest.mark.benchmark(max_time=0.5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_alternating(shape, kind, measure, least_times, benchmark):
    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs), np.float32)
    w = rng.standard_normal((inputs, outputs), np.float32)
    product = x @ w
    y = np.empty_like(product)

    def both():
        np.matmul(x, w, out=product)
        fn.layer_norm(product, out=y)

    calls = {
        "product": lambda: np.matmul(x, w, out=product),
        "normalisation": lambda: fn.layer_norm(product, out=y),
    }
    group = f"{rows}x{inputs}x{outputs}"
    with fn.num_threads(2 if "2" in kind else 1):
        measure(calls.get(kind, both), kind, group, baseline="both, 1 thread")
    parts = [least_times.get((group, part)) for part in KINDS[:2]]
    if kind.startswith("both") and all(parts):
        time, _ = least_times[group, kind]
        benchmark.extra_info["of_parts"] = round(time / sum(least for least, _ in parts), 3)


WORKER = """
import sys
import numpy as np
import fastnorm as fn

x = np.random.default_rng(0).standard_normal((512, 768), np.float32)
y = fn.layer_norm(x)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    fn.layer_norm(x, out=y)
print("done", flush=True)
"""
CALLS = 8000


class Processes:
    """So many interpreters, started in a folder, that are ready to make CALLS calls in all."""

    def __init__(self, stack, count, folder):
        command = [sys.executable, "-c", WORKER, str(CALLS // count)]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.all = [
            stack.enter_context(subprocess.Popen(command, cwd=folder, **options))
            for _ in range(count)
        ]
        self.expect("ready")

    def expect(self, word):
        for process in self.all:
            assert process.stdout.readline().strip() == word

    def work(self):
        for process in self.all:
            print(file=process.stdin, flush=True)
        self.expect("done")


@pytest.mark.parametrize("count", [1, 8])
def test_processes(count, benchmark, tmp_path):
    benchmark.group = "processes"
    with ExitStack() as stack:
        benchmark.pedantic(
            Processes.work, setup=lambda: ((Processes(stack, count, tmp_path),), {}), rounds=3
        )
    if benchmark.stats:
        benchmark.extra_info["calls_per_s"] = round(CALLS / benchmark.stats.stats.min)
