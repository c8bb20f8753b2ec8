"""Shapes that are cliffs elsewhere, each after a comfortable one of as many elements.

``ns_per_byte`` is what to compare, and ``speedup`` is that: the promise is 0.5 or more.
"""

from math import prod

import pytest
from libraries import bind, draw

from fastnorm._registry import BATCH_NORM, LAYER_NORM, PASSES, WEIGHT_NORM, Case

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=3)

LAST = {"axis": -1}
AWKWARD = [
    # around the widths of vectors and cache lines
    *((LAYER_NORM, Case(f"16384x{n}", (16384, n))) for n in (63, 65, 127)),
    # few long rows, many short ones
    (LAYER_NORM, Case("2x10000000", (2, 10_000_000))),
    (LAYER_NORM, Case("8x1000000", (8, 1_000_000))),
    (LAYER_NORM, Case("1000000x8", (1_000_000, 8))),
    (WEIGHT_NORM, Case("2x10000000", (2, 10_000_000))),
    (WEIGHT_NORM, Case("1000000x8", (1_000_000, 8))),
    # few channels
    *((BATCH_NORM, Case(f"channels first, {c}", (32, c, 224, 224))) for c in (1, 3)),
    *((BATCH_NORM, Case(f"channels last, {c}", (32, 224, 224, c), LAST)) for c in (1, 3)),
    (BATCH_NORM, Case("channels first, 17", (32, 17, 56, 56))),
    (BATCH_NORM, Case("channels last, 17", (32, 56, 56, 17), LAST)),
    # one sample, planes of one element and of few
    (BATCH_NORM, Case("1x64x112x112", (1, 64, 112, 112))),
    (BATCH_NORM, Case("4096x512x1x1", (4096, 512, 1, 1))),
    (BATCH_NORM, Case("128x512x7x7", (128, 512, 7, 7))),
    # long rows, but too many for columns that stay in cache
    *((BATCH_NORM, Case(f"{n}x{c}", (n, c))) for n, c in ((256, 4096), (512, 4608))),
    (WEIGHT_NORM, Case("512x4608, axis -1", (512, 4608), LAST)),
    # normalised over an axis that is not the last
    *(
        (LAYER_NORM, Case(f"axis 1 of 16x{c}x{n}x{n}", (16, c, n, n), {"axis": 1}))
        for c, n in ((64, 56), (256, 28))
    ),
    # columns at a distance that is a power of two fall into one set of the cache
    (BATCH_NORM, Case("4096x4096", (4096, 4096))),
    (WEIGHT_NORM, Case("4096x4096, axis -1", (4096, 4096), LAST)),
]


def comfortable(operation, case):
    """A usual shape with about as many elements."""
    size = prod(case.shape)
    shape = (32, 64, -(-size // 2048)) if operation is BATCH_NORM else (-(-size // 1024), 1024)
    return Case(f"comfortable, as {case.label}", shape)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    ("operation", "case", "of"),
    [
        pytest.param(operation, case, awkward.label, id=f"{operation.name}-{case.label}")
        for operation, awkward in AWKWARD
        for case in (comfortable(operation, awkward), awkward)
    ],
)
def test_awkward(operation, case, of, pass_, measure):
    arrays = draw(operation, case)
    measure(
        bind("fastnorm", operation, pass_, case, arrays, out=operation.blank(pass_, arrays)),
        "comfortable" if case.label.startswith("comfortable") else "awkward",
        f"{operation.name} {pass_} {of}",
        operation.bytes_moved(pass_, case, arrays),
        baseline="comfortable",
    )
