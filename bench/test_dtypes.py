"""16 bits beside float32, at shapes in the last cache and beyond it; one thread, into ``out=``.

``speedup`` is float32's time over that of the type. They move half of the bytes and convert every
element twice: 1.6 is wanted where memory is what takes the time, and never less than 1.
"""

import numpy as np
import pytest
from libraries import bind, draw

import fastnorm as fn
from fastnorm._registry import (
    BATCH_NORM,
    GROUP_NORM,
    HALF_DTYPES,
    LAYER_NORM,
    PASSES,
    RMS_NORM,
    WEIGHT_NORM,
    Case,
)

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=3)

CASES = [
    (LAYER_NORM, Case("512x768", (512, 768))),
    (LAYER_NORM, Case("16384x4096", (16384, 4096))),
    (RMS_NORM, Case("16384x4096", (16384, 4096))),
    (BATCH_NORM, Case("32x64x56x56", (32, 64, 56, 56))),
    (BATCH_NORM, Case("channels last 64x112x112x64", (64, 112, 112, 64), {"axis": -1})),
    (GROUP_NORM, Case("16x64x56x56", (16, 64, 56, 56), {"num_groups": 32})),
    (WEIGHT_NORM, Case("4096x4096", (4096, 4096))),
]


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), *HALF_DTYPES], ids=str)
@pytest.mark.parametrize(
    ("operation", "case"), [pytest.param(o, c, id=f"{o.name}-{c.label}") for o, c in CASES]
)
def test_dtypes(operation, case, dtype, pass_, measure):
    arrays = draw(operation, case)
    first = operation.inputs[0]
    arrays = arrays | {name: arrays[name].astype(dtype) for name in (first, "dy")}
    with fn.num_threads(1):
        measure(
            bind("fastnorm", operation, pass_, case, arrays, out=operation.blank(pass_, arrays)),
            str(dtype),
            f"{operation.name} {pass_} {case.label}, 16 bits",
            baseline="float32",
        )
