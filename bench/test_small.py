"""Small calls, where Python takes more time than the kernel: a row of a transformer, a small batch.

The promise: at most 0.8 of PyTorch's time. Fresh results, no ``out=``, one thread.
"""

import pytest
from libraries import LIBRARIES, bind, draw

import fastnorm as fn
from fastnorm._registry import BATCH_NORM, LAYER_NORM, Case

CASES = [
    (LAYER_NORM, "inference", Case("1x64", (1, 64))),
    (LAYER_NORM, "inference", Case("1x768", (1, 768))),
    (BATCH_NORM, "inference", Case("32x100", (32, 100))),
    (BATCH_NORM, "forward", Case("32x100", (32, 100))),
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("operation", "pass_", "case"),
    [pytest.param(*c, id=f"{c[0].name}-{c[1]}-{c[2].label}") for c in CASES],
)
def test_small(operation, pass_, case, library, measure):
    arrays = draw(operation, case)
    with fn.num_threads(1):
        measure(
            bind(library, operation, pass_, case, arrays),
            library,
            f"{operation.name} {pass_} {case.label}",
            operation.bytes_moved(pass_, case, arrays),
        )
