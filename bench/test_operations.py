"""Every operation, pass and typical shape: the reference, fastnorm, and PyTorch if it is installed.

    pytest bench --benchmark-only
    pytest bench --benchmark-only -k "layer_norm and forward"

`test_operation`: results are fresh arrays at each call, as users write it. PyTorch gets as many
threads as fastnorm; its idle threads spin for a while, so that its cases run last.

`test_copies`: one thread, into an array that is there already (``out=``), beside `numpy.copyto` of
the input: ``copies`` is how many such copies a call takes. docs/performance.md has the floors. The
affine layer computes more than it moves and has no part in it.
"""

import pytest
from libraries import LIBRARIES, bind, draw

import fastnorm as fn
from fastnorm._registry import AFFINE, OPERATIONS, PASSES

BENCHMARKS = [
    pytest.param(
        operation, case, pass_, library, id=f"{operation.name}-{pass_}-{case.label}-{library}"
    )
    for operation in OPERATIONS
    for case in operation.bench_cases
    for pass_ in PASSES
    for library in LIBRARIES
]
COPIES = [
    pytest.param(operation, case, pass_, id=f"{operation.name}-{pass_}-{case.label}")
    for operation in OPERATIONS
    if operation is not AFFINE
    for case in operation.bench_cases
    for pass_ in PASSES
]


@pytest.mark.parametrize(("operation", "case", "pass_", "library"), BENCHMARKS)
def test_operation(operation, case, pass_, library, measure):
    arrays = draw(operation, case)
    measure(
        bind(library, operation, pass_, case, arrays),
        library,
        f"{operation.name} {pass_} {case.label}",
        operation.bytes_moved(pass_, case, arrays),
    )


@pytest.mark.parametrize(("operation", "case", "pass_"), COPIES)
def test_copies(operation, case, pass_, measure):
    arrays = draw(operation, case)
    with fn.num_threads(1):
        measure(
            bind("fastnorm", operation, pass_, case, arrays, out=operation.blank(pass_, arrays)),
            "fastnorm",
            f"{operation.name} {pass_} {case.label}, into out",
            operation.bytes_moved(pass_, case, arrays),
            copied=arrays[operation.inputs[0]],
        )
