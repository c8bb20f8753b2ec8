"""Small calls, where Python takes more time than the kernel: a row of a transformer, a small batch.

The promise: at most 0.8 of PyTorch's time. Fresh results, no ``out=``, one thread. Again and again,
and each after a copy that fills the caches nearby, as between a network's large calls: most of the
time then goes by until Python's instructions and objects are there again.
"""

from functools import partial

import numpy as np
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


LARGE = np.zeros(2**20, np.float32)


@pytest.mark.parametrize("after", ["itself", "a-copy"])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("operation", "pass_", "case"),
    [pytest.param(*c, id=f"{c[0].name}-{c[1]}-{c[2].label}") for c in CASES],
)
def test_small(operation, pass_, case, library, after, measure):
    arrays = draw(operation, case)
    between = partial(np.copyto, np.empty_like(LARGE), LARGE) if after == "a-copy" else None
    with fn.num_threads(1):
        measure(
            bind(library, operation, pass_, case, arrays),
            library,
            f"{operation.name} {pass_} {case.label}{', after a copy' if between else ''}",
            operation.bytes_moved(pass_, case, arrays),
            before=between,
        )
