"""A training step, {affine, batch norm, ReLU} x 3 and affine, forward and backward.

A batch of 256, widths 784-512-512-512-10, no loss, no optimiser and no gradient of x:
`fastnorm.layers` on fastnorm and on the reference, and PyTorch, eager, which stays behind in the
process (its idle threads spin) and therefore comes last; its ``speedup`` is over fastnorm on as
many threads.

The reference is not compared with either: its products run on all threads of NumPy's BLAS, which
fastnorm does not set. With ``OPENBLAS_NUM_THREADS=1`` it is the like of fastnorm on one thread.
BLAS waits for its threads: let another process take a CPU, and it needs many times as long.
"""

from itertools import pairwise

import numpy as np
import pytest
from libraries import LIBRARIES, torch
from nn import Sequential, normalised_network

import fastnorm as fn
from fastnorm import reference

BATCH, WIDTHS = 256, (784, 512, 512, 512, 10)


def our_step(functions, x, dy):
    network = Sequential(normalised_network("batch", WIDTHS, 0), functions)

    def step():
        network.forward(x)
        network.backward(dy, input_gradient=False)

    return step


def torch_step(x, dy):
    torch.set_num_threads(fn.get_num_threads())
    layers = []
    for inputs, outputs in pairwise(WIDTHS[:-1]):
        layers += [
            torch.nn.Linear(inputs, outputs, bias=False),
            torch.nn.BatchNorm1d(outputs),
            torch.nn.ReLU(),
        ]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(*WIDTHS[-2:]))
    x, dy = torch.from_numpy(x), torch.from_numpy(dy)

    def step():
        network.zero_grad(set_to_none=True)
        network(x).backward(dy)

    return step


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, WIDTHS[0]), np.float32)
    return x, rng.standard_normal((BATCH, WIDTHS[-1]), np.float32)


def test_reference(arrays, benchmark):
    benchmark.group = "step, threads of NumPy's BLAS"
    benchmark(our_step(reference, *arrays))


@pytest.mark.parametrize("library", [name for name in LIBRARIES if name != "reference"])
@pytest.mark.parametrize("threads", [1, 2])
def test_step(threads, library, arrays, measure):
    with fn.num_threads(threads):
        step = torch_step(*arrays) if library == "pytorch" else our_step(fn, *arrays)
        measure(step, library, f"step, threads: {threads}", baseline="fastnorm")
